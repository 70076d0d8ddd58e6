// Attention of many rows on Hopper: wgmma with q and p as A from registers, and a split's K and V as B from
// shared memory. The arithmetic is attention_block.inl's, number by number, and so are the bits: a
// warpgroup's 64 pairs (row, head) are four waves' 16, a wave has all 64 keys of its rows and all of
// head_dim, so that nothing passes between waves. f16 caches; head_dim 64 and 128. A translation unit of the
// targets that have warpgroups (target.h).
//
// A block: 128 pairs; one warpgroup brings K and V, each of two attends for 64.
#include "backend/gpu/cuda/warpgroup.h"
#include "backend/gpu/kernels/attention_shape.inl"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

namespace attending {
constexpr int kConsumers = 2;
constexpr int kPairs = 64 * kConsumers;
constexpr int kStages = 4;
/// Tiles of K and V on their way; fewer than all, so that who waits for a free one has told of what is there.
constexpr int kAhead = 5;
static_assert(kAhead < 2 * kStages);
constexpr int kThreads = kWarpgroup * (kConsumers + 1);
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;
static_assert(registers_suffice(kProducerRegisters, kConsumers, kConsumerRegisters));

template <int HeadDim>
struct Layout {
  static constexpr int kRows = kPairs;  ///< find_work()'s
  static constexpr int kSlab = 64;      ///< of head_dim: 128 bytes, [64 keys][kSlab], swizzled
  static constexpr int kSlabs = HeadDim / kSlab;
  static constexpr int kTile = kSplit * HeadDim;  ///< elements of K or V
  static constexpr int kQueryStride = HeadDim + 8;
  static constexpr int kSharedBytes =
      1024 + 2 * (2 * kStages * kTile + kPairs * kQueryStride) + 4 * kPairs + 4 * kStages * 8 + kWorkBytes;
};
}  // namespace attending

template <int HeadDim>
struct AttentionShared {
  static constexpr int kTile = attending::Layout<HeadDim>::kTile;
  SharedArray<uint16_t> keys;  ///< [kStages][kTile], begins on 1024 bytes
  SharedArray<uint16_t> values;
  SharedArray<uint16_t> queries;  ///< [kPairs][kQueryStride]
  SharedArray<float> units;       ///< [kPairs]
  SharedArray<uint64_t> barriers;
  GRETA_DEVICE SharedBarrier at(int kind, int stage) const {
    return SharedBarrier(barriers, kind * attending::kStages + stage);
  }
  GRETA_DEVICE SharedBarrier keys_full(int stage) const { return at(0, stage); }
  GRETA_DEVICE SharedBarrier keys_empty(int stage) const { return at(1, stage); }
  GRETA_DEVICE SharedBarrier values_full(int stage) const { return at(2, stage); }
  GRETA_DEVICE SharedBarrier values_empty(int stage) const { return at(3, stage); }
};

/// Where element d of a key lies in a tile of K or V.
GRETA_DEVICE int swizzled_at(int key, int d) {
  return d / 64 * (kSplit * 64) + key * 64 + ((d % 64 / 8) ^ (key % 8)) * 8 + d % 8;
}

// ---- K and V on their way
// ------------------------------------------------------------------------------------------

/// A warpgroup: K or V of a split, rows that no row of the block sees as zeros.
template <int HeadDim>
GRETA_DEVICE void bring_tile(const SharedArray<uint16_t>& to, const uint16_t* from, const Keys& any,
                             int split) {
  // A thread's keys are kStep apart, a multiple of the swizzle's 8: one address and what is known when
  // compiled. With an address of its own for each copy this took longer than the products.
  constexpr int kPieces = HeadDim / 8, kStep = kWarpgroup / kPieces;
  static_assert(kStep % 8 == 0);
  const int key = thread_index() / kPieces, d = thread_index() % kPieces * 8;
  const int at = swizzled_at(key, d);
  const uint16_t* const mine = from + key * HeadDim + d;
  if (any.covers(split)) {
    GRETA_UNROLL
    for (int i = 0; i < kSplit; i += kStep) copy_async16(to, at + i * 64, mine + i * HeadDim);
  } else {
    GRETA_UNROLL
    for (int i = 0; i < kSplit; i += kStep)
      copy_async16(to, at + i * 64, mine + i * HeadDim, any.has(split * kSplit + key + i));
  }
  copy_commit();
}

/// What this thread asked for is there, but for the `Left` newest tiles: says so.
template <int Left>
GRETA_DEVICE void arrived(const SharedBarrier& full) {
  copy_wait<Left>();
  publish_to_matrix_unit();
  full.arrive();
}

