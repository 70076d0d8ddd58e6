#include "bisect/bounds.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/half.h"

namespace greta {
namespace {

constexpr double kLeastNormal = 0x1p-126;  ///< of FP32
/// Results below FP32's normal range are rounded absolutely: half the smallest subnormal.
constexpr double kSubnormal = 0x1p-150;

constexpr int64_t kBlock = 32;

/// The smallest power of two that scales a block into [-32639, 32639] (two signed 8-bit planes: 127 * 256 +
/// 127).
double scale16(double largest) {
  if (largest == 0.0) return 0.0;
  int exponent = 0;
  std::frexp(largest / 32639.0, &exponent);
  double scale = std::ldexp(1.0, exponent - 1);
  if (largest / scale > 32639.0) scale *= 2.0;
  return std::max(scale, 0x1p-125);
}

/// Nearest integer, ties to even, of |x| < 2^51: the sum has no bits left behind the point.
double nearest_even(double x) {
  constexpr double shift = 0x1.8p52;
  return (x + shift) - shift;
}

void round_block8(std::span<const double> x, double largest, double* out) {
  const float d = static_cast<float>(largest) / 127.0f;
  const float inverse = 1.0f / d;
  if (std::isinf(inverse)) {  // all zero, or too small for its reciprocal: the block is zero
    std::fill_n(out, x.size(), 0.0);
    return;
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const double q = nearest_even(double{static_cast<float>(x[i]) * inverse});
    out[i] = std::clamp(q, -127.0, 127.0) * double{d};
  }
}

/// numerics.md: --weights int8 is Q8_0's arithmetic: f16 scale amax / 127, nearest even, a short last block
/// padded.
void quantise_int8(std::span<float> row) {
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    const size_t end = std::min(row.size(), begin + kBlock);
    float largest = 0.0f;
    for (size_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(row[i]));
    const float d = largest / 127.0f;
    // A block that is all zero, or too small for its reciprocal, is zero.
    const float inverse = std::isfinite(1.0f / d) ? 1.0f / d : 0.0f;
    const float stored = f16_to_f32(f32_to_f16(d));
    for (size_t i = begin; i < end; ++i)
      row[i] = static_cast<float>(std::clamp(nearest_even(double{row[i] * inverse}), -127.0, 127.0)) * stored;
  }
}

/// 2^e, a normal FP64 number.
double power_of_two(int e) { return std::bit_cast<double>(static_cast<uint64_t>(1023 + e) << 52); }

/// NaN aside.
template <class T>
double largest_magnitude(std::span<const T> row) {
  double largest = 0.0;
  for (const T value : row) largest = std::max(largest, std::abs(double{value}));
  return largest;
}

/// f16(x 2^e) 2^-e: exact in FP64. By products, since ldexp would take three quarters of the time.
double rounded_f16(double x, int e) {
  return double{f16_to_f32(f32_to_f16(static_cast<float>(x * power_of_two(e))))} * power_of_two(-e);
}

/// Where a block keeps the factor of its minima: those bytes zeroed leave d q, the others m.
struct MinimumField {
  size_t scale_offset;
  size_t minimum_offset;
};
std::optional<MinimumField> minimum_field(quant::Type type) {
  switch (type) {
    case quant::Type::Q4_1:
    case quant::Type::Q5_1:
    case quant::Type::Q4_K:
    case quant::Type::Q5_K:
      return MinimumField{0, 2};
    case quant::Type::Q2_K:
      return MinimumField{80, 82};
    default:
      return std::nullopt;
  }
}

std::vector<float> dequantised_with_zeroed(const WeightSource& source, std::span<const std::byte> row,
                                           size_t field) {
  std::vector<std::byte> copy(row.begin(), row.end());
  const auto& t = quant::traits(source.type);
  for (size_t block = 0; block < copy.size(); block += static_cast<size_t>(t.bytes))
    std::memset(copy.data() + block + field, 0, 2);
  std::vector<float> out(static_cast<size_t>(source.cols));
  quant::dequantize(source.type, copy.data(), source.cols, out.data());
  return out;
}

}  // namespace

double gamma(double roundings, double u) { return roundings * u / (1.0 - roundings * u); }

bool within(const Judged& judged, size_t i, double got) {
  if (std::isinf(judged.value[i])) return got == judged.value[i];
  return std::abs(got - judged.value[i]) <= judged.certain[i];
}

