// Sparse convolutions whose maps lie one behind the other in one output: no one copies them there.

#include "conv.h"
#include "operators.h"

namespace dns_onnx {
namespace {

constexpr int64_t kMostBranches = 4;
constexpr size_t kAxes = 2, kOperands = 8, kBias = 5;  // of a branch: those of CsrConv

class ConvConcat final : public Kernel {
 public:
  ConvConcat(const abi::Api* api, const abi::KernelInfo* info) : Kernel(api) {
    const Node node(api, info, "CsrConvConcat");
    where_ = node.where();
    const int64_t count = node.attribute("branches", int64_t{0});
    if (count < 1 || count > kMostBranches) {
      throw Error(where_ + ": branches: expected 1 to " + std::to_string(kMostBranches) +
                  ", got " + std::to_string(count) + "; open the original file again");
    }
    const Activation none = Finish().activation;
    activation_ = {node.attribute("low", none.low), node.attribute("high", none.high),
                   node.attribute("slope", none.slope)};
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      const auto constant = [&](size_t place) { return node.constant(i * kOperands + place); };
      const CsrOperands matrix = {constant(1), constant(2), constant(3), constant(4), constant(6)};
      if (!matrix.complete()) {
        throw Error(where_ + ": expected constant weights, got some computed at run time; open "
                    "the original file again");
      }
      ConvAttributes attributes;
      attributes.auto_pad = "NOTSET";
      attributes.group = part(node, "groups", i, count, 1)[0];
      attributes.strides = part(node, "strides", i, count, kAxes);
      attributes.dilations = part(node, "dilations", i, count, kAxes);
      attributes.pads = part(node, "pads", i, count, 2 * kAxes);
      branches_.push_back(
          std::make_unique<const Conv>(where_, read_csr(where_, matrix), attributes));
    }
  }

  void compute(Run& run) const override {
    std::vector<Tensor> x, bias;
    std::vector<int64_t> whole;
    for (size_t i = 0; i < branches_.size(); ++i) {
      x.push_back(run.input(i * kOperands));
      bias.push_back(run.input(i * kOperands + kBias));
      const std::vector<int64_t> shape = branches_[i]->output_shape(x[i].dims);
      if (bias[i] && (bias[i].dims.size() != 1 || bias[i].count != branches_[i]->outputs())) {
        throw Error(where_ + ": B: expected shape [" + std::to_string(branches_[i]->outputs()) +
                    "], got " + to_string(bias[i].dims) + "; open the original file again");
      }
      const int64_t before = whole.empty() ? 0 : whole[1];
      if (whole.empty()) whole = shape;
      whole[1] = shape[1];
      if (whole != shape) {
        throw Error(where_ + ": X: expected maps of one size from all branches, got " +
                    to_string(whole) + " and " + to_string(shape) +
                    "; feed what the layers were trained on");
      }
      whole[1] = before + shape[1];
    }
    float* y = run.output(whole);
    for (size_t i = 0; i < branches_.size(); ++i) {
      branches_[i]->run(run, x[i].dims, x[i].floats(), bias[i] ? bias[i].floats() : nullptr,
                        nullptr, activation_, y, whole[1]);
      y += branches_[i]->outputs() * whole[2] * whole[3];
    }
  }

 private:
  // Branch i's share of an attribute that holds `size` values for each.
  std::vector<int64_t> part(const Node& node, const char* name, size_t i, int64_t count,
                            size_t size) const {
    const std::vector<int64_t> all = node.attribute(name, std::vector<int64_t>());
    if (all.size() != static_cast<size_t>(count) * size) {
      throw Error(where_ + ": " + name + ": expected " + std::to_string(size) +
                  " values for each branch, got " + to_string(all) +
                  "; open the original file again");
    }
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(i * size);
    return {first, first + static_cast<std::ptrdiff_t>(size)};
  }

  std::string where_;
  Activation activation_;
  std::vector<std::unique_ptr<const Conv>> branches_;
};

}  // namespace

std::unique_ptr<Kernel> make_conv_concat(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<ConvConcat>(api, info);
}

}  // namespace dns_onnx
