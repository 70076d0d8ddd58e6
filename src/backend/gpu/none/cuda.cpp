// A build without CUDA.
#include "backend/gpu/kernels/lab.h"
#include "backend/gpu/targets.h"
#include "base/error.h"

namespace greta::gpu {
namespace {

constexpr const char* kNotBuilt =
    "not in this build; cmake --preset cuda && cmake --build --preset cuda makes one that has it (nvcc 13)";

}  // namespace

std::unique_ptr<Device> open_cuda(int index) { fail("cuda:{}: {}", index, kNotBuilt); }

std::vector<DeviceInfo> list_cuda(bool /*measure_free*/) {
  DeviceInfo none;
  none.device = "cuda";
  none.unusable = kNotBuilt;
  return {none};
}

std::string built_cuda() { return ""; }

bool matmul_free(const Launch&, const MatmulCall&) { return false; }

}  // namespace greta::gpu
