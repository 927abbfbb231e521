// How the maps of a convolution become panels.
//
// Two ways.  A pointwise convolution (one tap, no stride, no padding) reads each position once, so
// a panel is a stretch of the map as it lies.  Any other cuts the output into blocks of
// lines x columns positions and gives each block a lane: lane l of a panel's vectors is the
// neighbourhood of block l.  Shifting by a tap then moves from vector to vector and never between
// lanes, so every read is aligned; strides only change which vectors lie next to each other.
#pragma once

#include <string>
#include <vector>

#include "panel_product.h"

namespace dns_onnx {

// The last two spatial axes of a convolution; those before them are folded away (conv.cc).
struct PlaneShape {
  int64_t height = 1, width = 1;          // of an input map
  int64_t out_height = 1, out_width = 1;  // of an output map
  int64_t kernel[2] = {1, 1};
  int64_t stride[2] = {1, 1};
  int64_t dilation[2] = {1, 1};
  int64_t pad[2] = {0, 0};  // before the first line and column
  int64_t images = 1;       // output maps for each row of the matrix
  bool in_place = false;    // whether the maps of an image follow each other

  bool pointwise() const;
  int64_t taps() const { return kernel[0] * kernel[1]; }
};

// One axis of a blocked layout: a map's line (or column) i, counted from the padding's start, is
// the quotient i / stride in phase i % stride; only phases that a tap reaches are kept.
struct Axis {
  int64_t block = 1;               // positions of a block
  int64_t blocks = 1;              // in an output map
  int64_t reach = 1;               // quotients that a block reads in each phase
  std::vector<int64_t> phases;     // kept
  std::vector<int64_t> tap_phase;  // of each tap: index into phases
  std::vector<int64_t> tap_shift;  // of each tap: quotient
};

struct PatchLayout {
  PlaneShape plane;
  Axis axis[2];
  int64_t column_floats = 1;  // of a staged line, one phase
  int64_t line_floats = 1;    // of a staged line, all phases

  int64_t lanes_of_image = 1;  // its blocks, and what fills the last group of a large image

  std::vector<int32_t> held;  // rows of held_step(): no column, then for each block those of its
                              // columns that the map holds (see LaneWindow)

  int64_t blocks_of_image() const { return axis[0].blocks * axis[1].blocks; }
  int64_t held_step() const { return axis[1].reach + kHeldSlack; }
  // whether windows are read from the maps as they lie; strided and folded ones are staged first
  bool reads_maps() const {
    return plane.in_place && plane.stride[0] == 1 && plane.stride[1] == 1;
  }
};

// The map of one image and channel, null where it lies in the padding; and where sums go.
class Maps {
 public:
  virtual ~Maps() = default;
  virtual const float* input(int64_t image, int64_t channel) const = 0;
  virtual float* output(int64_t image) const = 0;  // of row 0
  virtual const float* residual(int64_t image) const = 0;  // like output(); null for none
  virtual int64_t output_step() const = 0;         // floats from row to row
};

// The cheapest layout for these weights; fills `patch` unless the convolution is pointwise.
Layout choose_layout(const PanelWeights& weights, const PlaneShape& plane, PatchLayout& patch);

class FlatSurface final : public Surface {
 public:
  FlatSurface(const Maps& maps, int64_t images, int64_t size)
      : maps_(maps), images_(images), size_(size) {}
  void pack(const Layout& layout, const PackJob& job) const override;
  void unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
              const float* sums, const Finish& finish) const override;

 private:
  const Maps& maps_;
  int64_t images_, size_;
};

class PatchSurface final : public Surface {
 public:
  PatchSurface(const Maps& maps, const PatchLayout& patch) : maps_(maps), patch_(patch) {}
  void pack(const Layout& layout, const PackJob& job) const override;
  void unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
              const float* sums, const Finish& finish) const override;

 private:
  struct Lane;
  struct Region;
  Lane lane(int64_t index) const;
  Region region(const Lane& first, const Lane& last) const;
  void lanes_of(int64_t group, int64_t count, Lane* lanes) const;
  bool neighbours(const Lane* lanes, int64_t count, int64_t own, int32_t* next) const;
  void pack_windows(const Layout& layout, const PackJob& job) const;
  void pack_staged(const Layout& layout, const PackJob& job) const;
  void stage(const Region& region, int64_t channel, float* staging) const;

  const Maps& maps_;
  const PatchLayout& patch_;
};

}  // namespace dns_onnx
