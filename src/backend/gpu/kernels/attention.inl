// Attention over the paged cache. Splits of 64 keys, aligned to absolute position, each computed from its own
// keys alone (attention_block.inl) and merged in ascending order. Two ways with the same bits: a block goes
// through all splits of its rows and merges as it goes; or every split is a block's (few rows, many keys),
// and the last of them merges. Included after the target's target.h.
#include "backend/gpu/kernels/attention_block.inl"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

// Splits apart: [rows * heads][splits] of (m, l), then of o [head_dim].
GRETA_DEVICE float* partial_numbers(const AttentionCall& call, int64_t at) { return call.partial + 2 * at; }
GRETA_DEVICE float* partial_values(const AttentionCall& call, int64_t at) {
  return call.partial + 2 * call.batch.rows * call.heads * call.splits + at * call.cache.head_dim;
}

/// (M, L, O) of the rows that a wave has, O for its part of head_dim.
template <class S>
struct State {
  typename Block<S>::RowNumbers largest, sum;
  float o[S::kSlabs][S::kValueTiles][S::kTiles][kFragmentC];

  GRETA_DEVICE State() : o{} {
    GRETA_UNROLL
    for (int t = 0; t < S::kTiles; ++t) {
      GRETA_UNROLL
      for (int r = 0; r < kRowsC; ++r) {
        largest[t][r] = float_of(kMinusInfinity);
        sum[t][r] = 0.0f;
      }
    }
  }
};

/// How a split enters each row that a wave has.
template <class S>
struct Entering {
  bool seen[S::kTiles][kRowsC];  ///< false: the row sees none of the split's keys, nothing of it changes
  float* to[S::kTiles][kRowsC];  ///< splits apart: where the row's o goes
  typename Block<S>::RowNumbers a, b;
};

/// Merges m and l into the state, and says how o enters.
template <class S>
GRETA_DEVICE Entering<S> enter(const Block<S>& block, const typename Block<S>::RowNumbers& m, int split,
                               State<S>& state) {
  Entering<S> how;
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int r = 0; r < kRowsC; ++r) {
      const Merging merge = merging(state.largest[t][r], m[t][r]);
      how.seen[t][r] = block.meets(t, r, split);
      how.a[t][r] = merge.a;
      how.b[t][r] = merge.b;
      if (!how.seen[t][r]) continue;
      state.largest[t][r] = merge.largest;
      state.sum[t][r] = fused(state.sum[t][r], merge.a, block.sum_of(t, r) * merge.b);
    }
  }
  return how;
}

template <class S>
GRETA_DEVICE void enter_values(float (&state)[S::kTiles][kFragmentC], const float (&o)[S::kTiles][kFragmentC],
                               const Entering<S>& how) {
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const int r = i / kSameRowC;
      const float merged = fused(state[t][i], how.a[t][r], o[t][i] * how.b[t][r]);
      state[t][i] = how.seen[t][r] ? merged : state[t][i];
    }
  }
}

/// Splits apart: m and l as they are, written by one lane of each row in one wave of each tile.
template <class S>
GRETA_DEVICE Entering<S> put_numbers(const Block<S>& block, const typename Block<S>::RowNumbers& m,
                                     int split) {
  Entering<S> how = {};
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int r = 0; r < kRowsC; ++r) {
      how.seen[t][r] = block.meets(t, r, split);
      if (!how.seen[t][r]) continue;
      const int64_t row = block.work.at(block.pair_of(t, r * kSameRowC), block.call.heads);
      how.to[t][r] = partial_values(block.call, row * block.call.splits + split);
      if (block.part != 0 || lane_index() % kRowLanes != 0) continue;
      float* to = partial_numbers(block.call, row * block.call.splits + split);
      to[0] = m[t][r];
      to[1] = block.sum_of(t, r);
    }
  }
  return how;
}

