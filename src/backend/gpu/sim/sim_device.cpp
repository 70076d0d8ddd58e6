#include "backend/gpu/sim/sim_device.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "backend/gpu/kernels.h"
#include "backend/gpu/sim/runtime.h"
#include "base/error.h"
#include "base/system.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace greta::gpu {

namespace sim32 {
const Kernels& kernel_table();
}
namespace sim64 {
const Kernels& kernel_table();
}

namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kGuardBytes = kAlignment;  ///< before and behind each piece of memory
constexpr std::byte kGuard{0xa5};

/// Under AddressSanitizer an access to guard bytes is reported where it happens.
void close_guard(const std::byte* at) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(at, kGuardBytes);
#else
  (void)at;
#endif
}
void open_guard(const std::byte* at) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(at, kGuardBytes);
#else
  (void)at;
#endif
}

/// Memory between guard bytes, zeroed.
class Piece {
 public:
  explicit Piece(size_t bytes) : bytes_(bytes), base_(nullptr, &std::free) {
    base_.reset(std::calloc(1, bytes + 2 * kGuardBytes + kAlignment));
    if (base_ == nullptr) fail("sim: {} bytes of memory asked for, {} are free", bytes, available_memory());
    const auto start = reinterpret_cast<uintptr_t>(base_.get());
    data_ =
        static_cast<std::byte*>(base_.get()) + (kAlignment - start % kAlignment) % kAlignment + kGuardBytes;
    for (std::byte* guard : {data_ - kGuardBytes, data_ + bytes_}) {
      std::memset(guard, static_cast<int>(kGuard), kGuardBytes);
      close_guard(guard);
    }
  }
  ~Piece() {
    open_guard(data_ - kGuardBytes);
    open_guard(data_ + bytes_);
  }
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  /// Whether nobody wrote outside.
  bool whole() const {
    return std::ranges::all_of(std::array{data_ - kGuardBytes, data_ + bytes_}, [](const std::byte* guard) {
      open_guard(guard);
      const bool same = std::all_of(guard, guard + kGuardBytes, [](std::byte b) { return b == kGuard; });
      close_guard(guard);
      return same;
    });
  }

 private:
  size_t bytes_;
  std::unique_ptr<void, decltype(&std::free)> base_;
  std::byte* data_;
};

class SimGraph final : public Graph {
 public:
  sim::Work work;
};

class SimDevice final : public Device {
 public:
  SimDevice(int wave, uint64_t seed) : wave_(wave) { reseed(seed); }

  ~SimDevice() override {
    for (const auto& [at, piece] : pieces_) inspect(*piece);
    if (damage_.empty()) return;
    std::fprintf(stderr, "%s\n", damage_.c_str());
    std::abort();  // nobody is left to be told
  }

  void reseed(uint64_t seed) { stream_ = {seed, 0, nullptr}; }

  std::string name() const override { return fmt::format("sim:{}", wave_); }
  std::string description() const override {
    return fmt::format("emulation on the host, waves of {} ({}), seed {}", wave_, kernels().matrix_unit,
                       stream_.seed);
  }
  const Kernels& kernels() const override {
    return wave_ == 32 ? sim32::kernel_table() : sim64::kernel_table();
  }
  void* stream() const override { return &stream_; }
  uint64_t free_bytes() const override { return available_memory(); }
  uint64_t total_bytes() const override {
    return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  }

  void* allocate(size_t bytes) override {
    not_while_recording("memory cannot be allocated");
    report();
    auto piece = std::make_unique<Piece>(bytes);
    std::byte* at = piece->data();
    pieces_.emplace(at, std::move(piece));
    return at;
  }
  /// Called by destructors: what it finds is thrown by the next call that may throw.
  void release(void* memory) override {
    if (memory == nullptr) return;
    const auto found = pieces_.find(static_cast<std::byte*>(memory));
    if (found == pieces_.end()) {
      note(fmt::format("{}: release of {}, which was not allocated", name(), memory));
      return;
    }
    inspect(*found->second);
    pieces_.erase(found);
  }
  void* allocate_host(size_t bytes) override { return allocate(bytes); }
  void release_host(void* memory) override { release(memory); }

