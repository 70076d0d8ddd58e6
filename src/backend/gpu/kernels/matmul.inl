// Rounding of activations, and which kernel a product takes.
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

constexpr int kRoundThreads = 256;

/// A block a row: f16(x 2^e), zeros behind the last element.
GRETA_KERNEL void round_rows(Mark mark, RoundCall call) {
  entered(mark);
  Shared shared;
  const SharedArray<float> largest = shared.array<float>(kRoundThreads / kWave);
  const auto row = static_cast<int64_t>(block_x());
  const float* x = call.x + row * call.width;
  float amax = 0.0f;
  for (int64_t i = thread_index(); i < call.width; i += kRoundThreads)
    amax = larger(amax, magnitude_of(x[i]));
  const float up = row_power(block_largest(amax, largest));
  if (thread_index() == 0) call.out.scale[row] = inverse_power(up);
  for (int64_t i = 2 * thread_index(); i < call.out.stride; i += 2 * kRoundThreads) {
    const float even = i < call.width ? x[i] * up : 0.0f;
    const float odd = i + 1 < call.width ? x[i + 1] * up : 0.0f;
    *reinterpret_cast<uint32_t*>(call.out.data + rounded_at(call.out, row, i)) = pack_f16(even, odd);
  }
}

}  // namespace

void run_round(const Launch& how, const RoundCall& call) {
  launch(how, "round_rows", round_rows, Grid{static_cast<unsigned>(call.rows)}, kRoundThreads,
         kRoundThreads / kWave * static_cast<int>(sizeof(float)), call);
}

bool wants_tiles(const Launch& how, int64_t rows) { return kWarpgroups && how.warpgroups && rows > kFewRows; }

bool fuses_glu(const MatmulCall& call) {
  return call.rows <= kFewRows || (kWarpgroups && call.x.tiled_rows != 0);
}

void run_matmul(const Launch& how, const MatmulCall& call) {
  if (call.rows <= kFewRows) {
    return run_matmul_few(how, call);
  }
  if constexpr (kWarpgroups) {
    if (call.x.tiled_rows != 0) return run_matmul_warpgroup(how, call);
  }
  run_matmul_many(how, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
