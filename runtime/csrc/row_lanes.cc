#include "row_lanes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

namespace dns_onnx {
namespace {

constexpr int64_t kWindowStep = 8;  // windows begin at multiples: fewer loads across cache lines

// From so many bytes of values on a matrix streams from beyond the near caches.  There half the
// bytes are worth more than the conversion.
constexpr size_t kFarBytes = 1 << 20;

// The entries of a row that are not placed yet.
struct Rest {
  int64_t next = 0, end = 0;
};

void place(const Csr& weights, int64_t window, Rest& rest, int8_t& place, float& value) {
  if (rest.next == rest.end) return;
  const int64_t column = weights.columns[static_cast<size_t>(rest.next)] - window;
  if (column >= kWindow) return;
  place = static_cast<int8_t>(column < kWindow / 2 ? column : column - kWindow / 2 + kUpperHalf);
  value = weights.values[static_cast<size_t>(rest.next++)];
}

// Places all entries of a group; false once there are more than `most` steps.
bool place_group(const Csr& weights, Rest* rests, int64_t most, RowLanes& lanes) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  for (;;) {
    int64_t first = kNone;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (rests[lane].next == rests[lane].end) continue;
      first = std::min<int64_t>(first, weights.columns[static_cast<size_t>(rests[lane].next)]);
    }
    if (first == kNone) break;
    const int64_t window = std::min(first / kWindowStep * kWindowStep, weights.width - kWindow);
    lanes.windows.push_back(static_cast<uint32_t>(window));
    if (static_cast<int64_t>(lanes.windows.size()) > most) return false;
    for (int turn = 0; turn < kTurns; ++turn) {
      LanePlaces places = {};
      LaneValues values = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        place(weights, window, rests[lane], places.of[lane], values.of[lane]);
      }
      lanes.places.push_back(places);
      lanes.values.push_back(values);
    }
  }
  lanes.steps.push_back(static_cast<int64_t>(lanes.windows.size()));
  return true;
}

std::vector<uint32_t> longest_first(const Csr& weights) {
  std::vector<uint32_t> rows(static_cast<size_t>(weights.rows));
  std::iota(rows.begin(), rows.end(), 0U);
  std::stable_sort(rows.begin(), rows.end(), [&](uint32_t a, uint32_t b) {
    return weights.row_ptr[a + 1] - weights.row_ptr[a] > weights.row_ptr[b + 1] - weights.row_ptr[b];
  });
  return rows;
}

// The bits of the float16 that equals `value`, if there is one.
std::optional<uint16_t> exact_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  if (exponent >= -14 && exponent <= 15) {
    if ((magnitude & 0x1FFF) != 0) return std::nullopt;
    return static_cast<uint16_t>(sign | ((magnitude >> 13) - (112U << 10)));
  }
  const float tiny = std::fabs(value) * 0x1p24F;  // subnormal ones are multiples of 2^-24
  if (!(tiny < 1024.0F) || tiny != std::floor(tiny)) return std::nullopt;
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(tiny));
}

void halve(RowLanes& lanes) {
  std::vector<LaneHalves> halves(lanes.values.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::optional<uint16_t> half = exact_half(lanes.values[i].of[lane]);
      if (!half) return;
      halves[i].of[lane] = *half;
    }
  }
  lanes.halves = std::move(halves);
  lanes.values = {};
}

}  // namespace

RowLanes row_lanes(const Csr& weights, int64_t most) {
  if (weights.width < kWindow) return {};
  RowLanes lanes;
  lanes.rows = longest_first(weights);
  lanes.steps.push_back(0);
  for (int64_t first = 0; first < weights.rows; first += kLanes) {
    Rest rests[kLanes];
    for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, weights.rows - first); ++lane) {
      const uint32_t row = lanes.rows[static_cast<size_t>(first + lane)];
      rests[lane] = {weights.row_ptr[row], weights.row_ptr[row + 1]};
    }
    if (!place_group(weights, rests, most, lanes)) return {};
  }
  if (lanes.values.size() * sizeof(LaneValues) >= kFarBytes) halve(lanes);
  return lanes;
}

}  // namespace dns_onnx
