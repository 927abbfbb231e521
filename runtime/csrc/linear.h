// Dense times sparse: Y = alpha * A' @ R^T + beta * C, the product behind CsrGemm and CsrMatMul.
#pragma once

#include <memory>

#include "csr.h"
#include "panel_product.h"
#include "row_lanes.h"

namespace dns_onnx {

// A dense [rows, columns] operand read with strides; a stride of 0 broadcasts.
struct Strided {
  const float* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

class Linear {
 public:
  // weights: R [N, K], one row for each output column.  alpha scales them.
  Linear(Csr weights, float alpha);

  int64_t outputs() const { return weights_.rows; }
  int64_t inputs() const { return weights_.width; }
  // a: [m, K], one of its strides 1.  c: [m, N], data null where absent.  y: [m, N], row-major.
  void run(Parallel& parallel, int64_t m, Strided a, Strided c, float beta,
           const Activation& activation, float* y) const;

 private:
  void by_vector(Parallel& parallel, int64_t m, Strided a, const float* start,
                 const Finish& finish, float* y) const;
  void by_rows(const GemvJob& job, size_t task, const Finish& finish) const;
  void by_lanes(const GemvJob& job, size_t task, const Finish& finish) const;
  std::shared_ptr<const PanelProduct> product(int64_t m, bool rows_are_vectors) const;
  Layout layout(int64_t m) const;

  Csr weights_;
  RowLanes lanes_;                        // for single vectors, where that is faster
  std::vector<uint16_t> narrow_columns_;  // for single vectors else, where columns fit
  std::vector<int64_t> task_starts_;      // first row, or group of lanes_, of each task: about as
                                          // many entries each
  double vector_cycles_;                  // estimated, of a product with one vector
  PanelWeights panel_weights_;
  mutable PlanCache<PanelProduct> products_;
  mutable Scratch scratch_;
};

}  // namespace dns_onnx
