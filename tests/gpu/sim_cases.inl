// What the emulation computes and what it finds, for one wave size: included by sim32_test.cpp and
// sim64_test.cpp, which define GRETA_SIM_WAVE and
// GRETA_SIM_SUITE.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/gpu/sim/target.h"
#include "base/error.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSeeds = 10;
constexpr int kFoundAtLeast = 9;  ///< of kSeeds

/// A launch in the order that a seed gives.
class Seeded : public Launch {
 public:
  explicit Seeded(uint64_t seed = 1) : order_{seed} { stream = &order_; }
  Mark mark(const char* kernel) const override {
    last = kernel;
    return {&reached, 7};
  }
  mutable std::string last;
  mutable uint32_t reached = 0;

 private:
  sim::Stream order_;
};

/// The headline of the error that `run` ends with; empty: none.
template <class Run>
std::string error_of(Run run) {
  try {
    run();
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

/// In how many of kSeeds `wrong(seed)` holds or throws an Error.
template <class Wrong>
int seeds_that_find(Wrong wrong) {
  int found = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    bool bad = true;
    try {
      bad = wrong(seed);
    } catch (const Error&) {
    }
    found += bad;
  }
  return found;
}

// ---- a reduction over a block

enum class Fault { none, no_barrier, masks_of_32, past_the_end, no_copy_wait, early_copy_wait };

/// out[block] = sum of x[block, :].
template <Fault F>
GRETA_KERNEL void block_sum(Mark mark, const float* x, int width, float* out) {
  entered(mark);
  Shared shared;
  const int waves = block_threads() / kWave;
  const auto partial = shared.array<float>(waves);
  float sum = 0.0f;
  for (int i = thread_index(); i < width; i += block_threads()) sum += x[block_x() * width + i];
  for (int mask = F == Fault::masks_of_32 ? 16 : kWave / 2; mask > 0; mask /= 2)
    sum += shuffle_xor(sum, mask);
  if (lane_index() == 0) partial[wave_index()] = sum;
  if (F != Fault::no_barrier) barrier();
  if (thread_index() != 0) return;
  float total = 0.0f;
  for (int w = 0; w < waves + (F == Fault::past_the_end ? 1 : 0); ++w) total += partial[w];
  out[block_x()] = total;
}

/// Whether a sum is not what it should be; of small integers, so every order gives the same.
template <Fault F>
bool block_sum_is_wrong(uint64_t seed) {
  constexpr int kRows = 4, kWidth = 1000, kWaves = 4;
  std::vector<float> x(kRows * kWidth), out(kRows, -1.0f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 13);
  launch(Seeded(seed), "block_sum", block_sum<F>, {kRows, 1, 1}, kWaves * kWave, kWaves * 4, x.data(), kWidth,
         out.data());
  for (int r = 0; r < kRows; ++r) {
    float expected = 0.0f;
    for (int i = 0; i < kWidth; ++i) expected += x[r * kWidth + i];
    if (out[r] != expected) return true;
  }
  return false;
}

TEST(GRETA_SIM_SUITE, ReducesOverABlock) { EXPECT_EQ(seeds_that_find(block_sum_is_wrong<Fault::none>), 0); }

TEST(GRETA_SIM_SUITE, FindsAMissingBarrier) {
  EXPECT_GE(seeds_that_find(block_sum_is_wrong<Fault::no_barrier>), kFoundAtLeast);
}

TEST(GRETA_SIM_SUITE, FindsTheAssumptionOf32LanesWhereItIsWrong) {
  const int found = seeds_that_find(block_sum_is_wrong<Fault::masks_of_32>);
  if (kWave == 32) {
    EXPECT_EQ(found, 0);
  } else {
    EXPECT_GE(found, kFoundAtLeast);
  }
}

TEST(GRETA_SIM_SUITE, FindsAReadPastTheEndOfSharedMemory) {
  EXPECT_GE(seeds_that_find(block_sum_is_wrong<Fault::past_the_end>), kFoundAtLeast);
  EXPECT_THAT(error_of([] { block_sum_is_wrong<Fault::past_the_end>(1); }),
              AllOf(HasSubstr("kernel block_sum"), HasSubstr("thread 0: element 4 of shared memory, of 4")));
}

// ---- asynchronous copies

/// out[block, :] = x[block, :] reversed in each tile of 4 * threads, two tiles in flight.
template <Fault F>
GRETA_KERNEL void reversed(Mark mark, const float* x, int tiles, float* out) {
  entered(mark);
  Shared shared;
  const int tile = 4 * block_threads();
  const auto stage = shared.array<float>(2 * tile);
  const auto fetch = [&](int t) {
    const bool valid = t < tiles;
    copy_async16(stage, t % 2 * tile + 4 * thread_index(),
                 x + (block_x() * tiles + t) * tile + 4 * thread_index(), valid);
    copy_commit();
  };
  fetch(0);
  for (int t = 0; t < tiles; ++t) {
    fetch(t + 1);
    if (F == Fault::none) copy_wait<1>();
    if (F == Fault::early_copy_wait) copy_wait<2>();
    barrier();
    const auto now = stage.from(t % 2 * tile);
    for (int i = 4 * thread_index(); i < 4 * thread_index() + 4; ++i)
      out[(block_x() * tiles + t) * tile + i] = now[tile - 1 - i];
    barrier();
  }
}

template <Fault F>
bool reversed_is_wrong(uint64_t seed) {
  constexpr int kBlocks = 2, kTiles = 3, kThreads = 64, kTile = 4 * kThreads;
  struct alignas(16) Rows {
    std::array<float, kBlocks * kTiles * kTile> x;
  };
  Rows from;
  for (size_t i = 0; i < from.x.size(); ++i) from.x[i] = static_cast<float>(i);
  std::vector<float> out(from.x.size());
  launch(Seeded(seed), "reversed", reversed<F>, {kBlocks, 1, 1}, kThreads, 2 * kTile * 4, from.x.data(),
         kTiles, out.data());
  for (size_t i = 0; i < out.size(); ++i)
    if (out[i] != from.x[i / kTile * kTile + kTile - 1 - i % kTile]) return true;
  return false;
}

TEST(GRETA_SIM_SUITE, CopiesTilesInFlight) { EXPECT_EQ(seeds_that_find(reversed_is_wrong<Fault::none>), 0); }

TEST(GRETA_SIM_SUITE, FindsAMissingCopyWait) {
  EXPECT_GE(seeds_that_find(reversed_is_wrong<Fault::no_copy_wait>), kFoundAtLeast);
  EXPECT_GE(seeds_that_find(reversed_is_wrong<Fault::early_copy_wait>), kFoundAtLeast);
}

GRETA_KERNEL void copy_of_nothing(Mark mark, float* out) {
  entered(mark);
  Shared shared;
  const auto stage = shared.array<float>(4 * block_threads());
  copy_async16(stage, 4 * thread_index(), nullptr, false);
  copy_commit();
  copy_wait<0>();
  for (int i = 0; i < 4; ++i) out[4 * thread_index() + i] = stage[4 * thread_index() + i];
}

TEST(GRETA_SIM_SUITE, ACopyThatIsNotValidGivesZeros) {
  std::vector<float> out(256, 1.0f);
  launch(Seeded(), "copy_of_nothing", copy_of_nothing, {}, 64, 1024, out.data());
  EXPECT_THAT(out, ::testing::Each(0.0f));
}

// ---- barriers and collectives that do not meet

GRETA_KERNEL void barrier_of_some(Mark mark) {
  entered(mark);
  if (thread_index() < 40) barrier();
}
template <class T>
GRETA_KERNEL void barriers_of_two_branches(Mark mark, T even) {
  entered(mark);
  if (thread_index() % 2 == even) {
    barrier();
  } else {
    barrier();
  }
}
GRETA_KERNEL void shuffle_of_some(Mark mark, float* out) {
  entered(mark);
  float x = 1.0f;
  if (lane_index() != 5) x = shuffle_xor(x, 1);
  barrier();
  out[thread_index()] = x;
}
GRETA_KERNEL void shuffle_past_the_wave(Mark mark, float* out) {
  entered(mark);
  out[thread_index()] = shuffle_xor(1.0f, kWave);
}
GRETA_KERNEL void multiply_of_some(Mark mark) {
  entered(mark);
  float c[kFragmentC] = {};
  if (lane_index() < kWave - 1) multiply(c, FragmentA{}, FragmentB{});
}

TEST(GRETA_SIM_SUITE, ABarrierThatSomeNeverReachIsAnErrorAndNoHang) {
  const auto stuck = [](uint64_t seed) {
    launch(Seeded(seed), "barrier_of_some", barrier_of_some, {}, 128, 0);
    return false;
  };
  EXPECT_EQ(seeds_that_find(stuck), kSeeds);
  EXPECT_THAT(error_of([&] { stuck(1); }), AllOf(HasSubstr("kernel barrier_of_some"),
                                                 HasSubstr("40 wait at barrier"), HasSubstr("88 ended")));
}

TEST(GRETA_SIM_SUITE, BarriersOfTwoBranchesDoNotMeet) {
  const auto apart = [](uint64_t seed) {
    launch(Seeded(seed), "barriers_of_two_branches", barriers_of_two_branches<int>, {}, 128, 0, 0);
    return false;
  };
  EXPECT_EQ(seeds_that_find(apart), kSeeds);
  EXPECT_THAT(error_of([&] { apart(1); }),
              AllOf(HasSubstr("at barrier (sim_cases.inl:"), HasSubstr("while others")));
}

TEST(GRETA_SIM_SUITE, ACollectiveOfSomeLanesIsAnError) {
  std::vector<float> out(64);
  EXPECT_THAT(error_of([&] { launch(Seeded(), "shuffle_of_some", shuffle_of_some, {}, 64, 0, out.data()); }),
              AllOf(HasSubstr("kernel shuffle_of_some"), HasSubstr("wait at shuffle")));
  EXPECT_THAT(error_of([&] { launch(Seeded(), "multiply_of_some", multiply_of_some, {}, 64, 0); }),
              AllOf(HasSubstr("kernel multiply_of_some"), HasSubstr("wait at multiply")));
  EXPECT_THAT(error_of([&] { launch(Seeded(), "past", shuffle_past_the_wave, {}, 64, 0, out.data()); }),
              HasSubstr("of a wave of"));
}

TEST(GRETA_SIM_SUITE, GoesOnAfterAnError) {
  EXPECT_NE(error_of([] { launch(Seeded(), "barrier_of_some", barrier_of_some, {}, 256, 0); }), "");
  EXPECT_FALSE(block_sum_is_wrong<Fault::none>(1));
}

// ---- shared memory

GRETA_KERNEL void reads_before_it_writes(Mark mark, float* out) {
  entered(mark);
  Shared shared;
  const auto values = shared.array<float>(block_threads());
  out[block_x() * block_threads() + thread_index()] = values[thread_index()];
  values[thread_index()] = 1.0f;
}
GRETA_KERNEL void misaligned_word(Mark mark) {
  entered(mark);
  Shared shared;
  const auto values = shared.array<uint16_t>(16);
  values.put_word(1, 0);
}
GRETA_KERNEL void array_of_many(Mark mark, int count) {
  entered(mark);
  Shared shared;
  shared.array<uint8_t>(1);
  shared.array<float>(count);
}

TEST(GRETA_SIM_SUITE, WhatNobodyWroteIsNaN) {
  std::vector<float> out(3 * 64);
  launch(Seeded(), "reads_before_it_writes", reads_before_it_writes, {3, 1, 1}, 64, 256, out.data());
  for (const float x : out) EXPECT_TRUE(std::isnan(x));
}

TEST(GRETA_SIM_SUITE, SharedMemoryIsCheckedAgainstTheLaunch) {
  EXPECT_EQ(error_of([] { launch(Seeded(), "array_of_many", array_of_many, {}, 64, 56, 10); }), "");
  EXPECT_THAT(
      error_of([] { launch(Seeded(), "array_of_many", array_of_many, {}, 64, 56, 11); }),
      AllOf(HasSubstr("kernel array_of_many"), HasSubstr("44 bytes of shared memory from byte 16 on")));
  EXPECT_THAT(error_of([] { launch(Seeded(), "misaligned_word", misaligned_word, {}, 64, 64); }),
              HasSubstr("not aligned"));
}

TEST(GRETA_SIM_SUITE, RefusesWhatTheChipWould) {
  const auto refusal = [](Grid grid, int threads, int bytes) {
    return error_of([&] { launch(Seeded(), "barrier_of_some", barrier_of_some, grid, threads, bytes); });
  };
  EXPECT_THAT(refusal({}, kWave + 1, 0), HasSubstr("threads a block"));
  EXPECT_THAT(refusal({}, 2048, 0), HasSubstr("threads a block"));
  EXPECT_THAT(refusal({}, 64, kWave == 32 ? 164 * 1024 : 65 * 1024), HasSubstr("shared memory"));
  EXPECT_THAT(refusal({1, 65536, 1}, 64, 0), HasSubstr("a grid of"));
}

// ---- the matrix unit

/// Each (row, column) that `row(lane, e)` and `column(lane, e)` name, with how many (lane, e) name it.
template <class Row, class Column>
std::vector<int> times_named(int rows, int columns, int fragment, Row row, Column column) {
  std::vector<int> times(static_cast<size_t>(rows * columns));
  for (int lane = 0; lane < kWave; ++lane)
    for (int e = 0; e < fragment; ++e)
      ++times.at(static_cast<size_t>(row(lane, e) * columns + column(lane, e)));
  return times;
}

TEST(GRETA_SIM_SUITE, FragmentsCoverEachElementOnce) {
  EXPECT_THAT(times_named(16, 16, kFragmentA, a_row, a_k), ::testing::Each(1));
  EXPECT_THAT(times_named(16, kTileN, kFragmentB, b_k, b_n), ::testing::Each(1));
  EXPECT_THAT(times_named(16, kTileN, kFragmentC, c_row, c_n), ::testing::Each(1));
  for (int lane = 0; lane < kWave; ++lane) {
    for (int e = 0; e < kFragmentA; e += 2) {
      EXPECT_EQ(a_row(lane, e), a_row(lane, e + 1));
      EXPECT_EQ(a_k(lane, e) + 1, a_k(lane, e + 1));
    }
    for (int e = 0; e < kFragmentB; e += 2) {
      EXPECT_EQ(b_n(lane, e), b_n(lane, e + 1));
      EXPECT_EQ(b_k(lane, e) + 1, b_k(lane, e + 1));
    }
    std::vector<bool> rows(16);
    for (int e = 0; e < kFragmentA; ++e) rows[static_cast<size_t>(a_row(lane, e))] = true;
    EXPECT_EQ(std::ranges::count(rows, true), kRowsA);
  }
}

/// c [waves, 16, kTileN] += a [waves, 16, 16] b [waves, kTileN, 16]^T
template <bool Bf16>
GRETA_KERNEL void tile_product(Mark mark, const uint16_t* a, const uint16_t* b, float* c) {
  entered(mark);
  constexpr int kStride = 24;
  Shared shared;
  const int waves = block_threads() / kWave;
  const auto a_shared = shared.array<uint16_t>(waves * 16 * kStride).from(wave_index() * 16 * kStride);
  const auto b_shared =
      shared.array<uint16_t>(waves * kTileN * kStride).from(wave_index() * kTileN * kStride);
  for (int i = lane_index(); i < 256; i += kWave)
    a_shared[i / 16 * kStride + i % 16] = a[wave_index() * 256 + i];
  for (int i = lane_index(); i < kTileN * 16; i += kWave)
    b_shared[i / 16 * kStride + i % 16] = b[wave_index() * kTileN * 16 + i];
  wave_barrier();
  float sum[kFragmentC];
  float* own = c + wave_index() * 16 * kTileN;
  const int lane = lane_index();
  for (int i = 0; i < kFragmentC; ++i) sum[i] = own[c_row(lane, i) * kTileN + c_n(lane, i)];
  const FragmentA left = fragment_a(a_shared, kStride);
  FragmentB right[1];
  fragments_b(b_shared, kStride, 0, right);
  if (Bf16) {
    multiply_bf16(sum, left, right[0]);
  } else {
    multiply(sum, left, right[0]);
  }
  for (int i = 0; i < kFragmentC; ++i) own[c_row(lane, i) * kTileN + c_n(lane, i)] = sum[i];
}

template <bool Bf16>
void expect_plain_product(float scale) {
  constexpr int kWaves = 3 * 64 / kWave;
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<uint16_t> a(kWaves * 256), b(kWaves * kTileN * 16);
  std::vector<float> c(kWaves * 16 * kTileN);
  for (uint16_t& x : a) x = Bf16 ? to_bf16(normal(random)) : to_f16(normal(random));
  for (uint16_t& x : b) x = Bf16 ? to_bf16(normal(random)) : to_f16(normal(random));
  for (float& x : c) x = normal(random);
  std::vector<float> expected = c;
  const auto number = [](uint16_t x) { return Bf16 ? from_bf16(x) : from_f16(x); };
  for (int w = 0; w < kWaves; ++w)
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < kTileN; ++n)
        for (int k = 0; k < 16; ++k) {
          float& sum = expected[static_cast<size_t>((w * 16 + m) * kTileN + n)];
          sum = std::fma(number(a[static_cast<size_t>((w * 16 + m) * 16 + k)]),
                         number(b[static_cast<size_t>((w * kTileN + n) * 16 + k)]), sum);
        }
  launch(Seeded(), "tile_product", tile_product<Bf16>, {}, kWaves * kWave, kWaves * (16 + kTileN) * 24 * 2,
         a.data(), b.data(), c.data());
  EXPECT_EQ(c, expected);
}

