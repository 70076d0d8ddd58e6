// Passes recorded as graphs, by themselves: when one is recorded, what a launch of it does, and what ends it.
#include "backend/gpu/recordings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "backend/gpu/gpu_weights.h"
#include "base/error.h"
#include "gpu_devices.h"
#include "refusal.h"

namespace greta::gpu {
namespace {

using test::refusal;
using testing::HasSubstr;

/// A pass copies one number from `in` to `out` and counts a kernel.
class GpuRecordings : public testing::TestWithParam<std::string> {
 protected:
  void in(float value) { device_->upload(in_.data(), &value, sizeof value); }
  float out() {
    float value = 0.0f;
    device_->download(&value, out_.data(), sizeof value);
    return value;
  }
  enum class Ran { directly, recorded, launched };
  Ran pass(const RecordingKey& key, float value) {
    in(value);
    if (recordings_.begin(key, *device_, route_)) return Ran::launched;
    const bool recording = recordings_.recording();
    device_->copy(out_.data(), in_.data(), sizeof(float));
    route_["copy"] += 2;
    recordings_.end(*device_, route_);
    EXPECT_FALSE(recordings_.recording());
    return recording ? Ran::recorded : Ran::directly;
  }
  static RecordingKey key(int64_t rows = 1) {
    RecordingKey k;
    k.rows = rows;
    return k;
  }

