// Feeds random and mutated sparse layers to the kernels: `fuzz <rounds> [seed]`.
//
// Built on request (-DDNS_ONNX_FUZZ=ON), best with -DDNS_ONNX_SANITIZE=address,undefined.  A round
// makes a small layer, damages its arrays in most rounds, and either gets an Error or compares the
// result with a loop over the stored entries.  Exit status 1 names the round that went wrong.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <thread>

#include "conv.h"
#include "left_product.h"
#include "linear.h"

namespace dns_onnx {
namespace {

// Runs tasks on two threads, so that a thread sanitizer sees the parallel path.
class TwoThreads : public Parallel {
  void for_each(size_t count, void (*task)(void*, size_t), void* user) override {
    if (count < 2) {
      if (count == 1) task(user, 0);
      return;
    }
    std::thread other([&] {
      for (size_t i = 1; i < count; i += 2) task(user, i);
    });
    for (size_t i = 0; i < count; i += 2) task(user, i);
    other.join();
  }
};

class OneThread : public Parallel {
  void for_each(size_t count, void (*task)(void*, size_t), void* user) override {
    for (size_t i = 0; i < count; ++i) task(user, i);
  }
};

struct Arrays {
  std::vector<float> values;
  std::vector<int64_t> columns, row_ptr, shape;
  bool gaps = false;  // columns holds gaps, row_ptr is not read
};

class Fuzzer {
 public:
  explicit Fuzzer(uint64_t seed) : random_(seed) {}

  void round() {
    const bool conv = below(2) == 1;
    Arrays arrays = make(conv);
    if (below(4) != 0) damage(arrays);
    try {
      const Csr matrix = read_csr("fuzz", operands(arrays));
      accepted_ += 1;
      if (below(16) == 0) {
        run(conv, matrix, *std::make_unique<TwoThreads>());
      } else {
        run(conv, matrix, *std::make_unique<OneThread>());
      }
    } catch (const Error&) {
      refused_ += 1;
    }
  }
  size_t accepted() const { return accepted_; }
  size_t refused() const { return refused_; }

 private:
  int64_t below(int64_t end) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(end));
  }

