#include "backend/gpu/targets.h"

namespace greta::gpu {

std::vector<DeviceInfo> list_devices(bool measure_free) {
  std::vector<DeviceInfo> all = list_cuda(measure_free);
  for (DeviceInfo& info : list_hip(measure_free)) all.push_back(std::move(info));
  return all;
}

}  // namespace greta::gpu
