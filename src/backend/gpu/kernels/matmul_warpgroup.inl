// Products of many rows on Hopper: wgmma with the weights as A from registers, unpacked there, and the
// rounded rows as B from shared memory. The same packed layout, the same order of addition and so the same
// bits as the other kernels (matmul.inl): a warpgroup's 64 rows of A are four 16-row tiles, and what a lane
// holds of each is what it holds for mma.m16n8k16. A translation unit of the targets that have warpgroups
// (target.h).
//
// Blocks stay: each takes tile after tile of kOutputs outputs x kTokens rows. One thread brings the rounded
// rows, kStages pieces of 64 k in turn, and the packed weights beside them (`full` and `empty`); each of two
// warpgroups multiplies 64 outputs; the three waves beside that thread write what a tile came to (`ready` and
// `taken`), while the next is multiplied.
//
// Of f16, 32 KiB come from the last cache for 128 x 128 x 64 products. So blocks come in pairs, clusters of
// two neighbours in outputs that have the same rows: each brings a half of them to both.
#include <algorithm>

#include "backend/gpu/cuda/warpgroup.h"
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

namespace warpgroup {
constexpr int kConsumers = 2;
constexpr int kWaves = 4 * kConsumers;  ///< that multiply, 16 outputs each
constexpr int kOutputs = 16 * kWaves;
constexpr int kTokens = static_cast<int>(kTiledRows);
constexpr int kRowsBytes = kTokens * 64 * 2;  ///< [kTokens][64 k], 128 bytes a row, swizzled
constexpr int kThreads = kWarpgroup * (kConsumers + 1);
constexpr int kWriters = 3;  ///< waves
constexpr int kProducerRegisters = 72;
constexpr int kConsumerRegisters = 216;
static_assert(registers_suffice(kProducerRegisters, kConsumers, kConsumerRegisters));

/// How the weights come: codes a chunk at a time, floats, of which there are many bytes, k64 step by step. A
/// piece of them comes with the rows of its first step and goes with those of its last: with at most a chunk
/// and a step of rows there (kStages) two chunks have room enough.
template <quant::Type T>
struct Brought {
  static constexpr bool kChunks = Format<T>::kCodes;
  static constexpr int kStages = kChunks ? kStepsK64 + 1 : T == quant::Type::F32 ? 3 : 5;
  static constexpr int kSlots = kChunks ? 2 : kStages;
  static constexpr int kTileBytes = kChunks ? Format<T>::kTileBytes : Format<T>::kTileBytes / kStepsK64;
  static constexpr int kSlotBytes = kWaves * kTileBytes;
  static constexpr int kSumsBytes = kSumsCodes<T> ? kTokens * kSumsOfChunk * 2 : 0;  ///< of a slot's rows
  static constexpr int kSharedBytes = 1024 + kStages * kRowsBytes + kSlots * (kSlotBytes + kSumsBytes) +
                                      kTokens * kOutputs * 4 + (2 * kStages + 2) * 8;
  static_assert(kSharedBytes <= 227 * 1024);
};
}  // namespace warpgroup

template <quant::Type T>
struct WarpgroupShared {
  static constexpr int kStages = warpgroup::Brought<T>::kStages;
  SharedArray<std::byte> x;  ///< begins on 1024 bytes
  SharedArray<std::byte> weights;
  SharedArray<std::byte> sums;  ///< of rows
  SharedArray<float> totals;    ///< total_at()
  SharedArray<uint64_t> barriers;
  GRETA_DEVICE SharedBarrier full(int stage) const { return SharedBarrier(barriers, stage); }
  GRETA_DEVICE SharedBarrier empty(int stage) const { return SharedBarrier(barriers, kStages + stage); }
  GRETA_DEVICE SharedBarrier ready() const { return SharedBarrier(barriers, 2 * kStages); }
  GRETA_DEVICE SharedBarrier taken() const { return SharedBarrier(barriers, 2 * kStages + 1); }
};

