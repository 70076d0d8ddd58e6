// HIP's device: api_device.inl, and what is AMD's own. Host code alone. Compiled, and run as far as "no
// device": no AMD GPU was at hand.
#define GRETA_API_HIP
#define GRETA_GPU_TARGET hip
#include <fstream>
#include <string>

#include "backend/gpu/api.h"
#include "backend/gpu/device.h"
#include "backend/gpu/hip/architectures.h"
#include "base/error.h"

namespace greta::gpu::hip {
namespace {

constexpr const char* kTarget = "hip";
constexpr const char* kNoDriver = "this machine has no AMD GPU driver";

/// 50220730: "HIP 5.2".
std::string version_shown(int version) {
  return fmt::format("HIP {}.{}", version / 10000000, version % 10000000 / 100000);
}

/// The kernel module's where it tells, else the runtime's.
std::string driver_version() {
  std::string version;
  if (std::ifstream("/sys/module/amdgpu/version") >> version) return version;
  int hip = 0;
  return hipDriverGetVersion(&hip) == hipSuccess ? version_shown(hip) : "unknown";
}

/// "gfx942:sramecc+:xnack-" without what follows the name.
std::string architecture(const hipDeviceProp_t& properties) {
  const std::string name = properties.gcnArchName;
  return name.substr(0, name.find(':'));
}

std::string lacks_kernels(const hipDeviceProp_t& properties) {
  return lacks(architecture(properties), GRETA_GPU_ARCHITECTURES);
}

bool has_warpgroups(const hipDeviceProp_t&) { return false; }
double library_product_seconds(Device&, const ProductShape&) { return 0.0; }

}  // namespace
}  // namespace greta::gpu::hip

#include "backend/gpu/api_device.inl"

namespace greta::gpu {

std::unique_ptr<Device> open_hip(int index) { return hip::open_device(index); }
std::vector<DeviceInfo> list_hip(bool measure_free) { return hip::list(measure_free); }
std::string built_hip() { return GRETA_GPU_ARCHITECTURES; }

}  // namespace greta::gpu
