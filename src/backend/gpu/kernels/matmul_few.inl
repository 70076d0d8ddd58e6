// The product for few tokens (decode): bound by the reading of the weights. A block takes one tile of 16
// outputs after another; its waves share the chunks of K of all of them, one after another, each with the
// next chunk's weights on their way, and leave each chunk's sums in shared memory, where they are added in
// the one order (matmul.h). With very few tokens a block rounds them itself, and norms them before: work that
// every block repeats, and that spares a launch.
#include <algorithm>

#include "backend/gpu/kernels/held_row.h"
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

// Of a block: waves that multiply, as many as registers allow, and behind them waves that add up a tile's
// sums and write its outputs while those are at the next tile.
template <int kTiles>
constexpr int kFewThreads = kTiles == 1 ? 640 : 512;
template <int kTiles>
constexpr int kWorkThreads = kFewThreads<kTiles> - kTiles* kWave;
constexpr int kMostThreads = 640;
/// As many as share a row of a norm (orders.h).
constexpr int kNormLanes = 512;
static_assert(rmsnorm_lanes(1 << 20) == kNormLanes);
/// Floats between two tokens' 16 outputs: a fragment of C is stored without bank conflicts.
constexpr int kOutputStride = kTileRows + 4;
/// Of shared memory, for the rows that a block rounds itself.
constexpr int kOwnBytes = 24 * 1024;
/// Elements between two rows in shared memory: fragments of B are read without bank conflicts.
inline int own_stride(int64_t cols) { return static_cast<int>((cols + kChunkK - 1) / kChunkK) * kChunkK + 8; }

/// k64 steps that a lane has in registers or on their way.
template <quant::Type T>
constexpr int kFewPiece = T == quant::Type::F32   ? 1
                          : T == quant::Type::F16 ? 2
                                                  : 4;

/// How a tile is cut: `steps` of up to `slots` chunks, whose sums shared memory holds at once. A tile of two
/// products that meet in a glu has the chunks of both, one after the other, in one step.
struct Cut {
  int chunks;  ///< of K
  int parts;   ///< 2 with a glu, else 1
  int slots;
  int steps;
  int tiles;       ///< of all products
  int own_stride;  ///< of the rows that a block rounds itself

  GRETA_DEVICE int length(int step) const {
    const int left = parts * chunks - step * slots;
    return left < slots ? left : slots;
  }
};

/// Chunk `chunk` of step `step` of a tile: the next for a wave is as many further on as there are waves.
struct Place {
  int tile;
  int step;
  int chunk;

  GRETA_DEVICE void advance(const Cut& cut, int waves) {
    chunk += waves;
    settle(cut);
  }
  GRETA_DEVICE void settle(const Cut& cut) {
    while (tile < cut.tiles && chunk >= cut.length(step)) {
      chunk -= cut.length(step);
      if (++step == cut.steps) {
        step = 0;
        tile += grid_x();
      }
    }
  }
};

/// A chunk's weights, in registers or on their way.
template <quant::Type T>
struct Held {
  Piece<T, kFewPiece<T>> piece;
  float row_scale[kRowsA];
  const std::byte* data;  ///< for the parts that are still to be loaded
  int chunk;              ///< of K
};

/// Where a chunk lies.
struct Chunk {
  const std::byte* data = nullptr;
  const float* row_scale = nullptr;  ///< of its tile
  int chunk = 0;                     ///< of K
};
template <quant::Type T>
GRETA_DEVICE Chunk chunk_at(const MatmulCall& call, const Cut& cut, const Place& place) {
  int tile = place.tile, chunk = place.step * cut.slots + place.chunk;
  int product = 0;
  if (cut.parts == 2) {
    product = chunk >= cut.chunks ? 1 : 0;
    chunk -= product * cut.chunks;
  } else {
    product = product_of(call, kTileRows, tile);
  }
  const PackedMatrix& weight = call.products[product].weight;
  return {weight.data + (static_cast<int64_t>(tile) * cut.chunks + chunk) * Format<T>::kTileBytes,
          weight.row_scale + tile * kTileRows, chunk};
}

