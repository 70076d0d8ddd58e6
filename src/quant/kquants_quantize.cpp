// Q2_K .. Q6_K, writing (layouts: kquants_dequantize.cpp). Plain rounding: a sub-block's range gives its
// scale and minimum, these are rounded to their codes behind the block's f16 numbers, and each element goes
// to the nearest code of what was stored. The error is at most half a step, plus the codes times half a step
// of the scale's own rounding, plus half a step of the minimum's; tests/quant holds it to that.
#include "quant/blocks.h"

namespace greta::quant {
namespace {

constexpr int kSuper = 256;

/// Scales and minima of a block as codes, and the two numbers that stand before them.
template <int Subs>
struct Codes {
  uint16_t d;
  uint16_t dmin;
  int32_t scale[Subs];
  int32_t minimum[Subs];
};

/// x ~ (d * scale) * q - (dmin * minimum), q in [0, Levels), codes in [0, MaxCode].
template <int Subs, int Levels, int MaxCode>
Codes<Subs> quantize_with_minima(const float* __restrict x, const char* type, int64_t first,
                                 int32_t* __restrict q) {
  constexpr int kSub = kSuper / Subs;
  float scale[Subs];
  float minimum[Subs];
  float largest_scale = 0.0F;
  float largest_minimum = 0.0F;
  for (int s = 0; s < Subs; ++s) {
    const Range range = range_of<kSub>(x + kSub * s);
    minimum[s] = range.low < 0.0F ? -range.low : 0.0F;
    scale[s] = (range.high > 0.0F ? range.high + minimum[s] : minimum[s]) / static_cast<float>(Levels - 1);
    largest_scale = std::max(largest_scale, scale[s]);
    largest_minimum = std::max(largest_minimum, minimum[s]);
  }
  Codes<Subs> codes;
  codes.d = stored_half(largest_scale / static_cast<float>(MaxCode), type, first);
  codes.dmin = stored_half(largest_minimum / static_cast<float>(MaxCode), type, first);
  const float d = f16_to_f32(codes.d);
  const float dmin = f16_to_f32(codes.dmin);
  const float per_d = inverse_unless_zero(d);
  const float per_dmin = inverse_unless_zero(dmin);
  for (int s = 0; s < Subs; ++s) {
    codes.scale[s] = nearest_in(scale[s] * per_d, 0, MaxCode);
    codes.minimum[s] = nearest_in(minimum[s] * per_dmin, 0, MaxCode);
    const float inverse = inverse_unless_zero(d * static_cast<float>(codes.scale[s]));
    const float offset = dmin * static_cast<float>(codes.minimum[s]);
    for (int j = kSub * s; j < kSub * (s + 1); ++j)
      q[j] = nearest_in((x[j] + offset) * inverse, 0, Levels - 1);
  }
  return codes;
}

/// x ~ (d * scale) * (q - Levels / 2), scale codes in [-MaxCode, MaxCode), sub-blocks of 16. Each sub-block's
/// scale takes the sign that puts its extreme value on code 0, and d the sign that puts the largest scale on
/// -MaxCode.
template <int Levels, int MaxCode>
uint16_t quantize_signed(const float* __restrict x, const char* type, int64_t first, int32_t* scale_code,
                         int32_t* __restrict q) {
  constexpr int kSub = 16;
  constexpr int kSubs = kSuper / kSub;
  constexpr int kHalfLevels = Levels / 2;
  float scale[kSubs];
  for (int s = 0; s < kSubs; ++s)
    scale[s] = extreme_of<kSub>(x + kSub * s) / static_cast<float>(-kHalfLevels);
  const uint16_t stored = stored_half(extreme_of<kSubs>(scale) / static_cast<float>(-MaxCode), type, first);
  const float d = f16_to_f32(stored);
  const float per_d = inverse_unless_zero(d);
  for (int s = 0; s < kSubs; ++s) {
    scale_code[s] = nearest_in(scale[s] * per_d, -MaxCode, MaxCode - 1);
    const float inverse = inverse_unless_zero(d * static_cast<float>(scale_code[s]));
    for (int j = kSub * s; j < kSub * (s + 1); ++j)
      q[j] = nearest_in(x[j] * inverse, -kHalfLevels, kHalfLevels - 1) + kHalfLevels;
  }
  return stored;
}

/// The two low bits of each code, four to a byte (Q2_K, Q3_K).
void pack_pairs(const int32_t* __restrict q, uint8_t* __restrict qs) {
  for (int h = 0; h < 2; ++h)
    for (int l = 0; l < 32; ++l) {
      const int32_t* v = q + 128 * h + l;
      qs[32 * h + l] =
          static_cast<uint8_t>((v[0] & 3) | (v[32] & 3) << 2 | (v[64] & 3) << 4 | (v[96] & 3) << 6);
    }
}

/// One bit of each code, eight to a byte (Q3_K, Q5_K).
void pack_bit(const int32_t* __restrict q, int bit, uint8_t* __restrict out) {
  for (int l = 0; l < 32; ++l) {
    int packed = 0;
    for (int s = 0; s < 8; ++s) packed |= ((q[32 * s + l] >> bit) & 1) << s;
    out[l] = static_cast<uint8_t>(packed);
  }
}

/// Low nibbles in groups of 64 (Q4_K, Q5_K).
void pack_nibbles(const int32_t* __restrict q, uint8_t* __restrict qs) {
  for (int g = 0; g < 4; ++g)
    for (int l = 0; l < 32; ++l)
      qs[32 * g + l] = static_cast<uint8_t>((q[64 * g + l] & 15) | (q[64 * g + 32 + l] & 15) << 4);
}

/// d, dmin and the eight 6-bit scales and minima: the first 16 bytes of a Q4_K or Q5_K block.
void pack_head(const Codes<8>& codes, uint8_t* out) {
  store16(out, codes.d);
  store16(out + 2, codes.dmin);
  uint8_t* packed = out + 4;
  for (int s = 0; s < 4; ++s) {
    packed[s] = static_cast<uint8_t>(codes.scale[s] | (codes.scale[s + 4] >> 4) << 6);
    packed[s + 4] = static_cast<uint8_t>(codes.minimum[s] | (codes.minimum[s + 4] >> 4) << 6);
    packed[s + 8] = static_cast<uint8_t>((codes.scale[s + 4] & 15) | (codes.minimum[s + 4] & 15) << 4);
  }
}

}  // namespace

void quantize_q2_k(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kSuper, out += 84) {
    int32_t q[kSuper];
    const Codes<16> codes = quantize_with_minima<16, 4, 15>(in, "Q2_K", b * kSuper, q);
    for (int s = 0; s < 16; ++s) out[s] = static_cast<uint8_t>(codes.scale[s] | codes.minimum[s] << 4);
    pack_pairs(q, out + 16);
    store16(out + 80, codes.d);
    store16(out + 82, codes.dmin);
  }
}

