// 16 virtual lanes in one zmm. The three simd_*.inl files define the same names; included inside an unnamed
// namespace.
using VF = __m512;   // 16 FP32 lanes
using VI = __m512i;  // 16 int32 lanes
using VB = __m512i;  // 64 bytes: byte 4 * row + j

inline constexpr int kFloatRows = 4, kFloatTokens = 6;  // register tile of the float matmul
inline constexpr int kStripsOfOne = 2;    // of kFloatRows rows: what one token takes side by side
inline constexpr int kTileStrips = 1;     // the same of a register tile of many tokens
inline constexpr int kTogetherRows = 64;  // of a block of tokens: its sums take 384 KiB of the second cache
inline constexpr int kKeyVectors = 4, kQueries = 6;  // register tile of attention: 16-key vectors x queries
inline constexpr int kTileGroups = 2, kTileTokens = 6;  // register tile of the integer matmul
inline constexpr const char* kIsaName = "avx512";
// Rounded activations of a unit of T tokens: 16-bit mode [k / 4][T] of four int16: k0, k2, k1, k3 (VPDPWSSD
// pairs), one token alone [plane: high, low][32] signed bytes (VPDPBUSD on codes as they come); 8-bit mode
// [k / 4][T][4] bytes.
template <bool Eight>
inline constexpr int kXBytes = Eight ? 32 : 64;
template <bool Eight>
inline constexpr int kXBytesOfOne = kXBytes<Eight>;

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline VF zero() { return _mm512_setzero_ps(); }
inline VF set1(float x) { return _mm512_set1_ps(x); }
inline VF load(const float* p) { return _mm512_loadu_ps(p); }
inline VF load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store(float* p, VF x) { _mm512_storeu_ps(p, x); }
inline void store_n(float* p, VF x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
inline VF fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
inline VF add(VF a, VF b) { return _mm512_add_ps(a, b); }
inline VF sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
inline VF mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
inline VF div(VF a, VF b) { return _mm512_div_ps(a, b); }
inline VF vmin(VF a, VF b) { return _mm512_min_ps(a, b); }  // a < b ? a : b, so b where either is NaN
inline VF vmax(VF a, VF b) { return _mm512_max_ps(a, b); }
inline VI as_int(VF x) { return _mm512_castps_si512(x); }
inline VF as_float(VI x) { return _mm512_castsi512_ps(x); }
inline VF neg(VF x) { return as_float(_mm512_xor_si512(as_int(x), _mm512_set1_epi32(INT32_MIN))); }
// lanes below n from a, the others from b
inline VF select_first(int n, VF a, VF b) { return _mm512_mask_blend_ps(first_lanes(n), b, a); }

inline __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i load_half_n(const void* p, int n) { return _mm256_maskz_loadu_epi16(first_lanes(n), p); }
inline VF widen_bf16(__m256i x) { return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline VF load_f16(const void* p) { return _mm512_cvtph_ps(load_half(p)); }
inline VF load_f16_n(const void* p, int n) { return _mm512_cvtph_ps(load_half_n(p, n)); }
inline VF load_bf16(const void* p) { return widen_bf16(load_half(p)); }
inline VF load_bf16_n(const void* p, int n) { return widen_bf16(load_half_n(p, n)); }
inline __m256i narrow_f16(VF x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline __m256i narrow_bf16(VF x) {
  const VI bits = as_int(x);
  const VI odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const VI rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const VI quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(
      _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, quiet));
}
inline void store_f16_n(uint16_t* p, VF x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_f16(x));
}
inline void store_bf16_n(uint16_t* p, VF x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_bf16(x));
}

inline VI zeroi() { return _mm512_setzero_si512(); }
inline VI set1i(int32_t x) { return _mm512_set1_epi32(x); }
inline VI loadi(const void* p) { return _mm512_loadu_si512(p); }
inline void storei(void* p, VI x) { _mm512_storeu_si512(p, x); }
inline VI addi(VI a, VI b) { return _mm512_add_epi32(a, b); }
inline VI subi(VI a, VI b) { return _mm512_sub_epi32(a, b); }
inline VI andi(VI a, VI b) { return _mm512_and_si512(a, b); }
inline VI ori(VI a, VI b) { return _mm512_or_si512(a, b); }
inline VI maxi(VI a, VI b) { return _mm512_max_epi32(a, b); }
template <int N>
inline VI shl(VI x) {
  return _mm512_slli_epi32(x, N);
}
template <int N>
inline VI shr(VI x) {
  return _mm512_srli_epi32(x, N);
}
template <int N>
inline VI sar(VI x) {
  return _mm512_srai_epi32(x, N);
}
inline VF to_float(VI x) { return _mm512_cvtepi32_ps(x); }
inline VI to_int(VF x) { return _mm512_cvtps_epi32(x); }  // nearest even (the default mode)
// p 2^n as simd_plain.inl has it
inline VF times_power(VF p, VF n) { return _mm512_scalef_ps(p, n); }

