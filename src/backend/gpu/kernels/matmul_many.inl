// The product for many tokens (prefill): bound by the matrix unit. A block is 128 tokens x 128 outputs (F32:
// 64); activations go through shared memory, three k64 stages deep; weights from the packed tiles straight
// into the registers of the waves that multiply them. After each chunk its sums are added to the totals, also
// in registers: the one order (matmul.h).
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

constexpr int kManyTokens = 128;
constexpr int kWavesM = 4;  ///< across the outputs
constexpr int kWavesN = 2;  ///< across the tokens
constexpr int kManyThreads = kWavesM * kWavesN * kWave;
constexpr int kWaveTokens = kManyTokens / kWavesN;
constexpr int kTilesN = kWaveTokens / kTileN;
/// 16-output tiles of a wave.
template <quant::Type T>
constexpr int kTilesM = T == quant::Type::F32 ? 1 : 2;
template <quant::Type T>
constexpr int kOutputs = kTilesM<T>* kWavesM* kTileRows;

constexpr int kStages = 3;
/// Elements between two tokens in shared memory: 8 more than a k64 step has, so that rows of a fragment of B
/// lie in different banks.
constexpr int kTokenStride = 64 + 8;
constexpr int kStageElements = kManyTokens * kTokenStride;
/// Of the rows' sums, of one chunk, twice.
constexpr int kSumsElements = kManyTokens * kSumsOfChunk;
static_assert(kManyTokens * 2 <= kManyThreads);  // a copy of 16 bytes each
/// 16-byte copies of a thread for one stage.
constexpr int kCopies = kManyTokens * 8 / kManyThreads;

/// The activations' side of a block: which rows its threads copy.
struct TokenCopies {
  const uint16_t* from[kCopies];  ///< null: a row of zeros
  int at[kCopies];                ///< in a stage
  const uint16_t* sums_from;      ///< of the rows' sums; null: nothing, or zeros
  int sums_at;                    ///< -1: nothing
};

GRETA_DEVICE TokenCopies token_copies(const MatmulCall& call, int token0) {
  TokenCopies copies;
  GRETA_UNROLL
  for (int i = 0; i < kCopies; ++i) {
    const int piece = thread_index() + i * kManyThreads;
    const int row = x_row_of(call, token0 + piece / 8);
    copies.from[i] = row < 0 ? nullptr : call.x.data + row * call.x.stride + piece % 8 * 8;
    copies.at[i] = piece / 8 * kTokenStride + piece % 8 * 8;
  }
  const int token = thread_index() / 2, half = thread_index() % 2 * 8;
  const int row = token < kManyTokens ? x_row_of(call, token0 + token) : -1;
  copies.sums_from = row < 0 ? nullptr : call.x.sums + sums_at(call.x, row, 0, half);
  copies.sums_at = token < kManyTokens ? token * kSumsOfChunk + half : -1;
  return copies;
}

/// Starts the copy of k64 step `step` where there is one; a group of its own in any case. `sums`: of the
/// chunk that begins there, too.
template <quant::Type T>
GRETA_DEVICE void copy_step(const TokenCopies& copies, const SharedArray<uint16_t>& stages,
                            const SharedArray<uint16_t>& sums, int step, int steps) {
  if (step < steps) {
    const SharedArray<uint16_t> stage = stages.from(step % kStages * kStageElements);
    GRETA_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      const bool valid = copies.from[i] != nullptr;
      copy_async16(stage, copies.at[i], valid ? copies.from[i] + 64 * step : nullptr, valid);
    }
    if constexpr (kSumsCodes<T>) {
      const int chunk = step / kStepsK64;
      const bool valid = copies.sums_from != nullptr;
      if (step % kStepsK64 == 0 && copies.sums_at >= 0)
        copy_async16(sums.from(chunk % 2 * kSumsElements), copies.sums_at,
                     valid ? copies.sums_from + chunk * kSumsOfChunk : nullptr, valid);
    }
  }
  copy_commit();
}

/// Of the wave's tiles, one k64 step.
template <quant::Type T>
struct WeightStep {
  Piece<T, 1> tile[kTilesM<T>];
};

