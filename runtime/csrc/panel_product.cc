#include "panel_product.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace dns_onnx {
namespace {

constexpr int64_t kNearBytes = 28 << 10;     // of a first-level cache, beside sums and weights
constexpr int64_t kMiddleBytes = 512 << 10;  // of a second-level cache
constexpr int64_t kMostRowsOfTask = 256;
constexpr int64_t kTasks = 16;  // wanted at least, so that several threads have work
constexpr int64_t kPackTasks = 16;
constexpr int kProbes = 3;               // runs that count the host's threads
constexpr double kLeastShare = 0.75;     // of the threads' time that whole groups must fill

// cycles; measured on Zen 4 with benchmarks/sparse_runtime.py
constexpr double kEntryCycles = 1.3, kRowCycles = 6.0;
// reading maps as they lie: added where a vector crosses a cache line; less than a line at a time
constexpr double kCrossing = 0.9, kNarrow = 1.25;
constexpr double kMiddleBytesPerCycle = 24.0, kFarBytesPerCycle = 12.0;
constexpr double kSumBytesPerCycle = 42.0;  // read and written

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Blocking {
  int64_t channels;
  double cycles;  // of one group's multiply-adds and of keeping its sums
};

// The share of vectors of `lanes` that cross a cache line, in maps of `size` floats.
double crossing(int64_t size, int64_t lanes) {
  const int64_t step = std::min(lanes, std::gcd(size, int64_t{kLineFloats}));  // of where maps begin
  return static_cast<double>(lanes - step) / static_cast<double>(kLineFloats);
}

// Cost of working on `channels` channels at a time.  Sums are read and written once a block.
Blocking blocking(const PanelWeights& weights, const Layout& layout, int64_t channels) {
  const double vector_bytes = 4.0 * layout.family->lanes;
  const double bytes = static_cast<double>(channels * layout.read_floats()) * 4.0;
  const double sums = static_cast<double>(layout.sums()) / layout.family->lanes;
  double load = layout.family->fma_cycles;
  if (layout.direct) {
    const int64_t lanes = layout.family->lanes;
    if (lanes < static_cast<int64_t>(kLineFloats)) load *= kNarrow;
    load *= 1.0 + kCrossing * crossing(layout.channel_floats, lanes);
  }
  // what exceeds the near cache is found there as often as it fits
  const double near = std::min(1.0, kNearBytes / bytes);
  const double rate = bytes > kMiddleBytes ? kFarBytesPerCycle : kMiddleBytesPerCycle;
  load = near * load + (1.0 - near) * std::max(load, vector_bytes / rate);
  const auto rows = static_cast<double>(weights.matrix->rows);
  const auto nnz = static_cast<double>(weights.matrix->nnz());
  const auto blocks = static_cast<double>(ceil_div(weights.channels, channels));
  // a row touches a block only if it stores something there
  const double visits = std::min(rows * blocks, nnz + rows);
  const double keep = blocks > 1 ? 2.0 * sums * vector_bytes / kSumBytesPerCycle : sums * 0.5;
  return {channels,
          nnz * (sums * load + kEntryCycles) + visits * keep + rows * blocks * kRowCycles};
}

Blocking best_blocking(const PanelWeights& weights, const Layout& layout) {
  // offsets within a block are 32 bits wide
  const int64_t most = std::max<int64_t>(
      1, std::min(weights.channels,
                  (int64_t{1} << 29) / std::max<int64_t>(1, layout.channel_floats)));
  Blocking best = blocking(weights, layout, most);
  for (const int64_t first : {1, 3}) {
    for (int64_t parts = first; parts <= weights.channels; parts *= 2) {
      // equal blocks: no short one at the end
      const int64_t even = std::min(most, ceil_div(weights.channels, parts));
      const Blocking candidate = blocking(weights, layout, even);
      if (candidate.cycles < best.cycles) best = candidate;
    }
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
  if (layout_.block * layout_.channel_floats > int64_t{std::numeric_limits<uint32_t>::max()}) {
    throw Error("dns_onnx: expected the surroundings of a position to fit into memory, got " +
                std::to_string(layout_.channel_floats) + " floats a channel; use a dense Conv");
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
    const int64_t offset = channel * layout_.channel_floats + layout_.tap_floats[tap];
    entries_[static_cast<size_t>(next[segment]++)] = {value, static_cast<uint32_t>(offset)};
  });
}

size_t PanelProduct::panel_floats() const {
  return static_cast<size_t>(channels_ * layout_.channel_floats);
}

// What is the same for all tasks of a run.
struct PanelProduct::Task {
  const float* start;
  const Finish& finish;
  Crowd* crowd = nullptr;  // that counts the tasks, if one does
};

void PanelProduct::run(Parallel& parallel, const Surface& surface, const float* start,
                       const Finish& finish, Scratch& scratch) const {
  const Task task{start, finish, probed()};
  const bool done = task.crowd == nullptr && at_once()
                        ? by_groups(parallel, surface, task, scratch)
                        : by_phases(parallel, surface, task, scratch);
  if (!done) throw Error("dns_onnx: out of memory; use a smaller batch");
}

// The host does not tell how many threads it has, so a few runs count how many tasks are under way
// at the same time, where the answer matters.
Crowd* PanelProduct::probed() const {
  if (layout_.groups >= kManyGroups) return nullptr;
  if (crowd_.runs.load(std::memory_order_relaxed) >= kProbes) return nullptr;
  crowd_.runs.fetch_add(1, std::memory_order_relaxed);
  return &crowd_;
}

// Whether whole groups keep all threads busy.
bool PanelProduct::at_once() const {
  if (layout_.groups >= kManyGroups) return true;
  const int64_t threads = std::max(1, crowd_.most.load(std::memory_order_relaxed));
  const int64_t turns = ceil_div(layout_.groups, threads);
  return static_cast<double>(layout_.groups) >= kLeastShare * static_cast<double>(turns * threads);
}

bool PanelProduct::by_groups(Parallel& parallel, const Surface& surface, const Task& task,
                             Scratch& scratch) const {
  std::atomic<bool> failed{false};
  auto whole = [&](size_t group) {
    if (!group_at_once(static_cast<int64_t>(group), surface, task, scratch)) failed = true;
  };
  parallel.run(static_cast<size_t>(layout_.groups), whole);
  return !failed;
}

// Packs all panels, then shares out the rows.  Both go through the groups in order: a thread takes
// its share of the loop from where its last one lay, and so meets what its own core has written.
bool PanelProduct::by_phases(Parallel& parallel, const Surface& surface, const Task& task,
                             Scratch& scratch) const {
  const Scratch::Lease panels(scratch, panel_floats() * static_cast<size_t>(layout_.groups));
  if (panels.data() == nullptr) return false;
  std::atomic<bool> failed{false};
  // maps that are staged first are so for all groups at a time
  const int64_t together = layout_.staging > 0 ? layout_.groups : 1;
  const int64_t turns = ceil_div(layout_.groups, together);
  const int64_t step = ceil_div(channels_, ceil_div(kPackTasks, turns));
  const int64_t parts = ceil_div(channels_, step);
  auto pack = [&](size_t index) {
    const Crowd::Member member(task.crowd);
    const int64_t group = static_cast<int64_t>(index) / parts * together;
    const int64_t first = static_cast<int64_t>(index) % parts * step;
    const Scratch::Lease staging(scratch, static_cast<size_t>(layout_.staging));
    if (staging.data() == nullptr) {
      failed = true;
      return;
    }
    float* const panel = panels.data() + static_cast<size_t>(group) * panel_floats();
    surface.pack(layout_, {group, group + together, first, std::min(channels_, first + step),
                           panel + first * layout_.channel_floats,
                           static_cast<int64_t>(panel_floats()), staging.data()});
  };
  parallel.run(static_cast<size_t>(turns * parts), pack);
  const int64_t chunks = ceil_div(rows_, chunk_);
  auto multiply = [&](size_t index) {
    const Crowd::Member member(task.crowd);
    const int64_t group = static_cast<int64_t>(index) / chunks;
    const int64_t first = static_cast<int64_t>(index) % chunks * chunk_;
    const int64_t last = std::min(rows_, first + chunk_);
    const Scratch::Lease sums(scratch, static_cast<size_t>(chunk_ * layout_.sums()));
    if (sums.data() == nullptr || failed) {
      failed = true;
      return;
    }
    const float* panel = panels.data() + static_cast<size_t>(group) * panel_floats();
    for (int64_t b = 0; b < blocks_; ++b, panel += layout_.block * layout_.channel_floats) {
      block_of_rows(b, first, last, panel, sums.data(), task);
    }
    surface.unpack(layout_, group, first, last, sums.data(), task.finish);
  };
  if (!failed) parallel.run(static_cast<size_t>(layout_.groups * chunks), multiply);
  return !failed;
}

// One task packs the panel block by block, and uses each block while it is in the nearest cache.
// Returns false where memory runs out.
bool PanelProduct::group_at_once(int64_t group, const Surface& surface, const Task& task,
                                 Scratch& scratch) const {
  const int64_t parts = ceil_div(rows_ * layout_.sums() * 4, kMiddleBytes);
  const int64_t step = ceil_div(rows_, parts);
  const size_t block = whole_lines(static_cast<size_t>(layout_.block * layout_.channel_floats));
  const size_t staged = whole_lines(static_cast<size_t>(layout_.staging));
  const Scratch::Lease memory(scratch, block + staged + static_cast<size_t>(step * layout_.sums()));
  if (memory.data() == nullptr) return false;
  float *const panel = memory.data(), *const staging = panel + block, *const sums = staging + staged;
  for (int64_t first = 0; first < rows_; first += step) {
    const int64_t last = std::min(rows_, first + step);
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t channel = b * layout_.block;
      const int64_t end = std::min(channels_, channel + layout_.block);
      surface.pack(layout_, {group, group + 1, channel, end, panel, 0, staging});
      block_of_rows(b, first, last, panel, sums, task);
    }
    surface.unpack(layout_, group, first, last, sums, task.finish);
  }
  return true;
}

