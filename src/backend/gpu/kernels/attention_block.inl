#pragma once
// The arithmetic of one split of 64 keys for the rows of a block, and how its K and V come: what every
// attention kernel is made of, so that all leave the same bits.
//
// For a pair (row, head): q's operand is f16(q 2^e), e = 14 - floor(log2 max |q|) over the head. s[j] is the
// matrix unit's walk over head_dim in ascending k16 steps, where there is a soft cap the capped score; p[j] =
// 2^(s[j] exponent - m), 2^15 for the largest s of the keys that the row sees (attention_shape.inl), 0 for
// those that it does not see; l = the sum of p: 16 keys by lanes and a tree, then (0 + 1) + (2 + 3); o = the
// walk over the split's 64 keys of f16(p) and V. With a bf16 cache q 2^e and p are two bf16 each, bf16(x) and
// bf16 of what that leaves, and a step is taken with the one and then the other.
//
// What a row does not see reaches none of its bits. Its scores are dropped by select; V rows that no row of
// the block sees are zeros, never read; and where a V row that some see and others do not holds a NaN or an
// infinity (0 times it is NaN), the block's rows walk one at a time with V as that row sees it.
#include "backend/gpu/kernels/attention_shape.inl"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

template <bool Bf16>
GRETA_DEVICE void multiply_operands(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b) {
  if constexpr (Bf16) {
    multiply_bf16(c, a, b);
  } else {
    multiply(c, a, b);
  }
}

/// Two numbers as operands: f16; or bf16, the high part, and then what it leaves.
template <bool Bf16>
GRETA_DEVICE uint32_t operands_of(float low, float high, int part) {
  if constexpr (!Bf16) return pack_f16(low, high);
  const uint32_t a = to_bf16(low), b = to_bf16(high);
  if (part == 0) return a | (b << 16);
  const uint32_t c = to_bf16(low - from_bf16(static_cast<uint16_t>(a)));
  const uint32_t d = to_bf16(high - from_bf16(static_cast<uint16_t>(b)));
  return c | (d << 16);
}

/// Whether one of two 16-bit floats is NaN or infinite.
template <bool Bf16>
GRETA_DEVICE bool has_special(uint32_t halves) {
  constexpr uint32_t kExponent = Bf16 ? 0x7f80 : 0x7c00;
  return (halves & kExponent) == kExponent || ((halves >> 16) & kExponent) == kExponent;
}

GRETA_DEVICE int64_t page_of(const AttentionCall& call, const Work& work, int split) {
  return call.cache.pages[work.tile.sequence * call.cache.page_stride + split];
}

/// A block's work: in registers where all of it follows from few numbers, else in shared memory, since it is
/// needed at a split's edges alone.
template <bool kHeld>
struct WorkPlace {
  const SharedArray<Work> kept;  ///< [1]
  const Work& work;
  /// A barrier follows.
  GRETA_DEVICE WorkPlace(const Work& on, Shared& shared) : kept(shared.array<Work>(1)), work(kept[0]) {
    if (thread_index() == 0) kept[0] = on;
  }
};
template <>
struct WorkPlace<true> {
  const Work work;
  GRETA_DEVICE WorkPlace(const Work& on, Shared&) : work(on) {}
};

template <class S>
struct Block : WorkPlace<S::kDecode> {
  using WorkPlace<S::kDecode>::work;
  const AttentionCall& call;
  SharedArray<uint16_t> room;           ///< slabs as they come, then a small block's q
  SharedArray<uint16_t> probabilities;  ///< [operands][rows][kProbabilityStride]
  SharedArray<float> maxima;            ///< [rows][4], a part's each
  SharedArray<float> sums;              ///< [rows][4], of 16 keys each
  SharedArray<float> units;             ///< [rows]
  int part;                             ///< of the keys, and of head_dim
  int first_pair;                       ///< of this wave's row tiles
  int steps;                            ///< k16 steps of head_dim

  FragmentA q[S::kTiles][S::kSteps][S::kOperands];

  /// A barrier follows.
  GRETA_DEVICE Block(const AttentionCall& of, const Work& on, Shared& shared)
      : WorkPlace<S::kDecode>(on, shared),
        call(of),
        room(shared.array<uint16_t>(2 * S::kSlot + S::kQueriesRoom)),
        probabilities(shared.array<uint16_t>(S::kProbabilities)),
        maxima(shared.array<float>(4 * S::kRows)),
        sums(shared.array<float>(4 * S::kRows)),
        units(shared.array<float>(S::kRows)),
        part(wave_index() % S::kParts),
        first_pair(wave_index() / S::kParts * S::kTiles * 16),
        steps(S::kWhole ? S::kSteps : (of.cache.head_dim + 15) / 16) {}

