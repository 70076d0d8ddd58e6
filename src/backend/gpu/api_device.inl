// The Device of device.h on the runtime API of api.h: one source, compiled for CUDA (cuda/cuda_device.cpp)
// and for HIP (hip/hip_device.cpp). The includer has defined, in namespace greta::gpu::GRETA_GPU_TARGET:
// kTarget, kNoDriver, version_shown(), driver_version(), architecture(), lacks_kernels().
//
// A device is used by one thread at a time. Calls of the API act on the thread's current device: every
// function here makes its own the current one first, stream() too.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "backend/gpu/api.h"
#include "backend/gpu/kernels/launchers.h"
#include "backend/gpu/targets.h"
#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

// ---- errors
// ---------------------------------------------------------------------------------------------------

/// The device that this thread called last: whose kernels a fault is about.
thread_local const Device* current = nullptr;

/// Whether a status tells of what a kernel did earlier (the same numbers in both APIs; HIP has names for
/// some): an uncorrectable memory error, illegal address, launch timeout, assertion, hardware stack, illegal
/// instruction, misaligned address, invalid address space, invalid program counter, launch failure, unknown.
bool is_fault(gpuError_t status) {
  constexpr std::array kFaults = {214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999};
  return std::find(kFaults.begin(), kFaults.end(), static_cast<int>(status)) != kFaults.end();
}

std::string said(gpuError_t status) {
  return fmt::format("{} ({})", gpuGetErrorString(status), gpuGetErrorName(status));
}

/// Errors: the call and the API's words; of a fault, what was running.
void check(gpuError_t status, const char* call) {
  if (status == gpuSuccess) return;
  (void)gpuGetLastError();  // else the next launch would be told of it
  const std::string name = current == nullptr ? kTarget : current->name();
  if (!is_fault(status)) fail("{}: {}: {}", name, call, said(status));
  const bool known = current != nullptr && current->running;
  fail("{}: {}; running: {}; noticed by {}", name, said(status), known ? current->running() : "unknown",
       call);
}

std::string megabytes(uint64_t bytes) { return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6); }

// ---- pinned host memory
// ---------------------------------------------------------------------------------------

constexpr size_t kSlotBytes = size_t{8} << 20;    ///< of the way to the device; 5 ms to pin on an H200's host
constexpr size_t kBounceBytes = size_t{4} << 20;  ///< of the way back
constexpr size_t kPieceAlignment = 256;           ///< of small uploads that share a slot
constexpr size_t kLentBytes = size_t{4} << 20;    ///< that the host reads where they come
constexpr size_t kThreadedWrite = size_t{1} << 20;  ///< from so many bytes on, several threads write
constexpr int64_t kThreadedGrain = int64_t{256} << 10;
/// One thread reads 6 GB/s from a file in the page cache into pinned memory, 12 read 55: the bus's rate
/// (H200).
constexpr int kMostWriters = 16;

/// Host memory that the device copies from or to by itself, and the moment when it is done with it.
class Slot {
 public:
  Slot() = default;
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  ~Slot() {
    if (done_ != nullptr) (void)gpuEventDestroy(done_);
    if (data_ != nullptr) (void)gpuFreeHost(data_);
  }

  /// To be written anew: made on the first call; waits until the device is done with it.
  std::byte* ready(size_t bytes) {
    if (data_ == nullptr) {
      GRETA_CHECKED(gpuEventCreateWithFlags, &done_, gpuEventDisableTiming);
      void* data = nullptr;
      GRETA_CHECKED(gpuHostAlloc, &data, bytes, gpuHostAllocPortable);
      data_ = static_cast<std::byte*>(data);
    }
    wait();
    return data_;
  }
  std::byte* data() const { return data_; }
  /// Everything that was put on the stream so far is what the device does with it.
  void hand_over(gpuStream_t stream) {
    GRETA_CHECKED(gpuEventRecord, done_, stream);
    in_flight_ = true;
  }
  void wait() {
    if (in_flight_) GRETA_CHECKED(gpuEventSynchronize, done_);
    in_flight_ = false;
  }

 private:
  std::byte* data_ = nullptr;
  gpuEvent_t done_ = nullptr;
  bool in_flight_ = false;
};

/// The way to the device. Uploads fill a slot one after another; the device is told of each at once, and only
/// a slot that comes round again is waited for.
class Staging {
 public:
  explicit Staging(gpuStream_t stream) : stream_(stream) {}

