#include "conv.h"

#include <algorithm>

namespace dns_onnx {
namespace {

constexpr int64_t kMaxAttribute = int64_t{1} << 31;  // keeps every product below 2^63
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

// y[o] += v * x[o * stride + shift] over the last axis, where the input index lies inside.
void add_row(float* y, int64_t out, const float* x, int64_t in, int64_t stride, int64_t shift,
             float v) {
  const int64_t first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
  const int64_t end = in <= shift ? 0 : std::min(out, (in - 1 - shift) / stride + 1);
  for (int64_t o = first; o < end; ++o) y[o] += v * x[o * stride + shift];
}

// Adds one weight's contribution to one output map; recurses over the spatial axes.
void add_map(float* y, const float* x, float v, const int64_t* out, const int64_t* in,
             const int64_t* stride, const int64_t* shift, size_t rank) {
  if (rank == 1) return add_row(y, out[0], x, in[0], stride[0], shift[0], v);
  int64_t y_step = 1, x_step = 1;
  for (size_t i = 1; i < rank; ++i) {
    y_step *= out[i];
    x_step *= in[i];
  }
  for (int64_t o = 0; o < out[0]; ++o) {
    const int64_t i = o * stride[0] + shift[0];
    if (i < 0 || i >= in[0]) continue;
    add_map(y + o * y_step, x + i * x_step, v, out + 1, in + 1, stride + 1, shift + 1, rank - 1);
  }
}

}  // namespace

void Conv::run(Parallel& parallel, const std::vector<int64_t>& input, const float* x,
               const float* bias, float* y) const {
  const std::vector<int64_t> output = output_shape(input);
  const std::vector<int64_t> pads = leading_pads(input);
  const int64_t filters = weights_.rows, group_filters = filters / attributes_.group;
  const int64_t in_size = product(where_, input.data() + 2, rank_);
  const int64_t out_size = product(where_, output.data() + 2, rank_);
  const int64_t taps = product(where_, attributes_.kernel_shape.data(), rank_);
  auto task = [&](size_t index) {
    const int64_t image = static_cast<int64_t>(index) / filters;
    const int64_t filter = static_cast<int64_t>(index) % filters;
    float* map = y + static_cast<int64_t>(index) * out_size;
    std::fill(map, map + out_size, bias == nullptr ? 0.0F : bias[filter]);
    const int64_t first_channel = filter / group_filters * weights_.shape[1];
    int64_t shift[kMaxAxes];
    for (int64_t i = weights_.row_ptr[static_cast<size_t>(filter)];
         i < weights_.row_ptr[static_cast<size_t>(filter) + 1]; ++i) {
      const int64_t column = weights_.columns[static_cast<size_t>(i)];
      int64_t tap = column % taps;
      for (size_t axis = rank_; axis-- > 0;) {
        const int64_t k = attributes_.kernel_shape[axis];
        shift[axis] = tap % k * attributes_.dilations[axis] - pads[axis];
        tap /= k;
      }
      const int64_t plane = image * input[1] + first_channel + column / taps;
      add_map(map, x + plane * in_size, weights_.values[static_cast<size_t>(i)],
              output.data() + 2, input.data() + 2, attributes_.strides.data(), shift, rank_);
    }
  };
  if (out_size == 0) return;
  parallel.run(static_cast<size_t>(input[0] * filters), task);
}

}  // namespace dns_onnx
