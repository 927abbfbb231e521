#include "conv_layout.h"

#include <algorithm>
#include <limits>

namespace dns_onnx {
namespace {

constexpr int kMostLanes = 16;
constexpr int64_t kOwnGroups = 4;  // an image of more groups than this has them for itself
constexpr int64_t kSlack = 8;  // floats that a gather may read past the end of a line

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
  patch.column_floats = (x.blocks - 1) * x.block + round_up(x.reach, kSlack) + kSlack;
  patch.line_floats = patch.column_floats * static_cast<int64_t>(x.phases.size());
  return patch;
}

Layout patch_layout(const PatchLayout& patch, const Family& family, const Tile& tile) {
  const Axis &y = patch.axis[0], &x = patch.axis[1];
  const auto phases = static_cast<int64_t>(x.phases.size());
  Layout layout;
  layout.family = &family;
  layout.tile = &tile;
  layout.groups = ceil_div(patch.plane.images * patch.lanes_of_image, family.lanes);
  layout.pitch = x.reach * phases;
  layout.channel_vectors = layout.pitch * y.reach * static_cast<int64_t>(y.phases.size());
  for (size_t ky = 0; ky < y.tap_phase.size(); ++ky) {
    for (size_t kx = 0; kx < x.tap_phase.size(); ++kx) {
      const int64_t line = y.tap_phase[ky] * y.reach + y.tap_shift[ky];
      layout.tap_vectors.push_back(static_cast<uint32_t>(
          line * layout.pitch + x.tap_phase[kx] * x.reach + x.tap_shift[kx]));
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

// Copies columns of an input line into one phase of a staged line, zeros outside the map.
// column: the input column of the first float, may be negative.
void stage_line(const float* line, int64_t width, int64_t column, int64_t stride, int64_t count,
                float* out) {
  if (line == nullptr) {
    std::fill(out, out + count, 0.0F);
    return;
  }
  const int64_t first = std::min(count, column >= 0 ? 0 : ceil_div(-column, stride));
  const int64_t end =
      std::clamp(width <= column ? 0 : ceil_div(width - column, stride), first, count);
  std::fill(out, out + first, 0.0F);
  if (stride == 1) {
    std::copy(line + column + first, line + column + end, out + first);
  } else {
    for (int64_t i = first; i < end; ++i) out[i] = line[column + i * stride];
  }
  std::fill(out + end, out + count, 0.0F);
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
      const double cycles = estimated_cycles(weights, layout);
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
      std::copy_n(sums + done, count, maps_.output(image, r) + at);
      done += count;
    }
  }
}

namespace {

// The blocks of one group: where each lane's block lies, and the stretch of maps to stage.
struct GroupBlocks {
  struct Lane {
    int64_t image, line, column;  // block indices
    bool used;
  };
  Lane lanes[kMostLanes];
  int64_t first_image, first_line, first_column;  // block indices where staging begins
  int64_t images, lines, columns;                 // blocks to stage

  GroupBlocks(const PatchLayout& patch, int64_t group, int64_t lane_count) {
    const int64_t across = patch.axis[1].blocks, of_image = patch.blocks_of_image();
    for (int64_t l = 0; l < lane_count; ++l) {
      const int64_t index = group * lane_count + l;
      const int64_t image = std::min(index / patch.lanes_of_image, patch.plane.images - 1);
      const int64_t block = index - image * patch.lanes_of_image;
      const int64_t b = std::min(block, of_image - 1);  // a lane too many repeats the last block
      lanes[l] = {image, b / across, b % across, block == b};
    }
    const Lane &a = lanes[0], &z = lanes[lane_count - 1];
    first_image = a.image;
    images = z.image - a.image + 1;
    const bool one_image = images == 1, one_line = one_image && a.line == z.line;
    first_line = one_image ? a.line : 0;
    lines = one_image ? z.line - a.line + 1 : patch.axis[0].blocks;
    first_column = one_line ? a.column : 0;
    columns = one_line ? z.column - a.column + 1 : across;
  }
};

}  // namespace

void PatchSurface::pack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                        float* panel, float* staging) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  const int64_t lanes = layout.family->lanes;
  const GroupBlocks blocks(patch_, group, lanes);
  const auto y_phases = static_cast<int64_t>(y.phases.size());
  const auto x_phases = static_cast<int64_t>(x.phases.size());
  const int64_t lines = (blocks.lines - 1) * y.block + y.reach;
  const int64_t columns = (blocks.columns - 1) * x.block + x.reach;
  const int64_t image_floats = y_phases * lines * patch_.line_floats;

