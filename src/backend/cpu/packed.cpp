#include "backend/cpu/packed.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/half.h"

namespace greta::cpu {
namespace {

using Byte = uint8_t;

uint16_t half_at(const Byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

/// The code of element k (of 32) of row `lane` in a packed unit.
int code_at(int type, const Byte* unit, int lane, int k) {
  const int i = k / 4;
  const int b = 4 * lane + k % 4;
  if (type == kQ8_0) return unit[64 * i + b];
  const auto pair = [&](const Byte* p) { return (p[64 * (i / 4) + b] >> (2 * (i % 4))) & 3; };
  const auto bit = [&](const Byte* p) { return (p[b] >> i) & 1; };
  if (type == kQ2_K) return pair(unit);
  if (type == kQ3_K) return pair(unit) | bit(unit + 128) << 2;
  if (type == kQ6_K) {
    const Byte* three = unit + 192 * (i / 4) + b;
    if (i % 4 < 3) return three[64 * (i % 4)] & 0x3f;
    return three[0] >> 6 << 4 | three[64] >> 6 << 2 | three[128] >> 6;
  }
  int code = (unit[64 * (i % 4) + b] >> (4 * (i / 4))) & 15;
  if (type == kQ5_0 || type == kQ5_1 || type == kQ5_K) code |= bit(unit + 256) << 4;
  return code;
}

int word_count(int type) { return (kFormats[type].scales - (kFormats[type].minima ? 64 : 32)) / 64; }

struct Scales {
  float scale;
  float minimum;  ///< m of Q4_1 (added), dmin * mn of the K-quants (subtracted)
};

/// Scale and minimum of sub-block `sub` (of the unit) of row `lane`. `p`: the step's scales.
Scales scales_at(int type, const Byte* p, int lane, int unit, int sub) {
  const FormatShape& format = kFormats[type];
  if (!format.super) {
    p += unit * format.scales + 2 * lane;
    return {f16_to_f32(half_at(p)), format.minima ? f16_to_f32(half_at(p + 32)) : 0.0f};
  }
  const float d = f16_to_f32(half_at(p + 2 * lane));
  const float dmin = format.minima ? f16_to_f32(half_at(p + 32 + 2 * lane)) : 0.0f;
  p += format.minima ? 64 : 32;
  uint32_t word[4] = {};
  for (int j = 0; j < word_count(type); ++j) std::memcpy(&word[j], p + 64 * j + 4 * lane, 4);
  const int i = unit * (kUnit / format.sub) + sub;
  const auto nibble = [&](int first) {
    return static_cast<int>(word[first + i / 8] >> (8 * (i % 4) + i / 4 % 2 * 4)) & 15;
  };
  const auto pair = [&](int j) { return (static_cast<int>(word[2] >> (8 * (j % 4) + j / 4 * 2)) & 3) << 4; };
  int sc = 0, mn = 0;
  if (type == kQ6_K) sc = int{static_cast<int8_t>(word[i / 4] >> (8 * (i % 4)))};
  if (type == kQ3_K) sc = (nibble(0) | pair(i)) - 32;
  if (type == kQ2_K) {
    sc = nibble(0);
    mn = nibble(2);
  }
  if (type == kQ4_K || type == kQ5_K) {
    sc = nibble(0) | pair(i);
    mn = nibble(1) | pair(i + 8);
  }
  return {d * static_cast<float>(sc), dmin * static_cast<float>(mn)};
}

int64_t step_bytes(int type, int64_t units) {
  const FormatShape& format = kFormats[type];
  return units * format.quants + (format.super ? format.scales : units * format.scales);
}

int units_in_step(int64_t units, int64_t first) {
  return static_cast<int>(std::min<int64_t>(kStepUnits, units - first));
}

}  // namespace

std::optional<int> integer_type(quant::Type type) {
  switch (type) {
    case quant::Type::Q4_0:
      return kQ4_0;
    case quant::Type::Q4_1:
      return kQ4_1;
    case quant::Type::Q5_0:
      return kQ5_0;
    case quant::Type::Q5_1:
      return kQ5_1;
    case quant::Type::Q8_0:
      return kQ8_0;
    case quant::Type::Q2_K:
      return kQ2_K;
    case quant::Type::Q3_K:
      return kQ3_K;
    case quant::Type::Q4_K:
      return kQ4_K;
    case quant::Type::Q5_K:
      return kQ5_K;
    case quant::Type::Q6_K:
      return kQ6_K;
    case quant::Type::F32:
    case quant::Type::F16:
    case quant::Type::BF16:
      return std::nullopt;
  }
  return std::nullopt;
}

int64_t group_bytes(int type, int64_t units) {
  const int64_t whole = units / kStepUnits;
  const int64_t rest = units % kStepUnits;
  return ceil_div(whole * step_bytes(type, kStepUnits) + (rest > 0 ? step_bytes(type, rest) : 0), 64) * 64;
}

void unpack_row(int type, const std::byte* group, int lane, int64_t units, int64_t cols, float* out) {
  const FormatShape& format = kFormats[type];
  const auto* step = reinterpret_cast<const Byte*>(group);
  const bool adds = type == kQ4_1 || type == kQ5_1;
  for (int64_t first = 0; first < units; first += kStepUnits) {
    const int count = units_in_step(units, first);
    for (int u = 0; u < count; ++u) {
      const int64_t left = std::min<int64_t>(kUnit, cols - (first + u) * kUnit);
      Scales s{};
      for (int k = 0; k < left; ++k) {
        if (k % format.sub == 0) s = scales_at(type, step + count * format.quants, lane, u, k / format.sub);
        const float q = static_cast<float>(code_at(type, step + u * format.quants, lane, k) - format.bias);
        const float product = s.scale * q;
        out[(first + u) * kUnit + k] = !format.minima ? product
                                       : adds         ? product + s.minimum
                                                      : product - s.minimum;
      }
    }
    step += step_bytes(type, count);
  }
}

int64_t float_group_bytes(int64_t element, int64_t cols) {
  return kLanes * element * ceil_div(cols, kLanes) * kLanes;
}

namespace {

/// The group front to back.
template <int64_t Element>
void pack_floats(int strip, const std::byte* first_row, int64_t row_bytes, int64_t count, int64_t cols,
                 std::byte* to) {
  constexpr size_t kSixteen = kLanes * Element;
  for (int first = 0; first < kLanes; first += strip) {
    for (int64_t k = 0; k < cols; k += kLanes) {
      for (int lane = first; lane < first + strip; ++lane, to += kSixteen) {
        const std::byte* from = first_row + lane * row_bytes + k * Element;
        const int64_t left = lane < count ? cols - k : 0;
        if (left >= kLanes) {
          std::memcpy(to, from, kSixteen);
        } else {
          std::memset(to, 0, kSixteen);
          if (left > 0) std::memcpy(to, from, static_cast<size_t>(left * Element));
        }
      }
    }
  }
}

}  // namespace

void pack_float_group(int64_t element, int strip, const std::byte* first_row, int64_t row_bytes,
                      int64_t count, int64_t cols, std::byte* to) {
  (element == 2 ? pack_floats<2> : pack_floats<4>)(strip, first_row, row_bytes, count, cols, to);
}

void unpack_float_row(int64_t element, int strip, const std::byte* group, int lane, int64_t cols,
                      std::byte* to) {
  const int64_t sixteen = kLanes * element;  // bytes
  const std::byte* from =
      group + lane / strip * strip * ceil_div(cols, kLanes) * sixteen + lane % strip * sixteen;
  for (int64_t k = 0; k < cols; k += kLanes, from += strip * sixteen)
    std::memcpy(to + k * element, from, static_cast<size_t>(std::min<int64_t>(kLanes, cols - k) * element));
}

}  // namespace greta::cpu
