// Products with a sparse matrix on either side: compared with a loop over the stored entries.

#include <algorithm>
#include <limits>

#include "left_product.h"
#include "linear.h"
#include "targets.h"

namespace dns_onnx::fuzz {
namespace {

constexpr int64_t kMostWork = 1 << 18;  // multiply-adds of the loop

// Few rows and columns; or rows that advance together through windows of columns; or more outputs
// than tiles, panels and tasks take at once; or values that are kept in half their bytes.
std::vector<int64_t> shape(Draw& draw) {
  if (draw.one_in(512)) return {400 + draw.below(400), 1500 + draw.below(500)};
  if (draw.one_in(4)) return {1 + draw.below(40), 1 + draw.below(300)};
  if (draw.one_in(4)) return {1 + draw.below(600), 1 + draw.below(60)};
  return {1 + draw.below(9), 1 + draw.below(9)};
}

// One that may come first in a session or later, with a batch of its own.
int64_t batch(Draw& draw, const Csr& matrix) {
  const int64_t most = kMostWork / (matrix.nnz() + matrix.rows + matrix.width);
  if (draw.one_in(3)) return 1;
  return std::min(most, draw.below(draw.one_in(4) ? 200 : 40));
}

double dot(const Csr& matrix, int64_t row, const float* x, int64_t step) {
  double sum = 0;
  for (auto e = static_cast<size_t>(matrix.row_ptr[static_cast<size_t>(row)]);
       e < static_cast<size_t>(matrix.row_ptr[static_cast<size_t>(row) + 1]); ++e) {
    sum += static_cast<double>(matrix.values[e]) * x[matrix.columns[e] * step];
  }
  return sum;
}

// S @ B is what the rows of B transposed give.
void run_left(Draw& draw, const LeftProduct& left, const Csr& matrix) {
  const int64_t images = draw.below(3), columns = batch(draw, matrix), k = matrix.width;
  const std::vector<float> b = draw.floats(images * k * columns);
  const int64_t outputs = images * matrix.rows * columns;
  in_session(draw, [&](Parallel& parallel) {
    std::vector<float> y(static_cast<size_t>(outputs), kUnwritten);
    left.run(parallel, images, columns, b.data(), y.data());
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t image = i / columns / matrix.rows;
      const float* from = b.data() + image * k * columns + i % columns;
      compare("left product", y[static_cast<size_t>(i)],
              dot(matrix, i / columns % matrix.rows, from, columns));
    }
  });
}

void run_linear(Draw& draw, const Linear& linear, const Csr& matrix, float alpha) {
  const int64_t m = batch(draw, matrix), k = matrix.width, n = matrix.rows;
  std::vector<float> a = draw.floats(m * k);
  if (!a.empty() && draw.one_in(8)) {
    const float odd[] = {std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(),
                         std::numeric_limits<float>::quiet_NaN()};
    a[static_cast<size_t>(draw.below(m * k))] = odd[draw.below(3)];
  }
  const Strided rows = draw.one_in(4) ? Strided{a.data(), 1, m} : Strided{a.data(), k, 1};
  const std::vector<float> c = draw.floats(m * n + n);
  const Strided biases[] = {{c.data(), 0, 1}, {c.data(), n, 1}, {c.data(), 1, 0}, {}};
  const Strided bias = biases[draw.one_in(2) ? 0 : draw.below(4)];
  const float beta = draw.one_in(4) ? 0.5F : 1.0F;
  const Activation activation = draw.activation();
  in_session(draw, [&](Parallel& parallel) {
    std::vector<float> y(static_cast<size_t>(m * n), kUnwritten);
    linear.run(parallel, m, rows, bias, beta, activation, y.data());
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t r = 0; r < n; ++r) {
        double sum = alpha * dot(matrix, r, a.data() + i * rows.row_stride, rows.column_stride);
        if (bias.data != nullptr) {
          sum += beta * bias.data[i * bias.row_stride + r * bias.column_stride];
        }
        compare("product", y[static_cast<size_t>(i * n + r)], activated(activation, sum));
      }
    }
  });
}

}  // namespace

void sparse_product(Draw& draw) {
  Arrays arrays = draw.arrays(shape(draw));
  if (!draw.one_in(4)) draw.damage(arrays);
  const Csr matrix = read_csr("fuzz", arrays.operands());
  // damaged shapes may be valid and huge: only small layers are worth computing
  if (matrix.rows > 1 << 10 || matrix.width > 1 << 12) return;
  if (draw.one_in(4)) {
    const LeftProduct left("fuzz", matrix);
    for (int64_t times = 1 + draw.below(3); times > 0; --times) run_left(draw, left, matrix);
  } else {
    const float alpha = draw.one_in(4) ? 2.0F : 1.0F;
    const Linear linear(matrix, alpha);
    for (int64_t times = 1 + draw.below(3); times > 0; --times) {
      run_linear(draw, linear, matrix, alpha);
    }
  }
}

}  // namespace dns_onnx::fuzz
