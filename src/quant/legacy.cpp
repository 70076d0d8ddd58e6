// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 elements behind one or two f16 numbers.
//
// Layout of a block, in bytes:
//   Q4_0  d:2                  qs:16          x = d * (q - 8)
//   Q4_1  d:2  m:2             qs:16          x = d * q + m
//   Q5_0  d:2        qh:4      qs:16          x = d * (q - 16)
//   Q5_1  d:2  m:2   qh:4      qs:16          x = d * q + m
//   Q8_0  d:2                  qs:32 signed   x = q * d
// qs[j] holds element j in its low and element j + 16 in its high nibble; bit j of qh is element j's fifth
// bit.
#include "quant/blocks.h"

namespace greta::quant {
namespace {

constexpr int kBlock = 32;
constexpr int kHalf = 16;

void unpack_nibbles(const uint8_t* __restrict qs, int32_t* __restrict q) {
  for (int j = 0; j < kHalf; ++j) {
    q[j] = qs[j] & 15;
    q[j + kHalf] = qs[j] >> 4;
  }
}

void add_fifth_bits(const uint8_t* qh, int32_t* __restrict q) {
  uint32_t bits;
  std::memcpy(&bits, qh, sizeof bits);
  for (int j = 0; j < kBlock; ++j) q[j] |= static_cast<int32_t>((bits >> j) & 1u) << 4;
}

void pack_nibbles(const int32_t* __restrict q, uint8_t* __restrict qs) {
  for (int j = 0; j < kHalf; ++j) qs[j] = static_cast<uint8_t>((q[j] & 15) | (q[j + kHalf] & 15) << 4);
}

void pack_fifth_bits(const int32_t* q, uint8_t* qh) {
  uint32_t bits = 0;
  for (int j = 0; j < kBlock; ++j) bits |= static_cast<uint32_t>(q[j] >> 4) << j;
  std::memcpy(qh, &bits, sizeof bits);
}

/// Symmetric, H = Levels / 2: d = extreme / -H, so that the extreme value lands on code 0; q = trunc(x / d +
/// H + 0.5).
template <int Levels>
void quantize_symmetric(const float* __restrict x, const char* type, int64_t first, uint8_t* d_out,
                        int32_t* __restrict q) {
  constexpr int kHalfLevels = Levels / 2;
  const float d = extreme_of<kBlock>(x) / static_cast<float>(-kHalfLevels);
  const uint16_t stored = stored_half(d, type, first);
  store16(d_out, stored);
  const float inverse = (stored & 0x7fffu) != 0 ? 1.0F / d : 0.0F;
  constexpr float kShift = static_cast<float>(kHalfLevels) + 0.5F;
  for (int j = 0; j < kBlock; ++j) q[j] = std::min(static_cast<int32_t>(x[j] * inverse + kShift), Levels - 1);
}

/// With a minimum: d = (high - low) / (Levels - 1), q = trunc((x - low) / d + 0.5).
template <int Levels>
void quantize_with_minimum(const float* __restrict x, const char* type, int64_t first, uint8_t* d_out,
                           uint8_t* m_out, int32_t* __restrict q) {
  const Range range = range_of<kBlock>(x);
  const float d = (range.high - range.low) / static_cast<float>(Levels - 1);
  const uint16_t stored = stored_half(d, type, first);
  store16(d_out, stored);
  store16(m_out, stored_half(range.low, type, first));
  const float inverse = (stored & 0x7fffu) != 0 ? 1.0F / d : 0.0F;
  // Truncation after adding a half is the format's published formula, and nothing here is negative.
  for (int j = 0; j < kBlock; ++j) {
    const float code = (x[j] - range.low) * inverse + 0.5F;
    q[j] = std::min(static_cast<int32_t>(code), Levels - 1);
  }
}

}  // namespace

void dequantize_q4_0(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 18, out += kBlock) {
    const float d = load_half(in);
    int32_t q[kBlock];
    unpack_nibbles(in + 2, q);
    for (int j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(q[j] - 8);
  }
}

void dequantize_q4_1(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 20, out += kBlock) {
    const float d = load_half(in);
    const float m = load_half(in + 2);
    int32_t q[kBlock];
    unpack_nibbles(in + 4, q);
    for (int j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(q[j]) + m;
  }
}

void dequantize_q5_0(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 22, out += kBlock) {
    const float d = load_half(in);
    int32_t q[kBlock];
    unpack_nibbles(in + 6, q);
    add_fifth_bits(in + 2, q);
    for (int j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(q[j] - 16);
  }
}

void dequantize_q5_1(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 24, out += kBlock) {
    const float d = load_half(in);
    const float m = load_half(in + 2);
    int32_t q[kBlock];
    unpack_nibbles(in + 8, q);
    add_fifth_bits(in + 4, q);
    for (int j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(q[j]) + m;
  }
}

void dequantize_q8_0(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 34, out += kBlock) {
    const float d = load_half(in);
    for (int j = 0; j < kBlock; ++j) out[j] = static_cast<float>(static_cast<int8_t>(in[2 + j])) * d;
  }
}

void quantize_q4_0(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kBlock, out += 18) {
    int32_t q[kBlock];
    quantize_symmetric<16>(in, "Q4_0", b * kBlock, out, q);
    pack_nibbles(q, out + 2);
  }
}

void quantize_q4_1(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kBlock, out += 20) {
    int32_t q[kBlock];
    quantize_with_minimum<16>(in, "Q4_1", b * kBlock, out, out + 2, q);
    pack_nibbles(q, out + 4);
  }
}

void quantize_q5_0(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kBlock, out += 22) {
    int32_t q[kBlock];
    quantize_symmetric<32>(in, "Q5_0", b * kBlock, out, q);
    pack_fifth_bits(q, out + 2);
    pack_nibbles(q, out + 6);
  }
}

void quantize_q5_1(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kBlock, out += 24) {
    int32_t q[kBlock];
    quantize_with_minimum<32>(in, "Q5_1", b * kBlock, out, out + 2, q);
    pack_fifth_bits(q, out + 4);
    pack_nibbles(q, out + 8);
  }
}

void quantize_q8_0(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += kBlock, out += 34) {
    const float d = std::fabs(extreme_of<kBlock>(in)) / 127.0F;
    const uint16_t stored = stored_half(d, "Q8_0", b * kBlock);
    store16(out, stored);
    const float inverse = (stored & 0x7fffu) != 0 ? 1.0F / d : 0.0F;
    for (int j = 0; j < kBlock; ++j)
      out[2 + j] = static_cast<uint8_t>(nearest_in(in[j] * inverse, -127, 127));
  }
}

}  // namespace greta::quant