template <int HeadDim>
GRETA_DEVICE void bring_splits(const AttentionCall& call, const AttentionShared<HeadDim>& shared,
                               const Work& work) {
  using namespace attending;
  const Keys any = work.any;
  const int begin = any.first / kSplit, tiles = 2 * (any.last / kSplit + 1 - begin);
  const int64_t page_elements = static_cast<int64_t>(call.cache.kv_heads) * kSplit * HeadDim;
  const int64_t of_head = static_cast<int64_t>(work.kv_head) * kSplit * HeadDim;
  const int32_t* pages = call.cache.pages + work.tile.sequence * call.cache.page_stride;
  // Tile i is K of split begin + i / 2, or V.
  const auto full = [&](int tile) {
    const int stage = tile / 2 % kStages;
    return tile % 2 == 0 ? shared.keys_full(stage) : shared.values_full(stage);
  };
  int page = pages[begin];
  Turn<kStages> turn;
  for (int tile = 0; tile < tiles + kAhead; ++tile) {
    if (tile < tiles) {
      const bool value = tile % 2 != 0;
      const int split = begin + tile / 2;
      const int64_t at = page * page_elements + of_head;
      if (value && tile + 1 < tiles) page = pages[split + 1];
      if (turn.round > 0)
        (value ? shared.values_empty(turn.stage) : shared.keys_empty(turn.stage)).wait((turn.round - 1) & 1u);
      bring_tile<HeadDim>((value ? shared.values : shared.keys).from(turn.stage * shared.kTile),
                          (value ? call.cache.v : call.cache.k) + at, any, split);
      if (value) turn.advance();
    } else {
      copy_commit();  // nothing: as many are behind the one waited for as before
    }
    if (tile >= kAhead) arrived<kAhead>(full(tile - kAhead));
  }
}

// ---- a wave's 16 pairs
// ------------------------------------------------------------------------------------------------

template <int HeadDim>
struct WaveRows {
  static constexpr int kSteps = HeadDim / 16;
  static constexpr int kKeyTiles = kSplit / kTileN;
  using Scores = float[kSplit / 2];
  using Slab = float[attending::Layout<HeadDim>::kSlab / 2];  ///< of o

  const AttentionCall& call;
  const AttentionShared<HeadDim>& shared;
  const Work& work;
  int first;          ///< pair
  Keys all;           ///< that every row of the wave sees
  Keys sees[kRowsC];  ///< a lane's rows
  float unit[kRowsC];
  FragmentA q[kSteps];

  GRETA_DEVICE WaveRows(const AttentionCall& of, const AttentionShared<HeadDim>& in, const Work& on, int wave)
      : call(of), shared(in), work(on), first(wave * 16) {
    const int valid = work.pairs - first < 16 ? work.pairs - first : 16;
    all = {0, -1};
    if (valid > 0)
      all = {visible_at(work.position(first + valid - 1), call.window).first, work.position(first)};
    GRETA_UNROLL
    for (int r = 0; r < kRowsC; ++r) {
      const int row = c_row(lane_index(), r * kSameRowC);
      sees[r] = row < valid ? visible_at(work.position(first + row), call.window) : Keys{0, -1};
    }
    round_queries(valid);
    wave_barrier();
    GRETA_UNROLL
    for (int s = 0; s < kSteps; ++s) q[s] = fragment_a(queries().from(16 * s), kStride);
    GRETA_UNROLL
    for (int r = 0; r < kRowsC; ++r) unit[r] = shared.units[first + c_row(lane_index(), r * kSameRowC)];
  }
  static constexpr int kStride = attending::Layout<HeadDim>::kQueryStride;
  GRETA_DEVICE SharedArray<uint16_t> queries() const { return shared.queries.from(first * kStride); }

