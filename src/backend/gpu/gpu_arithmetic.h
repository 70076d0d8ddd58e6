#pragma once
#include "backend/arithmetic.h"

namespace greta::gpu {

/// How the kernels round (kernels.h, kernels/orders.h), for their judge. Every operand of the matrix units is
/// an f16 behind a power of two of its row (weights: F32 two of them); sums truncate, so u is 2^-23 there
/// (numerics.md section 5). p of attention is f16 of 2^15 times it: relative 2^-11, absolute 2^-40.
class GpuArithmetic : public Arithmetic {
 public:
  GpuArithmetic(WeightMode mode, KvType kv);
  /// d: a chunk's products one after another, one more for each k16 step, the chunks, the two scales (exact)
  /// and the bias.
  MatmulArithmetic matmul(quant::Type file_type, int64_t k) const override;
  int rmsnorm_roundings(int64_t n) const override;
  int score_roundings(int64_t head_dim) const override;
  int value_roundings(int64_t keys, int64_t splits) const override;
};

}  // namespace greta::gpu