void quantize_q3_k(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kSuper, out += 110) {
    int32_t q[kSuper];
    int32_t scale[16];
    const uint16_t d = quantize_signed<8, 32>(in, "Q3_K", b * kSuper, scale, q);
    pack_bit(q, 2, out);
    pack_pairs(q, out + 32);
    uint8_t* packed = out + 96;
    std::memset(packed, 0, 12);
    for (int s = 0; s < 16; ++s) {
      const int code = scale[s] + 32;
      packed[s % 8] |= static_cast<uint8_t>((code & 15) << (s < 8 ? 0 : 4));
      packed[8 + s % 4] |= static_cast<uint8_t>((code >> 4) << (2 * (s / 4)));
    }
    store16(out + 108, d);
  }
}

void quantize_q4_k(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kSuper, out += 144) {
    int32_t q[kSuper];
    pack_head(quantize_with_minima<8, 16, 63>(in, "Q4_K", b * kSuper, q), out);
    pack_nibbles(q, out + 16);
  }
}

void quantize_q5_k(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kSuper, out += 176) {
    int32_t q[kSuper];
    pack_head(quantize_with_minima<8, 32, 63>(in, "Q5_K", b * kSuper, q), out);
    pack_bit(q, 4, out + 16);
    pack_nibbles(q, out + 48);
  }
}

void quantize_q6_k(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kSuper, out += 210) {
    int32_t q[kSuper];
    int32_t scale[16];
    const uint16_t d = quantize_signed<64, 128>(in, "Q6_K", b * kSuper, scale, q);
    for (int h = 0; h < 2; ++h) {
      const int32_t* v = q + 128 * h;
      for (int l = 0; l < 64; ++l)
        out[64 * h + l] = static_cast<uint8_t>((v[l] & 15) | (v[l + 64] & 15) << 4);
      for (int l = 0; l < 32; ++l)
        out[128 + 32 * h + l] = static_cast<uint8_t>(v[l] >> 4 | (v[l + 32] >> 4) << 2 |
                                                     (v[l + 64] >> 4) << 4 | (v[l + 96] >> 4) << 6);
    }
    for (int s = 0; s < 16; ++s) out[192 + s] = static_cast<uint8_t>(scale[s]);
    store16(out + 208, d);
  }
}

}  // namespace greta::quant
