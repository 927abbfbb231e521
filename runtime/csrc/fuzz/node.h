// One node with its attributes and tensors, in place of ONNX Runtime: it answers what kernels ask
// through the C ABI.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "host.h"

namespace dns_onnx::fuzz {

// A tensor that owns its memory, to the byte, so that a sanitizer sees what lies beyond.
struct Held {
  abi::ElementType type = abi::kUndefined;  // of an absent operand
  std::vector<int64_t> dims;
  std::vector<float> floats;
  std::vector<int64_t> integers;

  static Held of(std::vector<int64_t> dims, std::vector<float> values);
  static Held of(std::vector<int64_t> values);
};

struct FakeNode {
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> numbers;
  std::map<std::string, std::vector<int64_t>> lists;
  std::vector<Held> inputs;  // all of them constant
  Held output;
  Parallel* parallel = nullptr;

  const abi::Api* api() const;
  const abi::KernelInfo* info() const { return reinterpret_cast<const abi::KernelInfo*>(this); }
  abi::KernelContext* context() { return reinterpret_cast<abi::KernelContext*>(this); }
};

}  // namespace dns_onnx::fuzz