/// The tiles of a call, taken in pairs, those of the rows fastest, so that pairs side by side read the same
/// weights.
struct Tiles {
  int rows;  ///< tiles of rows
  int pairs;
  int second;  ///< 1 in the second block of a pair
  GRETA_DEVICE Tiles(const MatmulCall& call, int output_pairs)
      : rows((static_cast<int>(call.rows) + warpgroup::kTokens - 1) / warpgroup::kTokens),
        pairs(rows * output_pairs),
        second(cluster_rank()) {}
  GRETA_DEVICE int first() const { return block_x() / 2; }
  GRETA_DEVICE int step() const { return grid_x() / 2; }
  GRETA_DEVICE int row_tile(int pair) const { return pair % rows; }
  /// Past the last in the second block where their number is odd.
  GRETA_DEVICE int output_tile(int pair) const { return pair / rows * 2 + second; }
};

/// The 16 outputs of a tile that wave `wave` of those that multiply has: consecutive ones of one product; of
/// two that meet in a glu each warpgroup has the same outputs of its own.
struct WaveOutputs {
  int product;
  int row_tile;  ///< the last of the matrix once more for outputs that there are not
  GRETA_DEVICE WaveOutputs(const MatmulCall& call, int output_tile, int wave) {
    using namespace warpgroup;
    const bool glu = call.glu != Glu::none;
    product = glu ? wave / 4 : product_of(call, kOutputs, output_tile);
    row_tile = glu ? output_tile * 4 + wave % 4 : output_tile * kWaves + wave;
    const int row_tiles = static_cast<int>((call.products[product].weight.rows + kTileRows - 1) / kTileRows);
    if (row_tile >= row_tiles) row_tile = row_tiles - 1;
  }
};

/// Brings piece after piece, whole as they lie: one thread. Of the rows a half, to both blocks.
template <quant::Type T>
GRETA_DEVICE void bring(const MatmulCall& call, const WarpgroupShared<T>& shared, const Tiles& tiles) {
  using namespace warpgroup;
  using B = Brought<T>;
  const int chunks = chunks_of(call.products[0].weight.cols);
  const int half = tiles.second * (kRowsBytes / 2);
  Turn<B::kStages> turn;
  Turn<B::kSlots> slot;
  for (int pair = tiles.first(); pair < tiles.pairs; pair += tiles.step()) {
    const std::byte* rows = reinterpret_cast<const std::byte*>(call.x.data) +
                            static_cast<int64_t>(tiles.row_tile(pair)) * kRowsBytes + half;
    const std::byte* sums = reinterpret_cast<const std::byte*>(call.x.sums) +
                            tiles.row_tile(pair) * B::kSumsBytes + tiles.second * (B::kSumsBytes / 2);
    const std::byte* weights[kWaves];
    GRETA_UNROLL
    for (int w = 0; w < kWaves; ++w) {
      const WaveOutputs outputs(call, tiles.output_tile(pair), w);
      weights[w] = call.products[outputs.product].weight.data +
                   static_cast<int64_t>(outputs.row_tile) * chunks * Format<T>::kTileBytes;
    }
    for (int step = 0; step < chunks * kStepsK64; ++step, turn.advance()) {
      const bool with_weights = !B::kChunks || step % kStepsK64 == 0;
      if (turn.round > 0) shared.empty(turn.stage).wait_idly((turn.round - 1) & 1u);
      const SharedBarrier full = shared.full(turn.stage);
      full.expect(kRowsBytes + (with_weights ? B::kSlotBytes + B::kSumsBytes : 0));
      if (with_weights) {
        GRETA_UNROLL
        for (int w = 0; w < kWaves; ++w) {
          copy_bulk(shared.weights, slot.stage * B::kSlotBytes + w * B::kTileBytes, weights[w], B::kTileBytes,
                    full);
          weights[w] += B::kTileBytes;
        }
        if constexpr (kSumsCodes<T>) {
          copy_bulk_to(3, shared.sums, slot.stage * B::kSumsBytes + tiles.second * (B::kSumsBytes / 2), sums,
                       B::kSumsBytes / 2, full);
          sums += call.x.tiled_rows * (kSumsOfChunk * 2);
        }
        slot.advance();
      }
      copy_bulk_to(3, shared.x, turn.stage * kRowsBytes + half, rows, kRowsBytes / 2, full);
      rows += call.x.tiled_rows * 128;
    }
  }
}

