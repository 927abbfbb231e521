// Max pooling in plain C++.

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "pool_f32.inc"

}  // namespace

void pool_f32_portable(const PoolJob& job) { pool(job); }

}  // namespace dns_onnx
