#include "host.h"

namespace dns_onnx {
namespace {

void check(const abi::Api* api, abi::Status* status) {
  if (status == nullptr) return;
  std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Error(message);
}

Tensor view(const abi::Api* api, const abi::Value* value) {
  Tensor tensor;
  abi::TensorInfo* info = nullptr;
  check(api, api->GetTensorTypeAndShape(value, &info));
  struct Release {
    const abi::Api* api;
    abi::TensorInfo* info;
    ~Release() { api->ReleaseTensorInfo(info); }
  } release{api, info};
  size_t rank = 0, count = 0;
  check(api, api->GetDimensionsCount(info, &rank));
  tensor.dims.resize(rank);
  check(api, api->GetDimensions(info, tensor.dims.data(), rank));
  check(api, api->GetTensorShapeElementCount(info, &count));
  check(api, api->GetTensorElementType(info, &tensor.type));
  tensor.count = static_cast<int64_t>(count);
  void* data = nullptr;
  // the API has no const variant; the kernels never write through this pointer
  check(api, api->GetTensorMutableData(const_cast<abi::Value*>(value), &data));
  tensor.data = data;
  return tensor;
}

}  // namespace

std::string to_string(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(dims[i]);
  }
  return text + "]";
}

int64_t product(const std::string& where, const int64_t* dims, size_t rank) {
  constexpr int64_t kLimit = int64_t{1} << 62;
  int64_t total = 1;
  for (size_t i = 0; i < rank; ++i) {
    if (dims[i] < 0) {
      throw Error(where + ": expected dimensions of 0 or more, got " + std::to_string(dims[i]));
    }
    if (dims[i] != 0 && total > kLimit / dims[i]) {
      throw Error(where + ": expected fewer than 2^62 elements, got " +
                  to_string(std::vector<int64_t>(dims, dims + rank)));
    }
    total *= dims[i];
  }
  return total;
}

Node::Node(const abi::Api* api, const abi::KernelInfo* info, const char* op_type)
    : api_(api), info_(info), where_(op_type) {
  size_t size = 0;
  if (found(api_->KernelInfo_GetNodeName(info_, nullptr, &size)) && size > 1) {
    std::string name(size, '\0');
    check(api_, api_->KernelInfo_GetNodeName(info_, name.data(), &size));
    name.resize(size - 1);
    where_ += " '" + name + "'";
  }
}

bool Node::found(abi::Status* status) const {
  if (status == nullptr) return true;
  api_->ReleaseStatus(status);
  return false;
}

float Node::attribute(const char* name, float absent) const {
  float value = absent;
  return found(api_->KernelInfoGetAttribute_float(info_, name, &value)) ? value : absent;
}

int64_t Node::attribute(const char* name, int64_t absent) const {
  int64_t value = absent;
  return found(api_->KernelInfoGetAttribute_int64(info_, name, &value)) ? value : absent;
}

std::string Node::attribute(const char* name, const std::string& absent) const {
  size_t size = 0;
  if (!found(api_->KernelInfoGetAttribute_string(info_, name, nullptr, &size)) || size == 0) {
    return absent;
  }
  std::string value(size, '\0');
  check(api_, api_->KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size - 1);
  return value;
}

std::vector<int64_t> Node::attribute(const char* name, const std::vector<int64_t>& absent) const {
  size_t count = 0;
  if (!found(api_->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &count))) return absent;
  std::vector<int64_t> values(count);
  if (count != 0) {
    check(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, values.data(), &count));
  }
  return values;
}

Tensor Node::constant(size_t index) const {
  int is_constant = 0;
  const abi::Value* value = nullptr;
  if (!found(api_->KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value)))
    return {};
  return is_constant != 0 && value != nullptr ? view(api_, value) : Tensor{};
}

Tensor Run::input(size_t index) const {
  size_t count = 0;
  check(api_, api_->KernelContext_GetInputCount(context_, &count));
  if (index >= count) return {};
  const abi::Value* value = nullptr;
  check(api_, api_->KernelContext_GetInput(context_, index, &value));
  return value == nullptr ? Tensor{} : view(api_, value);
}

bool Run::has_input(size_t index) const {
  size_t count = 0;
  check(api_, api_->KernelContext_GetInputCount(context_, &count));
  if (index >= count) return false;
  const abi::Value* value = nullptr;
  check(api_, api_->KernelContext_GetInput(context_, index, &value));
  return value != nullptr;
}

float* Run::output(const std::vector<int64_t>& dims) {
  abi::Value* value = nullptr;
  check(api_, api_->KernelContext_GetOutput(context_, 0, dims.data(), dims.size(), &value));
  void* data = nullptr;
  check(api_, api_->GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

void Run::for_each(size_t count, void (*task)(void*, size_t), void* user) {
  if (count == 1) return task(user, 0);
  check(api_, api_->KernelContext_ParallelFor(context_, task, count, 0, user));
}

}  // namespace dns_onnx
