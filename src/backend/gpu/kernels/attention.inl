// Attention over the paged cache. Splits of 64 keys, aligned to absolute position, each computed from its own
// keys alone (attention_block.inl) and merged in ascending order. Two ways with the same bits: a block goes
// through all splits of its rows and merges as it goes; or every split is a block's (few rows, many keys),
// and a second kernel merges. Included after the target's target.h.
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
      if (!how.seen[t][r] || block.part != 0 || lane_index() % kRowLanes != 0) continue;
      const int64_t row = block.work.at(block.pair_of(t, r * kSameRowC), block.call.heads);
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
                             const Entering<S>& how, int split, int slab, int n) {
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const int d = slab * S::kSlab + block.column_of(n, i);
      if (!how.seen[t][i / kSameRowC] || d >= block.call.cache.head_dim) continue;
      const int64_t row = block.work.at(block.pair_of(t, i), block.call.heads);
      partial_values(block.call, row * block.call.splits + split)[d] = o[t][i];
    }
  }
}

template <class S>
GRETA_DEVICE void put_out(const Block<S>& block, const State<S>& state) {
  GRETA_UNROLL
  for (int t = 0; t < S::kTiles; ++t) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const int pair = block.pair_of(t, i);
      if (pair >= block.work.pairs) continue;
      float* out = block.call.out + block.work.at(pair, block.call.heads) * block.call.cache.head_dim;
      GRETA_UNROLL
      for (int tile = 0; tile < S::kSlabs * S::kValueTiles; ++tile) {
        const int slab = tile / S::kValueTiles, n = tile % S::kValueTiles;
        const int d = slab * S::kSlab + block.column_of(n, i);
        if (!S::kWhole && d >= block.call.cache.head_dim) continue;
        out[d] = divide(state.o[slab][n][t][i] * kUndoProbability, state.sum[t][i / kSameRowC]);
      }
    }
  }
}

/// Block (part of a tile, kv head, splits_each splits), or all splits where they are not apart. Two slots
/// take turns: a slab is consumed, all threads have done so, the next but one is asked for.
template <class S, bool Apart>
GRETA_KERNEL void GRETA_BOUNDS(S::kThreads, S::blocks(Apart))
    attention(Mark mark, AttentionCall call, int tile_blocks, int splits_each) {
  entered(mark);
  Work found;
  if (!find_work<S>(call, tile_blocks, found)) return;
  int begin = found.any.first / kSplit, end = found.any.last / kSplit + 1;
  if constexpr (Apart) {
    const int first = block_z() * splits_each;
    begin = first > begin ? first : begin;
    end = first + splits_each < end ? first + splits_each : end;
    if (begin >= end) return;
  }
  Shared shared;
  Block<S> block(call, found, shared);
  barrier();
  int64_t page = block.page_of(begin);
  const auto stage_first_two = [&] {
    block.stage(false, 0, begin, page);
    copy_commit();
    block.stage(S::kSlabs == 1, S::kSlabs - 1, begin, page);
    copy_commit();
  };
  if constexpr (S::kSmall) stage_first_two();
  block.stage_queries();
  barrier();
  block.take_queries();
  if constexpr (!S::kSmall) {
    barrier();  // the slabs come where q was
    stage_first_two();
  }

  State<S> state;
  for (int split = begin; split < end; ++split) {
    const bool more = split + 1 < end;
    const int64_t next_page = more ? block.page_of(split + 1) : 0;
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
      bool by_row = block.pair_values(slab, split);
      if (block.work.all.covers(split)) {
        barrier();
      } else {
        by_row = block_any(by_row);
      }
      if (more) block.stage(S::kSlabs == 1, slab, split + 1, next_page);
      copy_commit();
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
          block.walk_values_by_row(o, p, n, split);
        } else {
          block.walk_values(o, p, n);
        }
        GRETA_UNROLL
        for (int j = 0; j < S::kAtOnce; ++j) {
          if constexpr (Apart) {
            put_values(block, o[j], how, split, slab, n + j);
          } else {
            enter_values(state.o[slab][n + j], o[j], how);
          }
        }
      }
    }
    page = next_page;
  }
  if constexpr (!Apart) put_out(block, state);
}

// ---- merging splits that were apart
// ---------------------------------------------------------------------------

inline constexpr int kMergeThreads = 128;
inline constexpr int kMergeSplits = 64;  ///< at a time
inline constexpr int kMergeColumns = 2;  ///< of a thread: head_dim up to 256

