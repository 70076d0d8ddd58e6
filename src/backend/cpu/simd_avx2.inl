// 16 virtual lanes in two ymm. The three simd_*.inl files define the same names; included inside an unnamed
// namespace.
struct VF {
  __m256 a, b;
};
struct VI {
  __m256i a, b;
};
using VB = VI;  // 64 bytes: byte 4 * row + j

inline constexpr int kFloatRows = 2, kFloatTokens = 3;
inline constexpr int kStripsOfOne = 2;    // of kFloatRows rows: what one token takes side by side
inline constexpr int kTileStrips = 2;     // the same of a register tile of many tokens
inline constexpr int kTogetherRows = 32;  // of a block of tokens: its sums take 192 KiB of the second cache
inline constexpr int kKeyVectors = 1, kQueries = 4;
inline constexpr int kTileGroups = 1, kTileTokens = 4;  // register tile of the integer matmul
inline constexpr const char* kIsaName = "avx2";
// Rounded activations of a unit of T tokens: [k / 4][T] of four int16: k0, k2, k1, k3 (VPMADDWD pairs).
// Before them, as bytes in their own order for VPMADDUBSW: in 8-bit mode the same; of one token alone [plane:
// high, low][32].
template <bool Eight>
inline constexpr int kXBytes = Eight ? 96 : 64;
template <bool Eight>
inline constexpr int kXBytesOfOne = Eight ? 96 : 128;

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

// What a register tile of many tokens takes through K at a time: eight of the 16 lanes, then the other eight,
// so that twelve sums, three x and a weight fill the 16 registers: 7 loads for 12 products. (All 16 at once,
// two rows: 10.)
using VP = __m256;
inline constexpr int kPasses = 2;
inline VP load_part(const float* p) { return _mm256_loadu_ps(p); }
inline void store_part(float* p, VP x) { _mm256_storeu_ps(p, x); }