  /// As Block::round_query; eight rows are on their way together.
  GRETA_DEVICE void round_queries(int valid) const {
    constexpr int kWords = HeadDim / 2 / kWave, kAtOnce = 8;
    GRETA_UNROLL_BY(1)
    for (int row0 = 0; row0 < 16; row0 += kAtOnce) {
      Words2 x[kAtOnce][kWords];
      GRETA_UNROLL
      for (int r = 0; r < kAtOnce; ++r) {
        const bool there = row0 + r < valid;
        const float* from = call.q + (there ? work.at(first + row0 + r, call.heads) * HeadDim : 0);
        GRETA_UNROLL
        for (int i = 0; i < kWords; ++i)
          x[r][i] = there ? stream_words2(from + 2 * (lane_index() + i * kWave)) : Words2{0, 0};
      }
      GRETA_UNROLL
      for (int r = 0; r < kAtOnce; ++r) {
        float largest = 0.0f;
        GRETA_UNROLL
        for (int i = 0; i < kWords; ++i)
          largest =
              larger(larger(largest, magnitude_of(float_of(x[r][i].x))), magnitude_of(float_of(x[r][i].y)));
        GRETA_UNROLL
        for (int mask = 1; mask < kWave; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
        const float up = row_power(largest);
        GRETA_UNROLL
        for (int i = 0; i < kWords; ++i)
          queries().put_word((row0 + r) * kStride + 2 * (lane_index() + i * kWave),
                             pack_f16(float_of(x[r][i].x) * up, float_of(x[r][i].y) * up));
        if (lane_index() == 0) shared.units[first + row0 + r] = score_unit(call, up);
      }
    }
  }

  /// s of a split from the matrix unit's sums, -infinity for keys that a row does not see.
  GRETA_DEVICE void finish_scores(Scores& s, int split, bool covered) const {
    if (call.softcap > 0.0f) {
      GRETA_UNROLL
      for (int i = 0; i < kSplit / 2; ++i) s[i] = capped(s[i] * unit[i / kSameRowC % kRowsC], call.softcap);
    }
    if (covered) return;
    GRETA_UNROLL
    for (int i = 0; i < kSplit / 2; ++i) {
      const int key = split * kSplit + i / kFragmentC * kTileN + c_n(lane_index(), i % kFragmentC);
      if (!sees[i / kSameRowC % kRowsC].has(key)) s[i] = float_of(kMinusInfinity);
    }
  }

  /// Of a lane's row r, s in: m; p in place of s; l.
  GRETA_DEVICE void probabilities(Scores& s, int r, float& m, float& l) const {
    const float exponent = exponent_of(call, unit[r]);
    float most = float_of(kMinusInfinity);
    GRETA_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      GRETA_UNROLL
      for (int i = 0; i < kSameRowC; ++i) most = larger(most, s[n * kFragmentC + r * kSameRowC + i]);
    }
    GRETA_UNROLL
    for (int mask = 1; mask < kRowLanes; mask *= 2) most = larger(most, shuffle_xor(most, mask));
    m = split_largest(most, exponent);
    float sums[kSplit / 16];
    GRETA_UNROLL
    for (int g = 0; g < kSplit / 16; ++g) {
      float sum = 0.0f;  // the first addition is exact
      GRETA_UNROLL
      for (int n = 2 * g; n < 2 * g + 2; ++n) {
        GRETA_UNROLL
        for (int i = 0; i < kSameRowC; ++i) {
          float& p = s[n * kFragmentC + r * kSameRowC + i];
          p = probability(p, exponent, m);
          sum += p;
        }
      }
      GRETA_UNROLL
      for (int mask = 1; mask < kRowLanes; mask *= 2) sum += shuffle_xor(sum, mask);
      sums[g] = sum;
    }
    l = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  /// The operand of p for keys 16 step ..: what a lane has of two tiles of C is what it wants of A.
  static GRETA_DEVICE FragmentA operand(const Scores& p, int step) {
    FragmentA a;
    GRETA_UNROLL
    for (int w = 0; w < kFragmentA / 2; ++w) {
      const int at = (2 * step + w / 2) * kFragmentC + w % 2 * kSameRowC;
      a.word[w] = pack_f16(p[at], p[at + 1]);
    }
    return a;
  }

  /// Whether a sum of a row that sees some of the keys is NaN or infinite, in any lane: finite p and V sum to
  /// less than 2^38.
  static GRETA_DEVICE bool special(const Slab (&o)[attending::Layout<HeadDim>::kSlabs],
                                   const bool (&seen)[2]) {
    float zero[2] = {0.0f, 0.0f};
    GRETA_UNROLL
    for (int slab = 0; slab < attending::Layout<HeadDim>::kSlabs; ++slab) {
      GRETA_UNROLL
      for (int i = 0; i < attending::Layout<HeadDim>::kSlab / 2; ++i)
        zero[i / 2 % 2] = fused(o[slab][i], 0.0f, zero[i / 2 % 2]);
    }
    return wave_any((seen[0] && zero[0] != 0.0f) || (seen[1] && zero[1] != 0.0f));
  }

  /// o of a slab, each row with those keys' V as zeros that it does not see (Block::walk_values_by_row).
  GRETA_DEVICE void walk_by_row(Slab& o, const FragmentA (&p)[kSplit / 16], const SharedArray<uint16_t>& v,
                                int slab, int split) const {
    const int lane = lane_index();
    GRETA_UNROLL_BY(1)
    for (int row = 0; row < 16 && first + row < work.pairs; ++row) {
      const Keys keys = visible_at(work.position(first + row), call.window);
      GRETA_UNROLL
      for (int n = 0; n < attending::Layout<HeadDim>::kSlab / kTileN; ++n) {
        float own[kFragmentC] = {};
        GRETA_UNROLL
        for (int s = 0; s < kSplit / 16; ++s) {
          FragmentB b;
          GRETA_UNROLL
          for (int w = 0; w < kFragmentB / 2; ++w) {
            const int key = 16 * s + b_k(lane, 2 * w), d = slab * 64 + n * kTileN + b_n(lane, 0);
            const uint32_t low = keys.has(split * kSplit + key) ? v[swizzled_at(key, d)] : 0u;
            const uint32_t high = keys.has(split * kSplit + key + 1) ? v[swizzled_at(key + 1, d)] : 0u;
            b.word[w] = low | high << 16;
          }
          multiply(own, p[s], b);
        }
        GRETA_UNROLL
        for (int i = 0; i < kFragmentC; ++i)
          if (c_row(lane, i) == row) o[n * kFragmentC + i] = own[i];
      }
    }
  }
};

/// Keys 16 step .. of slab `slab` of a tile of V: as rows of k.
GRETA_DEVICE uint64_t value_tile(uint32_t address, int slab, int step) {
  return shared_tile(address, slab * (kSplit * 128) + step * (16 * 128));
}

/// merged(row of the lane, state, o) in place of state, of every element.
template <int HeadDim, class Slabs, class Merge>
GRETA_DEVICE void merge_slabs(Slabs& state, const Slabs& o, const Merge& merged) {
  GRETA_UNROLL
  for (int slab = 0; slab < attending::Layout<HeadDim>::kSlabs; ++slab) {
    GRETA_UNROLL
    for (int i = 0; i < attending::Layout<HeadDim>::kSlab / 2; ++i)
      state[slab][i] = merged(i / 2 % 2, state[slab][i], o[slab][i]);
  }
}

template <int HeadDim>
GRETA_DEVICE void attend(const AttentionCall& call, const AttentionShared<HeadDim>& shared, const Work& work,
                         int wave) {
  using namespace attending;
  using Rows = WaveRows<HeadDim>;
  using L = Layout<HeadDim>;
  const Rows rows(call, shared, work, wave);
  const int lane = lane_index();
  float largest[2] = {float_of(kMinusInfinity), float_of(kMinusInfinity)}, sum[2] = {0.0f, 0.0f};
  typename Rows::Slab state[L::kSlabs];
  GRETA_UNROLL
  for (int slab = 0; slab < L::kSlabs; ++slab) {
    GRETA_UNROLL
    for (int i = 0; i < L::kSlab / 2; ++i) state[slab][i] = 0.0f;
  }
  const int begin = work.any.first / kSplit, end = work.any.last / kSplit + 1;
  Turn<kStages> turn;
  GRETA_UNROLL_BY(1)
  for (int split = begin; split < end; ++split, turn.advance()) {
    const bool covered = rows.all.covers(split) && rows.first + 16 <= work.pairs;
    typename Rows::Scores s;
    const uint32_t k = shared_address(shared.keys, turn.stage * L::kTile);
    shared.keys_full(turn.stage).wait(turn.round & 1u);
    warpgroup_begin();
    GRETA_UNROLL
    for (int step = 0; step < Rows::kSteps; ++step)
      warpgroup_multiply<false>(s, rows.q[step],
                                shared_tile(k, step / 4 * (kSplit * 128) + step % 4 * kStepBytes), step > 0);
    warpgroup_commit();
    warpgroup_wait<0>();
    if (lane == 0) shared.keys_empty(turn.stage).arrive();

    rows.finish_scores(s, split, covered);
    float a[2], b[2];
    bool seen[2];
    GRETA_UNROLL
    for (int r = 0; r < 2; ++r) {
      float m, l;
      rows.probabilities(s, r, m, l);
      const Merging merge = merging(largest[r], m);
      a[r] = merge.a;
      b[r] = merge.b;
      seen[r] = covered || rows.sees[r].meets(split);
      const float merged = fused(sum[r], merge.a, l * merge.b);
      largest[r] = seen[r] ? merge.largest : largest[r];
      sum[r] = seen[r] ? merged : sum[r];
    }
    FragmentA p[kSplit / 16];
    GRETA_UNROLL
    for (int step = 0; step < kSplit / 16; ++step) p[step] = Rows::operand(s, step);

    typename Rows::Slab o[L::kSlabs];
    const uint32_t v = shared_address(shared.values, turn.stage * L::kTile);
    shared.values_full(turn.stage).wait(turn.round & 1u);
    warpgroup_begin();
    GRETA_UNROLL
    for (int slab = 0; slab < L::kSlabs; ++slab) {
      GRETA_UNROLL
      for (int step = 0; step < kSplit / 16; ++step)
        warpgroup_multiply<true>(o[slab], p[step], value_tile(v, slab, step), step > 0);
    }
    warpgroup_commit();
    warpgroup_wait<0>();
    // A NaN or an infinity in V of a key that some row does not see: 0 times it is NaN.
    if (!covered && Rows::special(o, seen)) {
      const SharedArray<uint16_t> tile = shared.values.from(turn.stage * L::kTile);
      GRETA_UNROLL
      for (int slab = 0; slab < L::kSlabs; ++slab) rows.walk_by_row(o[slab], p, tile, slab, split);
    }
    wave_barrier();  // all lanes have read
    if (lane == 0) shared.values_empty(turn.stage).arrive();
    // Where all rows see all of it nothing is to be chosen: a third of the work.
    if (covered) {
      merge_slabs<HeadDim>(state, o, [&](int r, float before, float of_split) {
        return fused(before, a[r], of_split * b[r]);
      });
    } else {
      merge_slabs<HeadDim>(state, o, [&](int r, float before, float of_split) {
        return seen[r] ? fused(before, a[r], of_split * b[r]) : before;
      });
    }
  }

  const float inverse[2] = {divide(1.0f, sum[0]), divide(1.0f, sum[1])};
  GRETA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int pair = rows.first + c_row(lane, r * kSameRowC);
    if (pair >= work.pairs) continue;
    float* out = call.out + work.at(pair, call.heads) * HeadDim + c_n(lane, 0);
    GRETA_UNROLL
    for (int n = 0; n < HeadDim / kTileN; ++n) {
      const float* o = state[n / 8] + n % 8 * kFragmentC + r * kSameRowC;
      *reinterpret_cast<Words2*>(out + n * kTileN) = {bits_of(o[0] * inverse[r]), bits_of(o[1] * inverse[r])};
    }
  }
}