  std::unique_ptr<Device> device_ = gpu::open_device(GetParam());
  DeviceMemory in_{*device_, sizeof(float)}, out_{*device_, sizeof(float)};
  Recordings recordings_;
  Recordings::Route route_;
};

TEST_P(GpuRecordings, TheSecondPassIsRecordedAndTheThirdLaunched) {
  EXPECT_EQ(pass(key(), 1.0f), Ran::directly);
  EXPECT_EQ(out(), 1.0f);
  EXPECT_EQ(pass(key(), 2.0f), Ran::recorded);
  EXPECT_EQ(out(), 2.0f) << "the recording is launched where it ends";
  for (const float value : {3.0f, 4.0f}) {
    EXPECT_EQ(pass(key(), value), Ran::launched);
    EXPECT_EQ(out(), value) << "it reads what lies there now";
  }
}

TEST_P(GpuRecordings, NothingRunsWhileItIsRecorded) {
  pass(key(), 1.0f);
  in(2.0f);
  ASSERT_FALSE(recordings_.begin(key(), *device_, route_));
  ASSERT_TRUE(recordings_.recording());
  device_->copy(out_.data(), in_.data(), sizeof(float));
  recordings_.abort(*device_);
  EXPECT_EQ(out(), 1.0f);
}

TEST_P(GpuRecordings, EveryPartOfTheKeyTellsPassesApart) {
  for (int i = 0; i < 3; ++i) pass(key(), 1.0f);
  std::vector<RecordingKey> others(7, key());
  others[0].model = this;
  others[1].workspace = this;
  others[2].cache = this;
  others[3].rows = 2;
  others[4].picked = 1;
  others[5].tiles = 1;
  others[6].splits = 1;
  for (const RecordingKey& other : others) EXPECT_EQ(pass(other, 5.0f), Ran::directly);
  EXPECT_EQ(pass(key(), 6.0f), Ran::launched);
}

TEST_P(GpuRecordings, PassesOfManyRowsAreNotRecorded) {
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(pass(key(Recordings::kMostRows + 1), 1.0f), Ran::directly);
    EXPECT_EQ(pass(key(Recordings::kMostRows), 1.0f), i == 0   ? Ran::directly
                                                      : i == 1 ? Ran::recorded
                                                               : Ran::launched);
  }
}

TEST_P(GpuRecordings, ItsRouteIsThatOfThePassAlone) {
  route_["earlier"] = 7;
  pass(key(), 1.0f);
  pass(key(), 1.0f);
  EXPECT_EQ(recordings_.route(key()), (Recordings::Route{{"copy", 2}}));
  EXPECT_EQ(route_, (Recordings::Route{{"copy", 4}, {"earlier", 7}}));
}

TEST_P(GpuRecordings, WhoNeedsTheHostIsNeverRecorded) {
  ASSERT_FALSE(recordings_.begin(key(), *device_, route_));
  recordings_.refuse(*device_);
  recordings_.end(*device_, route_);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(pass(key(), 1.0f), Ran::directly);
  pass(key(2), 1.0f);
  recordings_.refuse(*device_);  // no pass is open: nobody is meant
  EXPECT_EQ(pass(key(2), 1.0f), Ran::recorded);
}

TEST_P(GpuRecordings, ToNeedTheHostInARecordingIsAnErrorAndEndsIt) {
  pass(key(), 1.0f);
  ASSERT_FALSE(recordings_.begin(key(), *device_, route_));
  EXPECT_THAT(refusal([&] { recordings_.refuse(*device_); }), HasSubstr("needs the host in its middle"));
  EXPECT_FALSE(recordings_.recording());
  EXPECT_EQ(pass(key(), 2.0f), Ran::directly);
  EXPECT_EQ(out(), 2.0f);
}

TEST_P(GpuRecordings, APassThatDidNotEndIsNotRecordedAgain) {
  pass(key(), 1.0f);
  ASSERT_FALSE(recordings_.begin(key(), *device_, route_));
  recordings_.abort(*device_);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(pass(key(), 3.0f), Ran::directly);
  EXPECT_EQ(out(), 3.0f);
  recordings_.abort(*device_);  // nothing is open
  device_->begin_capture();     // nor on the device
  EXPECT_NE(device_->end_capture(), nullptr);
}

TEST_P(GpuRecordings, WhatIsForgottenBeginsAnew) {
  for (int i = 0; i < 3; ++i) pass(key(), 1.0f);
  recordings_.forget();
  EXPECT_EQ(pass(key(), 1.0f), Ran::directly);
  EXPECT_EQ(pass(key(), 1.0f), Ran::recorded);
}

TEST_P(GpuRecordings, SoManyAreKeptAndThenNone) {
  const auto numbered = [](int64_t i) {
    RecordingKey k;
    k.splits = i;
    return k;
  };
  for (int64_t i = 0; i < static_cast<int64_t>(Recordings::kMost); ++i)
    for (int times = 0; times < 2; ++times) pass(numbered(i), 1.0f);
  EXPECT_EQ(pass(numbered(0), 1.0f), Ran::launched);
  EXPECT_EQ(pass(numbered(-1), 1.0f), Ran::directly);  // one too many
  EXPECT_EQ(pass(numbered(0), 1.0f), Ran::directly);
  EXPECT_EQ(pass(numbered(-1), 1.0f), Ran::recorded);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuRecordings);
INSTANTIATE_TEST_SUITE_P(Devices, GpuRecordings, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

TEST(GpuKernelNames, AreNumberedWithWhatTheyServe) {
  KernelNames names;
  const OperatorName norm{"rmsnorm", 3, Stage::attn_norm}, head{"matmul", kNoLayer, Stage::logits};
  const uint32_t first = names.id("rows_norm", norm);
  EXPECT_NE(first, 0u);
  EXPECT_EQ(names.id("rows_norm", norm), first);
  EXPECT_NE(names.id("rows_norm", head), first);
  EXPECT_NE(names.id("other", norm), first);
  EXPECT_EQ(names.name(first), "kernel rows_norm of rmsnorm (layers.3.attn_norm)");
  EXPECT_EQ(names.name(names.id("rows_norm", head)), "kernel rows_norm of matmul (logits)");
  EXPECT_EQ(names.name(names.id("pack", {"loading", kNoLayer, Stage::embed_out})),
            "kernel pack while loading weights");
  EXPECT_EQ(names.name(0), "no kernel yet");
  EXPECT_EQ(names.name(99), "no kernel yet");
}

}  // namespace
}  // namespace greta::gpu
