// The slice of ONNX Runtime's C ABI that this library and the example host use.
//
// ONNX Runtime hands out one table of function pointers that only ever grows at its end, so a slot
// keeps its number for ever.  The tables below declare the slots in use and count over the rest;
// every slot number is asserted, and tests/runtime/test_abi.py runs them against released versions.
// Requested API version 17: ONNX Runtime 1.17 and everything after it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef _WIN32
#define DNS_ONNX_ORT_CALL __stdcall
#else
#define DNS_ONNX_ORT_CALL
#endif

namespace dns_onnx::abi {

constexpr uint32_t kApiVersion = 17;

// Opaque objects, owned by ONNX Runtime.
struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct RunOptions;
struct Value;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;
struct TensorInfo;  // element type and shape of one tensor
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;

#ifdef _WIN32
using PathChar = wchar_t;
#else
using PathChar = char;
#endif

enum ErrorCode : int {
  kOk = 0,
  kFail = 1,
  kInvalidArgument = 2,
};

// Numbered as in onnx.TensorProto.DataType.
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
};

enum Presence : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType : int { kMemoryDefault = 0 };
enum AllocatorType : int { kDeviceAllocator = 0, kArenaAllocator = 1 };

struct CustomOp;

// One row for each slot in use; `skip_a_b` stands for the unused slots a to b.
struct Api {
  Status*(DNS_ONNX_ORT_CALL* CreateStatus)(ErrorCode, const char* message);
  ErrorCode(DNS_ONNX_ORT_CALL* GetErrorCode)(const Status*);
  const char*(DNS_ONNX_ORT_CALL* GetErrorMessage)(const Status*);
  Status*(DNS_ONNX_ORT_CALL* CreateEnv)(int log_level, const char* log_id, Env**);
  void* skip_4_6[3];
  Status*(DNS_ONNX_ORT_CALL* CreateSession)(const Env*, const PathChar* model,
                                            const SessionOptions*, Session**);
  void* skip_8;
  Status*(DNS_ONNX_ORT_CALL* Run)(Session*, const RunOptions*, const char* const* input_names,
                                  const Value* const* inputs, size_t input_count,
                                  const char* const* output_names, size_t output_count,
                                  Value** outputs);
  Status*(DNS_ONNX_ORT_CALL* CreateSessionOptions)(SessionOptions**);
  void* skip_11_23[13];
  Status*(DNS_ONNX_ORT_CALL* SetIntraOpNumThreads)(SessionOptions*, int);
  void* skip_25;
  Status*(DNS_ONNX_ORT_CALL* CreateCustomOpDomain)(const char* domain, CustomOpDomain**);
  Status*(DNS_ONNX_ORT_CALL* CustomOpDomain_Add)(CustomOpDomain*, const CustomOp*);
  Status*(DNS_ONNX_ORT_CALL* AddCustomOpDomain)(SessionOptions*, CustomOpDomain*);
  Status*(DNS_ONNX_ORT_CALL* RegisterCustomOpsLibrary)(SessionOptions*, const char* path,
                                                       void** handle);
  Status*(DNS_ONNX_ORT_CALL* SessionGetInputCount)(const Session*, size_t*);
  Status*(DNS_ONNX_ORT_CALL* SessionGetOutputCount)(const Session*, size_t*);
  void* skip_32;
  Status*(DNS_ONNX_ORT_CALL* SessionGetInputTypeInfo)(const Session*, size_t, TypeInfo**);
  void* skip_34_35[2];
  Status*(DNS_ONNX_ORT_CALL* SessionGetInputName)(const Session*, size_t, Allocator*, char**);
  Status*(DNS_ONNX_ORT_CALL* SessionGetOutputName)(const Session*, size_t, Allocator*, char**);
  void* skip_38_48[11];
  Status*(DNS_ONNX_ORT_CALL* CreateTensorWithDataAsOrtValue)(const MemoryInfo*, void* data,
                                                             size_t bytes, const int64_t* dims,
                                                             size_t rank, ElementType, Value**);
  void* skip_50;
  Status*(DNS_ONNX_ORT_CALL* GetTensorMutableData)(Value*, void**);
  void* skip_52_54[3];
  Status*(DNS_ONNX_ORT_CALL* CastTypeInfoToTensorInfo)(const TypeInfo*, const TensorInfo**);
  void* skip_56_59[4];
  Status*(DNS_ONNX_ORT_CALL* GetTensorElementType)(const TensorInfo*, ElementType*);
  Status*(DNS_ONNX_ORT_CALL* GetDimensionsCount)(const TensorInfo*, size_t*);
  Status*(DNS_ONNX_ORT_CALL* GetDimensions)(const TensorInfo*, int64_t* dims, size_t rank);
  void* skip_63;
  Status*(DNS_ONNX_ORT_CALL* GetTensorShapeElementCount)(const TensorInfo*, size_t*);
  Status*(DNS_ONNX_ORT_CALL* GetTensorTypeAndShape)(const Value*, TensorInfo**);
  void* skip_66_68[3];
  Status*(DNS_ONNX_ORT_CALL* CreateCpuMemoryInfo)(AllocatorType, MemoryType, MemoryInfo**);
  void* skip_70_75[6];
  Status*(DNS_ONNX_ORT_CALL* AllocatorFree)(Allocator*, void*);
  void* skip_77;
  Status*(DNS_ONNX_ORT_CALL* GetAllocatorWithDefaultOptions)(Allocator**);
  void* skip_79_84[6];
  Status*(DNS_ONNX_ORT_CALL* KernelInfoGetAttribute_float)(const KernelInfo*, const char*, float*);
  Status*(DNS_ONNX_ORT_CALL* KernelInfoGetAttribute_int64)(const KernelInfo*, const char*,
                                                           int64_t*);
  Status*(DNS_ONNX_ORT_CALL* KernelInfoGetAttribute_string)(const KernelInfo*, const char*,
                                                            char* out, size_t* size);
  Status*(DNS_ONNX_ORT_CALL* KernelContext_GetInputCount)(const KernelContext*, size_t*);
  Status*(DNS_ONNX_ORT_CALL* KernelContext_GetOutputCount)(const KernelContext*, size_t*);
  Status*(DNS_ONNX_ORT_CALL* KernelContext_GetInput)(const KernelContext*, size_t, const Value**);
  Status*(DNS_ONNX_ORT_CALL* KernelContext_GetOutput)(KernelContext*, size_t, const int64_t* dims,
                                                      size_t rank, Value**);
  void(DNS_ONNX_ORT_CALL* ReleaseEnv)(Env*);
  void(DNS_ONNX_ORT_CALL* ReleaseStatus)(Status*);
  void(DNS_ONNX_ORT_CALL* ReleaseMemoryInfo)(MemoryInfo*);
  void(DNS_ONNX_ORT_CALL* ReleaseSession)(Session*);
  void(DNS_ONNX_ORT_CALL* ReleaseValue)(Value*);
  void* skip_97;
  void(DNS_ONNX_ORT_CALL* ReleaseTypeInfo)(TypeInfo*);
  void(DNS_ONNX_ORT_CALL* ReleaseTensorInfo)(TensorInfo*);
  void(DNS_ONNX_ORT_CALL* ReleaseSessionOptions)(SessionOptions*);
  void* skip_101_162[62];
  Status*(DNS_ONNX_ORT_CALL* KernelInfoGetAttributeArray_int64)(const KernelInfo*, const char*,
                                                                int64_t* out, size_t* count);
  void* skip_164_243[80];
  Status*(DNS_ONNX_ORT_CALL* KernelInfo_GetNodeName)(const KernelInfo*, char* out, size_t* size);
  void* skip_245_248[4];
  Status*(DNS_ONNX_ORT_CALL* KernelInfoGetConstantInput_tensor)(const KernelInfo*, size_t,
                                                                int* is_constant, const Value**);
  void* skip_250_273[24];
  Status*(DNS_ONNX_ORT_CALL* KernelContext_ParallelFor)(const KernelContext*,
                                                        void (*task)(void* user, size_t index),
                                                        size_t count, size_t batches, void* user);
};

