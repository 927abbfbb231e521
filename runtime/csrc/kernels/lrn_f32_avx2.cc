// Local response normalization for AVX2 with FMA.

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "lrn_f32.inc"

}  // namespace

void lrn_f32_avx2(const LrnJob& job) { lrn(job); }

}  // namespace dns_onnx