template <quant::Type T>
GRETA_DEVICE void load_row_scale(const Chunk& chunk, float (&row_scale)[kRowsA]) {
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) row_scale[i] = chunk.row_scale[a_row(lane_index(), 2 * i)];
}

/// The rounded rows in memory, as fragments of B. Behind the last token stands the last once more: columns of
/// a product know nothing of each other.
template <int kTiles>
struct RowsInMemory {
  const uint32_t* row[kTiles];

  GRETA_DEVICE explicit RowsInMemory(const MatmulCall& call) {
    const int lane = lane_index();
    GRETA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * kTileN + b_n(lane, 0);
      const int x_row = x_row_of(call, token < call.rows ? token : static_cast<int>(call.rows) - 1);
      row[tile] = reinterpret_cast<const uint32_t*>(call.x.data + x_row * call.x.stride) + b_k(lane, 0) / 2;
    }
  }
  /// Of a tile, the four k16 steps of k64 step `j` of a chunk.
  GRETA_DEVICE void fragments(int tile, int chunk, int j, FragmentB (&b)[4]) const {
    GRETA_UNROLL
    for (int i = 0; i < 8; ++i)
      b[i / 2].word[i % 2] =
          row[tile][chunk * (kChunkK / 2) + 32 * j + 8 * (i / 2) + (b_k(0, i % 2 * 2) - b_k(0, 0)) / 2];
  }
};
static_assert(kFragmentB == 4);
constexpr bool b_is_as_stated() {
  for (int lane = 0; lane < kWave; ++lane)
    for (int e = 0; e < kFragmentB; ++e)
      if (b_element(b_k(lane, e)) != e || b_lane(b_k(lane, e)) != b_lane(b_k(lane, 0))) return false;
  return true;
}
static_assert(b_is_as_stated());
/// Those that the block has rounded itself: of each k64 step, first the eight words of a lane of B that has
/// the lowest k, then those of the next.
struct OwnRounded {
  SharedArray<uint16_t> rows;
  int at;

  GRETA_DEVICE static int place(int k) {
    return k / 64 * 64 + b_lane(k % 16) * 16 + k % 64 / 16 * 4 + b_element(k % 16);
  }
  GRETA_DEVICE OwnRounded(const MatmulCall& call, const Cut& cut, const SharedArray<uint16_t>& own)
      : rows(own) {
    const int lane = lane_index();
    const int token = b_n(lane, 0) < call.rows ? b_n(lane, 0) : static_cast<int>(call.rows) - 1;
    at = token * cut.own_stride + b_lane(b_k(lane, 0)) * 16;
  }
  GRETA_DEVICE void fragments(int /*tile*/, int chunk, int j, FragmentB (&b)[4]) const {
    GRETA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Words4 v = rows.words4(at + chunk * kChunkK + 64 * j + 8 * half);
      b[2 * half] = {{v.x, v.y}};
      b[2 * half + 1] = {{v.z, v.w}};
    }
  }
};

