#include "panel_product.h"

#include <algorithm>
#include <atomic>
#include <limits>

namespace dns_onnx {
namespace {

constexpr int64_t kNearBytes = 30 << 10;     // of a first-level cache, beside sums and weights
constexpr int64_t kMiddleBytes = 512 << 10;  // of a second-level cache
constexpr int64_t kMostRowsOfTask = 256;
constexpr int64_t kTasks = 16;  // wanted at least, so that several threads have work
constexpr int64_t kPackTasks = 16;

// cycles; measured on Zen 4 with benchmarks/sparse_runtime.py
constexpr double kEntryCycles = 1.5, kRowCycles = 8.0;
constexpr double kMiddleBytesPerCycle = 24.0, kFarBytesPerCycle = 12.0;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Blocking {
  int64_t channels;
  double cycles;  // of one group's multiply-adds and of keeping its sums
};

// Cost of working on `channels` channels at a time.  Sums are read and written once a block.
Blocking blocking(const PanelWeights& weights, const Layout& layout, int64_t channels) {
  const double vector_bytes = 4.0 * layout.family->lanes;
  const double bytes = static_cast<double>(channels * layout.channel_floats()) * 4.0;
  const double sums = static_cast<double>(layout.sums()) / layout.family->lanes;
  double load = layout.family->fma_cycles;
  if (bytes > kNearBytes) load = std::max(load, vector_bytes / kMiddleBytesPerCycle);
  if (bytes > kMiddleBytes) load = std::max(load, vector_bytes / kFarBytesPerCycle);
  const auto rows = static_cast<double>(weights.matrix->rows);
  const auto nnz = static_cast<double>(weights.matrix->nnz());
  const auto blocks = static_cast<double>(ceil_div(weights.channels, channels));
  // a row touches a block only if it stores something there
  const double visits = std::min(rows * blocks, nnz + rows);
  const double keep = blocks > 1 ? 2.0 * sums * vector_bytes / kMiddleBytesPerCycle : sums * 0.5;
  return {channels,
          nnz * (sums * load + kEntryCycles) + visits * keep + rows * blocks * kRowCycles};
}

Blocking best_blocking(const PanelWeights& weights, const Layout& layout) {
  const int64_t bytes = layout.channel_floats() * 4;
  // offsets within a block are 32 bits wide
  const int64_t most = std::max<int64_t>(
      1, std::min(weights.channels, (int64_t{1} << 31) / std::max<int64_t>(1, bytes)));
  Blocking best = blocking(weights, layout, most);
  for (const int64_t budget : {kNearBytes, kMiddleBytes}) {
    const int64_t fits = std::clamp<int64_t>(budget / std::max<int64_t>(1, bytes), 1, most);
    // equal blocks: no short one at the end
    const int64_t even = ceil_div(weights.channels, ceil_div(weights.channels, fits));
    const Blocking candidate = blocking(weights, layout, std::min(even, most));
    if (candidate.cycles < best.cycles) best = candidate;
  }
  return best;
}

// Rows worked on together: as many as may be, for a panel is read once for all of them.
int64_t rows_of_task(int64_t rows, int64_t groups) {
  const int64_t tasks = std::max(ceil_div(rows, kMostRowsOfTask), ceil_div(kTasks, groups));
  return ceil_div(rows, std::min(rows, tasks));
}

}  // namespace

double choose_block(const PanelWeights& weights, Layout& layout) {
  const Blocking best = best_blocking(weights, layout);
  layout.block = best.channels;
  return static_cast<double>(layout.groups) *
         (best.cycles + static_cast<double>(weights.channels) * layout.pack_cycles +
          static_cast<double>(weights.matrix->rows) * layout.unpack_cycles);
}

PanelProduct::PanelProduct(const PanelWeights& weights, Layout layout)
    : layout_(std::move(layout)),
      rows_(weights.matrix->rows),
      channels_(weights.channels),
      blocks_(ceil_div(channels_, layout_.block)),
      chunk_(rows_of_task(rows_, layout_.groups)) {
  if (layout_.block * layout_.channel_floats() > int64_t{std::numeric_limits<uint32_t>::max()}) {
    throw Error("dns_onnx: expected the surroundings of a position to fit into memory, got " +
                std::to_string(layout_.channel_floats()) + " floats a channel; use a dense Conv");
  }
  sort_weights(weights);
}

void PanelProduct::sort_weights(const PanelWeights& weights) {
  const Csr& matrix = *weights.matrix;
  segments_.assign(static_cast<size_t>(blocks_ * rows_ + 1), 0);
  entries_.resize(matrix.values.size());
  const auto visit = [&](auto&& act) {
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t first = weights.first_channel(r);
      for (auto i = static_cast<size_t>(matrix.row_ptr[static_cast<size_t>(r)]);
           i < static_cast<size_t>(matrix.row_ptr[static_cast<size_t>(r) + 1]); ++i) {
        const int64_t channel = first + matrix.columns[i] / weights.taps;
        act(static_cast<size_t>(channel / layout_.block * rows_ + r), channel % layout_.block,
            static_cast<size_t>(matrix.columns[i] % weights.taps), matrix.values[i]);
      }
    }
  };
  visit([&](size_t segment, int64_t, size_t, float) { ++segments_[segment + 1]; });
  for (size_t s = 1; s < segments_.size(); ++s) segments_[s] += segments_[s - 1];
  std::vector<int64_t> next(segments_.begin(), segments_.end() - 1);
  visit([&](size_t segment, int64_t channel, size_t tap, float value) {
    const int64_t vectors = channel * layout_.channel_vectors + layout_.tap_vectors[tap];
    entries_[static_cast<size_t>(next[segment]++)] = {
        value, static_cast<uint32_t>(vectors * layout_.family->lanes)};
  });
}

