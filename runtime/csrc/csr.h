// A checked sparse matrix in compressed sparse row form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host.h"

namespace dns_onnx {

// rows x width; row r owns entries row_ptr[r] to row_ptr[r + 1], columns strictly ascending.
struct Csr {
  int64_t rows = 0;
  int64_t width = 0;
  std::vector<int64_t> shape;  // the dense tensor: shape[0] = rows, the rest multiplies to width
  std::vector<int64_t> row_ptr;
  std::vector<uint32_t> columns;
  std::vector<float> values;

  int64_t nnz() const { return static_cast<int64_t>(values.size()); }
  Csr transposed() const;  // shape becomes [width, rows]
};

// The parts of the matrix of a dns_onnx operator, as they lie in the model.  Without row_ptr,
// `columns` holds gaps in the flattened matrix; scale multiplies the values of each row.
struct CsrOperands {
  Tensor values, columns, row_ptr, shape, scale;
  bool complete() const { return values && columns && shape; }
};

// Checks every array, and widens indices and values.  Throws Error naming `where` and the operand.
Csr read_csr(const std::string& where, const CsrOperands& operands);

}  // namespace dns_onnx