/// A tile of weights that has been brought.
struct HeldTile {
  SharedArray<std::byte> bytes;
  GRETA_DEVICE HeldTile operator+(int n) const { return {bytes.from(n)}; }
};
GRETA_DEVICE Words4 stream_words4(const HeldTile& from) { return from.bytes.words4(0); }
GRETA_DEVICE Words2 stream_words2(const HeldTile& from) { return {from.bytes.word(0), from.bytes.word(4)}; }
GRETA_DEVICE uint32_t stream_word(const HeldTile& from) { return from.bytes.word(0); }

/// A wave's tile in a slot.
template <quant::Type T>
GRETA_DEVICE HeldTile held_tile(const WarpgroupShared<T>& shared, int slot) {
  using B = warpgroup::Brought<T>;
  return {shared.weights.from(slot * B::kSlotBytes + (wave_index() - 4) * B::kTileBytes)};
}
/// A wave's packed weights of k64 step `step` of a chunk, from the slot that has it.
template <quant::Type T>
GRETA_DEVICE void take_piece(const WarpgroupShared<T>& shared, int slot, int step, Piece<T, 1>& piece) {
  load_piece<T, 1>(held_tile(shared, slot), warpgroup::Brought<T>::kChunks ? step : 0, piece);
}
/// Behind a chunk's products, of types whose sums are of codes: waits for them, and makes `sum` the chunk's.
template <quant::Type T>
GRETA_DEVICE void end_sums(const WarpgroupShared<T>& shared, int slot, float (&sum)[warpgroup::kTokens / 2]) {
  static_assert(kRowsC == kRowsA && warpgroup::kTokens == 128);
  ChunkEnds<T> ends;
  ends.load(held_tile(shared, slot));
  const FragmentA a = ends.minima();
  const uint32_t rows = shared_address(shared.sums, slot * warpgroup::Brought<T>::kSumsBytes);
  GRETA_UNROLL
  for (int half = 0; half < 2; ++half) {
    float minima[32];
    warpgroup_begin();
    warpgroup_product(minima, a, sums_tile(rows, half));
    warpgroup_commit();
    warpgroup_wait<0>();
    GRETA_UNROLL
    for (int i = 0; i < 32; ++i) sum[32 * half + i] = ends.sum(i % kFragmentC, sum[32 * half + i], minima[i]);
  }
}

/// 2^e of a wave's outputs of a tile.
GRETA_DEVICE void row_powers(const MatmulCall& call, int output_tile, float (&up)[kRowsA]) {
  const WaveOutputs outputs(call, output_tile, wave_index() - 4);
  const float* scale = call.products[outputs.product].weight.row_scale + outputs.row_tile * kTileRows;
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) up[i] = inverse_power(scale[a_row(lane_index(), 2 * i)]);
}

/// Where a tile's totals lie: neither a fragment of C nor a token's outputs meet in a bank.
GRETA_DEVICE int total_at(int token, int output) {
  return token * warpgroup::kOutputs + (output ^ (token / 2 % 4 * 8));
}
/// A quarter of a wave's totals, 32 tokens, to where the writers read them.
GRETA_DEVICE void leave_totals(int quarter, const float (&total)[warpgroup::kTokens / 2],
                               const SharedArray<float>& totals) {
  using namespace warpgroup;
  constexpr int kTiles = kTokens / kTileN / 4;
  const int lane = lane_index(), first = (wave_index() - 4) * kTileRows;
  GRETA_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    const int n = quarter * kTiles + t;
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i)
      totals[total_at(n * kTileN + c_n(lane, i), first + c_row(lane, i))] = total[n * kFragmentC + i];
  }
}