/// The chunk's sums, to sums[tokens][outputs]. `held` gives way to the weights at `next` as they are used up
/// (not `more`: to nothing).
template <quant::Type T, int kTiles, class Rows>
GRETA_DEVICE void sum_chunk(Held<T>& held, const Rows& x, bool more, const Chunk& next,
                            const SharedArray<float>& sums) {
  constexpr int kPiece = kFewPiece<T>;
  constexpr bool kRest = Format<T>::kCodes;
  static_assert(kPiece == kStepsK64 || !kRest);
  Rest<T, kPiece> next_rest = held.piece;
  float next_scale[kRowsA], up[kRowsA];
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    up[i] = inverse_power(held.row_scale[i]);
    next_scale[i] = held.row_scale[i];
  }
  if (more) {
    if constexpr (kRest) load_rest(next.data, 0, next_rest);
    load_row_scale<T>(next, next_scale);
  }
  float c[kTiles][kFragmentC] = {};
  GRETA_UNROLL
  for (int j = 0; j < kStepsK64; ++j) {
    Operand<T> a[4];
    unpack_k64(held.piece, up, j - j % kPiece, j % kPiece, a);
    GRETA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      FragmentB b[4];
      x.fragments(tile, held.chunk, j, b);
      GRETA_UNROLL
      for (int step = 0; step < 4; ++step) {
        GRETA_UNROLL
        for (int part = 0; part < kParts<T>; ++part) multiply(c[tile], a[step].part[part], b[step]);
      }
    }
    const bool same = j + kPiece < kStepsK64;
    if (same || more)
      load_low<T>(same ? held.data : next.data, (j + kPiece) % kStepsK64,
                  held.piece.low + j % kPiece * Piece<T, 1>::kLowStep);
  }
  static_cast<Rest<T, kPiece>&>(held.piece) = next_rest;
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) held.row_scale[i] = next_scale[i];
  held.data = next.data;
  held.chunk = next.chunk;
  const int lane = lane_index();
  GRETA_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i)
      sums[(t * kTileN + c_n(lane, i)) * kOutputStride + c_row(lane, i)] = c[t][i];
  }
}

// ---- rows that the block rounds itself

/// Shared memory of a block that rounds rows itself.
struct OwnShared {
  SharedArray<uint16_t> rows;  ///< [tokens][own_stride]
  SharedArray<float> scales;   ///< [tokens]
  SharedArray<float> trees;    ///< [threads / kTree]
  SharedArray<float> largest;  ///< [waves]
  /// Of the numbers, each array rounded up to 16 bytes.
  static constexpr int kBytes =
      4 * (kTileN + (kMostThreads / kTree + 3) / 4 * 4 + (kMostThreads / kWave + 3) / 4 * 4);

  GRETA_DEVICE OwnShared(Shared& shared, const MatmulCall& call, const Cut& cut)
      : rows(shared.array<uint16_t>(static_cast<int>(call.rows) * cut.own_stride)),
        scales(shared.array<float>(kTileN)),
        trees(shared.array<float>(kMostThreads / kTree)),
        largest(shared.array<float>(kMostThreads / kWave)) {}
};

// Elements that one of the block's first kNormLanes threads holds: what kOwnBytes allow, and with a norm's
// weights beside them.
constexpr int kRoundHeld = 24;
constexpr int kNormHeld = 16;
static_assert(kOwnBytes / 2 <= kRoundHeld * kNormLanes);

/// Rounds the row that the threads hold, as row r.
template <int kHeld>
GRETA_DEVICE void round_own_row(HeldRow<kNormLanes, kHeld>& row, int lane, int cols, int r, int stride,
                                const OwnShared& shared) {
  float amax = 0.0f;
  row.each(lane, cols, [&](int /*i*/, float v, int /*e*/) { amax = larger(amax, magnitude_of(v)); });
  const float up = row_power(block_largest(amax, shared.largest));
  if (thread_index() == 0) shared.scales[r] = inverse_power(up);
  // In pairs, and zeros behind the row's end.
  const SharedArray<uint16_t> to = shared.rows.from(r * stride);
  row.each(lane, chunks_of(cols) * kChunkK, [&](int i, float v, int e) {
    if (e % 2 == 0) to.put_word(OwnRounded::place(i), pack_f16(v * up, row.v[e + 1] * up));
  });
  barrier();  // the row is there, and `largest` is free
}

