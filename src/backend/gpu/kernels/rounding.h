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

// Sums of 32 elements of a rounded row, for minima (orders.h, sums_codes). A four's sum is (x0 + x1) + (x2 +
// x3), and the eight fours meet in a tree of neighbours; times 2^-5, below 2^15, it lies in two f16: `high`,
// and what that leaves, times 2^11, `low`: 2^-23 of it is lost, at most, since none is below the smallest f16
// that was added.
inline constexpr float kSumPower = 0x1p-5f;
inline constexpr float kLowPower = 0x1p11f;

/// Where f16 `i` of a chunk's sums lies. In tiles: [chunk][row / 8][i / 8] pieces of 8 rows x 8.
GRETA_DEVICE int64_t sums_at(const RoundedRows& rows, int64_t row, int64_t chunk, int i) {
  if (rows.tiled_rows == 0) return row * (rows.stride / kChunkK * kSumsOfChunk) + chunk * kSumsOfChunk + i;
  return chunk * rows.tiled_rows * kSumsOfChunk + row / 8 * (8 * kSumsOfChunk) + i / 8 * 64 + row % 8 * 8 +
         i % 8;
}

/// Of four elements, two in a word.
GRETA_DEVICE float four_sum(uint32_t first, uint32_t second) {
  return (low_f16(first) + high_f16(first)) + (low_f16(second) + high_f16(second));
}
/// Of 32 elements, in each of the eight neighbouring lanes that have the sum of a four. All lanes call it.
GRETA_DEVICE float sum_of_fours(float four) {
  GRETA_UNROLL
  for (int mask = 1; mask < kSumOf / 4; mask *= 2) four += shuffle_xor(four, mask);
  return four;
}
/// A sum's two parts.
struct SumParts {
  uint16_t high, low;
  GRETA_DEVICE explicit SumParts(float sum) {
    high = to_f16(sum * kSumPower);
    low = to_f16((sum * kSumPower - from_f16(high)) * kLowPower);
  }
};

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