struct ApiBase {
  const Api*(DNS_ONNX_ORT_CALL* GetApi)(uint32_t version);
  const char*(DNS_ONNX_ORT_CALL* GetVersionString)();
};

// What a plug-in tells ONNX Runtime about one operator.  ONNX Runtime reads the fields that existed
// in API version `version`, so those after GetEndVersion (API 18) need no declaration.
struct CustomOp {
  uint32_t version;
  void*(DNS_ONNX_ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(DNS_ONNX_ORT_CALL* GetName)(const CustomOp*);
  const char*(DNS_ONNX_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(DNS_ONNX_ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(DNS_ONNX_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(DNS_ONNX_ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(DNS_ONNX_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(DNS_ONNX_ORT_CALL* KernelCompute)(void* kernel, KernelContext*);
  void(DNS_ONNX_ORT_CALL* KernelDestroy)(void* kernel);
  Presence(DNS_ONNX_ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  Presence(DNS_ONNX_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType(DNS_ONNX_ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  int(DNS_ONNX_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(DNS_ONNX_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(DNS_ONNX_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(DNS_ONNX_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(DNS_ONNX_ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*,
                                             void** kernel);
  Status*(DNS_ONNX_ORT_CALL* KernelComputeV2)(void* kernel, KernelContext*);
  Status*(DNS_ONNX_ORT_CALL* InferOutputShape)(const CustomOp*, void* shape_context);
  int(DNS_ONNX_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(DNS_ONNX_ORT_CALL* GetEndVersion)(const CustomOp*);
};

#define DNS_ONNX_SLOT(name, slot) \
  static_assert(offsetof(Api, name) == (slot) * sizeof(void*), "ONNX Runtime API slot of " #name)
DNS_ONNX_SLOT(CreateStatus, 0);
DNS_ONNX_SLOT(CreateSession, 7);
DNS_ONNX_SLOT(Run, 9);
DNS_ONNX_SLOT(CreateSessionOptions, 10);
DNS_ONNX_SLOT(SetIntraOpNumThreads, 24);
DNS_ONNX_SLOT(CreateCustomOpDomain, 26);
DNS_ONNX_SLOT(RegisterCustomOpsLibrary, 29);
DNS_ONNX_SLOT(SessionGetInputTypeInfo, 33);
DNS_ONNX_SLOT(SessionGetInputName, 36);
DNS_ONNX_SLOT(CreateTensorWithDataAsOrtValue, 49);
DNS_ONNX_SLOT(GetTensorMutableData, 51);
DNS_ONNX_SLOT(CastTypeInfoToTensorInfo, 55);
DNS_ONNX_SLOT(GetTensorElementType, 60);
DNS_ONNX_SLOT(GetTensorShapeElementCount, 64);
DNS_ONNX_SLOT(GetTensorTypeAndShape, 65);
DNS_ONNX_SLOT(CreateCpuMemoryInfo, 69);
DNS_ONNX_SLOT(AllocatorFree, 76);
DNS_ONNX_SLOT(GetAllocatorWithDefaultOptions, 78);
DNS_ONNX_SLOT(KernelInfoGetAttribute_float, 85);
DNS_ONNX_SLOT(KernelContext_GetInput, 90);
DNS_ONNX_SLOT(ReleaseStatus, 93);
DNS_ONNX_SLOT(ReleaseTypeInfo, 98);
DNS_ONNX_SLOT(ReleaseSessionOptions, 100);
DNS_ONNX_SLOT(KernelInfoGetAttributeArray_int64, 163);
DNS_ONNX_SLOT(KernelInfo_GetNodeName, 244);
DNS_ONNX_SLOT(KernelInfoGetConstantInput_tensor, 249);
DNS_ONNX_SLOT(KernelContext_ParallelFor, 274);
#undef DNS_ONNX_SLOT

}  // namespace dns_onnx::abi