// acc[r][t] = fma(w[r], x[t], acc[r][t]) of a pass's lanes; w: [R][16], x: [T][16], both from these lanes on.
template <int R, int T>
[[gnu::always_inline]] inline void fma_outer(VP (&acc)[R][T], const float* w, const float* x) {
  VP v[T];
  unroll<T>([&](auto t) GRETA_INLINE {
    v[t] = load_part(x + t * 16);
    asm("" : "+x"(v[t]));  // or GCC loads it once for each row
  });
  unroll<R>([&](auto r) GRETA_INLINE {
    VP weights = load_part(w + r * 16);
    asm("" : "+x"(weights));
    unroll<T>([&](auto t) GRETA_INLINE { acc[r][t] = _mm256_fmadd_ps(weights, v[t], acc[r][t]); });
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

// Even and odd bytes of a row as int16 pairs, so that a 32-bit lane stays with its row: [even, odd][low, high
// rows].
struct Words {
  __m256i even_a, even_b, odd_a, odd_b;
};
inline Words words_of(VB codes) {
  const __m256i bytes = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(codes.a, bytes), _mm256_and_si256(codes.b, bytes), _mm256_srli_epi16(codes.a, 8),
          _mm256_srli_epi16(codes.b, 8)};
}
inline __m256i add_madd(__m256i sum, __m256i a, __m256i b) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  asm("" : "+x"(sum));  // or GCC adds products to each other first and runs out of registers
  return sum;
}
inline __m256i add_words(__m256i sum, __m256i x) {
  sum = _mm256_add_epi16(sum, x);
  asm("" : "+x"(sum));
  return sum;
}

// How unpacked codes are kept: as bytes (in 8-bit mode, up to 6 bits), whose pairs of products add up in
// int16 over this many k4-groups at most (two products of a code and -128 a group and lane); 0: as int16
// words.
constexpr int code_class(bool eight, int bits) {
  if (!eight || bits > 6) return 0;
  return bits == 6 ? 2 : bits == 5 ? 4 : 8;
}
static_assert(8 * 15 * 256 < 32768 && 4 * 31 * 256 < 32768 && 2 * 63 * 256 < 32768);

// sum[t] += the exact integer products of N k4-groups, at most as many as int16 holds: codes(i) are the bytes
// of group i, x: [N][T][4].
template <int T, int N, class Codes>
[[gnu::always_inline]] inline void dot_bytes(VI* sum, const Codes& codes, const uint8_t* x) {
  const __m256i ones = _mm256_set1_epi16(1);
  VI part[T];
  const VB w = codes(0);
  unroll<T>([&](auto t) {
    const __m256i four = broadcast_word(x + t * 4);
    part[t] = {_mm256_maddubs_epi16(w.a, four), _mm256_maddubs_epi16(w.b, four)};
  });
  unroll<N - 1>([&](auto before) GRETA_INLINE {
    const VB v = codes(before + 1);
    unroll<T>([&](auto t) {
      const __m256i four = broadcast_word(x + ((before + 1) * T + t) * 4);
      part[t].a = add_words(part[t].a, _mm256_maddubs_epi16(v.a, four));
      part[t].b = add_words(part[t].b, _mm256_maddubs_epi16(v.b, four));
    });
  });
  unroll<T>([&](auto t) {
    sum[t].a = add_madd(sum[t].a, part[t].a, ones);
    sum[t].b = add_madd(sum[t].b, part[t].b, ones);
  });
}

// sum += the exact integer products of N k4-groups of one token, group First on: codes(Index<group>{}). Codes
// of up to 6 bits stay bytes: in 16-bit mode q = 256 high + low, a plane of bytes each. Group i + 4 of a unit
// comes with group i, with which it shares its bytes in most formats. between(Index<group>{}) is called with
// each.
template <int First, int N, bool Eight, int Bits, class Codes, class Between>
[[gnu::always_inline]] inline void dot_packed(VI& sum, const Codes& codes, const uint8_t* x,
                                              const Between& between) {
  constexpr int kRun = code_class(true, Bits);
  const auto each = [&](const auto& body) GRETA_INLINE {
    unroll<N>([&](auto i) GRETA_INLINE {
      constexpr Index<N == 8 ? i.value % 2 * 4 + i.value / 2 : First + i.value> kGroup;
      body(i, kGroup, codes(kGroup));
      between(kGroup);
    });
  };
  if constexpr (kRun > 0) {
    constexpr int kSome = N < kRun ? N : kRun;
    constexpr int kPlanes = Eight ? 1 : 2;
    VI part[kPlanes];
    each([&](auto i, auto group, VB q) GRETA_INLINE {
      unroll<kPlanes>([&](auto plane) GRETA_INLINE {
        const __m256i four = broadcast_word(x + plane * 32 + group * 4);
        VI& p = part[plane];
        const __m256i a = _mm256_maddubs_epi16(q.a, four), b = _mm256_maddubs_epi16(q.b, four);
        p.a = i % kSome == 0 ? a : add_words(p.a, a);
        p.b = i % kSome == 0 ? b : add_words(p.b, b);
        if constexpr (i.value % kSome == kSome - 1) {
          const __m256i factor = _mm256_set1_epi16(kPlanes == 2 && plane.value == 0 ? 256 : 1);
          sum.a = add_madd(sum.a, p.a, factor);
          sum.b = add_madd(sum.b, p.b, factor);
        }
      });
    });
  } else {
    x += Eight ? 32 : 64;
    each([&](auto, auto group, VB q) GRETA_INLINE {
      const Words w = words_of(q);
      const __m256i x02 = broadcast_word(x + group * 8), x13 = broadcast_word(x + group * 8 + 4);
      sum.a = add_madd(add_madd(sum.a, w.even_a, x02), w.odd_a, x13);
      sum.b = add_madd(add_madd(sum.b, w.even_b, x02), w.odd_b, x13);
    });
  }
}

// Unpacked codes: bytes as they come, or int16, a k4-group [even bytes, odd bytes][low, high rows].
template <bool Eight, int Bits>
inline constexpr int kCodeBytes = code_class(Eight, Bits) != 0 ? 512 : 1024;
template <bool Eight, int Bits>
inline void store_codes(uint8_t* unit, int i, VB codes) {
  if constexpr (code_class(Eight, Bits) != 0) {
    storeb(unit + 64 * i, codes);
  } else {
    const Words w = words_of(codes);
    storei(unit + 128 * i, {w.even_a, w.even_b});
    storei(unit + 128 * i + 64, {w.odd_a, w.odd_b});
  }
}
// The same for T tokens; words pair of k by pair: sums, two registers of codes, one of x and the products
// fit 16.
template <int R, int T, int N, bool Eight, int Bits>
[[gnu::always_inline]] inline void dot_unpacked(VI (&sums)[R][T], const uint8_t* codes, int first,
                                                const uint8_t* x) {
  static_assert(R == 1);
  VI(&sum)[T] = sums[0];
  constexpr int kRun = code_class(Eight, Bits);
  if constexpr (kRun > 0) {
    constexpr int kSome = N < kRun ? N : kRun;
    for (int group = first; group < first + N; group += kSome)
      dot_bytes<T, kSome>(
          sum, [&](int i) { return loadb(codes + 64 * (group + i)); }, x + group * T * 4);
  } else {
    codes += first * 128;
    x += first * T * 8 + (Eight ? T * 32 : 0);
    for (int i = 0; i < N; ++i) {
      unroll<2>([&](auto pair) {
        const VI w = loadi(codes + 128 * i + 64 * pair);
        unroll<T>([&](auto t) {
          const __m256i pair_x = broadcast_word(x + (i * T + t) * 8 + 4 * pair);
          sum[t].a = add_madd(sum[t].a, w.a, pair_x);
          sum[t].b = add_madd(sum[t].b, w.b, pair_x);
        });
      });
    }
  }
}

// 16 integers that fit a byte, in their order.
inline __m128i bytes_of(VI q) {
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q.a, q.b), _mm256_setzero_si256());
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
}

