// What a GPU cannot compute, or not hold, is told while a model is planned and loaded, never computed.
#include "model/plan.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/gpu/kernels/orders.h"
#include "engine/engine.h"
#include "gpu_devices.h"
#include "kernels/random_inputs.h"
#include "refusal.h"
#include "synth/synth.h"
#include "temporary_folder.h"

namespace greta {
namespace {

using test::refusal;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Lines = std::vector<std::string>;

constexpr float kInf = std::numeric_limits<float>::infinity();

class GpuPlan : public testing::TestWithParam<std::string> {
 protected:
  Lines problems(const std::string& device, uint64_t head_dim, uint64_t experts, uint64_t used) const {
    SynthOptions synth;
    synth.dim = 64;
    synth.layers = 1;
    synth.ffn_dim = 32;
    synth.heads = 1;
    synth.kv_heads = 1;
    synth.head_dim = head_dim;
    synth.experts = experts;
    synth.experts_used = used;
    synth.vocab = 300;
    synth.context = 64;
    synth.type = quant::Type::F16;
    synthesise(synth, folder_ / "m.gguf", 2);
    const ModelFile model = ModelFile::open(folder_ / "m.gguf");
    Lines lines;
    for (const auto& problem : Engine::plan(model, *make_backend(device, {}), {}).problems)
      lines.push_back(problem.text());
    return lines;
  }
  const test::TemporaryFolder folder_;
};

TEST_P(GpuPlan, ShapesPastTheKernelsAreProblems) {
  const auto line = [&](const char* what, const char* expected, int64_t got) {
    return fmt::format("{}: expected {} on {}, got {} (--device cpu computes any)", what, expected,
                       GetParam(), got);
  };
  const auto head = [&](int64_t got) { return line("head_dim", "a multiple of 2 of at most 256", got); };
  EXPECT_THAT(problems(GetParam(), 256, 256, 32), IsEmpty());
  EXPECT_THAT(problems(GetParam(), 258, 0, 0), ElementsAre(head(258)));
  EXPECT_THAT(problems(GetParam(), 320, 257, 33), ElementsAre(head(320), line("experts", "at most 256", 257),
                                                              line("experts_used", "at most 32", 33)));
  EXPECT_THAT(problems("cpu", 320, 257, 33), IsEmpty());
  EXPECT_THAT(problems("reference", 320, 257, 33), IsEmpty());
}

TEST_P(GpuPlan, LacksAnOddHeadDim) {
  const auto backend = make_backend(GetParam(), {});
  const auto gaps = backend->lacks({.head_dim = 63});
  ASSERT_EQ(gaps.size(), 1u);
  EXPECT_EQ(gaps[0].what, "head_dim");
  EXPECT_EQ(gaps[0].got, 63);
  EXPECT_THAT(make_backend("cpu", {})->lacks({.head_dim = 63}), IsEmpty());
}

/// Of who calls operators without a plan.
TEST_P(GpuPlan, OperatorsRefuseThemToo) {
  const auto backend = make_backend(GetParam(), {});
  ChooseExpertsArgs args;
  args.rows = 1;
  args.logits = {nullptr, 257};
  args.experts = args.weights = {nullptr, 2};
  EXPECT_THAT(refusal([&] { backend->choose_experts(args); }), HasSubstr("experts: expected at most 256"));
  AttentionArgs attention;
  attention.heads = 1;
  attention.cache.kv_heads = 1;
  attention.cache.head_dim = 320;
  EXPECT_THAT(refusal([&] { backend->attention(attention); }), HasSubstr("at most 256, got 320"));
}

// ---- what packing cannot keep

/// A matrix whose first block has this scale.
gpu::HostMatrix with_scale(quant::Type type, float scale, int64_t rows = 4, int64_t cols = 512) {
  gpu::HostMatrix m = gpu::random_matrix(type, rows, cols, 3);
  const auto at = static_cast<size_t>(gpu::half_fields(type).scale);
  gpu::put_half(m, at, scale);
  return m;
}

/// What is said of it when it has been loaded.
std::string said(const std::string& device, const gpu::HostMatrix& m, const BackendOptions& options = {},
                 int64_t copies = 1) {
  const auto backend = make_backend(device, options);
  std::vector<std::unique_ptr<Weight>> weights;
  for (int64_t i = 0; i < copies; ++i)
    weights.push_back(
        backend->load({fmt::format("w{}", i), m.type, m.rows, m.cols, m.bytes}, WeightUse::matmul));
  testing::internal::CaptureStderr();
  std::string error = refusal([&] { backend->synchronize(); });
  const std::string warned = testing::internal::GetCapturedStderr();
  EXPECT_EQ(refusal([&] { backend->synchronize(); }), "") << "told once";
  return warned + error;
}

TEST_P(GpuPlan, SuperBlocksThatAreLostAreTold) {
  for (const auto type : {quant::Type::Q2_K, quant::Type::Q3_K, quant::Type::Q6_K}) {
    EXPECT_EQ(said(GetParam(), with_scale(type, 1.0f)), "");
    EXPECT_THAT(said(GetParam(), with_scale(type, kInf)),
                AllOf(HasSubstr("w0: 256 of its 2048 values cannot be held"), HasSubstr("--weights f32")));
  }
}

/// A small scale beside weights past 2^15 in its row.
TEST_P(GpuPlan, ScalesThatAreLostAreTold) {
  for (const auto type : {quant::Type::Q4_0, quant::Type::Q5_0, quant::Type::Q8_0})
    for (const int64_t rows : {4, 512}) {
      gpu::HostMatrix m = with_scale(type, 0x1.ffcp-13f, rows, 64);
      const int second = quant::traits(type).bytes + gpu::half_fields(type).scale;
      gpu::put_half(m, static_cast<size_t>(second), 60000.0f);
      EXPECT_THAT(said(GetParam(), m), HasSubstr(rows == 4 ? "w0: 32 of its 256 values cannot be held"
                                                           : "w0: 32 of its 32768 values are not kept"));
    }
}

TEST_P(GpuPlan, Bf16FarBelowItsRowsLargestIsTold) {
  gpu::HostMatrix m = gpu::random_matrix(quant::Type::BF16, 4, 512, 3);
  EXPECT_EQ(said(GetParam(), m), "");
  const uint16_t tiny = 0x0081;  // 1.2e-38
  for (size_t i = 0; i < 20; ++i) std::memcpy(m.bytes.data() + 2 * i, &tiny, sizeof tiny);
  EXPECT_THAT(said(GetParam(), m), HasSubstr("w0: 20 of its 2048 values cannot be held"));
}

TEST_P(GpuPlan, Int8RefusesWhatTheCpuRefuses) {
  BackendOptions int8;
  int8.weights = WeightMode::int8;
  for (const float value : {kInf, std::numeric_limits<float>::quiet_NaN(), 8.4e6f, 8.2e6f}) {
    gpu::HostMatrix m = gpu::random_matrix(quant::Type::F32, 4, 512, 3);
    std::memcpy(m.bytes.data() + 700 * sizeof value, &value, sizeof value);
    const std::string on_cpu = refusal([&] {
      make_backend("cpu", int8)->load({"w0", m.type, m.rows, m.cols, m.bytes}, WeightUse::matmul)->settle();
    });
    const std::string here = said(GetParam(), m, int8);
    if (value == 8.2e6f) {
      EXPECT_EQ(on_cpu, "");
      EXPECT_THAT(here, testing::Not(HasSubstr("not finite")));
      continue;
    }
    EXPECT_THAT(on_cpu, HasSubstr("not finite or past 8.3 million; --weights int8 expects less"));
    EXPECT_THAT(here,
                HasSubstr("w0: 1 blocks of 32 weights hold one that is not finite or past 8.3 million"));
  }
}

TEST_P(GpuPlan, EveryTensorIsTold) {
  const auto m = with_scale(quant::Type::Q6_K, kInf);
  EXPECT_THAT(said(GetParam(), m, {}, 3), HasSubstr("3 tensors do not fit"));
  EXPECT_THAT(refusal([&] { said(GetParam(), m, {}, 1100); }), HasSubstr("1024 tensors do not fit"))
      << "more than are counted together";
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuPlan);
INSTANTIATE_TEST_SUITE_P(Device, GpuPlan, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

}  // namespace
}  // namespace greta
