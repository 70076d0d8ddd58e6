#pragma once
// The runtime APIs of CUDA and HIP under one set of names, those of CUDA with "gpu" before them. Whoever
// includes it defines GRETA_API_CUDA, GRETA_API_HIP, or GRETA_API_FAKE (tests/gpu/fake_api.h) first.
#if defined(GRETA_API_CUDA)
#include <cuda_runtime_api.h>
#define GRETA_API(name) cuda##name
#elif defined(GRETA_API_HIP)
#include <hip/hip_runtime_api.h>
#define GRETA_API(name) hip##name
#elif defined(GRETA_API_FAKE)
#define GRETA_API(name) fake##name
#else
#error "define GRETA_API_CUDA, GRETA_API_HIP or GRETA_API_FAKE"
#endif

#if defined(GRETA_API_HIP)
#define gpuDeviceProp hipDeviceProp_t
#define gpuFreeHost hipHostFree
#define gpuHostAlloc hipHostMalloc
#define gpuHostAllocMapped hipHostMallocMapped
#define gpuHostAllocPortable hipHostMallocPortable
#else
#define gpuDeviceProp GRETA_API(DeviceProp)
#define gpuFreeHost GRETA_API(FreeHost)
#define gpuHostAlloc GRETA_API(HostAlloc)
#define gpuHostAllocMapped GRETA_API(HostAllocMapped)
#define gpuHostAllocPortable GRETA_API(HostAllocPortable)
#endif

#define gpuDriverGetVersion GRETA_API(DriverGetVersion)
#define gpuErrorInsufficientDriver GRETA_API(ErrorInsufficientDriver)
#define gpuErrorNoDevice GRETA_API(ErrorNoDevice)
#define gpuErrorOutOfMemory GRETA_API(ErrorMemoryAllocation)
#define gpuError_t GRETA_API(Error_t)
#define gpuEventCreateWithFlags GRETA_API(EventCreateWithFlags)
#define gpuEventDestroy GRETA_API(EventDestroy)
#define gpuEventDisableTiming GRETA_API(EventDisableTiming)
#define gpuEventRecord GRETA_API(EventRecord)
#define gpuEventSynchronize GRETA_API(EventSynchronize)
#define gpuEvent_t GRETA_API(Event_t)
#define gpuFree GRETA_API(Free)
#define gpuGetDeviceCount GRETA_API(GetDeviceCount)
#define gpuGetDeviceProperties GRETA_API(GetDeviceProperties)
#define gpuGetErrorName GRETA_API(GetErrorName)
#define gpuGetErrorString GRETA_API(GetErrorString)
#define gpuGetLastError GRETA_API(GetLastError)
#define gpuGraphDestroy GRETA_API(GraphDestroy)
#define gpuGraphExecDestroy GRETA_API(GraphExecDestroy)
#define gpuGraphExec_t GRETA_API(GraphExec_t)
#define gpuGraphInstantiateWithFlags GRETA_API(GraphInstantiateWithFlags)
#define gpuGraphLaunch GRETA_API(GraphLaunch)
#define gpuGraph_t GRETA_API(Graph_t)
#define gpuHostGetDevicePointer GRETA_API(HostGetDevicePointer)
#define gpuMalloc GRETA_API(Malloc)
#define gpuMemGetInfo GRETA_API(MemGetInfo)
#define gpuMemcpyAsync GRETA_API(MemcpyAsync)
#define gpuMemcpyDeviceToDevice GRETA_API(MemcpyDeviceToDevice)
#define gpuMemcpyDeviceToHost GRETA_API(MemcpyDeviceToHost)
#define gpuMemcpyHostToDevice GRETA_API(MemcpyHostToDevice)
#define gpuMemsetAsync GRETA_API(MemsetAsync)
#define gpuRuntimeGetVersion GRETA_API(RuntimeGetVersion)
#define gpuSetDevice GRETA_API(SetDevice)
#define gpuStreamBeginCapture GRETA_API(StreamBeginCapture)
#define gpuStreamCaptureModeThreadLocal GRETA_API(StreamCaptureModeThreadLocal)
#define gpuStreamCreateWithFlags GRETA_API(StreamCreateWithFlags)
#define gpuStreamDestroy GRETA_API(StreamDestroy)
#define gpuStreamEndCapture GRETA_API(StreamEndCapture)
#define gpuStreamNonBlocking GRETA_API(StreamNonBlocking)
#define gpuStreamSynchronize GRETA_API(StreamSynchronize)
#define gpuStream_t GRETA_API(Stream_t)
#define gpuSuccess GRETA_API(Success)

#define GRETA_API_SPELLED(name) #name
/// The API's own name of a call: "cudaMalloc".
#define GRETA_API_NAME(call) GRETA_API_SPELLED(call)
/// GRETA_CHECKED(gpuMemsetAsync, at, 0, bytes, stream): calls it and hands its status to check(status, name).
#define GRETA_CHECKED(call, ...) check(call(__VA_ARGS__), GRETA_API_NAME(call))
