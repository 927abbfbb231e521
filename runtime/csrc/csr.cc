#include "csr.h"

#include <algorithm>
#include <cstring>

namespace dns_onnx {
namespace {

constexpr const char* kRemedy =
    "; the file is damaged or was not written by dns-onnx: export it again";

// A few bytes may name any shape, and each row, or column once transposed, takes 8 in memory.
constexpr int64_t kMaxDimension = int64_t{1} << 26;

[[noreturn]] void fail(const std::string& where, const std::string& operand,
                       const std::string& expected, const std::string& got) {
  throw Error(where + ": " + operand + ": expected " + expected + ", got " + got + kRemedy);
}

void expect_rank_one(const std::string& where, const char* operand, const Tensor& tensor) {
  if (tensor.dims.size() != 1) fail(where, operand, "one dimension", to_string(tensor.dims));
}

// Calls visit(pointer to the first element) with the tensor's own integer type.
template <typename Visit>
void with_indices(const std::string& where, const char* operand, const Tensor& tensor,
                  Visit&& visit) {
  switch (tensor.type) {
    case abi::kUint8:
      return visit(static_cast<const uint8_t*>(tensor.data));
    case abi::kUint16:
      return visit(static_cast<const uint16_t*>(tensor.data));
    case abi::kInt32:
      return visit(static_cast<const int32_t*>(tensor.data));
    case abi::kInt64:
      return visit(static_cast<const int64_t*>(tensor.data));
    default:
      fail(where, operand, "uint8, uint16, int32 or int64",
           "ONNX element type " + std::to_string(tensor.type));
  }
}

float widened(float value) { return value; }
float widened(int8_t value) { return value; }

// IEEE half precision; source: IEEE 754-2008, binary16.
float widened(uint16_t half) {
  const uint32_t sign = (half & 0x8000U) << 16, exponent = (half >> 10) & 0x1FU;
  uint32_t fraction = half & 0x3FFU, bits = 0;
  if (exponent == 0x1FU) {
    bits = sign | 0x7F800000U | fraction << 13;
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else if (fraction == 0) {
    bits = sign;
  } else {  // subnormal: shifted until its first bit is the hidden one
    uint32_t power = 113;
    for (; (fraction & 0x400U) == 0; fraction <<= 1) --power;
    bits = sign | power << 23 | (fraction & 0x3FFU) << 13;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename Stored>
void widen(const Tensor& tensor, std::vector<float>& values) {
  const auto* in = static_cast<const Stored*>(tensor.data);
  values.resize(static_cast<size_t>(tensor.count));
  std::transform(in, in + tensor.count, values.begin(), [](Stored v) { return widened(v); });
}

void read_values(const std::string& where, const Tensor& tensor, Csr& matrix) {
  expect_rank_one(where, "values", tensor);
  switch (tensor.type) {
    case abi::kFloat:
      return widen<float>(tensor, matrix.values);
    case abi::kFloat16:
      return widen<uint16_t>(tensor, matrix.values);
    case abi::kInt8:
      return widen<int8_t>(tensor, matrix.values);
    default:
      fail(where, "values", "float32, float16 or int8",
           "ONNX element type " + std::to_string(tensor.type));
  }
}

// Multiplies each row by its scale, shaped [rows, 1, ..., 1].
void apply_scale(const std::string& where, const Tensor& tensor, Csr& matrix) {
  if (tensor.type != abi::kFloat) {
    fail(where, "scale", "float32", "ONNX element type " + std::to_string(tensor.type));
  }
  if (tensor.count != matrix.rows || tensor.dims.empty() || tensor.dims[0] != matrix.rows) {
    fail(where, "scale", std::to_string(matrix.rows) + " entries, one a row",
         "shape " + to_string(tensor.dims));
  }
  for (size_t r = 0; r + 1 < matrix.row_ptr.size(); ++r) {
    const float scale = tensor.floats()[r];
    for (int64_t i = matrix.row_ptr[r]; i < matrix.row_ptr[r + 1]; ++i) {
      matrix.values[static_cast<size_t>(i)] *= scale;
    }
  }
}

void read_shape(const std::string& where, const Tensor& tensor, Csr& matrix) {
  expect_rank_one(where, "shape", tensor);
  if (tensor.type != abi::kInt64) {
    fail(where, "shape", "int64", "ONNX element type " + std::to_string(tensor.type));
  }
  const auto* dims = static_cast<const int64_t*>(tensor.data);
  if (tensor.count < 1) fail(where, "shape", "one dimension or more", "none");
  matrix.shape.assign(dims, dims + tensor.count);
  for (int64_t dim : matrix.shape) {
    if (dim < 1) fail(where, "shape", "positive dimensions", to_string(matrix.shape));
  }
  product(where + ": shape", dims, static_cast<size_t>(tensor.count));
  matrix.rows = dims[0];
  matrix.width = product(where, dims + 1, static_cast<size_t>(tensor.count) - 1);
  if (matrix.rows > kMaxDimension || matrix.width > kMaxDimension) {
    fail(where, "shape", "rows and row width of at most 2^26", to_string(matrix.shape));
  }
}

void read_row_ptr(const std::string& where, const Tensor& tensor, int64_t nnz, Csr& matrix) {
  expect_rank_one(where, "row_ptr", tensor);
  if (tensor.count != matrix.rows + 1) {
    fail(where, "row_ptr", std::to_string(matrix.rows + 1) + " entries",
         std::to_string(tensor.count));
  }
  with_indices(where, "row_ptr", tensor, [&](const auto* in) {
    int64_t last = 0;
    matrix.row_ptr.resize(static_cast<size_t>(tensor.count));
    for (int64_t r = 0; r < tensor.count; ++r) {
      const auto value = static_cast<int64_t>(in[r]);
      if (value < last || value > nnz || (r == 0 && value != 0)) {
        fail(where, "row_ptr[" + std::to_string(r) + "]",
             r == 0 ? "0" : std::to_string(last) + " to " + std::to_string(nnz),
             std::to_string(value));
      }
      matrix.row_ptr[static_cast<size_t>(r)] = last = value;
    }
    if (last != nnz) {
      fail(where, "row_ptr[" + std::to_string(matrix.rows) + "]", std::to_string(nnz),
           std::to_string(last));
    }
  });
}

void read_columns(const std::string& where, const Tensor& tensor, int64_t nnz, Csr& matrix) {
  expect_rank_one(where, "col_indices", tensor);
  if (tensor.count != nnz) {
    fail(where, "col_indices", std::to_string(nnz) + " entries", std::to_string(tensor.count));
  }
  with_indices(where, "col_indices", tensor, [&](const auto* in) {
    matrix.columns.resize(static_cast<size_t>(nnz));
    for (size_t r = 0; r + 1 < matrix.row_ptr.size(); ++r) {
      int64_t last = -1;
      for (int64_t i = matrix.row_ptr[r]; i < matrix.row_ptr[r + 1]; ++i) {
        const auto column = static_cast<int64_t>(in[i]);
        if (column <= last || column >= matrix.width) {
          fail(where, "col_indices[" + std::to_string(i) + "]",
               std::to_string(last + 1) + " to " + std::to_string(matrix.width - 1),
               std::to_string(column));
        }
        matrix.columns[static_cast<size_t>(i)] = static_cast<uint32_t>(last = column);
      }
    }
  });
}

// Columns and row pointers from the distances of the entries in the flattened matrix.
void read_gaps(const std::string& where, const Tensor& tensor, int64_t nnz, Csr& matrix) {
  expect_rank_one(where, "col_indices", tensor);
  if (tensor.count != nnz) {
    fail(where, "col_indices", std::to_string(nnz) + " gaps", std::to_string(tensor.count));
  }
  with_indices(where, "col_indices", tensor, [&](const auto* in) {
    const int64_t size = matrix.rows * matrix.width;
    int64_t position = 0, row = 0, begin = 0;
    matrix.columns.resize(static_cast<size_t>(nnz));
    matrix.row_ptr.assign(static_cast<size_t>(matrix.rows) + 1, 0);
    for (int64_t i = 0; i < nnz; ++i) {
      const auto gap = static_cast<int64_t>(in[i]);
      const int64_t least = i == 0 ? 0 : 1;
      if (gap < least || gap >= size - position) {
        fail(where, "col_indices[" + std::to_string(i) + "]",
             "a gap of " + std::to_string(least) + " to " + std::to_string(size - position - 1),
             std::to_string(gap));
      }
      position += gap;
      for (; position - begin >= matrix.width; begin += matrix.width) {
        matrix.row_ptr[static_cast<size_t>(++row)] = i;
      }
      matrix.columns[static_cast<size_t>(i)] = static_cast<uint32_t>(position - begin);
    }
    std::fill(matrix.row_ptr.begin() + row + 1, matrix.row_ptr.end(), nnz);
  });
}

}  // namespace

Csr Csr::transposed() const {
  Csr out;
  out.rows = width;
  out.width = rows;
  out.shape = {width, rows};
  out.row_ptr.assign(static_cast<size_t>(width) + 1, 0);
  out.columns.resize(columns.size());
  out.values.resize(values.size());
  for (uint32_t column : columns) ++out.row_ptr[column + 1];
  for (size_t c = 0; c < static_cast<size_t>(width); ++c) out.row_ptr[c + 1] += out.row_ptr[c];
  std::vector<int64_t> next(out.row_ptr.begin(), out.row_ptr.end() - 1);
  for (int64_t r = 0; r < rows; ++r) {
    for (auto i = static_cast<size_t>(row_ptr[r]); i < static_cast<size_t>(row_ptr[r + 1]); ++i) {
      const auto to = static_cast<size_t>(next[columns[i]]++);
      out.columns[to] = static_cast<uint32_t>(r);
      out.values[to] = values[i];
    }
  }
  return out;
}

Csr read_csr(const std::string& where, const CsrOperands& operands) {
  Csr matrix;
  read_values(where, operands.values, matrix);
  read_shape(where, operands.shape, matrix);
  if (operands.row_ptr) {
    read_row_ptr(where, operands.row_ptr, matrix.nnz(), matrix);
    read_columns(where, operands.columns, matrix.nnz(), matrix);
  } else {
    read_gaps(where, operands.columns, matrix.nnz(), matrix);
  }
  if (operands.scale) apply_scale(where, operands.scale, matrix);
  return matrix;
}

}  // namespace dns_onnx
