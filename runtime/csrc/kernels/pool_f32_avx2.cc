// Max pooling for AVX2.

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "pool_f32.inc"

}  // namespace

void pool_f32_avx2(const PoolJob& job) { pool(job); }

}  // namespace dns_onnx
