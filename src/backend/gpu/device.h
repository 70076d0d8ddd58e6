#pragma once
// A GPU as the backend sees it: memory, copies, one stream in order, graphs, and its table of kernels. The
// three implementations: cuda and hip (api_device.inl, one source), and sim.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

namespace greta::gpu {

struct Kernels;

/// Where a kernel says that it has begun. After a fault the device's memory is gone, this (host memory,
/// mapped) is not: it names the kernel that was running.
struct Mark {
  uint32_t* at = nullptr;
  uint32_t id = 0;
};

/// What a launch needs to know: the stream, and who keeps the names of what ran.
class Launch {
 public:
  virtual ~Launch() = default;
  void* stream = nullptr;
  bool warpgroups = false;  ///< Device::warpgroups()
  int multiprocessors = 1;  ///< Device's: how many blocks are worth having, never what they compute
  /// Called by the code that launches a kernel, once for each, right before: counts it (Backend::route) and
  /// gives the mark that it will leave.
  virtual Mark mark(const char* kernel) const = 0;
};

struct Grid {
  unsigned x = 1, y = 1, z = 1;
  unsigned cluster = 1;  ///< so many neighbours in x reach each other's shared memory: Hopper
};

/// y [rows, outputs] = x [rows, cols] w [outputs, cols]^T: f16 in, FP32 sums, FP32 or f16 out.
struct ProductShape {
  int64_t outputs = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  bool f16_out = true;
};

/// A recording of launches, replayed as one.
class Graph {
 public:
  virtual ~Graph() = default;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;         ///< "cuda:0"
  virtual std::string description() const = 0;  ///< "NVIDIA H100 80GB HBM3, sm_90, driver 580.159"
  virtual const Kernels& kernels() const = 0;
  virtual void* stream() const = 0;
  /// Whether it runs Hopper's warpgroup instructions.
  virtual bool warpgroups() const { return false; }
  virtual uint64_t free_bytes() const = 0;
  virtual uint64_t total_bytes() const = 0;

  /// Device memory, zeroed. Errors: how much was asked for and how much is free.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) = 0;
  /// Host memory that the device reads and writes by itself (marks); the device's address of it.
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void release_host(void* memory) = 0;

  // In order with the launches. An upload has taken the bytes when it returns; `download` waits for them.
  /// Writes bytes [first, first + count) of what is uploaded; called from several threads at once.
  using Write = std::function<void(std::byte* to, size_t first, size_t count)>;
  virtual void upload_by(void* to, size_t bytes, const Write& write) = 0;
  void upload(void* to, const void* from, size_t bytes) {
    upload_by(to, bytes, [from](std::byte* at, size_t first, size_t count) {
      std::memcpy(at, static_cast<const std::byte*>(from) + first, count);
    });
  }
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  /// The device's bytes in host memory of its own, until it lends others: waits for them, and spares a copy.
  /// At most most_lent().
  virtual const void* lend(const void* from, size_t bytes) = 0;
  virtual size_t most_lent() const = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void zero(void* at, size_t bytes) = 0;
  /// Waits. Errors: whatever went wrong since, `running` names what was.
  virtual void synchronize() = 0;

  virtual int multiprocessors() const { return 1; }
  /// Seconds of one such product by the vendor's own library, the best of all that it proposes, on random
  /// numbers, the matrix read from memory; 0 where there is no library.
  virtual double product_seconds(const ProductShape&) { return 0.0; }

  /// What the launches and copies between do not do now but whenever the graph is launched. It keeps their
  /// arguments; what those point to is read when it runs.
  virtual void begin_capture() = 0;
  virtual std::unique_ptr<Graph> end_capture() = 0;
  virtual void launch(const Graph& graph) = 0;

  /// Asked when a call fails: names the kernel that was running (set by the backend).
  std::function<std::string()> running;
};

}  // namespace greta::gpu
