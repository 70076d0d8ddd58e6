// The measured limits are plausible, and what a step costs is what a hand would count.
#include "bench/limits.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>

#include "base/system.h"
#include "bench/cost.h"
#include "engine/engine.h"
#include "support.h"

namespace greta {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

TEST(Limits, ReadRateIsThatOfAPlainSumOrABitMore) {
  constexpr size_t kBytes = 64 << 20;
  std::vector<uint64_t> words(kBytes / 8, 3);
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const double start = seconds_now();
    uint64_t sum = 0;
    for (const uint64_t word : words) sum ^= word;
    asm volatile("" : : "r"(sum));
    best = std::max(best, kBytes / (seconds_now() - start));
  }
  const ReadLimit limit = measure_read_limit(kBytes, 1, 0.2);
  EXPECT_EQ(limit.buffer, kBytes);
  EXPECT_EQ(limit.threads, 1);
  EXPECT_FALSE(limit.pattern.empty());
  EXPECT_GT(limit.bytes_per_second, best * 0.7) << "a limit that a plain loop passes is none";
  EXPECT_LT(limit.bytes_per_second, best * 8) << "bytes that were not read were counted";
  const ReadLimit all = measure_read_limit(kBytes, usable_cpus(), 0.2);
  EXPECT_GT(all.bytes_per_second, best * 0.7);
  EXPECT_LE(all.threads, usable_cpus());
}

TEST(Limits, BufferIsAsAsked) {
  EXPECT_EQ(measure_read_limit(1 << 20, 1, 0.01).buffer, uint64_t{1} << 20);
  EXPECT_EQ(measure_read_limit(0, 2, 0.01).buffer, 128u);  // a line a thread
}

TEST(Limits, ComputeRates) {
  const ComputeLimit limit = measure_compute_limit(1, 0.3);
  EXPECT_GT(limit.fp32, 1e8);
  EXPECT_GE(limit.int16, limit.int8 / 2);
  EXPECT_GE(limit.int8 * 1.5, limit.int16);
  EXPECT_LT(limit.int8, 1e13);  // a loop that the compiler removed would be past this
  EXPECT_FALSE(limit.instructions.empty());
}

TEST(Limits, TheMachineIsKnown) {
  EXPECT_GE(last_level_cache_bytes(), uint64_t{256} << 10);
  EXPECT_FALSE(cpu_name().empty());
}

class Cost : public testing::Test {
 protected:
  Plan plan_of(SynthOptions options) {
    const std::string path = folder / "m.gguf";
    synthesise(options, path, 1);
    model.emplace(ModelFile::open(path));
    EngineOptions engine;
    engine.backend.threads = 1;
    return Engine::plan(*model, *make_backend("cpu", engine.backend), engine);
  }
  test::TemporaryFolder folder;
  std::optional<ModelFile> model;
  SynthOptions shape = [] {
    SynthOptions options;
    options.dim = 64;
    options.layers = 2;
    options.heads = 4;
    options.kv_heads = 2;
    options.ffn_dim = 96;
    options.vocab = 300;
    options.type = quant::Type::Q8_0;
    return options;
  }();
  // One layer: q and o [64, 64], k and v [32, 64], gate, up and down [96, 64]; two norms.
  static constexpr uint64_t kLayerProducts = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64;
  static constexpr uint64_t kNorms = (2 * 2 + 1) * 64 * 4;
  static constexpr uint64_t kHead = 300 * 64;
};

TEST_F(Cost, BytesOfAStep) {
  const Plan separate = plan_of(shape);
  const uint64_t matrices = (2 * kLayerProducts + kHead) / 32 * 34;
  EXPECT_EQ(weight_bytes_read(separate, WeightMode::stored, 1), matrices + kNorms + 64 / 32 * 34);
  EXPECT_EQ(weight_bytes_read(separate, WeightMode::stored, 5), matrices + kNorms + 5 * 64 / 32 * 34);
  EXPECT_EQ(weight_bytes_read(separate, WeightMode::f32, 1), (2 * kLayerProducts + kHead) * 4 + kNorms + 68);
  EXPECT_EQ(model_bytes(separate, WeightMode::stored), matrices + kNorms + kHead / 32 * 34);
  // Keys and values: 2 layers, 2 kv heads of 16.
  EXPECT_EQ(kv_bytes_read(separate.hp, KvType::f16, 10), 10u * 2 * 2 * 32 * 2);
  EXPECT_EQ(kv_bytes_read(separate.hp, KvType::f32, 10), 10u * 2 * 2 * 32 * 4);
}

TEST_F(Cost, ATiedHeadIsReadWholeAndOnce) {
  shape.tied = true;
  const Plan tied = plan_of(shape);
  EXPECT_EQ(weight_bytes_read(tied, WeightMode::stored, 1), (2 * kLayerProducts + kHead) / 32 * 34 + kNorms);
  EXPECT_EQ(model_bytes(tied, WeightMode::stored), weight_bytes_read(tied, WeightMode::stored, 1));
}

TEST_F(Cost, Int8ModePadsARowsLastBlock) {
  shape.type = quant::Type::F16;
  shape.ffn_dim = 80;  // 2.5 blocks of 32
  const Plan plan = plan_of(shape);
  const uint64_t products = 2 * 64 * 64 + 2 * 32 * 64 + 2 * 80 * 64;
  EXPECT_EQ(weight_bytes_read(plan, WeightMode::int8, 1),
            (2 * products + kHead) / 32 * 34 + 2 * 64 * 3 * 34 + kNorms + 64 * 2);
}

TEST_F(Cost, ProductsOfAPrefill) {
  const Plan plan = plan_of(shape);
  const Work work = prefill_work(plan, WeightMode::stored, 10, 7);
  EXPECT_EQ(work.integer, 7.0 * 2 * kLayerProducts + kHead);
  double attention = 0;
  for (int row = 0; row < 7; ++row)
    for (int layer = 0; layer < 2; ++layer)
      for (int head = 0; head < 4; ++head)
        for (int key = 0; key <= 10 + row; ++key) attention += 2 * 16;
  EXPECT_EQ(work.real, attention);
  const Work real = prefill_work(plan, WeightMode::f32, 0, 1);
  EXPECT_EQ(real.integer, 0.0);
  ComputeLimit limit;
  limit.int8 = 4e9;
  limit.int16 = 2e9;
  limit.fp32 = 1e9;
  EXPECT_DOUBLE_EQ(least_seconds({2e9, 1e9}, limit, Activations::bits16), 2.0);
  EXPECT_DOUBLE_EQ(least_seconds({2e9, 1e9}, limit, Activations::bits8), 1.5);
}

}  // namespace
}  // namespace greta
