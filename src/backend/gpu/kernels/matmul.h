#pragma once
// Between the translation units of the matmul. Included after a target's target.h.
//
// The one order of a product, in every kernel: chunks of kChunkK of K; a chunk's sum starts from zero and
// takes its k16 steps in ascending order, for F32 weights in each step the high part before the low one; the
// chunks' sums are added in ascending order, the first as it is; y = (total * row_scale) * x_scale, + bias.
#include "backend/gpu/kernels/formats.h"
#include "backend/gpu/kernels/launchers.h"

namespace greta::gpu::GRETA_GPU_TARGET {

/// Most rows for which a wave's sums of all rows fit its registers beside the weights.
inline constexpr int kFewRows = 4 * kTileN;
void run_matmul_few(const Launch& how, const MatmulCall& call);
void run_matmul_many(const Launch& how, const MatmulCall& call);
/// Where the target and the device have warpgroups.
void run_matmul_warpgroup(const Launch& how, const MatmulCall& call);
/// The same of F16 weights in another order, one running sum over all of K: no bits are promised. For the
/// kernel lab alone (lab.h).
void run_matmul_free(const Launch& how, const MatmulCall& call);

namespace {

/// The row of x that token `token` of the call reads; -1 behind the last.
GRETA_DEVICE int x_row_of(const MatmulCall& call, int token) {
  if (token >= call.rows) return -1;
  return call.x_rows == nullptr ? token : call.x_rows[token];
}

/// The product that tile `tile` of `each` outputs belongs to, tiles counted through all of a call's products;
/// `tile` becomes the one within it.
GRETA_DEVICE MatmulCall product_of(const MatmulCall& all, int each, int& tile) {
  MatmulCall one = all;
  for (int i = 0; i < all.other_count; ++i) {
    const int tiles = static_cast<int>((one.weight.rows + each - 1) / each);
    if (tile < tiles) break;
    tile -= tiles;
    one.weight = all.others[i].weight;
    one.bias = all.others[i].bias;
    one.y = all.others[i].y;
  }
  return one;
}
/// Tiles of all of them.
inline int64_t product_tiles(const MatmulCall& all, int64_t each) {
  int64_t tiles = (all.weight.rows + each - 1) / each;
  for (int i = 0; i < all.other_count; ++i) tiles += (all.others[i].weight.rows + each - 1) / each;
  return tiles;
}

/// y of one output of one token.
GRETA_DEVICE void store_output(const MatmulCall& call, int output, int token, float total) {
  const int x_row = call.x_rows == nullptr ? token : call.x_rows[token];
  const int y_row = call.y_rows == nullptr ? token : call.y_rows[token];
  float y = (total * call.weight.row_scale[output]) * call.x.scale[x_row];
  if (call.bias != nullptr) y = y + call.bias[output];
  call.y[static_cast<int64_t>(y_row) * call.weight.rows + output] = y;
}

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