  GRETA_DEVICE int head_dim() const { return S::kWhole ? S::kHeadDim : call.cache.head_dim; }
  /// Of element i of row tile t.
  GRETA_DEVICE int pair_of(int t, int i) const { return first_pair + 16 * t + c_row(lane_index(), i); }
  /// In the split, of element i of this wave's key tile n.
  GRETA_DEVICE int key_of(int n, int i) const { return part * S::kKeys + n * kTileN + c_n(lane_index(), i); }
  /// Of the slab, of element i of this wave's value tile n: tiles go round the parts.
  GRETA_DEVICE int column_of(int n, int i) const {
    return (n * S::kParts + part) * kTileN + c_n(lane_index(), i);
  }
  /// The keys that row r of row tile t sees.
  GRETA_DEVICE Keys sees(int t, int r) const {
    if constexpr (S::kDecode) return work.any;  // and what a row that is not there has is of no use to anyone
    const int pair = pair_of(t, r * kSameRowC);
    return pair < work.pairs ? visible_at(work.position(pair), call.window) : Keys{0, -1};
  }
  /// Whether that row sees one of the split's keys.
  GRETA_DEVICE bool meets(int t, int r, int split) const {
    if constexpr (S::kDecode) return pair_of(t, r * kSameRowC) < work.pairs;
    return work.all.covers(split) ? pair_of(t, r * kSameRowC) < work.pairs : sees(t, r).meets(split);
  }
  /// Whether all rows see the same keys of the split: what they do not see is zeros then.
  GRETA_DEVICE bool alike(int split) const {
    return S::kDecode || work.all.covers(split) ||
           (work.all.first == work.any.first && work.all.last == work.any.last);
  }
  GRETA_DEVICE SharedArray<uint16_t> slot(bool value, int slab) const {
    return room.from((S::kSlabs == 1 ? (value ? 1 : 0) : slab) * S::kSlot);
  }

  // ---- q

  // 16 lanes have a row: of each kQueryUnit * 16 elements, kQueryUnit neighbours. So the lanes' elements of
  // the head are the same in every row.
  static constexpr int kQueryUnit = S::kWhole ? 4 : 2;
  static constexpr int kQueryUnits = S::kHeadDim / (16 * kQueryUnit);  ///< of a lane
  static constexpr int kRowsAtOnce = S::kThreads / 16;
  /// Of a thread, on their way together.
  static constexpr int kRowsAhead = S::kSmall ? 1 : S::kRows < 4 * kRowsAtOnce ? S::kRows / kRowsAtOnce : 4;
  static_assert(S::kRows % (kRowsAtOnce * kRowsAhead) == 0);
  using Elements = float[kQueryUnit];

  GRETA_DEVICE static int row_of_thread() { return thread_index() / 16; }
  /// The first element of the lane's unit u; units past head_dim are not there.
  GRETA_DEVICE static int element_of(int u) { return (u * 16 + lane_index() % 16) * kQueryUnit; }
  GRETA_DEVICE bool is_there(int u) const { return S::kWhole || element_of(u) < head_dim(); }
  /// Where to read it, in a head: somewhere, if it is not there.
  GRETA_DEVICE int place_of(int u) const { return is_there(u) ? element_of(u) : 0; }
  static GRETA_DEVICE void load_unit(const float* from, Elements& x) {
    if constexpr (kQueryUnit == 4) {
      const Words4 v = *reinterpret_cast<const Words4*>(from);
      x[0] = float_of(v.x);
      x[1] = float_of(v.y);
      x[2] = float_of(v.z);
      x[3] = float_of(v.w);
    } else {
      const Words2 v = *reinterpret_cast<const Words2*>(from);
      x[0] = float_of(v.x);
      x[1] = float_of(v.y);
    }
  }

