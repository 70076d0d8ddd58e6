// The contract of gpu::Device (device.h) on every target that this build and this machine have, and what is
// said of those that are missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "backend/gpu/hip/architectures.h"
#include "backend/gpu/kernels.h"
#include "backend/gpu/targets.h"
#include "base/error.h"
#include "gpu_devices.h"
#include "refusal.h"

namespace greta::gpu {
namespace {

using test::refusal;
using testing::HasSubstr;

// ---- what is missing

TEST(GpuTargets, EachIsListedOrSaysWhyNot) {
  const std::vector<DeviceInfo> all = list_devices();
  for (const std::string target : {"cuda", "hip"}) {
    const bool built = !(target == "cuda" ? built_cuda() : built_hip()).empty();
    int found = 0;
    for (const DeviceInfo& info : all) {
      if (info.device.substr(0, info.device.find(':')) != target) continue;
      ++found;
      if (!built) {
        EXPECT_EQ(info.device, target);
        EXPECT_THAT(info.unusable, HasSubstr("not in this build"));
        EXPECT_THAT(info.unusable, HasSubstr("cmake --preset " + target));
      } else if (info.device == target) {
        EXPECT_NE(info.unusable, "");
      } else {
        EXPECT_NE(info.description, "");
        EXPECT_NE(info.driver, "");
        EXPECT_GT(info.total_bytes, 0u);
      }
    }
    EXPECT_GE(found, 1) << target;
  }
}

TEST(GpuTargets, WhatCannotBeOpenedSaysWhy) {
  for (const std::string name : {"cuda:0", "cuda:1000", "hip:0", "hip:1000"}) {
    const std::string target = name.substr(0, name.find(':'));
    const bool built = !(target == "cuda" ? built_cuda() : built_hip()).empty();
    bool there = false;
    for (const DeviceInfo& info : list_devices()) there |= info.device == name && info.unusable.empty();
    const std::string why = refusal([&] { gpu::open_device(name); });
    if (there) {
      EXPECT_EQ(why, "") << name;
      continue;
    }
    EXPECT_EQ(why.rfind(name + ": ", 0), 0u) << why;
    if (!built) EXPECT_THAT(why, HasSubstr("not in this build"));
  }
}

TEST(GpuTargets, AnAmdChipThatTakesSubnormalOperandsAsZeroIsRefused) {
  EXPECT_EQ(hip::lacks("gfx942", "gfx942, gfx90a"), "");
  EXPECT_THAT(hip::lacks("gfx90a", "gfx942, gfx90a"), HasSubstr("subnormal f16"));
  EXPECT_EQ(hip::lacks("gfx94", "gfx942, gfx90a"), "this build has kernels for gfx942, gfx90a");
}

TEST(GpuTargets, FreeMemoryIsMeasuredWhereItIsAskedFor) {
  for (const DeviceInfo& info : list_devices()) EXPECT_FALSE(info.free_bytes.has_value()) << info.device;
  for (const DeviceInfo& info : list_devices(true)) {
    EXPECT_EQ(info.free_bytes.has_value(), info.unusable.empty()) << info.device;
    if (info.free_bytes) EXPECT_LE(*info.free_bytes, info.total_bytes) << info.device;
  }
}

// ---- the contract

class DeviceContract : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Device> device = gpu::open_device(GetParam());
  bool sim() const { return GetParam().starts_with("sim"); }
  /// Bytes of which no two places within 4 GB are alike for long.
  static std::vector<std::byte> pattern(size_t bytes, uint32_t seed) {
    std::vector<std::byte> data(bytes);
    uint32_t x = seed;
    for (std::byte& b : data) {
      x = x * 1664525u + 1013904223u;
      b = static_cast<std::byte>(x >> 24);
    }
    return data;
  }
  std::vector<std::byte> content(const void* at, size_t bytes) {
    std::vector<std::byte> data(bytes, std::byte{0xee});
    device->download(data.data(), at, bytes);
    return data;
  }
};

TEST_P(DeviceContract, SaysWhatItIs) {
  EXPECT_EQ(device->name(), GetParam());
  EXPECT_NE(device->description(), "");
  EXPECT_GT(device->free_bytes(), 0u);
  EXPECT_LE(device->free_bytes(), device->total_bytes());
  const int wave = device->kernels().wave;
  EXPECT_EQ(wave, GetParam() == "sim:64" || GetParam().starts_with("hip") ? 64 : 32);
}

TEST_P(DeviceContract, MemoryIsZeroed) {
  for (int round = 0; round < 3; ++round) {
    void* memory = device->allocate(100000);
    EXPECT_EQ(content(memory, 100000), std::vector<std::byte>(100000));
    const auto data = pattern(100000, 7);
    device->upload(memory, data.data(), data.size());
    device->release(memory);
  }
  device->release(nullptr);
}

TEST_P(DeviceContract, BytesGoThereAndBack) {
  // Around the size of a staging slot (16 MiB), of a bounce (4 MiB), and of the threaded copies.
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{255}, size_t{4} << 20, (size_t{4} << 20) + 1,
                             (size_t{16} << 20) - 3, (size_t{16} << 20) + 5, (size_t{100} << 20) + 17}) {
    void* memory = device->allocate(bytes + 1);
    std::vector<std::byte> data = pattern(bytes, static_cast<uint32_t>(bytes));
    const std::vector<std::byte> copy = data;
    device->upload(memory, data.data(), bytes);
    std::fill(data.begin(), data.end(), std::byte{0x55});  // the bytes were taken
    EXPECT_TRUE(content(memory, bytes) == copy) << bytes;
    device->release(memory);
  }
}

