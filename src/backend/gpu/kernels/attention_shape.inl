#pragma once
// How an attention block is cut into waves, and what it works on.
#include "backend/gpu/kernels/elementary.inl"
#include "backend/gpu/kernels/launchers.h"
#include "backend/gpu/kernels/orders.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

inline constexpr int kSplit = 64;             ///< keys; aligned to absolute position (kKvPage)
inline constexpr float kProbability = 15.0f;  ///< p is 2^15 for a split's largest score
inline constexpr int kWorkBytes = 64;         ///< of shared memory
inline constexpr uint32_t kMinusInfinity = 0xff800000u;
inline constexpr float kLog2E = 0x1.715476p+0f;  ///< log2(e), within 2^-26 of itself

// Elements of C [16, kTileN] that a lane has: kRowsC rows, of each kSameRowC neighbours; element i is of row
// i / kSameRowC. kRowLanes consecutive lanes hold a row.
inline constexpr int kSameRowC = c_row(0, 1) == c_row(0, 0) ? 2 : 1;
inline constexpr int kRowsC = kFragmentC / kSameRowC;
inline constexpr int kRowLanes = kTileN / kSameRowC;

constexpr bool c_is_as_stated() {
  for (int lane = 0; lane < kWave; ++lane)
    for (int i = 0; i < kFragmentC; ++i) {
      if (c_row(lane, i) != c_row(lane / kRowLanes * kRowLanes, i / kSameRowC * kSameRowC)) return false;
      if (c_n(lane, i) != lane % kRowLanes * kSameRowC + i % kSameRowC) return false;
    }
  return true;
}
static_assert(c_is_as_stated());
static_assert(16 % kTileN == 0);

/// A block has kRows pairs (row, head), 16 to a row tile. kParts waves share kTiles row tiles: each takes its
/// part of the keys for the scores, and its part of head_dim for the values. Small: one row tile, for few
/// rows. K and V come in slabs of 64 keys and kSlab of head_dim's at most HeadDim elements. A small block of
/// whole heads is decode's: all its pairs are of one row, which comes with its own k and v, without a soft
/// cap.
template <int HeadDim, bool IsBf16, bool Small, bool Whole>
struct Shape {
  static_assert(HeadDim <= kMostHeadDim);
  static constexpr int kHeadDim = HeadDim;
  static constexpr bool kBf16 = IsBf16;
  static constexpr bool kSmall = Small;
  static constexpr bool kWhole = Whole;  ///< head_dim is HeadDim
  static constexpr bool kDecode = Small && Whole;
  static constexpr int kSlab = HeadDim < 128 ? HeadDim : 128;
  static constexpr int kSlabs = HeadDim / kSlab;
  static constexpr int kStride = kSlab + 8;  ///< of a key in a slab: no two lanes meet in a bank
  static constexpr int kSteps = HeadDim / 16;
  static constexpr int kSlabSteps = kSlab / 16;
  static constexpr int kOperands = IsBf16 ? 2 : 1;  ///< bf16: a high and a low part

  static constexpr int kParts = Small || (IsBf16 && HeadDim > 128) ? 4 : 2;
  static constexpr int kTiles = Small || IsBf16 || HeadDim > 128 ? 1 : 2;
  static constexpr int kWaves = Small ? kParts : 256 / kWave;
  static constexpr int kThreads = kWaves * kWave;
  static constexpr int kRows = kWaves / kParts * kTiles * 16;
  /// Of a multiprocessor, as far as registers reach without spilling (or shared memory: 64 KiB with waves of
  /// 64).
  static constexpr int blocks(bool apart) {
    if (kThreads > 128 || IsBf16 || HeadDim > 128) return 1;
    return apart || HeadDim <= 64 ? 4 : 3;
  }
  static constexpr int kKeys = kSplit / kParts;     ///< of a wave
  static constexpr int kKeyTiles = kKeys / kTileN;  ///< of a wave
  static constexpr int kGroups = kKeys / 16;        ///< of a wave: 16 keys are summed first
  static constexpr int kGroupTiles = 16 / kTileN;
  static constexpr int kValueTiles = kSlab / kTileN / kParts;  ///< of a wave, in a slab
  static constexpr int kAtOnce = kValueTiles * kTiles < 4 ? kValueTiles : 4 / kTiles;

  // Shared memory, in 16-bit elements: two slabs as they come; a small block's q; P; then floats.
  static constexpr int kSlot = kSplit * kStride;
  static constexpr int kQueryStride = HeadDim + 8;
  static constexpr int kQueries = kOperands * kRows * kQueryStride;
  /// The operands of q pass through: a small block's in a room of their own, so that K and V can be on their
  /// way; others' where the slabs will be.
  static constexpr int kQueriesAt = Small ? 2 * kSlot : 0;
  static constexpr int kQueriesRoom = Small ? kQueries : 0;
  static_assert(Small || kQueries <= 2 * kSlot);
  static constexpr int kProbabilityStride = kSplit + 8;
  static constexpr int kProbabilities = kOperands * kRows * kProbabilityStride;
  static constexpr int kSharedBytes =
      2 * (2 * kSlot + kQueriesRoom + kProbabilities) + 4 * (4 + 4 + 1) * kRows + kWorkBytes;
};

