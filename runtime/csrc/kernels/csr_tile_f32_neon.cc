// Kernels for 64-bit ARM: 4-float vectors, 32 registers, fused multiply-add.

#include <arm_neon.h>

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "tile_f32.inc"

struct Neon : PlainSquare<Neon>, WholeVectors {
  using PlainSquare<Neon>::kLanes;
  using Register = float32x4_t;
  static constexpr bool kOneLoad = false;
  using Square = Neon;
  static Register zero() { return vdupq_n_f32(0.0F); }
  static Register broadcast(const float* p) { return vld1q_dup_f32(p); }
  static Register load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Register r) { vst1q_f32(p, r); }
  static Register add(Register a, Register b) { return vaddq_f32(a, b); }
  static Register min(Register a, Register b) { return vminq_f32(a, b); }
  static Register max(Register a, Register b) { return vmaxq_f32(a, b); }
  static Register fma(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
};

const Tile kTiles[] = {DNS_ONNX_TILES_32(Neon)};
const Family kFamilies[] = {
    {4, 4, 0.5F, kTiles, sizeof kTiles / sizeof *kTiles, gather<Neon>, gather_windows<Neon>,
     scatter<Neon>, finish<Neon>}};

}  // namespace

const KernelSet kNeonKernels = {"neon", kFamilies, 1,          csr_gemv_f32_portable, 1.5F,
                                nullptr, 0.0F,     peak<Neon>, 4,                     lrn_f32_portable,
                                pool_f32_portable};

}  // namespace dns_onnx
