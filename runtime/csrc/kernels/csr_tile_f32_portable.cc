// Kernels in plain C++: 4-float vectors that any compiler maps to what the CPU has.

#include "kernel_set.h"

namespace dns_onnx {
namespace {

#include "tile_f32.inc"

struct Vector4 : PlainSquare<Vector4>, WholeVectors {
  using PlainSquare<Vector4>::kLanes;
  typedef float Register __attribute__((vector_size(16)));
  static constexpr bool kOneLoad = false;
  using Square = Vector4;
  static Register zero() { return Register{}; }
  static Register broadcast(const float* p) { return Register{*p, *p, *p, *p}; }
  static Register load(const float* p) {
    Register r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
  static void store(float* p, Register r) { __builtin_memcpy(p, &r, sizeof r); }
  static Register min(Register a, Register b) { return a < b ? a : b; }  // b where NaN
  static Register max(Register a, Register b) { return a > b ? a : b; }
  static Register add(Register a, Register b) { return a + b; }
  static Register fma(Register a, Register b, Register c) { return a * b + c; }
};

const Tile kTiles[] = {DNS_ONNX_TILES_16(Vector4)};
const Family kFamilies[] = {
    {4, 4, 1.0F, kTiles, sizeof kTiles / sizeof *kTiles, gather<Vector4>, gather_windows<Vector4>,
     scatter<Vector4>, finish<Vector4>}};

}  // namespace

const KernelSet kPortableKernels = {
    "portable", kFamilies, 1,             csr_gemv_f32_portable, 2.0F,
    nullptr,    0.0F,      peak<Vector4>, 4,                     lrn_f32_portable,
    pool_f32_portable};

}  // namespace dns_onnx
