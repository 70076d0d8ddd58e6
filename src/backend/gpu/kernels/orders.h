#pragma once
// In which order the row kernels and attention add, as far as their judge must know it: how many roundings a
// term passes through on its way into a result. Plain C++, read by the kernels (which keep to it) and by the
// host.
#include <cstdint>

#include "quant/types.h"

namespace greta::gpu {

/// Lanes that share a row of rmsnorm. Lane i squares and adds elements 4 i .. 4 i + 3, then those 4 lanes
/// further on, ... in ascending order, then the lanes' sums meet in a tree of neighbours: i with i ^ 1, i ^
/// 2, ... A head's norm fits 32 lanes.
constexpr int rmsnorm_lanes(int64_t width) { return width <= 256 ? 32 : 512; }

/// Of the mean of squares: the longest lane's chain, the tree, the division by the width.
constexpr int rmsnorm_roundings(int64_t width) {
  const int lanes = rmsnorm_lanes(width);
  return static_cast<int>((width + 4 * lanes - 1) / (4 * lanes)) * 4 + (lanes == 32 ? 5 : 9) + 1;
}

/// Of one score: the matrix unit's walk over head_dim in k16 steps (as many roundings as products, and one
/// more a step), the power of two that undoes q's (exact) and the scale. With a bf16 cache every step is
/// taken twice, for the high and the low part of q.
constexpr int score_roundings(int64_t head_dim, bool bf16 = false) {
  const int steps = static_cast<int>((head_dim + 15) / 16);
  return (bf16 ? 2 : 1) * steps * 17 + 2;
}

/// Of one p_j v_j over the sum of p. Above: the matrix unit's walk over a split of 64 keys, the split's
/// factor b, and in its own and each later split a (e^x: 2 units, of an argument that is rounded) and one
/// fused multiply-add; the reciprocal of the sum and the product with it, half a unit each. Below: 16 keys'
/// sum, those of four, then as above.
constexpr int value_roundings(int64_t keys, int64_t splits, bool bf16 = false) {
  const int steps = static_cast<int>(((keys < 64 ? keys : 64) + 15) / 16);
  const int merging = static_cast<int>(4 * splits) + 4;
  return (bf16 ? 2 : 1) * steps * 17 + merging + 1 + 7 + merging;
}

/// Types whose codes times scale codes are the operands: integers below 2^11, exact in f16. What is the same
/// for a super-block, its d and dmin, comes behind the sum of its chunk: d S - dmin M, S being the sum of
/// codes times rows and M that of the minima's codes times the rows' sums of 32 (kernels/matmul.h).
constexpr bool sums_codes(quant::Type type) { return type == quant::Type::Q4_K || type == quant::Type::Q5_K; }

/// Attention: a head's elements are in the fragments of a block, and are read and written in pairs.
inline constexpr int kMostHeadDim = 256;
inline constexpr int kHeadDimStep = 2;

/// choose_experts: a row's logits stay in the registers of 32 lanes, lane s has the expert chosen s-th.
inline constexpr int kMostExperts = 256;
inline constexpr int kMostExpertsUsed = 32;

}  // namespace greta::gpu