/// Value tile n of a slab.
template <class S>
GRETA_DEVICE void put_values(const Block<S>& block, const float (&o)[S::kTiles][kFragmentC],
                             const Entering<S>& how, int slab, int n) {
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const int d = slab * S::kSlab + block.column_of(n, i);
      if (!how.seen[t][i / kSameRowC] || d >= block.head_dim()) continue;
      how.to[t][i / kSameRowC][d] = o[t][i];
    }
  }
}

template <class S>
GRETA_DEVICE void put_out(const Block<S>& block, const State<S>& state) {
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int r = 0; r < kRowsC; ++r) {
      const int pair = block.pair_of(t, r * kSameRowC);
      if (pair >= block.work.pairs) continue;
      const float inverse = divide(1.0f, state.sum[t][r]);
      float* out = block.call.out + block.work.at(pair, block.call.heads) * block.head_dim();
      GRETA_UNROLL
      for (int tile = 0; tile < S::kSlabs * S::kValueTiles; ++tile) {
        const int slab = tile / S::kValueTiles, n = tile % S::kValueTiles;
        const int d = slab * S::kSlab + block.column_of(n, r * kSameRowC);
        if (!S::kWhole && d >= block.head_dim()) continue;  // of two neighbours none or both
        const float* o = state.o[slab][n][t] + r * kSameRowC;
        if constexpr (kSameRowC == 2) {
          *reinterpret_cast<Words2*>(out + d) = {bits_of(o[0] * inverse), bits_of(o[1] * inverse)};
        } else {
          out[d] = o[0] * inverse;
        }
      }
    }
  }
}

/// Rows of q that are turned already.
template <class S>
struct TurnedRows {
  using Elements = typename Block<S>::Elements;
  struct Loaded {
    Elements own;
  };
  const Block<S>& block;

  GRETA_DEVICE Loaded load(const float* x, int u) const {
    Loaded loaded;
    Block<S>::load_unit(x + block.place_of(u), loaded.own);
    return loaded;
  }
  GRETA_DEVICE void turn(const Loaded& loaded, int u, Elements& x) const {
    GRETA_UNROLL
    for (int e = 0; e < Block<S>::kQueryUnit; ++e) x[e] = block.is_there(u) ? loaded.own[e] : 0.0f;
  }
};

// ---- rows that come with their own k and v
// --------------------------------------------------------------------------------------

/// q, k and v of a row that is still to be turned (AttentionCall::k). Everything but they is found before the
/// kernel before has ended.
template <class S>
struct OwnRow {
  static constexpr int kUnit = Block<S>::kQueryUnit, kUnits = Block<S>::kQueryUnits;
  static constexpr int kMostPairs = S::kSmall ? S::kHeadDim / 2 : 0;
  static constexpr int kBytes = 2 * kMostPairs * static_cast<int>(sizeof(float));
  static_assert(S::kThreads >= kMostPairs);
  using Elements = typename Block<S>::Elements;

  const Block<S>& block;
  const Rotation& rotation;
  Elements cosine[kUnits];
  Elements sine[kUnits];  ///< negative for the first of a pair
  int partner[kUnits];    ///< where those begin that the unit turns with

