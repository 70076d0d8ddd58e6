#pragma once
// A runtime API with CUDA's names and rules, on the host, for tests of api_device.inl without a GPU. It is
// the worst device that the rules allow: nothing on a stream happens before something waits for it. Memory is
// checked; copies from and to the host must be of pinned memory. One device's worth of everything.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

enum fakeError_t {
  fakeSuccess = 0,
  fakeErrorInvalidValue = 1,
  fakeErrorMemoryAllocation = 2,
  fakeErrorInsufficientDriver = 35,
  fakeErrorNoDevice = 100,
  fakeErrorInvalidResourceHandle = 400,
  fakeErrorIllegalAddress = 700,
  fakeErrorStreamCaptureUnsupported = 900,
};
enum { fakeEventDisableTiming = 2, fakeStreamNonBlocking = 1 };
enum { fakeHostAllocPortable = 1, fakeHostAllocMapped = 2 };
enum fakeMemcpyKind { fakeMemcpyHostToDevice, fakeMemcpyDeviceToHost, fakeMemcpyDeviceToDevice };
enum { fakeStreamCaptureModeThreadLocal = 1 };

struct fakeDeviceProp {
  char name[64];
  size_t totalGlobalMem;
  int major;
  int multiProcessorCount;
};

using FakeWork = std::function<void()>;
struct FakeGraph {
  std::vector<FakeWork> work;
};
struct FakeStream {
  int device = 0;
  std::vector<FakeWork> work;
  size_t done = 0;
  std::unique_ptr<FakeGraph> recording;
};
struct FakeEvent {
  FakeStream* stream = nullptr;
  size_t place = 0;
};
using fakeStream_t = FakeStream*;
using fakeEvent_t = FakeEvent*;
using fakeGraph_t = FakeGraph*;
using fakeGraphExec_t = FakeGraph*;

struct FakeMachine {
  std::vector<FakeStream*> streams;
  fakeError_t count_status = fakeSuccess;
  int devices = 1;
  int driver = 13000;
  int runtime = 13000;
  int major = 9;
  size_t total = size_t{256} << 20;
  std::map<std::byte*, size_t> device_memory;
  std::map<std::byte*, size_t> pinned;
  int live = 0;  ///< streams, events, graphs that were not destroyed
  size_t device_bytes = 0;
  fakeError_t sticky = fakeSuccess;
  fakeError_t last = fakeSuccess;
  fakeError_t next_malloc = fakeSuccess;  ///< what the next one ends with
  std::vector<int> current;               ///< devices that were made current
};
inline FakeMachine fake;
inline thread_local int fake_current = 0;  ///< the thread's device

inline fakeError_t fake_status(fakeError_t status) {
  if (fake.sticky != fakeSuccess) status = fake.sticky;
  if (status != fakeSuccess) fake.last = status;
  return status;
}
inline bool fake_within(const std::map<std::byte*, size_t>& memory, const void* at, size_t bytes) {
  const auto* begin = static_cast<const std::byte*>(at);
  for (const auto& [start, size] : memory)
    if (begin >= start && begin + bytes <= start + size) return true;
  return false;
}
inline bool fake_device(const void* at, size_t n) {
  return fake_within(fake.device_memory, at, n) || fake_within(fake.pinned, at, n);
}
inline fakeError_t fake_put(FakeStream* stream, FakeWork work) {
  (stream->recording ? stream->recording->work : stream->work).push_back(std::move(work));
  return fake_status(fakeSuccess);
}
/// What a launch of a kernel does: on a stream of the thread's device alone.
inline fakeError_t fake_kernel(void* stream, FakeWork work) {
  auto* on = static_cast<FakeStream*>(stream);
  if (on->device != fake_current) return fake_status(fakeErrorInvalidResourceHandle);
  return fake_put(on, std::move(work));
}
inline void fake_run(FakeStream* stream, size_t place) {
  for (; stream->done < place; ++stream->done) {
    const FakeWork work = std::move(stream->work[stream->done]);
    if (fake.sticky == fakeSuccess) work();
  }
}

