// Products of integers by VPDPBUSD and VPDPWSSD, in 512 and in 256 bits.

// Rounded activations of a unit of T tokens: 16-bit mode [k / 4][T] of four int16: k0, k2, k1, k3 (VPDPWSSD
// pairs), one token alone [plane: high, low][32] signed bytes (VPDPBUSD on codes as they come); 8-bit mode
// [k / 4][T][4] bytes.
template <bool Eight>
inline constexpr int kXBytes = Eight ? 32 : 64;
template <bool Eight>
inline constexpr int kXBytesOfOne = kXBytes<Eight>;

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
  sum = Eight ? high : addi(shl<8>(high), sum);
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
    storeb(unit + 128 * i, even_bytes(codes));
    storeb(unit + 128 * i + 64, odd_bytes(codes));
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
      const auto v = broadcast_word(x + ((i / kVectors * T + t) * kVectors + i % kVectors) * 4);
      unroll<R>(
          [&](auto r) { sum[r][t] = Eight ? dot_bytes(sum[r][t], w[r], v) : dot_words(sum[r][t], w[r], v); });
    });
  });
}

// Writes the 32 integers of one unit and token (t of T) in the order that the products read (kXBytes).
template <bool Eight>
inline void place_unit(VI a, VI b, int64_t t, int64_t tokens, uint8_t* unit) {
  const auto put = [](uint8_t* to, VI q) {
    const __m128i bytes = bytes_of(q);
    __builtin_memcpy(to, &bytes, 16);
  };
  alignas(32) uint8_t bytes[64];
  if (Eight) {
    put(bytes, a);
    put(bytes + 16, b);
    for (int i = 0; i < 8; ++i) __builtin_memcpy(unit + (i * tokens + t) * 4, bytes + 4 * i, 4);
  } else if (tokens == 1) {  // q = 256 high + low, low = the signed last byte
    const VI half = set1i(128);
    put(unit, sar<8>(addi(a, half)));
    put(unit + 16, sar<8>(addi(b, half)));
    put(unit + 32, sar<24>(shl<24>(a)));
    put(unit + 48, sar<24>(shl<24>(b)));
  } else {
    const __m256i even_first = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4,
                                                5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m256i qa = _mm256_shuffle_epi8(words_of(a), even_first);
    const __m256i qb = _mm256_shuffle_epi8(words_of(b), even_first);
    __builtin_memcpy(bytes, &qa, 32);
    __builtin_memcpy(bytes + 32, &qb, 32);
    for (int i = 0; i < 8; ++i) __builtin_memcpy(unit + (i * tokens + t) * 8, bytes + 8 * i, 8);
  }
}