  /// Every thread calls it; a barrier in it.
  GRETA_DEVICE OwnRow(const Block<S>& of, Shared& shared) : block(of), rotation(of.call.rotation) {
    const SharedArray<float> cosines = shared.array<float>(kMostPairs),
                             sines = shared.array<float>(kMostPairs);
    const int pairs = rotation.dims / 2, own = thread_index();
    if (own < pairs) turn_of(rotation, block.work.tile.first_position, own, cosines[own], sines[own]);
    barrier();
    GRETA_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      const int begin = Block<S>::element_of(u);
      partner[u] = !turns(u)        ? block.place_of(u)
                   : !rotation.half ? begin
                   : begin < pairs  ? begin + pairs
                                    : begin - pairs;
      GRETA_UNROLL
      for (int e = 0; e < kUnit; ++e) {
        const bool first = rotation.half ? begin < pairs : e % 2 == 0;
        const int i = !turns(u)        ? 0
                      : !rotation.half ? (begin + e) / 2
                      : first          ? begin + e
                                       : begin + e - pairs;
        cosine[u][e] = cosines[i];
        sine[u][e] = first ? -sines[i] : sines[i];
      }
    }
  }
  /// All of a unit does or nothing of it (fuses_rope).
  GRETA_DEVICE bool turns(int u) const { return Block<S>::element_of(u) < rotation.dims; }

  struct Loaded {
    Elements own, other;
  };
  GRETA_DEVICE Loaded load(const float* x, int u) const {
    Loaded loaded;
    Block<S>::load_unit(x + block.place_of(u), loaded.own);
    Block<S>::load_unit(x + partner[u], loaded.other);
    return loaded;
  }
  /// As turned_first() and turned_second() have it.
  GRETA_DEVICE void turn(const Loaded& loaded, int u, Elements& x) const {
    GRETA_UNROLL
    for (int e = 0; e < kUnit; ++e) {
      const float other = rotation.half ? loaded.other[e] : loaded.other[e ^ 1];
      const float turned = fused(loaded.own[e], cosine[u][e], other * sine[u][e]);
      x[e] = !block.is_there(u) ? 0.0f : turns(u) ? turned : loaded.own[e];
    }
  }

  // The row's k and v of the block's kv head: 16 lanes' each, of the last wave, which has the fewest rows of
  // q. All lanes of all waves read one of them, so that there is no branch.
  GRETA_DEVICE static bool has_fresh() { return wave_index() == S::kWaves - 1 && lane_index() < 32; }
  GRETA_DEVICE static bool has_v() { return lane_index() / 16 % 2 == 1; }
  struct Fresh {
    Loaded x[kUnits];
  };
  GRETA_DEVICE Fresh take() const {
    const AttentionCall& call = block.call;
    const int64_t row =
        static_cast<int64_t>(block.work.tile.first_row) * call.cache.kv_heads + block.work.kv_head;
    const float* from = (has_v() ? call.v : call.k) + row * block.head_dim();
    Fresh fresh;
    GRETA_UNROLL
    for (int u = 0; u < kUnits; ++u) fresh.x[u] = load(from, u);
    return fresh;
  }
  /// To the cache; and where the split that they are in was staged without them (`staged`), to its slabs. A
  /// barrier follows.
  GRETA_DEVICE void put(const Fresh& fresh, int64_t page, bool staged) const {
    const AttentionCall& call = block.call;
    const int key = block.work.tile.first_position % kSplit;
    uint16_t* const to =
        (has_v() ? call.cache.v : call.cache.k) +
        ((page * call.cache.kv_heads + block.work.kv_head) * kSplit + key) * block.head_dim();
    GRETA_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      const int d = Block<S>::element_of(u);
      if (!S::kWhole && d >= block.steps * 16) continue;
      Elements x;
      turn(fresh.x[u], u, x);
      uint32_t words[kUnit / 2];
      GRETA_UNROLL
      for (int w = 0; w < kUnit / 2; ++w) {
        const bool as_it_is = has_v() && block.is_there(u);
        const float low = as_it_is ? fresh.x[u].own[2 * w] : x[2 * w];
        const float high = as_it_is ? fresh.x[u].own[2 * w + 1] : x[2 * w + 1];
        words[w] = kv_bits(low) | kv_bits(high) << 16;
      }
      const SharedArray<uint16_t> slab = block.slot(has_v(), d / S::kSlab);
      const int at = key * S::kStride + d % S::kSlab;
      const bool to_slab = staged && (S::kSlabs == 1 || !has_v());
      if constexpr (kUnit == 4) {
        *reinterpret_cast<Words2*>(to + d) = {words[0], words[1]};
        if (to_slab) slab.put_words2(at, {words[0], words[1]});
      } else {
        if (block.is_there(u)) *reinterpret_cast<uint32_t*>(to + d) = words[0];
        if (to_slab) slab.put_word(at, words[0]);
      }
    }
  }
  static GRETA_DEVICE uint32_t kv_bits(float x) {
    if constexpr (S::kBf16) return to_bf16(x);
    return to_f16(x);
  }
};

