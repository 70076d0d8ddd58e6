// The host as a device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/gpu/kernels.h"
#include "backend/gpu/sim/sim_device.h"
#include "base/error.h"

namespace greta::gpu {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

TEST(SimDevice, NamesItsWave) {
  for (const int wave : {32, 64}) {
    const auto device = make_sim_device(wave, 1);
    EXPECT_EQ(device->name(), "sim:" + std::to_string(wave));
    EXPECT_EQ(device->kernels().wave, wave);
    EXPECT_GT(device->free_bytes(), 0u);
    EXPECT_GE(device->total_bytes(), device->free_bytes());
  }
  EXPECT_THROW(make_sim_device(16, 1), Error);
}

TEST(SimDevice, HasZeroedAlignedMemory) {
  const auto device = make_sim_device(32, 1);
  std::array<uint8_t, 1000> bytes;
  for (const size_t size : {size_t{1}, size_t{255}, bytes.size()}) {
    void* memory = device->allocate(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
    bytes.fill(1);
    device->download(bytes.data(), memory, size);
    EXPECT_THAT(std::vector<uint8_t>(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size)), Each(0));
    device->release(memory);
  }
  device->synchronize();
}

TEST(SimDevice, CopiesInsideItsMemoryAlone) {
  const auto device = make_sim_device(64, 1);
  auto* one = static_cast<std::byte*>(device->allocate(16));
  auto* two = static_cast<std::byte*>(device->allocate(16));
  std::array<uint8_t, 16> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i);
  device->upload(one, bytes.data(), 16);
  device->copy(two + 8, one, 8);
  device->zero(two + 12, 2);
  device->download(bytes.data(), two, 16);
  EXPECT_EQ(bytes, (std::array<uint8_t, 16>{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 6, 7}));
  device->running = [] { return std::string("matmul"); };
  try {
    device->upload(one + 8, bytes.data(), 9);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("upload of 9 bytes"));
    EXPECT_THAT(e.what(), HasSubstr("matmul"));
  }
  EXPECT_THROW(device->download(bytes.data(), bytes.data(), 1), Error);
  EXPECT_THROW(device->copy(two, one - 1, 1), Error);
  EXPECT_THROW(device->zero(one, 17), Error);
  device->release(one);
  EXPECT_THROW(device->zero(one, 1), Error);
  device->release(two);
}

/// As a kernel would that AddressSanitizer does not watch.
__attribute__((no_sanitize("address"))) void write_unwatched(uint8_t* at) { *at = 1; }

TEST(SimDevice, FindsWritesJustOutside) {
  for (const ptrdiff_t where : {-1, 100, 300}) {
    const auto device = make_sim_device(32, 1);
    auto* memory = static_cast<uint8_t*>(device->allocate(100));
    write_unwatched(memory + where);
    device->release(memory);
    EXPECT_THROW(device->synchronize(), Error) << where;
    device->synchronize();  // said once
  }
  const auto device = make_sim_device(32, 1);
  device->release(device.get());
  EXPECT_THROW(device->allocate(1), Error);
}

}  // namespace
}  // namespace greta::gpu
