// 16 virtual lanes in two ymm, for AVX2 with and without AVX-VNNI. simd_<avx512, avx2, portable>.inl define
// the same names; included inside an unnamed namespace.
struct VF {
  __m256 a, b;
};
struct VI {
  __m256i a, b;
};
using VB = VI;  // 64 bytes: byte 4 * row + j

inline constexpr int kFloatRows = 2, kFloatTokens = 3;
inline constexpr int kRowsOfOne = 4;  // the same for one token
inline constexpr int kKeyVectors = 1, kQueries = 4;

inline VF zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline VF set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline VF load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, VF x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline VF load_n(const float* p, int n) {
  alignas(32) float part[16] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
inline void store_n(float* p, VF x, int n) {
  alignas(32) float part[16];
  store(part, x);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}
inline VF fma(VF a, VF b, VF c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
inline VF add(VF a, VF b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
inline VF sub(VF a, VF b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
inline VF mul(VF a, VF b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
inline VF div(VF a, VF b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
inline VF vmin(VF a, VF b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
inline VF vmax(VF a, VF b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
inline VI as_int(VF x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline VF as_float(VI x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline VF neg(VF x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
inline VF select_first(int n, VF a, VF b) {
  const __m256i count = _mm256_set1_epi32(n);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i first = _mm256_cmpgt_epi32(count, lane);
  const __m256i second = _mm256_cmpgt_epi32(count, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
  return {_mm256_blendv_ps(b.a, a.a, _mm256_castsi256_ps(first)),
          _mm256_blendv_ps(b.b, a.b, _mm256_castsi256_ps(second))};
}

inline __m128i load_quarter(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256 widen_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline VF load_f16(const void* p) {
  const auto* h = static_cast<const uint8_t*>(p);
  return {_mm256_cvtph_ps(load_quarter(h)), _mm256_cvtph_ps(load_quarter(h + 16))};
}
inline VF load_bf16(const void* p) {
  const auto* h = static_cast<const uint8_t*>(p);
  return {widen_bf16(load_quarter(h)), widen_bf16(load_quarter(h + 16))};
}
inline VF load_f16_n(const void* p, int n) {
  uint16_t part[16] = {};
  __builtin_memcpy(part, p, static_cast<size_t>(n) * 2);
  return load_f16(part);
}
inline VF load_bf16_n(const void* p, int n) {
  uint16_t part[16] = {};
  __builtin_memcpy(part, p, static_cast<size_t>(n) * 2);
  return load_bf16(part);
}
inline void store_f16_n(uint16_t* p, VF x, int n) {
  alignas(16) uint16_t part[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_store_si128(reinterpret_cast<__m128i*>(part + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
  __builtin_memcpy(p, part, static_cast<size_t>(n) * 2);
}
inline void store_bf16_n(uint16_t* p, VF x, int n) {
  alignas(32) uint32_t bits[16];
  store(reinterpret_cast<float*>(bits), x);
  for (int i = 0; i < n; ++i) p[i] = narrow_bf16_bits(bits[i]);
}

inline VI zeroi() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline VI set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline VI loadi(const void* p) {
  const auto* w = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(w), _mm256_loadu_si256(w + 1)};
}
inline void storei(void* p, VI x) {
  auto* w = static_cast<__m256i*>(p);
  _mm256_storeu_si256(w, x.a);
  _mm256_storeu_si256(w + 1, x.b);
}
inline VI addi(VI a, VI b) { return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
inline VI subi(VI a, VI b) { return {_mm256_sub_epi32(a.a, b.a), _mm256_sub_epi32(a.b, b.b)}; }
inline VI andi(VI a, VI b) { return {_mm256_and_si256(a.a, b.a), _mm256_and_si256(a.b, b.b)}; }
inline VI ori(VI a, VI b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
inline VI maxi(VI a, VI b) { return {_mm256_max_epi32(a.a, b.a), _mm256_max_epi32(a.b, b.b)}; }
template <int N>
inline VI shl(VI x) {
  return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)};
}
template <int N>
inline VI shr(VI x) {
  return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)};
}
template <int N>
inline VI sar(VI x) {
  return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)};
}
inline VF to_float(VI x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline VI to_int(VF x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline int32_t reduce_addi(VI x) {
  const __m256i a = _mm256_add_epi32(x.a, x.b);
  const __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i c = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}
inline int32_t reduce_maxi(VI x) {
  const __m256i a = _mm256_max_epi32(x.a, x.b);
  const __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i c = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}

// acc[r][t] = fma(w[r], x[t], acc[r][t]); w: [R][16], x: [T][16]. A half of the lanes at a time: 12 sums, two
// weights and one x fit 16 registers.
template <int R, int T>
[[gnu::always_inline]] inline void fma_outer(VF (&acc)[R][T], const float* w, const float* x) {
  unroll<2>([&](auto half) {
    __m256 weights[R];
    unroll<R>([&](auto r) { weights[r] = _mm256_loadu_ps(w + r * 16 + half * 8); });
    unroll<T>([&](auto t) {
      __m256 v = _mm256_loadu_ps(x + t * 16 + half * 8);
      asm("" : "+x"(v));  // or GCC loads it once for each row
      unroll<R>([&](auto r) {
        __m256& sum = half == 0 ? acc[r][t].a : acc[r][t].b;
        sum = _mm256_fmadd_ps(weights[r], v, sum);
      });
    });
  });
}

// The fixed reduction tree: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
inline float reduce_add(VF x) {
  const __m256 a = _mm256_add_ps(x.a, x.b);
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
inline float reduce_max(VF x) {
  const __m256 a = _mm256_max_ps(x.a, x.b);
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

inline VB loadb(const void* p) { return loadi(p); }
inline void storeb(void* p, VB x) { storei(p, x); }
// Four bytes of each of `count` rows that are `stride` bytes apart, 15 * stride < 2^31; the other lanes are
// zero.
inline VB gather_bytes(const uint8_t* p, int64_t stride, int count) {
  const __m256i eight = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i by = _mm256_set1_epi32(static_cast<int32_t>(stride)), rows = _mm256_set1_epi32(count);
  const auto half = [&](__m256i lanes) {
    return _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), reinterpret_cast<const int*>(p),
                                       _mm256_mullo_epi32(lanes, by), _mm256_cmpgt_epi32(rows, lanes), 1);
  };
  return {half(eight), half(_mm256_add_epi32(eight, _mm256_set1_epi32(8)))};
}
// The lower halves of the words.
inline void store_halves(void* p, VI x) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i both = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(both, 0xd8));
}
template <int S, int Mask>
inline VB shift_mask(VB x) {
  if constexpr (S > 0) x = {_mm256_slli_epi16(x.a, S), _mm256_slli_epi16(x.b, S)};
  if constexpr (S < 0) x = {_mm256_srli_epi16(x.a, -S), _mm256_srli_epi16(x.b, -S)};
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(Mask));
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}

// base, and the bits of x so shifted and masked
template <int S, int Mask>
inline VB or_shift_mask(VB base, VB x) {
  return ori(base, shift_mask<S, Mask>(x));
}
inline VI as_words(VB x) { return x; }

inline __m256i broadcast_word(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// 16 integers that fit a byte, in their order.
inline __m128i bytes_of(VI q) {
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q.a, q.b), _mm256_setzero_si256());
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
}
