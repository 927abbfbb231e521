#include "linear.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace dns_onnx {
namespace {

constexpr int64_t kEntriesOfTask = 16384;
constexpr int64_t kMostTasks = 64;
constexpr size_t kMostLanes = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows of A as panels: a position is a row, a channel is a column.
class RowSurface final : public Surface {
 public:
  RowSurface(Strided a, int64_t m, int64_t n, float* y) : a_(a), m_(m), n_(n), y_(y) {}

  void pack(const Layout& layout, const PackJob& job) const override {
    for (int64_t group = job.first_group; group < job.last_group; ++group) {
      float* panel = job.panel + (group - job.first_group) * job.panel_floats;
      if (a_.column_stride == 1) {
        pack_rows(layout, group, job, panel);
      } else {
        pack_columns(layout, group, job, panel);
      }
    }
  }

  void unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
              const float* sums, const Finish& finish) const override {
    const int lanes = layout.family->lanes;
    for (int c = 0; c < layout.tile->columns; ++c) {
      LaneTarget targets[kMostLanes];
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t row = group * layout.sums() + c * lanes + lane;
        targets[lane] = {y_ + row * n_ + first, nullptr, row < m_ ? 1 : 0, last - first};
      }
      layout.family->scatter({sums + c * lanes, 0, 0, layout.sums(), 1, 1, last - first, targets, 0,
                              0, finish.get()});
    }
  }

 private:
  // A is transposed: the positions lie side by side already.
  void pack_columns(const Layout& layout, int64_t group, const PackJob& job, float* panel) const {
    const int64_t sums = layout.sums(), begin = group * sums;
    const int64_t held = std::min(sums, m_ - begin);
    for (int64_t k = job.first; k < job.last; ++k, panel += sums) {
      const float* from = a_.data + k * a_.column_stride + begin * a_.row_stride;
      std::copy(from, from + held, panel);
      std::fill(panel + held, panel + sums, 0.0F);
    }
  }

  void pack_rows(const Layout& layout, int64_t group, const PackJob& job, float* panel) const {
    const int lanes = layout.family->lanes;
    for (int c = 0; c < layout.tile->columns; ++c) {
      const float* source[kMostLanes];
      for (int lane = 0; lane < lanes; ++lane) {  // lanes past the end repeat the last row
        const int64_t row = std::min(m_ - 1, group * layout.sums() + c * lanes + lane);
        source[lane] = a_.data + row * a_.row_stride + job.first;
      }
      // one line, so nothing is read or written past its end
      layout.family->gather(
          {source, 0, 1, job.last - job.first, panel + c * lanes, 0, layout.sums()});
    }
  }

  Strided a_;
  int64_t m_, n_;
  float* y_;
};

void add_scaled(Parallel& parallel, int64_t m, int64_t n, Strided c, float beta,
                const Finish& finish, float* y) {
  auto task = [&](size_t row) {
    float* out = y + static_cast<int64_t>(row) * n;
    const float* from = c.data + static_cast<int64_t>(row) * c.row_stride;
    for (int64_t j = 0; j < n; ++j) out[j] += beta * from[j * c.column_stride];
    if (!finish.none()) kernel_set().families->finish({out, nullptr, finish.activation, n, out});
  };
  parallel.run(static_cast<size_t>(m), task);
}

}  // namespace

Linear::Linear(Csr weights, float alpha) : weights_(std::move(weights)) {
  if (alpha != 1.0F) {
    for (float& value : weights_.values) value *= alpha;
  }
  if (weights_.width <= int64_t{std::numeric_limits<uint16_t>::max()} + 1) {
    narrow_columns_.resize(weights_.columns.size());
    std::transform(weights_.columns.begin(), weights_.columns.end(), narrow_columns_.begin(),
                   [](uint32_t column) { return static_cast<uint16_t>(column); });
  }
  const int64_t tasks =
      std::clamp<int64_t>(weights_.nnz() / kEntriesOfTask, 1, std::min(kMostTasks, weights_.rows));
  for (int64_t t = 0; t < tasks; ++t) {
    const auto row = std::lower_bound(weights_.row_ptr.begin(), weights_.row_ptr.end() - 1,
                                      weights_.nnz() * t / tasks);
    task_rows_.push_back(t == 0 ? 0 : row - weights_.row_ptr.begin());
  }
  task_rows_.push_back(weights_.rows);
  panel_weights_ = {&weights_, 1, weights_.width, weights_.rows, weights_.width};
}