  /// Zeros into shared memory for the rows that are not there.
  GRETA_DEVICE void stage_no_queries() const {
    const SharedArray<uint16_t> to = room.from(S::kQueriesAt);
    const Elements zeros = {};
    GRETA_UNROLL_BY(1)
    for (int row = row_of_thread(); row < S::kRows; row += kRowsAtOnce) {
      if (row < work.pairs) continue;
      GRETA_UNROLL
      for (int u = 0; u < kQueryUnits; ++u) put_operands(to, row, u, zeros);
      if (lane_index() % 16 == 0) units[row] = 1.0f;
    }
  }
  /// Rounds the rows that are there into shared memory. A lane's unit u of the head at x is what
  /// heads.turn() makes of heads.load(x, u).
  template <class Heads>
  GRETA_DEVICE void stage_queries(const Heads& heads) const {
    GRETA_UNROLL_BY(1)
    for (int first = row_of_thread(); first - row_of_thread() < work.pairs;
         first += kRowsAhead * kRowsAtOnce) {
      typename Heads::Loaded loaded[kRowsAhead][kQueryUnits];  // all loads first
      GRETA_UNROLL
      for (int r = 0; r < kRowsAhead; ++r) {
        const int row = first + r * kRowsAtOnce;
        const float* from = call.q + work.at(row < work.pairs ? row : 0, call.heads) * head_dim();
        GRETA_UNROLL
        for (int u = 0; u < kQueryUnits; ++u) loaded[r][u] = heads.load(from, u);
      }
      GRETA_UNROLL
      for (int r = 0; r < kRowsAhead; ++r) {
        Elements x[kQueryUnits];
        GRETA_UNROLL
        for (int u = 0; u < kQueryUnits; ++u) heads.turn(loaded[r][u], u, x[u]);
        round_query(x, first + r * kRowsAtOnce);
      }
    }
  }
  /// A row that is there, by the lanes that have it; all lanes call it.
  GRETA_DEVICE void round_query(const Elements (&x)[kQueryUnits], int row) const {
    float largest = 0.0f;
    GRETA_UNROLL
    for (int u = 0; u < kQueryUnits; ++u) {
      GRETA_UNROLL
      for (int e = 0; e < kQueryUnit; ++e) largest = larger(largest, magnitude_of(x[u][e]));
    }
    GRETA_UNROLL
    for (int mask = 1; mask < 16; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
    if (row >= work.pairs) return;
    const float up = row_power(largest);
    GRETA_UNROLL
    for (int u = 0; u < kQueryUnits; ++u) {
      Elements scaled;
      GRETA_UNROLL
      for (int e = 0; e < kQueryUnit; ++e) scaled[e] = x[u][e] * up;
      put_operands(room.from(S::kQueriesAt), row, u, scaled);
    }
    if (lane_index() % 16 == 0) units[row] = score_unit(call, up);
  }
  GRETA_DEVICE void put_operands(const SharedArray<uint16_t>& to, int row, int u, const Elements& x) const {
    if (!S::kWhole && element_of(u) >= steps * 16) return;
    GRETA_UNROLL
    for (int o = 0; o < S::kOperands; ++o) {
      const int at = (o * S::kRows + row) * S::kQueryStride + element_of(u);
      if constexpr (kQueryUnit == 4) {
        to.put_words2(at, {operands_of<S::kBf16>(x[0], x[1], o), operands_of<S::kBf16>(x[2], x[3], o)});
      } else {
        to.put_word(at, operands_of<S::kBf16>(x[0], x[1], o));
      }
    }
  }

  /// This wave's operands of q. After a barrier.
  GRETA_DEVICE void take_queries() {
    const SharedArray<uint16_t> from = room.from(S::kQueriesAt);
    GRETA_UNROLL
    for (int t = 0; t < S::kTiles; ++t) {
      GRETA_UNROLL
      for (int s = 0; s < S::kSteps; ++s) {
        if (!S::kWhole && s >= steps) continue;
        GRETA_UNROLL
        for (int o = 0; o < S::kOperands; ++o)
          q[t][s][o] = fragment_a(from.from((o * S::kRows + first_pair + 16 * t) * S::kQueryStride + 16 * s),
                                  S::kQueryStride);
      }
    }
  }

  // ---- K and V on their way

  /// A slab of K or V from its page into its slot, rows that no row of the block sees as zeros; and so what
  /// lies between head_dim and the next multiple of 16. Nothing of key `but` of the split.
  GRETA_DEVICE void stage(bool value, int slab, int split, int64_t page, int but = -1) const {
    constexpr int kChunks = S::kSlab / 8;
    constexpr int kNext = S::kThreads / kChunks;  // from a thread's key to its next
    static_assert(S::kThreads % kChunks == 0 && kSplit % kNext == 0);
    const int head_dim = Block::head_dim();
    const int key = thread_index() / kChunks, chunk = thread_index() % kChunks * 8;
    const int d = slab * S::kSlab + chunk;
    if (!S::kWhole && d >= steps * 16) return;
    const SharedArray<uint16_t> to = slot(value, slab);
    const uint16_t* const from = (value ? call.cache.v : call.cache.k) +
                                 (page * call.cache.kv_heads + work.kv_head) * kSplit * head_dim;
    const uint16_t* at = from + (key * head_dim + d);
    const int next = kNext * head_dim;
    const Keys seen = {work.any.first - split * kSplit, work.any.last - split * kSplit};
    if (head_dim % 8 == 0) {
      GRETA_UNROLL
      for (int i = 0; i < kSplit; i += kNext, at += next) {
        if (key + i == but) continue;
        const bool valid = seen.has(key + i) && d < head_dim;
        copy_async16(to, (key + i) * S::kStride + chunk, valid ? at : from, valid);
      }
    } else {
      GRETA_UNROLL_BY(1)
      for (int i = 0; i < kSplit; i += kNext, at += next)
        if (key + i != but)
          stage_words(to, (key + i) * S::kStride + chunk, at, seen.has(key + i) ? head_dim - d : 0);
    }
  }
  /// Eight elements of which `left` are there, head_dim being even but no multiple of 8.
  GRETA_DEVICE void stage_words(const SharedArray<uint16_t>& to, int i, const uint16_t* from,
                                int left) const {
    Words4 v;
    v.x = left > 0 ? stream_word(from) : 0;
    v.y = left > 2 ? stream_word(from + 2) : 0;
    v.z = left > 4 ? stream_word(from + 4) : 0;
    v.w = left > 6 ? stream_word(from + 6) : 0;
    to.put_words4(i, v);
  }

  /// Whether a row of the slab of V in its slot that not every row of the block sees holds a NaN or an
  /// infinity.
  GRETA_DEVICE bool special_values(int slab, int split) const {
    constexpr int kChunks = S::kSlab / 8;
    const SharedArray<uint16_t> from = slot(true, slab);
    bool special = false;
    for (int i = thread_index(); i < kSplit * kChunks; i += S::kThreads) {
      const int key = i / kChunks, d = i % kChunks * 8;
      if (work.all.has(split * kSplit + key) || (!S::kWhole && slab * S::kSlab + d >= steps * 16)) continue;
      special = special || any_special(from.words4(key * S::kStride + d));
    }
    return special;
  }
  static GRETA_DEVICE bool any_special(const Words4& v) {
    return has_special<S::kBf16>(v.x) || has_special<S::kBf16>(v.y) || has_special<S::kBf16>(v.z) ||
           has_special<S::kBf16>(v.w);
  }

  // ---- scores

  using Scores = float[S::kTiles][S::kKeyTiles][kFragmentC];

  /// acc += this wave's rows times its keys, over the slab of head_dim in its slot.
  GRETA_DEVICE void add_scores(Scores& acc, int slab) const {
    const SharedArray<uint16_t> k = slot(false, slab).from(part * S::kKeys * S::kStride);
    GRETA_UNROLL
    for (int s = 0; s < S::kSlabSteps; ++s) {
      const int step = slab * S::kSlabSteps + s;
      if (!S::kWhole && step >= steps) continue;
      FragmentB b[S::kKeyTiles];
      fragments_b(k.from(16 * s), S::kStride, kTileN * S::kStride, b);
      GRETA_UNROLL
      for (int o = 0; o < S::kOperands; ++o) {
        GRETA_UNROLL
        for (int n = 0; n < S::kKeyTiles; ++n) {
          GRETA_UNROLL
          for (int t = 0; t < S::kTiles; ++t) multiply_operands<S::kBf16>(acc[t][n], q[t][step][o], b[n]);
        }
      }
    }
  }

  /// Of a row tile, the scores of keys that their row does not see: p is 0 then. A row that sees none has NaN
  /// for p, and leaves nothing of the split anywhere.
  GRETA_DEVICE void drop_unseen(float (&scores)[S::kKeyTiles][kFragmentC], int t, int split) const {
    GRETA_UNROLL
    for (int r = 0; r < kRowsC; ++r) {
      const Keys keys = sees(t, r);
      GRETA_UNROLL
      for (int n = 0; n < S::kKeyTiles; ++n) {
        GRETA_UNROLL
        for (int i = r * kSameRowC; i < (r + 1) * kSameRowC; ++i)
          if (!keys.has(split * kSplit + key_of(n, i))) scores[n][i] = float_of(kMinusInfinity);
      }
    }
  }

  /// acc becomes s, -infinity for keys that a row does not see; each row's largest among this wave's keys
  /// goes to `maxima`.
  GRETA_DEVICE void finish_scores(Scores& acc, int split) const {
    GRETA_UNROLL
    for (int t = 0; t < S::kTiles; ++t) {
      if (!S::kDecode && call.softcap > 0.0f) cap_scores(acc[t], t);
      if (!work.all.covers(split)) drop_unseen(acc[t], t, split);
      GRETA_UNROLL
      for (int r = 0; r < kRowsC; ++r) {
        float most = float_of(kMinusInfinity);
        GRETA_UNROLL
        for (int n = 0; n < S::kKeyTiles; ++n) {
          GRETA_UNROLL
          for (int i = r * kSameRowC; i < (r + 1) * kSameRowC; ++i) most = larger(most, acc[t][n][i]);
        }
        GRETA_UNROLL
        for (int mask = 1; mask < kRowLanes; mask *= 2) most = larger(most, shuffle_xor(most, mask));
        if (lane_index() % kRowLanes == 0) maxima[4 * pair_of(t, r * kSameRowC) + part] = most;
      }
    }
  }
  GRETA_DEVICE void cap_scores(float (&scores)[S::kKeyTiles][kFragmentC], int t) const {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const float unit = units[pair_of(t, i)];
      GRETA_UNROLL
      for (int n = 0; n < S::kKeyTiles; ++n) scores[n][i] = capped(scores[n][i] * unit, call.softcap);
    }
  }

