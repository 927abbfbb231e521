// The library's one entry point: hands the operators to ONNX Runtime.

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/kernel_set.h"
#include "operators.h"

#ifdef _WIN32
#define DNS_ONNX_EXPORT __declspec(dllexport)
#else
#define DNS_ONNX_EXPORT __attribute__((visibility("default")))
#endif

namespace dns_onnx {
namespace {

using Make = std::unique_ptr<Kernel> (*)(const abi::Api*, const abi::KernelInfo*);

// First member, so that ONNX Runtime's pointer to it is a pointer to the whole.
struct Operator {
  abi::CustomOp table;
  const char* name;
  size_t inputs;
  Make make;
};

// values, and positions whose type may be any; row_ptr may be absent; shape; all after is optional.
// CsrConvConcat has so many operands again and again.
constexpr size_t kRowPtr = 3, kShape = 4, kOperands = 8;

const Operator& self(const abi::CustomOp* op) { return *reinterpret_cast<const Operator*>(op); }

// Runs `body` and turns what it throws into an ONNX Runtime status: no exception may cross the ABI.
template <typename Body>
abi::Status* guarded(const abi::Api* api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return api->CreateStatus(abi::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api->CreateStatus(abi::kFail, error.what());
  } catch (...) {
    return api->CreateStatus(abi::kFail, "dns_onnx: unknown failure in a sparse kernel");
  }
}

Operator make_operator(const char* name, size_t inputs, Make make) {
  Operator op{};
  op.name = name;
  op.inputs = inputs;
  op.make = make;
  abi::CustomOp& table = op.table;
  table.version = abi::kApiVersion;
  table.GetName = [](const abi::CustomOp* o) { return self(o).name; };
  table.GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return nullptr; };
  table.GetInputTypeCount = [](const abi::CustomOp* o) { return self(o).inputs; };
  // undefined stands for any type: one registration serves every type of values and indices
  table.GetInputType = [](const abi::CustomOp*, size_t i) {
    const size_t place = i % kOperands;
    if (place == kShape) return abi::kInt64;
    return place == 0 || place > kShape ? abi::kFloat : abi::kUndefined;
  };
  table.GetInputCharacteristic = [](const abi::CustomOp*, size_t i) {
    return i <= kShape && i != kRowPtr ? abi::kRequired : abi::kOptional;
  };
  table.GetInputMemoryType = [](const abi::CustomOp*, size_t) { return abi::kMemoryDefault; };
  table.GetOutputTypeCount = [](const abi::CustomOp*) -> size_t { return 1; };
  table.GetOutputType = [](const abi::CustomOp*, size_t) { return abi::kFloat; };
  table.GetOutputCharacteristic = [](const abi::CustomOp*, size_t) { return abi::kRequired; };
  table.GetVariadicInputMinArity = [](const abi::CustomOp*) { return 0; };
  table.GetVariadicInputHomogeneity = table.GetVariadicInputMinArity;
  table.GetVariadicOutputMinArity = table.GetVariadicInputMinArity;
  table.GetVariadicOutputHomogeneity = table.GetVariadicInputMinArity;
  table.GetStartVersion = [](const abi::CustomOp*) { return 1; };
  table.GetEndVersion = table.GetStartVersion;
  table.CreateKernelV2 = [](const abi::CustomOp* o, const abi::Api* api,
                            const abi::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = self(o).make(api, info).release(); });
  };
  table.KernelComputeV2 = [](void* kernel, abi::KernelContext* context) {
    const auto* made = static_cast<const Kernel*>(kernel);
    return guarded(made->api(), [&] {
      Run run(made->api(), context);
      made->compute(run);
    });
  };
  table.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = {make_operator("CsrGemm", 7, make_gemm),
                                            make_operator("CsrMatMul", 7, make_matmul),
                                            make_operator("CsrLeftMatMul", 5, make_left_matmul),
                                            make_operator("CsrConv", 8, make_conv),
                                            make_operator("CsrConvConcat", 32, make_conv_concat),
                                            make_operator("LRN", 1, make_lrn),
                                            make_operator("MaxPool", 1, make_max_pool)};
  return all;
}

// Adds the domain to `options`.  Sessions keep pointers to a domain, so each API table (one for
// each ONNX Runtime in the process) gets one domain that lives as long as the library.
abi::Status* add_domain(const abi::Api* api, abi::SessionOptions* options) {
  static std::mutex mutex;
  static std::vector<std::pair<const abi::Api*, abi::CustomOpDomain*>> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [owner, domain] : domains) {
    if (owner == api) return api->AddCustomOpDomain(options, domain);
  }
  abi::CustomOpDomain* domain = nullptr;
  if (abi::Status* status = api->CreateCustomOpDomain("dns_onnx", &domain)) return status;
  for (const Operator& op : operators()) {
    if (abi::Status* status = api->CustomOpDomain_Add(domain, &op.table)) return status;
  }
  domains.emplace_back(api, domain);
  return api->AddCustomOpDomain(options, domain);
}

}  // namespace
}  // namespace dns_onnx

extern "C" DNS_ONNX_EXPORT dns_onnx::abi::Status* DNS_ONNX_ORT_CALL
RegisterCustomOps(dns_onnx::abi::SessionOptions* options, const dns_onnx::abi::ApiBase* base) {
  using namespace dns_onnx;
  const abi::Api* api = base->GetApi(abi::kApiVersion);
  if (api == nullptr) {
    // CreateStatus is the first slot of every version
    return base->GetApi(1)->CreateStatus(
        abi::kFail, "dns_onnx: expected ONNX Runtime 1.17 or later; upgrade onnxruntime");
  }
  abi::Status* status = nullptr;
  abi::Status* failure = guarded(api, [&] { status = add_domain(api, options); });
  return failure != nullptr ? failure : status;
}

// Instruction set of the kernels that this CPU runs; see dns_onnx.runtime.library.kernel_set.
extern "C" DNS_ONNX_EXPORT const char* DnsOnnxKernelSet() { return dns_onnx::kernel_set().name; }

// Multiply-adds a second, in units of 10^9 floating point operations, that one thread reaches
// without touching memory; takes about 20 ms.
extern "C" DNS_ONNX_EXPORT double DnsOnnxPeakGflops() {
  using Clock = std::chrono::steady_clock;
  const dns_onnx::KernelSet& kernels = dns_onnx::kernel_set();
  constexpr int64_t kCount = 200000;
  const double operations =
      2.0 * static_cast<double>(kCount) * dns_onnx::kPeakChains * kernels.peak_lanes;
  double best = 0.0;
  volatile float keep = 0.0F;
  for (int round = 0; round < 20; ++round) {
    const Clock::time_point start = Clock::now();
    keep = kernels.peak(kCount);
    const std::chrono::duration<double> seconds = Clock::now() - start;
    best = std::max(best, operations / seconds.count() / 1e9);
  }
  static_cast<void>(keep);
  return best;
}