  void upload_by(void* to, size_t bytes, const Write& write) override {
    not_while_recording("nothing can be uploaded");
    report();
    if (bytes == 0) return;
    check(to, bytes, "upload");
    write(static_cast<std::byte*>(to), 0, bytes);
  }
  /// Little, so that tests go past it.
  size_t most_lent() const override { return 4096; }
  const void* lend(const void* from, size_t bytes) override {
    lent_.resize(bytes);
    download(lent_.data(), from, bytes);
    return lent_.data();
  }
  void download(void* to, const void* from, size_t bytes) override {
    not_while_recording("nothing can be downloaded");
    report();
    if (bytes == 0) return;
    check(from, bytes, "download");
    std::memcpy(to, from, bytes);
  }
  void copy(void* to, const void* from, size_t bytes) override {
    report();
    if (bytes == 0) return;
    check(to, bytes, "copy");
    check(from, bytes, "copy");
    sim::submit(&stream_, [=] { std::memmove(to, from, bytes); });
  }
  void zero(void* at, size_t bytes) override {
    report();
    if (bytes == 0) return;
    check(at, bytes, "zero");
    sim::submit(&stream_, [=] { std::memset(at, 0, bytes); });
  }
  void synchronize() override {
    not_while_recording("there is nothing to wait for");
    report();
  }

  void begin_capture() override {
    not_while_recording("a second recording cannot begin");
    recorded_ = std::make_unique<SimGraph>();
    stream_.recording = &recorded_->work;
  }
  std::unique_ptr<Graph> end_capture() override {
    if (!recorded_) fail("{}: no graph is being recorded", name());
    stream_.recording = nullptr;
    return std::move(recorded_);
  }
  void launch(const Graph& graph) override {
    not_while_recording("no other can be launched");
    report();
    for (const auto& work : static_cast<const SimGraph&>(graph).work) work();
  }

 private:
  void not_while_recording(const char* what) const {
    if (recorded_) fail("{}: {} while a graph is being recorded", name(), what);
  }
  std::string where() const { return running ? ", found after " + running() : ""; }
  void note(const std::string& what) {
    if (damage_.empty()) damage_ = what;
  }
  void inspect(const Piece& piece) {
    if (!piece.whole())
      note(fmt::format("{}: something wrote just outside of {} bytes at {}{}", name(), piece.bytes(),
                       static_cast<const void*>(piece.data()), where()));
  }
  void report() {
    if (!damage_.empty()) throw Error(std::exchange(damage_, {}));
  }
  /// bytes >= 1.
  void check(const void* at, size_t bytes, const char* what) const {
    const auto* first = static_cast<const std::byte*>(at);
    auto after = pieces_.upper_bound(const_cast<std::byte*>(first));
    if (after != pieces_.begin()) {
      const Piece& piece = *std::prev(after)->second;
      const auto offset = static_cast<size_t>(first - piece.data());
      if (offset <= piece.bytes() && bytes <= piece.bytes() - offset) return;
    }
    fail("{}: {} of {} bytes at {}, which are not all in one piece of device memory{}", name(), what, bytes,
         at, where());
  }

  int wave_;
  mutable sim::Stream stream_;
  std::unique_ptr<SimGraph> recorded_;  ///< what is being recorded
  std::map<std::byte*, std::unique_ptr<Piece>> pieces_;
  std::string damage_;  ///< found, not thrown yet
  std::vector<std::byte> lent_;
};

}  // namespace

std::unique_ptr<Device> make_sim_device(int wave, uint64_t seed) {
  if (wave != 32 && wave != 64) fail("sim has waves of 32 and of 64, not of {}", wave);
  return std::make_unique<SimDevice>(wave, seed);
}

void set_sim_seed(Device& device, uint64_t seed) { dynamic_cast<SimDevice&>(device).reseed(seed); }

}  // namespace greta::gpu