Layout Linear::layout(int64_t m) const {
  Layout best;
  double least = std::numeric_limits<double>::infinity();
  const KernelSet& kernels = kernel_set();
  for (size_t f = 0; f < kernels.family_count; ++f) {
    const Family& family = kernels.families[f];
    for (size_t t = 0; t < family.tile_count; ++t) {
      const Tile& tile = family.tiles[t];
      if (tile.lines != 1) continue;
      Layout candidate;
      candidate.family = &family;
      candidate.tile = &tile;
      candidate.groups = ceil_div(m, candidate.sums());
      candidate.channel_floats = candidate.sums();
      candidate.tap_floats = {0};
      // squares of 8 x 8 are turned over on the way in and out
      candidate.pack_cycles = candidate.unpack_cycles = tile.columns * family.lanes / 8.0 * 4.0;
      const double cycles = choose_block(panel_weights_, candidate);
      if (cycles < least) {
        least = cycles;
        best = std::move(candidate);
      }
    }
  }
  return best;
}

// The panels for m rows, or null where multiplying row by row is faster.
std::shared_ptr<const PanelProduct> Linear::product(int64_t m, bool rows_are_vectors) const {
  return products_.get({m, rows_are_vectors}, [&]() -> std::shared_ptr<const PanelProduct> {
    Layout panels = layout(m);
    const double by_row = static_cast<double>(m * weights_.nnz()) * kernel_set().gemv_cycles;
    if (rows_are_vectors && by_row <= choose_block(panel_weights_, panels)) return nullptr;
    return std::make_shared<const PanelProduct>(panel_weights_, std::move(panels));
  });
}

void Linear::by_vector(Parallel& parallel, int64_t m, Strided a, const float* start,
                       const Finish& finish, float* y) const {
  const auto tasks = static_cast<int64_t>(task_rows_.size()) - 1;
  auto task = [&](size_t index) {
    const int64_t row = static_cast<int64_t>(index) / tasks;
    const auto part = static_cast<size_t>(static_cast<int64_t>(index) % tasks);
    const GemvJob job = {weights_.values.data(),
                         narrow_columns_.empty() ? nullptr : narrow_columns_.data(),
                         weights_.columns.data(),
                         weights_.row_ptr.data(),
                         start,
                         a.data + row * a.row_stride,
                         y + row * weights_.rows};
    const int64_t first = task_rows_[part], last = task_rows_[part + 1];
    kernel_set().gemv(job, first, last);
    if (finish.none()) return;
    float* out = job.y + first;
    kernel_set().families->finish({out, nullptr, finish.activation, last - first, out});
  };
  parallel.run(static_cast<size_t>(m * tasks), task);
}

void Linear::run(Parallel& parallel, int64_t m, Strided a, Strided c, float beta,
                 const Activation& activation, float* y) const {
  if (m == 0) return;
  // the usual bias, one for each output, is where the sums start; anything else is added after
  const bool is_start =
      c.data != nullptr && c.row_stride == 0 && c.column_stride == 1 && beta == 1.0F;
  const float* start = is_start ? c.data : nullptr;
  const std::shared_ptr<const PanelProduct> panels =
      m == 1 ? nullptr : product(m, a.column_stride == 1);
  const bool is_added = c.data != nullptr && !is_start;
  const Finish finish{activation, false};
  const Finish now = is_added ? Finish{} : finish;
  if (panels == nullptr) {
    by_vector(parallel, m, a, start, now, y);
  } else {
    panels->run(parallel, RowSurface(a, m, weights_.rows, y), start, now, scratch_);
  }
  if (is_added) add_scaled(parallel, m, weights_.rows, c, beta, finish, y);
}

}  // namespace dns_onnx
