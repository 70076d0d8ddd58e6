// Q2_K .. Q6_K: super-blocks of 256 elements, reading. Layout of a block, in bytes:
//
//   Q2_K  scales:16  qs:64  d:2  dmin:2              sub-blocks of 16: x = (d * sc) * q - (dmin * m)
//         scales[s]: sc in the low, m in the high nibble. Elements go in halves of 128; half h, quarter p,
//         place l (0 .. 31) has its two bits at 2p of qs[32 h + l].
//   Q3_K  hmask:32  qs:64  scales:12  d:2            sub-blocks of 16: x = (d * (sc - 32)) * q
//         low two bits as in Q2_K; the third is bit e / 32 of hmask[e % 32], and a clear bit means "minus 4".
//         scales: sixteen 6-bit codes, the low nibbles in bytes 0 .. 7 (code s: byte s % 8, high nibble from
//         8 on), the upper two bits in bytes 8 .. 11 (code s: byte 8 + s % 4, at bit 2 (s / 4)).
//   Q4_K  d:2  dmin:2  scales:12  qs:128             sub-blocks of 32: x = (d * sc) * q - (dmin * m)
//         group g of 64: low nibbles of qs[32 g ..] are its first 32 elements, high nibbles the next.
//         scales: eight 6-bit sc and m. s < 4: low six bits of bytes s and s + 4; s >= 4: low and high nibble
//         of byte s + 4, upper two bits those of bytes s - 4 and s.
//   Q5_K  d:2  dmin:2  scales:12  qh:32  qs:128      as Q4_K; the fifth bit is bit e / 32 of qh[e % 32]
//   Q6_K  ql:128  qh:64  scales:16 signed  d:2       sub-blocks of 16: x = (d * sc) * (q - 32)
//         half h of 128, place l (0 .. 63): low nibble of ql[64 h + l] is element l, high nibble element l +
//         64; the upper two bits of quarter p, place l (0 .. 31) are at 2p of qh[32 h + l].
#include "quant/blocks.h"

namespace greta::quant {
namespace {

constexpr int kSuper = 256;

/// The eight 6-bit scales and minima of Q4_K and Q5_K.
void unpack_scales_and_minima(const uint8_t* packed, float d, float dmin, float* scale, float* minimum) {
  for (int s = 0; s < 4; ++s) {
    scale[s] = d * static_cast<float>(packed[s] & 63);
    minimum[s] = dmin * static_cast<float>(packed[s + 4] & 63);
    scale[s + 4] = d * static_cast<float>((packed[s + 8] & 15) | (packed[s] >> 6) << 4);
    minimum[s + 4] = dmin * static_cast<float>((packed[s + 8] >> 4) | (packed[s + 4] >> 6) << 4);
  }
}

}  // namespace

void dequantize_q2_k(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 84, out += kSuper) {
    const uint8_t* qs = in + 16;
    const float d = load_half(in + 80);
    const float dmin = load_half(in + 82);
    for (int s = 0; s < 16; ++s) {  // sub-block s: half s / 8, quarter (s / 2) % 4, places from 16 (s % 2)
      const float scale = d * static_cast<float>(in[s] & 15);
      const float minimum = dmin * static_cast<float>(in[s] >> 4);
      const uint8_t* q = qs + 32 * (s / 8) + 16 * (s % 2);
      const int shift = 2 * ((s / 2) % 4);
      for (int l = 0; l < 16; ++l)
        out[16 * s + l] = scale * static_cast<float>((q[l] >> shift) & 3) - minimum;
    }
  }
}

void dequantize_q3_k(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 110, out += kSuper) {
    const uint8_t* hmask = in;
    const uint8_t* qs = in + 32;
    const uint8_t* scales = in + 96;
    const float d = load_half(in + 108);
    for (int s = 0; s < 16; ++s) {
      const int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
      const int code = low | ((scales[8 + s % 4] >> (2 * (s / 4))) & 3) << 4;
      const float scale = d * static_cast<float>(code - 32);
      const uint8_t* q = qs + 32 * (s / 8) + 16 * (s % 2);
      const uint8_t* high = hmask + 16 * (s % 2);
      const int shift = 2 * ((s / 2) % 4);
      const int bit = s / 2;
      for (int l = 0; l < 16; ++l) {
        const int value = ((q[l] >> shift) & 3) + 4 * ((high[l] >> bit) & 1) - 4;
        out[16 * s + l] = scale * static_cast<float>(value);
      }
    }
  }
}

void dequantize_q4_k(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 144, out += kSuper) {
    float scale[8];
    float minimum[8];
    unpack_scales_and_minima(in + 4, load_half(in), load_half(in + 2), scale, minimum);
    for (int g = 0; g < 4; ++g) {
      const uint8_t* qs = in + 16 + 32 * g;
      float* x = out + 64 * g;
      for (int l = 0; l < 32; ++l) x[l] = scale[2 * g] * static_cast<float>(qs[l] & 15) - minimum[2 * g];
      for (int l = 0; l < 32; ++l)
        x[l + 32] = scale[2 * g + 1] * static_cast<float>(qs[l] >> 4) - minimum[2 * g + 1];
    }
  }
}

void dequantize_q5_k(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 176, out += kSuper) {
    float scale[8];
    float minimum[8];
    unpack_scales_and_minima(in + 4, load_half(in), load_half(in + 2), scale, minimum);
    const uint8_t* qh = in + 16;
    for (int s = 0; s < 8; ++s) {
      const uint8_t* qs = in + 48 + 32 * (s / 2);
      const int shift = 4 * (s % 2);
      for (int l = 0; l < 32; ++l) {
        const int q = ((qs[l] >> shift) & 15) | ((qh[l] >> s) & 1) << 4;
        out[32 * s + l] = scale[s] * static_cast<float>(q) - minimum[s];
      }
    }
  }
}

void dequantize_q6_k(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t b = 0; b < blocks; ++b, in += 210, out += kSuper) {
    const uint8_t* scales = in + 192;
    const float d = load_half(in + 208);
    for (int s = 0; s < 16; ++s) {  // half s / 8, quarter (s / 2) % 4, places from 16 (s % 2)
      const float scale = d * static_cast<float>(static_cast<int8_t>(scales[s]));
      const int quarter = (s / 2) % 4;
      const uint8_t* ql = in + 64 * (s / 8) + 32 * (quarter % 2) + 16 * (s % 2);
      const uint8_t* qh = in + 128 + 32 * (s / 8) + 16 * (s % 2);
      const int low_shift = 4 * (quarter / 2);
      const int high_shift = 2 * quarter;
      for (int l = 0; l < 16; ++l) {
        const int q = ((ql[l] >> low_shift) & 15) | ((qh[l] >> high_shift) & 3) << 4;
        out[16 * s + l] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

}  // namespace greta::quant
