#include "conv_layout.h"

#include <algorithm>
#include <limits>

namespace dns_onnx {
namespace {

constexpr int kMostLanes = 16;
// cycles; measured on Zen 4
constexpr double kLineCycles = 12.0, kSquareCycles = 30.0, kStageCycles = 0.15;
constexpr double kCopyFloatsPerCycle = 2.0, kTouchCycles = 4.0;  // the latter for a cache line
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
  const Axis& x = patch.axis[1];
  const int64_t blocks = patch.blocks_of_image();
  // small images share a group; a large one would have to be staged whole for it
  patch.lanes_of_image = blocks < kOwnGroups * lanes ? blocks : round_up(blocks, lanes);
  patch.column_floats = (x.blocks - 1) * x.block + x.reach + kGatherSlack;
  patch.line_floats = patch.column_floats * static_cast<int64_t>(x.phases.size());
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
  layout.staging = staging_floats(patch, layout.groups, family.lanes);
  const double wide = family.lanes / 8.0;
  layout.pack_cycles =
      wide * static_cast<double>(phases * y.reach) * columns_cycles(x.reach) +
      kStageCycles * static_cast<double>(phases * y.block * x.block * family.lanes);
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
  layout.pack_cycles = kTouchCycles * static_cast<double>(1 + layout.sums() / 16);
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
    const double cycles = choose_block(weights, layout);
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

void FlatSurface::pack(const Layout& layout, const PackJob& job) const {
  for (int64_t group = job.first_group; group < job.last_group; ++group) {
    float* panel = job.panel + (group - job.first_group) * job.panel_floats;
    const int64_t begin = group * layout.sums();
    for (int64_t c = job.first; c < job.last; ++c) {
      float* end = panel + layout.sums();
      int64_t image = begin / size_, at = begin % size_;
      for (; panel != end && image < images_; ++image, at = 0) {
        const int64_t count = std::min(size_ - at, static_cast<int64_t>(end - panel));
        const float* map = maps_.input(image, c);
        panel =
            map == nullptr ? std::fill_n(panel, count, 0.0F) : std::copy_n(map + at, count, panel);
      }
      std::fill(panel, end, 0.0F);
      panel = end;
    }
  }
}

void FlatSurface::unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                         const float* sums, const Finish& finish) const {
  const int64_t begin = group * layout.sums();
  for (int64_t r = first; r < last; ++r, sums += layout.sums()) {
    int64_t done = 0, image = begin / size_, at = begin % size_;
    for (; done != layout.sums() && image < images_; ++image, at = 0) {
      const int64_t count = std::min(size_ - at, layout.sums() - done);
      const int64_t row = r * maps_.output_step() + at;
      const float* residual = maps_.residual(image);
      layout.family->finish({sums + done, residual == nullptr ? nullptr : residual + row,
                             finish.activation, count, maps_.output(image) + row});
      done += count;
    }
  }
}

// One lane's block.
struct PatchSurface::Lane {
  int64_t image, line, column;  // the last two count blocks
  bool used;
};

// The stretch of maps that some lanes read.
struct PatchSurface::Region {
  int64_t image, line, column;  // where it begins; the last two count blocks
  int64_t images;
  int64_t lines, columns;  // staged, in each phase
};

PatchSurface::Lane PatchSurface::lane(int64_t index) const {
  const int64_t image = std::min(index / patch_.lanes_of_image, patch_.plane.images - 1);
  const int64_t block = index - image * patch_.lanes_of_image;
  const int64_t known = std::min(block, patch_.blocks_of_image() - 1);
  // a lane too many repeats the last block
  return {image, known / patch_.axis[1].blocks, known % patch_.axis[1].blocks, block == known};
}

PatchSurface::Region PatchSurface::region(const Lane& first, const Lane& last) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const bool one_image = first.image == last.image;
  const bool one_line = one_image && first.line == last.line;
  Region region{first.image,
                one_image ? first.line : 0,
                one_line ? first.column : 0,
                last.image - first.image + 1,
                0,
                0};
  const int64_t last_line = one_image ? last.line : y.blocks - 1;
  const int64_t last_column = one_line ? last.column : x.blocks - 1;
  region.lines = (last_line - region.line) * y.block + y.reach;
  region.columns = (last_column - region.column) * x.block + x.reach;
  return region;
}

namespace {

// out[k] = from[k * stride] for first <= k < end; a constant stride is what compilers vectorize
void copy_strided(const float* from, int64_t stride, int64_t first, int64_t end, float* out) {
  if (first >= end) return;
  if (stride == 1) {
    std::copy(from + first, from + end, out + first);
  } else if (stride == 2) {
    for (int64_t k = first; k < end; ++k) out[k] = from[k * 2];
  } else {
    for (int64_t k = first; k < end; ++k) out[k] = from[k * stride];
  }
}

}  // namespace