bool same_special(double expected, double got) {
  return (std::isnan(expected) && std::isnan(got)) || (std::isinf(expected) && expected == got);
}

double worst_ratio(const Judged& judged, std::span<const double> got) {
  double worst = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double distance = std::abs(got[i] - judged.value[i]);
    if (distance == 0.0) continue;
    const double ratio = distance / judged.certain[i];
    if (!(ratio <= worst)) worst = std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
  }
  return worst;
}

std::vector<double> rounded_operand(std::span<const double> x, OperandRounding rounding) {
  std::vector<double> out(x.begin(), x.end());
  if (rounding == OperandRounding::none) return out;
  if (rounding == OperandRounding::f16_row) {
    const int e = row_exponent(largest_magnitude(x));
    for (double& value : out) value = rounded_f16(value, e);
    return out;
  }
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const auto block = x.subspan(begin, std::min<size_t>(kBlock, x.size() - begin));
    double largest = 0.0;
    bool finite = true;
    for (const double value : block) {
      largest = std::max(largest, std::abs(value));
      finite = finite && std::isfinite(value);
    }
    if (!finite) {  // its scale is NaN, and so is every product
      std::fill_n(out.begin() + static_cast<std::ptrdiff_t>(begin), block.size(),
                  std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    if (rounding == OperandRounding::bits8) {
      round_block8(block, largest, out.data() + begin);
      continue;
    }
    const double scale = scale16(largest);
    for (size_t i = 0; i < block.size(); ++i)
      out[begin + i] = scale == 0.0 ? 0.0 : nearest_even(block[i] / scale) * scale;
  }
  return out;
}

namespace {

std::span<const std::byte> row_bytes(const WeightSource& source, int64_t row) {
  const auto& t = quant::traits(source.type);
  const auto bytes = static_cast<size_t>(source.cols / t.block * t.bytes);
  return source.bytes.subspan(static_cast<size_t>(row) * bytes, bytes);
}

}  // namespace

void judged_row(const WeightSource& source, int64_t row, const WeightForm& form, float* out) {
  quant::dequantize(source.type, row_bytes(source, row).data(), source.cols, out);
  const std::span<float> values(out, static_cast<size_t>(source.cols));
  if (form.mode == WeightMode::int8) quantise_int8(values);
  if (form.rounding == WeightRounding::none) return;
  const int e = row_exponent(largest_magnitude(std::span<const float>(values)));
  for (float& w : values) {
    const double high = rounded_f16(double{w}, e);
    const double low = form.rounding == WeightRounding::f16_pair ? rounded_f16(double{w} - high, e) : 0.0;
    w = static_cast<float>(high + low);  // exact: both are multiples of w's own last place or of 2^(-24 - e)
  }
}

void judged_magnitudes(const WeightSource& source, int64_t row, const WeightForm& form,
                       std::span<const float> values, std::span<float> out) {
  const auto field = minimum_field(source.type);
  if (form.mode != WeightMode::stored || form.rounding != WeightRounding::none || !field) {
    std::transform(values.begin(), values.end(), out.begin(), [](float w) { return std::abs(w); });
    return;
  }
  const auto bytes = row_bytes(source, row);
  const auto products = dequantised_with_zeroed(source, bytes, field->minimum_offset);
  const auto minima = dequantised_with_zeroed(source, bytes, field->scale_offset);
  for (size_t i = 0; i < products.size(); ++i) out[i] = std::abs(products[i]) + std::abs(minima[i]);
}

JudgedWeight judged_weight(const WeightSource& source, int64_t row, const WeightForm& form) {
  std::vector<float> values(static_cast<size_t>(source.cols)), magnitudes(values.size());
  judged_row(source, row, form, values.data());
  judged_magnitudes(source, row, form, values, magnitudes);
  return {{values.begin(), values.end()}, {magnitudes.begin(), magnitudes.end()}};
}

// One rounding more than the kernel has: d q - m is rounded to FP32 in the judge's weights, not in a kernel
// that adds the two apart.
double product_bound(double magnitude, double value, int roundings, double u, double lost) {
  return gamma(roundings + 1, u) * magnitude + u * std::abs(value) +
         kSubnormal * static_cast<double>(roundings) + lost;
}

double operand_underflow(OperandRounding operand, int64_t k) {
  return operand == OperandRounding::bits8 ? kSubnormal * 127 * 128 * static_cast<double>(k) : 0.0;
}

void judge_product(const JudgedWeight& weight, std::span<const double> operand, double bias, int roundings,
                   double& value, double& certain, double u, double lost) {
  double sum = 0.0;
  double magnitude = 0.0;
  for (size_t k = 0; k < operand.size(); ++k) {
    sum += weight.value[k] * operand[k];
    magnitude += weight.magnitude[k] * std::abs(operand[k]);
  }
  value = sum + bias;
  certain = product_bound(magnitude, value, roundings, u, lost);
}

Judged judge_rmsnorm(std::span<const double> x, std::span<const float> weight, float eps, int sum_roundings,
                     double u) {
  double squares = 0.0;
  for (const double value : x) squares += value * value;
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + double{eps});
  Judged judged;
  for (size_t i = 0; i < x.size(); ++i) {
    judged.value.push_back(x[i] * factor * double{weight[i]});
    // A subnormal x * factor is off absolutely, and the weight multiplies that.
    judged.certain.push_back((sum_roundings / 2.0 + 5.0) * u * std::abs(judged.value.back()) +
                             kSubnormal * (1.0 + std::abs(double{weight[i]})));
  }
  return judged;
}