  using RowNumbers = float[S::kTiles][kRowsC];

  /// Of a row, after a barrier: its largest s.
  GRETA_DEVICE float largest_of(int t, int r) const {
    const int at = 4 * pair_of(t, r * kSameRowC);
    float most = maxima[at];
    GRETA_UNROLL
    for (int other = 1; other < S::kParts; ++other) most = larger(most, maxima[at + other]);
    return most;
  }

  /// After a barrier: m of each row, p in place of s, its operands and the sums of 16 keys in shared memory.
  GRETA_DEVICE void probabilities_of(Scores& acc, RowNumbers& m) const {
    GRETA_UNROLL
    for (int t = 0; t < S::kTiles; ++t) {
      GRETA_UNROLL
      for (int r = 0; r < kRowsC; ++r) {
        const float exponent = exponent_of(call, units[pair_of(t, r * kSameRowC)]);
        m[t][r] = split_largest(largest_of(t, r), exponent);
        GRETA_UNROLL
        for (int n = 0; n < S::kKeyTiles; ++n) {
          GRETA_UNROLL
          for (int i = r * kSameRowC; i < (r + 1) * kSameRowC; ++i)
            acc[t][n][i] = probability(acc[t][n][i], exponent, m[t][r]);
        }
      }
      put_probabilities(acc[t], t);
      sum_groups(acc[t], t);
    }
  }
  GRETA_DEVICE void put_probabilities(const float (&p)[S::kKeyTiles][kFragmentC], int t) const {
    GRETA_UNROLL
    for (int n = 0; n < S::kKeyTiles; ++n) {
      GRETA_UNROLL
      for (int i = 0; i < kFragmentC; i += kSameRowC) {
        const float second = kSameRowC == 2 ? p[n][i + kSameRowC - 1] : 0.0f;
        GRETA_UNROLL
        for (int o = 0; o < S::kOperands; ++o) {
          const int at = (o * S::kRows + pair_of(t, i)) * S::kProbabilityStride + key_of(n, i);
          const uint32_t word = operands_of<S::kBf16>(p[n][i], second, o);
          if constexpr (kSameRowC == 2) {
            probabilities.put_word(at, word);
          } else {
            probabilities[at] = static_cast<uint16_t>(word);
          }
        }
      }
    }
  }
  GRETA_DEVICE void sum_groups(const float (&p)[S::kKeyTiles][kFragmentC], int t) const {
    GRETA_UNROLL
    for (int g = 0; g < S::kGroups; ++g) {
      GRETA_UNROLL
      for (int r = 0; r < kRowsC; ++r) {
        float sum = 0.0f;  // the first addition is exact
        GRETA_UNROLL
        for (int n = g * S::kGroupTiles; n < (g + 1) * S::kGroupTiles; ++n) {
          GRETA_UNROLL
          for (int i = r * kSameRowC; i < (r + 1) * kSameRowC; ++i) sum += p[n][i];
        }
        GRETA_UNROLL
        for (int mask = 1; mask < kRowLanes; mask *= 2) sum += shuffle_xor(sum, mask);
        if (lane_index() % kRowLanes == 0) sums[4 * pair_of(t, r * kSameRowC) + part * S::kGroups + g] = sum;
      }
    }
  }
  /// l of a row, after a barrier.
  GRETA_DEVICE float sum_of(int t, int r) const {
    const int at = 4 * pair_of(t, r * kSameRowC);
    return (sums[at] + sums[at + 1]) + (sums[at + 2] + sums[at + 3]);
  }