// panel: where the block's first channel lies.
void PanelProduct::block_of_rows(int64_t block, int64_t first, int64_t last, const float* panel,
                                 float* sums, const Task& task) const {
  TileJob job{};
  job.entries = entries_.data();
  job.rows = last - first;
  job.pitch = layout_.pitch;
  job.start = task.start == nullptr ? nullptr : task.start + first;
  job.sums = sums;
  job.sums_step = layout_.sums();
  job.panel = panel;
  job.segments = segments_.data() + block * rows_ + first;
  job.resume = block > 0;
  layout_.tile->run(job);
}

void PanelProduct::run_direct(Parallel& parallel, const DirectMaps& maps, const float* start,
                              const Finish& finish) const {
  const Task task{start, finish};
  auto run = [&](size_t index) { direct_rows(maps, static_cast<int64_t>(index), task); };
  parallel.run(static_cast<size_t>(layout_.groups * ceil_div(rows_, chunk_)), run);
}

// One group's share of the rows, from where the input lies to where the output belongs.
void PanelProduct::direct_rows(const DirectMaps& maps, int64_t index, const Task& task) const {
  const int64_t chunks = ceil_div(rows_, chunk_), groups = layout_.groups / maps.images;
  const int64_t first = index % chunks * chunk_, group = index / chunks;
  const int64_t image = group / groups, at = group % groups * layout_.sums();
  const int64_t count = std::min(layout_.sums(), maps.size - at);
  const int64_t out = image * maps.output_step + first * maps.size + at;
  TileJob job{};
  job.entries = entries_.data();
  job.rows = std::min(rows_, first + chunk_) - first;
  job.start = task.start == nullptr ? nullptr : task.start + first;
  job.sums = maps.output + out;
  job.sums_step = maps.size;
  job.tail = static_cast<int>(count - (layout_.tile->columns - 1) * layout_.family->lanes);
  const auto run = count == layout_.sums() ? layout_.tile->run : layout_.tile->run_tail;
  for (int64_t b = 0; b < blocks_; ++b) {
    const int64_t channel = b * layout_.block;
    job.panel = maps.input + image * maps.input_step + channel * maps.size + at;
    job.segments = segments_.data() + b * rows_ + first;
    job.resume = b > 0;
    if (b + 1 == blocks_) {
      job.activation = task.finish.get();
      job.residual = maps.residual == nullptr ? nullptr : maps.residual + out;
    }
    run(job);
  }
}

}  // namespace dns_onnx
