// Products of many rows on Hopper: wgmma with the weights as A from registers, unpacked there, and the
// rounded rows as B from shared memory. The same packed layout, the same order of addition and so the same
// bits as the other kernels (matmul.inl): a warpgroup's 64 rows of A are four 16-row tiles, and what a lane
// holds of each is what it holds for mma.m16n8k16. A translation unit of the targets that have warpgroups
// (target.h).
//
// A block: kOutputs outputs x kTokens rows; a thread of one warpgroup brings rows of x, each of the others
// multiplies 64 outputs. x passes through kStages pieces of 64 k; `full` and `empty` say whose turn each
// piece is.
#include "backend/gpu/cuda/warpgroup.h"
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

namespace warpgroup {
constexpr int kConsumers = 2;
constexpr int kOutputs = 64 * kConsumers;
constexpr int kTokens = static_cast<int>(kTiledRows);
constexpr int kStages = 6;
constexpr int kPieceBytes = kTokens * 64 * 2;  ///< [kTokens][64 k], 128 bytes a row, swizzled
constexpr int kThreads = kWarpgroup * (kConsumers + 1);
constexpr int kSharedBytes = 1024 + kStages * kPieceBytes + 2 * kStages * 8;
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
}  // namespace warpgroup

struct WarpgroupShared {
  SharedArray<uint16_t> x;     ///< begins on 1024 bytes
  SharedArray<float> numbers;  ///< the same memory, once x is no longer read
  SharedArray<uint64_t> barriers;
  GRETA_DEVICE SharedBarrier full(int stage) const { return SharedBarrier(barriers, stage); }
  GRETA_DEVICE SharedBarrier empty(int stage) const {
    return SharedBarrier(barriers, warpgroup::kStages + stage);
  }
};

GRETA_DEVICE int k64_steps(const MatmulCall& call) {
  return static_cast<int>((call.products[0].weight.cols + 63) / 64);
}

/// Brings piece after piece: one thread, whole pieces as they lie.
GRETA_DEVICE void bring_rows(const MatmulCall& call, const WarpgroupShared& shared) {
  using namespace warpgroup;
  const uint16_t* from = call.x.data + static_cast<int64_t>(block_x()) * (kTokens * 64);
  const int64_t next = call.x.tiled_rows * 64;
  const int steps = k64_steps(call);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    if (step >= kStages) shared.empty(stage).wait(static_cast<uint32_t>(step / kStages - 1) & 1u);
    shared.full(stage).expect(kPieceBytes);
    copy_bulk(shared.x, stage * (kPieceBytes / 2), from + step * next, kPieceBytes, shared.full(stage));
  }
}

/// 64 outputs of a product: a consumer's.
struct Outputs {
  int product;
  int first;  ///< 16-output tile
};
/// Consecutive ones of one product; of two that meet in a glu, each consumer has the same of its own.
GRETA_DEVICE Outputs outputs_of(const MatmulCall& call, int block_tile, int consumer) {
  using namespace warpgroup;
  if (call.glu != Glu::none) return {consumer, block_tile * 4};
  const int product = product_of(call, kOutputs, block_tile);
  return {product, (block_tile * kConsumers + consumer) * 4};
}

/// What a wave's 16 outputs have in common: those of a lane's rows.
struct WaveOutputs {
  static constexpr int kRows = 2;  ///< of C that a lane has: elements i and i + 1 of i = 0, 2
  bool valid[kRows];
  float scale[kRows];
  float bias[kRows];
  bool biased;

  GRETA_DEVICE WaveOutputs(const MatmulCall& call, int product, int first, bool wanted) {
    const float* biases = call.products[product].bias;
    biased = biases != nullptr;
    GRETA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int output = first + c_row(lane_index(), 2 * r);
      valid[r] = wanted && output < call.products[product].weight.rows;
      scale[r] = valid[r] ? call.products[product].weight.row_scale[output] : 0.0f;
      bias[r] = valid[r] && biased ? biases[output] : 0.0f;
    }
  }
  /// As output_of().
  GRETA_DEVICE float output(float total, int i, float x_scale) const {
    const float y = scaled(total, scale[i / 2], x_scale);
    return biased ? y + bias[i / 2] : y;
  }
};
static_assert(c_row(0, 2) - c_row(0, 0) == 8 && c_row(0, 0) == c_row(0, 1) && kFragmentC == 4);

