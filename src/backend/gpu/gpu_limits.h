#pragma once
// What a GPU could do at most, measured in the run that is held against it.
#include "backend/backend.h"
#include "backend/gpu/gpu_weights.h"
#include "backend/gpu/kernels.h"

namespace greta::gpu {

class GpuLimits : public DeviceLimits {
 public:
  GpuLimits(Device& device, const Launch& launch) : device_(device), launch_(launch) {}
  double read_rate(std::string& how) override;
  double matrix_rate(std::string& how) override;

 private:
  static constexpr size_t kBuffer =
      size_t{4} << 30;  ///< far past the last cache; half of what is free, if that is less
  Device& device_;
  const Launch& launch_;
  DeviceMemory buffer_;
};

}  // namespace greta::gpu
