#pragma once
// Between the translation units of the matmul. Included after a target's target.h.
//
// The one order of a product, in every kernel: chunks of kChunkK of K; a chunk's sum starts from zero and
// takes its k16 steps in ascending order, for F32 weights in each step the high part before the low one; the
// chunks' sums are added in ascending order, the first as it is; y = (total * row_scale) * x_scale, + bias.
//
// Of types whose operands are codes (orders.h, sums_codes) a chunk's sum is S = the walk over code times
// scale code, M = one k16 step from zero over the minima's codes times the rows' sums of 32 (rounding.h), and
// then fma(d, S, -dmin M) with the powers of two that operands are behind.
#include "backend/gpu/kernels/elementary.inl"
#include "backend/gpu/kernels/formats.h"
#include "backend/gpu/kernels/launchers.h"

namespace greta::gpu::GRETA_GPU_TARGET {

/// Most rows for which a wave's sums of all rows fit its registers beside the weights.
inline constexpr int kFewRows = 4 * kTileN;
void run_matmul_few(const Launch& how, const MatmulCall& call);
/// Of MatmulCall::own.
void run_matmul_own(const Launch& how, const MatmulCall& call);
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

/// Which product tile `tile` of `each` outputs belongs to, tiles counted through all of a call's products;
/// `tile` becomes the one within it.
GRETA_DEVICE int product_of(const MatmulCall& call, int each, int& tile) {
  int p = 0;
  for (; p + 1 < call.count; ++p) {
    const int tiles = (static_cast<int>(call.products[p].weight.rows) + each - 1) / each;
    if (tile < tiles) break;
    tile -= tiles;
  }
  return p;
}
/// Tiles of all of them.
inline int64_t product_tiles(const MatmulCall& call, int64_t each) {
  int64_t tiles = 0;
  for (int p = 0; p < call.count; ++p) tiles += (call.products[p].weight.rows + each - 1) / each;
  return tiles;
}

/// A product from its total: `row_scale` is of its output, `x_scale` of its token's row of x.
GRETA_DEVICE float scaled(float total, float row_scale, float x_scale) {
  return (total * row_scale) * x_scale;
}
/// One output of a token whose row of x is behind `x_scale`.
GRETA_DEVICE float output_of(const Product& product, int output, float total, float x_scale) {
  const float y = scaled(total, product.weight.row_scale[output], x_scale);
  return product.bias == nullptr ? y : y + product.bias[output];
}
GRETA_DEVICE float x_scale_of(const MatmulCall& call, int token) {
  return call.x.scale[call.x_rows == nullptr ? token : call.x_rows[token]];
}
/// Where an output lies in y, and in the residual.
GRETA_DEVICE int64_t output_at(const MatmulCall& call, const Product& product, int output, int token) {
  const int row = call.y_rows == nullptr ? token : call.y_rows[token];
  return static_cast<int64_t>(row) * product.weight.rows + output;
}
GRETA_DEVICE void store_output(const MatmulCall& call, const Product& product, int output, int token,
                               float y) {
  const int64_t at = output_at(call, product, output, token);
  product.y[at] = call.residual == nullptr ? y : call.residual[at] + y;
}
GRETA_DEVICE float glu_of(Glu glu, float gate, float up) {
  return (glu == Glu::gelu ? gelu_tanh_of(gate) : silu_of(gate)) * up;
}

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
