#include "conv_layout.h"

#include <algorithm>
#include <limits>

namespace dns_onnx {
namespace {

constexpr int kMostLanes = 16;
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

PatchLayout make_patch(const PlaneShape& plane, const Tile& tile, int64_t lanes) {
  PatchLayout patch;
  patch.plane = plane;
  patch.axis[0] = make_axis(plane, 0, tile.lines);
  patch.axis[1] = make_axis(plane, 1, tile.columns);
  const Axis &y = patch.axis[0], &x = patch.axis[1];
  const int64_t blocks = patch.blocks_of_image();
  // small images share a group; a large one would have to be staged whole for it
  const bool shared = blocks < kOwnGroups * lanes;
  patch.lanes_of_image = shared ? blocks : round_up(blocks, lanes);
  patch.images_of_group = shared ? std::min(plane.images, (lanes - 2) / blocks + 2) : 1;
  const int64_t block_lines =
      patch.images_of_group > 1 ? y.blocks : std::min(y.blocks, (lanes - 2) / x.blocks + 2);
  patch.lines_of_image = (block_lines - 1) * y.block + y.reach;
  patch.column_floats = (x.blocks - 1) * x.block + x.reach + kGatherSlack;
  patch.line_floats = patch.column_floats * static_cast<int64_t>(x.phases.size());
  return patch;
}

Layout patch_layout(const PatchLayout& patch, const Family& family, const Tile& tile) {
  const Axis &y = patch.axis[0], &x = patch.axis[1];
  const auto x_phases = static_cast<int64_t>(x.phases.size());
  const int64_t phases = static_cast<int64_t>(y.phases.size()) * x_phases;
  Layout layout;
  layout.family = &family;
  layout.tile = &tile;
  layout.groups = ceil_div(patch.plane.images * patch.lanes_of_image, family.lanes);
  layout.pitch = x.reach;
  layout.channel_vectors = y.reach * x.reach * phases;
  for (size_t ky = 0; ky < y.tap_phase.size(); ++ky) {
    for (size_t kx = 0; kx < x.tap_phase.size(); ++kx) {
      const int64_t phase = y.tap_phase[ky] * x_phases + x.tap_phase[kx];
      layout.tap_vectors.push_back(static_cast<uint32_t>(
          (phase * y.reach + y.tap_shift[ky]) * x.reach + x.tap_shift[kx]));
    }
  }
  layout.staging = patch.images_of_group * patch.lines_of_image *
                   static_cast<int64_t>(y.phases.size()) * patch.line_floats;
  return layout;
}

Layout flat_layout(const PlaneShape& plane, const Family& family, const Tile& tile) {
  Layout layout;
  layout.family = &family;
  layout.tile = &tile;
  layout.groups = ceil_div(plane.images * plane.height * plane.width, layout.sums());
  layout.channel_vectors = tile.columns;
  layout.tap_vectors = {0};
  return layout;
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
      Layout layout = plane.pointwise() ? flat_layout(plane, family, tile)
                                        : patch_layout(made, family, tile);
      const double cycles = choose_block(weights, layout);
      if (cycles >= least) continue;
      least = cycles;
      best = std::move(layout);
      patch = std::move(made);
    }
  }
  return best;
}

void FlatSurface::pack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                       float* panel, float*) const {
  const int64_t begin = group * layout.sums();
  for (int64_t c = first; c < last; ++c) {
    float* end = panel + layout.sums();
    int64_t image = begin / size_, at = begin % size_;
    for (; panel != end && image < images_; ++image, at = 0) {
      const int64_t count = std::min(size_ - at, static_cast<int64_t>(end - panel));
      const float* map = maps_.input(image, c);
      panel = map == nullptr ? std::fill_n(panel, count, 0.0F) : std::copy_n(map + at, count, panel);
    }
    std::fill(panel, end, 0.0F);
    panel = end;
  }
}

void FlatSurface::unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                         const float* sums) const {
  const int64_t begin = group * layout.sums();
  for (int64_t r = first; r < last; ++r, sums += layout.sums()) {
    int64_t done = 0, image = begin / size_, at = begin % size_;
    for (; done != layout.sums() && image < images_; ++image, at = 0) {
      const int64_t count = std::min(size_ - at, layout.sums() - done);
      std::copy_n(sums + done, count, maps_.output(image) + r * maps_.output_step() + at);
      done += count;
    }
  }
}

// The blocks of one group: where each lane's block lies, and the stretch of maps to stage.
struct PatchSurface::Blocks {
  struct Lane {
    int64_t image, line, column;  // block indices
    bool used;
  };
  Lane lanes[kMostLanes];
  int64_t first_image, first_line, first_column;  // block indices where staging begins
  int64_t images;
  int64_t lines, columns;  // staged, in each phase

