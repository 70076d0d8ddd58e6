#include "backend/cpu/packed.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/half.h"

namespace greta::cpu {
namespace {

using Byte = uint8_t;

constexpr int kFileBytes[kIntegerTypes] = {18, 20, 22, 24, 34, 84, 110, 144, 176, 210};

/// One row's part of a step: codes in element order, scales by sub-block as the format has them.
struct RowStep {
  Byte codes[kStepUnits * kUnit];
  uint16_t d[kStepUnits];    ///< f16; one a unit, or d[0] of a super-block
  uint16_t min[kStepUnits];  ///< f16: m, or min[0] = dmin
  Byte sc[16];               ///< a super-block's integer scales, raw bits
  Byte mn[16];               ///< and its integer minima
};

uint16_t half_at(const Byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

// ---- the file's blocks to RowStep
// --------------------------------------------------------------------------------

void read_small(int type, const Byte* block, int unit, RowStep& to) {
  to.d[unit] = half_at(block);
  block += 2;
  if (kFormats[type].minima) {
    to.min[unit] = half_at(block);
    block += 2;
  }
  Byte* codes = to.codes + unit * kUnit;
  if (type == kQ8_0) {
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<Byte>(block[i] ^ 0x80);
    return;
  }
  uint32_t high = 0;
  if (type == kQ5_0 || type == kQ5_1) {
    std::memcpy(&high, block, 4);
    block += 4;
  }
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<Byte>((block[i] & 15) | ((high >> i & 1) << 4));
    codes[i + 16] = static_cast<Byte>((block[i] >> 4) | ((high >> (i + 16) & 1) << 4));
  }
}

void read_q2_k(const Byte* block, RowStep& to) {
  for (int i = 0; i < 16; ++i) {
    to.sc[i] = block[i] & 15;
    to.mn[i] = block[i] >> 4;
  }
  const Byte* q = block + 16;
  for (int part = 0; part < 8; ++part) {
    for (int i = 0; i < 32; ++i) to.codes[32 * part + i] = (q[32 * (part / 4) + i] >> (2 * (part % 4))) & 3;
  }
  to.d[0] = half_at(block + 80);
  to.min[0] = half_at(block + 82);
}

void read_q3_k(const Byte* block, RowStep& to) {
  const Byte* high = block;
  const Byte* q = block + 32;
  const Byte* sc = block + 96;
  for (int part = 0; part < 8; ++part) {
    for (int i = 0; i < 32; ++i) {
      to.codes[32 * part + i] = static_cast<Byte>(((q[32 * (part / 4) + i] >> (2 * (part % 4))) & 3) |
                                                  (((high[i] >> part) & 1) << 2));
    }
  }
  for (int i = 0; i < 16; ++i) {
    const int low = i < 8 ? sc[i] & 15 : sc[i - 8] >> 4;
    to.sc[i] = static_cast<Byte>(low | (((sc[8 + i % 4] >> (2 * (i / 4))) & 3) << 4));
  }
  to.d[0] = half_at(block + 108);
}

template <bool Five>
void read_q45_k(const Byte* block, RowStep& to) {
  to.d[0] = half_at(block);
  to.min[0] = half_at(block + 2);
  const Byte* sc = block + 4;
  for (int i = 0; i < 4; ++i) {
    to.sc[i] = sc[i] & 63;
    to.mn[i] = sc[i + 4] & 63;
    to.sc[i + 4] = static_cast<Byte>((sc[i + 8] & 15) | ((sc[i] >> 6) << 4));
    to.mn[i + 4] = static_cast<Byte>((sc[i + 8] >> 4) | ((sc[i + 4] >> 6) << 4));
  }
  [[maybe_unused]] const Byte* high = block + 16;
  const Byte* q = block + (Five ? 48 : 16);
  for (int part = 0; part < 8; ++part) {
    Byte* codes = to.codes + 32 * part;
    const Byte* from = q + 32 * (part / 2);
    for (int i = 0; i < 32; ++i) codes[i] = part % 2 == 0 ? from[i] & 15 : from[i] >> 4;
    if constexpr (Five) {
      for (int i = 0; i < 32; ++i) codes[i] = static_cast<Byte>(codes[i] | ((high[i] >> part) & 1) << 4);
    }
  }
}

void read_q6_k(const Byte* block, RowStep& to) {
  for (int half = 0; half < 2; ++half) {
    const Byte* low = block + 64 * half;
    const Byte* high = block + 128 + 32 * half;
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 32; ++i) {
        const int nibble = (low[32 * (part % 2) + i] >> (4 * (part / 2))) & 15;
        to.codes[128 * half + 32 * part + i] =
            static_cast<Byte>(nibble | (((high[i] >> (2 * part)) & 3) << 4));
      }
    }
  }
  std::memcpy(to.sc, block + 192, 16);
  to.d[0] = half_at(block + 208);
}

