// CUDA's device: api_device.inl, and what is NVIDIA's own. Host code alone: no nvcc needed.
#define GRETA_API_CUDA
#define GRETA_GPU_TARGET cuda
#include <fstream>
#include <string>

#include "backend/gpu/api.h"
#include "backend/gpu/cuda/cuda_library.h"
#include "base/error.h"

namespace greta::gpu::cuda {
namespace {

constexpr const char* kTarget = "cuda";
constexpr const char* kNoDriver = "this machine has no NVIDIA driver";

/// 13000: "CUDA 13.0".
std::string version_shown(int version) {
  return fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10);
}

/// The kernel module's ("580.159.04"); where the system does not tell, the CUDA version that the driver is
/// for.
std::string driver_version() {
  std::string version;
  if (std::ifstream("/sys/module/nvidia/version") >> version) return version;
  int cuda = 0;
  return cudaDriverGetVersion(&cuda) == cudaSuccess ? "for " + version_shown(cuda) : "unknown";
}

std::string architecture(const cudaDeviceProp& properties) {
  return fmt::format("sm_{}{}", properties.major, properties.minor);
}

bool built_for(const char* architecture) {
  return std::string(GRETA_GPU_ARCHITECTURES).find(architecture) != std::string::npos;
}

/// Machine code of sm_80 runs on all of 8.x, that of sm_90a on 9.0 alone.
std::string lacks_kernels(const cudaDeviceProp& properties) {
  const int major = properties.major, minor = properties.minor;
  if (major < 8) return fmt::format("compute capability {}.{}; at least 8.0 is needed", major, minor);
  if (major == 8 && built_for("sm_80")) return "";
  if (major == 9 && minor == 0 && built_for("sm_90a")) return "";
  return fmt::format("compute capability {}.{}; this build has kernels for {} (sm_80: 8.x, sm_90a: 9.0)",
                     major, minor, GRETA_GPU_ARCHITECTURES);
}

/// sm_90a's instructions are Hopper's alone.
bool has_warpgroups(const cudaDeviceProp& properties) { return properties.major == 9; }

}  // namespace
}  // namespace greta::gpu::cuda

#include "backend/gpu/api_device.inl"

namespace greta::gpu {

std::unique_ptr<Device> open_cuda(int index) { return cuda::open_device(index); }
std::vector<DeviceInfo> list_cuda(bool measure_free) { return cuda::list(measure_free); }
std::string built_cuda() { return GRETA_GPU_ARCHITECTURES; }

}  // namespace greta::gpu
