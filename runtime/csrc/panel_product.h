// A sparse matrix times dense inputs that are first packed into panels: the engine behind
// convolutions and products with several rows.
//
// Words: a *channel* is one dense input of a weight (an input map, a column of A); a *tap* is one
// of the places around a position that its weights reach (kernel height x width; 1 in a product);
// a *position* is one output (a pixel, a row of A).  A *group* is as many positions as one tile
// computes; its *panel* holds what they read, channel by channel.
#pragma once

#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "csr.h"
#include "kernels/kernel_set.h"
#include "scratch.h"

namespace dns_onnx {

// How the positions of one input shape fall into groups, and how a panel is laid out.
struct Layout {
  const Family* family = nullptr;
  const Tile* tile = nullptr;
  int64_t groups = 0;
  int64_t channel_floats = 0;        // from one channel to the next in a panel
  int64_t pitch = 0;                 // floats between the tile's lines
  std::vector<uint32_t> tap_floats;  // where a tap begins, from the channel's start
  bool direct = false;               // the dense input is read where it lies: it is the panel
  int64_t staging = 0;               // floats that pack() needs for itself
  double pack_cycles = 0;             // estimated, of one channel
  double unpack_cycles = 0;           // estimated, of one row
  int64_t block = 1;                  // channels worked on at a time, to stay in a near cache

  int64_t sums() const { return int64_t{tile->lines} * tile->columns * family->lanes; }
  // floats of one channel that a group reads
  int64_t read_floats() const { return direct ? sums() : channel_floats; }
};

// Groups first_group..last_group, channels first..last.
struct PackJob {
  int64_t first_group, last_group;
  int64_t first, last;
  float* panel;          // where channel `first` of the first group begins
  int64_t panel_floats;  // from group to group
  float* staging;        // Layout::staging floats to work in
};

// From so many groups on, each is packed and used by one task; fewer may be packed first, all
// together, so that several threads share a group.
constexpr int64_t kManyGroups = 16;

// What happens to the sums of a row on their way out.
struct Finish {
  Activation activation = {-std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::infinity(), 1.0F};
  bool residual = false;  // the surface holds what to add before the activation

  bool none() const {
    return !residual && activation.slope == 1.0F &&
           activation.low == -std::numeric_limits<float>::infinity() &&
           activation.high == std::numeric_limits<float>::infinity();
  }
  const Activation* get() const { return none() ? nullptr : &activation; }
};

// The dense input and the output of a pointwise product, as they lie: maps of `size` positions.
struct DirectMaps {
  const float* input;
  const float* residual;  // null for none
  float* output;
  int64_t images, size;
  int64_t input_step, output_step;  // from image to image
};

// Where a run's panels come from and where its sums go.
class Surface {
 public:
  virtual ~Surface() = default;
  // Writes the panels of the groups and channels that the job names.
  virtual void pack(const Layout& layout, const PackJob& job) const = 0;
  // Takes the sums of rows first..last of a group, and finishes them.
  virtual void unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                      const float* sums, const Finish& finish) const = 0;
};

// The sparse matrix of a layer: row r's weights reach channels from first_channel(r) on.
struct PanelWeights {
  const Csr* matrix = nullptr;
  int64_t taps = 1;
  int64_t channels = 0;            // in all
  int64_t rows_of_a_part = 0;      // a grouped convolution has several parts ...
  int64_t channels_of_a_part = 0;  // ... each with channels of its own

  int64_t first_channel(int64_t row) const { return row / rows_of_a_part * channels_of_a_part; }
};

// Picks layout.block; returns the estimated cycles of one run, on one thread.
double choose_block(const PanelWeights& weights, Layout& layout);

// Counts the tasks that are under way at the same time.
struct Crowd {
  std::atomic<int> runs{0}, now{0}, most{0};

  // Counted unless the crowd is null.
  class Member {
   public:
    explicit Member(Crowd* crowd) : crowd_(crowd) {
      if (crowd_ == nullptr) return;
      const int now = crowd_->now.fetch_add(1, std::memory_order_relaxed) + 1;
      int most = crowd_->most.load(std::memory_order_relaxed);
      while (now > most &&
             !crowd_->most.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
      }
    }
    ~Member() {
      if (crowd_ != nullptr) crowd_->now.fetch_sub(1, std::memory_order_relaxed);
    }
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;

   private:
    Crowd* crowd_;
  };
};

// A layout with the weights sorted for it; built once for each input shape.
class PanelProduct {
 public:
  PanelProduct(const PanelWeights& weights, Layout layout);

  // start: first summand of each row, null for 0.  Throws Error where memory runs out.
  void run(Parallel& parallel, const Surface& surface, const float* start, const Finish& finish,
           Scratch& scratch) const;
  // The same where the layout is direct.
  void run_direct(Parallel& parallel, const DirectMaps& maps, const float* start,
                  const Finish& finish) const;
  const Layout& layout() const { return layout_; }

 private:
  struct Task;
  void sort_weights(const PanelWeights& weights);
  Crowd* probed() const;
  bool at_once() const;
  bool by_groups(Parallel& parallel, const Surface& surface, const Task& task,
                 Scratch& scratch) const;
  bool by_phases(Parallel& parallel, const Surface& surface, const Task& task,
                 Scratch& scratch) const;
  bool group_at_once(int64_t group, const Surface& surface, const Task& task,
                     Scratch& scratch) const;
  void block_of_rows(int64_t block, int64_t first, int64_t last, const float* panel, float* sums,
                     const Task& task) const;
  void direct_rows(const DirectMaps& maps, int64_t index, const Task& task) const;
  size_t panel_floats() const;

  Layout layout_;
  int64_t rows_, channels_;
  int64_t blocks_;
  int64_t chunk_;                  // rows of one task
  std::vector<Entry> entries_;     // by block, then by row
  std::vector<int64_t> segments_;  // [blocks * rows + 1]
  mutable Crowd crowd_;
};

// What a layer has worked out for the input shapes it saw lately.
template <typename Plan>
class PlanCache {
 public:
  // make() runs once for each key, unless more than kKept keys are in turn.
  template <typename Make>
  std::shared_ptr<const Plan> get(const std::vector<int64_t>& key, Make&& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Item& item : items_) {
      if (item.key == key) return item.plan;
    }
    std::shared_ptr<const Plan> made = make();
    if (items_.size() == kKept) items_.erase(items_.begin());
    items_.push_back({key, made});
    return made;
  }

 private:
  static constexpr size_t kKept = 8;
  struct Item {
    std::vector<int64_t> key;
    std::shared_ptr<const Plan> plan;
  };
  std::mutex mutex_;
  std::vector<Item> items_;
};

}  // namespace dns_onnx