// ---- merging splits that were apart
// ---------------------------------------------------------------------------

/// A row that is merged: where it lies in q, and the splits that it sees; none, where it is not there.
struct Merged {
  int64_t at = 0;
  int first = 0;
  int count = 0;
};

/// A wave: kRows rows at once. M after each split is the largest m so far, so a lane each finds the factors
/// of a split; then L and O go through the splits in ascending order. The first values are asked for with the
/// numbers.
template <class S, int kRows>
GRETA_DEVICE void merge_rows(const AttentionCall& call, const Merged (&rows)[kRows]) {
  constexpr int kColumns = (S::kSlabs * S::kSlab + kWave - 1) / kWave;
  constexpr int kAtOnce = 4;  // splits whose values are on their way together
  const int head_dim = S::kWhole ? S::kHeadDim : call.cache.head_dim, lane = lane_index();
  float largest[kRows], sum[kRows] = {}, o[kRows][kColumns] = {};
  int most = 0;
  GRETA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    largest[r] = float_of(kMinusInfinity);
    most = most < rows[r].count ? rows[r].count : most;
  }
  for (int done = 0; done < most; done += kWave) {
    float m[kRows], l[kRows], v[kRows][kAtOnce][kColumns];
    const auto ask = [&](int from) {
      GRETA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float* values = partial_values(call, rows[r].at * call.splits + rows[r].first + from);
        GRETA_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
          GRETA_UNROLL
          for (int c = 0; c < kColumns; ++c) {
            const int d = lane + c * kWave;
            v[r][u][c] = from + u < rows[r].count && d < head_dim
                             ? values[u * static_cast<int64_t>(head_dim) + d]
                             : 0.0f;
          }
        }
      }
    };
    GRETA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const bool there = done + lane < rows[r].count;
      const float* numbers =
          partial_numbers(call, rows[r].at * call.splits + rows[r].first + (there ? done + lane : 0));
      m[r] = there ? numbers[0] : float_of(kMinusInfinity);
      l[r] = there ? numbers[1] : 0.0f;
    }
    ask(done);
    Merging merge[kRows];
    GRETA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float upto = m[r];
      GRETA_UNROLL
      for (int back = 1; back < kWave; back *= 2) {
        const float other = shuffle(upto, lane < back ? lane : lane - back);
        upto = larger(upto, other);
      }
      const float earlier = shuffle(upto, lane == 0 ? 0 : lane - 1);
      merge[r] = merging(lane == 0 ? largest[r] : larger(largest[r], earlier), m[r]);
      largest[r] = larger(largest[r], shuffle(upto, kWave - 1));
    }
    for (int i = 0;;) {
      GRETA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        GRETA_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
          if (done + i + u >= rows[r].count) break;
          const float a = shuffle(merge[r].a, i + u), b = shuffle(merge[r].b, i + u);
          sum[r] = fused(sum[r], a, shuffle(l[r], i + u) * b);
          GRETA_UNROLL
          for (int c = 0; c < kColumns; ++c) o[r][c] = fused(o[r][c], a, v[r][u][c] * b);
        }
      }
      i += kAtOnce;
      if (i >= kWave || done + i >= most) break;
      ask(done + i);
    }
  }
  GRETA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (rows[r].count == 0) continue;
    const float inverse = divide(1.0f, sum[r]);
    GRETA_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const int d = lane + c * kWave;
      if (d < head_dim) call.out[rows[r].at * head_dim + d] = o[r][c] * inverse;
    }
  }
}

