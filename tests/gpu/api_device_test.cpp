// api_device.inl, the source of the CUDA and the HIP device, on an API that is checked and as slow as its
// rules allow (fake_api.h): that nothing is reused while the device reads it, and what its errors say.
#define GRETA_API_FAKE
#define GRETA_GPU_TARGET fake_target
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <utility>

#include "backend/gpu/device.h"
#include "backend/gpu/gpu_weights.h"
#include "backend/gpu/kernels.h"
#include "backend/gpu/timing.h"
#include "gpu/fake_api.h"
#include "refusal.h"

namespace greta::gpu::fake_target {
namespace {

constexpr const char* kTarget = "fake";
constexpr const char* kNoDriver = "no driver at all";
std::string version_shown(int version) { return fmt::format("version {}", version); }
std::string driver_version() { return "1.2"; }
std::string architecture(const fakeDeviceProp& properties) {
  return fmt::format("arch_{}", properties.major);
}
std::string lacks_kernels(const fakeDeviceProp& properties) { return properties.major < 8 ? "too old" : ""; }

bool has_warpgroups(const fakeDeviceProp& properties) { return properties.major == 9; }
double library_product_seconds(Device&, const ProductShape& product) {
  return 2.5 * static_cast<double>(product.rows);
}

}  // namespace
}  // namespace greta::gpu::fake_target

#include "backend/gpu/api_device.inl"

namespace greta::gpu::fake_target {

const Kernels& kernel_table() {
  static const Kernels table = [] {
    Kernels kernels;
    kernels.unpack = [](const Launch& how, const UnpackCall& call) {
      check_launch(fake_kernel(how.stream, [to = call.out] { *to = 7.0f; }), "unpack");
    };
    return kernels;
  }();
  return table;
}

namespace {

using test::refusal;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class ApiDeviceTest : public testing::Test {
 protected:
  void SetUp() override { fake = FakeMachine(); }
  void TearDown() override {
    EXPECT_EQ(fake.live, 0);
    EXPECT_TRUE(fake.pinned.empty());
  }
  static std::vector<std::byte> pattern(size_t bytes, uint32_t seed) {
    std::vector<std::byte> data(bytes);
    uint32_t x = seed;
    for (std::byte& b : data) {
      x = x * 1664525u + 1013904223u;
      b = static_cast<std::byte>(x >> 24);
    }
    return data;
  }
};

TEST_F(ApiDeviceTest, WhatKeepsADeviceFromOpeningIsSaidBeforeAnythingIsTaken) {
  const auto why = [](int index = 0) { return refusal([&] { open_device(index); }); };
  fake.count_status = fakeErrorNoDevice;
  EXPECT_EQ(why(), "fake:0: no device is visible");
  fake.count_status = fakeErrorInsufficientDriver;
  fake.driver = 12040;
  EXPECT_THAT(why(), AllOf(HasSubstr("version 12040 at most"), HasSubstr("needs version 13000")));
  fake.driver = 0;
  EXPECT_EQ(why(), "fake:0: no driver at all");
  fake.count_status = fakeErrorInvalidValue;
  EXPECT_THAT(why(), HasSubstr("fakeErrorOther"));
  fake.count_status = fakeSuccess;
  fake.devices = 2;
  EXPECT_THAT(why(2), AllOf(HasSubstr("fake:2: no such device"), HasSubstr("fake:1")));
  EXPECT_THAT(why(-1), HasSubstr("fake:-1: no such device"));
  fake.major = 7;
  EXPECT_EQ(why(1), "fake:1: Fake, arch_7: too old");
  EXPECT_TRUE(fake.current.empty());  // no device was woken
  EXPECT_EQ(fake.live, 0);
  EXPECT_EQ(fake.last, fakeSuccess);  // no launch will be told of it
}

TEST_F(ApiDeviceTest, SaysWhatItHas) {
  const auto device = open_device(0);
  EXPECT_EQ(device->description(), "Fake, arch_9, driver 1.2");
  EXPECT_EQ(device->multiprocessors(), 7);
  EXPECT_EQ(device->product_seconds({1, 3, 1}), 7.5);
  EXPECT_TRUE(device->warpgroups());
  fake.major = 8;
  EXPECT_FALSE(open_device(0)->warpgroups());
}

/// A stretch is recorded once and replayed: the host launches nothing in it.
TEST_F(ApiDeviceTest, TimesLaunchesAsAGraph) {
  const auto device = open_device(0);
  void* at = device->allocate(8);
  Stretch stretch;
  stretch.seconds = 0.0;
  stretch.least = 6;
  int launches = 0, recorded = 0;
  const Timing timing = time_launches(*device, stretch, [&](int64_t i) {
    device->zero(at, 8);
    ++launches;
    recorded = static_cast<int>(i) + 1;
  });
  device->release(at);
  EXPECT_EQ(timing.launches, 6);
  EXPECT_EQ(timing.repeats, 5);
  EXPECT_EQ(recorded, 6);
  EXPECT_EQ(launches, 1 + 4 + 6);
}

TEST_F(ApiDeviceTest, ListsDevicesUsableOrNot) {
  fake.devices = 2;
  std::vector<DeviceInfo> all = list(false);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[1].device, "fake:1");
  EXPECT_EQ(all[1].description, "Fake, arch_9");
  EXPECT_EQ(all[1].driver, "1.2");
  EXPECT_EQ(all[1].total_bytes, fake.total);
  EXPECT_FALSE(all[1].free_bytes);
  EXPECT_TRUE(fake.current.empty());
  EXPECT_EQ(list(true)[0].free_bytes, fake.total);
  fake.major = 7;
  EXPECT_EQ(list(true)[0].unusable, "too old");
  fake.count_status = fakeErrorNoDevice;
  all = list(true);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].device, "fake");
  EXPECT_EQ(all[0].unusable, "no device is visible");
}