// What a register tile of many tokens takes through K at a time: all 16 lanes.
using VP = VF;
inline constexpr int kPasses = 1;
inline VP load_part(const float* p) { return load(p); }
inline void store_part(float* p, VP x) { store(p, x); }

// acc[r][t] = fma(w[r], x[t], acc[r][t]); w: [R][16], x: [T][16].
template <int R, int T>
[[gnu::always_inline]] inline void fma_outer(VP (&acc)[R][T], const float* w, const float* x) {
  VF weights[R];
  unroll<R>([&](auto r) { weights[r] = load(w + r * 16); });
  unroll<T>([&](auto t) {
    const VF v = load(x + t * 16);
    unroll<R>([&](auto r) { acc[r][t] = fma(weights[r], v, acc[r][t]); });
  });
}

// The fixed reduction tree: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
inline float reduce_add(VF x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
// The same of 16 rows that begin `stride` floats apart: halves, quarters, pairs and elements of two vectors
// at a time, in the order of rows that leaves row r in lane r.
template <VF (&Join)(VF, VF)>
inline VF tree_of_rows(const float* rows, int64_t stride) {
  VF eighths[2];
  unroll<2>([&](auto upper) {
    VF fours[2];
    unroll<2>([&](auto second) {
      const float* at = rows + (2 * upper + second) * stride;
      VF pair[2];
      unroll<2>([&](auto i) {
        const VF a = load(at + 8 * i * stride), b = load(at + (8 * i + 4) * stride);
        pair[i] = Join(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
      });
      fours[second] =
          Join(_mm512_shuffle_f32x4(pair[0], pair[1], 0x88), _mm512_shuffle_f32x4(pair[0], pair[1], 0xdd));
    });
    eighths[upper] =
        Join(_mm512_shuffle_ps(fours[0], fours[1], 0x44), _mm512_shuffle_ps(fours[0], fours[1], 0xee));
  });
  return Join(_mm512_shuffle_ps(eighths[0], eighths[1], 0x88),
              _mm512_shuffle_ps(eighths[0], eighths[1], 0xdd));
}
// Of the first `count` at least; the others have to be there.
inline VF reduce_rows(const float* rows, int64_t stride, int) { return tree_of_rows<add>(rows, stride); }
inline VF max_rows(const float* rows, int64_t stride, int) { return tree_of_rows<vmax>(rows, stride); }
inline VF add_as_ints(VF a, VF b) { return as_float(addi(as_int(a), as_int(b))); }
inline VF max_as_ints(VF a, VF b) { return as_float(maxi(as_int(a), as_int(b))); }
template <VF (&Join)(VF, VF)>
inline VI tree_of_int_rows(const int32_t (*rows)[16]) {
  return as_int(tree_of_rows<Join>(reinterpret_cast<const float*>(rows), 16));
}
inline VI add_int_rows(const int32_t (*rows)[16], int) { return tree_of_int_rows<add_as_ints>(rows); }
inline VI max_int_rows(const int32_t (*rows)[16], int) { return tree_of_int_rows<max_as_ints>(rows); }

inline VB loadb(const void* p) { return _mm512_loadu_si512(p); }
inline void storeb(void* p, VB x) { _mm512_storeu_si512(p, x); }
// Four bytes of each of `count` rows that are `stride` bytes apart, 15 * stride < 2^31; the other lanes are
// zero.
inline VB gather_bytes(const uint8_t* p, int64_t stride, int count) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i at = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(stride)));
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), first_lanes(count), at, p, 1);
}
// The lower halves of the words.
inline void store_halves(void* p, VI x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
}
// Every byte shifted left by S (right by -S), then masked; the mask takes away what crossed from the
// neighbour.
template <int S, int Mask>
inline VB shift_mask(VB x) {
  if constexpr (S > 0) x = _mm512_slli_epi16(x, S);
  if constexpr (S < 0) x = _mm512_srli_epi16(x, -S);
  return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(Mask)));
}

// base, and the bits of x so shifted and masked
template <int S, int Mask>
inline VB or_shift_mask(VB base, VB x) {
  if constexpr (S > 0) x = _mm512_slli_epi16(x, S);
  if constexpr (S < 0) x = _mm512_srli_epi16(x, -S);
  return _mm512_ternarylogic_epi32(base, x, _mm512_set1_epi8(static_cast<char>(Mask)), 0xf8);
}
inline VI as_words(VB x) { return x; }

