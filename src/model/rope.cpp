#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace greta {

namespace {

/// An unevaluated sum of two doubles, |lo| <= ulp(hi) / 2: about 106 bits. Dekker (1971), Knuth's two-sum,
/// and products by one fused multiply-add.
struct Wide {
  double hi = 0.0;
  double lo = 0.0;
};

Wide fast_sum(double a, double b) {  // |a| >= |b|
  const double s = a + b;
  return {s, b - (s - a)};
}

Wide sum(double a, double b) {
  const double s = a + b;
  const double t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

Wide operator+(Wide a, Wide b) {
  const Wide s = sum(a.hi, b.hi);
  const Wide t = sum(a.lo, b.lo);
  const Wide u = fast_sum(s.hi, s.lo + t.hi);
  return fast_sum(u.hi, u.lo + t.lo);
}

Wide operator*(Wide a, Wide b) {
  const double p = a.hi * b.hi;
  const double e = std::fma(a.hi, b.hi, -p);
  return fast_sum(p, e + (a.hi * b.lo + a.lo * b.hi));
}

Wide operator-(Wide a) { return {-a.hi, -a.lo}; }

Wide operator/(Wide a, Wide b) {
  const double q1 = a.hi / b.hi;
  const Wide r1 = a + -(b * Wide{q1, 0.0});
  const double q2 = r1.hi / b.hi;
  const Wide r2 = r1 + -(b * Wide{q2, 0.0});
  return fast_sum(q1, q2) + Wide{r2.hi / b.hi, 0.0};
}

constexpr Wide kLn2{0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};

/// ln x = e ln 2 + 2 atanh((m - 1) / (m + 1)) with x = m 2^e, m in [sqrt(1/2), sqrt(2)); the series' ratio is
/// at most 0.0295, so 24 terms leave 2^-120.
Wide wide_log(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < std::numbers::sqrt2 / 2) {
    m *= 2;
    --exponent;
  }
  const Wide s = Wide{m - 1.0, 0.0} / sum(m, 1.0);  // m - 1 is exact
  const Wide square = s * s;
  Wide series{0.0, 0.0};
  for (int k = 23; k >= 0; --k) series = series * square + Wide{1.0, 0.0} / Wide{2.0 * k + 1.0, 0.0};
  const Wide atanh = s * series;
  return kLn2 * Wide{static_cast<double>(exponent), 0.0} + Wide{2 * atanh.hi, 2 * atanh.lo};
}

/// e^x = 2^k (e^(r / 256))^256, |r| <= ln 2 / 2; 13 terms of the Taylor series leave 2^-120.
double rounded_exp(Wide x) {
  const double k = std::floor(x.hi / kLn2.hi + 0.5);
  const Wide r = x + -(kLn2 * Wide{k, 0.0});
  const Wide small{r.hi / 256, r.lo / 256};
  Wide y{1.0, 0.0};
  for (int n = 13; n >= 1; --n) y = Wide{1.0, 0.0} + small / Wide{static_cast<double>(n), 0.0} * y;
  for (int i = 0; i < 8; ++i) y = y * y;
  return std::ldexp(y.hi + y.lo, static_cast<int>(k));
}

/// The pair (as a real number) that makes `turns` turns in the original context.
double pair_of(double turns, const RopeSettings& s) {
  return s.dims * exact_log(s.original_context / (turns * 2 * std::numbers::pi)) / (2 * exact_log(s.base));
}

/// YaRN (arXiv 2309.00071, section 3.2): fast pairs keep their frequency, slow ones are divided by the
/// factor, a linear ramp between. ggml computes the same in float32; its singular case (an empty ramp) is
/// guarded by a width of 0.001 in both. ggml's attention factor carries 0.1 ln(factor) + 1 too, and the
/// file's own factor on top of it.
void apply_yarn(const RopeSettings& s, const std::vector<double>& powers, RopeSpec& rope) {
  const double low = std::max(std::floor(pair_of(s.beta_fast, s)), 0.0);
  double high = std::min(std::ceil(pair_of(s.beta_slow, s)), static_cast<double>(s.dims - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < powers.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double kept = (1 - ramp) * s.ext_factor;
    rope.inv_freq[i] = 1.0 / (s.factor * powers[i]) * (1 - kept) + 1.0 / powers[i] * kept;
  }
  // With ext_factor 0 the file asks for plain interpolation, which has no magnitude of its own.
  const double own = s.ext_factor != 0.0 && s.factor > 1.0 ? 0.1 * exact_log(s.factor) + 1.0 : 1.0;
  rope.magnitude = own * s.attn_factor;
}

}  // namespace

double exact_log(double x) {
  const Wide result = wide_log(x);
  return result.hi + result.lo;
}

double exact_pow(double base, double exponent) {
  if (exponent == 0.0) return 1.0;
  return rounded_exp(wide_log(base) * Wide{exponent, 0.0});
}

RopeSpec make_rope(RopeStyle style, const RopeSettings& settings) {
  RopeSpec rope;
  rope.style = style;
  rope.dims = settings.dims;
  std::vector<double> powers;
  for (int i = 0; i < settings.dims; i += 2) {
    // The exponent is rounded to a double before the power, as in the definition: it moves the last bits.
    powers.push_back(exact_pow(settings.base, static_cast<double>(i) / settings.dims));
    rope.inv_freq.push_back(1.0 / powers.back());
  }
  if (settings.scaling == RopeScaling::linear) {
    for (double& f : rope.inv_freq) f /= settings.factor;
  } else if (settings.scaling == RopeScaling::yarn) {
    apply_yarn(settings, powers, rope);
  }
  for (size_t i = 0; i < settings.factors.size() && i < rope.inv_freq.size(); ++i) {
    rope.inv_freq[i] /= static_cast<double>(settings.factors[i]);
  }
  return rope;
}

}  // namespace greta