TEST_F(ApiDeviceTest, UploadsAreTakenAndNoSlotIsWrittenWhileItIsRead) {
  const auto device = open_device(0);
  constexpr size_t kBytes = size_t{90} << 20;  // the ring has 32 MiB
  auto* memory = static_cast<std::byte*>(device->allocate(kBytes));
  const std::vector<std::byte> expected = pattern(kBytes, 1);
  uint32_t x = 5;
  for (size_t at = 0; at < kBytes;) {
    x = x * 1664525u + 1013904223u;
    const size_t length =
        std::min(kBytes - at, 1 + (x >> 8) % (x % 3 == 0 ? size_t{20} << 20 : size_t{70000}));
    std::vector<std::byte> piece(expected.begin() + static_cast<std::ptrdiff_t>(at),
                                 expected.begin() + static_cast<std::ptrdiff_t>(at + length));
    device->upload(memory + at, piece.data(), length);
    std::fill(piece.begin(), piece.end(), std::byte{0x77});
    at += length;
  }
  std::vector<std::byte> seen(kBytes);
  device->download(seen.data(), memory, kBytes);
  EXPECT_TRUE(seen == expected);
  device->release(memory);
}

TEST_F(ApiDeviceTest, SmallUploadsWaitForNothing) {
  const auto device = open_device(0);
  void* memory = device->allocate(64);
  auto* stream = static_cast<FakeStream*>(device->stream());
  int seen = 1;
  device->download(&seen, memory, sizeof seen);
  EXPECT_EQ(seen, 0);
  const size_t before = stream->done;
  for (int i = 0; i < 5000; ++i) device->upload(memory, &i, sizeof i);
  EXPECT_EQ(stream->done, before);
  EXPECT_EQ(fake.pinned.size(), 2u);  // one is of the way back: they share a slot
  device->download(&seen, memory, sizeof seen);
  EXPECT_EQ(seen, 4999);
  device->release(memory);
}

TEST_F(ApiDeviceTest, OutOfMemorySaysAskedAndFreeAndSpoilsNoLaunch) {
  const auto device = open_device(0);
  void* memory = device->allocate(56 << 20);
  const std::string why = refusal([&] { device->allocate(size_t{300} << 20); });
  EXPECT_THAT(why, AllOf(HasSubstr("fake:0"), HasSubstr("out of memory"), HasSubstr("314.6 MB asked for"),
                         HasSubstr("209.7 MB free")));
  EXPECT_EQ(fakeGetLastError(), fakeSuccess);
  device->synchronize();
  device->release(memory);
}

TEST_F(ApiDeviceTest, ARefusedCallIsNamedWithTheApisWords) {
  const auto device = open_device(0);
  const std::string why = refusal([&] { device->zero(&fake, 8); });
  EXPECT_EQ(why, "fake:0: fakeMemsetAsync: a refusal (fakeErrorOther)");
  EXPECT_EQ(fakeGetLastError(), fakeSuccess);
  fake.next_malloc = fakeErrorInvalidValue;
  EXPECT_THAT(refusal([&] { device->allocate(8); }), HasSubstr("fakeMalloc"));
}

