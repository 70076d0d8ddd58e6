#pragma once
// The power of two behind which a row is rounded to f16. Included after a target's target.h.
#include <cstdint>

#include "backend/gpu/kernels.h"

namespace greta::gpu::GRETA_GPU_TARGET {

/// 2^e for a row whose largest finite magnitude is amax: amax 2^e lies in [2^14, 2^15), e in [-113, 126];
/// e = 0 for zeros and infinities.
GRETA_DEVICE float row_power(float amax) {
  const uint32_t bits = bits_of(amax);
  const int exponent = static_cast<int>(bits >> 23);
  if (bits == 0 || exponent == 255) return 1.0f;
  const int e = 141 - exponent;
  return float_of(static_cast<uint32_t>((e < 126 ? e : 126) + 127) << 23);
}
/// Of a power of two within [2^-126, 2^126]: 1 / x.
GRETA_DEVICE float inverse_power(float x) { return float_of(0x7f000000u - bits_of(x)); }

GRETA_DEVICE float magnitude_of(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

/// Where element k of a row lies. Tiles: [k / 64][row / 8] pieces of 8 rows x 64 k, 128 bytes a row, whose
/// 16-byte words are permuted by the row (what wgmma calls a 128-byte swizzle): 128 rows of one k64 are 16
/// KiB in one piece.
GRETA_DEVICE int64_t rounded_at(const RoundedRows& rows, int64_t row, int64_t k) {
  if (rows.tiled_rows == 0) return row * rows.stride + k;
  const int64_t piece = k / 64 * (rows.tiled_rows / 8) + row / 8;
  return piece * 512 + row % 8 * 64 + ((k % 64 / 8) ^ (row % 8)) * 8 + k % 8;
}

/// The largest of all threads' magnitudes, none a NaN; `shared` has an element for each wave.
GRETA_DEVICE float block_largest(float value, const SharedArray<float>& shared) {
  value = wave_largest(value);
  if (lane_index() == 0) shared[wave_index()] = value;
  barrier();
  const int waves = block_threads() / kWave;  // at most 32
  const int wave = lane_index() % 32;
  return wave_largest(shared[wave < waves ? wave : 0]);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