/// A warpgroup's 64 outputs of tile after tile. kFree: in another order than the one, a single sum over all
/// of K (run_matmul_free).
template <quant::Type T, bool kFree>
GRETA_DEVICE void multiply_rows(const MatmulCall& call, const WarpgroupShared<T>& shared, const Tiles& tiles,
                                int consumer) {
  using namespace warpgroup;
  using B = Brought<T>;
  constexpr int kLast = kStepsK64 - 1;
  const int chunks = chunks_of(call.products[0].weight.cols);
  const uint32_t x = shared_address(shared.x, 0);
  const auto release = [&](int stage) {  // to both blocks: a lane each, for what all have read
    wave_barrier();
    if (lane_index() < 2) shared.empty(stage).arrive_at(lane_index());
    wave_barrier();  // together for the next product
  };
  // A tile begins with -0: added to it, a first chunk's sum is what it was.
  float total[kTokens / 2], sum[kTokens / 2];
  GRETA_UNROLL
  for (int i = 0; i < kTokens / 2; ++i) total[i] = sum[i] = -0.0f;

  // The operands of a step are made while the step before is multiplied, a quarter behind each product: a
  // wave waits at a product until the matrix unit takes it, and does this in between.
  Operand<T> a[2][4];
  float up[kRowsA], next_up[kRowsA];
  row_powers(call, tiles.output_tile(tiles.first()), up);
  Turn<B::kStages> now, ahead;
  uint32_t turn = 0;  // of chunks
  shared.full(0).wait(0);
  Piece<T, 1> piece;
  take_piece<T>(shared, 0, 0, piece);
  Heads<T> heads = heads_of(piece, up);
  unpack_k64<T, 1>(piece, up, 0, 0, a[0]);
  if (consumer == 1) named_wait<kConsumers * kWarpgroup>();
  int done = 0;  // tiles
  for (int pair = tiles.first(); pair < tiles.pairs; pair += tiles.step(), ++done) {
    const bool more = pair + tiles.step() < tiles.pairs;
    row_powers(call, tiles.output_tile(more ? pair + tiles.step() : pair), next_up);
    for (int chunk = 0; chunk < chunks; ++chunk, ++turn) {
      const bool leave = chunk == 0 && done > 0, last = chunk + 1 == chunks;
      if (leave && done > 1) shared.taken().wait(static_cast<uint32_t>(done) & 1u);
      GRETA_UNROLL
      for (int j = 0; j < kStepsK64; ++j) {
        // Behind the last step of all the same one is taken again, for nobody.
        const bool ends = j == kLast && last, next = !ends || more;
        Scales<T> scales = {};
        warpgroup_begin();
        GRETA_UNROLL
        for (int s = 0; s < 4; ++s) {
          GRETA_UNROLL
          for (int part = 0; part < kParts<T>; ++part)
            warpgroup_multiply(sum, a[j % 2][s].part[part],
                               shared_tile(x + static_cast<uint32_t>(now.stage * kRowsBytes), s * kStepBytes),
                               (kFree && chunk > 0) || j + s + part > 0);
          warpgroup_commit();
          if (s == 0) {
            // The two take turns at the matrix unit, half a chunk apart, so that one's sums are added while
            // the other multiplies.
            if (j == 1 && turn == 0 && consumer == 0) named_arrive<kConsumers * kWarpgroup>();
            warpgroup_wait<1>();
            if (j > 0) release(now.stage == 0 ? B::kStages - 1 : now.stage - 1);
            if (next) ahead.advance();
            shared.full(ahead.stage).wait(ahead.round & 1u);
            take_piece<T>(
                shared,
                B::kChunks ? static_cast<int>((j == kLast && next ? turn + 1 : turn) % 2) : ahead.stage,
                (j + 1) % kStepsK64, piece);
            GRETA_UNROLL
            for (int i = 0; i < kRowsA; ++i) up[i] = ends ? next_up[i] : up[i];
            if (j == kLast) heads = heads_of(piece, up);
            scales = scales_of(piece, 0, heads);
          }
          unpack_k16(piece, scales, up, (j + 1) % kStepsK64, 0, s, a[(j + 1) % 2][s]);
          if (s == 1 && leave) leave_totals(j, total, shared.totals);
        }
        if (j < kLast) now.advance();
      }
      if (leave) {
        shared.ready().arrive();
        GRETA_UNROLL
        for (int i = 0; i < kTokens / 2; ++i) total[i] = -0.0f;
      }
      if constexpr (kSumsCodes<T>) {
        end_sums<T>(shared, static_cast<int>(turn % 2), sum);
      } else {
        warpgroup_wait<0>();
      }
      release(now.stage);
      now.advance();
      if (!kFree || last) {
        GRETA_UNROLL
        for (int i = 0; i < kTokens / 2; ++i) total[i] = total[i] + sum[i];
      }
    }
  }
  if (done > 1) shared.taken().wait(static_cast<uint32_t>(done) & 1u);
  GRETA_UNROLL
  for (int quarter = 0; quarter < 4; ++quarter) leave_totals(quarter, total, shared.totals);
  shared.ready().arrive();
}