  // ---- values

  using Operands = FragmentA[S::kTiles][kSplit / 16][S::kOperands];
  using Values = float[S::kAtOnce][S::kTiles][kFragmentC];

  GRETA_DEVICE void take_probabilities(Operands& p) const {
    GRETA_UNROLL
    for (int t = 0; t < S::kTiles; ++t) {
      GRETA_UNROLL
      for (int o = 0; o < S::kOperands; ++o) {
        const int at = (o * S::kRows + first_pair + 16 * t) * S::kProbabilityStride;
        GRETA_UNROLL
        for (int s = 0; s < kSplit / 16; ++s)
          p[t][s][o] = fragment_a(probabilities.from(at + 16 * s), S::kProbabilityStride);
      }
    }
  }

  /// V's keys 16 step .. of this wave's value tiles n ..
  GRETA_DEVICE void value_fragments(int slab, int n, int step, FragmentB (&b)[S::kAtOnce]) const {
    fragments_b_by_k(slot(true, slab).from(16 * step * S::kStride + (n * S::kParts + part) * kTileN),
                     S::kStride, S::kParts * kTileN, b);
  }

  /// o of this wave's value tiles n ..; what tiles past head_dim hold is of no use to anyone.
  GRETA_DEVICE void walk_values(Values& o, const Operands& p, int slab, int n) const {
    GRETA_UNROLL
    for (int s = 0; s < kSplit / 16; ++s) {
      FragmentB b[S::kAtOnce];
      value_fragments(slab, n, s, b);
      GRETA_UNROLL
      for (int part_of_p = 0; part_of_p < S::kOperands; ++part_of_p) {
        GRETA_UNROLL
        for (int j = 0; j < S::kAtOnce; ++j) {
          GRETA_UNROLL
          for (int t = 0; t < S::kTiles; ++t) multiply_operands<S::kBf16>(o[j][t], p[t][s][part_of_p], b[j]);
        }
      }
    }
  }