TEST(GRETA_SIM_SUITE, MultipliesAsAPlainProduct) {
  for (const float scale : {1.0f, 1e-5f, 100.0f}) expect_plain_product<false>(scale);
  for (const float scale : {1.0f, 1e-22f, 1e15f}) expect_plain_product<true>(scale);
}

// ---- threads and their order

GRETA_KERNEL void order_of_threads(Mark mark, int* next, int* order) {
  entered(mark);
  order[(*next)++] = block_x() * block_threads() + thread_index();
}

std::vector<int> order_of(uint64_t seed) {
  std::vector<int> order(4 * 128);
  int next = 0;
  launch(Seeded(seed), "order_of_threads", order_of_threads, {4, 1, 1}, 128, 0, &next, order.data());
  return order;
}

TEST(GRETA_SIM_SUITE, TheSeedGivesTheOrder) {
  EXPECT_EQ(order_of(1), order_of(1));
  EXPECT_NE(order_of(1), order_of(2));
  std::vector<int> sorted = order_of(3);
  std::ranges::sort(sorted);
  for (size_t i = 0; i < sorted.size(); ++i) EXPECT_EQ(sorted[i], static_cast<int>(i));
}

GRETA_KERNEL void any_thread(Mark mark, int which, unsigned long long* count) {
  entered(mark);
  if (block_any(thread_index() == which)) atomic_add(count, 1);
  if (block_any(false)) atomic_add(count, 1000);
  const int from = shuffle(thread_index(), kWave - 1);
  if (from != wave_index() * kWave + kWave - 1) atomic_add(count, 1000);
}

TEST(GRETA_SIM_SUITE, AnyOfABlock) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const Seeded how(seed);
    unsigned long long count = 0;
    launch(how, "any_thread", any_thread, {2, 1, 3}, 256, 0, 77, &count);
    EXPECT_EQ(count, 6u * 256);
    launch(how, "any_thread", any_thread, {1, 1, 1}, 256, 0, -1, &count);
    EXPECT_EQ(count, 6u * 256);
    EXPECT_EQ(how.last, "any_thread");
    EXPECT_EQ(how.reached, 7u);
  }
}

TEST(GRETA_SIM_SUITE, LargerIsNaNOnlyOfTwo) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(larger(nan, -1.0f), -1.0f);
  EXPECT_EQ(larger(-1.0f, nan), -1.0f);
  EXPECT_TRUE(std::isnan(larger(nan, nan)));
  EXPECT_FALSE(std::signbit(larger(-0.0f, 0.0f)));
  EXPECT_FALSE(std::signbit(larger(0.0f, -0.0f)));
  EXPECT_EQ(larger(2.0f, 3.0f), 3.0f);
}

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
