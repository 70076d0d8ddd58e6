#pragma once
// Hashes of stages (numerics.md section 2): sums, so any order of computation gives them.
#include <cstdint>
#include <span>

namespace greta {

/// SplitMix64's finaliser.
uint64_t mix64(uint64_t x);

/// Sum over i of mix(i * 2^32 + bits(x_i)) mod 2^64; the exact FP32 bits, nothing canonicalised.
uint64_t row_hash(std::span<const float> row);
/// FP64: the low word, then the high word of each element, in turn.
uint64_t row_hash(std::span<const double> row);
/// By the precision that it is stored in: `wide` as FP64, else as the FP32 values that the doubles are.
uint64_t row_hash(std::span<const double> row, bool wide);

/// A sequence's logits hash is the sum of this over its rows.
uint64_t positioned(uint64_t row_hash, int64_t position);

}  // namespace greta
