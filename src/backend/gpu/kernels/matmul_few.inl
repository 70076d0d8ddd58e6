// The product for few tokens whose rounded rows lie in memory (few_chunks.inl). Some waves add up a tile's
// sums and write its outputs while the others are at the next tile.
#include "backend/gpu/kernels/few_chunks.inl"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

// Of a block: waves that multiply, as many as registers allow, and behind them waves that add up.
template <int kTiles>
constexpr int kFewThreads = kTiles == 1 ? 640 : 512;
template <int kTiles>
constexpr int kWorkThreads = kFewThreads<kTiles> - kTiles* kWave;
/// Of shared memory: the rows come through the first cache, which is what it leaves.
constexpr int kBesideCacheBytes = 96 * 1024;

/// Floats of a chunk's sums.
template <int kTiles>
constexpr int kSlot = kTiles* kTileN* kOutputStride;
template <int kTiles>
constexpr int kSlotBytes = kSlot<kTiles>* static_cast<int>(sizeof(float));

struct FewCut : Cut {
  int slots;  ///< chunks whose sums shared memory holds at once
};

/// The rounded rows in memory, as fragments of B. Behind the last token stands the last once more: columns of
/// a product know nothing of each other.
template <int kTiles>
struct RowsInMemory {
  const uint32_t* row[kTiles];
  const uint32_t* row_sums[kTiles];

  GRETA_DEVICE explicit RowsInMemory(const MatmulCall& call) {
    const int lane = lane_index();
    GRETA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * kTileN + b_n(lane, 0);
      const int x_row = x_row_of(call, token < call.rows ? token : static_cast<int>(call.rows) - 1);
      row[tile] = reinterpret_cast<const uint32_t*>(call.x.data + x_row * call.x.stride) + b_k(lane, 0) / 2;
      row_sums[tile] =
          reinterpret_cast<const uint32_t*>(call.x.sums + sums_at(call.x, x_row, 0, 0)) + b_k(lane, 0) / 2;
    }
  }
  /// Of a tile, the chunk's sums of the rows.
  GRETA_DEVICE FragmentB sums(int tile, int chunk) const {
    FragmentB b;
    GRETA_UNROLL
    for (int i = 0; i < 2; ++i)
      b.word[i] = row_sums[tile][chunk * (kSumsOfChunk / 2) + (b_k(0, 2 * i) - b_k(0, 0)) / 2];
    return b;
  }
  /// Of a tile, the four k16 steps of k64 step `j` of a chunk.
  GRETA_DEVICE void fragments(int tile, int chunk, int j, FragmentB (&b)[4]) const {
    GRETA_UNROLL
    for (int i = 0; i < 8; ++i)
      b[i / 2].word[i % 2] =
          row[tile][chunk * (kChunkK / 2) + 32 * j + 8 * (i / 2) + (b_k(0, i % 2 * 2) - b_k(0, 0)) / 2];
  }
};
// ---- a block

/// Shared memory for the sums of two turns.
template <int kTiles>
struct SumsShared {
  SharedArray<float> both;
  int slots;

  GRETA_DEVICE SumsShared(Shared& shared, const FewCut& cut)
      : both(shared.array<float>(2 * cut.slots * kSlot<kTiles>)), slots(cut.slots) {}
  GRETA_DEVICE SharedArray<float> of(int turn) const { return both.from(turn % 2 * slots * kSlot<kTiles>); }
};

/// f(tile, from, to, turn) for each of the block's tiles, and of each for as many chunks as shared memory
/// holds the sums of.
template <class F>
GRETA_DEVICE void each_turn(const FewCut& cut, const F& f) {
  int turn = 0;
  for (int tile = block_x(); tile < cut.tiles; tile += grid_x()) {
    for (int from = 0; from < cut.all; from += cut.slots)
      f(tile, from, from + cut.slots < cut.all ? from + cut.slots : cut.all, turn++);
  }
}

template <quant::Type T, int kTiles>
GRETA_DEVICE void multiply_tiles(Wave<T, kTiles>& wave, const FewCut& cut, const SumsShared<kTiles>& sums,
                                 const Turns& turns) {
  const RowsInMemory<kTiles> x(wave.call);
  each_turn(cut, [&](int tile, int from, int to, int turn) {
    turns.wait_free(turn);
    while (wave.here.tile == tile && wave.here.chunk < to)
      wave.multiply_next(x, sums.of(turn).from((wave.here.chunk - from) * kSlot<kTiles>), kTiles * kTileN,
                         kOutputStride);
    turns.filled(turn);
  });
}