// Copies one channel's lines, split into phases.  Staging holds zeros wherever no map lies, so
// that padding costs nothing here.
void PatchSurface::stage(const Region& region, int64_t channel, float* staging) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  const int64_t stride = plane.stride[1];
  float* out = staging;
  for (int64_t i = 0; i < region.images; ++i) {
    const float* map = maps_.input(region.image + i, channel);
    for (const int64_t y_phase : y.phases) {
      int64_t row = region.line * y.block * plane.stride[0] + y_phase - plane.pad[0];
      for (int64_t line = 0; line < region.lines; ++line, row += plane.stride[0]) {
        const bool inside = map != nullptr && row >= 0 && row < plane.height;
        for (const int64_t x_phase : x.phases) {
          const int64_t column = region.column * x.block * stride + x_phase - plane.pad[1];
          const int64_t first = column >= 0 ? 0 : (stride - 1 - column) / stride;
          const int64_t held = std::max<int64_t>(0, plane.width - column + stride - 1) / stride;
          if (inside) {
            copy_strided(map + row * plane.width + column, stride, first,
                         std::min(region.columns, held), out);
          } else if (map == nullptr) {  // another channel may have left its map here
            std::fill(out, out + region.columns, 0.0F);
          }
          out += patch_.column_floats;
        }
      }
    }
  }
}

void PatchSurface::pack(const Layout& layout, const PackJob& job) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const int64_t lanes = layout.family->lanes;
  const Region staged = region(lane(job.first_group * lanes), lane(job.last_group * lanes - 1));
  const auto y_phases = static_cast<int64_t>(y.phases.size());
  const auto x_phases = static_cast<int64_t>(x.phases.size());
  const int64_t phase_floats = staged.lines * patch_.line_floats;
  const int64_t plane_floats = y.reach * x.reach * lanes;

  const int64_t group_count = job.last_group - job.first_group;

  const float* corners[kManyGroups * kMostLanes];  // where each lane's block begins when staged
  for (int64_t i = 0; i < group_count * lanes; ++i) {
    const Lane block = lane(job.first_group * lanes + i);
    corners[i] = job.staging + (block.image - staged.image) * y_phases * phase_floats +
                 (block.line - staged.line) * y.block * patch_.line_floats +
                 (block.column - staged.column) * x.block;
  }
  std::fill(job.staging, job.staging + layout.staging, 0.0F);
  for (int64_t c = job.first; c < job.last; ++c) {
    stage(staged, c, job.staging);
    for (int64_t g = 0; g < group_count; ++g) {
      const float* const* corner = corners + g * lanes;
      float* out = job.panel + g * job.panel_floats + (c - job.first) * layout.channel_floats;
      for (int64_t q = 0; q < y_phases; ++q) {
        for (int64_t p = 0; p < x_phases; ++p, out += plane_floats) {
          const float* source[kMostLanes];
          for (int64_t l = 0; l < lanes; ++l) {
            source[l] = corner[l] + q * phase_floats + p * patch_.column_floats;
          }
          layout.family->gather(
              {source, patch_.line_floats, y.reach, x.reach, out, x.reach * lanes, lanes});
        }
      }
    }
  }
}

void PatchSurface::unpack(const Layout& layout, int64_t group, int64_t first, int64_t last,
                          const float* sums, const Finish& finish) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  const int64_t lanes = layout.family->lanes;
  const int64_t ragged = plane.out_width - (x.blocks - 1) * x.block;  // columns of the last block
  for (int64_t line = 0; line < y.block; ++line) {
    float* whole[kMostLanes];
    float* cut[kMostLanes];  // of blocks that reach past the map's right edge
    const float* residual[kMostLanes];
    bool any_whole = false, any_cut = false;
    for (int64_t l = 0; l < lanes; ++l) {
      const Lane block = lane(group * lanes + l);
      const int64_t row = block.line * y.block + line;
      const bool inside = block.used && row < plane.out_height;
      const bool is_cut = ragged != x.block && block.column == x.blocks - 1;
      const int64_t at =
          first * maps_.output_step() + row * plane.out_width + block.column * x.block;
      float* target = maps_.output(block.image) + at;
      residual[l] = finish.residual ? maps_.residual(block.image) + at : nullptr;
      whole[l] = inside && !is_cut ? target : nullptr;
      cut[l] = inside && is_cut ? target : nullptr;
      any_whole = any_whole || whole[l] != nullptr;
      any_cut = any_cut || cut[l] != nullptr;
    }
    ScatterJob out{sums + line * x.block * lanes,
                   layout.sums(),
                   last - first,
                   x.block,
                   lanes,
                   whole,
                   maps_.output_step(),
                   finish.get(),
                   finish.residual ? residual : nullptr};
    if (any_whole) layout.family->scatter(out);
    out.count = ragged;
    out.target = cut;
    if (any_cut) layout.family->scatter(out);
  }
}

}  // namespace dns_onnx
