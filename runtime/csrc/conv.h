// Sparse convolution: the kernel behind CsrConv.
#pragma once

#include <string>
#include <vector>

#include "conv_layout.h"

namespace dns_onnx {

// The attributes of ONNX Conv, one entry for each spatial axis (pads: two).
struct ConvAttributes {
  std::string auto_pad;
  int64_t group = 1;
  std::vector<int64_t> kernel_shape, strides, dilations, pads;
};

class Conv {
 public:
  // weights: filters [M, C / group, k1, ..., kn].  Throws Error on attributes that do not fit.
  Conv(const std::string& where, const Csr& weights, const ConvAttributes& attributes);

  // Output shape for an input of shape [N, C, i1, ..., in].  Throws Error where it does not fit.
  std::vector<int64_t> output_shape(const std::vector<int64_t>& input) const;
  int64_t outputs() const { return weights_.rows; }
  // x, y: of the shapes above.  bias: [M] or null.  residual: of y's shape or null, added before
  // the activation.  channels: of an image in y, where it holds other maps too; 0 for M.
  void run(Parallel& parallel, const std::vector<int64_t>& input, const float* x, const float* bias,
           const float* residual, const Activation& activation, float* y,
           int64_t channels = 0) const;

 private:
  std::vector<int64_t> leading_pads(const std::vector<int64_t>& input) const;
  PlaneShape plane(const std::vector<int64_t>& input, const std::vector<int64_t>& output) const;
  // The weights sorted for one input shape, with what the surface of a run needs.
  struct Plan {
    PlaneShape plane;
    PatchLayout patch;
    std::shared_ptr<const PanelProduct> product;
  };
  std::shared_ptr<const Plan> plan(const std::vector<int64_t>& input) const;

  std::string where_;
  Csr weights_;
  ConvAttributes attributes_;
  size_t rank_;  // number of spatial axes
  PanelWeights panel_weights_;
  mutable PlanCache<Plan> plans_;
  mutable Scratch scratch_;
};

}  // namespace dns_onnx
