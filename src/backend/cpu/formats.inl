// Packed integer weights to codes and scales, in registers. A unit is 32 elements of K of 16 rows: 8 vectors
// of codes, vector i holding k = 4 i + j of row r in byte 4 r + j.

// Group I of a nibble plane: vector i (of 4) has group i in the low and group i + 4 in the high nibbles.
template <int I>
inline VB nibble(const uint8_t* p) {
  return shift_mask<(I < 4 ? 0 : -4), 0x0f>(loadb(p + 64 * (I % 4)));
}
// A vector of 8 bit planes: bit I belongs to group I; it is moved to bit `To` of the code.
template <int I, int To>
inline VB or_bit(const uint8_t* p, VB code) {
  return or_shift_mask<To - I, 1 << To>(code, loadb(p));
}
// Group I of four groups of 6 bits in three vectors: three have the low bits of one vector each, the fourth
// the two bits above them, its highest in the first vector.
template <int I>
inline VB six(const uint8_t* p) {
  if constexpr (I < 3) return shift_mask<0, 0x3f>(loadb(p + 64 * I));
  return or_shift_mask<-6, 0x03>(or_shift_mask<-4, 0x0c>(shift_mask<-2, 0x30>(loadb(p)), loadb(p + 64)),
                                 loadb(p + 128));
}

// Group I of a unit's codes. What several groups have in common the compiler loads once, if it has registers.
template <int F, int I>
inline VB unit_code(const uint8_t* p) {
  if constexpr (F == kQ8_0) {
    return loadb(p + 64 * I);
  } else if constexpr (F == kQ2_K || F == kQ3_K) {
    const VB two = shift_mask<-2 * (I % 4), 3>(loadb(p + 64 * (I / 4)));
    if constexpr (F == kQ2_K) return two;
    return or_bit<I, 2>(p + 128, two);
  } else if constexpr (F == kQ6_K) {
    return six<I % 4>(p + I / 4 * 192);
  } else if constexpr (F == kQ5_0 || F == kQ5_1 || F == kQ5_K) {
    return or_bit<I, 4>(p + 256, nibble<I>(p));
  } else {
    return nibble<I>(p);
  }
}

// The scales of a step, unpacked once to a byte each; unit_scales() takes those of one unit: [sub-block of
// the unit].
template <int F>
struct StepScales {
  const uint8_t* p = nullptr;
  VF d, dmin;  // dmin with its sign turned: minima are added
  VI word[8];  // byte b of word j: integer scale 4 j + b of a lane's row; then the minima likewise
};

// Two words of nibbles and pairs of bits (at bit `Pair` of w) as scales: byte b of `low` and of `high`.
template <int Pair>
inline void join(VB nibble, VB pairs, VI* low, VI* high) {
  *low = as_words(or_shift_mask<4 - Pair, 0x30>(shift_mask<0, 0x0f>(nibble), pairs));
  *high = as_words(or_shift_mask<2 - Pair, 0x30>(shift_mask<-4, 0x0f>(nibble), pairs));
}

template <int F>
inline StepScales<F> step_scales(const uint8_t* p) {
  StepScales<F> s;
  s.p = p;
  if constexpr (!kFormats[F].super) return s;
  s.d = load_f16(p);
  p += 32;
  if constexpr (kFormats[F].minima) {
    s.dmin = neg(load_f16(p));
    p += 32;
  }
  if constexpr (F == kQ4_K || F == kQ5_K) {  // nibbles of 8 scales, of 8 minima, pairs of both
    const VB pairs = loadb(p + 128);
    join<0>(loadb(p), pairs, &s.word[0], &s.word[1]);
    join<4>(loadb(p + 64), pairs, &s.word[4], &s.word[5]);
  } else if constexpr (F == kQ3_K) {  // nibbles of 16 scales, pairs
    const VB pairs = loadb(p + 128);
    join<0>(loadb(p), pairs, &s.word[0], &s.word[1]);
    join<4>(loadb(p + 64), pairs, &s.word[2], &s.word[3]);
  } else if constexpr (F == kQ2_K) {  // nibbles of 16 scales, of 16 minima
    unroll<4>([&](auto i) {
      const VB nibble = loadb(p + 64 * i);
      s.word[2 * i] = as_words(shift_mask<0, 0x0f>(nibble));
      s.word[2 * i + 1] = as_words(shift_mask<-4, 0x0f>(nibble));
    });
  } else if constexpr (F == kQ6_K) {
    unroll<4>([&](auto i) { s.word[i] = loadi(p + 64 * i); });
  }
  return s;
}

