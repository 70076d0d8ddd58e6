#pragma once
// The GPU targets of this build. A target that it was built without is linked from none/: opening it is an
// error that says how to get it.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/gpu/device.h"

namespace greta::gpu {

/// Errors, all before any memory is taken on the device: the target is not in this build, no driver or one
/// that is too old (both versions), no such device, a device for which the build has no kernels.
std::unique_ptr<Device> open_cuda(int index);
std::unique_ptr<Device> open_hip(int index);
/// The kernels on the host (tests, finding faults); a wave of 32 or 64 threads.
std::unique_ptr<Device> open_sim(int wave);
/// By its name: "cuda:0", "hip:0", "sim:32". Errors: no number behind the colon, no such target.
std::unique_ptr<Device> open_device(std::string_view device);

struct DeviceInfo {
  std::string device;       ///< "cuda:0"; "cuda" alone where there is none
  std::string description;  ///< "NVIDIA H100 80GB HBM3, sm_90"
  std::string driver;       ///< "580.159.04"
  uint64_t total_bytes = 0;
  std::optional<uint64_t> free_bytes;  ///< where it was asked for
  std::string unusable;                ///< why it cannot be opened; empty: it can
};

/// What there is of the targets cuda and hip, at least one entry each. `measure_free`: the free memory, too;
/// each device is woken for it (some tenths of a second).
std::vector<DeviceInfo> list_devices(bool measure_free = false);
std::vector<DeviceInfo> list_cuda(bool measure_free);
std::vector<DeviceInfo> list_hip(bool measure_free);

/// The architectures that this build has kernels for: "sm_80, sm_90a". Empty: the target is not in it.
std::string built_cuda();
std::string built_hip();

}  // namespace greta::gpu
