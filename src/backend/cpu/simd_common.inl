// What the simd_*.inl files share and need before them.

template <int I>
struct Index {
  static constexpr int value = I;
  constexpr operator int() const { return I; }
};
// For lambdas over register arrays, which live in memory where the lambda is not inlined.
#define GRETA_INLINE __attribute__((always_inline))

// body(Index<0>), body(Index<1>) ... N times, so that arrays of registers are indexed by constants.
template <int N, int I = 0, class Body>
[[gnu::always_inline]] inline void unroll(const Body& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    unroll<N, I + 1>(body);
  }
}

// A line is asked for. Volatile: the compiler may not bring several together (formats.inl: Ahead).
#if defined(__x86_64__)
[[gnu::always_inline]] inline void fetch_to_first(const void* p) {
  asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p)));
}
[[gnu::always_inline]] inline void fetch_to_second(const void* p) {
  asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p)));
}
#else
inline void fetch_to_first(const void* p) { __builtin_prefetch(p); }
inline void fetch_to_second(const void* p) { __builtin_prefetch(p, 0, 2); }
#endif

// How far ahead of its use a line of packed weights is asked for, first into the second cache and then into
// the first; beyond the end of a tensor it is harmless. Measured on Emerald Rapids, two threads, where a bare
// read gave 28 GB/s: Q4_1 27 GB/s (23 by one request at 6 KiB into the first cache, 13 without), Q8_0 29 (25,
// 19); 8 to 16 KiB are alike, and 3 to 6 for the second (2: 3 % less). F16: 8 to 32 KiB and 3 to 8 alike, 22
// % less without.
inline constexpr int kFar = 12288, kNear = 4096;

// Half-precision bits, as base/half.h has them (which may not be included here: see kernels.h).
[[maybe_unused]] inline float widen_f16_bits(uint32_t h) {
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0x1f) return __builtin_bit_cast(float, sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return __builtin_bit_cast(float, sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // exact
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, magnitude));
}
[[maybe_unused]] inline uint16_t narrow_f16_bits(uint32_t x) {
  const uint32_t sign = (x >> 16) & 0x8000u;
  const uint32_t magnitude = x & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns and rounds to steps of 2^-24
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}
[[maybe_unused]] inline uint16_t narrow_bf16_bits(uint32_t x) {
  if ((x & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((x >> 16) | 0x40u);
  return static_cast<uint16_t>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}