/// A range of keys, last included; empty where last < first.
struct Keys {
  int first;
  int last;

  GRETA_DEVICE bool has(int key) const { return first <= key && key <= last; }
  GRETA_DEVICE bool meets(int split) const {
    return first <= last && first < (split + 1) * kSplit && last >= split * kSplit;
  }
  GRETA_DEVICE bool covers(int split) const {
    return first <= split * kSplit && last >= (split + 1) * kSplit - 1;
  }
};

/// The keys that a row at `position` sees.
GRETA_DEVICE Keys visible_at(int position, int window) {
  const int first = window == 0 ? 0 : position - window + 1;
  return {first < 0 ? 0 : first, position};
}

/// The same for all blocks of a launch.
struct Grouping {
  int tile_blocks;         ///< of a tile
  int group;               ///< heads of a kv head
  uint32_t group_inverse;  ///< 2^32 / group, rounded up; 0 for 1
};
inline Grouping grouping_of(const AttentionCall& call, int64_t tile_blocks) {
  const int group = call.heads / call.cache.kv_heads;
  return {static_cast<int>(tile_blocks), group,
          group == 1 ? 0 : 0xffffffffu / static_cast<uint32_t>(group) + 1};
}

/// What a block works on: of a tile's rows and the `group` heads of a kv head, in pairs (row, head) with the
/// head running faster, `pairs` from pair `first` on.
struct Work {
  AttentionTile tile;
  int kv_head;
  int group;
  uint32_t group_inverse;
  int first;
  int pairs;
  Keys any;  ///< that some row sees
  Keys all;  ///< that every row sees

  GRETA_DEVICE int row(int pair) const {  ///< of the tile
    if (tile.count == 1) return 0;
    const auto n = static_cast<uint32_t>(first + pair);
    const auto quotient = static_cast<uint32_t>((uint64_t{n} * group_inverse) >> 32);
    return static_cast<int>(group_inverse == 0 ? n : quotient);
  }
  GRETA_DEVICE int position(int pair) const { return tile.first_position + row(pair); }
  /// Index of (row, head) in q and out: [rows * heads].
  GRETA_DEVICE int64_t at(int pair, int heads) const {
    const int of = row(pair);
    return (static_cast<int64_t>(tile.first_row) + of) * heads + kv_head * group +
           (first + pair - of * group);
  }
};

static_assert(sizeof(Work) <= kWorkBytes);

/// Block (part of a tile, kv head). Tiles from the last on: they tend to see most keys, and whoever takes
/// longest should begin first. OneRow: every tile has one, and at most as many heads as a block has pairs.
/// False: nothing to do here.
template <class S, bool OneRow = false>
GRETA_DEVICE bool find_work(const AttentionCall& call, const Grouping& grouping, Work& work) {
  const int index = grid_x() - 1 - block_x();
  const int tile = OneRow || grouping.tile_blocks == 1 ? index : index / grouping.tile_blocks;
  work.tile = call.tiles[tile];
  if (OneRow) work.tile.count = 1;
  work.kv_head = block_y();
  work.group = grouping.group;
  work.group_inverse = grouping.group_inverse;
  work.first = (index - tile * grouping.tile_blocks) * S::kRows;
  work.pairs = work.tile.count * work.group - work.first;
  if (work.pairs <= 0) return false;
  if (work.pairs > S::kRows) work.pairs = S::kRows;
  const Keys low = visible_at(work.position(0), call.window);
  const Keys high = visible_at(work.position(work.pairs - 1), call.window);
  work.any = {low.first, high.last};
  work.all = {high.first, low.last};
  return true;
}

// The softmax is taken in powers of two: of a row, p[j] = 2^(fused(s[j], exponent, -m)) with m = fused(max s,
// exponent, -15), so that p is the matrix unit's operand as it stands. m is what it is, rounding and all: it
// is the same in every p of the split, and the merge takes it back. A row's result is O (1 / L).

/// Of a row whose q is behind the power of two `up`: what makes the matrix unit's sums exponents; with a soft
/// cap, scores. Normal, so that -infinity stays what it is.
GRETA_DEVICE float score_unit(const AttentionCall& call, float up) {
  const float unit = inverse_power(up) * call.scale;
  return larger(call.softcap > 0.0f ? unit : unit * kLog2E, 0x1p-126f);
}
/// What makes s exponents: sums of the matrix unit that are behind `unit`, or capped scores.
GRETA_DEVICE float exponent_of(const AttentionCall& call, float unit) {
  return call.softcap > 0.0f ? kLog2E : unit;
}
GRETA_DEVICE float split_largest(float largest, float exponent) {
  return fused(largest, exponent, -kProbability);
}
GRETA_DEVICE float probability(float s, float exponent, float m) { return exp2_of(fused(s, exponent, -m)); }

/// What merging a split into the state takes: (M, L, O) -> (largest, fused(L, a, l b), fused(O, a, o b)).
struct Merging {
  float largest;
  float a;
  float b;
};
GRETA_DEVICE Merging merging(float before, float of_split) {
  const float largest = larger(before, of_split);
  return {largest, exp2_of(before - largest), exp2_of(of_split - largest)};
}

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
