// A sparse matrix times one vector, its values stored as float32 and as float16: what half the
// bytes would gain in the kernel of fully connected layers.
//
//     g++ -std=c++17 -O3 -mavx2 -mfma -mf16c benchmarks/half_values.cc -o half_values && ./half_values
//
// The loop is that of runtime/csrc/kernels/csr_gemv_f32_avx2.cc.  `cold`: other memory, 96 MB, is
// read before each product.  Medians of 25, in turn, on one thread; entries drawn with seed 1.

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

struct Matrix {
  int64_t rows;
  std::vector<int64_t> row_ptr;
  std::vector<uint16_t> columns;
  std::vector<float> values;
  std::vector<uint16_t> halves;
};

__m128 four_inputs(const float* x, const uint16_t* columns) {
  uint64_t packed;
  std::memcpy(&packed, columns, sizeof packed);
  __m128 four = _mm_load_ss(x + (packed & 0xFFFF));
  four = _mm_insert_ps(four, _mm_load_ss(x + (packed >> 16 & 0xFFFF)), 0x10);
  four = _mm_insert_ps(four, _mm_load_ss(x + (packed >> 32 & 0xFFFF)), 0x20);
  return _mm_insert_ps(four, _mm_load_ss(x + (packed >> 48)), 0x30);
}

__m128 four_values(const float* at) { return _mm_loadu_ps(at); }
__m128 four_values(const uint16_t* at) {
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}
float one_value(float value) { return value; }
float one_value(uint16_t half) { return _cvtsh_ss(half); }

template <typename Value>
__attribute__((noinline)) void multiply(const Matrix& matrix, const Value* values, const float* x,
                                        float* y) {
  for (int64_t r = 0; r < matrix.rows; ++r) {
    const Value* value = values + matrix.row_ptr[r];
    const Value* end = values + matrix.row_ptr[r + 1];
    const uint16_t* column = matrix.columns.data() + matrix.row_ptr[r];
    __m128 sums[4] = {};
    for (; end - value >= 16; value += 16, column += 16) {
      _mm_prefetch(reinterpret_cast<const char*>(value + 256), _MM_HINT_T0);
      for (int k = 0; k < 4; ++k) {
        sums[k] = _mm_fmadd_ps(four_values(value + 4 * k), four_inputs(x, column + 4 * k), sums[k]);
      }
    }
    __m128 sum = _mm_add_ps(_mm_add_ps(sums[0], sums[1]), _mm_add_ps(sums[2], sums[3]));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    float total = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
    for (; value != end; ++value, ++column) total += one_value(*value) * x[*column];
    y[r] = total;
  }
}

Matrix draw(int64_t rows, int64_t width, double density) {
  Matrix matrix{rows, {0}, {}, {}, {}};
  std::mt19937 random(1);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      if (random() >= density * 4294967296.0) continue;
      const float value = static_cast<float>(random() % 2000) / 1000.0F - 1.0F;
      matrix.columns.push_back(static_cast<uint16_t>(c));
      matrix.values.push_back(value);
      matrix.halves.push_back(_cvtss_sh(value, 0));
    }
    matrix.row_ptr.push_back(static_cast<int64_t>(matrix.columns.size()));
  }
  return matrix;
}

template <typename Run>
double milliseconds(Run&& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main() {
  struct Shape {
    const char* name;
    int64_t rows, width;
    double density;
  };
  const Shape shapes[] = {{"fc8 1000x4096, 4.6 %", 1000, 4096, 0.046},
                          {"fc7 4096x4096, 6.6 %", 4096, 4096, 0.066},
                          {"fc6 4096x9216, 3.7 %", 4096, 9216, 0.037},
                          {"VGG-19 fc6 4096x25088, 10 %", 4096, 25088, 0.10}};
  std::vector<unsigned char> other(96 << 20, 1);
  for (const Shape& shape : shapes) {
    const Matrix matrix = draw(shape.rows, shape.width, shape.density);
    std::vector<float> x(static_cast<size_t>(shape.width), 0.5F), y(static_cast<size_t>(shape.rows));
    std::printf("%-28s", shape.name);
    for (const bool cold : {false, true}) {
      std::vector<double> wide, narrow;
      const auto evict = [&] {
        for (size_t i = 0; cold && i < other.size(); i += 64) ++other[i];
      };
      for (int round = 0; round < 25; ++round) {
        evict();
        wide.push_back(milliseconds([&] { multiply(matrix, matrix.values.data(), x.data(), y.data()); }));
        evict();
        narrow.push_back(
            milliseconds([&] { multiply(matrix, matrix.halves.data(), x.data(), y.data()); }));
      }
      std::printf("  %s: float32 %.3f ms, float16 %.3f ms, %.2f times", cold ? "cold" : "warm",
                  median(wide), median(narrow), median(wide) / median(narrow));
    }
    std::printf("\n");
  }
}
