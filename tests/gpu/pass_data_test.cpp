// What a pass's kernels read of its batch, by itself: that it arrives whole, at places that follow from the
// sizes alone.
#include "backend/gpu/pass_data.h"

#include <gtest/gtest.h>

#include <vector>

#include "gpu_devices.h"

namespace greta::gpu {
namespace {

/// A batch and the page tables of two layers.
struct Given {
  std::vector<int32_t> tokens, positions, sequences, picked, pages, window_pages;
  int64_t sequence_count = 1;
  BatchView batch;
  std::vector<KvLayer> layers;

  /// Row r: token `token` + r at positions[r] of sequences[r].
  Given(int32_t token, std::vector<int32_t> at, std::vector<int32_t> of, std::vector<int32_t> wanted)
      : positions(std::move(at)), sequences(std::move(of)), picked(std::move(wanted)) {
    constexpr int64_t kStride = 5;
    for (size_t r = 0; r < positions.size(); ++r) tokens.push_back(token + static_cast<int32_t>(r));
    for (const int32_t s : sequences) sequence_count = std::max<int64_t>(sequence_count, s + 1);
    for (int32_t i = 0; i < sequence_count * kStride; ++i) {
      pages.push_back(token * 100 + i);
      window_pages.push_back(-token * 100 - i);
    }
    batch = {static_cast<int64_t>(tokens.size()), tokens.data(), positions.data(), sequences.data(),
             sequence_count};
    for (const std::vector<int32_t>* table : {&pages, &window_pages, &pages}) {
      KvLayer layer;
      layer.pages = table->data();
      layer.page_stride = kStride;
      layers.push_back(layer);
    }
  }
  Given(const Given&) = delete;
  Given& operator=(const Given&) = delete;
};

class GpuPassData : public testing::TestWithParam<std::string> {
 protected:
  bool put(const Given& given, int64_t tile_rows = 16) {
    return data_.put(given.batch, given.picked, given.layers, tile_rows);
  }
  std::vector<int32_t> words(const void* at, size_t count) {
    std::vector<int32_t> all(count, -77);
    device_->download(all.data(), at, count * sizeof(int32_t));
    return all;
  }
  void expect_whole(const Given& given) {
    const DeviceBatch batch = data_.batch();
    EXPECT_EQ(batch.rows, given.batch.rows);
    EXPECT_EQ(words(batch.tokens, given.tokens.size()), given.tokens);
    EXPECT_EQ(words(batch.positions, given.positions.size()), given.positions);
    EXPECT_EQ(words(batch.sequences, given.sequences.size()), given.sequences);
    EXPECT_EQ(words(data_.rows(given.picked), given.picked.size()), given.picked);
    EXPECT_EQ(words(data_.pages(given.pages.data()), given.pages.size()), given.pages);
    EXPECT_EQ(words(data_.pages(given.window_pages.data()), given.window_pages.size()), given.window_pages);
  }
  /// {first row, rows, sequence, first position} of each.
  std::vector<std::vector<int32_t>> tiles() {
    std::vector<std::vector<int32_t>> all;
    for (int64_t t = 0; t < data_.tile_count(); ++t) all.push_back(words(data_.tiles() + t, 4));
    return all;
  }
  std::vector<const void*> places(const Given& given) const {
    const DeviceBatch batch = data_.batch();
    return {batch.tokens,
            batch.positions,
            batch.sequences,
            data_.tiles(),
            data_.rows(given.picked),
            data_.pages(given.pages.data()),
            data_.pages(given.window_pages.data())};
  }

