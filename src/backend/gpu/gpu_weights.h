#pragma once
// Weights as they lie on a device.
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/gpu/device.h"
#include "backend/gpu/kernels.h"

namespace greta::gpu {

/// So many bytes, up to where another array may begin behind them.
inline size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

/// Device memory with an owner.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Device& device, size_t bytes)
      : device_(&device), bytes_(bytes), data_(device.allocate(bytes)) {}
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) device_->release(data_);
  }
  size_t bytes() const { return bytes_; }
  template <class T = std::byte>
  T* data() const {
    return static_cast<T*>(data_);
  }
  /// At least so many bytes; what was there is lost if it has to grow.
  void reserve(Device& device, size_t bytes) {
    if (bytes > bytes_) *this = DeviceMemory(device, bytes);
  }

 private:
  void swap(DeviceMemory& other) {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
  }
  Device* device_ = nullptr;
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

/// Rows read back, for one caller at a time: a device is one thread's.
class ReadBack {
 public:
  explicit ReadBack(Device& device, const Launch& launch) : device_(device), launch_(launch) {}
  /// Rows first .. first + count: [count, cols].
  void rows(const class GpuWeight& weight, int64_t first, int64_t count, float* out);

 private:
  void unpack(const GpuWeight& weight, int64_t row, float* to) const;

  static constexpr int64_t kPieceBytes = int64_t{1} << 20;  ///< of FP32, on the device at once
  std::mutex mutex_;
  Device& device_;
  const Launch& launch_;
  DeviceMemory rows_;
};

class GpuWeight : public Weight {
 public:
  void read_back(int64_t first, int64_t count, float* out) const override {
    reader->rows(*this, first, count, out);
  }
  /// One matrix, or an expert's.
  const PackedMatrix& matrix(int64_t expert = 0) const { return matrices[static_cast<size_t>(expert)]; }

  std::vector<PackedMatrix> matrices;  ///< matmul: one; experts: one each
  DeviceMemory memory;                 ///< packed matrices and their row scales; an embedding's blocks; FP32
  int64_t row_bytes = 0;               ///< of an embedding, as the file has it
  ReadBack* reader = nullptr;
};

/// What the kernels see of a tensor of this type.
quant::Type kernel_type_of(WeightUse use, quant::Type type, WeightMode mode);
/// Bytes of a tensor (of one expert).
uint64_t gpu_weight_bytes(const Kernels& kernels, WeightUse use, quant::Type type, int64_t rows, int64_t cols,
                          WeightMode mode);
/// Bytes of the file that are on the device at once while a tensor is packed.
inline constexpr int64_t kStagingBytes = int64_t{64} << 20;

/// What packing could not keep of which tensor. It is counted on the device and read back for many tensors
/// together: to wait for each would keep the next one's bytes from being on their way.
class Losses {
 public:
  /// Tensors that are counted before somebody must be told.
  static constexpr size_t kMost = 1024;
  /// Of one value in so many a loss is told, of more it is an error.
  static constexpr int64_t kInexact = 1000;
  struct Counters {
    unsigned long long inexact;  ///< PackCall's
    unsigned long long unfit;
  };

  explicit Losses(Device& device) : device_(device) {}
  /// One more tensor's, on the device; zeros.
  Counters* next(const WeightSource& source);
  /// Waits, and tells of all tensors since the last time. Errors: what --weights int8 cannot hold; more than
  /// one value in kInexact that is not kept.
  void tell();

 private:
  struct Tensor {
    std::string name;
    int64_t values;
  };
  Device& device_;
  DeviceMemory memory_;  ///< [kMost]
  std::vector<Tensor> tensors_;
};

/// Errors: a byte count unlike the shape; what Losses::tell() finds of others, where it is time for that.
std::unique_ptr<GpuWeight> load_gpu_weight(const WeightSource& source, WeightUse use, WeightMode mode,
                                           Device& device, const Launch& launch, DeviceMemory& staging,
                                           ReadBack& reader, Losses& losses);

}  // namespace greta::gpu