/// c += the product of k64 step `j` of a chunk.
template <quant::Type T>
GRETA_DEVICE void multiply_step(const WeightStep<T>& weights, const float (&up)[kTilesM<T>][kRowsA], int j,
                                const SharedArray<uint16_t>& tokens,
                                float (&c)[kTilesM<T>][kTilesN][kFragmentC]) {
  Scales<T> scales[kTilesM<T>];
  GRETA_UNROLL
  for (int m = 0; m < kTilesM<T>; ++m)
    scales[m] = scales_of(weights.tile[m], 0, heads_of(weights.tile[m], up[m]));
  GRETA_UNROLL
  for (int step = 0; step < 4; ++step) {
    Operand<T> a[kTilesM<T>];
    GRETA_UNROLL
    for (int m = 0; m < kTilesM<T>; ++m) unpack_k16(weights.tile[m], scales[m], up[m], j, 0, step, a[m]);
    GRETA_UNROLL
    for (int n = 0; n < kTilesN; n += 2) {
      FragmentB b[2];
      fragments_b(tokens.from(n * kTileN * kTokenStride + 16 * step), kTokenStride, kTileN * kTokenStride, b);
      GRETA_UNROLL
      for (int m = 0; m < kTilesM<T>; ++m) {
        GRETA_UNROLL
        for (int i = 0; i < 2; ++i) {
          GRETA_UNROLL
          for (int part = 0; part < kParts<T>; ++part) multiply(c[m][n + i], a[m].part[part], b[i]);
        }
      }
    }
  }
}

/// Behind a chunk's sums, of types whose sums are of codes. `tile`: of the weights, the chunk's; `sums`: the
/// wave's tokens' of the chunk.
template <quant::Type T>
GRETA_DEVICE void end_chunk(const std::byte* tile, const SharedArray<uint16_t>& sums,
                            float (&c)[kTilesN][kFragmentC]) {
  ChunkEnds<T> ends;
  ends.load(tile);
  const FragmentA a = ends.minima();
  GRETA_UNROLL
  for (int n = 0; n < kTilesN; n += 2) {
    FragmentB b[2];
    fragments_b(sums.from(n * kTileN * kSumsOfChunk), kSumsOfChunk, kTileN * kSumsOfChunk, b);
    GRETA_UNROLL
    for (int i = 0; i < 2; ++i) {
      float minima[kFragmentC] = {};
      multiply(minima, a, b[i]);
      GRETA_UNROLL
      for (int e = 0; e < kFragmentC; ++e) c[n + i][e] = ends.sum(e, c[n + i][e], minima[e]);
    }
  }
}

/// The tokens of one column of waves after those of the other, through shared memory, so that neighbours in y
/// are stored together. The stages are no longer read.
template <quant::Type T>
GRETA_DEVICE void store_totals(const MatmulCall& call, int token0,
                               const float (&total)[kTilesM<T>][kTilesN][kFragmentC]) {
  constexpr int kStride = kOutputs<T> + 4;  // a fragment of C is stored without bank conflicts
  static_assert(kWaveTokens * kStride * 4 <= kStages * kStageElements * 2);
  Shared shared;
  const SharedArray<float> sums = shared.array<float>(kWaveTokens * kStride);
  const int lane = lane_index();
  const int output0 = block_y() * kOutputs<T>;
  for (int wave_n = 0; wave_n < kWavesN; ++wave_n) {
    barrier();
    if (wave_index() / kWavesM == wave_n) {
      GRETA_UNROLL
      for (int m = 0; m < kTilesM<T>; ++m) {
        const int row = (wave_index() % kWavesM * kTilesM<T> + m) * kTileRows;
        GRETA_UNROLL
        for (int n = 0; n < kTilesN; ++n) {
          GRETA_UNROLL
          for (int i = 0; i < kFragmentC; ++i)
            sums[(n * kTileN + c_n(lane, i)) * kStride + row + c_row(lane, i)] = total[m][n][i];
        }
      }
    }
    barrier();
    for (int i = thread_index(); i < kWaveTokens * kOutputs<T>; i += kManyThreads) {
      const int token = token0 + wave_n * kWaveTokens + i / kOutputs<T>;
      const int output = output0 + i % kOutputs<T>;
      if (token < call.rows && output < call.products[0].weight.rows)
        store_output(call, call.products[0], output, token,
                     output_of(call.products[0], output, sums[i / kOutputs<T> * kStride + i % kOutputs<T>],
                               x_scale_of(call, token)));
    }
  }
}

