#include "backend/gpu/gpu_arithmetic.h"

#include "backend/gpu/kernels.h"
#include "backend/gpu/kernels/orders.h"
#include "base/checked.h"

namespace greta::gpu {

GpuArithmetic::GpuArithmetic(WeightMode mode, KvType kv) {
  weights = mode;
  kv_type = kv;
  sum_unit = 0x1p-23;
  sums_truncate = true;
  if (kv ==
      KvType::bf16) {  // q and p in two bf16 parts: 2^-17 of each is lost, in q's case by score_roundings()
    probability_relative = 0x1p-16;
  } else {
    query = OperandRounding::f16_row;
    probability_relative = 0x1p-11;
    probability_absolute = 0x1p-40;
  }
  // 2^x is 2^-22 off, and x, of which 15 is a part, is rounded: 15 ln 2 u.
  probability_ulps = 8.0;
  exp_ulps = 2.0;
  activation_ulps = 5.0;  // e^x, an addition, a reciprocal and a product
  tanh_ulps = 3.0;
}

MatmulArithmetic GpuArithmetic::matmul(quant::Type file_type, int64_t k) const {
  const bool wide =
      weights == WeightMode::f32 || (weights == WeightMode::stored && file_type == quant::Type::F32);
  const bool as_stored = weights == WeightMode::stored && file_type == quant::Type::F16;
  MatmulArithmetic how;
  how.operand = OperandRounding::f16_row;
  const bool codes = weights == WeightMode::stored && sums_codes(file_type);
  how.weight = wide                 ? WeightRounding::f16_pair
               : as_stored || codes ? WeightRounding::none
                                    : WeightRounding::f16_row;
  if (weights == WeightMode::stored && file_type == quant::Type::BF16) how.resident = WeightRounding::f16_row;
  // d S - dmin M: a product and a fused operation more.
  const int chain = kChunkK + kChunkK / 16 + (codes ? 2 : 0);
  how.roundings = (wide ? 2 : 1) * chain + static_cast<int>(ceil_div(k, kChunkK)) + 1;
  return how;
}

int GpuArithmetic::rmsnorm_roundings(int64_t n) const { return gpu::rmsnorm_roundings(n); }
int GpuArithmetic::score_roundings(int64_t head_dim) const {
  const bool bf16 = kv_type == KvType::bf16;
  constexpr int kQueryParts = 64;  // 2^-17 in units of 2^-23
  return gpu::score_roundings(head_dim, bf16) + (bf16 ? kQueryParts : 0);
}
int GpuArithmetic::value_roundings(int64_t keys, int64_t splits) const {
  return gpu::value_roundings(keys, splits, kv_type == KvType::bf16);
}

}  // namespace greta::gpu
