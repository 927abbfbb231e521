// What the fuzzer draws: numbers, and sparse layers whose arrays may be damaged.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "csr.h"
#include "host.h"
#include "kernels/kernel_set.h"

namespace dns_onnx::fuzz {

// A sparse matrix as a file stores it.
struct Arrays {
  std::vector<float> values;
  std::vector<int64_t> columns, row_ptr, shape;
  bool gaps = false;  // columns holds gaps, row_ptr is not read

  CsrOperands operands() const;
};

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}

  int64_t below(int64_t end) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(end));
  }
  bool one_in(int64_t count) { return below(count) == 0; }
  std::vector<float> floats(int64_t count);
  Activation activation();
  // A loop on one thread; now and then on two, so that a thread sanitizer sees that path.
  std::unique_ptr<Parallel> loop();
  // An intact matrix of this shape, [rows, ...]; some of its entries are stored.
  Arrays arrays(std::vector<int64_t> shape);
  // Puts an entry, a length or a whole array out of order.
  void damage(std::vector<int64_t>& array);
  void damage(Arrays& arrays);

 private:
  std::mt19937_64 random_;
};

// Runs a layer as a session does: once, or until it knows the host's threads; now and then twice at
// the same time.
void in_session(Draw& draw, const std::function<void(Parallel&)>& run);

constexpr float kUnwritten = -99.0F;  // what outputs hold before a run

double activated(const Activation& activation, double v);

// Ends the program where the two differ.
void compare(const char* what, float got, double want);
[[noreturn]] void fail(const std::string& what);

}  // namespace dns_onnx::fuzz