size_t PanelProduct::panel_floats() const {
  return static_cast<size_t>(channels_ * layout_.channel_floats());
}

void PanelProduct::run(Parallel& parallel, const Surface& surface, const float* start,
                       Scratch& scratch) const {
  std::atomic<bool> failed{false};
  if (layout_.groups >= kManyGroups) {
    auto whole = [&](size_t group) {
      if (!group_at_once(static_cast<int64_t>(group), surface, start, scratch)) failed = true;
    };
    parallel.run(static_cast<size_t>(layout_.groups), whole);
  } else {
    const Scratch::Lease panels(scratch, panel_floats() * static_cast<size_t>(layout_.groups));
    if (panels.data() == nullptr) throw Error("dns_onnx: out of memory; use a smaller batch");
    const int64_t step = ceil_div(channels_, kPackTasks);
    auto pack = [&](size_t index) {
      const int64_t first = static_cast<int64_t>(index) * step;
      const Scratch::Lease staging(scratch, static_cast<size_t>(layout_.staging));
      if (staging.data() == nullptr) {
        failed = true;
        return;
      }
      surface.pack(layout_, {0, layout_.groups, first, std::min(channels_, first + step),
                             panels.data() + first * layout_.channel_floats(),
                             static_cast<int64_t>(panel_floats()), staging.data()});
    };
    parallel.run(static_cast<size_t>(ceil_div(channels_, step)), pack);
    const int64_t chunks = ceil_div(rows_, chunk_);
    auto multiply = [&](size_t index) {
      const int64_t group = static_cast<int64_t>(index) / chunks;
      const int64_t first = static_cast<int64_t>(index) % chunks * chunk_;
      const Scratch::Lease sums(scratch, static_cast<size_t>(chunk_ * layout_.sums()));
      if (sums.data() == nullptr || failed) {
        failed = true;
        return;
      }
      rows_of_group(group, first, std::min(rows_, first + chunk_),
                    panels.data() + static_cast<size_t>(group) * panel_floats(), sums.data(),
                    surface, start);
    };
    parallel.run(static_cast<size_t>(layout_.groups * chunks), multiply);
  }
  if (failed) throw Error("dns_onnx: out of memory; use a smaller batch");
}

// One task packs a panel and uses it while it is warm.  Returns false where memory runs out.
bool PanelProduct::group_at_once(int64_t group, const Surface& surface, const float* start,
                                 Scratch& scratch) const {
  const Scratch::Lease panel(scratch, panel_floats());
  const Scratch::Lease rest(
      scratch, static_cast<size_t>(std::max(layout_.staging, chunk_ * layout_.sums())));
  if (panel.data() == nullptr || rest.data() == nullptr) return false;
  surface.pack(layout_, {group, group + 1, 0, channels_, panel.data(), 0, rest.data()});
  for (int64_t first = 0; first < rows_; first += chunk_) {
    rows_of_group(group, first, std::min(rows_, first + chunk_), panel.data(), rest.data(), surface,
                  start);
  }
  return true;
}

void PanelProduct::rows_of_group(int64_t group, int64_t first, int64_t last, const float* panel,
                                 float* sums, const Surface& surface, const float* start) const {
  TileJob job{};
  job.entries = entries_.data();
  job.rows = last - first;
  job.pitch = layout_.pitch * layout_.family->lanes;
  job.start = start == nullptr ? nullptr : start + first;
  job.sums = sums;
  for (int64_t b = 0; b < blocks_; ++b) {
    job.panel = panel + b * layout_.block * layout_.channel_floats();
    job.segments = segments_.data() + b * rows_ + first;
    job.resume = b > 0;
    layout_.tile->run(job);
  }
  surface.unpack(layout_, group, first, last, sums);
}

}  // namespace dns_onnx