  for (int64_t c = first; c < last; ++c, panel += layout.channel_floats()) {
    float* out = staging;
    for (int64_t i = 0; i < blocks.images; ++i) {
      const float* map = maps_.input(blocks.first_image + i, c);
      for (int64_t phase : y.phases) {
        for (int64_t line = 0; line < lines; ++line, out += patch_.line_floats) {
          const int64_t row =
              (blocks.first_line * y.block + line) * plane.stride[0] + phase - plane.pad[0];
          const bool inside = map != nullptr && row >= 0 && row < plane.height;
          for (int64_t p = 0; p < x_phases; ++p) {
            const int64_t column = blocks.first_column * x.block * plane.stride[1] +
                                   x.phases[static_cast<size_t>(p)] - plane.pad[1];
            stage_line(inside ? map + row * plane.width : nullptr, plane.width, column,
                       plane.stride[1], columns, out + p * patch_.column_floats);
          }
        }
      }
    }
    const float* corner[kMostLanes];  // where each lane's block begins in the staged lines
    for (int64_t l = 0; l < lanes; ++l) {
      const GroupBlocks::Lane& lane = blocks.lanes[l];
      corner[l] = staging + (lane.image - blocks.first_image) * image_floats +
                  (lane.line - blocks.first_line) * y.block * patch_.line_floats +
                  (lane.column - blocks.first_column) * x.block;
    }
    int64_t vector = 0;
    for (int64_t q = 0; q < y_phases; ++q) {
      for (int64_t line = 0; line < y.reach; ++line) {
        for (int64_t p = 0; p < x_phases; ++p, vector += x.reach) {
          const float* source[kMostLanes];
          const int64_t at = (q * lines + line) * patch_.line_floats + p * patch_.column_floats;
          for (int64_t l = 0; l < lanes; ++l) source[l] = corner[l] + at;
          // whole squares are quicker; what they write too much, the next line overwrites
          const int64_t whole = round_up(x.reach, kSlack);
          const int64_t count = vector + whole <= layout.channel_vectors ? whole : x.reach;
          layout.family->gather(source, count, panel + vector * lanes, lanes);
        }
      }
    }
  }
}

void PatchSurface::unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                          const float* sums) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  const int64_t lanes = layout.family->lanes;
  const GroupBlocks blocks(patch_, group, lanes);
  const int64_t ragged = plane.out_width - (x.blocks - 1) * x.block;  // columns of the last block
  for (int64_t r = first; r < last; ++r, sums += layout.sums()) {
    float* corner[kMostLanes];
    for (int64_t l = 0; l < lanes; ++l) {
      const GroupBlocks::Lane& lane = blocks.lanes[l];
      corner[l] = !lane.used ? nullptr
                             : maps_.output(lane.image, r) +
                                   lane.line * y.block * plane.out_width + lane.column * x.block;
    }
    for (int64_t line = 0; line < y.block; ++line) {
      float* whole[kMostLanes];
      float* last_block[kMostLanes];
      bool any_last = false;
      for (int64_t l = 0; l < lanes; ++l) {
        const GroupBlocks::Lane& lane = blocks.lanes[l];
        const bool inside = lane.used && lane.line * y.block + line < plane.out_height;
        float* target = inside ? corner[l] + line * plane.out_width : nullptr;
        const bool is_ragged = ragged != x.block && lane.column == x.blocks - 1;
        whole[l] = is_ragged ? nullptr : target;
        last_block[l] = is_ragged ? target : nullptr;
        any_last = any_last || last_block[l] != nullptr;
      }
      const float* from = sums + line * x.block * lanes;
      layout.family->scatter(from, x.block, whole, lanes);
      if (any_last) layout.family->scatter(from, ragged, last_block, lanes);
    }
  }
}

}  // namespace dns_onnx
