#include "draw.h"
#include "node.h"

#include <algorithm>

namespace dns_onnx::fuzz {
namespace {

constexpr int64_t kMostOutputs = 1 << 20;  // where memory "runs out"

const FakeNode& node(const void* opaque) { return *static_cast<const FakeNode*>(opaque); }
Held& held(const void* opaque) { return *static_cast<Held*>(const_cast<void*>(opaque)); }

abi::Status* refuse(const char* why) {
  return reinterpret_cast<abi::Status*>(new std::string(why));
}

template <typename Map, typename Value>
abi::Status* find(const Map& map, const char* name, Value* out) {
  const auto found = map.find(name);
  if (found == map.end()) return refuse("no such attribute");
  *out = found->second;
  return nullptr;
}

abi::Api make_api() {
  abi::Api api{};
  api.GetErrorMessage = [](const abi::Status* status) {
    return reinterpret_cast<const std::string*>(status)->c_str();
  };
  api.ReleaseStatus = [](abi::Status* status) { delete reinterpret_cast<std::string*>(status); };
  api.KernelInfo_GetNodeName = [](const abi::KernelInfo*, char*, size_t* size) -> abi::Status* {
    *size = 1;
    return nullptr;
  };
  api.KernelInfoGetAttribute_int64 = [](const abi::KernelInfo* info, const char* name,
                                        int64_t* out) {
    return find(node(info).integers, name, out);
  };
  api.KernelInfoGetAttribute_float = [](const abi::KernelInfo* info, const char* name,
                                        float* out) { return find(node(info).numbers, name, out); };
  api.KernelInfoGetAttribute_string = [](const abi::KernelInfo*, const char*, char*, size_t*) {
    return refuse("no such attribute");
  };
  api.KernelInfoGetAttributeArray_int64 = [](const abi::KernelInfo* info, const char* name,
                                             int64_t* out, size_t* count) -> abi::Status* {
    const auto found = node(info).lists.find(name);
    if (found == node(info).lists.end()) return refuse("no such attribute");
    if (out != nullptr) std::copy_n(found->second.begin(), *count, out);
    *count = found->second.size();
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const abi::KernelInfo* info, size_t index,
                                             int* constant, const abi::Value** out)
      -> abi::Status* {
    const std::vector<Held>& inputs = node(info).inputs;
    *constant = index < inputs.size() && inputs[index].type != abi::kUndefined ? 1 : 0;
    if (*constant != 0) *out = reinterpret_cast<const abi::Value*>(&inputs[index]);
    return nullptr;
  };
  api.KernelContext_GetInputCount = [](const abi::KernelContext* context,
                                       size_t* count) -> abi::Status* {
    *count = node(context).inputs.size();
    return nullptr;
  };
  api.KernelContext_GetInput = [](const abi::KernelContext* context, size_t index,
                                  const abi::Value** out) -> abi::Status* {
    const Held& input = node(context).inputs[index];
    const bool there = input.type != abi::kUndefined;
    *out = there ? reinterpret_cast<const abi::Value*>(&input) : nullptr;
    return nullptr;
  };
  api.KernelContext_GetOutput = [](abi::KernelContext* context, size_t, const int64_t* dims,
                                   size_t rank, abi::Value** out) -> abi::Status* {
    Held& output = reinterpret_cast<FakeNode*>(context)->output;
    const int64_t count = product("fuzz", dims, rank);
    if (count > kMostOutputs) return refuse("out of memory");
    output = Held::of(std::vector<int64_t>(dims, dims + rank),
                      std::vector<float>(static_cast<size_t>(count), kUnwritten));
    *out = reinterpret_cast<abi::Value*>(&output);
    return nullptr;
  };
  api.KernelContext_ParallelFor = [](const abi::KernelContext* context,
                                     void (*task)(void*, size_t), size_t count, size_t,
                                     void* user) -> abi::Status* {
    auto each = [&](size_t index) { task(user, index); };
    node(context).parallel->run(count, each);
    return nullptr;
  };
  // a tensor is its own type
  api.GetTensorTypeAndShape = [](const abi::Value* value, abi::TensorInfo** out) -> abi::Status* {
    *out = reinterpret_cast<abi::TensorInfo*>(const_cast<abi::Value*>(value));
    return nullptr;
  };
  api.ReleaseTensorInfo = [](abi::TensorInfo*) {};
  api.GetDimensionsCount = [](const abi::TensorInfo* info, size_t* out) -> abi::Status* {
    *out = held(info).dims.size();
    return nullptr;
  };
  api.GetDimensions = [](const abi::TensorInfo* info, int64_t* out, size_t) -> abi::Status* {
    std::copy(held(info).dims.begin(), held(info).dims.end(), out);
    return nullptr;
  };
  api.GetTensorShapeElementCount = [](const abi::TensorInfo* info, size_t* out) -> abi::Status* {
    *out = std::max(held(info).floats.size(), held(info).integers.size());
    return nullptr;
  };
  api.GetTensorElementType = [](const abi::TensorInfo* info,
                                abi::ElementType* out) -> abi::Status* {
    *out = held(info).type;
    return nullptr;
  };
  api.GetTensorMutableData = [](abi::Value* value, void** out) -> abi::Status* {
    Held& tensor = held(value);
    *out = tensor.type == abi::kFloat ? static_cast<void*>(tensor.floats.data())
                                      : static_cast<void*>(tensor.integers.data());
    return nullptr;
  };
  return api;
}

}  // namespace

Held Held::of(std::vector<int64_t> dims, std::vector<float> values) {
  return {abi::kFloat, std::move(dims), std::move(values), {}};
}

Held Held::of(std::vector<int64_t> values) {
  const auto count = static_cast<int64_t>(values.size());
  return {abi::kInt64, {count}, {}, std::move(values)};
}

const abi::Api* FakeNode::api() const {
  static const abi::Api api = make_api();
  return &api;
}

}  // namespace dns_onnx::fuzz