/// Grid: tiles of tokens, tiles of outputs.
template <quant::Type T>
GRETA_KERNEL void GRETA_BOUNDS(kManyThreads, 1) matmul_many(Mark mark, MatmulCall call) {
  entered(mark);
  constexpr int kM = kTilesM<T>;
  Shared shared;
  const SharedArray<uint16_t> stages = shared.array<uint16_t>(kStages * kStageElements);
  const SharedArray<uint16_t> sums = shared.array<uint16_t>(kSumsCodes<T> ? 2 * kSumsElements : 0);
  const int lane = lane_index();
  const int chunks = chunks_of(call.products[0].weight.cols);
  const int steps = chunks * kStepsK64;
  const int token0 = block_x() * kManyTokens;
  const int wave_n = wave_index() / kWavesM;
  const TokenCopies copies = token_copies(call, token0);

  // Tiles behind the last are the last once more; nothing of them is stored.
  const int tile0 = (block_y() * kWavesM + wave_index() % kWavesM) * kM;
  const int last_tile = static_cast<int>((call.products[0].weight.rows + kTileRows - 1) / kTileRows) - 1;
  const std::byte* tiles[kM];
  float up[kM][kRowsA];
  GRETA_UNROLL
  for (int m = 0; m < kM; ++m) {
    const int tile = tile0 + m < last_tile ? tile0 + m : last_tile;
    tiles[m] = call.products[0].weight.data + static_cast<int64_t>(tile) * chunks * Format<T>::kTileBytes;
    GRETA_UNROLL
    for (int i = 0; i < kRowsA; ++i)
      up[m][i] = inverse_power(call.products[0].weight.row_scale[tile * kTileRows + a_row(lane, 2 * i)]);
  }

  copy_step<T>(copies, stages, sums, 0, steps);
  copy_step<T>(copies, stages, sums, 1, steps);
  WeightStep<T> weights[2];
  GRETA_UNROLL
  for (int m = 0; m < kM; ++m) load_piece(tiles[m], 0, weights[0].tile[m]);

  float total[kM][kTilesN][kFragmentC] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    float c[kM][kTilesN][kFragmentC] = {};
    GRETA_UNROLL
    for (int j = 0; j < kStepsK64; ++j) {
      const int step = chunk * kStepsK64 + j;
      copy_wait<1>();
      barrier();  // stage `step` is there, and nobody reads the one before it any more
      copy_step<T>(copies, stages, sums, step + 2, steps);
      const bool last = j + 1 == kStepsK64;
      if (!last || chunk + 1 < chunks) {
        GRETA_UNROLL
        for (int m = 0; m < kM; ++m)
          load_piece(last ? tiles[m] + Format<T>::kTileBytes : tiles[m], (j + 1) % kStepsK64,
                     weights[(j + 1) % 2].tile[m]);
      }
      multiply_step<T>(weights[j % 2], up, j,
                       stages.from(step % kStages * kStageElements + wave_n * kWaveTokens * kTokenStride), c);
    }
    if constexpr (kSumsCodes<T>) {
      GRETA_UNROLL
      for (int m = 0; m < kM; ++m)
        end_chunk<T>(tiles[m], sums.from(chunk % 2 * kSumsElements + wave_n * kWaveTokens * kSumsOfChunk),
                     c[m]);
    }
    GRETA_UNROLL
    for (int m = 0; m < kM; ++m) tiles[m] += Format<T>::kTileBytes;
    GRETA_UNROLL
    for (int m = 0; m < kM; ++m) {
      GRETA_UNROLL
      for (int n = 0; n < kTilesN; ++n) {
        GRETA_UNROLL
        for (int i = 0; i < kFragmentC; ++i)
          total[m][n][i] = chunk == 0 ? c[m][n][i] : total[m][n][i] + c[m][n][i];
      }
    }
  }
  store_totals<T>(call, token0, total);
}

void launch_many(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() {
    const Grid grid{static_cast<unsigned>((call.rows + kManyTokens - 1) / kManyTokens),
                    static_cast<unsigned>((call.products[0].weight.rows + kOutputs<T> - 1) / kOutputs<T>)};
    static const std::string name = kernel_name<T>("matmul_many");
    launch(how, name.c_str(), matmul_many<T>, grid, kManyThreads,
           (kStages * kStageElements + (kSumsCodes<T> ? 2 * kSumsElements : 0)) *
               static_cast<int>(sizeof(uint16_t)),
           call);
  });
}

}  // namespace

/// A launch a product.
void run_matmul_many(const Launch& how, const MatmulCall& calls) {
  MatmulCall call = calls;
  call.count = 1;
  for (int p = 0; p < calls.count; ++p) {
    call.products[0] = calls.products[p];
    launch_many(how, call);
  }
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
