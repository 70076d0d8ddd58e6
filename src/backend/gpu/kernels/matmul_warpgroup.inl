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
  SharedArray<uint16_t> x;  ///< begins on 1024 bytes
  SharedArray<uint64_t> barriers;
  GRETA_DEVICE SharedBarrier full(int stage) const { return SharedBarrier(barriers, stage); }
  GRETA_DEVICE SharedBarrier empty(int stage) const {
    return SharedBarrier(barriers, warpgroup::kStages + stage);
  }
};

GRETA_DEVICE int k64_steps(const MatmulCall& call) { return static_cast<int>((call.weight.cols + 63) / 64); }

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

/// One consumer's 64 outputs. kFree: in another order than the one, a single sum over all of K
/// (run_matmul_free).
template <quant::Type T, bool kFree>
GRETA_DEVICE void multiply_rows(const MatmulCall& call, const WarpgroupShared& shared, int block_tile,
                                int consumer) {
  using namespace warpgroup;
  const int lane = lane_index();
  const int chunks = chunks_of(call.weight.cols);
  const int steps = k64_steps(call);
  const int row_tiles = static_cast<int>((call.weight.rows + kTileRows - 1) / kTileRows);
  const int wanted = block_tile * (kOutputs / kTileRows) + consumer * 4 + wave_index() % 4;
  const int row_tile = wanted < row_tiles ? wanted : row_tiles - 1;  // past the end: computed, not written
  const std::byte* tiles = call.weight.data + static_cast<int64_t>(row_tile) * chunks * Format<T>::kTileBytes;
  float up[kRowsA];
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i)
    up[i] = inverse_power(call.weight.row_scale[row_tile * kTileRows + a_row(lane, 2 * i)]);

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

  if (wanted >= row_tiles) return;
  GRETA_UNROLL
  for (int n = 0; n < kTokens / kTileN; ++n) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i) {
      const int token = block_x() * kTokens + n * kTileN + c_n(lane, i);
      const int output = row_tile * kTileRows + c_row(lane, i);
      if (token < call.rows && output < call.weight.rows)
        store_output(call, output, token, total[n * kFragmentC + i]);
    }
  }
}

template <quant::Type T, bool kFree>
GRETA_KERNEL void GRETA_BOUNDS(warpgroup::kThreads, 1) matmul_warpgroup(Mark mark, MatmulCall calls) {
  using namespace warpgroup;
  entered(mark);
  int block_tile = block_y();
  const MatmulCall call = product_of(calls, kOutputs, block_tile);
  Shared memory;
  // The tile wants 1024-byte alignment of the block's shared memory, which begins on 128.
  const SharedArray<uint16_t> raw = memory.array<uint16_t>(512 + kStages * kPieceBytes / 2);
  const int skip = static_cast<int>((1024u - (shared_address(raw, 0) & 1023u)) & 1023u) / 2;
  const WarpgroupShared shared{raw.from(skip), memory.array<uint64_t>(2 * kStages)};
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
    multiply_rows<T, kFree>(call, shared, block_tile, wave_index() / 4 - 1);
  }
}

template <quant::Type T, bool kFree>
void launch_warpgroup(const Launch& how, const MatmulCall& call) {
  static const std::string name = kernel_name<T>(kFree ? "matmul_free" : "matmul_warpgroup");
  launch(how, name.c_str(), matmul_warpgroup<T, kFree>,
         Grid{static_cast<unsigned>((call.rows + warpgroup::kTokens - 1) / warpgroup::kTokens),
              static_cast<unsigned>(product_tiles(call, warpgroup::kOutputs))},
         warpgroup::kThreads, warpgroup::kSharedBytes, call);
}

}  // namespace

void run_matmul_warpgroup(const Launch& how, const MatmulCall& call) {
  for_type(call.weight.type, [&]<quant::Type T>() { launch_warpgroup<T, false>(how, call); });
}

void run_matmul_free(const Launch& how, const MatmulCall& call) {
  launch_warpgroup<quant::Type::F16, true>(how, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