Judged judge_rope(const RopeSpec& rope, int64_t position, std::span<const double> head, double u,
                  double angle_unit, double roundings) {
  Judged judged{{head.begin(), head.end()}, std::vector<double>(head.size(), 0.0)};
  for (int i = 0; i < rope.dims / 2; ++i) {
    const double frequency = rope.inv_freq[static_cast<size_t>(i)];
    const double angle = static_cast<double>(position) * frequency;
    const double c = std::cos(angle) * rope.magnitude;
    const double s = std::sin(angle) * rope.magnitude;
    const auto first = static_cast<size_t>(rope.style == RopeStyle::adjacent ? 2 * i : i);
    const auto second =
        static_cast<size_t>(rope.style == RopeStyle::adjacent ? 2 * i + 1 : i + rope.dims / 2);
    const double a = head[first];
    const double b = head[second];
    judged.value[first] = a * c - b * s;
    judged.value[second] = a * s + b * c;
    const double exponent = -std::log(std::clamp(std::abs(frequency), kLeastNormal, 1.0));
    const double turned = (4 + exponent) * angle_unit * std::abs(angle);
    judged.certain[first] = roundings * u * (std::abs(a * c) + std::abs(b * s)) +
                            turned * (std::abs(a * s) + std::abs(b * c)) + 2 * kSubnormal;
    judged.certain[second] = roundings * u * (std::abs(a * s) + std::abs(b * c)) +
                             turned * (std::abs(a * c) + std::abs(b * s)) + 2 * kSubnormal;
  }
  return judged;
}

Judged judge_add(std::span<const double> a, std::span<const double> b, double u) {
  Judged judged;
  for (size_t i = 0; i < a.size(); ++i) {
    judged.value.push_back(a[i] + b[i]);
    judged.certain.push_back(u * std::abs(judged.value.back()));
  }
  return judged;
}

Judged judge_glu(Activation activation, std::span<const double> gate, std::span<const double> up,
                 double activation_ulps, double gelu_cancels, double u) {
  Judged judged;
  for (size_t i = 0; i < gate.size(); ++i) {
    const double x = gate[i];
    double y = 0.0;
    double relative = (2 * activation_ulps + 1) * u;
    double absolute = 0.0;
    switch (activation) {
      case Activation::silu:
        y = x / (1.0 + std::exp(-x));
        break;
      case Activation::gelu_tanh: {
        const double inner = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
        y = x / (1.0 + std::exp(-2 * inner));  // 0.5 x (1 + tanh(inner)) without its cancellation
        relative += 8 * u * std::abs(inner);   // the argument's relative error, amplified
        absolute = gelu_cancels * u * std::abs(x);
        break;
      }
    }
    judged.value.push_back(y * up[i]);
    judged.certain.push_back(relative * std::abs(judged.value.back()) + absolute * std::abs(up[i]) +
                             kSubnormal *
                                 (1.0 + 2 * activation_ulps * (1.0 + std::abs(x)) * std::abs(up[i])));
  }
  return judged;
}

