// Kernels for AVX-512 (F and VL): 32 registers of 8 floats, and of 16.

#include <immintrin.h>

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "avx_f32.inc"
#include "tile_f32.inc"

struct Avx512 : Avx {
  static constexpr int kLanes = 16;
  using Register = __m512;
  static Register zero() { return _mm512_setzero_ps(); }
  static Register broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Register broadcast_bits(uint32_t b) { return _mm512_castsi512_ps(_mm512_set1_epi32(b)); }
  static Register load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Register r) { _mm512_storeu_ps(p, r); }
  static Register min(Register a, Register b) { return _mm512_min_ps(a, b); }
  static Register max(Register a, Register b) { return _mm512_max_ps(a, b); }
  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }

  using Lanes = __m512i;
  static Lanes lanes(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Register pick(Register r, Lanes lanes) {
    const __mmask16 named = _mm512_cmpge_epi32_mask(lanes, _mm512_setzero_si512());
    return _mm512_maskz_permutexvar_ps(named, lanes, r);
  }

  using Mask = __mmask16;
  static Mask mask(int count) { return static_cast<Mask>((1U << count) - 1U); }
  static Register load_some(const float* p, Mask mask) { return _mm512_maskz_loadu_ps(mask, p); }
  static void store_some(float* p, Mask mask, Register r) { _mm512_mask_storeu_ps(p, mask, r); }
};

const Tile kTiles8[] = {DNS_ONNX_TILES_32(Avx)};
const Tile kTiles16[] = {DNS_ONNX_TILES_32(Avx512)};
const Family kFamilies[] = {
    {8, 8, 0.5F, kTiles8, sizeof kTiles8 / sizeof *kTiles8, gather<Avx>, gather_windows<Avx>,
     scatter<Avx>, finish<Avx>},
    {16, 8, 1.0F, kTiles16, sizeof kTiles16 / sizeof *kTiles16, gather<Avx512>,
     gather_windows<Avx512>, scatter<Avx512>, finish<Avx512>}};

}  // namespace

const KernelSet kAvx512Kernels = {
    "avx512", kFamilies, 2, csr_gemv_f32_avx2, 1.0F, csr_lanes_f32_avx512, 12.5F, peak<Avx512>, 16,
    lrn_f32_avx2, pool_f32_avx2};

}  // namespace dns_onnx