/// What `own` says, for all rows. Waits for the kernels before.
GRETA_DEVICE void round_own_rows(const MatmulCall& call, const OwnShared& shared, int stride,
                                 const Mark& mark) {
  const int cols = static_cast<int>(call.products[0].weight.cols);
  const OwnRows& own = call.own;
  const int lane = thread_index() < kNormLanes ? thread_index() : cols;  // of those behind, nothing is theirs
  if (own.norm == nullptr) {
    after_earlier(mark);
    for (int r = 0; r < call.rows; ++r) {
      HeldRow<kNormLanes, kRoundHeld> row;
      row.load(own.x + static_cast<int64_t>(r) * cols, lane, cols);
      round_own_row(row, lane, cols, r, stride, shared);
    }
    return;
  }
  HeldRow<kNormLanes, kNormHeld> weight;
  weight.load(own.norm, lane, cols);
  after_earlier(mark);
  for (int r = 0; r < call.rows; ++r) {
    HeldRow<kNormLanes, kNormHeld> row;
    row.load(own.x + static_cast<int64_t>(r) * cols, lane, cols);
    float sum = 0.0f;
    row.each(lane, cols, [&](int /*i*/, float v, int /*e*/) { sum = fused(v, v, sum); });
    const float factor = norm_factor<kNormLanes>(sum, cols, own.eps, shared.trees);
    row.each(lane, cols, [&](int /*i*/, float& v, int e) { v = (v * factor) * weight.v[e]; });
    if (block_x() == 0) {
      float* const normed = own.normed + static_cast<int64_t>(r) * cols;
      row.each(lane, cols, [&](int i, float v, int /*e*/) { normed[i] = v; });
    }
    round_own_row(row, lane, cols, r, stride, shared);
  }
}

// ---- a block

/// Shared memory for the sums: of two steps, and of a tile's earlier steps.
template <int kTiles>
struct SumsShared {
  static constexpr int kSlot = kTiles * kTileN * kOutputStride;
  SharedArray<float> both;
  SharedArray<float> totals;
  int slots;

  GRETA_DEVICE SumsShared(Shared& shared, const Cut& cut)
      : both(shared.array<float>(2 * cut.slots * kSlot)),
        totals(shared.array<float>(cut.steps > 1 ? kSlot : 0)),
        slots(cut.slots) {}
  GRETA_DEVICE SharedArray<float> of(int turn) const { return both.from(turn % 2 * slots * kSlot); }
};

/// `total` and the sums of slots [first, end) at `at`, ascending.
GRETA_DEVICE float add_slots(float total, const SharedArray<float>& sums, int slot_size, int first, int end,
                             int at) {
  GRETA_UNROLL_BY(8)
  for (int slot = first; slot < end; ++slot) total = total + sums[slot * slot_size + at];
  return total;
}

/// The sums of step `step` of a tile are complete: added up by `threads` threads, of which this is `thread`,
/// and after the last step the outputs.
template <int kTiles, class Scale>
GRETA_DEVICE void finish_step(const MatmulCall& call, const Cut& cut, int block_tile, int step,
                              const SharedArray<float>& sums, const SumsShared<kTiles>& room,
                              const Scale& x_scale, int thread, int threads) {
  constexpr int kSlot = SumsShared<kTiles>::kSlot;
  int tile = block_tile;
  const Product& product = call.products[cut.parts == 2 ? 0 : product_of(call, kTileRows, tile)];
  const int length = cut.length(step);
  for (int i = thread; i < call.rows * kTileRows; i += threads) {
    const int token = i / kTileRows, output = tile * kTileRows + i % kTileRows;
    const int at = token * kOutputStride + i % kTileRows;
    const int end = cut.parts == 2 ? cut.chunks : length;
    const float total = add_slots(step > 0 ? room.totals[at] + sums[at] : sums[at], sums, kSlot, 1, end, at);
    if (step + 1 < cut.steps) {
      room.totals[at] = total;
    } else if (output < product.weight.rows) {
      float y = output_of(product, output, total, x_scale(token));
      if (cut.parts == 2) {
        const float up = add_slots(sums[end * kSlot + at], sums, kSlot, end + 1, 2 * end, at);
        y = glu_of(call.glu, y, output_of(call.products[1], output, up, x_scale(token)));
      }
      store_output(call, product, output, token, y);
    }
  }
}