double softcap_error(double value, double cap, double tanh_ulps, double u) {
  return (2 * tanh_ulps + 3) * u * std::abs(value) + kSubnormal * (1.0 + (1.0 + 2 * tanh_ulps) * cap);
}

Judged judge_softcap(std::span<const double> x, double cap, double tanh_ulps, double u) {
  Judged judged;
  for (const double value : x) {
    judged.value.push_back(cap * std::tanh(value / cap));
    judged.certain.push_back(softcap_error(judged.value.back(), cap, tanh_ulps, u));
  }
  return judged;
}

JudgedChoice judge_choice(std::span<const double> logits, int64_t used, bool normalised, double scale,
                          double exp_ulps, double u) {
  std::vector<size_t>
      order;  // chosen one by one: the largest left, the first of equal ones, a NaN before all
  std::vector<bool> taken(logits.size(), false);
  for (int64_t s = 0; s < used; ++s) {
    size_t best = logits.size();
    for (size_t e = 0; e < logits.size(); ++e) {
      if (taken[e]) continue;
      if (best == logits.size() || logits[e] > logits[best] ||
          (std::isnan(logits[e]) && !std::isnan(logits[best])))
        best = e;
    }
    taken[best] = true;
    order.push_back(best);
  }
  const double largest = logits[order.front()];
  double sum = 0.0, farthest = 0.0;
  double addends = 0.0;
  for (size_t e = 0; e < logits.size(); ++e) {
    if (normalised && !taken[e]) continue;
    sum += std::exp(logits[e] - largest);
    farthest = std::max(farthest, largest - logits[e]);
    ++addends;
  }
  JudgedChoice judged;
  const double relative = 2 * (2 * exp_ulps * u + u * farthest) + gamma(addends + 4, u);
  for (size_t e = 0; e < logits.size(); ++e) {
    if (!taken[e]) continue;
    judged.experts.value.push_back(static_cast<double>(e));
    judged.experts.certain.push_back(0.0);
    judged.weights.value.push_back(std::exp(logits[e] - largest) / sum * scale);
    judged.weights.certain.push_back(relative * std::abs(judged.weights.value.back()) + 0x1p-125);
  }
  return judged;
}

Judged judge_combine(std::span<const double> x, std::span<const double> weights, double u) {
  const size_t width = x.size() / weights.size();
  Judged judged{std::vector<double>(width, 0.0), std::vector<double>(width, 0.0)};
  for (size_t s = 0; s < weights.size(); ++s)
    for (size_t i = 0; i < width; ++i) {
      const double term = weights[s] * x[s * width + i];
      judged.value[i] += term;
      judged.certain[i] += std::abs(term);
    }
  for (double& bound : judged.certain)
    bound = gamma(static_cast<double>(weights.size()), u) * bound +
            kSubnormal * static_cast<double>(weights.size());
  return judged;
}

namespace {

/// As the cache stores what FP32 has of it; past the type's largest number infinite.
double stored_in_cache(double value, KvType type) {
  const auto narrow = static_cast<float>(value);
  return double{type == KvType::f16 ? f16_to_f32(f32_to_f16(narrow)) : bf16_to_f32(f32_to_bf16(narrow))};
}

}  // namespace

double with_cache_rounding(double value, double certain, KvType type) {
  if (type != KvType::f16 && type != KvType::bf16) return certain;
  const double low = stored_in_cache(value - certain, type), high = stored_in_cache(value + certain, type);
  if (!std::isfinite(low) || !std::isfinite(high)) return with_widest_cache_rounding(value, certain, type);
  return std::max(std::abs(low - value), std::abs(high - value));
}

double with_widest_cache_rounding(double value, double certain, KvType type) {
  switch (type) {
    case KvType::f16:
      return certain * (1 + 0x1p-11) + 0x1p-11 * std::abs(value) + 0x1p-25;
    case KvType::bf16:
      return certain * (1 + 0x1p-8) + 0x1p-8 * std::abs(value) + 0x1p-134;
    case KvType::f32:
    case KvType::f64:
      break;
  }
  return certain;
}

void add_cache_rounding(Judged& judged, KvType type) {
  for (size_t i = 0; i < judged.value.size(); ++i)
    judged.certain[i] = with_cache_rounding(judged.value[i], judged.certain[i], type);
}

}  // namespace greta
