// F16 and BF16: a "block" is one element.
#include "quant/blocks.h"

namespace greta::quant {

void dequantize_f16(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  // Without branches, so that it vectorises: exponent and mantissa moved into place and multiplied by 2^112,
  // which is exact for normal and subnormal numbers alike; infinities and NaNs get their exponent set
  // instead.
  for (int64_t i = 0; i < blocks; ++i) {
    const uint32_t h = load16(in + 2 * i);
    const uint32_t magnitude = (h & 0x7fffu) << 13;
    const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F);
    const uint32_t special = 0x7f800000u | (magnitude & 0x007fffffu);
    const uint32_t is_special = 0u - static_cast<uint32_t>(magnitude >= 0x0f800000u);
    const uint32_t bits = (special & is_special) | (finite & ~is_special);
    out[i] = std::bit_cast<float>(bits | (h & 0x8000u) << 16);
  }
}

void dequantize_bf16(const uint8_t* __restrict in, int64_t blocks, float* __restrict out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = bf16_to_f32(load16(in + 2 * i));
}

void quantize_f16(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t i = 0; i < blocks; ++i) {
    const uint16_t half = f32_to_f16(in[i]);
    if ((half & 0x7fffu) == 0x7c00u)
      fail("cannot convert to F16: element {} is {}, the largest an f16 holds is 65504", i, in[i]);
    store16(out + 2 * i, half);
  }
}

void quantize_bf16(const float* __restrict in, int64_t blocks, uint8_t* __restrict out) {
  for (int64_t i = 0; i < blocks; ++i) {
    const uint16_t half = f32_to_bf16(in[i]);
    if ((half & 0x7fffu) == 0x7f80u)
      fail("cannot convert to BF16: element {} is {}, which rounds to infinity", i, in[i]);
    store16(out + 2 * i, half);
  }
}

}  // namespace greta::quant
