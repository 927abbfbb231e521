#include "draw.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>

#include "panel_product.h"

namespace dns_onnx::fuzz {
namespace {

class TwoThreads : public Parallel {
  void for_each(size_t count, void (*task)(void*, size_t), void* user) override {
    if (count < 2) {
      if (count == 1) task(user, 0);
      return;
    }
    std::thread other([&] {
      for (size_t i = 1; i < count; i += 2) task(user, i);
    });
    for (size_t i = 0; i < count; i += 2) task(user, i);
    other.join();
  }
};

class OneThread : public Parallel {
  void for_each(size_t count, void (*task)(void*, size_t), void* user) override {
    for (size_t i = 0; i < count; ++i) task(user, i);
  }
};

Tensor tensor(const std::vector<int64_t>& array) {
  const auto count = static_cast<int64_t>(array.size());
  return {abi::kInt64, {count}, count, array.data()};
}

}  // namespace

CsrOperands Arrays::operands() const {
  const auto nnz = static_cast<int64_t>(values.size());
  return {{abi::kFloat, {nnz}, nnz, values.data()},
          tensor(columns),
          gaps ? Tensor{} : tensor(row_ptr),
          tensor(shape),
          {}};
}

std::vector<float> Draw::floats(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(below(9)) - 4.0F;
  return values;
}

Activation Draw::activation() {
  const Activation none = Finish().activation;
  const int64_t kind = below(4);
  if (kind == 0) return {0.0F, none.high, 1.0F};
  if (kind == 1) return {-1.5F, 2.0F, 1.0F};
  if (kind == 2) return {none.low, none.high, 0.25F};
  return none;
}

std::unique_ptr<Parallel> Draw::loop() {
  if (one_in(16)) return std::make_unique<TwoThreads>();
  return std::make_unique<OneThread>();
}

Arrays Draw::arrays(std::vector<int64_t> shape) {
  Arrays a;
  a.shape = std::move(shape);
  int64_t width = 1;
  for (size_t i = 1; i < a.shape.size(); ++i) width *= a.shape[i];
  const int64_t share = 1 + below(5);
  a.gaps = one_in(2);
  int64_t last = 0;
  a.row_ptr.push_back(0);
  for (int64_t r = 0; r < a.shape[0]; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      if (!one_in(share)) continue;
      a.columns.push_back(a.gaps ? r * width + c - last : c);
      last = r * width + c;
      a.values.push_back(static_cast<float>(below(9)) - 4.0F);
    }
    a.row_ptr.push_back(static_cast<int64_t>(a.columns.size()));
  }
  return a;
}

void Draw::damage(std::vector<int64_t>& array) {
  const int64_t odd[] = {-1,
                         0,
                         1,
                         2,
                         7,
                         255,
                         65536,
                         int64_t{1} << 31,
                         int64_t{1} << 62,
                         std::numeric_limits<int64_t>::min()};
  const int64_t kind = below(7);
  if (kind == 0) array.push_back(below(9));
  if (kind == 1 && !array.empty()) array.pop_back();
  if (kind > 1 && !array.empty()) {
    int64_t& entry = array[static_cast<size_t>(below(static_cast<int64_t>(array.size())))];
    const auto step = static_cast<uint64_t>(below(5) - 2);
    // unsigned, because the sum may wrap round
    entry = kind == 2 ? odd[below(10)] : static_cast<int64_t>(static_cast<uint64_t>(entry) + step);
  }
}

void Draw::damage(Arrays& a) {
  std::vector<int64_t>* const arrays[] = {&a.columns, &a.row_ptr, &a.shape};
  for (int64_t times = 1 + below(2); times > 0; --times) {
    std::vector<int64_t>& array = *arrays[below(3)];
    const int64_t kind = below(8);
    if (kind == 0) {
      if (!a.values.empty()) a.values.pop_back();
    } else if (kind == 1) {
      if (&array != &a.shape) array.clear();
    } else {
      damage(array);
    }
  }
}

void in_session(Draw& draw, const std::function<void(Parallel&)>& run) {
  const std::unique_ptr<Parallel> loop = draw.loop();
  for (int64_t runs = draw.one_in(2) ? 1 : 5; runs > 0; --runs) run(*loop);
  if (!draw.one_in(16)) return;
  const std::unique_ptr<Parallel> other = draw.loop();
  std::thread second([&] { run(*other); });
  run(*loop);
  second.join();
}

double activated(const Activation& activation, double v) {
  if (v < 0) v *= activation.slope;
  return std::min<double>(std::max<double>(v, activation.low), activation.high);
}

void compare(const char* what, float got, double want) {
  if (std::fabs(got - want) <= 1e-3 || got == want) return;
  if (std::isnan(got) && std::isnan(want)) return;
  fail(std::string(what) + ": expected " + std::to_string(want) + ", got " + std::to_string(got));
}

void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::exit(1);
}

}  // namespace dns_onnx::fuzz
