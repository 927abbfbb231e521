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
  static Register load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Register r) { _mm512_store_ps(p, r); }
  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
};

const Tile kTiles8[] = {DNS_ONNX_TILES_32(Avx)};
const Tile kTiles16[] = {DNS_ONNX_TILES_32(Avx512)};
const Family kFamilies[] = {
    {8, 0.5F, kTiles8, sizeof kTiles8 / sizeof *kTiles8, gather<Avx>, scatter<Avx>},
    {16, 1.0F, kTiles16, sizeof kTiles16 / sizeof *kTiles16, gather<Avx512>, scatter<Avx512>}};

}  // namespace

const KernelSet kAvx512Kernels = {"avx512", kFamilies,    2, csr_gemv_f32_avx2,
                                  1.0F,     peak<Avx512>, 16};

}  // namespace dns_onnx