/// The block has left its splits of `work`. Whichever of the blocks with splits of it comes last merges them.
template <class S>
GRETA_DEVICE void merge_if_last(const Block<S>& block, int splits_each) {
  const AttentionCall& call = block.call;
  const Work& work = block.work;
  const int blocks = work.any.last / kSplit / splits_each - work.any.first / kSplit / splits_each + 1;
  if (!last_to_arrive(call.arrivals + block_y() * grid_x() + block_x(), static_cast<uint32_t>(blocks)))
    return;
  const auto row = [&](int pair) {
    if (pair >= work.pairs) return Merged{};
    const Keys keys = visible_at(work.position(pair), call.window);
    return Merged{work.at(pair, call.heads), keys.first / kSplit,
                  keys.last / kSplit - keys.first / kSplit + 1};
  };
  if (work.pairs <= S::kWaves) {
    if (wave_index() < work.pairs) merge_rows<S, 1>(call, {row(wave_index())});
    return;
  }
  for (int pair = wave_index(); pair < work.pairs; pair += 2 * S::kWaves)
    merge_rows<S, 2>(call, {row(pair), row(pair + S::kWaves)});
}

// ---- a block
// ------------------------------------------------------------------------------------------------

/// Block (part of a tile, kv head, splits_each splits), or all splits where they are not apart. Two slots
/// take turns: a slab is consumed, all threads have done so, the next but one is asked for. Where rows come
/// with their k and v, what the cache has of earlier passes is on its way while the kernel before ends.
template <class S, bool Apart>
GRETA_KERNEL void GRETA_BOUNDS(S::kThreads, S::blocks(Apart))
    attention(Mark mark, GRETA_ARGUMENT AttentionCall call, GRETA_ARGUMENT Grouping grouping,
              int splits_each) {
  entered_early(mark);
  const bool own_rows = S::kDecode || (S::kSmall && call.k != nullptr);
  if (!own_rows) after_earlier(mark);
  Work found;
  if (!find_work<S, S::kDecode>(call, grouping, found)) return;
  int begin = found.any.first / kSplit, end = found.any.last / kSplit + 1;
  if constexpr (Apart) {
    const int first = block_z() * splits_each;
    begin = first > begin ? first : begin;
    end = first + splits_each < end ? first + splits_each : end;
    if (begin >= end) return;
  }
  Shared shared;
  Block<S> block(call, found, shared);
  const int own_split = found.any.last / kSplit;
  const bool own_first = own_rows && own_split == begin;
  int64_t page = page_of(call, found, begin);
  const auto stage_first_two = [&] {
    const int but = own_first ? found.any.last % kSplit : -1;
    block.stage(false, 0, begin, page, but);
    copy_commit();
    block.stage(S::kSlabs == 1, S::kSlabs - 1, begin, page, but);
    copy_commit();
  };
  if (!S::kDecode) barrier();
  if constexpr (S::kSmall) stage_first_two();
  block.stage_no_queries();
  if (own_rows) {
    const int64_t own_page = own_first ? page : page_of(call, found, own_split);
    const OwnRow<S> own(block, shared);
    after_earlier(mark);
    const typename OwnRow<S>::Fresh fresh = own.take();
    block.stage_queries(own);
    if (OwnRow<S>::has_fresh() && own_split < end) own.put(fresh, own_page, own_first);
  } else {
    block.stage_queries(TurnedRows<S>{block});
  }
  barrier();
  block.take_queries();
  if constexpr (!S::kSmall) {
    barrier();  // the slabs come where q was
    stage_first_two();
  }

  State<S> state;
  for (int split = begin; split < end; ++split) {
    const bool more = split + 1 < end;
    const int64_t next_page = more ? page_of(call, block.work, split + 1) : 0;
    typename Block<S>::Scores scores = {};
    GRETA_UNROLL
    for (int slab = 0; slab < S::kSlabs; ++slab) {
      copy_wait<1>();
      barrier();
      block.add_scores(scores, slab);
      if (slab + 1 == S::kSlabs) block.finish_scores(scores, split);
      barrier();
      if (S::kSlabs > 1) {
        block.stage(true, slab, split, page);
      } else if (more) {
        block.stage(false, slab, split + 1, next_page);
      }
      copy_commit();
    }
    typename Block<S>::RowNumbers m;
    block.probabilities_of(scores, m);

    typename Block<S>::Operands p;
    Entering<S> how;
    GRETA_UNROLL
    for (int slab = 0; slab < S::kSlabs; ++slab) {
      copy_wait<1>();
      barrier();
      const bool by_row = !block.alike(split) && block_any(block.special_values(slab, split));
      if (slab == 0) {
        block.take_probabilities(p);
        if constexpr (Apart) {
          how = put_numbers(block, m, split);
        } else {
          how = enter(block, m, split, state);
        }
      }
      GRETA_UNROLL
      for (int n = 0; n < S::kValueTiles; n += S::kAtOnce) {
        if (!S::kWhole && slab * S::kSlab + n * S::kParts * kTileN >= block.steps * 16) continue;
        typename Block<S>::Values o = {};
        if (by_row) {
          block.walk_values_by_row(o, p, slab, n, split);
        } else {
          block.walk_values(o, p, slab, n);
        }
        GRETA_UNROLL
        for (int j = 0; j < S::kAtOnce; ++j) {
          if constexpr (Apart) {
            put_values(block, o[j], how, slab, n + j);
          } else {
            enter_values(state.o[slab][n + j], o[j], how);
          }
        }
      }
      if (more) {
        barrier();  // the slab has been read
        block.stage(S::kSlabs == 1, slab, split + 1, next_page);
      }
      copy_commit();
    }
    page = next_page;
  }
  if constexpr (Apart) {
    merge_if_last(block, splits_each);
  } else {
    put_out(block, state);
  }
}

