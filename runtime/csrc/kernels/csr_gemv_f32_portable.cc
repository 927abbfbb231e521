// Sparse matrix times one vector in plain C++.

#include "kernel_set.h"

namespace dns_onnx {
namespace {

template <typename Column>
void gemv(const GemvJob& job, const Column* columns, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    int64_t i = job.row_ptr[r];
    const int64_t end = job.row_ptr[r + 1];
    float sums[4] = {};  // independent, so that additions need not wait for each other
    for (; i + 4 <= end; i += 4) {
      for (int k = 0; k < 4; ++k) sums[k] += job.values[i + k] * job.x[columns[i + k]];
    }
    for (; i < end; ++i) sums[0] += job.values[i] * job.x[columns[i]];
    const float start = job.start == nullptr ? 0.0F : job.start[r];
    job.y[r] = start + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

}  // namespace

void csr_gemv_f32_portable(const GemvJob& job, int64_t first, int64_t last) {
  if (job.columns16 != nullptr) return gemv(job, job.columns16, first, last);
  gemv(job, job.columns32, first, last);
}

}  // namespace dns_onnx
