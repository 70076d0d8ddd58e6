#pragma once
// The roundings of a CPU matmul's operands, as plain scalar functions, and how many FP32 roundings follow.
// Tests hold the kernels to them bit for bit; whoever judges the kernels from outside repeats the definition
// in code of his own.
#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "quant/types.h"

namespace greta::cpu {

/// 32 consecutive activations (a last short block padded with zeros) rounded: x ~ scale * q.
struct RoundedBlock {
  float scale = 0.0f;
  int16_t q[32] = {};
};

/// 16 bits. scale = 2^e, e the smallest integer with |x| <= 32639 * 2^e for the whole block, but at least
/// -125; q = x * 2^-e rounded to nearest even, so |q| <= 32639 = 127 * 256 + 127 and q * scale is exact in
/// FP32. An all-zero block has q = 0 (scale 2^-125). The floor of -125 keeps every weight scale (a multiple
/// of 2^-24) times 2^e exact even as a subnormal; blocks below 1.5e-33 lose bits by it and those below 1e-38
/// become zero. At the other end e is at most 115. A block that holds a NaN or an infinity has scale NaN and
/// q = 0: every product with it is NaN. `x` has at most 32 elements.
RoundedBlock round_block16(std::span<const float> x);

/// 8 bits. d = largest |x| / 127 in FP32, q = x * (1 / d) rounded to nearest even, clamped to +-127. Where 1
/// / d is not finite (all zero, or d below 2.94e-39) d = 0 and q = 0. NaN and infinities as above.
RoundedBlock round_block8(std::span<const float> x);

/// One block of --weights int8 (Q8_0): scale = f16(largest |w| / 127), the quotient in FP32; q = w * (1 /
/// quotient) rounded to nearest even, clamped to +-127. False where a weight is not finite or the scale is
/// past f16.
bool round_weights8(std::span<const float> w, uint16_t* scale, int8_t (&q)[32]);

/// d of numerics.md section 5: the most FP32 roundings that a product w x passes through in a CPU matmul with
/// weights resident as `type` and K = n_in, its operands rounded. Float types: ceil(K / 16) multiply-adds, 4
/// additions of the tree, 1 for the bias. Integer types, with n sub-blocks of 16 or 32: n multiply-adds (2 n
/// where the format has minima, and 1 more for the rounding in dequantize(), which the kernel does not have:
/// it adds scale * q and the minimum apart), 1 for the conversion of the block sum (16 bits: up to 29 bits of
/// it) or for scale_w * scale_x (8 bits), 1 for the bias. The terms whose magnitudes T adds: |w x|; with
/// minima |scale_w q x| + |minimum x|.
int matmul_roundings(quant::Type type, int64_t k, Activations activations);

/// Elements of K that an integer type sums exactly: 16 or 32. 0 for float types.
int sub_block(quant::Type type);

/// The cpu backend's arithmetic, for its judge. Sums of squares run over 16 lanes, then a tree of 4 and the
/// division by n; scores are a chain over head_dim, then the scale; a p_j v_j passes the chain over the keys
/// after it and, at every split, the rescaling of what came before.
class CpuArithmetic : public Arithmetic {
 public:
  CpuArithmetic(WeightMode weight_mode, Activations activations, KvType kv);
  MatmulArithmetic matmul(quant::Type file_type, int64_t k) const override;
  int rmsnorm_roundings(int64_t n) const override;
  int score_roundings(int64_t head_dim) const override { return static_cast<int>(head_dim) + 2; }
  int value_roundings(int64_t keys, int64_t splits) const override {
    return static_cast<int>(2 * (keys + 3 * splits)) + 2;
  }

 private:
  Activations activations_;
};

}  // namespace greta::cpu