  void upload(std::byte* to, size_t bytes, const Device::Write& write) {
    for (size_t done = 0; done < bytes;) {
      if (used_ >= kSlotBytes) next();
      std::byte* at = data() + used_;
      const size_t n = std::min(bytes - done, kSlotBytes - used_);
      fill(at, done, n, write);
      GRETA_CHECKED(gpuMemcpyAsync, to + done, at, n, gpuMemcpyHostToDevice, stream_);
      used_ += (n + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
      done += n;
    }
  }

 private:
  std::byte* data() {
    Slot& slot = slots_[slot_];
    return slot.data() == nullptr ? slot.ready(kSlotBytes) : slot.data();
  }
  void next() {
    slots_[slot_].hand_over(stream_);
    slot_ = (slot_ + 1) % slots_.size();
    slots_[slot_].ready(kSlotBytes);
    used_ = 0;
  }
  void fill(std::byte* to, size_t first, size_t bytes, const Device::Write& write) {
    if (bytes < kThreadedWrite) {
      write(to, first, bytes);
      return;
    }
    if (!threads_) threads_ = std::make_unique<ThreadPool>(std::min(kMostWriters, usable_cpus()));
    threads_->parallel_for(static_cast<int64_t>(bytes), kThreadedGrain, [&](int64_t begin, int64_t end, int) {
      write(to + begin, first + static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    });
  }

  gpuStream_t stream_;
  std::array<Slot, 4> slots_;
  size_t slot_ = 0;
  size_t used_ = 0;  ///< of the slot being filled
  std::unique_ptr<ThreadPool> threads_;
};

/// The way back: the device fills one slot while the host empties the other.
class Bounce {
 public:
  explicit Bounce(gpuStream_t stream) : stream_(stream) {}

  void download(std::byte* to, const std::byte* from, size_t bytes) {
    const size_t pieces = (bytes + kBounceBytes - 1) / kBounceBytes;
    const auto length = [&](size_t piece) { return std::min(kBounceBytes, bytes - piece * kBounceBytes); };
    const auto ask = [&](size_t piece) {
      Slot& slot = slots_[piece % 2];
      GRETA_CHECKED(gpuMemcpyAsync, slot.ready(kBounceBytes), from + piece * kBounceBytes, length(piece),
                    gpuMemcpyDeviceToHost, stream_);
      slot.hand_over(stream_);
    };
    if (pieces > 0) ask(0);
    for (size_t piece = 0; piece < pieces; ++piece) {
      if (piece + 1 < pieces) ask(piece + 1);
      Slot& slot = slots_[piece % 2];
      slot.wait();
      std::memcpy(to + piece * kBounceBytes, slot.data(), length(piece));
    }
  }

 private:
  gpuStream_t stream_;
  std::array<Slot, 2> slots_;
};

// ---- the device
// -----------------------------------------------------------------------------------------------

class ApiGraph final : public Graph {
 public:
  explicit ApiGraph(gpuGraphExec_t exec) : exec_(exec) {}
  ApiGraph(const ApiGraph&) = delete;
  ApiGraph& operator=(const ApiGraph&) = delete;
  ~ApiGraph() override { (void)gpuGraphExecDestroy(exec_); }
  gpuGraphExec_t exec() const { return exec_; }

 private:
  gpuGraphExec_t exec_;
};

std::string name_of(int index) { return fmt::format("{}:{}", kTarget, index); }

class ApiDevice final : public Device {
 public:
  ApiDevice(int index, const gpuDeviceProp& properties)
      : index_(index),
        description_(
            fmt::format("{}, {}, driver {}", properties.name, architecture(properties), driver_version())),
        total_bytes_(properties.totalGlobalMem),
        multiprocessors_(properties.multiProcessorCount),
        warpgroups_(has_warpgroups(properties)),
        stream_(make_stream(index)),
        staging_(stream_),
        bounce_(stream_) {}
  ~ApiDevice() override {
    (void)gpuSetDevice(index_);
    (void)gpuStreamSynchronize(stream_);
    (void)gpuStreamDestroy(stream_);
    if (current == this) current = nullptr;
  }
  ApiDevice(const ApiDevice&) = delete;
  ApiDevice& operator=(const ApiDevice&) = delete;

  std::string name() const override { return name_of(index_); }
  std::string description() const override { return description_; }
  const Kernels& kernels() const override { return kernel_table(); }
  void* stream() const override {
    use();
    return stream_;
  }
  bool warpgroups() const override { return warpgroups_; }
  int multiprocessors() const override { return multiprocessors_; }
  double product_seconds(const ProductShape& product) override {
    use();
    return library_product_seconds(*this, product);
  }
  uint64_t free_bytes() const override {
    use();
    size_t free = 0, total = 0;
    GRETA_CHECKED(gpuMemGetInfo, &free, &total);
    return free;
  }
  uint64_t total_bytes() const override { return total_bytes_; }

  void* allocate(size_t bytes) override {
    use();
    not_while_recording("memory cannot be allocated");
    void* memory = nullptr;
    const gpuError_t status = gpuMalloc(&memory, std::max(bytes, size_t{1}));
    if (status == gpuErrorOutOfMemory) {
      (void)gpuGetLastError();
      fail("{}: out of memory: {} asked for, {} free of {}", name(), megabytes(bytes),
           megabytes(free_bytes()), megabytes(total_bytes_));
    }
    check(status, GRETA_API_NAME(gpuMalloc));
    GRETA_CHECKED(gpuMemsetAsync, memory, 0, std::max(bytes, size_t{1}), stream_);
    return memory;
  }
  void release(void* memory) override { given_back(gpuFree, memory, GRETA_API_NAME(gpuFree)); }

  void* allocate_host(size_t bytes) override {
    use();
    void* memory = nullptr;
    GRETA_CHECKED(gpuHostAlloc, &memory, bytes, gpuHostAllocMapped | gpuHostAllocPortable);
    std::memset(memory, 0, bytes);
    void* seen = nullptr;
    GRETA_CHECKED(gpuHostGetDevicePointer, &seen, memory, 0);
    if (seen != memory) {
      (void)gpuFreeHost(memory);
      fail("{}: the device has another address for the host's memory than the host", name());
    }
    return memory;
  }
  void release_host(void* memory) override { given_back(gpuFreeHost, memory, GRETA_API_NAME(gpuFreeHost)); }

  void upload_by(void* to, size_t bytes, const Write& write) override {
    use();
    not_while_recording("nothing can be uploaded");
    staging_.upload(static_cast<std::byte*>(to), bytes, write);
  }
  void download(void* to, const void* from, size_t bytes) override {
    use();
    not_while_recording("nothing can be downloaded");
    bounce_.download(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes);
  }
  size_t most_lent() const override { return kLentBytes; }
  const void* lend(const void* from, size_t bytes) override {
    use();
    not_while_recording("nothing can be lent");
    void* const to = lent_.ready(kLentBytes);
    GRETA_CHECKED(gpuMemcpyAsync, to, from, bytes, gpuMemcpyDeviceToHost, stream_);
    lent_.hand_over(stream_);
    lent_.wait();
    return to;
  }
  void copy(void* to, const void* from, size_t bytes) override {
    use();
    if (bytes > 0) GRETA_CHECKED(gpuMemcpyAsync, to, from, bytes, gpuMemcpyDeviceToDevice, stream_);
  }
  void zero(void* at, size_t bytes) override {
    use();
    if (bytes > 0) GRETA_CHECKED(gpuMemsetAsync, at, 0, bytes, stream_);
  }
  void synchronize() override {
    use();
    not_while_recording("there is nothing to wait for");
    GRETA_CHECKED(gpuStreamSynchronize, stream_);
    if (!refused_.empty()) fail("{}", std::exchange(refused_, {}));
  }

  void begin_capture() override {
    use();
    not_while_recording("a second recording cannot begin");
    GRETA_CHECKED(gpuStreamBeginCapture, stream_, gpuStreamCaptureModeThreadLocal);
    recording_ = true;
  }
  std::unique_ptr<Graph> end_capture() override {
    use();
    recording_ = false;
    gpuGraph_t graph = nullptr;
    GRETA_CHECKED(gpuStreamEndCapture, stream_, &graph);
    gpuGraphExec_t exec = nullptr;
    const gpuError_t status = gpuGraphInstantiateWithFlags(&exec, graph, 0);
    (void)gpuGraphDestroy(graph);
    check(status, GRETA_API_NAME(gpuGraphInstantiateWithFlags));
    return std::make_unique<ApiGraph>(exec);
  }
  void launch(const Graph& graph) override {
    use();
    GRETA_CHECKED(gpuGraphLaunch, static_cast<const ApiGraph&>(graph).exec(), stream_);
  }

 private:
  static gpuStream_t make_stream(int index) {
    GRETA_CHECKED(gpuSetDevice, index);
    gpuStream_t stream = nullptr;
    GRETA_CHECKED(gpuStreamCreateWithFlags, &stream, gpuStreamNonBlocking);
    return stream;
  }
  void use() const {
    current = this;
    GRETA_CHECKED(gpuSetDevice, index_);
  }
  void not_while_recording(const char* what) const {
    if (recording_) fail("{}: {} while a graph is being recorded", name(), what);
  }
  /// Memory is freed where nothing may be thrown. A fault stays with the device and the next call tells of
  /// it; another refusal is told by synchronize().
  template <class Free>
  void given_back(Free free, void* memory, const char* call) {
    if (memory == nullptr) return;
    (void)gpuSetDevice(index_);
    const gpuError_t status = free(memory);
    if (status == gpuSuccess || is_fault(status)) return;
    (void)gpuGetLastError();
    refused_ = fmt::format("{}: {}: {}", name(), call, said(status));
  }

  int index_;
  std::string description_;
  uint64_t total_bytes_;
  int multiprocessors_;
  bool warpgroups_;
  gpuStream_t stream_;
  Staging staging_;
  Bounce bounce_;
  Slot lent_;
  bool recording_ = false;
  std::string refused_;
};

// ---- which there are
// ------------------------------------------------------------------------------------------

/// How many, or why there is none.
std::pair<int, std::string> count_devices() {
  int count = 0;
  const gpuError_t status = gpuGetDeviceCount(&count);
  if (status == gpuSuccess && count > 0) return {count, ""};
  (void)gpuGetLastError();
  if (status == gpuSuccess || status == gpuErrorNoDevice) return {0, "no device is visible"};
  int driver = 0, runtime = 0;
  if (status != gpuErrorInsufficientDriver || gpuDriverGetVersion(&driver) != gpuSuccess ||
      gpuRuntimeGetVersion(&runtime) != gpuSuccess)
    return {0, said(status)};
  if (driver == 0) return {0, kNoDriver};
  return {0, fmt::format("the driver is for {} at most, this build needs {}: install a newer driver",
                         version_shown(driver), version_shown(runtime))};
}

std::string no_kernels(const gpuDeviceProp& properties) {
  const std::string lacks = lacks_kernels(properties);
  return lacks.empty() ? "" : fmt::format("{}, {}: {}", properties.name, architecture(properties), lacks);
}

std::unique_ptr<Device> open_device(int index) {
  current = nullptr;
  const auto [count, why] = count_devices();
  if (count == 0) fail("{}: {}", name_of(index), why);
  if (index < 0 || index >= count)
    fail("{}: no such device; there {} up to {}", name_of(index),
         count == 1 ? "is one, numbers go" : fmt::format("are {}, numbers go", count), name_of(count - 1));
  gpuDeviceProp properties;
  GRETA_CHECKED(gpuGetDeviceProperties, &properties, index);
  if (const std::string lacks = no_kernels(properties); !lacks.empty()) fail("{}: {}", name_of(index), lacks);
  return std::make_unique<ApiDevice>(index, properties);
}

void measure(int index, DeviceInfo& info) {
  size_t free = 0, total = 0;
  gpuError_t status = gpuSetDevice(index);
  if (status == gpuSuccess) status = gpuMemGetInfo(&free, &total);
  if (status == gpuSuccess) {
    info.free_bytes = free;
    return;
  }
  (void)gpuGetLastError();
  info.unusable = said(status);
}

std::vector<DeviceInfo> list(bool measure_free) {
  std::vector<DeviceInfo> devices;
  const auto [count, why] = count_devices();
  for (int index = 0; index < count; ++index) {
    DeviceInfo info;
    info.device = name_of(index);
    info.driver = driver_version();
    gpuDeviceProp properties;
    if (const gpuError_t status = gpuGetDeviceProperties(&properties, index); status != gpuSuccess) {
      (void)gpuGetLastError();
      info.unusable = said(status);
    } else {
      info.description = fmt::format("{}, {}", properties.name, architecture(properties));
      info.total_bytes = properties.totalGlobalMem;
      info.unusable = lacks_kernels(properties);
    }
    if (measure_free && info.unusable.empty()) measure(index, info);
    devices.push_back(std::move(info));
  }
  if (devices.empty()) {
    DeviceInfo none;
    none.device = kTarget;
    none.unusable = why;
    devices.push_back(std::move(none));
  }
  return devices;
}

}  // namespace

void check_launch(gpuError_t status, const char* kernel) {
  if (status != gpuSuccess) check(status, fmt::format("the launch of kernel {}", kernel).c_str());
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
