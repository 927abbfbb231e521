// A sparse matrix laid out for products with one vector in which kLanes rows advance together.
#pragma once

#include <vector>

#include "csr.h"
#include "kernels/kernel_set.h"

namespace dns_onnx {

// Rows are grouped by length.  A group goes through its columns in steps: the window of a step
// begins at the first column that is left, and each row takes up to kTurns entries from it, first
// ones first.  Where it has fewer, its lane holds zeros, which multiply whatever lies there.
struct RowLanes {
  std::vector<int64_t> steps;     // of group g: steps[g] to steps[g + 1]
  std::vector<uint32_t> rows;     // [groups][kLanes], in the last group as many as are left
  std::vector<uint32_t> windows;  // [steps] first column
  std::vector<LanePlaces> places;  // [steps][kTurns]
  std::vector<LaneValues> values;  // likewise; one of the two is empty
  std::vector<LaneHalves> halves;

  bool empty() const { return rows.empty(); }
  int64_t groups() const { return static_cast<int64_t>(steps.size()) - 1; }
};

// Empty where it would take more than `most` steps, or the matrix is narrower than a window.
RowLanes row_lanes(const Csr& weights, int64_t most);

}  // namespace dns_onnx
