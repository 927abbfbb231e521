// Single layers: the result is compared with a loop over the stored entries.

#include <algorithm>
#include <limits>
#include <memory>

#include "conv.h"
#include "left_product.h"
#include "linear.h"
#include "targets.h"

namespace dns_onnx::fuzz {
namespace {

// S @ B is what the rows of B transposed give.
void run_left(Draw& draw, const Csr& matrix, Parallel& parallel) {
  const LeftProduct left("fuzz", matrix);
  const int64_t batch = draw.below(3), columns = draw.below(40), k = matrix.width;
  const std::vector<float> b = draw.floats(batch * k * columns);
  std::vector<float> y(static_cast<size_t>(batch * matrix.rows * columns));
  left.run(parallel, batch, columns, b.data(), y.data());
  for (size_t i = 0; i < y.size(); ++i) {
    const auto at = static_cast<int64_t>(i) % columns;
    const int64_t r = static_cast<int64_t>(i) / columns % matrix.rows;
    const int64_t image = static_cast<int64_t>(i) / columns / matrix.rows;
    double sum = 0;
    for (int64_t e = matrix.row_ptr[static_cast<size_t>(r)];
         e < matrix.row_ptr[static_cast<size_t>(r) + 1]; ++e) {
      const int64_t column = matrix.columns[static_cast<size_t>(e)];
      sum += static_cast<double>(matrix.values[static_cast<size_t>(e)]) *
             b[static_cast<size_t>((image * k + column) * columns + at)];
    }
    compare("layer", y[i], sum);
  }
}

void run_linear(Draw& draw, const Csr& matrix, Parallel& parallel) {
  const Linear linear(matrix, 1.0F);
  const int64_t m = draw.one_in(2) ? 1 : draw.below(20), k = matrix.width, n = matrix.rows;
  std::vector<float> a = draw.floats(m * k);
  const std::vector<float> c = draw.floats(n);
  if (!a.empty() && draw.one_in(8)) {
    const float odd[] = {std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(),
                         std::numeric_limits<float>::quiet_NaN()};
    a[static_cast<size_t>(draw.below(m * k))] = odd[draw.below(3)];
  }
  std::vector<float> y(static_cast<size_t>(m * n));
  const Activation activation = draw.activation();
  linear.run(parallel, m, {a.data(), k, 1}, {c.data(), 0, 1}, 1.0F, activation, y.data());
  for (int64_t i = 0; i < m * n; ++i) {
    const int64_t r = i % n;
    double sum = c[static_cast<size_t>(r)];
    for (int64_t e = matrix.row_ptr[static_cast<size_t>(r)];
         e < matrix.row_ptr[static_cast<size_t>(r) + 1]; ++e) {
      sum += static_cast<double>(matrix.values[static_cast<size_t>(e)]) *
             a[static_cast<size_t>(i / n * k + matrix.columns[static_cast<size_t>(e)])];
    }
    compare("layer", y[static_cast<size_t>(i)], activated(activation, sum));
  }
  run_left(draw, matrix, parallel);
}

void run_conv(Draw& draw, const Csr& matrix, Parallel& parallel) {
  ConvAttributes attributes;
  const char* const pads[] = {"NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", "?"};
  attributes.auto_pad = pads[draw.below(6)];
  attributes.group = draw.one_in(3) ? 1 + draw.below(4) : 1;
  const size_t axes = matrix.shape.size() < 2 ? 0 : matrix.shape.size() - 2;
  std::vector<int64_t> input = {draw.below(3),
                                matrix.shape.size() < 2 ? 1 : matrix.shape[1] * attributes.group};
  for (size_t i = 0; i < axes; ++i) {
    attributes.strides.push_back(draw.one_in(16) ? draw.below(3) - 1 : 1 + draw.below(3));
    attributes.dilations.push_back(1 + draw.below(3));
    input.push_back(draw.below(draw.one_in(8) ? 60 : 14));
  }
  for (size_t i = 0; i < 2 * axes; ++i) attributes.pads.push_back(draw.below(4));
  const Conv conv("fuzz", matrix, attributes);
  const std::vector<int64_t> output = conv.output_shape(input);
  const int64_t in = product("fuzz", input.data(), input.size());
  const int64_t out = product("fuzz", output.data(), output.size());
  if (in > 1 << 16 || out > 1 << 16) return;
  const std::vector<float> bias = draw.floats(matrix.rows);
  std::vector<float> x(static_cast<size_t>(in), 1.0F), y(static_cast<size_t>(out), -99.0F);
  const Activation activation = draw.activation();
  const std::vector<float> residual = draw.floats(out);
  const bool adds = draw.one_in(2);
  for (int64_t runs = draw.one_in(4) ? 5 : 1; runs > 0; --runs) {  // later ones know the threads
    conv.run(parallel, input, x.data(), bias.data(), adds ? residual.data() : nullptr, activation,
             y.data());
  }
  // with an input of ones, a sum lies within what its filter's entries allow
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t r = i / (y.size() / static_cast<size_t>(output[0] * output[1])) %
                     static_cast<size_t>(output[1]);
    double least = bias[r] + (adds ? residual[i] : 0.0F), most = least;
    for (int64_t e = matrix.row_ptr[r]; e < matrix.row_ptr[r + 1]; ++e) {
      const double value = matrix.values[static_cast<size_t>(e)];
      (value < 0 ? least : most) += value;
    }
    least = activated(activation, least);
    most = activated(activation, most);
    if (y[i] < least - 1e-3 || y[i] > most + 1e-3) compare("layer", y[i], least);
  }
}

std::vector<int64_t> shape(Draw& draw, bool conv) {
  // now and then a matrix whose rows advance together through windows of columns
  const bool wide = !conv && draw.one_in(4);
  std::vector<int64_t> dims = {1 + draw.below(wide ? 40 : 9), 1 + draw.below(wide ? 300 : 9)};
  for (int64_t axes = conv ? 1 + draw.below(3) : 0; axes > 0; --axes) {
    dims.push_back(1 + draw.below(4));
  }
  return dims;
}

}  // namespace

void layer(Draw& draw) {
  const bool conv = draw.one_in(2);
  Arrays arrays = draw.arrays(shape(draw, conv));
  if (!draw.one_in(4)) draw.damage(arrays);
  const Csr matrix = read_csr("fuzz", arrays.operands());
  // damaged shapes may be valid and huge: only small layers are worth computing
  if (matrix.rows > 64 || matrix.width > 4096) return;
  const std::unique_ptr<Parallel> parallel = draw.loop();
  if (conv) {
    run_conv(draw, matrix, *parallel);
  } else {
    run_linear(draw, matrix, *parallel);
  }
}

}  // namespace dns_onnx::fuzz