  std::unique_ptr<Device> device_ = gpu::open_device(GetParam());
  PassData data_{*device_};
};

TEST_P(GpuPassData, ArrivesWhole) {
  const Given one(7, {62, 63, 64, 3}, {0, 0, 0, 1}, {2, 3});
  EXPECT_TRUE(put(one));
  expect_whole(one);
  const Given next(9, {65, 4, 5, 6}, {0, 1, 1, 1}, {0, 3});
  EXPECT_FALSE(put(next)) << "the same sizes: nothing moves";
  expect_whole(next);
}

/// Else a recorded pass would read the one before.
TEST_P(GpuPassData, LiesWhereThePassBeforeLay) {
  const Given one(7, {62, 63, 3}, {0, 0, 1}, {1, 2});
  put(one);
  const std::vector<const void*> before = places(one);
  for (int32_t token = 20; token < 23; ++token) {
    const Given next(token, {token, token + 1, token + 9}, {0, 0, 1}, {0, 2});
    EXPECT_FALSE(put(next));
    EXPECT_EQ(places(next), before);
    expect_whole(next);
  }
  for (const void* place : before) EXPECT_EQ(reinterpret_cast<uintptr_t>(place) % 16, 0u);
}

TEST_P(GpuPassData, SaysThatItsMemoryMoves) {
  const Given small(1, {0}, {0}, {0});
  EXPECT_TRUE(put(small));
  std::vector<int32_t> positions(300), sequences(300, 0);
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i);
  const Given large(1, positions, sequences, {299});
  EXPECT_TRUE(put(large));
  expect_whole(large);
  EXPECT_FALSE(put(small)) << "there is room";
  expect_whole(small);
}

TEST_P(GpuPassData, KnowsItsOwn) {
  const Given one(7, {5, 6}, {0, 0}, {1}), other(7, {5, 6}, {0, 0}, {1});
  EXPECT_FALSE(data_.has(one.batch, nullptr));
  put(one);
  EXPECT_TRUE(data_.has(one.batch, nullptr));
  EXPECT_TRUE(data_.has(one.batch, one.pages.data()));
  EXPECT_TRUE(data_.has(one.batch, one.window_pages.data()));
  EXPECT_FALSE(data_.has(one.batch, other.pages.data()));
  EXPECT_FALSE(data_.has(other.batch, nullptr)) << "the same numbers in another array";
  EXPECT_EQ(data_.pages(nullptr), nullptr);
  EXPECT_NE(data_.rows(one.picked), nullptr);
  EXPECT_EQ(data_.rows(other.picked), nullptr);
}

TEST_P(GpuPassData, TilesAreRowsThatFollowEachOther) {
  // 0 to 4 of sequence 1, then a gap, then sequence 0, whose position follows sequence 1's.
  const Given given(1, {10, 11, 12, 13, 14, 20, 21, 22}, {1, 1, 1, 1, 1, 1, 1, 0}, {7});
  put(given, 3);
  const std::vector<std::vector<int32_t>> expected = {
      {0, 3, 1, 10}, {3, 2, 1, 13}, {5, 2, 1, 20}, {7, 1, 0, 22}};
  EXPECT_EQ(tiles(), expected);
  EXPECT_EQ(data_.tile_rows(), 3);
  put(given, 1);
  EXPECT_EQ(data_.tile_count(), 8);
}

TEST_P(GpuPassData, SplitsAreOfTheLongestRowUpToAPowerOfTwo) {
  const std::vector<std::pair<int32_t, int64_t>> cases = {{0, 1},   {63, 1},  {64, 2}, {127, 2},
                                                          {128, 4}, {255, 4}, {256, 8}};
  for (const auto& [last, splits] : cases) {
    const Given given(1, {last, 3}, {0, 1}, {0});
    put(given);
    EXPECT_EQ(data_.splits(), splits) << last;
  }
}

/// The plan counts with it.
TEST_P(GpuPassData, TakesNoMoreThanItSays) {
  for (const size_t rows : {1, 5, 64, 700}) {
    std::vector<int32_t> positions(rows), sequences(rows), picked(rows);
    for (size_t r = 0; r < rows; ++r) {
      positions[r] = static_cast<int32_t>(7 * r % 300);  // a tile each
      sequences[r] = static_cast<int32_t>(r % 3);
      picked[r] = static_cast<int32_t>(r);
    }
    const Given given(1, positions, sequences, picked);
    put(given);
    const auto* begin = reinterpret_cast<const char*>(data_.batch().tokens);
    uint64_t end = 0;
    for (const auto* table : {&given.pages, &given.window_pages})
      end = std::max(end,
                     static_cast<uint64_t>(
                         reinterpret_cast<const char*>(data_.pages(table->data()) + table->size()) - begin));
    EXPECT_EQ(data_.tile_count(), static_cast<int64_t>(rows));
    EXPECT_GE(end, 8 * rows * sizeof(int32_t));
    EXPECT_LE(end, PassData::bytes(static_cast<int64_t>(rows), given.sequence_count, 5)) << rows;
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuPassData);
INSTANTIATE_TEST_SUITE_P(Devices, GpuPassData, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

}  // namespace
}  // namespace greta::gpu
