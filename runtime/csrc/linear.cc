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

// Where each of `parts` consecutive parts of about the same size begins, and where the last ends.
// ends: how far each item reaches, from 0 on.
std::vector<int64_t> even_parts(const std::vector<int64_t>& ends, int64_t parts) {
  const auto items = static_cast<int64_t>(ends.size()) - 1;
  parts = std::min(parts, items);
  std::vector<int64_t> starts = {0};
  for (int64_t part = 1; part < parts; ++part) {
    const auto item = std::lower_bound(ends.begin(), ends.end() - 1, ends.back() * part / parts);
    starts.push_back(item - ends.begin());
  }
  starts.push_back(items);
  return starts;
}

}  // namespace

Linear::Linear(Csr weights, float alpha) : weights_(std::move(weights)) {
  if (alpha != 1.0F) {
    for (float& value : weights_.values) value *= alpha;
  }
  const KernelSet& kernels = kernel_set();
  vector_cycles_ = static_cast<double>(weights_.nnz()) * kernels.gemv_cycles;
  if (kernels.lanes != nullptr) {
    lanes_ = row_lanes(weights_, static_cast<int64_t>(vector_cycles_ / kernels.lanes_cycles));
  }
  const int64_t tasks = std::clamp<int64_t>(weights_.nnz() / kEntriesOfTask, 1, kMostTasks);
  if (!lanes_.empty()) {
    vector_cycles_ = static_cast<double>(lanes_.windows.size()) * kernels.lanes_cycles;
    task_starts_ = even_parts(lanes_.steps, tasks);
  } else {
    task_starts_ = even_parts(weights_.row_ptr, tasks);
    if (weights_.width <= int64_t{std::numeric_limits<uint16_t>::max()} + 1) {
      narrow_columns_.resize(weights_.columns.size());
      std::transform(weights_.columns.begin(), weights_.columns.end(), narrow_columns_.begin(),
                     [](uint32_t column) { return static_cast<uint16_t>(column); });
    }
  }
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
    const double by_row = static_cast<double>(m) * vector_cycles_;
    if (rows_are_vectors && by_row <= choose_block(panel_weights_, panels)) return nullptr;
    return std::make_shared<const PanelProduct>(panel_weights_, std::move(panels));
  });
}

void Linear::by_vector(Parallel& parallel, int64_t m, Strided a, const float* start,
                       const Finish& finish, float* y) const {
  const size_t tasks = task_starts_.size() - 1;
  auto task = [&](size_t index) {
    const auto row = static_cast<int64_t>(index / tasks);
    const GemvJob job = {weights_.values.data(),
                         narrow_columns_.empty() ? nullptr : narrow_columns_.data(),
                         weights_.columns.data(),
                         weights_.row_ptr.data(),
                         start,
                         a.data + row * a.row_stride,
                         y + row * weights_.rows};
    if (lanes_.empty()) {
      by_rows(job, index % tasks, finish);
    } else {
      by_lanes(job, index % tasks, finish);
    }
  };
  parallel.run(static_cast<size_t>(m) * tasks, task);
}

void Linear::by_rows(const GemvJob& job, size_t task, const Finish& finish) const {
  const int64_t first = task_starts_[task], last = task_starts_[task + 1];
  kernel_set().gemv(job, first, last);
  if (finish.none()) return;
  float* out = job.y + first;
  kernel_set().families->finish({out, nullptr, finish.activation, last - first, out});
}

void Linear::by_lanes(const GemvJob& job, size_t task, const Finish& finish) const {
  const KernelSet& kernels = kernel_set();
  const LaneJob lanes = {lanes_.steps.data(),
                         lanes_.windows.data(),
                         lanes_.places.data(),
                         lanes_.values.data(),
                         lanes_.halves.empty() ? nullptr : lanes_.halves.data(),
                         job.x};
  for (int64_t group = task_starts_[task]; group < task_starts_[task + 1]; ++group) {
    float sums[kLanes];
    kernels.lanes(lanes, group, sums);
    const uint32_t* rows = lanes_.rows.data() + group * kLanes;
    const auto count = static_cast<int>(std::min<int64_t>(kLanes, weights_.rows - group * kLanes));
    bool is_nan = false;
    for (const float sum : sums) is_nan |= sum != sum;
    if (is_nan) {  // perhaps only from an input that a lane's zero met: row by row
      for (int lane = 0; lane < count; ++lane) {
        kernels.gemv(job, rows[lane], rows[lane] + 1);
        sums[lane] = job.y[rows[lane]];
      }
    } else if (job.start != nullptr) {
      for (int lane = 0; lane < count; ++lane) sums[lane] += job.start[rows[lane]];
    }
    if (!finish.none()) {
      kernels.families->finish({sums, nullptr, finish.activation, count, sums});
    }
    for (int lane = 0; lane < count; ++lane) job.y[rows[lane]] = sums[lane];
  }
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