// Writes the 32 integers of one unit and token (t of T) in the order that the products read (kXBytes).
template <bool Eight>
inline void place_unit(VI a, VI b, int64_t t, int64_t tokens, uint8_t* unit) {
  const __m256i even_first = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4,
                                              5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const auto put = [](uint8_t* to, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v); };
  uint8_t* words = unit + (Eight ? 32 * tokens : tokens == 1 ? 64 : 0);
  unroll<2>([&](auto half) {
    const VI q = half == 0 ? a : b;
    alignas(16) uint8_t bytes[32];
    if constexpr (Eight) {
      put(bytes, bytes_of(q));
      for (int i = 0; i < 4; ++i)
        __builtin_memcpy(unit + ((half * 4 + i) * tokens + t) * 4, bytes + 4 * i, 4);
    } else if (tokens == 1) {  // q = 256 high + low, low = the signed last byte
      put(unit + half * 16, bytes_of(sar<8>(addi(q, set1i(128)))));
      put(unit + 32 + half * 16, bytes_of(sar<24>(shl<24>(q))));
    }
    // k4-groups 0, 2 | 1, 3 of this half
    const __m256i groups = _mm256_shuffle_epi8(_mm256_packs_epi32(q.a, q.b), even_first);
    const __m128i low = _mm256_castsi256_si128(groups), high = _mm256_extracti128_si256(groups, 1);
    put(bytes, _mm_unpacklo_epi64(low, high));
    put(bytes + 16, _mm_unpackhi_epi64(low, high));
    for (int i = 0; i < 4; ++i) __builtin_memcpy(words + ((half * 4 + i) * tokens + t) * 8, bytes + 8 * i, 8);
  });
}
