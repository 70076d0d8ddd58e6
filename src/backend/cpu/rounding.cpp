#include "backend/cpu/rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/packed.h"
#include "base/checked.h"
#include "base/half.h"

namespace greta::cpu {
namespace {

/// The largest magnitude, or NaN where an element is not finite.
float largest_of(std::span<const float> x) {
  float largest = 0.0f;
  for (const float v : x) {
    if (!std::isfinite(v)) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(v));
  }
  return largest;
}

}  // namespace

RoundedBlock round_block16(std::span<const float> x) {
  RoundedBlock block;
  const float largest = largest_of(x);
  if (std::isnan(largest)) {
    block.scale = largest;
    return block;
  }
  int e = -125;
  while (std::ldexp(32639.0, e) < static_cast<double>(largest)) ++e;
  block.scale = std::ldexp(1.0f, e);
  for (size_t i = 0; i < x.size(); ++i)
    block.q[i] = static_cast<int16_t>(std::nearbyint(std::ldexp(static_cast<double>(x[i]), -e)));
  return block;
}

RoundedBlock round_block8(std::span<const float> x) {
  RoundedBlock block;
  const float largest = largest_of(x);
  if (std::isnan(largest)) {
    block.scale = largest;
    return block;
  }
  const float d = largest / 127.0f;
  const float inverse = 1.0f / d;
  if (!std::isfinite(inverse)) return block;
  block.scale = d;
  for (size_t i = 0; i < x.size(); ++i)
    block.q[i] = static_cast<int16_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f));
  return block;
}

bool round_weights8(std::span<const float> w, uint16_t* scale, int8_t (&q)[32]) {
  std::fill(std::begin(q), std::end(q), int8_t{0});
  const float largest = largest_of(w);
  if (std::isnan(largest)) return false;
  const float d = largest / 127.0f;
  *scale = f32_to_f16(d);
  if (*scale == 0x7c00) return false;
  const float inverse = 1.0f / d;
  if (!std::isfinite(inverse)) {
    *scale = 0;
    return true;
  }
  for (size_t i = 0; i < w.size(); ++i)
    q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(w[i] * inverse), -127.0f, 127.0f));
  return true;
}

int sub_block(quant::Type type) {
  const auto index = integer_type(type);
  return index ? kFormats[*index].sub : 0;
}

int matmul_roundings(quant::Type type, int64_t k, Activations /*activations: one rounding in either mode*/) {
  const auto index = integer_type(type);
  if (!index) return static_cast<int>(ceil_div(k, kLanes)) + 4 + 1;
  const FormatShape& format = kFormats[*index];
  const int64_t sub_blocks = ceil_div(k, kUnit) * (kUnit / format.sub);
  return static_cast<int>(format.minima ? 2 * sub_blocks + 1 : sub_blocks) + 1 + 1;
}

CpuArithmetic::CpuArithmetic(WeightMode weight_mode, Activations activations, KvType kv)
    : activations_(activations) {
  weights = weight_mode;
  kv_type = kv;
  page_sum_roundings = 6;  // four vectors, sixteen lanes
}

MatmulArithmetic CpuArithmetic::matmul(quant::Type file_type, int64_t k) const {
  const auto resident = weights == WeightMode::stored ? file_type
                        : weights == WeightMode::int8 ? quant::Type::Q8_0
                                                      : quant::Type::F32;
  const auto operand = sub_block(resident) == 0              ? OperandRounding::none
                       : activations_ == Activations::bits16 ? OperandRounding::bits16
                                                             : OperandRounding::bits8;
  return {operand, matmul_roundings(resident, k, activations_)};
}

int CpuArithmetic::rmsnorm_roundings(int64_t n) const { return static_cast<int>(ceil_div(n, kLanes)) + 5; }

}  // namespace greta::cpu
