// Packed integer weights to codes and scales, in registers. A unit is 32 elements of K of 16 rows: 8 vectors
// of codes, vector i holding k = 4 i + j of row r in byte 4 r + j.

// Nibble plane: vector i (of 4) has group i in the low and group i + 4 in the high nibbles.
inline void nibbles(const uint8_t* p, VB (&codes)[8]) {
  unroll<4>([&](auto i) {
    const VB v = loadb(p + 64 * i);
    codes[i] = shift_mask<0, 0x0f>(v);
    codes[i + 4] = shift_mask<-4, 0x0f>(v);
  });
}
// One vector of 8 bit planes: bit i belongs to group i; it is moved to bit `To` of the code.
template <int To>
inline void or_bits(const uint8_t* p, VB (&codes)[8]) {
  const VB v = loadb(p);
  unroll<8>([&](auto i) { codes[i] = orb(codes[i], shift_mask<To - i.value, 1 << To>(v)); });
}
// Two vectors of pairs of bits: vector j has group 4 j + i in bits 2 i and 2 i + 1; moved to bit `To` of the
// code.
template <int To, int I>
inline VB pair_of_bits(const uint8_t* p) {
  return shift_mask<To - 2 * (I % 4), 3 << To>(loadb(p + 64 * (I / 4)));
}

template <int F>
inline void unit_codes(const uint8_t* p, VB (&codes)[8]) {
  if constexpr (F == kQ8_0) {
    unroll<8>([&](auto i) { codes[i] = loadb(p + 64 * i); });
  } else if constexpr (F == kQ2_K || F == kQ3_K) {
    unroll<8>([&](auto i) { codes[i] = pair_of_bits<0, i.value>(p); });
    if constexpr (F == kQ3_K) or_bits<2>(p + 128, codes);
  } else {
    nibbles(p, codes);
    if constexpr (F == kQ5_0 || F == kQ5_1 || F == kQ5_K) or_bits<4>(p + 256, codes);
    if constexpr (F == kQ6_K)
      unroll<8>([&](auto i) { codes[i] = orb(codes[i], pair_of_bits<4, i.value>(p + 256)); });
  }
}

// The scales of a step, loaded once; unit_scales() takes those of one unit: [sub-block of the unit].
template <int F>
struct StepScales {
  const uint8_t* p = nullptr;
  VF d, dmin;
  VI word[4];
};

template <int F>
inline StepScales<F> step_scales(const uint8_t* p) {
  StepScales<F> s;
  s.p = p;
  if constexpr (kFormats[F].super) {
    s.d = load_f16(p);
    p += 32;
    if constexpr (kFormats[F].minima) {
      s.dmin = load_f16(p);
      p += 32;
    }
    constexpr int kWords = (kFormats[F].scales - (kFormats[F].minima ? 64 : 32)) / 64;
    unroll<kWords>([&](auto i) { s.word[i] = loadi(p + 64 * i); });
  }
  return s;
}

// `bits` bits of every lane from bit `from` on
inline VI field(VI word, int from, int bits) { return andi(shr(word, from), set1i((1 << bits) - 1)); }

template <int F>
inline void unit_scales(const StepScales<F>& s, int unit, VF (&scale)[2], VF (&addend)[2]) {
  if constexpr (!kFormats[F].super) {
    const uint8_t* p = s.p + unit * kFormats[F].scales;
    scale[0] = load_f16(p);
    if constexpr (kFormats[F].minima) addend[0] = load_f16(p + 32);
  } else if constexpr (F == kQ4_K || F == kQ5_K) {
    // word 0: low nibbles of 8 scales, 1: of 8 mins, 2: their two high bits, scales first
    const VI sc = ori(field(s.word[0], 4 * unit, 4), shl(field(s.word[2], 2 * unit, 2), 4));
    const VI mn = ori(field(s.word[1], 4 * unit, 4), shl(field(s.word[2], 16 + 2 * unit, 2), 4));
    scale[0] = mul(s.d, to_float(sc));
    addend[0] = neg(mul(s.dmin, to_float(mn)));
  } else {
    unroll<2>([&](auto h) {
      const int sub = 2 * unit + h;
      if constexpr (F == kQ6_K) {  // word j: four signed bytes
        const VI word = s.word[sub / 4];
        scale[h] = mul(s.d, to_float(sar(shl(word, 24 - 8 * (sub % 4)), 24)));
      } else if constexpr (F == kQ3_K) {  // words 0, 1: low nibbles; word 2: high bits; 32 stands for 0
        const VI low = field(s.word[sub / 8], 4 * (sub % 8), 4);
        const VI sc = ori(low, shl(field(s.word[2], 2 * sub, 2), 4));
        scale[h] = mul(s.d, to_float(subi(sc, set1i(32))));
      } else {  // Q2_K: words 0, 1: nibbles of scales; 2, 3: of mins
        scale[h] = mul(s.d, to_float(field(s.word[sub / 8], 4 * (sub % 8), 4)));
        addend[h] = neg(mul(s.dmin, to_float(field(s.word[2 + sub / 8], 4 * (sub % 8), 4))));
      }
    });
  }
}

template <int F>
constexpr int64_t step_bytes(int64_t units) {
  return units * kFormats[F].quants + (kFormats[F].super ? kFormats[F].scales : units * kFormats[F].scales);
}

// body(unit of the group, its quants, the step's scales, unit of the step) for every unit in ascending order.
template <int F, class Body>
[[gnu::always_inline]] inline void each_unit(const uint8_t* group, int64_t units, const Body& body) {
  for (int64_t first = 0; first < units; first += kStepUnits) {
    const int count = units - first < kStepUnits ? static_cast<int>(units - first) : kStepUnits;
    const StepScales<F> scales = step_scales<F>(group + count * kFormats[F].quants);
    for (int u = 0; u < count; ++u) body(first + u, group + u * kFormats[F].quants, scales, u);
    group += step_bytes<F>(count);
  }
}