/// All of the block's tiles, a wave's part of them. `held` has the first chunk's weights where the wave has a
/// chunk.
template <quant::Type T, int kTiles, class Rows>
GRETA_DEVICE void multiply_tiles(const MatmulCall& call, const Cut& cut, Held<T>& held, Place here,
                                 const Rows& x, const SumsShared<kTiles>& room, const Turns& turns) {
  int turn = 0;
  for (int tile = block_x(); tile < cut.tiles; tile += grid_x()) {
    for (int step = 0; step < cut.steps; ++step, ++turn) {
      const SharedArray<float> sums = room.of(turn);
      turns.wait_free(turn);
      while (here.tile == tile && here.step == step) {
        const int slot = here.chunk;
        Place next = here;
        next.advance(cut, kWorkThreads<kTiles> / kWave);
        const bool more = next.tile < cut.tiles;
        const Chunk at = more ? chunk_at<T>(call, cut, next) : Chunk{};
        sum_chunk<T, kTiles>(held, x, more, at, sums.from(slot * SumsShared<kTiles>::kSlot));
        here = next;
      }
      turns.filled(turn);
    }
  }
}
template <int kTiles, class Scale>
GRETA_DEVICE void finish_tiles(const MatmulCall& call, const Cut& cut, const Scale& x_scale,
                               const SumsShared<kTiles>& room, const Turns& turns) {
  int turn = 0;
  for (int tile = block_x(); tile < cut.tiles; tile += grid_x()) {
    for (int step = 0; step < cut.steps; ++step, ++turn) {
      turns.wait_filled(turn);
      finish_step<kTiles>(call, cut, tile, step, room.of(turn), room, x_scale,
                          thread_index() - kWorkThreads<kTiles>, kTiles * kWave);
      turns.freed(turn);
    }
  }
}

template <quant::Type T>
GRETA_DEVICE void load_first(const MatmulCall& call, const Cut& cut, const Place& here, Held<T>& held) {
  if (here.tile >= cut.tiles) return;
  const Chunk first = chunk_at<T>(call, cut, here);
  load_piece(first.data, 0, held.piece);
  load_row_scale<T>(first, held.row_scale);
  held.data = first.data;
  held.chunk = first.chunk;
}

/// The weights of the block's first tile come nearer while it rounds its rows.
template <quant::Type T>
GRETA_DEVICE void prefetch_first_tile(const MatmulCall& call, const Cut& cut) {
  if (thread_index() != 0 || block_x() >= cut.tiles) return;
  for (int part = 0; part < cut.parts; ++part)
    prefetch(chunk_at<T>(call, cut, {block_x(), 0, part * cut.chunks}).data,
             cut.chunks * Format<T>::kTileBytes);
}

template <quant::Type T, int kTiles, bool kOwn>
GRETA_KERNEL void GRETA_BOUNDS(kFewThreads<kTiles>, 1)
    matmul_few(Mark mark, GRETA_ARGUMENT MatmulCall call, GRETA_ARGUMENT Cut cut) {
  entered_early(mark);
  Shared shared;
  const Turns turns(shared, kWorkThreads<kTiles> / kWave, kTiles);
  Place here{block_x(), 0, wave_index()};
  const bool works = thread_index() < kWorkThreads<kTiles>;
  here.settle(cut);
  Held<T> held;
  if constexpr (kOwn) {
    prefetch_first_tile<T>(call, cut);
    const OwnShared own(shared, call, cut);
    const SumsShared<kTiles> room(shared, cut);
    round_own_rows(call, own, cut.own_stride, mark);
    if (works) {
      load_first(call, cut, here, held);
      multiply_tiles<T, kTiles>(call, cut, held, here, OwnRounded(call, cut, own.rows), room, turns);
    } else {
      finish_tiles<kTiles>(
          call, cut, [&](int token) { return own.scales[token]; }, room, turns);
    }
  } else {
    const SumsShared<kTiles> room(shared, cut);
    if (works) load_first(call, cut, here, held);  // on their way while the kernel before ends
    after_earlier(mark);
    barrier();  // `turns` are there
    if (works) {
      multiply_tiles<T, kTiles>(call, cut, held, here, RowsInMemory<kTiles>(call), room, turns);
    } else {
      finish_tiles<kTiles>(
          call, cut, [&](int token) { return x_scale_of(call, token); }, room, turns);
    }
  }
}

