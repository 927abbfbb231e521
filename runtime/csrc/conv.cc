#include "conv.h"

#include <algorithm>

namespace dns_onnx {
namespace {

constexpr int64_t kMaxAttribute = int64_t{1} << 24;  // keeps every product below 2^63
constexpr int64_t kMaxSize = int64_t{1} << 31;
constexpr size_t kMaxAxes = 8;

void check_axis_values(const std::string& where, const char* name,
                       const std::vector<int64_t>& values, size_t count, int64_t least) {
  const bool fits = values.size() == count &&
                    std::all_of(values.begin(), values.end(),
                                [&](int64_t v) { return v >= least && v < kMaxAttribute; });
  if (!fits) {
    throw Error(where + ": " + name + ": expected " + std::to_string(count) + " values from " +
                std::to_string(least) + " on, got " + to_string(values) +
                "; write the attribute as ONNX Conv does");
  }
}

}  // namespace

Conv::Conv(const std::string& where, const Csr& weights, const ConvAttributes& attributes)
    : where_(where), weights_(weights), attributes_(attributes), rank_(0) {
  if (weights_.shape.size() < 3) {
    throw Error(where_ + ": shape: expected filters of rank 3 or more, got " +
                to_string(weights_.shape) + "; a rank of 2 is a CsrGemm");
  }
  rank_ = weights_.shape.size() - 2;
  if (rank_ > kMaxAxes) {
    throw Error(where_ + ": shape: expected at most " + std::to_string(kMaxAxes) +
                " spatial axes, got " + to_string(weights_.shape) + "; use a dense Conv");
  }
  ConvAttributes& a = attributes_;
  const std::vector<int64_t> kernel(weights_.shape.begin() + 2, weights_.shape.end());
  if (a.kernel_shape.empty()) a.kernel_shape = kernel;
  if (a.strides.empty()) a.strides.assign(rank_, 1);
  if (a.dilations.empty()) a.dilations.assign(rank_, 1);
  if (a.pads.empty()) a.pads.assign(2 * rank_, 0);
  check_axis_values(where_, "strides", a.strides, rank_, 1);
  check_axis_values(where_, "dilations", a.dilations, rank_, 1);
  check_axis_values(where_, "pads", a.pads, 2 * rank_, 0);
  if (a.kernel_shape != kernel) {
    throw Error(where_ + ": kernel_shape: expected " + to_string(kernel) + " as in shape, got " +
                to_string(a.kernel_shape) + "; leave the attribute out");
  }
  if (a.group < 1 || weights_.rows % a.group != 0) {
    throw Error(where_ + ": group: expected a divisor of the " + std::to_string(weights_.rows) +
                " filters, got " + std::to_string(a.group) + "; export the model again");
  }
  if (a.auto_pad != "NOTSET" && a.auto_pad != "VALID" && a.auto_pad != "SAME_UPPER" &&
      a.auto_pad != "SAME_LOWER") {
    throw Error(where_ + ": auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, got '" +
                a.auto_pad + "'; write the attribute as ONNX Conv does");
  }
  int64_t taps = 1;  // over the last two axes; those before them are folded into channels
  for (size_t i = rank_ > 2 ? rank_ - 2 : 0; i < rank_; ++i) taps *= kernel[i];
  const int64_t part = weights_.width / taps;
  panel_weights_ = {&weights_, taps, part * a.group, weights_.rows / a.group, part};
}

std::vector<int64_t> Conv::output_shape(const std::vector<int64_t>& input) const {
  const ConvAttributes& a = attributes_;
  if (input.size() != rank_ + 2 || input[1] != weights_.shape[1] * a.group) {
    throw Error(where_ + ": X: expected rank " + std::to_string(rank_ + 2) + " and " +
                std::to_string(weights_.shape[1] * a.group) + " channels, got shape " +
                to_string(input) + "; feed what the layer was trained on");
  }
  std::vector<int64_t> output = {input[0], weights_.rows};
  for (size_t i = 0; i < rank_; ++i) {
    const int64_t in = input[i + 2];
    const int64_t span = (a.kernel_shape[i] - 1) * a.dilations[i] + 1;
    if (span >= kMaxAttribute || in >= kMaxSize) {
      throw Error(where_ +
                  ": X: expected sizes below 2^31 and filters that span less than 2^24, "
                  "got shape " +
                  to_string(input) + "; use a dense Conv");
    }
    int64_t out = 0;
    if (a.auto_pad == "SAME_UPPER" || a.auto_pad == "SAME_LOWER") {
      out = (in + a.strides[i] - 1) / a.strides[i];
    } else {
      const int64_t pad = a.auto_pad == "VALID" ? 0 : a.pads[i] + a.pads[i + rank_];
      out = in + pad < span ? 0 : (in + pad - span) / a.strides[i] + 1;
    }
    output.push_back(out);
  }
  product(where_ + ": Y", output.data(), output.size());
  return output;
}

std::vector<int64_t> Conv::leading_pads(const std::vector<int64_t>& input) const {
  const ConvAttributes& a = attributes_;
  std::vector<int64_t> pads(rank_, 0);
  if (a.auto_pad == "NOTSET") std::copy_n(a.pads.begin(), rank_, pads.begin());
  if (a.auto_pad != "SAME_UPPER" && a.auto_pad != "SAME_LOWER") return pads;
  for (size_t i = 0; i < rank_; ++i) {
    const int64_t in = input[i + 2];
    const int64_t out = (in + a.strides[i] - 1) / a.strides[i];
    const int64_t span = (a.kernel_shape[i] - 1) * a.dilations[i] + 1;
    const int64_t total = std::max<int64_t>(0, (out - 1) * a.strides[i] + span - in);
    pads[i] = a.auto_pad == "SAME_LOWER" ? total - total / 2 : total / 2;
  }
  return pads;
}

namespace {

// Positions along the axes before the last two, folded into images and channels.
class FoldedMaps final : public Maps {
 public:
  FoldedMaps(const PlaneShape& plane, const ConvAttributes& attributes, size_t outer,
             const std::vector<int64_t>& input, const std::vector<int64_t>& output,
             const std::vector<int64_t>& pads, const float* x, const float* residual, float* y)
      : attributes_(attributes),
        input_(input),
        output_(output),
        pads_(pads),
        outer_(outer),
        x_(x),
        residual_(residual),
        y_(y),
        in_size_(plane.height * plane.width),
        out_size_(plane.out_height * plane.out_width) {
    for (size_t i = 0; i < outer_; ++i) {
      taps_ *= attributes_.kernel_shape[i];
      positions_ *= output_[i + 2];
    }
  }

