#pragma once
// The kernel lab: each kernel of a GPU target against FP64 on the same inputs, and its time against its
// floor.
#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/gpu/device.h"
#include "backend/gpu/gpu_arithmetic.h"
#include "backend/gpu/gpu_weights.h"
#include "backend/gpu/kernels.h"
#include "kernels/random_inputs.h"
#include "kernels/report.h"

namespace greta::gpu::lab {

struct Options {
  std::string device = "cuda:0";
  std::vector<std::string> kernels;  ///< of kernel_names()
  bool price = false;
  bool quick = false;  ///< tiny shapes, every output checked
  std::string
      planted;  ///< tests: of this kernel ("price": of the products there) one input is another on the device
  std::function<void(const std::string&)> print = [](const std::string&) {
  };  ///< told each line when it is there
};

/// What Options::kernels may name.
std::vector<std::string> kernel_names();

/// Errors: no such kernel or device.
Report run(const Options& options);

/// Input values on the device, as often as `copies` says: a timed launch finds the next copy, not in a cache.
template <class T>
struct Input {
  DeviceMemory memory;
  int64_t stride = 0;  ///< elements from one copy to the next
  int64_t copies = 1;
  T* at(int64_t launch) const { return memory.data<T>() + launch % copies * stride; }
};

/// The device of a run and what its parts share.
class Lab : public Launch {
 public:
  explicit Lab(const Options& options);
  Mark mark(const char*) const override { return {}; }

  Device& device() const { return *device_; }
  const Kernels& kernels() const { return device_->kernels(); }
  const GpuArithmetic& arithmetic() const { return arithmetic_; }
  bool quick() const { return options_.quick; }
  /// Whether times are worth taking: an emulation's say nothing.
  bool timed() const { return timed_; }
  bool planted() const { return options_.planted == current_; }
  Report& report() { return report_; }
  void print(const std::string& text) const { options_.print(text); }
  void measure_rates();

  /// So many copies of so many bytes that no cache keeps one until its turn comes again; at most 64.
  int64_t copies_of(int64_t bytes) const;
  DeviceMemory room(int64_t bytes) const { return {*device_, static_cast<size_t>(bytes)}; }
  /// Of a planted kernel the first value is one more on the device than here.
  template <class T>
  Input<T> input(std::vector<T> values, bool cold = true) const;
  /// `bytes` from the start of `memory` on, `copies - 1` times more behind it, every `stride` bytes.
  void repeat(const DeviceMemory& memory, int64_t bytes, int64_t stride, int64_t copies) const;
  template <class T>
  std::vector<T> read(const T* at, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    device_->download(values.data(), at, values.size() * sizeof(T));
    return values;
  }
  std::vector<double> read_row(const float* rows, int64_t row, int64_t width) const;

  /// The first, the last and others of [0, count), ascending, at most `most`; all, if quick.
  std::vector<int64_t> sample(int64_t count, size_t most);

  /// A kernel on one shape: launched once (launch 0) and checked, then timed, and reported.
  struct Case {
    std::string kernel;
    std::string shape;
    Work work;
    int64_t copies = 1;  ///< of its inputs: so many launches in a row are cold
    std::function<void(int64_t launch)> launch;
    std::function<void(Check&)> check;
  };
  void measure(const Case& what);
  /// 0 where times are not worth taking.
  Timing time(int64_t copies, const std::function<void(int64_t)>& launch) const;

  /// The kernel whose cases follow.
  void begin(const std::string& kernel) { current_ = kernel; }

 private:
  Options options_;
  std::unique_ptr<Device> device_;
  GpuArithmetic arithmetic_{WeightMode::stored, KvType::f16};
  bool timed_ = true;
  std::string current_;
  Report report_;
  std::mt19937 random_{1};
};

template <class T>
Input<T> Lab::input(std::vector<T> values, bool cold) const {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  const int64_t stride = (bytes + 255) / 256 * 256;
  if (planted()) values[0] += T{1};
  Input<T> on{{}, stride / static_cast<int64_t>(sizeof(T)), cold ? copies_of(bytes) : 1};
  on.memory = room(stride * on.copies);
  device_->upload(on.memory.data(), values.data(), static_cast<size_t>(bytes));
  repeat(on.memory, bytes, stride, on.copies);
  return on;
}

/// Room for rows rounded on the device, as a product of so many rows wants them (in tiles, or not).
class RoundedRoom {
 public:
  RoundedRoom(const Lab& lab, int64_t rows, int64_t width);
  const RoundedRows& rows() const { return rows_; }
  /// Elements of a row as numbers, f16 times the row's scale: [stride], zeros behind the width.
  std::vector<double> row(const Lab& lab, int64_t row) const;
  /// A row is `from` rounded, exactly, and zeros behind it.
  void check(const Lab& lab, int64_t row, std::span<const double> from, Check& check) const;

 private:
  DeviceMemory data_, scale_, sums_;
  RoundedRows rows_;
};

/// A matrix of random blocks as a file has it, on the device: kPeriod different rows, one after another again
/// and again.
class FileMatrix {
 public:
  static constexpr int64_t kPeriod = 61;
  FileMatrix(const Lab& lab, quant::Type type, int64_t rows, int64_t cols);
  int64_t rows() const { return rows_; }
  int64_t cols() const { return piece_.cols; }
  int64_t row_bytes() const { return piece_.row_bytes(); }
  quant::Type type() const { return piece_.type; }
  const std::byte* on_device() const { return memory_.data(); }
  /// The different rows; row r of the matrix is row r % kPeriod of them.
  WeightSource source() const { return {"w", piece_.type, piece_.rows, piece_.cols, piece_.bytes}; }

 private:
  HostMatrix piece_;
  int64_t rows_;
  DeviceMemory memory_;
};

// A kernel's cases each: kernels/<name>.cpp.
void run_matmul(Lab& lab);
void run_attention(Lab& lab);
void run_rmsnorm(Lab& lab);
void run_rope(Lab& lab);
void run_glu(Lab& lab);
void run_round(Lab& lab);
void run_embed(Lab& lab);
void run_price(Lab& lab);

}  // namespace greta::gpu::lab
