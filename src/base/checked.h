#pragma once
// Arithmetic on numbers that come from a file: an overflow is an answer, never undefined behaviour.
#include <cstdint>
#include <optional>

namespace greta {

inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

/// `value` rounded up to a multiple of `step` (step > 0), or nothing on overflow.
inline std::optional<uint64_t> checked_align(uint64_t value, uint64_t step) {
  const auto raised = checked_add(value, step - 1);
  if (!raised) return std::nullopt;
  return *raised / step * step;
}

/// How many pieces of `step` cover `value`.
inline int64_t ceil_div(int64_t value, int64_t step) { return (value + step - 1) / step; }

}  // namespace greta