/// Block (row, head). M after each split is the largest m so far, so a thread each finds the factors of a
/// split; then L and O go through the splits in ascending order.
GRETA_KERNEL void GRETA_BOUNDS(kMergeThreads, 1) attention_merge(Mark mark, AttentionCall call) {
  entered(mark);
  Shared shared;
  const SharedArray<float> m = shared.array<float>(kMergeSplits), l = shared.array<float>(kMergeSplits),
                           a = shared.array<float>(kMergeSplits), b = shared.array<float>(kMergeSplits);
  const int64_t at = block_x();
  const int head_dim = call.cache.head_dim, thread = thread_index();
  const Keys keys = visible_at(call.batch.positions[at / call.heads], call.window);
  float largest = float_of(kMinusInfinity), sum = 0.0f, o[kMergeColumns] = {};
  const int last = keys.last / kSplit;
  for (int first = keys.first / kSplit; first <= last; first += kMergeSplits) {
    const int count = last - first + 1 < kMergeSplits ? last - first + 1 : kMergeSplits;
    barrier();
    if (thread < count) {
      const float* numbers = partial_numbers(call, at * call.splits + first + thread);
      m[thread] = numbers[0];
      l[thread] = numbers[1];
    }
    barrier();
    float before = largest;
    for (int i = 0; i < count; ++i) {
      if (i < thread) before = larger(before, m[i]);
      largest = larger(largest, m[i]);
    }
    if (thread < count) {
      const Merging merge = merging(before, m[thread]);
      a[thread] = merge.a;
      b[thread] = merge.b;
    }
    barrier();
    const float* values = partial_values(call, at * call.splits + first);
    for (int i = 0; i < count; ++i, values += head_dim) {
      sum = fused(sum, a[i], l[i] * b[i]);
      GRETA_UNROLL
      for (int c = 0; c < kMergeColumns; ++c) {
        const int d = thread + c * kMergeThreads;
        if (d < head_dim) o[c] = fused(o[c], a[i], values[d] * b[i]);
      }
    }
  }
  GRETA_UNROLL
  for (int c = 0; c < kMergeColumns; ++c) {
    const int d = thread + c * kMergeThreads;
    if (d < head_dim) call.out[at * head_dim + d] = divide(o[c] * kUndoProbability, sum);
  }
}

// ---- launching
// ------------------------------------------------------------------------------------------------

/// Blocks of 16 rows and of as many as fit: what keeps a machine busy. Bits do not depend on them.
constexpr int64_t kEnoughSmallBlocks = 512, kEnoughLargeBlocks = 40;
/// Splits apart for at most so many (row, head) pairs and floats: past them there are blocks enough.
constexpr int64_t kMostApart = 16 * kEnoughSmallBlocks, kMostPartialFloats = int64_t{16} << 20;

int64_t parts_of(int64_t whole, int64_t each) { return (whole + each - 1) / each; }

template <class S, bool Apart>
void run_shape(const Launch& how, const char* name, const AttentionCall& call, int64_t tile_pairs,
               int64_t split_blocks) {
  const int64_t tile_blocks = parts_of(tile_pairs, S::kRows);
  const Grid grid{static_cast<unsigned>(call.tile_count * tile_blocks),
                  static_cast<unsigned>(call.cache.kv_heads), static_cast<unsigned>(split_blocks)};
  launch(how, name, attention<S, Apart>, grid, S::kThreads, S::kSharedBytes, call,
         static_cast<int>(tile_blocks), static_cast<int>(parts_of(call.splits, split_blocks)));
}

template <int HeadDim, bool Small, bool Apart>
void run_head_dim(const Launch& how, const char* name, const AttentionCall& call, int64_t tile_pairs,
                  int64_t split_blocks) {
  if (call.cache.bf16) {
    run_shape<Shape<HeadDim, true, Small, false>, Apart>(how, name, call, tile_pairs, split_blocks);
  } else if (!Small && call.cache.head_dim == HeadDim) {
    run_shape<Shape<HeadDim, false, Small, !Small>, Apart>(how, name, call, tile_pairs, split_blocks);
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
    run_head_dim<256, Small, Apart>(how, name, call, tile_pairs, split_blocks);
  }
}

/// Rows of a large block.
int64_t large_rows(int head_dim) {
  return head_dim <= 64    ? Shape<64, false, false, false>::kRows
         : head_dim <= 128 ? Shape<128, false, false, false>::kRows
                           : Shape<256, false, false, false>::kRows;
}

}  // namespace

int64_t attention_scratch_floats(int64_t rows, int heads, int head_dim, int64_t splits) {
  const int64_t pairs = rows * heads, floats = pairs * splits * (head_dim + 2);
  return splits < 2 || pairs > kMostApart || floats > kMostPartialFloats ? 0 : floats;
}

int64_t attention_tile_rows(int heads, int kv_heads, int head_dim, int64_t rows) {
  const int64_t most = large_rows(head_dim) / (heads / kv_heads);
  return most < 1 ? 1 : most < rows ? most : rows;
}

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
  if (call.partial != nullptr && call.splits > 1 && !enough) {
    const int64_t split_blocks = small < kEnoughSmallBlocks ? parts_of(kEnoughSmallBlocks, small) : 1;
    run_blocks<true, true>(how, "attention.splits", call, tile_pairs,
                           split_blocks < call.splits ? split_blocks : call.splits);
    launch(how, "attention.merge", attention_merge, Grid{static_cast<unsigned>(call.batch.rows * call.heads)},
           kMergeThreads, 4 * kMergeSplits * static_cast<int>(sizeof(float)), call);
  } else if (tile_pairs <= 16) {
    run_blocks<true, false>(how, "attention.small", call, tile_pairs);
  } else {
    run_blocks<false, false>(how, "attention.large", call, tile_pairs);
  }
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
