#pragma once
// How a device's operators round, in numbers: what its judge needs for an operator's error bound
// (bisect/bounds.h) and may not learn from the kernels. d is the most roundings that any product passes
// through in the kernel's fixed order.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "quant/types.h"

namespace greta {

enum class KvType { f16, bf16, f32, f64 };  ///< f64: the reference's own
enum class WeightMode { stored, f32, int8 };
enum class Activations { bits16, bits8 };  ///< numerics.md section 3; only for integer weights on the CPU

/// How activations are rounded before weights meet them (numerics.md section 3). bits16, bits8: the CPU's,
/// for integer weights. f16_row: the GPU's, f16(x 2^e) 2^-e with one e for a row (row_exponent()).
enum class OperandRounding { none, bits16, bits8, f16_row };
/// How a weight row's values are rounded on their way to the matrix unit. f16_row: as above, with an e of the
/// weight row's own. f16_pair: what that leaves is rounded to a second f16 behind the same e, and added.
enum class WeightRounding { none, f16_row, f16_pair };

struct MatmulArithmetic {
  OperandRounding operand = OperandRounding::none;
  int roundings = 0;  ///< d
  WeightRounding weight = WeightRounding::none;
  WeightRounding resident = WeightRounding::none;  ///< of the values that lie on the device
};

/// The e of f16_row, by the largest magnitude of a row: largest * 2^e in [2^14, 2^15), where 2^e and 2^-e are
/// normal FP32 numbers; 0 for a row of zeros and for one with an infinity.
inline int row_exponent(double largest) {
  if (!(largest > 0.0) || std::isinf(largest)) return 0;
  return std::clamp(14 - std::ilogb(largest), -113, 126);
}

class Arithmetic {
 public:
  virtual ~Arithmetic() = default;
  double unit = 0x1p-24;  ///< u: 2^-24 for FP32 rounded to nearest, 2^-53 for FP64
  /// u of the sums of products: 2^-23 where a matrix unit truncates, and rounding errors then have a mean.
  double sum_unit = 0x1p-24;
  bool sums_truncate = false;
  OperandRounding query = OperandRounding::none;  ///< of a head's q, before attention's products
  /// Of attention's p, rounded relative to its split's maximum: relative, and absolute.
  double probability_relative = 0.0;
  double probability_absolute = 0.0;
  /// Of the sum of a page's p, where attention goes through its keys in ascending order, page by page, each
  /// page's maximum known before its p: one chain of p_j v_j over all keys, rescaled where a page begins. 0:
  /// any order within value_roundings().
  int page_sum_roundings = 0;
  double probability_ulps = 2.0;  ///< of e^(s - m), and of the rounding of an argument of any size
  double angle_unit = 0x1p-53;    ///< relative error of a rotary angle, in which cos and sin are then taken
  /// Of a rotated element, in u (|a cos| + |b sin|): half an ulp of cos and sin, the product, the fma.
  double rope_roundings = 3.0;
  double exp_ulps = 2.0;
  double activation_ulps = 3.0;  ///< of silu and gelu
  double tanh_ulps = 3.0;        ///< of a soft cap's tanh
  /// gelu as 0.5 x (1 + tanh ...) loses what cancels in the sum: an error of so many u |x|, absolute.
  double gelu_cancels = 0.0;
  WeightMode weights = WeightMode::stored;
  KvType kv_type = KvType::f16;

  virtual MatmulArithmetic matmul(quant::Type file_type, int64_t k) const = 0;
  virtual int rmsnorm_roundings(int64_t n) const = 0;       ///< of the sum of squares
  virtual int score_roundings(int64_t head_dim) const = 0;  ///< of one score
  virtual int value_roundings(int64_t keys,
                              int64_t splits) const = 0;  ///< of one p_j v_j, every rescaling too
};

/// Any order of addition in one precision, nothing else rounded: the reference (2^-53), and other programs'
/// traces.
class PlainArithmetic : public Arithmetic {
 public:
  explicit PlainArithmetic(double u) {
    unit = sum_unit = u;
    angle_unit = u;
    rope_roundings = 6.0;  // a whole ulp of cos and sin, their magnitude, two products and a sum
    kv_type = u < 0x1p-30 ? KvType::f64 : KvType::f32;
    probability_ulps = exp_ulps = activation_ulps = tanh_ulps = 8.0;
    gelu_cancels = 8.0;
  }
  MatmulArithmetic matmul(quant::Type, int64_t k) const override {
    return {OperandRounding::none, static_cast<int>(k) + 1};
  }
  int rmsnorm_roundings(int64_t n) const override { return static_cast<int>(n) + 4; }
  int score_roundings(int64_t head_dim) const override { return static_cast<int>(head_dim) + 2; }
  int value_roundings(int64_t keys, int64_t splits) const override {
    return static_cast<int>(2 * (keys + 3 * splits)) + 4;
  }
};

}  // namespace greta
