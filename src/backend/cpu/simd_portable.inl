// 16 virtual lanes as plain loops. The three simd_*.inl files define the same names; included inside an
// unnamed namespace.
struct alignas(64) VF {
  float v[16];
};
struct alignas(64) VI {
  int32_t v[16];
};
struct alignas(64) VB {
  uint8_t v[64];  // byte 4 * row + j
};

inline constexpr int kFloatRows = 2, kFloatTokens = 2;
inline constexpr int kStripsOfOne = 1;    // of kFloatRows rows: what one token takes side by side
inline constexpr int kTileStrips = 1;     // the same of a register tile of many tokens
inline constexpr int kTogetherRows = 32;  // of a block of tokens: its sums take 192 KiB of the second cache
inline constexpr int kKeyVectors = 1, kQueries = 2;
inline constexpr int kTileGroups = 1, kTileTokens = 4;  // tile of the integer matmul
inline constexpr const char* kIsaName = "portable";
// Rounded activations of a unit of T tokens: [k / 4][T] of four int16: k0, k2, k1, k3, in both modes.
template <bool Eight>
inline constexpr int kXBytes = 64;
template <bool>
inline constexpr int kXBytesOfOne = 64;

template <class F>
inline VF lanes(const F& f) {
  VF r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}
template <class F>
inline VI lanesi(const F& f) {
  VI r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int32_t>(f(i));
  return r;
}
inline uint32_t u32(int32_t x) { return static_cast<uint32_t>(x); }