// ---- launching
// ------------------------------------------------------------------------------------------------

/// Blocks of 16 rows and of as many as fit: what keeps a machine busy. Bits do not depend on them.
constexpr int64_t kEnoughSmallBlocks = 512, kEnoughLargeBlocks = 40;
/// Splits apart for at most so many (row, head) pairs and floats: past them there are blocks enough. Of
/// few pairs there never are: theirs are apart in a context of any length. A row's room is then as large as
/// heads / kv_heads / 64 of the layer's keys and values.
constexpr int64_t kMostApart = 16 * kEnoughSmallBlocks, kMostPartialFloats = int64_t{16} << 20;
constexpr int64_t kFewPairs = kEnoughSmallBlocks;

int64_t parts_of(int64_t whole, int64_t each) { return (whole + each - 1) / each; }

template <class S, bool Apart>
void run_shape(const Launch& how, const char* name, const AttentionCall& call, int64_t tile_pairs,
               int64_t split_blocks) {
  const int64_t tile_blocks = parts_of(tile_pairs, S::kRows);
  const Grid grid{static_cast<unsigned>(call.tile_count * tile_blocks),
                  static_cast<unsigned>(call.cache.kv_heads), static_cast<unsigned>(split_blocks)};
  launch(how, name, attention<S, Apart>, grid, S::kThreads, S::kSharedBytes + OwnRow<S>::kBytes, call,
         grouping_of(call, tile_blocks), static_cast<int>(parts_of(call.splits, split_blocks)));
}

/// Shape::kDecode. A unit of q turns as a whole: four elements of either half of a rotation.
bool is_decode(const AttentionCall& call) {
  return call.k != nullptr && call.softcap == 0.0f && call.rotation.dims % 8 == 0;
}