TEST_F(ApiDeviceTest, AFaultIsToldWithWhatWasRunning) {
  const auto device = open_device(0);
  device->running = [] { return "kernel x of attention"; };
  void* memory = device->allocate(64);
  fake_kernel(device->stream(), [] { fake.sticky = fakeErrorIllegalAddress; });
  check_launch(fakeGetLastError(), "fine");
  char byte = 0;
  EXPECT_EQ(
      refusal([&] { device->download(&byte, memory, 1); }),
      "fake:0: an illegal address (fakeErrorIllegalAddress); running: kernel x of attention; noticed by "
      "fakeEventSynchronize");
  // Every later call tells of it too, launches among them; freeing throws nothing.
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { device->synchronize(); }, [&] { device->upload(memory, &byte, 1); },
           [&] { device->allocate(1); }, [&] { check_launch(fakeGetLastError(), "next"); }})
    EXPECT_THAT(refusal(call), HasSubstr("running: kernel x of attention"));
  EXPECT_THAT(refusal([&] { check_launch(fakeErrorIllegalAddress, "next"); }),
              HasSubstr("the launch of kernel next"));
  device->release(memory);
}

TEST_F(ApiDeviceTest, ARefusedLaunchNamesItsKernel) {
  const auto device = open_device(0);
  device->stream();
  EXPECT_EQ(refusal([] { check_launch(fakeErrorInvalidValue, "matmul"); }),
            "fake:0: the launch of kernel matmul: a refusal (fakeErrorOther)");
}

TEST_F(ApiDeviceTest, WhatCannotBeFreedIsToldAtTheNextWait) {
  const auto device = open_device(0);
  int elsewhere = 0;
  device->release(&elsewhere);  // throws nothing
  EXPECT_EQ(fakeGetLastError(), fakeSuccess);
  EXPECT_THAT(refusal([&] { device->synchronize(); }), HasSubstr("fakeFree"));
  device->synchronize();
}

TEST_F(ApiDeviceTest, AGraphDoesLaterWhatWasRecordedAndTakesNothingFromTheHost) {
  const auto device = open_device(0);
  auto* memory = static_cast<std::byte*>(device->allocate(64));
  std::byte data[64] = {};
  device->begin_capture();
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { device->upload(memory, data, 64); }, [&] { device->download(data, memory, 64); },
           [&] { device->lend(memory, 64); }, [&] { device->allocate(64); }, [&] { device->synchronize(); },
           [&] { device->begin_capture(); }})
    EXPECT_THAT(refusal(call), HasSubstr("while a graph is being recorded"));
  device->copy(memory + 32, memory, 16);
  const auto graph = device->end_capture();
  for (const unsigned char value : {1, 2}) {
    std::memset(data, value, sizeof data);
    device->upload(memory, data, 32);
    device->launch(*graph);
    device->download(data, memory + 32, 16);
    EXPECT_EQ(data[15], std::byte{value});
  }
  device->release(memory);
}

TEST_F(ApiDeviceTest, EveryCallMakesItsDeviceTheCurrentOne) {
  fake.devices = 3;
  const auto first = open_device(0), third = open_device(2);
  void* memory = first->allocate(64);
  std::byte data[64] = {};
  const std::vector<std::function<void()>> calls = {
      [&] { first->stream(); },
      [&] { first->free_bytes(); },
      [&] { first->release(first->allocate(1)); },
      [&] { first->release_host(first->allocate_host(1)); },
      [&] { first->upload(memory, data, 64); },
      [&] { first->download(data, memory, 64); },
      [&] { first->lend(memory, 64); },
      [&] { first->copy(memory, memory, 8); },
      [&] { first->zero(memory, 8); },
      [&] { first->synchronize(); },
      [&] { first->begin_capture(), first->launch(*first->end_capture()); }};
  for (size_t i = 0; i < calls.size(); ++i) {
    third->stream();
    fake.current.clear();
    calls[i]();
    ASSERT_FALSE(fake.current.empty()) << i;
    EXPECT_EQ(fake.current, std::vector<int>(fake.current.size(), 0)) << i;
  }
  first->release(memory);
}

/// Rows are read back by the threads of a pool, each of which begins with device 0.
TEST_F(ApiDeviceTest, WeightsAreReadBackFromAnyThread) {
  fake.devices = 2;
  const auto device = open_device(1);
  struct Plain : Launch {
    Mark mark(const char*) const override { return {}; }
  } launch;
  launch.stream = device->stream();
  ReadBack reader(*device, launch);
  GpuWeight weight;
  weight.reader = &reader;
  weight.rows = 1;
  weight.cols = 1;
  weight.matrices.emplace_back();
  const auto read = [&] {
    float value = 0.0f;
    weight.read_back(0, 1, &value);
    return value;
  };
  EXPECT_EQ(read(), 7.0f);
  std::string why;
  float value = 0.0f;
  std::thread([&] { why = refusal([&] { value = read(); }); }).join();
  EXPECT_EQ(why, "");
  EXPECT_EQ(value, 7.0f);
}

}  // namespace
}  // namespace greta::gpu::fake_target