inline VF set1(float x) {
  return lanes([&](int) { return x; });
}
inline VF zero() { return set1(0.0f); }
inline VF load_n(const float* p, int n) {
  VF r = zero();
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
inline VF load(const float* p) {
  VF r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
inline void store(float* p, VF x) { __builtin_memcpy(p, &x, sizeof x); }
inline void store_n(float* p, VF x, int n) {
  for (int i = 0; i < n; ++i) p[i] = x.v[i];
}
inline VF fma(VF a, VF b, VF c) {
  return lanes([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline VF add(VF a, VF b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline VF sub(VF a, VF b) {
  return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline VF mul(VF a, VF b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline VF div(VF a, VF b) {
  return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
inline VF vmin(VF a, VF b) {
  return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline VF vmax(VF a, VF b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline VI as_int(VF x) { return __builtin_bit_cast(VI, x); }
inline VF as_float(VI x) { return __builtin_bit_cast(VF, x); }
inline VF neg(VF x) {
  return lanes([&](int i) { return -x.v[i]; });
}
inline VF select_first(int n, VF a, VF b) {
  return lanes([&](int i) { return i < n ? a.v[i] : b.v[i]; });
}

inline VF load_f16_n(const void* p, int n) {
  uint16_t h[16] = {};
  __builtin_memcpy(h, p, static_cast<size_t>(n) * 2);
  return lanes([&](int i) { return widen_f16_bits(h[i]); });
}
inline VF load_bf16_n(const void* p, int n) {
  uint16_t h[16] = {};
  __builtin_memcpy(h, p, static_cast<size_t>(n) * 2);
  return as_float(lanesi([&](int i) { return static_cast<uint32_t>(h[i]) << 16; }));
}
inline VF load_f16(const void* p) { return load_f16_n(p, 16); }
inline VF load_bf16(const void* p) { return load_bf16_n(p, 16); }
inline void store_f16_n(uint16_t* p, VF x, int n) {
  for (int i = 0; i < n; ++i) p[i] = narrow_f16_bits(__builtin_bit_cast(uint32_t, x.v[i]));
}
inline void store_bf16_n(uint16_t* p, VF x, int n) {
  for (int i = 0; i < n; ++i) p[i] = narrow_bf16_bits(__builtin_bit_cast(uint32_t, x.v[i]));
}

inline VI set1i(int32_t x) {
  return lanesi([&](int) { return x; });
}
inline VI zeroi() { return set1i(0); }
inline VI loadi(const void* p) {
  VI r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
inline void storei(void* p, VI x) { __builtin_memcpy(p, &x, sizeof x); }
inline VI addi(VI a, VI b) {
  return lanesi([&](int i) { return u32(a.v[i]) + u32(b.v[i]); });
}
inline VI subi(VI a, VI b) {
  return lanesi([&](int i) { return u32(a.v[i]) - u32(b.v[i]); });
}
inline VI andi(VI a, VI b) {
  return lanesi([&](int i) { return a.v[i] & b.v[i]; });
}
inline VI ori(VI a, VI b) {
  return lanesi([&](int i) { return a.v[i] | b.v[i]; });
}
inline VI maxi(VI a, VI b) {
  return lanesi([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <int N>
inline VI shl(VI x) {
  return lanesi([&](int i) { return u32(x.v[i]) << N; });
}
template <int N>
inline VI shr(VI x) {
  return lanesi([&](int i) { return u32(x.v[i]) >> N; });
}
template <int N>
inline VI sar(VI x) {
  return lanesi([&](int i) { return x.v[i] >> N; });
}
inline VF to_float(VI x) {
  return lanes([&](int i) { return static_cast<float>(x.v[i]); });
}
// Nearest even for |x| < 2^22, which is all that is asked of it: adding 1.5 * 2^23 leaves the integer in the
// low bits.
inline VI to_int(VF x) {
  return lanesi([&](int i) { return __builtin_bit_cast(int32_t, x.v[i] + 12582912.0f) - 0x4b400000; });
}
inline int32_t reduce_addi(VI x) {
  int32_t sum = 0;
  for (const int32_t value : x.v) sum += value;
  return sum;
}
inline int32_t reduce_maxi(VI x) {
  int32_t most = x.v[0];
  for (const int32_t value : x.v) most = value > most ? value : most;
  return most;
}
// What a register tile of many tokens takes through K at a time: all 16 lanes.
using VP = VF;
inline constexpr int kPasses = 1;
inline VP load_part(const float* p) { return load(p); }
inline void store_part(float* p, VP x) { store(p, x); }

// acc[r][t] = fma(w[r], x[t], acc[r][t]); w: [R][16], x: [T][16].
template <int R, int T>
inline void fma_outer(VP (&acc)[R][T], const float* w, const float* x) {
  VF weights[R];
  unroll<R>([&](auto r) { weights[r] = load(w + r * 16); });
  unroll<T>([&](auto t) {
    const VF v = load(x + t * 16);
    unroll<R>([&](auto r) { acc[r][t] = fma(weights[r], v, acc[r][t]); });
  });
}

// The fixed reduction tree: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
inline float reduce_add(VF x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x.v[i] = x.v[i] + x.v[i + width];
  }
  return x.v[0];
}
inline float reduce_max(VF x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x.v[i] = x.v[i] > x.v[i + width] ? x.v[i] : x.v[i + width];
  }
  return x.v[0];
}

inline VB loadb(const void* p) {
  VB r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
inline void storeb(void* p, VB x) { __builtin_memcpy(p, &x, sizeof x); }
// Four bytes of each of `count` rows that are `stride` bytes apart; the other lanes are zero.
inline VB gather_bytes(const uint8_t* p, int64_t stride, int count) {
  VB r = {};
  for (int i = 0; i < count; ++i) __builtin_memcpy(r.v + 4 * i, p + i * stride, 4);
  return r;
}
// The lower halves of the words.
inline void store_halves(void* p, VI x) {
  uint16_t half[16];
  for (int i = 0; i < 16; ++i) half[i] = static_cast<uint16_t>(x.v[i]);
  __builtin_memcpy(p, half, sizeof half);
}
inline VB orb(VB a, VB b) {
  for (int i = 0; i < 64; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] | b.v[i]);
  return a;
}
template <int S, int Mask>
inline VB shift_mask(VB x) {
  for (int i = 0; i < 64; ++i) {
    x.v[i] = static_cast<uint8_t>((S >= 0 ? x.v[i] << (S >= 0 ? S : 0) : x.v[i] >> (S < 0 ? -S : 0)) & Mask);
  }
  return x;
}

// base, and the bits of x so shifted and masked
template <int S, int Mask>
inline VB or_shift_mask(VB base, VB x) {
  return orb(base, shift_mask<S, Mask>(x));
}
inline VI as_words(VB x) { return __builtin_bit_cast(VI, x); }

// sum[t] += the exact integer products of N k4-groups, source(i) being the codes of group first + i.
template <int T, int N, bool Eight, class Source>
inline void dot(VI* sum, const Source& source, int first, const uint8_t* x) {
  for (int i = 0; i < N; ++i) {
    const VB codes = source(first + i);
    int16_t even[32], odd[32];
    for (int r = 0; r < 32; ++r) {
      even[r] = codes.v[2 * r];
      odd[r] = codes.v[2 * r + 1];
    }
    for (int t = 0; t < T; ++t) {
      int16_t q[4];
      __builtin_memcpy(q, x + ((first + i) * T + t) * 8, 8);
      for (int r = 0; r < 16; ++r) {
        sum[t].v[r] +=
            even[2 * r] * q[0] + even[2 * r + 1] * q[1] + odd[2 * r] * q[2] + odd[2 * r + 1] * q[3];
      }
    }
  }
}

template <int First, int N, bool Eight, int Bits, class Codes, class Between>
inline void dot_packed(VI& sum, const Codes& codes, const uint8_t* x, const Between& between) {
  VB all[8];
  unroll<N>([&](auto i) {
    constexpr Index<First + i.value> kGroup;
    all[kGroup] = codes(kGroup);
    between(kGroup);
  });
  dot<1, N, Eight>(
      &sum, [&](int i) { return all[i]; }, First, x);
}
// Unpacked codes: bytes, as they come.
constexpr int code_class(bool, int) { return 8; }
template <bool Eight, int Bits>
inline constexpr int kCodeBytes = 512;
template <bool Eight, int Bits>
inline void store_codes(uint8_t* unit, int i, VB codes) {
  storeb(unit + 64 * i, codes);
}
template <int R, int T, int N, bool Eight, int Bits>
inline void dot_unpacked(VI (&sum)[R][T], const uint8_t* codes, int first, const uint8_t* x) {
  static_assert(R == 1);
  dot<T, N, Eight>(
      sum[0], [&](int i) { return loadb(codes + 64 * i); }, first, x);
}

// Writes the 32 integers of one unit and token (t of T) in the order that dot() reads: [k / 4][T] of four
// int16: k0, k2, k1, k3.
template <bool Eight>
inline void place_unit(VI a, VI b, int64_t t, int64_t tokens, uint8_t* unit) {
  for (int i = 0; i < 8; ++i) {
    const int32_t* q = (i < 4 ? a : b).v + i % 4 * 4;
    const int16_t word[4] = {static_cast<int16_t>(q[0]), static_cast<int16_t>(q[2]),
                             static_cast<int16_t>(q[1]), static_cast<int16_t>(q[3])};
    __builtin_memcpy(unit + (i * tokens + t) * 8, word, 8);
  }
}
