#include <algorithm>

#include "conv_layout.h"

namespace dns_onnx {
namespace {

constexpr int kMostLanes = 16;
const float kNoMap = 0.0F;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

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

// Division takes as long as copying a line, and most strides are 1.
int64_t strides_of(int64_t columns, int64_t stride) {
  return stride == 1 ? columns : ceil_div(columns, stride);
}

// Copies in moves that overlap at the end: a line is too short for a call to memcpy.
void copy_line(const float* from, int64_t count, float* out) {
  constexpr int64_t kMove = 4;
  if (count < kMove) {
    for (int64_t k = 0; k < count; ++k) out[k] = from[k];
    return;
  }
  for (int64_t k = 0; k < count - kMove; k += kMove) {
    __builtin_memcpy(out + k, from + k, kMove * sizeof(float));
  }
  __builtin_memcpy(out + count - kMove, from + count - kMove, kMove * sizeof(float));
}

// out[k] = from[k * stride] for first <= k < end; a constant stride is what compilers vectorize
void copy_strided(const float* from, int64_t stride, int64_t first, int64_t end, float* out) {
  if (first >= end) return;
  if (stride == 1) {
    copy_line(from + first, end - first, out + first);
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
          const int64_t first = column >= 0 ? 0 : strides_of(-column, stride);
          const int64_t held = strides_of(std::max<int64_t>(0, plane.width - column), stride);
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

// The lanes of one group, one after the other.
void PatchSurface::lanes_of(int64_t group, int64_t count, Lane* lanes) const {
  for (int64_t l = 0; l < count; ++l) {
    Lane next = l > 0 ? lanes[l - 1] : Lane{};
    if (next.used && ++next.column < patch_.axis[1].blocks) {
      lanes[l] = next;
    } else {
      lanes[l] = lane(group * count + l);  // takes divisions
    }
  }
}

// The lane of each one's right neighbour, or -1 for a line's last block.  Returns false where the
// columns from `own` on cannot be had from there.
bool PatchSurface::neighbours(const Lane* lanes, int64_t count, int64_t own, int32_t* next) const {
  const Axis& x = patch_.axis[1];
  const int64_t last = x.blocks - 1;
  const int64_t beyond = last * x.block - patch_.plane.pad[1] + own;
  if (own < x.block || beyond < patch_.plane.width) return false;
  for (int64_t l = 0; l < count; ++l) {
    const bool has_one = lanes[l].column != last;
    if (has_one && l + 1 == count) return false;  // it is in another group
    next[l] = has_one ? static_cast<int32_t>(l + 1) : -1;
  }
  return true;
}

void PatchSurface::pack(const Layout& layout, const PackJob& job) const {
  if (patch_.reads_maps()) {
    pack_windows(layout, job);
  } else {
    pack_staged(layout, job);
  }
}

// Turns the lanes' windows over from where the maps lie: stretches of lines at a time for which
// each lane is inside the maps, or outside.
void PatchSurface::pack_windows(const Layout& layout, const PackJob& job) const {
  const Axis &y = patch_.axis[0], &x = patch_.axis[1];
  const PlaneShape& plane = patch_.plane;
  const int64_t count = layout.family->lanes;
  const int32_t* none = patch_.held.data();
  for (int64_t group = job.first_group; group < job.last_group; ++group) {
    Lane lanes[kMostLanes];
    lanes_of(group, count, lanes);
    int32_t next[kMostLanes];
    const int64_t whole = x.reach / layout.family->square * layout.family->square;
    const int64_t own = neighbours(lanes, count, whole, next) ? whole : x.reach;
    float* panel = job.panel + (group - job.first_group) * job.panel_floats;
    for (int64_t line = 0; line < y.reach;) {
      LaneWindow windows[kMostLanes];
      int64_t end = y.reach;
      for (int64_t l = 0; l < count; ++l) {
        const int64_t top = lanes[l].line * y.block - plane.pad[0], row = top + line;
        const int64_t column = lanes[l].column * x.block - plane.pad[1];
        const bool inside = row >= 0 && row < plane.height;
        const float* map = maps_.input(lanes[l].image, job.first);
        if (map == nullptr) map = &kNoMap;  // an empty one, of which nothing is read
        windows[l] = {map + row * plane.width + column,
                      inside ? none + (1 + lanes[l].column) * patch_.held_step() : none};
        if (row < 0) end = std::min(end, -top);
        if (inside) end = std::min(end, plane.height - top);
      }
      layout.family->gather_windows({windows, job.last - job.first, plane.height * plane.width,
                                     end - line, plane.width, x.reach, own, x.block, next,
                                     panel + line * layout.pitch, layout.channel_floats});
      line = end;
    }
  }
}

void PatchSurface::pack_staged(const Layout& layout, const PackJob& job) const {
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
  const int64_t count = layout.family->lanes;
  Lane lanes[kMostLanes];
  LaneTarget targets[kMostLanes];
  lanes_of(group, count, lanes);
  for (int64_t l = 0; l < count; ++l) {
    const Lane& block = lanes[l];
    const int64_t line = block.line * y.block, column = block.column * x.block;
    const int64_t at = first * maps_.output_step() + line * plane.out_width + column;
    targets[l] = {maps_.output(block.image) + at,
                  finish.residual ? maps_.residual(block.image) + at : nullptr,
                  block.used ? std::min(y.block, plane.out_height - line) : 0,
                  std::min(x.block, plane.out_width - column)};
  }
  layout.family->scatter({sums, layout.sums(), x.block * count, count, last - first, y.block,
                          x.block, targets, maps_.output_step(), plane.out_width, finish.get()});
}

}  // namespace dns_onnx
