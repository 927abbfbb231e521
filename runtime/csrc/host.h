// ONNX Runtime as the kernels see it: errors as exceptions, tensors as views, a parallel loop.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace dns_onnx {

// A fault of the model or of its inputs; its text reaches the user as ONNX Runtime's error.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One tensor, not owned.  `data` may be null when `count` is zero.
struct Tensor {
  abi::ElementType type = abi::kUndefined;
  std::vector<int64_t> dims;
  int64_t count = 0;
  const void* data = nullptr;

  explicit operator bool() const { return type != abi::kUndefined; }
  const float* floats() const { return static_cast<const float*>(data); }
};

std::string to_string(const std::vector<int64_t>& dims);

// Product of `dims`.  Throws Error, naming `where`, on a negative dimension or past 2^62.
int64_t product(const std::string& where, const int64_t* dims, size_t rank);

// Runs task(index) for every index below `count`, maybe at the same time.  Tasks must not throw.
class Parallel {
 public:
  virtual ~Parallel() = default;
  template <typename Task>
  void run(size_t count, Task& task) {
    for_each(count, [](void* user, size_t index) { (*static_cast<Task*>(user))(index); }, &task);
  }

 private:
  virtual void for_each(size_t count, void (*task)(void*, size_t), void* user) = 0;
};

// A node while its kernel is being made.
class Node {
 public:
  Node(const abi::Api* api, const abi::KernelInfo* info, const char* op_type);

  // "CsrGemm 'fc1'", the place that every message names.
  const std::string& where() const { return where_; }
  float attribute(const char* name, float absent) const;
  int64_t attribute(const char* name, int64_t absent) const;
  std::string attribute(const char* name, const std::string& absent) const;
  std::vector<int64_t> attribute(const char* name, const std::vector<int64_t>& absent) const;
  // The value of input `index` if it never changes, else an empty tensor.
  Tensor constant(size_t index) const;

 private:
  bool found(abi::Status* status) const;

  const abi::Api* api_;
  const abi::KernelInfo* info_;
  std::string where_;
};

// One run of a node.
class Run : public Parallel {
 public:
  Run(const abi::Api* api, abi::KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const;  // empty where the optional input is absent
  bool has_input(size_t index) const;
  float* output(const std::vector<int64_t>& dims);

 private:
  void for_each(size_t count, void (*task)(void*, size_t), void* user) override;

  const abi::Api* api_;
  abi::KernelContext* context_;
};

}  // namespace dns_onnx
