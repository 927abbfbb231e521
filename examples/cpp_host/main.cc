// Runs a pruned model in C++ with the sparse kernels, and without them.
//
//   cpp_host <libonnxruntime.so> <dns_onnx_ops.so> <model.onnx> <d0,d1,...> [runs]
//
// Opens ONNX Runtime by path and needs none of its headers: runtime/csrc/ort_abi.h declares the
// part of its C interface in use.  Feeds the model's one float input with ones of the given shape.
// Prints the median time of both sessions and how far their outputs are apart.

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace abi = dns_onnx::abi;

namespace {

const abi::Api* api = nullptr;

void check(abi::Status* status) {
  if (status == nullptr) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw std::runtime_error(message);
}

const abi::Api* open_runtime(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  using GetBase = const abi::ApiBase* (*)();
  auto* get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) throw std::runtime_error(std::string(path) + ": no OrtGetApiBase");
  std::printf("ONNX Runtime %s\n", get_base()->GetVersionString());
  const abi::Api* found = get_base()->GetApi(abi::kApiVersion);
  if (found == nullptr) throw std::runtime_error("ONNX Runtime 1.17 or later is needed");
  return found;
}

struct Result {
  double milliseconds = 0.0;
  std::vector<float> output;
};

// library: path of the sparse kernels, or null for stock ONNX Runtime.
Result run(const abi::Env* env, const char* model, const char* library,
           const std::vector<int64_t>& dims, int runs) {
  abi::SessionOptions* options = nullptr;
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  void* handle = nullptr;
  if (library != nullptr) check(api->RegisterCustomOpsLibrary(options, library, &handle));
  abi::Session* session = nullptr;
  check(api->CreateSession(env, model, options, &session));

  abi::Allocator* allocator = nullptr;
  char *input_name = nullptr, *output_name = nullptr;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  check(api->SessionGetInputName(session, 0, allocator, &input_name));
  check(api->SessionGetOutputName(session, 0, allocator, &output_name));

  size_t count = 1;
  for (const int64_t dim : dims) count *= static_cast<size_t>(dim);
  std::vector<float> data(count, 1.0F);
  abi::MemoryInfo* memory = nullptr;
  abi::Value* input = nullptr;
  check(api->CreateCpuMemoryInfo(abi::kArenaAllocator, abi::kMemoryDefault, &memory));
  check(api->CreateTensorWithDataAsOrtValue(memory, data.data(), count * sizeof(float), dims.data(),
                                            dims.size(), abi::kFloat, &input));
  Result result;
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    abi::Value* output = nullptr;
    const auto start = std::chrono::steady_clock::now();
    check(api->Run(session, nullptr, &input_name, &input, 1, &output_name, 1, &output));
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - start;
    times.push_back(spent.count());
    abi::TensorInfo* info = nullptr;
    size_t size = 0;
    void* values = nullptr;
    check(api->GetTensorTypeAndShape(output, &info));
    check(api->GetTensorShapeElementCount(info, &size));
    check(api->GetTensorMutableData(output, &values));
    result.output.assign(static_cast<float*>(values), static_cast<float*>(values) + size);
    api->ReleaseTensorInfo(info);
    api->ReleaseValue(output);
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  result.milliseconds = times[static_cast<size_t>(runs / 2)];

  check(api->AllocatorFree(allocator, input_name));
  check(api->AllocatorFree(allocator, output_name));
  api->ReleaseValue(input);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  return result;
}

std::vector<int64_t> parse_dims(const std::string& text) {
  std::vector<int64_t> dims;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) dims.push_back(std::stoll(part));
  return dims;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr,
                 "usage: %s <libonnxruntime.so> <dns_onnx_ops.so> <model.onnx> <d0,d1,...> "
                 "[runs]\n",
                 arguments[0]);
    return 2;
  }
  try {
    api = open_runtime(arguments[1]);
    abi::Env* env = nullptr;
    constexpr int kErrors = 3;
    check(api->CreateEnv(kErrors, "cpp_host", &env));
    const std::vector<int64_t> dims = parse_dims(arguments[4]);
    const int runs = count > 5 ? std::atoi(arguments[5]) : 21;
    const Result sparse = run(env, arguments[3], arguments[2], dims, runs);
    const Result stock = run(env, arguments[3], nullptr, dims, runs);
    float apart = 0.0F;
    for (size_t i = 0; i < sparse.output.size(); ++i) {
      apart = std::max(apart, std::fabs(sparse.output[i] - stock.output[i]));
    }
    std::printf("sparse kernels %.3f ms, stock %.3f ms, outputs at most %g apart\n",
                sparse.milliseconds, stock.milliseconds, static_cast<double>(apart));
    api->ReleaseEnv(env);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cpp_host: %s\n", error.what());
    return 1;
  }
  return 0;
}
