#pragma once
// Error bounds of the operators, derived (numerics.md section 5). An operator is judged on inputs taken from
// the run under test: nothing accumulates, so the bound is the operator's own.
//
// Notation: u = 2^-24, the unit roundoff of FP32 rounded to nearest; gamma_d = d u / (1 - d u) bounds the
// relative error of a product that passes d roundings (Higham, Accuracy and Stability of Numerical
// Algorithms, 2nd ed., ch. 3). A value within `certain` of `value` may be rounding; beyond it the operator is
// wrong. Compare with within(): NaN and infinity on one side alone are outside.
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace greta {

/// One row of an operator's output in FP64, and for each element the bound on the FP32 result's distance from
/// it.
struct Judged {
  std::vector<double> value;
  std::vector<double> certain;
  std::vector<double> likely = {};  ///< where it is less; else empty
};

/// Whether `got` may be `judged.value[i]` rounded; false for a NaN.
bool within(const Judged& judged, size_t i, double got);
/// Both NaN, or the same infinity: what the inputs made of it, no fault of the operator's.
bool same_special(double expected, double got);
/// The largest |got - value| / certain over the row (0 / 0 counts as 0); infinity where within() fails on a
/// NaN.
double worst_ratio(const Judged& judged, std::span<const double> got);

double gamma(double roundings, double u = 0x1p-24);
/// Higham and Mary: a sum of bounded independent roundings passes lambda times the root of their squares with
/// probability at most 2 exp(-lambda^2 / 2), 5e-11.
inline constexpr double kLambda = 7.0;

/// The row as the matmul sees it, exactly: the judge's own statement of numerics.md section 3.
std::vector<double> rounded_operand(std::span<const double> x, OperandRounding rounding);

/// Bias may be empty. d: roundings that a product passes through in the kernel's order (the backend states
/// it). T = sum (|d q| + |m|) |x|: what the kernel adds, minima apart. `weight` row n is the file's,
/// dequantised here.
/// A weight's values as a device has them: by its mode, and rounded further.
struct WeightForm {
  WeightMode mode = WeightMode::stored;
  WeightRounding rounding = WeightRounding::none;
  WeightForm() = default;
  WeightForm(WeightMode m) : mode(m) {}  // NOLINT(google-explicit-constructor): a mode is a form
  WeightForm(WeightMode m, WeightRounding r) : mode(m), rounding(r) {}
};
/// Row `row` of a tensor in that form, FP32: [cols].
void judged_row(const WeightSource& source, int64_t row, const WeightForm& form, float* out);
/// What the kernel adds the magnitudes of: |d q| + |m| where it adds minima apart, else |w|. `values`:
/// judged_row()'s of that row. [cols]
void judged_magnitudes(const WeightSource& source, int64_t row, const WeightForm& form,
                       std::span<const float> values, std::span<float> out);
struct JudgedWeight {
  std::vector<double> value;      ///< dequantised [K]
  std::vector<double> magnitude;  ///< |d q| + |m| [K]
};
JudgedWeight judged_weight(const WeightSource& source, int64_t row, const WeightForm& form);
/// `u`: of the arithmetic, here and below.
void judge_product(const JudgedWeight& weight, std::span<const double> operand, double bias, int roundings,
                   double& value, double& certain, double u = 0x1p-24, double lost = 0.0);
/// gamma T with what the output's own rounding adds: the certain bound of a product whose T is known. `lost`:
/// operand_underflow().
double product_bound(double magnitude, double value, int roundings, double u, double lost = 0.0);
/// What a product of K = k loses besides where scales of its operands multiply to less than FP32's normal
/// range: with 8-bit activations half of the smallest subnormal times every block's integer sum, which is at
/// most 127 * 128 an element. (16 bits: a power of two of at least 2^-125, exact.)
double operand_underflow(OperandRounding operand, int64_t k);

/// Relative (d / 2 + 3) u: half the sum's, then division, square root, and two products; d roundings in the
/// sum.
Judged judge_rmsnorm(std::span<const double> x, std::span<const float> weight, float eps, int sum_roundings,
                     double u = 0x1p-24);

/// One head; absolute in each pair: `roundings` u (|a cos| + |b sin|); and an angle that is off turns the
/// pair by that much. Of itself it is off by 4 angle_unit (power, reciprocal, scaling, position) and by the
/// rounding of the exponent i / dims of base^-(i / dims), which is no FP32 number unless dims is a power of
/// two: ln(1 / inv_freq) angle_unit.
Judged judge_rope(const RopeSpec& rope, int64_t position, std::span<const double> head, double u = 0x1p-24,
                  double angle_unit = 0x1p-53, double roundings = 3.0);

/// Of the argument of e^(s - m), in u |s|: the factor of s and the difference are rounded, |s - m| <= 2 max
/// |s|.
inline constexpr double kArgumentRoundings = 3.0;
/// One head's attention on q, K and V as stored ([keys, head_dim] each). score_roundings: of one score;
/// value_roundings: that one p_j v_j passes through (the chain over keys and every rescaling).
/// delta_j = gamma * scale * sum |q||k| + 3 u |s|, and with a cap its own error (softcap_error); bound_i =
/// sum_j p_j |v_ji| (e^(2 delta) - 1 + exp's ulps + gamma'). Keys and values: those that the row sees, the
/// first of them of position `first`. Where the arithmetic states its walk over pages, a bound of that walk,
/// and a likely one (bounds_attention.cpp).
/// q and p as the arithmetic rounds them: q as an operand, p with probability_relative and _absolute.
Judged judge_attention(std::span<const double> q, std::span<const double> keys,
                       std::span<const double> values, double scale, double softcap, int score_roundings,
                       int value_roundings, const Arithmetic& arithmetic, int64_t first = 0);
/// The relative part of that bound: e^(2 delta) - 1 + exp's ulps + gamma' + p's own rounding.
double attention_relative(double delta, int value_roundings, const Arithmetic& arithmetic);

/// out = a + b: one rounding.
Judged judge_add(std::span<const double> a, std::span<const double> b, double u = 0x1p-24);

/// activation(gate) * up: the activation's ulps and one product. gelu's tanh form loses up to |x|'s own
/// rounding inside the exponential; its bound carries the argument's error.
Judged judge_glu(Activation activation, std::span<const double> gate, std::span<const double> up,
                 double activation_ulps, double gelu_cancels, double u = 0x1p-24);

/// cap * tanh(x / cap): tanh's ulps, the quotient's rounding (tanh never magnifies a relative error) and the
/// product's.
Judged judge_softcap(std::span<const double> x, double cap, double tanh_ulps, double u = 0x1p-24);
/// And where x / cap or tanh is subnormal, its error is absolute and the cap multiplies it.
double softcap_error(double value, double cap, double tanh_ulps, double u);

/// The experts that a row's logits choose, exactly (bound 0), and their weights: exp's ulps and its
/// argument's rounding in numerator and sum, a rounding for each addend, the quotient and the scale.
struct JudgedChoice {
  Judged experts;
  Judged weights;
};
JudgedChoice judge_choice(std::span<const double> logits, int64_t used, bool normalised, double scale,
                          double exp_ulps, double u = 0x1p-24);

/// sum_s weights[s] x[s]: a chain of `used` roundings.
Judged judge_combine(std::span<const double> x, std::span<const double> weights, double u = 0x1p-24);

/// A bound with the rounding of a value stored in the cache. Rounding is monotone: what is within `certain`
/// of the value is stored between the two ends rounded, so the farther of those is the bound.
double with_cache_rounding(double value, double certain, KvType type);
/// The same of any value of that size: half an ulp of the type, and half its smallest subnormal.
double with_widest_cache_rounding(double value, double certain, KvType type);
void add_cache_rounding(Judged& judged, KvType type);

}  // namespace greta
