#pragma once
// The GPU targets that a test can run on here: those of the build that open, the emulation's two first.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "backend/gpu/targets.h"
#include "base/error.h"

namespace greta::test {

inline bool has_sim() {
  try {
    return gpu::open_sim(32) != nullptr;
  } catch (const Error&) {
    return false;
  }
}

/// "sim:32", "sim:64", "cuda:0": one device of a kind.
inline std::vector<std::string> usable_gpus() {
  std::vector<std::string> names;
  if (has_sim()) names = {"sim:32", "sim:64"};
  for (const gpu::DeviceInfo& info : gpu::list_devices())
    if (info.unusable.empty() && info.device.ends_with(":0")) names.push_back(info.device);
  return names;
}

/// For INSTANTIATE_TEST_SUITE_P: "sim32".
inline std::string gpu_test_name(const testing::TestParamInfo<std::string>& device) {
  std::string name = device.param;
  name.erase(name.find(':'), 1);
  return name;
}

}  // namespace greta::test