inline VI broadcast_word(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// sum + the products of the codes and four bytes of x, which the instruction spreads itself: GCC 12 would
// load them by one of its own. Volatile, so that what is asked for between products stays between them.
inline VI dot_four(VI sum, VB codes, const uint8_t* x) {
  typedef uint8_t Four[4];
  asm volatile("vpdpbusd %2%{1to16%}, %1, %0"
               : "+v"(sum)
               : "v"(codes), "m"(*reinterpret_cast<const Four*>(x)));
  return sum;
}

// sum += the exact integer products of N k4-groups of one token, group First on: codes(Index<group>{}). 16
// bits: q = 256 high + low by two chains, each of which would wait for its latency alone.
// between(Index<group>{}) is called with each.
template <int First, int N, bool Eight, int Bits, class Codes, class Between>
[[gnu::always_inline]] inline void dot_packed(VI& sum, const Codes& codes, const uint8_t* x,
                                              const Between& between) {
  x += First * 4;
  VI high = Eight ? sum : zeroi();
  unroll<N>([&](auto i) GRETA_INLINE {
    constexpr Index<First + i.value> kGroup;
    const VB q = codes(kGroup);
    high = dot_four(high, q, x + i * 4);
    if constexpr (!Eight) sum = dot_four(sum, q, x + 32 + i * 4);
    between(kGroup);
  });
  sum = Eight ? high : _mm512_add_epi32(_mm512_slli_epi32(high, 8), sum);
}

// Unpacked codes: bytes as they come in 8-bit mode, else int16, a k4-group [even bytes, odd bytes].
constexpr int code_class(bool eight, int) { return eight ? 8 : 0; }
template <bool Eight, int Bits>
inline constexpr int kCodeBytes = Eight ? 512 : 1024;
template <bool Eight, int Bits>
inline void store_codes(uint8_t* unit, int i, VB codes) {
  if constexpr (Eight) {
    storeb(unit + 64 * i, codes);
  } else {
    storeb(unit + 128 * i, _mm512_and_si512(codes, _mm512_set1_epi16(0xff)));
    storeb(unit + 128 * i + 64, _mm512_srli_epi16(codes, 8));
  }
}
// sum[r][t] += the exact integer products of N k4-groups of R groups (kPanelBytes apart) and T tokens. A
// register of x serves R products, so that loads are fewer than products.
template <int R, int T, int N, bool Eight, int Bits>
[[gnu::always_inline]] inline void dot_unpacked(VI (&sum)[R][T], const uint8_t* codes, int first,
                                                const uint8_t* x) {
  constexpr int kVectors = Eight ? 1 : 2;  // of a k4-group
  codes += first * kVectors * 64;
  x += first * T * kVectors * 4;
  unroll<N * kVectors>([&](auto i) {
    VB w[R];
    unroll<R>([&](auto r) { w[r] = loadb(codes + r * kPanelBytes + 64 * i); });
    unroll<T>([&](auto t) {
      const VB v = broadcast_word(x + ((i / kVectors * T + t) * kVectors + i % kVectors) * 4);
      unroll<R>([&](auto r) {
        if constexpr (Eight) {
          sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w[r], v);
        } else {
          sum[r][t] = _mm512_dpwssd_epi32(sum[r][t], w[r], v);
        }
      });
    });
  });
}

// Writes the 32 integers of one unit and token (t of T) in the order that the products read (kXBytes).
template <bool Eight>
inline void place_unit(VI a, VI b, int64_t t, int64_t tokens, uint8_t* unit) {
  const auto half_at = [](uint8_t* p) { return reinterpret_cast<__m256i*>(p); };
  alignas(32) uint8_t bytes[64];
  if (!Eight && tokens > 1) {
    const __m256i even_first = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4,
                                                5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    _mm256_store_si256(half_at(bytes), _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(a), even_first));
    _mm256_store_si256(half_at(bytes + 32), _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(b), even_first));
    for (int i = 0; i < 8; ++i) __builtin_memcpy(unit + (i * tokens + t) * 8, bytes + 8 * i, 8);
    return;
  }
  if constexpr (Eight) {
    _mm256_store_si256(half_at(bytes), _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a)));
    for (int i = 0; i < 8; ++i) __builtin_memcpy(unit + (i * tokens + t) * 4, bytes + 4 * i, 4);
  } else {
    // q = 256 high + low, low = the signed last byte. Packing goes by quarters of a vector.
    const __m512i words = _mm512_packs_epi32(a, b);
    const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(words, _mm512_set1_epi16(128)), 8);
    const __m512i low = _mm512_srai_epi16(_mm512_slli_epi16(words, 8), 8);
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(unit, _mm512_permutexvar_epi32(in_order, _mm512_packs_epi16(high, low)));
  }
}
