// The measured limits are plausible, and what a step costs is what a hand would count.
#include "bench/limits.h"

#include <gtest/gtest.h>
#include <immintrin.h>
#include <sys/mman.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <span>

#include "base/system.h"
#include "bench/cost.h"
#include "engine/engine.h"
#include "support.h"

namespace greta {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Bytes a second of a plain sum.
double plain_read_rate(std::span<const uint64_t> words) {
  const double start = seconds_now();
  uint64_t sum = 0;
  for (const uint64_t word : words) sum ^= word;
  asm volatile("" : : "r"(sum));
  return static_cast<double>(words.size_bytes()) / (seconds_now() - start);
}

/// Plain loops and measurements in turn, as the machine's rate moves: the best of each. The bounds leave room
/// for a neighbour on the machine, and none for a factor of 3.
TEST(Limits, ReadRateIsThatOfAPlainSumOrABitMore) {
  constexpr size_t kBytes = 64 << 20;
  constexpr size_t kHugePage = 2 << 20;
  auto* data = static_cast<uint64_t*>(std::aligned_alloc(kHugePage, kBytes));
  ::madvise(data, kBytes, MADV_HUGEPAGE);
  std::iota(data, data + kBytes / 8, 3);
  ReadMeter one(kBytes, 1);
  ReadMeter all(kBytes, usable_cpus());
  double plain = 0, one_thread = 0, all_threads = 0;
  for (int i = 0; i < 10; ++i) {
    for (int pass = 0; pass < 8; ++pass) plain = std::max(plain, plain_read_rate({data, kBytes / 8}));
    const ReadLimit limit = one.measure(0.03);
    EXPECT_EQ(limit.buffer, kBytes);
    EXPECT_EQ(limit.threads, 1);
    EXPECT_FALSE(limit.pattern.empty());
    one_thread = std::max(one_thread, limit.bytes_per_second);
    const ReadLimit together = all.measure(0.06);
    EXPECT_LE(together.threads, usable_cpus());
    all_threads = std::max(all_threads, together.bytes_per_second);
  }
  std::free(data);
  EXPECT_GT(one_thread, plain * 0.8) << "a limit that a plain loop passes is none";
  EXPECT_LT(one_thread, plain * 3) << "bytes that were not read were counted";
  EXPECT_GT(all_threads, one_thread * 0.75);
  EXPECT_LT(all_threads, one_thread * 2 * usable_cpus());
}

TEST(Limits, ASmallBufferIsReadAgainAndAgain) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's build measures its own checks";
  const std::vector<uint64_t> words((256 << 10) / 8, 3);
  ReadMeter meter(256 << 10, 1);
  double plain = 0, limit = 0;
  for (int i = 0; i < 10; ++i) {
    for (int pass = 0; pass < 200; ++pass) plain = std::max(plain, plain_read_rate(words));
    limit = std::max(limit, meter.measure(0.02).bytes_per_second);
  }
  EXPECT_GT(limit, plain * 0.8);
  EXPECT_LT(limit, plain * 8) << "four times the vector at twice a cycle";
}

TEST(Limits, BufferIsAsAsked) {
  EXPECT_EQ(ReadMeter(1 << 20, 1).measure(0.01).buffer, uint64_t{1} << 20);
  EXPECT_EQ(ReadMeter(0, 2).measure(0.01).buffer, 128u);  // a line a thread
  const uint64_t uneven = (uint64_t{200} << 20) + 64;     // three slices that are not equal to the byte
  EXPECT_EQ(ReadMeter(uneven, 1).measure(0.3).buffer, uneven);
}

constexpr int kRounds = 100'000;

/// Eight chains of FP32 multiply-adds, each `Vector` one instruction: the plain way to the peak.
#define GRETA_PLAIN_FMA(name, isa, Vector, fma, set1)                  \
  __attribute__((target(isa))) double name() {                         \
    Vector sums[8] = {};                                               \
    const Vector factor = set1(0.5f);                                  \
    const double start = seconds_now();                                \
    for (int round = 0; round < kRounds; ++round)                      \
      for (auto& sum : sums) sum = fma(sum, factor, factor);           \
    const double seconds = seconds_now() - start;                      \
    for (auto& sum : sums) asm volatile("" : : "v"(sum));              \
    return kRounds * 8.0 * (sizeof(Vector) / sizeof(float)) / seconds; \
  }
