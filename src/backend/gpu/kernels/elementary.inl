#pragma once
// Functions of one number that rows.inl and attention.inl share.
#include "backend/gpu/kernels/launchers.h"
#include "backend/gpu/kernels/rounding.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

/// cap tanh(x / cap): a division, tanh's own units, a product. Never past the cap; NaN stays NaN.
GRETA_DEVICE float capped(float x, float cap) { return cap * tanh_of(divide(x, cap)); }

/// cos and sin of pair i of a head at `position`: the angle in FP64, each rounded once.
GRETA_DEVICE void turn_of(const Rotation& rotation, int position, int i, float& cosine, float& sine) {
  double s, c;
  sincos_of(static_cast<double>(position) * rotation.inv_freq[i], s, c);
  cosine = static_cast<float>(c * rotation.magnitude);
  sine = static_cast<float>(s * rotation.magnitude);
}
/// (a, b) -> (a c - b s, b c + a s): the product with s is rounded, the one with c is fused.
GRETA_DEVICE float turned_first(float a, float b, float c, float s) { return fused(a, c, -(b * s)); }
GRETA_DEVICE float turned_second(float a, float b, float c, float s) { return fused(b, c, a * s); }

/// x / (1 + e^-x), with e^-|x| so that nothing overflows: x e / (1 + e) on the negative side.
GRETA_DEVICE float silu_of(float x) {
  const float e = exp_of(-magnitude_of(x));
  return (x < 0.0f ? x * e : x) * reciprocal_of(1.0f + e);
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^-y), y = x (a + b x^2), a = 2 sqrt(2/pi),
/// b = 0.044715 a. e^-y magnifies an error of y by |y|, so y is a sum of two FP32 numbers; so are a and b.
GRETA_DEVICE float gelu_tanh_of(float x) {
  const float a = 0x1.988454p+0f, a_low = -0x1.857936p-25f, b = 0x1.2444f2p-4f, b_low = 0x1.49b16ap-29f;
  const float c = x < -16.0f ? -16.0f : x > 16.0f ? 16.0f : x;  // beyond them the sigmoid is 0 or 1
  const float square = c * c;
  const float square_low = fused(c, c, -square);
  const float product = b * square;
  const float product_low = fused(b, square_low, fused(b_low, square, fused(b, square, -product)));
  const float sum = a + product;  // TwoSum: `rest` is what it rounded away
  const float back = sum - a;
  const float rest = (a - (sum - back)) + (product - back);
  const float y = c * sum;
  const float y_low = fused(c, rest + product_low + a_low, fused(c, sum, -y));
  float e = exp_of(-magnitude_of(y));
  e = fused(e, y < 0.0f ? y_low : -y_low, e);  // e^-(|y| + low) = e^-|y| (1 - low)
  return (x < 0.0f ? x * e : x) * reciprocal_of(1.0f + e);
}

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
