// Products of integers where AVX2 has no VPDPBUSD: VPMADDUBSW and VPMADDWD.
inline constexpr int kTileGroups = 1, kTileTokens = 4;  // register tile of the integer matmul
inline constexpr const char* kIsaName = "avx2";
// Rounded activations of a unit of T tokens: [k / 4][T] of four int16: k0, k2, k1, k3 (VPMADDWD pairs).
// Before them, as bytes in their own order for VPMADDUBSW: in 8-bit mode the same; of one token alone [plane:
// high, low][32].
template <bool Eight>
inline constexpr int kXBytes = Eight ? 96 : 64;
template <bool Eight>
inline constexpr int kXBytesOfOne = Eight ? 96 : 128;

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