void read_step(int type, const Byte* row, int64_t step, int units, RowStep& to) {
  if (!kFormats[type].super) {
    const Byte* block = row + step * kStepUnits * kFileBytes[type];
    for (int u = 0; u < units; ++u) read_small(type, block + u * kFileBytes[type], u, to);
    return;
  }
  const Byte* block = row + step * kFileBytes[type];
  if (type == kQ2_K) read_q2_k(block, to);
  if (type == kQ3_K) read_q3_k(block, to);
  if (type == kQ4_K) read_q45_k<false>(block, to);
  if (type == kQ5_K) read_q45_k<true>(block, to);
  if (type == kQ6_K) read_q6_k(block, to);
}

/// A zero row: weights exactly 0 (scale 0), codes anything.
void zero_step(RowStep& to) { std::memset(&to, 0, sizeof to); }

// ---- planes of bits
// ----------------------------------------------------------------------------------------------

/// codes[group i of 8][row][4]
using UnitCodes = Byte[8][64];

void pack_nibbles(const UnitCodes& c, Byte* to) {
  for (int i = 0; i < 4; ++i) {
    for (int b = 0; b < 64; ++b) to[64 * i + b] = static_cast<Byte>((c[i][b] & 15) | (c[i + 4][b] << 4));
  }
}
void pack_bits(const UnitCodes& c, int from, Byte* to) {
  for (int b = 0; b < 64; ++b) {
    int planes = 0;
    for (int i = 0; i < 8; ++i) planes |= ((c[i][b] >> from) & 1) << i;
    to[b] = static_cast<Byte>(planes);
  }
}
void pack_pairs(const UnitCodes& c, Byte* to) {
  for (int j = 0; j < 2; ++j) {
    for (int b = 0; b < 64; ++b) {
      int pairs = 0;
      for (int i = 0; i < 4; ++i) pairs |= (c[4 * j + i][b] & 3) << (2 * i);
      to[64 * j + b] = static_cast<Byte>(pairs);
    }
  }
}

/// Four groups in three vectors (formats.inl: sixes).
void pack_sixes(const UnitCodes& c, Byte* to) {
  for (int j = 0; j < 2; ++j) {
    for (int v = 0; v < 3; ++v) {
      for (int b = 0; b < 64; ++b)
        *to++ = static_cast<Byte>(c[4 * j + v][b] | ((c[4 * j + 3][b] >> (4 - 2 * v)) & 3) << 6);
    }
  }
}

