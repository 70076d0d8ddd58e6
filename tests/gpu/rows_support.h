#pragma once
// What the tests of the row kernels and of attention share: a device with its launches counted, arrays in its
// memory, random numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/gpu/kernels.h"
#include "gpu_devices.h"
#include "kernels/random_inputs.h"

namespace greta::gpu::rows_test {

using gpu::random_rows;

class Machine : public Launch {
 public:
  explicit Machine(const std::string& name) : device_(gpu::open_device(name)) {
    stream = device_->stream();
    warpgroups = device_->warpgroups();
    multiprocessors = 3;  // so that a block has several tiles, and not all
  }
  Mark mark(const char* kernel) const override {
    ++ran_[kernel];
    return {};
  }
  const Kernels& kernels() const { return device_->kernels(); }
  Device& device() const { return *device_; }
  /// How often each kernel ran since the last call.
  std::map<std::string, int> ran() const {
    device_->synchronize();
    return std::exchange(ran_, {});
  }

 private:
  std::unique_ptr<Device> device_;
  mutable std::map<std::string, int> ran_;
};

/// Numbers in a device's memory.
template <class T>
class Array {
 public:
  Array(const Machine& machine, const std::vector<T>& values)
      : device_(machine.device()), count_(values.size()) {
    data_ = static_cast<T*>(device_.allocate(std::max<size_t>(count_, 1) * sizeof(T)));
    put(values);
  }
  Array(const Machine& machine, int64_t count, T value)
      : Array(machine, std::vector<T>(static_cast<size_t>(count), value)) {}
  ~Array() { device_.release(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  void put(const std::vector<T>& values) { device_.upload(data_, values.data(), count_ * sizeof(T)); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    device_.download(values.data(), data_, count_ * sizeof(T));
    return values;
  }

 private:
  Device& device_;
  size_t count_;
  T* data_ = nullptr;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// NaN where NaN is expected, else within `bound`.
inline ::testing::AssertionResult near(double got, double exact, double bound) {
  if (std::isnan(exact) ? std::isnan(got) : got == exact || std::fabs(got - exact) <= bound)
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << got << ", exact " << exact << ", bound " << bound;
}

inline double gamma(double roundings, double u) { return roundings * u / (1.0 - roundings * u); }

}  // namespace greta::gpu::rows_test
