#include "conv_layout.h"

#include <algorithm>
#include <limits>

namespace dns_onnx {
namespace {

// cycles; measured on Zen 4
constexpr double kLineCycles = 12.0, kSquareCycles = 30.0, kStageCycles = 0.15;
constexpr double kWindowLineCycles = 4.0, kWindowSquareCycles = 24.0;
constexpr double kCopyFloatsPerCycle = 2.0;
// what a lone group costs more: threads pack a share of its panel each, and read all of it
constexpr double kLoneGroup = 1.06;
constexpr int64_t kOwnGroups = 4;  // an image of more groups than this has them for itself

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Axis make_axis(const PlaneShape& plane, int which, int64_t block) {
  Axis axis;
  axis.block = block;
  axis.blocks = ceil_div(which == 0 ? plane.out_height : plane.out_width, block);
  const int64_t stride = plane.stride[which];
  for (int64_t k = 0; k < plane.kernel[which]; ++k) {
    const int64_t at = k * plane.dilation[which];
    const auto known = std::find(axis.phases.begin(), axis.phases.end(), at % stride);
    axis.tap_phase.push_back(known - axis.phases.begin());
    if (known == axis.phases.end()) axis.phases.push_back(at % stride);
    axis.tap_shift.push_back(at / stride);
  }
  axis.reach = block + axis.tap_shift.back();
  return axis;
}

std::vector<int32_t> held_columns(const PatchLayout& patch) {
  const Axis& x = patch.axis[1];
  const int64_t step = patch.held_step();
  std::vector<int32_t> held(static_cast<size_t>((1 + x.blocks) * step), 0);
  for (int64_t block = 0; block < x.blocks; ++block) {
    for (int64_t i = 0; i < x.reach; ++i) {
      const int64_t column = block * x.block - patch.plane.pad[1] + i;
      const bool inside = column >= 0 && column < patch.plane.width;
      held[static_cast<size_t>((1 + block) * step + i)] = inside ? -1 : 0;
    }
  }
  return held;
}

PatchLayout make_patch(const PlaneShape& plane, const Tile& tile, int64_t lanes) {
  PatchLayout patch;
  patch.plane = plane;
  patch.axis[0] = make_axis(plane, 0, tile.lines);
  patch.axis[1] = make_axis(plane, 1, tile.columns);
  const Axis& x = patch.axis[1];
  const int64_t blocks = patch.blocks_of_image();
  // small images share a group; a large one would have to be staged whole for it
  patch.lanes_of_image = blocks < kOwnGroups * lanes ? blocks : round_up(blocks, lanes);
  patch.column_floats = (x.blocks - 1) * x.block + x.reach + kGatherSlack;
  patch.line_floats = patch.column_floats * static_cast<int64_t>(x.phases.size());
  if (patch.reads_maps()) patch.held = held_columns(patch);
  return patch;
}

// Floats to stage for one PackJob: a single group's, or all images where groups are few.
int64_t staging_floats(const PatchLayout& patch, int64_t groups, int64_t lanes) {
  const Axis &y = patch.axis[0], &x = patch.axis[1];
  const bool own = patch.lanes_of_image != patch.blocks_of_image();
  int64_t images = own ? 1 : std::min(patch.plane.images, (lanes - 2) / patch.lanes_of_image + 2);
  int64_t lines = images > 1 ? y.blocks : std::min(y.blocks, (lanes - 2) / x.blocks + 2);
  if (groups < kManyGroups) {
    images = patch.plane.images;
    lines = y.blocks;
  }
  return images * static_cast<int64_t>(y.phases.size()) * ((lines - 1) * y.block + y.reach) *
         patch.line_floats;
}

// Cycles to turn a line of so many vectors over: by squares of 8, or by single columns.
double columns_cycles(int64_t columns) {
  const int64_t rest = columns % 8;
  return kLineCycles + static_cast<double>(columns / 8) * kSquareCycles +
         (rest <= 2 ? static_cast<double>(rest) * 8.0 : kSquareCycles);
}

// Cycles to read a line of so many columns from the maps; a last column or two mostly come from
// the next lane.
double window_cycles(int64_t columns) {
  const int64_t squares = columns / 8 + (columns % 8 > 2 ? 1 : 0);
  return kWindowLineCycles + static_cast<double>(squares) * kWindowSquareCycles;
}

Layout patch_layout(const PatchLayout& patch, const Family& family, const Tile& tile) {
  const Axis &y = patch.axis[0], &x = patch.axis[1];
  const auto x_phases = static_cast<int64_t>(x.phases.size());
  const int64_t phases = static_cast<int64_t>(y.phases.size()) * x_phases;
  Layout layout;
  layout.family = &family;
  layout.tile = &tile;
  layout.groups = ceil_div(patch.plane.images * patch.lanes_of_image, family.lanes);
  layout.pitch = x.reach * family.lanes;
  layout.channel_floats = y.reach * x.reach * phases * family.lanes;
  for (size_t ky = 0; ky < y.tap_phase.size(); ++ky) {
    for (size_t kx = 0; kx < x.tap_phase.size(); ++kx) {
      const int64_t phase = y.tap_phase[ky] * x_phases + x.tap_phase[kx];
      const int64_t vectors =
          (phase * y.reach + y.tap_shift[ky]) * x.reach + x.tap_shift[kx];
      layout.tap_floats.push_back(static_cast<uint32_t>(vectors * family.lanes));
    }
  }
  const double wide = family.lanes / 8.0;
  if (patch.reads_maps()) {
    layout.pack_cycles = wide * static_cast<double>(y.reach) * window_cycles(x.reach);
  } else {
    layout.staging = staging_floats(patch, layout.groups, family.lanes);
    layout.pack_cycles =
        wide * static_cast<double>(phases * y.reach) * columns_cycles(x.reach) +
        kStageCycles * static_cast<double>(phases * y.block * x.block * family.lanes);
  }
  layout.unpack_cycles = wide * static_cast<double>(y.block) * columns_cycles(x.block);
  return layout;
}

Layout flat_layout(const PlaneShape& plane, const Family& family, const Tile& tile) {
  Layout layout;
  layout.family = &family;
  layout.tile = &tile;
  layout.groups = ceil_div(plane.images * plane.height * plane.width, layout.sums());
  layout.channel_floats = layout.sums();
  layout.tap_floats = {0};
  layout.pack_cycles = 20.0 + static_cast<double>(layout.sums()) / kCopyFloatsPerCycle;
  layout.unpack_cycles = layout.pack_cycles;
  return layout;
}

// The maps as they lie; nothing to choose where the last vector would have to be cut and cannot.
bool direct_layout(const PlaneShape& plane, const Family& family, const Tile& tile,
                   Layout& layout) {
  const int64_t size = plane.height * plane.width;
  layout.family = &family;
  layout.tile = &tile;
  const int64_t groups = ceil_div(size, layout.sums()), rest = size - (groups - 1) * layout.sums();
  const bool whole = rest == layout.sums();
  // only the last of the tile's vectors can be cut
  if (!whole && (tile.run_tail == nullptr || rest <= layout.sums() - family.lanes)) return false;
  layout.groups = groups * plane.images;
  layout.direct = true;
  layout.channel_floats = size;
  layout.tap_floats = {0};
  return true;
}

}  // namespace

bool PlaneShape::pointwise() const {
  return taps() == 1 && stride[0] == 1 && stride[1] == 1 && pad[0] == 0 && pad[1] == 0 &&
         out_height == height && out_width == width;
}

Layout choose_layout(const PanelWeights& weights, const PlaneShape& plane, PatchLayout& patch) {
  Layout best;
  double least = std::numeric_limits<double>::infinity();
  const KernelSet& kernels = kernel_set();
  const auto consider = [&](Layout layout, PatchLayout& made) {
    double cycles = choose_block(weights, layout);
    if (layout.groups == 1 && !layout.direct) cycles *= kLoneGroup;
    if (cycles >= least) return;
    least = cycles;
    best = std::move(layout);
    patch = std::move(made);
  };
  for (size_t f = 0; f < kernels.family_count; ++f) {
    const Family& family = kernels.families[f];
    for (size_t t = 0; t < family.tile_count; ++t) {
      const Tile& tile = family.tiles[t];
      PatchLayout made;
      if (plane.pointwise()) {
        if (tile.lines != 1) continue;
      } else {
        made = make_patch(plane, tile, family.lanes);
      }
      consider(plane.pointwise() ? flat_layout(plane, family, tile)
                                 : patch_layout(made, family, tile),
               made);
      Layout direct;
      if (plane.pointwise() && plane.in_place && direct_layout(plane, family, tile, direct)) {
        consider(std::move(direct), made);
      }
    }
  }
  return best;
}

}  // namespace dns_onnx