  Blocks(const PatchLayout& patch, int64_t group, int64_t lane_count) {
    const Axis &y = patch.axis[0], &x = patch.axis[1];
    for (int64_t l = 0; l < lane_count; ++l) {
      const int64_t index = group * lane_count + l;
      const int64_t image = std::min(index / patch.lanes_of_image, patch.plane.images - 1);
      const int64_t block = index - image * patch.lanes_of_image;
      // a lane too many repeats the last block
      const int64_t b = std::min(block, patch.blocks_of_image() - 1);
      lanes[l] = {image, b / x.blocks, b % x.blocks, block == b};
    }
    const Lane &a = lanes[0], &z = lanes[lane_count - 1];
    first_image = a.image;
    images = z.image - a.image + 1;
    const bool one_image = images == 1, one_line = one_image && a.line == z.line;
    first_line = one_image ? a.line : 0;
    first_column = one_line ? a.column : 0;
    lines = ((one_image ? z.line - a.line : y.blocks - 1)) * y.block + y.reach;
    columns = ((one_line ? z.column - a.column : x.blocks - 1)) * x.block + x.reach;
  }
};

// Copies one channel's lines, stretched to phases.  Staging holds zeros wherever no map lies, so
// that padding costs nothing here.
void PatchSurface::stage(const Blocks& blocks, int64_t channel, float* staging) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  float* out = staging;
  for (int64_t i = 0; i < blocks.images; ++i) {
    const float* map = maps_.input(blocks.first_image + i, channel);
    for (const int64_t y_phase : y.phases) {
      int64_t row = blocks.first_line * y.block * plane.stride[0] + y_phase - plane.pad[0];
      for (int64_t line = 0; line < blocks.lines; ++line, row += plane.stride[0]) {
        for (const int64_t x_phase : x.phases) {
          if (map != nullptr && row >= 0 && row < plane.height) {
            const int64_t stride = plane.stride[1];
            const int64_t column =
                blocks.first_column * x.block * stride + x_phase - plane.pad[1];
            const int64_t first = column >= 0 ? 0 : ceil_div(-column, stride);
            const int64_t end = std::min(
                blocks.columns, column >= plane.width ? 0 : ceil_div(plane.width - column, stride));
            const float* from = map + row * plane.width + column;
            if (stride == 1 && first < end) {
              std::copy(from + first, from + end, out + first);
            } else {
              for (int64_t k = first; k < end; ++k) out[k] = from[k * stride];
            }
          } else if (map == nullptr) {
            std::fill(out, out + blocks.columns, 0.0F);
          }
          out += patch_.column_floats;
        }
      }
    }
  }
}

void PatchSurface::pack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                        float* panel, float* staging) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const int64_t lanes = layout.family->lanes;
  const Blocks blocks(patch_, group, lanes);
  const auto y_phases = static_cast<int64_t>(y.phases.size());
  const auto x_phases = static_cast<int64_t>(x.phases.size());
  const int64_t phase_floats = blocks.lines * patch_.line_floats;

  float* corner[kMostLanes];  // where each lane's block begins in the staged lines
  for (int64_t l = 0; l < lanes; ++l) {
    const Blocks::Lane& lane = blocks.lanes[l];
    corner[l] = staging + (lane.image - blocks.first_image) * y_phases * phase_floats +
                (lane.line - blocks.first_line) * y.block * patch_.line_floats +
                (lane.column - blocks.first_column) * x.block;
  }
  std::fill(staging, staging + layout.staging, 0.0F);
  for (int64_t c = first; c < last; ++c, panel += layout.channel_floats()) {
    stage(blocks, c, staging);
    for (int64_t q = 0; q < y_phases; ++q) {
      for (int64_t p = 0; p < x_phases; ++p) {
        const float* source[kMostLanes];
        for (int64_t l = 0; l < lanes; ++l) {
          source[l] = corner[l] + q * phase_floats + p * patch_.column_floats;
        }
        const int64_t line = x.reach * lanes;
        float* out = panel + (q * x_phases + p) * y.reach * line;
        layout.family->gather(
            {source, patch_.line_floats, y.reach, x.reach, out, line, lanes});
      }
    }
  }
}

void PatchSurface::unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                          const float* sums) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  const int64_t lanes = layout.family->lanes;
  const Blocks blocks(patch_, group, lanes);
  const int64_t ragged = plane.out_width - (x.blocks - 1) * x.block;  // columns of the last block
  for (int64_t line = 0; line < y.block; ++line) {
    float* whole[kMostLanes];
    float* cut[kMostLanes];  // of blocks that reach past the map's right edge
    bool any_whole = false, any_cut = false;
    for (int64_t l = 0; l < lanes; ++l) {
      const Blocks::Lane& lane = blocks.lanes[l];
      const int64_t row = lane.line * y.block + line;
      const bool inside = lane.used && row < plane.out_height;
      const bool is_cut = ragged != x.block && lane.column == x.blocks - 1;
      float* target = maps_.output(lane.image) + first * maps_.output_step() +
                      row * plane.out_width + lane.column * x.block;
      whole[l] = inside && !is_cut ? target : nullptr;
      cut[l] = inside && is_cut ? target : nullptr;
      any_whole = any_whole || whole[l] != nullptr;
      any_cut = any_cut || cut[l] != nullptr;
    }
    const float* from = sums + line * x.block * lanes;
    for (int64_t r = first; r < last; ++r, from += layout.sums()) {
      if (any_whole) layout.family->scatter(from, x.block, whole, lanes);
      if (any_cut) layout.family->scatter(from, ragged, cut, lanes);
      for (int64_t l = 0; l < lanes; ++l) {
        if (whole[l] != nullptr) whole[l] += maps_.output_step();
        if (cut[l] != nullptr) cut[l] += maps_.output_step();
      }
    }
  }
}

}  // namespace dns_onnx
