#include "kernel_set.h"

#ifdef DNS_ONNX_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

namespace dns_onnx {
namespace {

const KernelSet* const kSets[] = {
#ifdef DNS_ONNX_X86
    &kAvx512Kernels,
    &kAvx2Kernels,
#endif
#ifdef DNS_ONNX_NEON
    &kNeonKernels,
#endif
    &kPortableKernels,
};

#ifdef DNS_ONNX_X86
// What the CPU has and the system saves.  Asked by hand, because on Windows the compiler's own
// question needs a runtime library that is not linked there.  Source: Intel SDM, CPUID and XGETBV.
struct Cpu {
  bool avx2 = false, avx512 = false;

  Cpu() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return;
    const bool fma = (c >> 12 & 1) != 0, saves = (c >> 27 & 1) != 0, avx = (c >> 28 & 1) != 0;
    if (!fma || !saves || !avx) return;
    unsigned saved = 0, high = 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    avx2 = (saved & 0x06) == 0x06 && (b >> 5 & 1) != 0;
    avx512 = avx2 && (saved & 0xE0) == 0xE0 && (b >> 16 & 1) != 0 && (b >> 31 & 1) != 0;
  }
};
#endif

bool runs_here(const KernelSet* set) {
#ifdef DNS_ONNX_X86
  static const Cpu cpu;
  if (set == &kAvx2Kernels) return cpu.avx2;
  if (set == &kAvx512Kernels) return cpu.avx512;
#endif
  return set != nullptr;
}

const KernelSet& choose() {
  const char* wanted = std::getenv("DNS_ONNX_KERNELS");
  const KernelSet* best = nullptr;
  for (const KernelSet* set : kSets) {
    if (!runs_here(set)) continue;
    if (best == nullptr) best = set;
    if (wanted != nullptr && std::strcmp(wanted, set->name) == 0) return *set;
  }
  return *best;
}

}  // namespace

const KernelSet& kernel_set() {
  static const KernelSet& chosen = choose();
  return chosen;
}

}  // namespace dns_onnx