// Byte B of every word.
template <int B>
inline VI byte_of(VI word) {
  const VI down = B == 0 ? word : shr<8 * B>(word);
  return B == 3 ? down : andi(down, set1i(255));
}

// Units of a step are unrolled by four: so many words of scales, bytes of which are constants, four units
// fill.
inline constexpr int kUnrolledUnits = 4;

// Of unit `unit` of the step, the unrolled one `Place`: [sub-block].
template <int F, int Place>
inline void unit_scales(const StepScales<F>& s, int unit, VF (&scale)[2], VF (&addend)[2]) {
  if constexpr (!kFormats[F].super) {
    const uint8_t* p = s.p + unit * kFormats[F].scales;
    scale[0] = load_f16(p);
    if constexpr (kFormats[F].minima) addend[0] = load_f16(p + 32);
  } else {
    constexpr int kSubs = kUnit / kFormats[F].sub;
    unroll<kSubs>([&](auto h) {
      constexpr int kByte = (kSubs * Place + h.value) % 4;
      const int index = (kSubs * unit + h) / 4;
      const VI word = s.word[index];
      if constexpr (F == kQ6_K) {  // signed
        scale[h] = mul(s.d, to_float(sar<24>(shl<24 - kByte * 8>(word))));
      } else {
        const VI byte = byte_of<kByte>(word);
        scale[h] = mul(s.d, to_float(F == kQ3_K ? subi(byte, set1i(32)) : byte));
      }
      if constexpr (kFormats[F].minima) addend[h] = mul(s.dmin, to_float(byte_of<kByte>(s.word[4 + index])));
    });
  }
}

template <int F>
constexpr int64_t step_bytes(int64_t units) {
  return units * kFormats[F].quants + (kFormats[F].super ? kFormats[F].scales : units * kFormats[F].scales);
}

// Of a step's bytes, those that fall to one unit.
template <int F>
inline constexpr int kUnitBytes = static_cast<int>(step_bytes<F>(kStepUnits) / kStepUnits);

// Asks for the lines of the unit kFar and the one kNear behind a step's unit, each line once: those of the
// eighth I with a call of ahead(Index<I>{}). A request that finds no place in the first cache's few buffers
// holds up whatever comes after it, so they are made one by one between products (a unit's at once: 5 % less,
// a step's: half the speed). Place: the unit's among those that are unrolled.
template <int F, int Place>
struct Ahead {
  const uint8_t* unit;
  template <class I>
  [[gnu::always_inline]] inline void operator()(I) const {
    constexpr int kBegin = Place * kUnitBytes<F>, kFirst = (kBegin + 63) / 64;
    constexpr int kLines = (kBegin + kUnitBytes<F> + 63) / 64 - kFirst;
    unroll<(I::value + 1) * kLines / 8 - I::value * kLines / 8>([&](auto line) GRETA_INLINE {
      const uint8_t* p = unit - kBegin + 64 * (kFirst + I::value * kLines / 8 + line);
      fetch_to_second(p + kFar);
      fetch_to_first(p + kNear);
    });
  }
};

// Units of the step that begins at unit `first`.
inline int units_of_step(int64_t units, int64_t first) {
  return units - first < kStepUnits ? static_cast<int>(units - first) : kStepUnits;
}

// The first cell (kernels.h: Activation) of a unit in the tile of `tokens` tokens that begins at `token`.
inline int64_t activation_cell(const Activation& x, int64_t unit, int64_t token, int64_t tokens) {
  const int64_t step = unit / kStepUnits * kStepUnits;
  return step * x.rows + token * units_of_step(x.units, step) + (unit - step) * tokens;
}

// body(step, its first unit, its units) for every step of a group in ascending order.
template <int F, class Body>
[[gnu::always_inline]] inline void each_step(const uint8_t* group, int64_t units, const Body& body) {
  for (int64_t first = 0; first < units; first += kStepUnits) {
    const int count = units_of_step(units, first);
    body(group, first, count);
    group += step_bytes<F>(count);
  }
}

// body(Index<place among the unrolled>{}, unit of the step, its quants, the step's scales, its Ahead) for
// every unit of a step in ascending order.
template <int F, class Body>
[[gnu::always_inline]] inline void each_unit(const uint8_t* step, int count, const Body& body) {
  const StepScales<F> scales = step_scales<F>(step + count * kFormats[F].quants);
  for (int first = 0; first < count; first += kUnrolledUnits) {
    unroll<kUnrolledUnits>([&](auto place) GRETA_INLINE {
      const int u = first + place;
      if (u >= count) return;
      body(place, u, step + u * kFormats[F].quants, scales, Ahead<F, place.value>{step + u * kUnitBytes<F>});
    });
  }
}
