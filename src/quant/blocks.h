#pragma once
// Inside src/quant: one function a format and direction, and the few bit tricks they share. Each walks
// `blocks` consecutive blocks; callers (types.cpp) have checked the counts and that the floats are finite.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace greta::quant {

void dequantize_f16(const uint8_t* in, int64_t blocks, float* out);
void dequantize_bf16(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q4_0(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q4_1(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q5_0(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q5_1(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q8_0(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q2_k(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q3_k(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q4_k(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q5_k(const uint8_t* in, int64_t blocks, float* out);
void dequantize_q6_k(const uint8_t* in, int64_t blocks, float* out);

void quantize_f16(const float* in, int64_t blocks, uint8_t* out);
void quantize_bf16(const float* in, int64_t blocks, uint8_t* out);
void quantize_q4_0(const float* in, int64_t blocks, uint8_t* out);
void quantize_q4_1(const float* in, int64_t blocks, uint8_t* out);
void quantize_q5_0(const float* in, int64_t blocks, uint8_t* out);
void quantize_q5_1(const float* in, int64_t blocks, uint8_t* out);
void quantize_q8_0(const float* in, int64_t blocks, uint8_t* out);
void quantize_q2_k(const float* in, int64_t blocks, uint8_t* out);
void quantize_q3_k(const float* in, int64_t blocks, uint8_t* out);
void quantize_q4_k(const float* in, int64_t blocks, uint8_t* out);
void quantize_q5_k(const float* in, int64_t blocks, uint8_t* out);
void quantize_q6_k(const float* in, int64_t blocks, uint8_t* out);

inline uint16_t load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }

inline float load_half(const uint8_t* p) { return f16_to_f32(load16(p)); }

/// A block's scale as it will be stored. `first` is the index of the block's first element, for the message.
inline uint16_t stored_half(float value, const char* type, int64_t first) {
  const uint16_t half = f32_to_f16(value);
  if ((half & 0x7fffu) >= 0x7c00u)
    fail(
        "cannot quantise to {}: the block of elements from {} needs a scale of {}, the largest an f16 holds "
        "is 65504",
        type, first, value);
  return half;
}

/// 1 / d, and 0 for a scale that is stored as 0: such a block holds zeros.
inline float inverse_unless_zero(float d) { return d != 0.0F ? 1.0F / d : 0.0F; }

/// To the nearest integer, ties to even, within [low, high], |low| and |high| below 2^22. Comparisons and an
/// addition, so that loops vectorise; infinities are clamped like any number.
inline int32_t nearest_in(float x, int32_t low, int32_t high) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: the sum's last bit is worth 1
  const auto a = static_cast<float>(low);
  const auto b = static_cast<float>(high);
  x = x > a ? x : a;
  x = x < b ? x : b;
  return std::bit_cast<int32_t>(x + kMagic) - 0x4B400000;
}

/// Float bits to integers in the same order (of finite numbers), and back: integer minima vectorise.
inline int32_t ordered(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float from_ordered(int32_t v) { return std::bit_cast<float>(v ^ ((v >> 31) & 0x7fffffff)); }

struct Range {
  float low;
  float high;
};

template <int N>
Range range_of(const float* x) {
  int32_t low = ordered(x[0]);
  int32_t high = low;
  for (int j = 0; j < N; ++j) {
    low = std::min(low, ordered(x[j]));
    high = std::max(high, ordered(x[j]));
  }
  return {from_ordered(low), from_ordered(high)};
}

/// The element of the largest magnitude, sign kept; the first of equals.
template <int N>
float extreme_of(const float* x) {
  int32_t largest = 0;
  for (int j = 0; j < N; ++j) largest = std::max(largest, std::bit_cast<int32_t>(x[j]) & 0x7fffffff);
  for (int j = 0; j < N; ++j)
    if ((std::bit_cast<int32_t>(x[j]) & 0x7fffffff) == largest) return x[j];
  return 0.0F;
}

}  // namespace greta::quant