/// A wave's 16 outputs of all tokens, four times eight tokens at a time: what they are added to is on its way
/// together.
GRETA_DEVICE void store_rows(const MatmulCall& call, int product, int first, const WaveOutputs& outputs,
                             const float (&total)[warpgroup::kTokens / 2]) {
  using namespace warpgroup;
  constexpr int kAtOnce = 4;
  const int lane = lane_index();
  const int64_t rows = call.products[product].weight.rows;
  float* const y = call.products[product].y + first + c_row(lane, 0);
  const float* const residual = call.residual == nullptr ? nullptr : call.residual + first + c_row(lane, 0);
  GRETA_UNROLL
  for (int n0 = 0; n0 < kTokens / kTileN; n0 += kAtOnce) {
    float old[kAtOnce][kFragmentC], x_scale[kAtOnce][2];
    int64_t at[kAtOnce][2];
    bool there[kAtOnce][2];
    GRETA_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      GRETA_UNROLL
      for (int i = 0; i < kFragmentC; ++i) {
        if (i < 2) {
          const int token = block_x() * kTokens + (n0 + n) * kTileN + c_n(lane, i);
          there[n][i] = token < call.rows;
          at[n][i] = token * rows;
          x_scale[n][i] = there[n][i] ? call.x.scale[token] : 0.0f;
        }
        old[n][i] = residual != nullptr && there[n][i % 2] && outputs.valid[i / 2]
                        ? residual[at[n][i % 2] + i / 2 * 8]
                        : 0.0f;
      }
    }
    GRETA_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      GRETA_UNROLL
      for (int i = 0; i < kFragmentC; ++i) {
        if (!there[n][i % 2] || !outputs.valid[i / 2]) continue;
        const float value = outputs.output(total[(n0 + n) * kFragmentC + i], i, x_scale[n][i % 2]);
        y[at[n][i % 2] + i / 2 * 8] = residual == nullptr ? value : old[n][i] + value;
      }
    }
  }
}

/// Two products that meet in a glu: each consumer leaves its own in shared memory, where x was.
GRETA_DEVICE void store_glu(const MatmulCall& call, int consumer, int block_tile, const WaveOutputs& outputs,
                            const float (&total)[warpgroup::kTokens / 2], const WarpgroupShared& shared) {
  using namespace warpgroup;
  constexpr int kEach = 64, kStride = kEach + 4;  // a fragment of C is stored without bank conflicts
  static_assert(kConsumers * kTokens * kStride * 4 <= kStages * kPieceBytes);
  const int lane = lane_index();
  const SharedArray<float> own = shared.numbers.from(consumer * kTokens * kStride);
  consumers_barrier<kConsumers>();  // nobody reads x any more
  GRETA_UNROLL
  for (int n = 0; n < kTokens / kTileN; ++n) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const int token = n * kTileN + c_n(lane, i);
      const int row = block_x() * kTokens + token;
      const float x_scale = row < call.rows ? call.x.scale[row] : 0.0f;
      own[token * kStride + wave_index() % 4 * kTileRows + c_row(lane, i)] =
          outputs.output(total[n * kFragmentC + i], i, x_scale);
    }
  }
  consumers_barrier<kConsumers>();
  const int64_t rows = call.products[0].weight.rows;
  float* const y = call.products[0].y;
  for (int i = thread_index() - kWarpgroup; i < kTokens * kEach; i += kConsumers * kWarpgroup) {
    const int token = i / kEach, at = token * kStride + i % kEach;
    const int64_t row = block_x() * kTokens + token, output = block_tile * kEach + i % kEach;
    if (row < call.rows && output < rows)
      y[row * rows + output] = glu_of(call.glu, shared.numbers[at], shared.numbers[kTokens * kStride + at]);
  }
}