/// Numbers side by side, in one load or store.
template <int kWide>
struct alignas(4 * kWide) Wide {
  float v[kWide];
};
/// Whether rows of `width` floats at `rows` are made of them.
template <int kWide>
GRETA_DEVICE bool made_of(const float* rows, int64_t width) {
  return (reinterpret_cast<uintptr_t>(rows) / 4 | static_cast<uintptr_t>(width)) % kWide == 0;
}

/// What a writer's lane has of a product, of the outputs of a tile from `first` on: kWide, and those kWave *
/// kWide further on, and so on; and what all tokens share of them.
template <int kGroups, int kWide>
struct LaneOutputs {
  bool there[kGroups];
  float scale[kGroups][kWide], bias[kGroups][kWide];
  bool biased;
  GRETA_DEVICE static int of(int group) { return (lane_index() + group * kWave) * kWide; }
  GRETA_DEVICE LaneOutputs(const Product& product, int first) : biased(product.bias != nullptr) {
    GRETA_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      there[g] = first + of(g) < product.weight.rows;
      GRETA_UNROLL
      for (int e = 0; e < kWide; ++e) {
        scale[g][e] = there[g] ? product.weight.row_scale[first + of(g) + e] : 0.0f;
        bias[g][e] = there[g] && biased ? product.bias[first + of(g) + e] : 0.0f;
      }
    }
  }
  /// As output_of(), of a token's totals from `at` on.
  GRETA_DEVICE Wide<kWide> outputs(int g, const SharedArray<float>& totals, int token, int at,
                                   float x_scale) const {
    Wide<kWide> y = reinterpret_cast<const Wide<kWide>&>(totals[total_at(token, at + of(g))]);
    GRETA_UNROLL
    for (int e = 0; e < kWide; ++e) {
      y.v[e] = scaled(y.v[e], scale[g][e], x_scale);
      if (biased) y.v[e] = y.v[e] + bias[g][e];
    }
    return y;
  }
};

/// f(token, its row, its x_scale, which of those at once) for a writer's tokens of a tile, `load` before for
/// as many as are on their way together.
template <int kAtOnce, class Load, class F>
GRETA_DEVICE void each_token(const MatmulCall& call, int token0, int tokens, int writer, const Load& load,
                             const F& f) {
  using namespace warpgroup;
  GRETA_UNROLL_BY(1)
  for (int first = writer; first < tokens; first += kWriters * kAtOnce) {
    float x_scale[kAtOnce];
    GRETA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int token = first + u * kWriters;
      if (token >= tokens) continue;
      x_scale[u] = call.x.scale[token0 + token];
      load(token0 + token, u);
    }
    GRETA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      const int token = first + u * kWriters;
      if (token < tokens) f(token, token0 + token, x_scale[u], u);
    }
  }
}

