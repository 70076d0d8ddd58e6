// A build without HIP.
#include "backend/gpu/targets.h"
#include "base/error.h"

namespace greta::gpu {
namespace {

constexpr const char* kNotBuilt =
    "not in this build; cmake --preset hip && cmake --build --preset hip makes one that has it (clang 19)";

}  // namespace

std::unique_ptr<Device> open_hip(int index) { fail("hip:{}: {}", index, kNotBuilt); }

std::vector<DeviceInfo> list_hip(bool /*measure_free*/) {
  DeviceInfo none;
  none.device = "hip";
  none.unusable = kNotBuilt;
  return {none};
}

std::string built_hip() { return ""; }

}  // namespace greta::gpu