  const float* input(int64_t image, int64_t channel) const override {
    int64_t position = image % positions_, tap = channel % taps_;
    int64_t map = 0, step = 1;
    for (size_t i = outer_; i-- > 0;) {
      const int64_t o = position % output_[i + 2], k = tap % attributes_.kernel_shape[i];
      const int64_t at = o * attributes_.strides[i] + k * attributes_.dilations[i] - pads_[i];
      if (at < 0 || at >= input_[i + 2]) return nullptr;
      map += at * step;
      step *= input_[i + 2];
      position /= output_[i + 2];
      tap /= attributes_.kernel_shape[i];
    }
    return x_ + ((image / positions_ * input_[1] + channel / taps_) * step + map) * in_size_;
  }

  float* output(int64_t image) const override { return y_ + row_zero(image); }
  const float* residual(int64_t image) const override {
    return residual_ == nullptr ? nullptr : residual_ + row_zero(image);
  }

  int64_t output_step() const override { return positions_ * out_size_; }

 private:
  int64_t row_zero(int64_t image) const {
    const int64_t map = image / positions_ * output_[1] * positions_ + image % positions_;
    return map * out_size_;
  }

  const ConvAttributes& attributes_;
  const std::vector<int64_t>&input_, &output_, &pads_;
  size_t outer_;
  const float *x_, *residual_;
  float* y_;
  int64_t in_size_, out_size_;
  int64_t taps_ = 1, positions_ = 1;  // of the folded axes
};

}  // namespace

PlaneShape Conv::plane(const std::vector<int64_t>& input,
                       const std::vector<int64_t>& output) const {
  const std::vector<int64_t> pads = leading_pads(input);
  PlaneShape plane;
  plane.images = input[0];
  for (size_t i = 0; i + 2 < rank_; ++i) plane.images *= output[i + 2];
  plane.in_place = rank_ <= 2;
  int64_t* const sizes[2][2] = {{&plane.height, &plane.out_height},
                                {&plane.width, &plane.out_width}};
  for (size_t back = 1; back <= std::min<size_t>(2, rank_); ++back) {
    const size_t i = rank_ - back, which = 2 - back;
    *sizes[which][0] = input[i + 2];
    *sizes[which][1] = output[i + 2];
    plane.kernel[which] = attributes_.kernel_shape[i];
    plane.stride[which] = attributes_.strides[i];
    plane.dilation[which] = attributes_.dilations[i];
    plane.pad[which] = pads[i];
  }
  return plane;
}

std::shared_ptr<const Conv::Plan> Conv::plan(const std::vector<int64_t>& input) const {
  return plans_.get(input, [&] {
    auto made = std::make_shared<Plan>();
    made->plane = plane(input, output_shape(input));
    Layout layout = choose_layout(panel_weights_, made->plane, made->patch);
    made->product = std::make_shared<const PanelProduct>(panel_weights_, std::move(layout));
    return made;
  });
}

void Conv::run(Parallel& parallel, const std::vector<int64_t>& input, const float* x,
               const float* bias, const float* residual, const Activation& activation, float* y,
               int64_t channels) const {
  std::vector<int64_t> output = output_shape(input);
  if (product(where_, output.data(), output.size()) == 0) return;
  if (channels > 0) output[1] = channels;
  const std::vector<int64_t> pads = leading_pads(input);
  const std::shared_ptr<const Plan> now = plan(input);
  const size_t outer = rank_ > 2 ? rank_ - 2 : 0;
  const FoldedMaps maps(now->plane, attributes_, outer, input, output, pads, x, residual, y);
  const Finish finish{activation, residual != nullptr};
  const int64_t size = now->plane.height * now->plane.width;
  if (now->product->layout().direct) {
    const DirectMaps flat = {x,    residual,        y,
                             now->plane.images,     size,
                             input[1] * size, output[1] * size};
    now->product->run_direct(parallel, flat, bias, finish);
  } else if (now->plane.pointwise()) {
    const FlatSurface surface(maps, now->plane.images, size);
    now->product->run(parallel, surface, bias, finish, scratch_);
  } else {
    now->product->run(parallel, PatchSurface(maps, now->patch), bias, finish, scratch_);
  }
}

}  // namespace dns_onnx