/// One of kWriters waves: its tokens of tile `tile` of a product.
template <int kWide>
GRETA_DEVICE void write_product(const MatmulCall& call, const Product& product,
                                const SharedArray<float>& totals, int tile, int token0, int tokens,
                                int writer) {
  using namespace warpgroup;
  constexpr int kGroups = kOutputs / kWave / kWide, kAtOnce = kWide == 4 ? 4 : 2;  // registers
  using Outputs = LaneOutputs<kGroups, kWide>;
  const int first = tile * kOutputs;
  const Outputs lane(product, first);
  const auto at = [&](int row, int g) { return row * product.weight.rows + first + Outputs::of(g); };
  Wide<kWide> old[kAtOnce][kGroups];
  each_token<kAtOnce>(
      call, token0, tokens, writer,
      [&](int row, int u) {
        GRETA_UNROLL
        for (int g = 0; g < kGroups; ++g)
          if (call.residual != nullptr && lane.there[g])
            old[u][g] = *reinterpret_cast<const Wide<kWide>*>(call.residual + at(row, g));
      },
      [&](int token, int row, float x_scale, int u) {
        GRETA_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          if (!lane.there[g]) continue;
          Wide<kWide> y = lane.outputs(g, totals, token, 0, x_scale);
          GRETA_UNROLL
          for (int e = 0; e < kWide; ++e)
            if (call.residual != nullptr) y.v[e] = old[u][g].v[e] + y.v[e];
          *reinterpret_cast<Wide<kWide>*>(product.y + at(row, g)) = y;
        }
      });
}

/// Its tokens of a tile of two products that meet in a glu.
template <int kWide>
GRETA_DEVICE void write_glu(const MatmulCall& call, const SharedArray<float>& totals, int tile, int token0,
                            int tokens, int writer) {
  using namespace warpgroup;
  constexpr int kEach = kOutputs / 2, kGroups = kEach / kWave / kWide;
  using Outputs = LaneOutputs<kGroups, kWide>;
  const int first = tile * kEach;
  const Outputs gate(call.products[0], first), up(call.products[1], first);
  each_token<4>(
      call, token0, tokens, writer, [](int, int) {},
      [&](int token, int row, float x_scale, int) {
        float* const to = call.products[0].y + row * call.products[0].weight.rows + first;
        GRETA_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          if (!gate.there[g]) continue;
          Wide<kWide> y = gate.outputs(g, totals, token, 0, x_scale);
          const Wide<kWide> other = up.outputs(g, totals, token, kEach, x_scale);
          GRETA_UNROLL
          for (int e = 0; e < kWide; ++e) y.v[e] = glu_of(call.glu, y.v[e], other.v[e]);
          *reinterpret_cast<Wide<kWide>*>(to + Outputs::of(g)) = y;
        }
      });
}

/// One of kWriters waves: its tokens of a tile.
GRETA_DEVICE void write_tile(const MatmulCall& call, const SharedArray<float>& totals, int tile, int token0,
                             int tokens, int writer) {
  if (call.glu != Glu::none) {
    if (made_of<2>(call.products[0].y, call.products[0].weight.rows)) {
      write_glu<2>(call, totals, tile, token0, tokens, writer);
    } else {
      write_glu<1>(call, totals, tile, token0, tokens, writer);
    }
    return;
  }
  const Product& product = call.products[product_of(call, warpgroup::kOutputs, tile)];
  const int64_t rows = product.weight.rows;
  if (made_of<4>(product.y, rows) && made_of<4>(call.residual, rows)) {
    write_product<4>(call, product, totals, tile, token0, tokens, writer);
  } else {
    write_product<1>(call, product, totals, tile, token0, tokens, writer);
  }
}

