// The inner loops of one instruction set, and the choice among them.
//
// Everything here is plain data and plain functions: the files that define them are compiled for
// instruction sets that this CPU may lack, so no inline function of theirs may be shared.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dns_onnx {

// One stored weight: its value and where its input lies, in floats from the start of the panel.
struct Entry {
  float value;
  uint32_t offset;
};

// What becomes of a finished sum v: negative ones times `slope`, then all of them into
// [low, high].  NaN passes through.
struct Activation {
  float low, high, slope;
};

// One sparse matrix times one dense panel; see tile_f32.inc.
struct TileJob {
  const float* panel;
  const Entry* entries;     // entries of row r: segments[r] to segments[r + 1]
  const int64_t* segments;  // [rows + 1]
  int64_t rows;
  int64_t pitch;                 // floats between the tile's lines in the panel
  const float* start;            // [rows] first summand, null for 0; unused if `resume`
  bool resume;                   // go on from what `sums` holds
  float* sums;                   // lines * columns * lanes for each row
  int64_t sums_step;             // floats from row to row
  const Activation* activation;  // null: more is to come, or none is wanted
  const float* residual;         // added before the activation; laid out as the sums; null for 0
  int tail;                      // floats to read and write in the last column, if not all
};

// Accumulates lines x columns vectors at a time, all of them in registers.
struct Tile {
  int lines;
  int columns;
  void (*run)(const TileJob&);
  void (*run_tail)(const TileJob&);  // heeds `tail`; null where vectors cannot be cut
};

// out[line * out_line + i * out_step + lane] = source[lane][line * source_line + i] for i < count.
// All steps in floats.  May write up to kGatherSlack - 1 further i after each line but the last.
struct GatherJob {
  const float* const* source;  // one for each lane
  int64_t source_line;
  int64_t lines;
  int64_t count;
  float* out;
  int64_t out_line;
  int64_t out_step;
};
constexpr int64_t kGatherSlack = 8;

// to[i] = activation(from[i] + residual[i]) for i < count; residual may be null.
struct FinishJob {
  const float* from;
  const float* residual;
  Activation activation;
  int64_t count;
  float* to;
};

// One lane's neighbourhood within maps that may be smaller.
struct LaneWindow {
  const float* from;    // its first line and column in the first map; may lie outside
  const int32_t* held;  // for each column -1 where the maps hold it, else 0; then kHeldSlack zeros
};
constexpr int64_t kHeldSlack = 8;

// out[map * out_map + (line * columns + i) * lanes + lane] = the lane's window at (line, i) of each
// map, 0 where the map does not hold it.
struct WindowJob {
  const LaneWindow* windows;  // one for each lane
  int64_t maps, map_step;     // how many, and floats from map to map
  int64_t lines, line_step;
  int64_t columns;
  // From column `own` on, column i of a lane is column i - block of lane next[lane], or 0 where
  // that is -1.
  int64_t own, block;
  const int32_t* next;
  float* out;
  int64_t out_map;
};

// Where one lane's sums go: the first row's first line.
struct LaneTarget {
  float* to;
  const float* residual;  // added before the activation; null for 0
  int64_t lines, columns;  // of the lane's block that exist
};

// lanes[lane].to[row * to_row + line * to_line + i] =
//     in[row * in_row + line * in_line + i * in_step + lane], finished where `activation` is given.
struct ScatterJob {
  const float* in;
  int64_t in_row, in_line, in_step;
  int64_t rows, lines, columns;
  const LaneTarget* targets;  // one for each lane
  int64_t to_row, to_line;
  const Activation* activation;  // null for none, and for no residual
};

// The tiles over vectors of one width.
struct Family {
  int lanes;         // floats in a vector
  int square;        // lanes, and columns of each, that are turned over at a time
  float fma_cycles;  // of one multiply-add with its load from the first-level cache
  const Tile* tiles;
  size_t tile_count;
  void (*gather)(const GatherJob&);
  void (*gather_windows)(const WindowJob&);
  void (*scatter)(const ScatterJob&);
  void (*finish)(const FinishJob&);
};

// y[r] = start[r] + sum of values[i] * x[columns[i]] over row r, for first <= r < last.
struct GemvJob {
  const float* values;
  const uint16_t* columns16;  // one of the two is null
  const uint32_t* columns32;
  const int64_t* row_ptr;
  const float* start;  // null for 0
  const float* x;
  float* y;
};

// For products with one vector, kLanes rows at a time: each step of such a group has a window of
// kWindow inputs, from which each row may take kTurns entries.  See row_lanes.h.
constexpr int kLanes = 16, kTurns = 2, kWindow = 64;

// Where each lane's input lies: in the window's lower half at `of`, in its upper half at
// `of - kUpperHalf`.
struct alignas(16) LanePlaces {
  int8_t of[kLanes];
};
constexpr int kUpperHalf = -128;
struct alignas(64) LaneValues {
  float of[kLanes];
};
struct alignas(32) LaneHalves {
  uint16_t of[kLanes];  // bits of float16
};

struct LaneJob {
  const int64_t* steps;      // of group g: steps[g] to steps[g + 1]
  const uint32_t* windows;   // [steps] first input
  const LanePlaces* places;  // [steps][kTurns]
  const LaneValues* values;  // likewise; one of the two is null
  const LaneHalves* halves;
  const float* x;
};

// y[i] = x[i] / (bias + scale * sum of x[channel * count + i]^2 for first <= channel <= last)^beta
// for i < count; `first` and `last` count channels from x's own.
struct LrnJob {
  const float* x;
  float* y;
  int64_t count;  // positions of a channel
  int64_t first, last;
  float scale, beta, bias;
};

// y = the largest entry of each window of x, one map; see csrc/pool.cc.
struct PoolJob {
  const float* x;
  float* y;
  int64_t height, width, out_height, out_width;
  int64_t kernel[2], stride[2], pad[2];  // each window holds a line and a column of the map
  float* line;  // to work in: a line with its padding, as far as the windows reach
  int64_t line_floats;
};

struct KernelSet {
  const char* name;
  const Family* families;
  size_t family_count;
  void (*gemv)(const GemvJob&, int64_t first, int64_t last);
  float gemv_cycles;  // of one entry
  // The sums of one group's rows; NaN where x holds NaN or infinities, perhaps beside the entries.
  // Null where rows are as fast one by one.
  void (*lanes)(const LaneJob&, int64_t group, float* sums);
  float lanes_cycles;  // of one step
  // Does count x kPeakChains x lanes multiply-adds that wait for nothing: the CPU's peak.
  float (*peak)(int64_t count);
  int peak_lanes;
  void (*lrn)(const LrnJob&);
  void (*pool)(const PoolJob&);
};
constexpr int kPeakChains = 12;

extern const KernelSet kPortableKernels;
#ifdef DNS_ONNX_X86
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
void csr_gemv_f32_avx2(const GemvJob& job, int64_t first, int64_t last);
void csr_lanes_f32_avx512(const LaneJob& job, int64_t group, float* sums);
void lrn_f32_avx2(const LrnJob& job);
void pool_f32_avx2(const PoolJob& job);
#endif
#ifdef DNS_ONNX_NEON
extern const KernelSet kNeonKernels;
#endif
void csr_gemv_f32_portable(const GemvJob& job, int64_t first, int64_t last);
void lrn_f32_portable(const LrnJob& job);
void pool_f32_portable(const PoolJob& job);

// The fastest set that this CPU runs; the environment variable DNS_ONNX_KERNELS names a lesser one.
const KernelSet& kernel_set();

}  // namespace dns_onnx