template <int HeadDim, bool Small, bool Apart>
void run_head_dim(const Launch& how, const char* name, const AttentionCall& call, int64_t tile_pairs,
                  int64_t split_blocks) {
  if (call.cache.bf16) {
    run_shape<Shape<HeadDim, true, Small, false>, Apart>(how, name, call, tile_pairs, split_blocks);
  } else if (call.cache.head_dim == HeadDim && (!Small || is_decode(call))) {
    run_shape<Shape<HeadDim, false, Small, true>, Apart>(how, name, call, tile_pairs, split_blocks);
  } else {
    run_shape<Shape<HeadDim, false, Small, false>, Apart>(how, name, call, tile_pairs, split_blocks);
  }
}

template <bool Small, bool Apart>
void run_blocks(const Launch& how, const char* name, const AttentionCall& call, int64_t tile_pairs,
                int64_t split_blocks = 1) {
  if (call.cache.head_dim <= 64) {
    run_head_dim<64, Small, Apart>(how, name, call, tile_pairs, split_blocks);
  } else if (call.cache.head_dim <= 128) {
    run_head_dim<128, Small, Apart>(how, name, call, tile_pairs, split_blocks);
  } else {
    run_head_dim<kMostHeadDim, Small, Apart>(how, name, call, tile_pairs, split_blocks);
  }
}

/// Rows of a large block.
int64_t large_rows(int head_dim) {
  return head_dim <= 64    ? Shape<64, false, false, false>::kRows
         : head_dim <= 128 ? Shape<128, false, false, false>::kRows
                           : Shape<kMostHeadDim, false, false, false>::kRows;
}

}  // namespace

int64_t attention_scratch_floats(int64_t rows, int heads, int head_dim, int64_t splits) {
  const int64_t pairs = rows * heads, floats = pairs * splits * (head_dim + 2);
  if (splits < 2 || pairs > kMostApart) return 0;
  return pairs <= kFewPairs || floats <= kMostPartialFloats ? floats : 0;
}

int64_t attention_tile_rows(int heads, int kv_heads, int head_dim, int64_t rows) {
  const int64_t most = large_rows(head_dim) / (heads / kv_heads);
  return most < 1 ? 1 : most < rows ? most : rows;
}

/// A block has all heads of a kv head, so that one block writes the row's k and v; and where two elements
/// turn together, so do those that they turn with.
bool fuses_rope(int heads, int kv_heads, int dims) { return heads / kv_heads <= 16 && dims % 4 == 0; }

void run_attention(const Launch& how, const AttentionCall& call) {
  if (call.tile_count == 0) return;
  // A tile has at least a row, so none has more than what the others leave.
  const int64_t left = call.batch.rows - call.tile_count + 1;
  const int64_t tile_pairs =
      (call.tile_rows < left ? call.tile_rows : left) * (call.heads / call.cache.kv_heads);
  const int64_t each = call.tile_count * call.cache.kv_heads;
  const int64_t small = each * parts_of(tile_pairs, 16);
  const int64_t large = each * parts_of(tile_pairs, large_rows(call.cache.head_dim));
  const bool enough = tile_pairs <= 16 ? small >= kEnoughSmallBlocks : large >= kEnoughLargeBlocks;
  const bool own = call.k != nullptr;
  if (call.partial != nullptr && call.splits > 1 && !enough && small <= kMostArrivals) {
    const int64_t all = small < kEnoughSmallBlocks ? parts_of(kEnoughSmallBlocks, small) : 1;
    const int64_t split_blocks = all < call.splits ? all : call.splits;
    run_blocks<true, true>(how, own ? "attention.splits.rope" : "attention.splits", call, tile_pairs,
                           split_blocks);
  } else if (tile_pairs <= 16) {
    run_blocks<true, false>(how, own ? "attention.small.rope" : "attention.small", call, tile_pairs);
  } else {
    if constexpr (kWarpgroups) {
      const int head_dim = call.cache.head_dim;
      if (how.warpgroups && !call.cache.bf16 && (head_dim == 64 || head_dim == 128))
        return run_attention_warpgroup(how, call, tile_pairs);
    }
    run_blocks<false, false>(how, "attention.large", call, tile_pairs);
  }
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
