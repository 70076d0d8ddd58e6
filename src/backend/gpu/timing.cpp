#include "backend/gpu/timing.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

namespace greta::gpu {
namespace {

constexpr int64_t kWarm = 4;

/// Seconds until the device has done what `work` puts on its stream.
double seconds_of(Device& device, const std::function<void()>& work) {
  device.synchronize();
  const auto begin = std::chrono::steady_clock::now();
  work();
  device.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Timing time_launches(Device& device, const Stretch& stretch, const std::function<void(int64_t)>& launch) {
  const auto launch_all = [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) launch(i);
  };
  launch(0);  // loads the kernel's code
  const double each = seconds_of(device, [&] { launch_all(kWarm); }) / kWarm;
  const double wanted = std::min(stretch.seconds / each, static_cast<double>(stretch.most));
  const int64_t launches = std::max({static_cast<int64_t>(wanted), stretch.least, int64_t{1}});

  device.begin_capture();
  launch_all(launches);
  const std::unique_ptr<Graph> graph = device.end_capture();
  const auto run = [&] {
    if (graph != nullptr) return device.launch(*graph);
    launch_all(launches);
  };
  seconds_of(device, run);
  std::vector<double> seconds(static_cast<size_t>(stretch.repeats));
  for (double& s : seconds) s = seconds_of(device, run);
  const auto median = seconds.begin() + stretch.repeats / 2;
  std::nth_element(seconds.begin(), median, seconds.end());
  return {*median / static_cast<double>(launches), launches, stretch.repeats};
}

}  // namespace greta::gpu
