#include "backend/gpu/targets.h"

#include <charconv>

#include "base/error.h"

namespace greta::gpu {

std::unique_ptr<Device> open_device(std::string_view device) {
  const std::string_view target = device.substr(0, device.find(':'));
  const std::string_view digits = device.substr(std::min(target.size() + 1, device.size()));
  int index = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc() || end != digits.data() + digits.size() || index < 0)
    fail("--device {}: expected a number after the colon, as in cuda:0", device);
  if (target == "cuda") return open_cuda(index);
  if (target == "hip") return open_hip(index);
  if (target == "sim") return open_sim(index);
  fail("--device {}: no such GPU; expected cuda:0, hip:0, or to try kernels sim:32 or sim:64", device);
}

std::vector<DeviceInfo> list_devices(bool measure_free) {
  std::vector<DeviceInfo> all = list_cuda(measure_free);
  for (DeviceInfo& info : list_hip(measure_free)) all.push_back(std::move(info));
  return all;
}

}  // namespace greta::gpu