  /// The same, each row of the tile with those keys' V as zeros that it does not see.
  GRETA_DEVICE void walk_values_by_row(Values& o, const Operands& p, int slab, int n, int split) const {
    GRETA_UNROLL
    for (int t = 0; t < S::kTiles; ++t) {
      const int begin = first_pair + 16 * t;
      const int end = begin + 16 < work.pairs ? begin + 16 : work.pairs;
      for (int row = work.row(begin); begin < end && row <= work.row(end - 1); ++row) {
        const Keys keys = visible_at(work.tile.first_position + row, call.window);
        float own[S::kAtOnce][kFragmentC] = {};
        GRETA_UNROLL
        for (int s = 0; s < kSplit / 16; ++s) {
          FragmentB b[S::kAtOnce];
          value_fragments(slab, n, s, b);
          GRETA_UNROLL
          for (int w = 0; w < kFragmentB / 2; ++w) {
            const int key = split * kSplit + 16 * s + b_k(lane_index(), 2 * w);
            const uint32_t seen = (keys.has(key) ? 0xffffu : 0u) | (keys.has(key + 1) ? 0xffff0000u : 0u);
            GRETA_UNROLL
            for (int j = 0; j < S::kAtOnce; ++j) b[j].word[w] &= seen;
          }
          GRETA_UNROLL
          for (int part_of_p = 0; part_of_p < S::kOperands; ++part_of_p) {
            GRETA_UNROLL
            for (int j = 0; j < S::kAtOnce; ++j)
              multiply_operands<S::kBf16>(own[j], p[t][s][part_of_p], b[j]);
          }
        }
        GRETA_UNROLL
        for (int i = 0; i < kFragmentC; ++i) {
          if (work.row(pair_of(t, i)) != row) continue;
          GRETA_UNROLL
          for (int j = 0; j < S::kAtOnce; ++j) o[j][t][i] = own[j][i];
        }
      }
    }
  }
};

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
