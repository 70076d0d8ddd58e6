// Rounding of activations, and which kernel a product takes.
#include "backend/gpu/kernels/held_row.h"
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

constexpr int kRoundThreads = 512;
/// Elements of a row that a thread holds.
constexpr int kRoundHeld = 24;

/// A block a row: f16(x 2^e), zeros behind the last element.
template <int kHeld>
GRETA_KERNEL void GRETA_BOUNDS(kRoundThreads, 1) round_rows(Mark mark, RoundCall call) {
  entered(mark);
  Shared shared;
  const SharedArray<float> largest = shared.array<float>(kRoundThreads / kWave);
  const auto row = static_cast<int64_t>(block_x());
  const auto width = static_cast<int>(call.width);
  HeldRow<kRoundThreads, kHeld> held;
  if constexpr (kHeld == 0) {
    held.again = call.x + row * call.width;
  } else {
    held.load(call.x + row * call.width, thread_index(), width);
  }
  float amax = 0.0f;
  held.each(thread_index(), width,
            [&](int /*i*/, float v, int /*e*/) { amax = larger(amax, magnitude_of(v)); });
  round_row(held, row, width, amax, call.out, largest);
}

}  // namespace

void run_round(const Launch& how, const RoundCall& call) {
  const auto kernel = call.width <= kRoundHeld * kRoundThreads ? round_rows<kRoundHeld> : round_rows<0>;
  launch(how, "round_rows", kernel, Grid{static_cast<unsigned>(call.rows)}, kRoundThreads,
         kRoundThreads / kWave * static_cast<int>(sizeof(float)), call);
}

bool wants_tiles(const Launch& how, int64_t rows) { return kWarpgroups && how.warpgroups && rows > kFewRows; }

bool fuses_glu(const MatmulCall& call) {
  return call.rows <= kFewRows || (kWarpgroups && call.x.tiled_rows != 0);
}

void run_matmul(const Launch& how, const MatmulCall& call) {
  if (call.own.x != nullptr) return run_matmul_own(how, call);
  if (call.rows <= kFewRows) return run_matmul_few(how, call);
  if constexpr (kWarpgroups) {
    if (call.x.tiled_rows != 0) return run_matmul_warpgroup(how, call);
  }
  run_matmul_many(how, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
