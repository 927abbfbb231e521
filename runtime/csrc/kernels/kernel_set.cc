#include "kernel_set.h"

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

bool runs_here(const KernelSet* set) {
#ifdef DNS_ONNX_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set == &kAvx2Kernels) return avx2;
  if (set == &kAvx512Kernels) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  }
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