TEST_P(DeviceContract, UploadsOfAllSizesKeepTheirOrder) {
  // More than the staging ring holds (64 MiB), in pieces of 1 byte to 3 MB, each written over by the next.
  constexpr size_t kBytes = size_t{3} << 20;
  auto* memory = static_cast<std::byte*>(device->allocate(kBytes));
  std::vector<std::byte> expected(kBytes);
  uint32_t x = 1;
  for (size_t sent = 0; sent < size_t{90} << 20;) {
    x = x * 1664525u + 1013904223u;
    const size_t length = 1 + (x >> 8) % (x % 5 == 0 ? kBytes : size_t{3000});
    const size_t at = (x >> 4) % (kBytes - length + 1);
    std::vector<std::byte> data = pattern(length, x);
    device->upload(memory + at, data.data(), length);
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(at));
    sent += length + 100000;
  }
  EXPECT_TRUE(content(memory, kBytes) == expected);
  device->release(memory);
}

TEST_P(DeviceContract, CopiesAndZerosAreInOrder) {
  constexpr size_t kBytes = 1 << 20;
  auto* a = static_cast<std::byte*>(device->allocate(kBytes));
  auto* b = static_cast<std::byte*>(device->allocate(kBytes));
  const auto first = pattern(kBytes, 1), second = pattern(kBytes, 2);
  device->upload(a, first.data(), kBytes);
  device->copy(b, a, kBytes);
  device->upload(a, second.data(), kBytes);
  device->zero(b + 100, 1000);
  auto expected = first;
  std::fill_n(expected.begin() + 100, 1000, std::byte{0});
  EXPECT_TRUE(content(b, kBytes) == expected);
  EXPECT_TRUE(content(a, kBytes) == second);
  device->copy(b, a, 0);
  device->zero(b, 0);
  device->synchronize();
  device->release(a);
  device->release(b);
}

TEST_P(DeviceContract, TooMuchMemoryIsAnErrorWithBothNumbers) {
  const uint64_t asked = device->total_bytes() * 3;
  EXPECT_THAT(refusal([&] { device->allocate(asked); }), HasSubstr("free")) << device->name();
  void* memory = device->allocate(1000);  // and nothing is left of it
  device->synchronize();
  device->release(memory);
}

/// Launches kernels that leave `id` at `at`.
struct MarkedLaunch : Launch {
  MarkedLaunch(const Device& device, uint32_t* to, uint32_t number) : at(to), id(number) {
    stream = device.stream();
    warpgroups = device.warpgroups();
  }
  Mark mark(const char*) const override { return {at, id}; }
  uint32_t* at;
  uint32_t id;
};

TEST_P(DeviceContract, AKernelLeavesItsMarkInTheHostsMemory) {
  auto* mark = static_cast<uint32_t*>(device->allocate_host(sizeof(uint32_t)));
  EXPECT_EQ(*mark, 0u);
  auto* x = static_cast<float*>(device->allocate(3 * sizeof(float)));
  const float numbers[3] = {1.5f, 2.0f, 0.25f};
  device->upload(x, numbers, sizeof numbers);
  device->kernels().add(MarkedLaunch(*device, mark, 77), AddCall{x, x + 1, 1, x + 2});
  float sum = 0.0f;
  device->download(&sum, x + 2, sizeof sum);
  EXPECT_EQ(sum, 3.5f);
  EXPECT_EQ(*mark, 77u);
  device->release(x);
  device->release_host(mark);
}