template <int HeadDim>
GRETA_KERNEL void GRETA_BOUNDS(attending::kThreads, 1)
    attention_warpgroup(Mark mark, GRETA_ARGUMENT AttentionCall call, GRETA_ARGUMENT Grouping grouping) {
  using namespace attending;
  using L = Layout<HeadDim>;
  entered(mark);
  Work found;
  if (!find_work<L>(call, grouping, found)) return;
  Shared memory;
  const SharedArray<uint16_t> keys = from_1024(memory.array<uint16_t>(512 + 2 * kStages * L::kTile));
  const SharedArray<uint16_t> queries = memory.array<uint16_t>(kPairs * L::kQueryStride);
  const SharedArray<float> units = memory.array<float>(kPairs);
  const SharedArray<Work> kept = memory.array<Work>(1);
  const AttentionShared<HeadDim> shared{keys, keys.from(kStages * L::kTile), queries, units,
                                        memory.array<uint64_t>(4 * kStages)};
  if (thread_index() == 0) {
    kept[0] = found;
    GRETA_UNROLL
    for (int s = 0; s < kStages; ++s) {
      shared.keys_full(s).start(kWarpgroup);
      shared.values_full(s).start(kWarpgroup);
      shared.keys_empty(s).start(4 * kConsumers);
      shared.values_empty(s).start(4 * kConsumers);
    }
    publish_to_matrix_unit();
  }
  barrier();
  if (wave_index() < 4) {
    give_registers<kProducerRegisters>();
    bring_splits<HeadDim>(call, shared, kept[0]);
  } else {
    take_registers<kConsumerRegisters>();
    attend<HeadDim>(call, shared, kept[0], wave_index() - 4);
  }
}

template <int HeadDim>
void launch_attention(const Launch& how, const AttentionCall& call, int64_t tile_pairs) {
  using L = attending::Layout<HeadDim>;
  const int64_t tile_blocks = (tile_pairs + attending::kPairs - 1) / attending::kPairs;
  launch(
      how, "attention.warpgroup", attention_warpgroup<HeadDim>,
      Grid{static_cast<unsigned>(call.tile_count * tile_blocks), static_cast<unsigned>(call.cache.kv_heads)},
      attending::kThreads, L::kSharedBytes, call, grouping_of(call, tile_blocks));
}

}  // namespace

void run_attention_warpgroup(const Launch& how, const AttentionCall& call, int64_t tile_pairs) {
  if (call.cache.head_dim == 64)
    launch_attention<64>(how, call, tile_pairs);
  else
    launch_attention<128>(how, call, tile_pairs);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