/// One consumer's 64 outputs. kFree: in another order than the one, a single sum over all of K
/// (run_matmul_free).
template <quant::Type T, bool kFree>
GRETA_DEVICE void multiply_rows(const MatmulCall& call, const WarpgroupShared& shared, int block_tile,
                                int consumer) {
  using namespace warpgroup;
  const int lane = lane_index();
  const Outputs outputs = outputs_of(call, block_tile, consumer);
  const PackedMatrix& weight = call.products[outputs.product].weight;
  const int chunks = chunks_of(weight.cols);
  const int steps = k64_steps(call);
  const int row_tiles = static_cast<int>((weight.rows + kTileRows - 1) / kTileRows);
  const int wanted = outputs.first + wave_index() % 4;
  const int row_tile = wanted < row_tiles ? wanted : row_tiles - 1;  // past the end: computed, not written
  const std::byte* tiles = weight.data + static_cast<int64_t>(row_tile) * chunks * Format<T>::kTileBytes;
  float up[kRowsA];
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i)
    up[i] = inverse_power(weight.row_scale[row_tile * kTileRows + a_row(lane, 2 * i)]);

  float total[kTokens / 2], sum[kTokens / 2];
  GRETA_UNROLL
  for (int i = 0; i < kTokens / 2; ++i) total[i] = sum[i] = 0.0f;
  const uint32_t x = shared_address(shared.x, 0);

  // A ring of a chunk's k64 steps: what has been multiplied makes room for the same step of the next chunk.
  // Codes are unpacked one step ahead, while the step before is multiplied; f16 is an operand as it lies.
  constexpr bool kAhead = Format<T>::kCodes;
  Piece<T, 1> piece[kStepsK64];
  Operand<T> a[kAhead ? 2 : 1][4];
  GRETA_UNROLL
  for (int j = 0; j < kStepsK64; ++j) load_piece<T, 1>(tiles, j, piece[j]);
  if constexpr (kAhead) unpack_k64<T, 1>(piece[0], up, 0, 0, a[0]);
  const std::byte* next = tiles + (chunks > 1 ? Format<T>::kTileBytes : 0);
  if constexpr (kAhead) load_piece<T, 1>(next, 0, piece[0]);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    // Of the last chunk on, the last tile is read again: nothing of it is used.
    const std::byte* after = chunk + 2 < chunks ? next + Format<T>::kTileBytes : next;
    GRETA_UNROLL
    for (int j = 0; j < kStepsK64; ++j) {
      const int step = chunk * kStepsK64 + j;
      if (step >= steps) break;
      const int stage = step % kStages;
      constexpr int kLast = kStepsK64 - 1;
      if constexpr (!kAhead) unpack_k64<T, 1>(piece[j], up, j, 0, a[0]);
      shared.full(stage).wait(static_cast<uint32_t>(step / kStages) & 1u);
      warpgroup_begin();
      GRETA_UNROLL
      for (int s = 0; s < 4; ++s) {
        GRETA_UNROLL
        for (int part = 0; part < kParts<T>; ++part)
          warpgroup_multiply(sum, a[kAhead ? j % 2 : 0][s].part[part],
                             shared_tile(x + static_cast<uint32_t>(stage * kPieceBytes), s),
                             kFree || j + s + part > 0);
      }
      warpgroup_commit();
      if constexpr (kAhead) {
        unpack_k64<T, 1>(piece[(j + 1) % kStepsK64], up, (j + 1) % kStepsK64, 0, a[(j + 1) % 2]);
        load_piece<T, 1>(j == kLast ? after : next, (j + 1) % kStepsK64, piece[(j + 1) % kStepsK64]);
      }
      warpgroup_wait<0>();
      if (lane == 0) shared.empty(stage).arrive();
      if constexpr (!kAhead) load_piece<T, 1>(next, j, piece[j]);
      if (!kFree && (j == kLast || step + 1 == steps)) {
        GRETA_UNROLL
        for (int i = 0; i < kTokens / 2; ++i) total[i] = chunk == 0 ? sum[i] : total[i] + sum[i];
      }
    }
    next = after;
  }
  if constexpr (kFree) {
    GRETA_UNROLL
    for (int i = 0; i < kTokens / 2; ++i) total[i] = sum[i];
  }

  const WaveOutputs wave(call, outputs.product, row_tile * kTileRows, wanted < row_tiles);
  if (call.glu != Glu::none) return store_glu(call, consumer, block_tile, wave, total, shared);
  store_rows(call, outputs.product, row_tile * kTileRows, wave, total);
}

template <quant::Type T, bool kFree>
GRETA_KERNEL void GRETA_BOUNDS(warpgroup::kThreads, 1)
    matmul_warpgroup(Mark mark, GRETA_ARGUMENT MatmulCall call) {
  using namespace warpgroup;
  entered(mark);
  Shared memory;
  // The tile wants 1024-byte alignment of the block's shared memory, which begins on 128.
  const SharedArray<uint16_t> raw = memory.array<uint16_t>(512 + kStages * kPieceBytes / 2);
  const int skip = static_cast<int>((1024u - (shared_address(raw, 0) & 1023u)) & 1023u) / 2;
  const WarpgroupShared shared{raw.from(skip), raw.from(skip).as<float>(),
                               memory.array<uint64_t>(2 * kStages)};
  if (thread_index() == 0) {
    GRETA_UNROLL
    for (int s = 0; s < kStages; ++s) {
      shared.full(s).start(1);
      shared.empty(s).start(kConsumers * kWarpgroup / kWave);
    }
    publish_to_matrix_unit();
  }
  barrier();
  if (wave_index() < 4) {
    give_registers<kProducerRegisters>();
    if (thread_index() == 0) bring_rows(call, shared);
  } else {
    take_registers<kConsumerRegisters>();
    multiply_rows<T, kFree>(call, shared, block_y(), wave_index() / 4 - 1);
  }
}

template <quant::Type T, bool kFree>
void launch_warpgroup(const Launch& how, const MatmulCall& call) {
  static const std::string name = kernel_name<T>(kFree ? "matmul_free" : "matmul_warpgroup");
  const int64_t rows = call.products[0].weight.rows;
  const int64_t tiles = call.glu == Glu::none ? product_tiles(call, warpgroup::kOutputs) : (rows + 63) / 64;
  launch(how, name.c_str(), matmul_warpgroup<T, kFree>,
         Grid{static_cast<unsigned>((call.rows + warpgroup::kTokens - 1) / warpgroup::kTokens),
              static_cast<unsigned>(tiles)},
         warpgroup::kThreads, warpgroup::kSharedBytes, call);
}

}  // namespace

void run_matmul_warpgroup(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() { launch_warpgroup<T, false>(how, call); });
}

void run_matmul_free(const Launch& how, const MatmulCall& call) {
  launch_warpgroup<quant::Type::F16, true>(how, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