/// The rest of a process in which a kernel has written to no memory of its own: what the next call says.
[[noreturn]] void tell_of_a_fault(Device& device) {
  auto* mark = static_cast<uint32_t*>(device.allocate_host(sizeof(uint32_t)));
  device.running = [mark] { return fmt::format("kernel {}", *mark); };
  auto* x = static_cast<float*>(device.allocate(4096));
  device.kernels().add(MarkedLaunch(device, mark, 1), AddCall{x, x, 16, x});
  device.kernels().add(MarkedLaunch(device, mark, 2), AddCall{x, x, 16, x + (int64_t{1} << 44)});
  try {
    device.synchronize();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  std::_Exit(0);
}

TEST_P(DeviceContract, AFaultNamesTheKernelThatWasRunning) {
  if (sim()) return;  // its faults end the call itself
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(tell_of_a_fault(*device), testing::ExitedWithCode(0), GetParam() + ": .*running: kernel 2");
}

TEST_P(DeviceContract, GraphsDoLaterWhatWasRecorded) {
  constexpr size_t kBytes = 4096;
  auto* a = static_cast<std::byte*>(device->allocate(kBytes));
  auto* b = static_cast<std::byte*>(device->allocate(kBytes));
  auto* sum = static_cast<float*>(device->allocate(2 * sizeof(float)));
  const auto before = pattern(kBytes, 2);
  device->upload(a, before.data(), kBytes);
  device->begin_capture();
  device->copy(b, a, kBytes);
  device->zero(b, 16);
  device->kernels().add(MarkedLaunch(*device, nullptr, 0), AddCall{sum, sum, 1, sum + 1});
  const std::unique_ptr<Graph> graph = device->end_capture();
  ASSERT_NE(graph, nullptr);
  EXPECT_EQ(content(b, kBytes), std::vector<std::byte>(kBytes)) << "nothing has run yet";
  for (const uint32_t seed : {3u, 4u}) {
    const auto number = static_cast<float>(seed);
    device->upload(sum, &number, sizeof number);
    auto expected = pattern(kBytes, seed);
    device->upload(a, expected.data(), kBytes);
    device->launch(*graph);
    std::fill_n(expected.begin(), 16, std::byte{0});
    EXPECT_TRUE(content(b, kBytes) == expected) << seed;
    float twice = 0.0f;
    device->download(&twice, sum + 1, sizeof twice);
    EXPECT_EQ(twice, 2.0f * number);
  }
  device->release(sum);
  device->release(a);
  device->release(b);
}

TEST_P(DeviceContract, WhatIsLentIsWhatTheDeviceHadThen) {
  const size_t most = device->most_lent();
  auto* memory = static_cast<std::byte*>(device->allocate(most));
  for (const uint32_t seed : {1u, 2u}) {
    const auto data = pattern(most, seed);
    device->upload(memory, data.data(), data.size());
    const void* all = device->lend(memory, data.size());
    EXPECT_EQ(std::memcmp(all, data.data(), data.size()), 0);
    const void* part = device->lend(memory + 1000, 24);
    device->zero(memory, data.size());  // what is lent stays
    device->synchronize();
    EXPECT_EQ(std::memcmp(part, data.data() + 1000, 24), 0);
  }
  device->release(memory);
}

TEST_P(DeviceContract, ARecordingTakesNoBytesFromTheHost) {
  void* memory = device->allocate(64);
  std::vector<std::byte> data(64);
  device->begin_capture();
  EXPECT_THAT(refusal([&] { device->upload(memory, data.data(), 64); }), HasSubstr("recorded"));
  EXPECT_THAT(refusal([&] { device->download(data.data(), memory, 64); }), HasSubstr("recorded"));
  EXPECT_THAT(refusal([&] { device->lend(memory, 64); }), HasSubstr("recorded"));
  EXPECT_THAT(refusal([&] { device->allocate(64); }), HasSubstr("recorded"));
  EXPECT_THAT(refusal([&] { device->synchronize(); }), HasSubstr("recorded"));
  EXPECT_THAT(refusal([&] { device->begin_capture(); }), HasSubstr("recorded"));
  device->zero(memory, 64);
  const auto graph = device->end_capture();
  device->launch(*graph);
  EXPECT_EQ(content(memory, 64), std::vector<std::byte>(64));
  device->release(memory);
}

TEST_P(DeviceContract, TwoOfThemDoNotDisturbEachOther) {
  const std::unique_ptr<Device> other = gpu::open_device(GetParam());
  void* mine = device->allocate(1000);
  void* theirs = other->allocate(1000);
  const auto data = pattern(1000, 9);
  device->upload(mine, data.data(), 1000);
  std::vector<std::byte> seen(1000, std::byte{1});
  other->download(seen.data(), theirs, 1000);
  EXPECT_EQ(seen, std::vector<std::byte>(1000));
  EXPECT_TRUE(content(mine, 1000) == data);
  other->release(theirs);
  device->release(mine);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DeviceContract);
INSTANTIATE_TEST_SUITE_P(Targets, DeviceContract, testing::ValuesIn(test::usable_gpus()),
                         test::gpu_test_name);

}  // namespace
}  // namespace greta::gpu
