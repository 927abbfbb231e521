// Local response normalization in plain C++.

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "lrn_f32.inc"

}  // namespace

void lrn_f32_portable(const LrnJob& job) { lrn(job); }

}  // namespace dns_onnx