template <quant::Type T>
GRETA_DEVICE void write_tiles(const MatmulCall& call, const WarpgroupShared<T>& shared, const Tiles& tiles,
                              int writer) {
  using namespace warpgroup;
  uint32_t done = 0;
  for (int pair = tiles.first(); pair < tiles.pairs; pair += tiles.step(), ++done) {
    const int token0 = tiles.row_tile(pair) * kTokens, output_tile = tiles.output_tile(pair);
    const int left = static_cast<int>(call.rows) - token0, tokens = left < kTokens ? left : kTokens;
    shared.ready().wait_idly(done & 1u);
    write_tile(call, shared.totals, output_tile, token0, tokens, writer);
    shared.taken().arrive();
  }
}

template <quant::Type T, bool kFree>
GRETA_KERNEL void GRETA_BOUNDS(warpgroup::kThreads, 1)
    matmul_warpgroup(Mark mark, GRETA_ARGUMENT MatmulCall call, int output_pairs) {
  using namespace warpgroup;
  using B = Brought<T>;
  entered(mark);
  Shared memory;
  const SharedArray<std::byte> x = from_1024(memory.array<std::byte>(1024 + B::kStages * kRowsBytes));
  const SharedArray<std::byte> weights = memory.array<std::byte>(B::kSlots * B::kSlotBytes);
  const SharedArray<std::byte> sums = memory.array<std::byte>(B::kSlots * B::kSumsBytes);
  const SharedArray<float> totals = memory.array<float>(kTokens * kOutputs);
  const WarpgroupShared<T> shared{x, weights, sums, totals, memory.array<uint64_t>(2 * B::kStages + 2)};
  if (thread_index() == 0) {
    GRETA_UNROLL
    for (int s = 0; s < B::kStages; ++s) {
      shared.full(s).start(1);
      shared.empty(s).start(2 * kWaves);
    }
    shared.ready().start(kConsumers * kWarpgroup);
    shared.taken().start(kWriters * kWave);
    publish_to_matrix_unit();
  }
  cluster_barrier();
  const Tiles tiles(call, output_pairs);
  if (wave_index() < 4) {
    give_registers<kProducerRegisters>();
    if (wave_index() > 0)
      write_tiles<T>(call, shared, tiles, wave_index() - 1);
    else if (elected())
      bring<T>(call, shared, tiles);
  } else {
    take_registers<kConsumerRegisters>();
    multiply_rows<T, kFree>(call, shared, tiles, wave_index() / 4 - 1);
  }
  cluster_barrier();  // nobody reaches a block that is gone
}

template <quant::Type T, bool kFree>
void launch_warpgroup(const Launch& how, const MatmulCall& call) {
  static const std::string name = kernel_name<T>(kFree ? "matmul_free" : "matmul_warpgroup");
  const int64_t rows = call.products[0].weight.rows;
  const int64_t outputs = call.glu == Glu::none ? product_tiles(call, warpgroup::kOutputs) : (rows + 63) / 64;
  const int64_t output_pairs = (outputs + 1) / 2;
  const int64_t pairs = output_pairs * ((call.rows + warpgroup::kTokens - 1) / warpgroup::kTokens);
  const int64_t blocks = 2 * std::min<int64_t>(pairs, std::max(1, how.multiprocessors / 2));
  launch(how, name.c_str(), matmul_warpgroup<T, kFree>,
         Grid{.x = static_cast<unsigned>(blocks), .cluster = 2}, warpgroup::kThreads,
         warpgroup::Brought<T>::kSharedBytes, call, static_cast<int>(output_pairs));
}

}  // namespace

void run_matmul_warpgroup(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() { launch_warpgroup<T, false>(how, call); });
}

void run_matmul_free(const Launch& how, const MatmulCall& call) {
  launch_warpgroup<quant::Type::F16, true>(how, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