  Arrays make(bool conv) {
    Arrays a;
    // now and then a matrix whose rows advance together through windows of columns
    const bool wide = !conv && below(4) == 0;
    a.shape = {1 + below(wide ? 40 : 9), 1 + below(wide ? 300 : 9)};
    for (int64_t axes = conv ? 1 + below(3) : 0; axes > 0; --axes) a.shape.push_back(1 + below(4));
    int64_t width = 1;
    for (size_t i = 1; i < a.shape.size(); ++i) width *= a.shape[i];
    const int64_t one_in = 1 + below(5);
    a.gaps = below(2) == 1;
    int64_t last = 0;
    a.row_ptr.push_back(0);
    for (int64_t r = 0; r < a.shape[0]; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        if (below(one_in) != 0) continue;
        a.columns.push_back(a.gaps ? r * width + c - last : c);
        last = r * width + c;
        a.values.push_back(static_cast<float>(below(9)) - 4.0F);
      }
      a.row_ptr.push_back(static_cast<int64_t>(a.columns.size()));
    }
    return a;
  }

  void damage(Arrays& a) {
    std::vector<int64_t>* const arrays[] = {&a.columns, &a.row_ptr, &a.shape};
    for (int64_t times = 1 + below(2); times > 0; --times) {
      std::vector<int64_t>& array = *arrays[below(3)];
      const int64_t odd[] = {-1,
                             0,
                             1,
                             2,
                             7,
                             255,
                             65536,
                             int64_t{1} << 31,
                             int64_t{1} << 62,
                             std::numeric_limits<int64_t>::min()};
      const int64_t kind = below(8);
      if (kind == 0 && !a.values.empty()) a.values.pop_back();
      if (kind == 1) array.push_back(below(9));
      if (kind == 2 && !array.empty()) array.pop_back();
      if (kind == 3 && &array != &a.shape) array.clear();
      if (kind > 3 && !array.empty()) {
        int64_t& entry = array[static_cast<size_t>(below(static_cast<int64_t>(array.size())))];
        const int64_t step = below(5) - 2;
        // unsigned, because the sum may wrap round
        entry =
            kind == 4
                ? odd[below(10)]
                : static_cast<int64_t>(static_cast<uint64_t>(entry) + static_cast<uint64_t>(step));
      }
    }
  }

  static Tensor tensor(const std::vector<int64_t>& array) {
    const auto count = static_cast<int64_t>(array.size());
    return {abi::kInt64, {count}, count, array.data()};
  }

  static CsrOperands operands(const Arrays& a) {
    const auto nnz = static_cast<int64_t>(a.values.size());
    return {{abi::kFloat, {nnz}, nnz, a.values.data()},
            tensor(a.columns),
            a.gaps ? Tensor{} : tensor(a.row_ptr),
            tensor(a.shape),
            {}};
  }

  std::vector<float> floats(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(below(9)) - 4.0F;
    return values;
  }

  static void compare(float got, double want) {
    if (std::fabs(got - want) <= 1e-3 || got == want) return;
    if (std::isnan(got) && std::isnan(want)) return;
    std::fprintf(stderr, "fuzz: expected %g, got %g\n", want, static_cast<double>(got));
    std::exit(1);
  }

  void run(bool conv, const Csr& matrix, Parallel& parallel) {
    // damaged shapes may be valid and huge: only small layers are worth computing
    if (matrix.rows > 64 || matrix.width > 4096) return;
    if (conv) {
      run_conv(matrix, parallel);
    } else {
      run_linear(matrix, parallel);
    }
  }

  void run_linear(const Csr& matrix, Parallel& parallel) {
    const Linear linear(matrix, 1.0F);
    const int64_t m = below(2) == 0 ? 1 : below(20), k = matrix.width, n = matrix.rows;
    std::vector<float> a = floats(m * k);
    const std::vector<float> c = floats(n);
    if (!a.empty() && below(8) == 0) {
      const float odd[] = {std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN()};
      a[static_cast<size_t>(below(m * k))] = odd[below(3)];
    }
    std::vector<float> y(static_cast<size_t>(m * n));
    const Activation activation = random_activation();
    linear.run(parallel, m, {a.data(), k, 1}, {c.data(), 0, 1}, 1.0F, activation, y.data());
    for (int64_t i = 0; i < m * n; ++i) {
      const int64_t r = i % n;
      double sum = c[static_cast<size_t>(r)];
      for (int64_t e = matrix.row_ptr[static_cast<size_t>(r)];
           e < matrix.row_ptr[static_cast<size_t>(r) + 1]; ++e) {
        sum += static_cast<double>(matrix.values[static_cast<size_t>(e)]) *
               a[static_cast<size_t>(i / n * k + matrix.columns[static_cast<size_t>(e)])];
      }
      compare(y[static_cast<size_t>(i)], activated(activation, sum));
    }
    run_left(matrix, parallel);
  }

  // S @ B is what the rows of B transposed give.
  void run_left(const Csr& matrix, Parallel& parallel) {
    const LeftProduct left("fuzz", matrix);
    const int64_t batch = below(3), columns = below(40), k = matrix.width;
    const std::vector<float> b = floats(batch * k * columns);
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
      compare(y[i], sum);
    }
  }

  Activation random_activation() {
    const Activation none = Finish().activation;
    const int64_t kind = below(4);
    if (kind == 0) return {0.0F, none.high, 1.0F};
    if (kind == 1) return {-1.5F, 2.0F, 1.0F};
    if (kind == 2) return {none.low, none.high, 0.25F};
    return none;
  }

  static double activated(const Activation& activation, double v) {
    if (v < 0) v *= activation.slope;
    return std::min<double>(std::max<double>(v, activation.low), activation.high);
  }

  void run_conv(const Csr& matrix, Parallel& parallel) {
    ConvAttributes attributes;
    const char* const pads[] = {"NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", "?"};
    attributes.auto_pad = pads[below(6)];
    attributes.group = below(3) == 0 ? 1 + below(4) : 1;
    const size_t axes = matrix.shape.size() < 2 ? 0 : matrix.shape.size() - 2;
    std::vector<int64_t> input = {below(3),
                                  matrix.shape.size() < 2 ? 1 : matrix.shape[1] * attributes.group};
    for (size_t i = 0; i < axes; ++i) {
      attributes.strides.push_back(below(16) == 0 ? below(3) - 1 : 1 + below(3));
      attributes.dilations.push_back(1 + below(3));
      input.push_back(below(below(8) == 0 ? 60 : 14));
    }
    for (size_t i = 0; i < 2 * axes; ++i) attributes.pads.push_back(below(4));
    const Conv conv("fuzz", matrix, attributes);
    const std::vector<int64_t> output = conv.output_shape(input);
    const int64_t in = product("fuzz", input.data(), input.size());
    const int64_t out = product("fuzz", output.data(), output.size());
    if (in > 1 << 16 || out > 1 << 16) return;
    const std::vector<float> bias = floats(matrix.rows);
    std::vector<float> x(static_cast<size_t>(in), 1.0F), y(static_cast<size_t>(out), -99.0F);
    const Activation activation = random_activation();
    const std::vector<float> residual = floats(out);
    const bool adds = below(2) == 0;
    for (int64_t runs = below(4) == 0 ? 5 : 1; runs > 0; --runs) {  // later ones know the threads
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
      if (y[i] < least - 1e-3 || y[i] > most + 1e-3) compare(y[i], least);
    }
  }

  std::mt19937_64 random_;
  size_t accepted_ = 0, refused_ = 0;
};

}  // namespace
}  // namespace dns_onnx

int main(int count, char** arguments) {
  const long rounds = count > 1 ? std::atol(arguments[1]) : 10000;
  const long seed = count > 2 ? std::atol(arguments[2]) : 1;
  dns_onnx::Fuzzer fuzzer(static_cast<uint64_t>(seed));
  for (long i = 0; i < rounds; ++i) fuzzer.round();
  std::printf("%ld rounds: %zu matrices accepted, %zu layers refused\n", rounds, fuzzer.accepted(),
              fuzzer.refused());
  return 0;
}
