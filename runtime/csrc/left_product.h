// Sparse times dense: Y = S @ B, the product behind CsrLeftMatMul.
#pragma once

#include <string>

#include "conv.h"
#include "linear.h"

namespace dns_onnx {

class LeftProduct {
 public:
  // weights: S [M, K].
  LeftProduct(const std::string& where, const Csr& weights)
      : rows_(weights, 1.0F), columns_(where, as_filters(weights), {"NOTSET", 1, {}, {}, {}, {}}) {}

  int64_t outputs() const { return rows_.outputs(); }
  int64_t inputs() const { return rows_.inputs(); }

  // b: [batch, K, columns].  y: [batch, M, columns].
  void run(Parallel& parallel, int64_t batch, int64_t columns, const float* b, float* y) const {
    if (columns == 1) {
      rows_.run(parallel, batch, {b, inputs(), 1}, {}, 0.0F, Finish().activation, y);
    } else {
      columns_.run(parallel, {batch, inputs(), columns}, b, nullptr, nullptr, Finish().activation,
                   y);
    }
  }

 private:
  static Csr as_filters(Csr weights) {
    weights.shape.push_back(1);
    return weights;
  }

  Linear rows_;
  Conv columns_;
};

}  // namespace dns_onnx
