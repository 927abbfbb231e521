// Kernels for AVX2 with FMA: 8-float vectors, 16 registers.

#include <immintrin.h>

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "avx_f32.inc"
#include "tile_f32.inc"

const Tile kTiles[] = {DNS_ONNX_TILES_16(Avx)};
const Family kFamilies[] = {
    {8, 8, 0.5F, kTiles, sizeof kTiles / sizeof *kTiles, gather<Avx>, gather_windows<Avx>,
     scatter<Avx>, finish<Avx>}};

}  // namespace

const KernelSet kAvx2Kernels = {"avx2", kFamilies, 1,         csr_gemv_f32_avx2, 1.0F,
                                nullptr, 0.0F,     peak<Avx>, 8,                 lrn_f32_avx2,
                                pool_f32_avx2};

}  // namespace dns_onnx