/// Of shared memory, for a block's own rows.
int own_bytes(const MatmulCall& call) {
  if (call.own.x == nullptr) return 0;
  return static_cast<int>(call.rows) * own_stride(call.products[0].weight.cols) * 2 + OwnShared::kBytes;
}

template <int kTiles>
Cut cut_of(const MatmulCall& call) {
  constexpr int kSlotBytes = SumsShared<kTiles>::kSlot * static_cast<int>(sizeof(float));
  Cut cut;
  cut.chunks = static_cast<int>((call.products[0].weight.cols + kChunkK - 1) / kChunkK);
  cut.own_stride = own_stride(call.products[0].weight.cols);
  cut.parts = call.glu == Glu::none ? 1 : 2;
  const int room = kBlockSharedBytes - own_bytes(call) - Turns::kBytes - kSlotBytes;
  const int most = room / (2 * kSlotBytes), all = cut.parts * cut.chunks;
  cut.steps = (all + most - 1) / most;
  cut.slots = (all + cut.steps - 1) / cut.steps;
  cut.tiles = static_cast<int>(cut.parts == 2 ? (call.products[0].weight.rows + kTileRows - 1) / kTileRows
                                              : product_tiles(call, kTileRows));
  return cut;
}

template <quant::Type T, int kTiles, bool kOwn>
void launch_few(const Launch& how, const MatmulCall& call) {
  constexpr int kSlotBytes = SumsShared<kTiles>::kSlot * static_cast<int>(sizeof(float));
  const Cut cut = cut_of<kTiles>(call);
  const int blocks = std::min(cut.tiles, how.multiprocessors);
  static const std::string name = kernel_name<T>("matmul_few");
  const int sums_bytes = (2 * cut.slots + (cut.steps > 1 ? 1 : 0)) * kSlotBytes;
  launch(how, name.c_str(), matmul_few<T, kTiles, kOwn>, Grid{static_cast<unsigned>(blocks)},
         kFewThreads<kTiles>, Turns::kBytes + own_bytes(call) + sums_bytes, call, cut);
}

template <quant::Type T>
void launch_few(const Launch& how, const MatmulCall& call) {
  if (call.own.x != nullptr) return launch_few<T, 1, true>(how, call);
  if (call.rows <= kTileN) return launch_few<T, 1, false>(how, call);
  if (call.rows <= 2 * kTileN) return launch_few<T, 2, false>(how, call);
  launch_few<T, 4, false>(how, call);
}

}  // namespace

bool rounds_itself(int64_t rows, int64_t cols, bool norm) {
  if (norm && (rmsnorm_lanes(cols) != kNormLanes || cols > kNormHeld * kNormLanes)) return false;
  return rows <= kTileN && rows * own_stride(cols) * 2 <= kOwnBytes;
}

bool few_fuses_glu(const MatmulCall& of) {
  MatmulCall call = of;
  call.glu = Glu::silu;
  if (call.rows <= kTileN) return cut_of<1>(call).steps == 1;
  return (call.rows <= 2 * kTileN ? cut_of<2>(call) : cut_of<4>(call)).steps == 1;
}

void run_matmul_few(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() { launch_few<T>(how, call); });
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