/// A thread that adds up has a row of each tile, for up to `kMost` tokens.
template <int kTiles>
GRETA_DEVICE void finish_tiles(const MatmulCall& call, const FewCut& cut, const SumsShared<kTiles>& sums,
                               const Turns& turns) {
  constexpr int kThreads = kTiles * kWave, kMost = kTiles * kTileN * kTileRows / kThreads;
  static_assert(kThreads % kTileRows == 0);
  const int thread = thread_index() - kWorkThreads<kTiles>, row = thread % kTileRows;
  const auto token = [&](int n) { return (thread + n * kThreads) / kTileRows; };
  OutputRow output;
  float totals[kMost][2], residual[kMost];
  each_turn(cut, [&](int tile, int from, int to, int turn) {
    if (from == 0) {
      output.load(call, cut, tile, row);
      GRETA_UNROLL
      for (int n = 0; n < kMost; ++n) {
        totals[n][0] = totals[n][1] = residual[n] = kNothing;
        if (output.there && token(n) < call.rows) residual[n] = output.residual(call, token(n));
      }
    }
    turns.wait_filled(turn);
    const int middle = cut.chunks < from ? from : cut.chunks < to ? cut.chunks : to;
    const int first[2] = {0, middle - from}, end[2] = {middle - from, to - from};
    GRETA_UNROLL
    for (int n = 0; n < kMost; ++n) {
      if (token(n) >= call.rows) break;
      const SharedArray<float> at = sums.of(turn).from(token(n) * kOutputStride + row);
      if (cut.parts == 2) {
        add_slots<2, kSlot<kTiles>>(totals[n], at, first, end);
      } else {
        add_slots<1, kSlot<kTiles>>(totals[n], at, first, end);
      }
    }
    turns.freed(turn);
    if (to != cut.all || !output.there) return;
    GRETA_UNROLL
    for (int n = 0; n < kMost; ++n) {
      if (token(n) >= call.rows) break;
      call.products[output.product].y[output.at(call, token(n))] =
          residual[n] + output.value(call.glu, totals[n], x_scale_of(call, token(n)));
    }
  });
}

template <quant::Type T, int kTiles>
GRETA_KERNEL void GRETA_BOUNDS(kFewThreads<kTiles>, 1)
    matmul_few(Mark mark, GRETA_ARGUMENT MatmulCall call, GRETA_ARGUMENT FewCut cut) {
  entered_early(mark);
  Shared shared;
  const Turns turns(shared, kWorkThreads<kTiles>, kTiles * kWave);
  const bool works = thread_index() < kWorkThreads<kTiles>;
  Wave<T, kTiles> wave(call, cut);
  const SumsShared<kTiles> sums(shared, cut);
  if (works) wave.load_first();
  after_earlier(mark);
  barrier();  // `turns` are there
  if (works) {
    multiply_tiles(wave, cut, sums, turns);
  } else {
    finish_tiles(call, cut, sums, turns);
  }
}

template <quant::Type T, int kTiles>
void launch_few(const Launch& how, const MatmulCall& call) {
  FewCut cut{cut_of(call, kWorkThreads<kTiles> / kWave), 0};
  const int room = std::min(block_shared_bytes(how), kBesideCacheBytes) - Turns::kBytes;
  cut.slots = std::min(cut.all, room / (2 * kSlotBytes<kTiles>));
  static const std::string name = kernel_name<T>("matmul_few");
  launch(how, name.c_str(), matmul_few<T, kTiles>,
         Grid{static_cast<unsigned>(std::min(cut.tiles, how.multiprocessors))}, kFewThreads<kTiles>,
         Turns::kBytes + 2 * cut.slots * kSlotBytes<kTiles>, call, cut);
}

}  // namespace

void run_matmul_few(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() {
    if (call.rows <= kTileN) return launch_few<T, 1>(how, call);
    if (call.rows <= 2 * kTileN) return launch_few<T, 2>(how, call);
    launch_few<T, 4>(how, call);
  });
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
