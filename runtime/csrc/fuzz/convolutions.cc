// Sparse convolutions over one to three axes: compared with a loop over the stored entries.

#include <algorithm>

#include "conv.h"
#include "targets.h"

namespace dns_onnx::fuzz {
namespace {

constexpr int64_t kMostFloats = 1 << 17;  // of an input or output
constexpr int64_t kMostWork = 1 << 17;    // entries that the loop visits

// Few filters of few channels; now and then many filters, or many channels.
std::vector<int64_t> shape(Draw& draw) {
  std::vector<int64_t> dims = {1 + draw.below(9), 1 + draw.below(9)};
  if (draw.one_in(8)) dims[0] = 1 + draw.below(300);
  if (draw.one_in(8)) dims[1] = 1 + draw.below(100);
  for (int64_t axes = 1 + draw.below(3); axes > 0; --axes) {
    dims.push_back(draw.one_in(3) ? 1 : 1 + draw.below(4));
  }
  return dims;
}

ConvAttributes attributes(Draw& draw, size_t axes) {
  ConvAttributes made;
  const char* const pads[] = {"NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", "?"};
  made.auto_pad = pads[draw.below(6)];
  made.group = draw.one_in(3) ? 1 + draw.below(4) : 1;
  const bool plain = draw.one_in(3);  // as most pointwise convolutions are
  for (size_t i = 0; i < axes; ++i) {
    made.strides.push_back(draw.one_in(16) ? draw.below(3) - 1 : plain ? 1 : 1 + draw.below(3));
    made.dilations.push_back(plain ? 1 : 1 + draw.below(3));
  }
  for (size_t i = 0; i < 2 * axes; ++i) made.pads.push_back(plain ? 0 : draw.below(4));
  return made;
}

// One axis of one run, worked out anew.
struct Axis {
  int64_t in, out, kernel, stride, dilation, before;
};

Axis axis(const ConvAttributes& a, size_t i, int64_t in, int64_t out, int64_t kernel) {
  Axis made = {in, out, kernel, a.strides[i], a.dilations[i], 0};
  if (a.auto_pad == "NOTSET") made.before = a.pads[i];
  if (a.auto_pad.rfind("SAME", 0) == 0) {
    const int64_t span = (out - 1) * made.stride + (kernel - 1) * made.dilation + 1;
    const int64_t pads = std::max<int64_t>(0, span - in);
    made.before = (pads + (a.auto_pad == "SAME_LOWER" ? 1 : 0)) / 2;
  }
  return made;
}

// Where in a map a tap reads for an output's position; -1: in the padding.
int64_t place(const std::vector<Axis>& axes, int64_t position, int64_t tap) {
  int64_t place = 0, step = 1;
  for (size_t i = axes.size(); i-- > 0;) {
    const Axis& a = axes[i];
    const int64_t at = position % a.out * a.stride + tap % a.kernel * a.dilation - a.before;
    if (at < 0 || at >= a.in) return -1;
    place += at * step;
    step *= a.in;
    position /= a.out;
    tap /= a.kernel;
  }
  return place;
}

int64_t volume(const std::vector<int64_t>& dims) {
  return product("fuzz", dims.data() + 2, dims.size() - 2);
}

class Expected {
 public:
  Expected(const Csr& matrix, const ConvAttributes& attributes, const std::vector<int64_t>& input,
           const std::vector<int64_t>& output, const std::vector<float>& x)
      : matrix_(matrix), x_(x), taps_(volume(matrix.shape)), size_(volume(input)),
        channels_(input[1]), rows_of_a_part_(matrix.rows / attributes.group) {
    for (size_t i = 0; i + 2 < input.size(); ++i) {
      axes_.push_back(axis(attributes, i, input[i + 2], output[i + 2], matrix.shape[i + 2]));
    }
  }

  double operator()(int64_t image, int64_t row, int64_t position) const {
    const int64_t first = image * channels_ + row / rows_of_a_part_ * matrix_.shape[1];
    double sum = 0;
    for (auto e = static_cast<size_t>(matrix_.row_ptr[static_cast<size_t>(row)]);
         e < static_cast<size_t>(matrix_.row_ptr[static_cast<size_t>(row) + 1]); ++e) {
      const int64_t column = matrix_.columns[e], at = place(axes_, position, column % taps_);
      if (at < 0) continue;
      sum += static_cast<double>(matrix_.values[e]) *
             x_[static_cast<size_t>((first + column / taps_) * size_ + at)];
    }
    return sum;
  }

 private:
  const Csr& matrix_;
  const std::vector<float>& x_;
  std::vector<Axis> axes_;
  int64_t taps_, size_, channels_, rows_of_a_part_;
};

void run(Draw& draw, const Conv& conv, const Csr& matrix, const ConvAttributes& attributes) {
  const size_t axes = matrix.shape.size() - 2;
  std::vector<int64_t> input = {draw.below(draw.one_in(8) ? 20 : 3),
                                matrix.shape[1] * attributes.group};
  while (input.size() < axes + 2) input.push_back(draw.below(draw.one_in(8) ? 60 : 14));
  const std::vector<int64_t> output = conv.output_shape(input);
  const int64_t in = product("fuzz", input.data(), input.size());
  const int64_t out = product("fuzz", output.data(), output.size());
  if (in > kMostFloats || out > kMostFloats) return;
  const std::vector<float> x = draw.floats(in), bias = draw.floats(matrix.rows);
  const bool biased = !draw.one_in(4), adds = draw.one_in(2);
  const std::vector<float> residual = draw.floats(adds ? out : 0);
  const Activation activation = draw.activation();
  const Expected expected(matrix, attributes, input, output, x);
  const int64_t positions = volume(output);
  // of much work a share, each time another one
  const int64_t step = 1 + out / matrix.rows * (matrix.nnz() + matrix.rows) / kMostWork;
  const int64_t first = draw.below(step);
  in_session(draw, [&](Parallel& parallel) {
    std::vector<float> y(static_cast<size_t>(out), kUnwritten);
    conv.run(parallel, input, x.data(), biased ? bias.data() : nullptr,
             adds ? residual.data() : nullptr, activation, y.data());
    for (int64_t i = first; i < out; i += step) {
      const int64_t row = i / positions % matrix.rows;
      double sum = expected(i / positions / matrix.rows, row, i % positions);
      if (biased) sum += bias[static_cast<size_t>(row)];
      if (adds) sum += residual[static_cast<size_t>(i)];
      compare("convolution", y[static_cast<size_t>(i)], activated(activation, sum));
    }
  });
}

}  // namespace

void convolution(Draw& draw) {
  Arrays arrays = draw.arrays(shape(draw));
  const size_t axes = arrays.shape.size() - 2;
  if (draw.one_in(2)) draw.damage(arrays);
  const Csr matrix = read_csr("fuzz", arrays.operands());
  // damaged shapes may be valid and huge: only small layers are worth computing
  if (matrix.rows > 1 << 10 || matrix.width > 1 << 13) return;
  const ConvAttributes drawn = attributes(draw, axes);
  const Conv conv("fuzz", matrix, drawn);
  for (int64_t times = 1 + draw.below(3); times > 0; --times) run(draw, conv, matrix, drawn);
}

}  // namespace dns_onnx::fuzz