void pack_unit(int type, const UnitCodes& c, Byte* to) {
  if (type == kQ8_0) {
    std::memcpy(to, c, sizeof c);
  } else if (type == kQ2_K || type == kQ3_K) {
    pack_pairs(c, to);
    if (type == kQ3_K) pack_bits(c, 2, to + 128);
  } else if (type == kQ6_K) {
    pack_sixes(c, to);
  } else {
    pack_nibbles(c, to);
    if (type == kQ5_0 || type == kQ5_1 || type == kQ5_K) pack_bits(c, 4, to + 256);
  }
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

// ---- scales
// ------------------------------------------------------------------------------------------------------

int word_count(int type) { return (kFormats[type].scales - (kFormats[type].minima ? 64 : 32)) / 64; }

/// The integer scales of one row's super-block as the 32-bit words of its lane (formats.inl: step_scales).
/// Nibbles lie in words 0 and 1 (Q2_K's minima in 2 and 3), four to the low and four to the high halves of a
/// word's bytes; pairs of high bits in word 2, those of the same four in the same two bits of every byte.
void scale_words(int type, const RowStep& row, uint32_t (&word)[4]) {
  std::fill(std::begin(word), std::end(word), 0u);
  const auto put_nibble = [&](uint32_t first, uint32_t i, uint32_t value) {
    word[first + i / 8] |= (value & 15) << (8 * (i % 4) + i / 4 % 2 * 4);
  };
  const auto put_pair = [&](uint32_t i, uint32_t value) {
    word[2] |= (value >> 4) << (8 * (i % 4) + i / 4 * 2);
  };
  for (uint32_t i = 0; i < 16; ++i) {
    const uint32_t sc = row.sc[i], mn = row.mn[i];
    if (type == kQ6_K) word[i / 4] |= sc << (8 * (i % 4));
    if (type == kQ3_K || type == kQ2_K || ((type == kQ4_K || type == kQ5_K) && i < 8)) {
      put_nibble(0, i, sc);
      if (type == kQ2_K) put_nibble(2, i, mn);
      if (type == kQ3_K) put_pair(i, sc);
      if (type == kQ4_K || type == kQ5_K) {
        put_nibble(1, i, mn);
        put_pair(i, sc);
        put_pair(i + 8, mn);
      }
    }
  }
}

void pack_scales(int type, const RowStep (&rows)[kLanes], int units, Byte* to) {
  const FormatShape& format = kFormats[type];
  const auto halves = [&](Byte* p, auto pick) {
    for (int r = 0; r < kLanes; ++r) {
      const uint16_t h = pick(rows[r]);
      std::memcpy(p + 2 * r, &h, 2);
    }
  };
  if (!format.super) {
    for (int u = 0; u < units; ++u, to += format.scales) {
      halves(to, [&](const RowStep& row) { return row.d[u]; });
      if (format.minima) halves(to + 32, [&](const RowStep& row) { return row.min[u]; });
    }
    return;
  }
  halves(to, [](const RowStep& row) { return row.d[0]; });
  to += 32;
  if (format.minima) {
    halves(to, [](const RowStep& row) { return row.min[0]; });
    to += 32;
  }
  for (int r = 0; r < kLanes; ++r) {
    uint32_t word[4];
    scale_words(type, rows[r], word);
    for (int j = 0; j < word_count(type); ++j) std::memcpy(to + 64 * j + 4 * r, &word[j], 4);
  }
}

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

void pack_group(int type, const std::byte* const (&rows)[kLanes], int64_t units, std::byte* to) {
  auto* out = reinterpret_cast<Byte*>(to);
  RowStep row[kLanes];
  for (int64_t first = 0; first < units; first += kStepUnits) {
    const int count = units_in_step(units, first);
    for (int r = 0; r < kLanes; ++r) {
      if (rows[r] == nullptr) {
        zero_step(row[r]);
      } else {
        read_step(type, reinterpret_cast<const Byte*>(rows[r]), first / kStepUnits, count, row[r]);
      }
    }
    for (int u = 0; u < count; ++u) {
      UnitCodes codes;
      for (int i = 0; i < 8; ++i) {
        for (int r = 0; r < kLanes; ++r) std::memcpy(codes[i] + 4 * r, row[r].codes + u * kUnit + 4 * i, 4);
      }
      pack_unit(type, codes, out + u * kFormats[type].quants);
    }
    pack_scales(type, row, count, out + count * kFormats[type].quants);
    out += step_bytes(type, count);
  }
}

void unpack_row(int type, const std::byte* group, int lane, int64_t units, int64_t cols, float* out) {
  const FormatShape& format = kFormats[type];
  const auto* step = reinterpret_cast<const Byte*>(group);
  const bool adds = type == kQ4_1 || type == kQ5_1;
  for (int64_t first = 0; first < units; first += kStepUnits) {
    const int count = units_in_step(units, first);
    for (int u = 0; u < count; ++u) {
      const int64_t left = std::min<int64_t>(kUnit, cols - (first + u) * kUnit);
      for (int k = 0; k < left; ++k) {
        const Scales s = scales_at(type, step + count * format.quants, lane, u, k / format.sub);
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

}  // namespace greta::cpu