inline const char* fakeGetErrorString(fakeError_t status) {
  return status == fakeErrorIllegalAddress ? "an illegal address" : "a refusal";
}
inline const char* fakeGetErrorName(fakeError_t status) {
  return status == fakeErrorIllegalAddress ? "fakeErrorIllegalAddress" : "fakeErrorOther";
}
inline fakeError_t fakeGetLastError() {
  const fakeError_t last = fake.last;
  fake.last = fake.sticky;
  return last;
}
inline fakeError_t fakeGetDeviceCount(int* count) {
  *count = fake.count_status == fakeSuccess ? fake.devices : 0;
  return fake_status(fake.count_status);
}
inline fakeError_t fakeDriverGetVersion(int* version) {
  *version = fake.driver;
  return fakeSuccess;
}
inline fakeError_t fakeRuntimeGetVersion(int* version) {
  *version = fake.runtime;
  return fakeSuccess;
}
inline fakeError_t fakeGetDeviceProperties(fakeDeviceProp* properties, int) {
  *properties = {"Fake", fake.total, fake.major, 7};
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeSetDevice(int index) {
  fake.current.push_back(index);
  fake_current = index;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeMemGetInfo(size_t* free, size_t* total) {
  *total = fake.total;
  *free = fake.total - fake.device_bytes;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeMalloc(void** memory, size_t bytes) {
  if (fake.next_malloc != fakeSuccess) return fake_status(std::exchange(fake.next_malloc, fakeSuccess));
  if (bytes > fake.total - fake.device_bytes) return fake_status(fakeErrorMemoryAllocation);
  auto* data = new std::byte[bytes];
  std::memset(data, 0xa5, bytes);
  fake.device_memory[data] = bytes;
  fake.device_bytes += bytes;
  *memory = data;
  return fake_status(fakeSuccess);
}
/// Waits for the whole device, as CUDA's does.
inline fakeError_t fakeFree(void* memory) {
  for (FakeStream* stream : fake.streams) fake_run(stream, stream->work.size());
  const auto found = fake.device_memory.find(static_cast<std::byte*>(memory));
  if (found == fake.device_memory.end()) return fake_status(fakeErrorInvalidValue);
  fake.device_bytes -= found->second;
  delete[] found->first;
  fake.device_memory.erase(found);
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeHostAlloc(void** memory, size_t bytes, unsigned) {
  auto* data = new std::byte[bytes];
  fake.pinned[data] = bytes;
  *memory = data;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeFreeHost(void* memory) {
  if (fake.pinned.erase(static_cast<std::byte*>(memory)) == 0) return fake_status(fakeErrorInvalidValue);
  delete[] static_cast<std::byte*>(memory);
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeHostGetDevicePointer(void** seen, void* memory, unsigned) {
  *seen = memory;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeMemcpyAsync(void* to, const void* from, size_t n, fakeMemcpyKind kind, FakeStream* s) {
  const bool out = kind == fakeMemcpyDeviceToHost, in = kind == fakeMemcpyHostToDevice;
  if (!(out ? fake_within(fake.pinned, to, n) : fake_device(to, n)) ||
      !(in ? fake_within(fake.pinned, from, n) : fake_device(from, n)))
    return fake_status(fakeErrorInvalidValue);
  return fake_put(s, [=] { std::memmove(to, from, n); });
}
inline fakeError_t fakeMemsetAsync(void* at, int value, size_t n, FakeStream* stream) {
  if (!fake_device(at, n)) return fake_status(fakeErrorInvalidValue);
  return fake_put(stream, [=] { std::memset(at, value, n); });
}
inline fakeError_t fakeStreamCreateWithFlags(FakeStream** stream, unsigned) {
  *stream = new FakeStream;
  (*stream)->device = fake_current;
  fake.streams.push_back(*stream);
  ++fake.live;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeStreamDestroy(FakeStream* stream) {
  std::erase(fake.streams, stream);
  --fake.live;
  delete stream;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeStreamSynchronize(FakeStream* stream) {
  if (stream->recording) return fake_status(fakeErrorStreamCaptureUnsupported);
  fake_run(stream, stream->work.size());
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeEventCreateWithFlags(FakeEvent** event, unsigned) {
  *event = new FakeEvent;
  ++fake.live;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeEventDestroy(FakeEvent* event) {
  --fake.live;
  delete event;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeEventRecord(FakeEvent* event, FakeStream* stream) {
  *event = {stream, stream->work.size()};
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeEventSynchronize(FakeEvent* event) {
  if (event->stream != nullptr) fake_run(event->stream, event->place);
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeStreamBeginCapture(FakeStream* stream, int) {
  stream->recording = std::make_unique<FakeGraph>();
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeStreamEndCapture(FakeStream* stream, FakeGraph** graph) {
  *graph = stream->recording.release();
  ++fake.live;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeGraphInstantiateWithFlags(FakeGraph** exec, FakeGraph* graph, unsigned long long) {
  *exec = new FakeGraph(*graph);
  ++fake.live;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeGraphDestroy(FakeGraph* graph) {
  --fake.live;
  delete graph;
  return fake_status(fakeSuccess);
}
inline fakeError_t fakeGraphExecDestroy(FakeGraph* exec) { return fakeGraphDestroy(exec); }
inline fakeError_t fakeGraphLaunch(FakeGraph* exec, FakeStream* stream) {
  for (const FakeWork& work : exec->work) fake_put(stream, work);
  return fake_status(fakeSuccess);
}
