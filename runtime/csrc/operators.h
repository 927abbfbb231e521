// The operators of the domain `dns_onnx` as ONNX Runtime kernels.
#pragma once

#include <memory>

#include "host.h"

namespace dns_onnx {

class Kernel {
 public:
  explicit Kernel(const abi::Api* api) : api_(api) {}
  virtual ~Kernel() = default;
  virtual void compute(Run& run) const = 0;
  const abi::Api* api() const { return api_; }

 private:
  const abi::Api* api_;
};

// Each throws Error on a malformed node.
std::unique_ptr<Kernel> make_gemm(const abi::Api* api, const abi::KernelInfo* info);
std::unique_ptr<Kernel> make_matmul(const abi::Api* api, const abi::KernelInfo* info);
std::unique_ptr<Kernel> make_left_matmul(const abi::Api* api, const abi::KernelInfo* info);
std::unique_ptr<Kernel> make_conv(const abi::Api* api, const abi::KernelInfo* info);
std::unique_ptr<Kernel> make_conv_concat(const abi::Api* api, const abi::KernelInfo* info);
std::unique_ptr<Kernel> make_lrn(const abi::Api* api, const abi::KernelInfo* info);
std::unique_ptr<Kernel> make_max_pool(const abi::Api* api, const abi::KernelInfo* info);

}  // namespace dns_onnx