GRETA_PLAIN_FMA(plain_fma_256, "avx2,fma", __m256, _mm256_fmadd_ps, _mm256_set1_ps)
GRETA_PLAIN_FMA(plain_fma_512, "avx512f", __m512, _mm512_fmadd_ps, _mm512_set1_ps)
#undef GRETA_PLAIN_FMA

TEST(Limits, ComputeRates) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) GTEST_SKIP() << "no AVX2 here";
  if (kSanitized) GTEST_SKIP() << "a sanitizer's build measures its own checks";
  double plain = 0, fp32 = 0, int8 = 0, int16 = 0;
  for (int i = 0; i < 10; ++i) {
    plain = std::max(plain, plain_fma_256());
    if (__builtin_cpu_supports("avx512f")) plain = std::max(plain, plain_fma_512());
    const ComputeLimit limit = measure_compute_limit(1, 0.06);
    EXPECT_FALSE(limit.instructions.empty());
    EXPECT_EQ(limit.threads, 1);
    fp32 = std::max(fp32, limit.fp32);
    int8 = std::max(int8, limit.int8);
    int16 = std::max(int16, limit.int16);
  }
  EXPECT_GT(fp32, plain * 0.8) << "a limit that a plain loop passes is none";
  EXPECT_LT(fp32, plain * 1.5) << "a loop that the compiler removed would be past this";
  // Twice as many 16-bit products as FP32 ones fit a register, four times as many 8-bit ones; adding them up
  // takes other instructions beside the multiplication where there is no VNNI.
  EXPECT_GE(int16, int8 / 2);
  EXPECT_GE(int8, int16 * 0.8);
  EXPECT_GT(int16, fp32 * 0.8);
  EXPECT_LT(int16, fp32 * 2.5);
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
  // Keys and values: 2 layers, 2 kv heads of 16; steps at positions 9, 10 and 11.
  EXPECT_EQ(kv_bytes_read(separate.hp, KvType::f16, 9, 3), (10 + 11 + 12) * 2 * 2 * 32 * 2);
  EXPECT_EQ(kv_bytes_read(separate.hp, KvType::f32, 9, 3), (10 + 11 + 12) * 2 * 2 * 32 * 4);
}

TEST_F(Cost, AWindowsLayersReadTheWindow) {
  shape.arch = "gemma3";
  shape.layers = 6;  // the last is global
  shape.window = 11;
  const Plan plan = plan_of(shape);
  ASSERT_EQ(plan.hp.window_of(0), 11);
  ASSERT_EQ(plan.hp.window_of(5), 0);
  const int position = 2 * 32 * 2;
  EXPECT_EQ(kv_bytes_read(plan.hp, KvType::f16, 9, 3), (5 * (10 + 11 + 11) + (10 + 11 + 12)) * position);
  EXPECT_EQ(kv_bytes_read(plan.hp, KvType::f16, 100, 2), (5 * (11 + 11) + (101 + 102)) * position);
  const double products = 2 * 4 * 16;  // of a key, in four heads of 16
  EXPECT_EQ(prefill_work(plan, WeightMode::f32, 9, 3).real - prefill_work(plan, WeightMode::f32, 8, 3).real,
            (5 * (11 - 9) + 3) * products);
}

TEST_F(Cost, ExpertsAreReadAsTheyAreChosen) {
  shape.arch = "qwen3moe";
  shape.experts = 8;
  shape.experts_used = 2;
  const Plan plan = plan_of(shape);
  const uint64_t expert = 3 * 96 * 64;
  const auto read = [&](WeightMode mode, int64_t batch) { return weight_bytes_read(plan, mode, batch); };
  const uint64_t row = 64 / 32 * 34;  // of the embedding
  EXPECT_EQ(read(WeightMode::stored, 3) - read(WeightMode::stored, 1), 2 * 4 * expert / 32 * 34 + 2 * row);
  EXPECT_EQ(read(WeightMode::f32, 3) - read(WeightMode::f32, 1), 2 * 4 * expert * 4 + 2 * row);
  EXPECT_EQ(read(WeightMode::stored, 4) + row, read(WeightMode::stored, 5)) << "all are read";
  const uint64_t others = 2 * 64 * 64 + 2 * 32 * 64 + 8 * 64;  // and the router, in F32
  const Work work = prefill_work(plan, WeightMode::f32, 0, 1);
  EXPECT_EQ(work.real, 2.0 * (others + 2 * expert) + kHead + 2 * 2 * 64);
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
