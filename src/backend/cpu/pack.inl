// The file's blocks to packed groups (formats.inl reads them; packed.h). A lane owns a row here, too: four
// consecutive bytes of sixteen rows are one vector, in which a file's codes are moved to where the kernels
// want them. The file's blocks of K-quants hold `part` p of 32 elements where the packed group has unit p.

// Up to 16 rows of file blocks, `stride` bytes apart; the lanes past `count` are zero.
struct FileRows {
  const uint8_t* p;
  int64_t stride;
  int count;
  VB bytes(int64_t at) const { return gather_bytes(p + at, stride, count); }  // at .. at + 3 of every row
};

// A bit of each word goes to the place whose number has the bits P and Q of its own number exchanged.
template <int P, int Q>
inline VI exchange_places(VI x) {
  constexpr auto moved = [] {
    uint32_t mask = 0;
    for (uint32_t i = 0; i < 32; ++i) mask |= (~i >> P & i >> Q & 1u) << i;
    return mask;
  }();
  constexpr int kBy = (1 << P) - (1 << Q);
  const VI low = set1i(static_cast<int32_t>(moved)),
           rest = set1i(static_cast<int32_t>(~(moved | moved << kBy)));
  return ori(andi(x, rest), ori(shl<kBy>(andi(x, low)), andi(shr<kBy>(x), low)));
}

// The fifth bits of 32 elements, bit k being k's, to planes: bit i of byte j is that of k = 4 i + j.
inline VI planes_of_bits(VI x) {
  return exchange_places<1, 0>(exchange_places<2, 1>(exchange_places<3, 0>(exchange_places<4, 1>(x))));
}

// Two bits at bit `From` of four vectors, those of one after the other.
template <int From>
inline VB pairs_of(const VB* x) {
  const VB two = or_shift_mask<2 - From, 0x0c>(shift_mask<-From, 0x03>(x[0]), x[1]);
  return or_shift_mask<6 - From, 0xc0>(or_shift_mask<4 - From, 0x30>(two, x[2]), x[3]);
}

// Bit `From` of eight vectors, those of one after the other.
template <int From>
inline VB plane_of(const VB (&x)[8]) {
  VB plane = shift_mask<-From, 1>(x[0]);
  unroll<7>([&](auto i) { plane = or_shift_mask<i + 1 - From, 2 << i>(plane, x[i + 1]); });
  return plane;
}

inline void load_bytes(const FileRows& rows, int64_t at, VB (&to)[8]) {
  unroll<8>([&](auto i) { to[i] = rows.bytes(at + 4 * i); });
}

// ---- blocks of 32 elements
// ----------------------------------------------------------------------------------------------------------

template <int F>
inline void pack_unit(const FileRows& rows, uint8_t* quants, uint8_t* scales) {
  constexpr bool kFive = F == kQ5_0 || F == kQ5_1;
  const VI head = as_words(rows.bytes(0));  // d, and m where there is one
  store_halves(scales, head);
  int64_t at = 2;
  if constexpr (kFormats[F].minima) {
    store_halves(scales + 32, shr<16>(head));
    at += 2;
  }
  if constexpr (kFive) {
    storei(quants + 256, planes_of_bits(as_words(rows.bytes(at))));
    at += 4;
  }
  if constexpr (F == kQ8_0) {  // q + 128
    const VI top = set1i(static_cast<int32_t>(0x80808080));
    unroll<8>([&](auto i) {
      const VI q = as_words(rows.bytes(at + 4 * i));
      storei(quants + 64 * i, subi(ori(q, top), andi(q, top)));
    });
  } else {  // the file's nibbles: elements i and i + 16
    unroll<4>([&](auto i) { storeb(quants + 64 * i, rows.bytes(at + 4 * i)); });
  }
}

// ---- super-blocks
// ----------------------------------------------------------------------------------------------------------

// Nibbles at bit `From` of 32 elements, groups i and i + 4 beside each other.
template <int From>
inline void pack_nibbles(const VB (&x)[8], uint8_t* to) {
  unroll<4>([&](auto i) {
    storeb(to + 64 * i, or_shift_mask<4 - From, 0xf0>(shift_mask<-From, 0x0f>(x[i]), x[i + 4]));
  });
}

template <int F>
inline void pack_pairs(const FileRows& rows, int64_t at, uint8_t* to) {  // Q2_K, Q3_K
  unroll<2>([&](auto half) {
    VB x[8];
    load_bytes(rows, at + 32 * half, x);
    unroll<4>([&](auto part) {
      unroll<2>([&](auto j) {
        storeb(to + (4 * half + part) * kFormats[F].quants + 64 * j, pairs_of<2 * part.value>(x + 4 * j));
      });
    });
  });
}

// The highest bits of a super-block's codes behind the other bits of each unit.
template <int F>
inline void pack_planes(const FileRows& rows, int64_t at, uint8_t* to) {  // Q3_K, Q5_K
  VB x[8];
  load_bytes(rows, at, x);
  unroll<8>([&](auto part) {
    storeb(to + part * kFormats[F].quants + (F == kQ3_K ? 128 : 256), plane_of<part.value>(x));
  });
}

template <int F>
inline void pack_nibble_units(const FileRows& rows, int64_t at, uint8_t* to) {  // Q4_K, Q5_K
  unroll<4>([&](auto pair) {
    VB x[8];
    load_bytes(rows, at + 32 * pair, x);
    pack_nibbles<0>(x, to + 2 * pair * kFormats[F].quants);
    pack_nibbles<4>(x, to + (2 * pair + 1) * kFormats[F].quants);
  });
}

// Groups 4 j .. 4 j + 3 of four parts of a half, low: [2][4] (parts 0, 2 and 1, 3 share one), high: [4].
template <int Part>
inline void pack_sixes(const VB (&low)[2][4], const VB (&high)[4], uint8_t* to) {
  VB code[4];
  unroll<4>([&](auto i) {
    code[i] = or_shift_mask<4 - 2 * Part, 0x30>(shift_mask<-4 * (Part / 2), 0x0f>(low[Part % 2][i]), high[i]);
  });
  unroll<3>([&](auto v) { storeb(to + 64 * v, or_shift_mask<2 + 2 * v.value, 0xc0>(code[v], code[3])); });
}

inline void pack_sixes(const FileRows& rows, uint8_t* to) {  // Q6_K
  for (int half = 0; half < 2; ++half) {
    for (int j = 0; j < 2; ++j) {
      VB low[2][4], high[4];
      unroll<4>([&](auto i) {
        low[0][i] = rows.bytes(64 * half + 16 * j + 4 * i);
        low[1][i] = rows.bytes(64 * half + 32 + 16 * j + 4 * i);
        high[i] = rows.bytes(128 + 32 * half + 16 * j + 4 * i);
      });
      unroll<4>([&](auto part) {
        pack_sixes<part.value>(low, high, to + (4 * half + part) * kFormats[kQ6_K].quants + 192 * j);
      });
    }
  }
}

// The integer scales as the words of step_scales().
template <int F>
inline void pack_scale_words(const FileRows& rows, uint8_t* to) {
  const auto join_low = [](VB a, VB b) { return or_shift_mask<4, 0xf0>(shift_mask<0, 0x0f>(a), b); };
  const auto join_high = [](VB a, VB b) { return or_shift_mask<0, 0xf0>(shift_mask<-4, 0x0f>(a), b); };
  if constexpr (F == kQ2_K) {
    unroll<2>([&](auto i) {
      const VB a = rows.bytes(8 * i), b = rows.bytes(8 * i + 4);
      storeb(to + 64 * i, join_low(a, b));
      storeb(to + 128 + 64 * i, join_high(a, b));
    });
  } else if constexpr (F == kQ3_K) {
    const VB a = rows.bytes(96), b = rows.bytes(100);
    storeb(to, join_low(a, b));
    storeb(to + 64, join_high(a, b));
    storeb(to + 128, rows.bytes(104));
  } else if constexpr (F == kQ6_K) {
    unroll<4>([&](auto i) { storeb(to + 64 * i, rows.bytes(192 + 4 * i)); });
  } else {  // scales 0 to 3 and minima 0 to 3 with the high bits of the others, then those
    const VB sc = rows.bytes(4), mn = rows.bytes(8), rest = rows.bytes(12);
    storeb(to, join_low(sc, rest));
    storeb(to + 64, or_shift_mask<0, 0xf0>(shift_mask<0, 0x0f>(mn), rest));
    storeb(to + 128, join_high(sc, mn));
  }
}

template <int F>
inline void pack_super(const FileRows& rows, uint8_t* to) {
  if constexpr (F == kQ2_K || F == kQ3_K) pack_pairs<F>(rows, F == kQ2_K ? 16 : 32, to);
  if constexpr (F == kQ4_K || F == kQ5_K) pack_nibble_units<F>(rows, F == kQ4_K ? 16 : 48, to);
  if constexpr (F == kQ3_K || F == kQ5_K) pack_planes<F>(rows, F == kQ3_K ? 0 : 16, to);
  if constexpr (F == kQ6_K) pack_sixes(rows, to);
  to += kStepUnits * kFormats[F].quants;
  if constexpr (kFormats[F].minima) {
    const VI both = as_words(rows.bytes(F == kQ2_K ? 80 : 0));
    store_halves(to, both);
    store_halves(to + 32, shr<16>(both));
    to += 64;
  } else {  // d ends the block
    store_halves(to, shr<16>(as_words(rows.bytes(kFormats[F].file_bytes - 4))));
    to += 32;
  }
  pack_scale_words<F>(rows, to);
}

template <int F>
void pack_group(const uint8_t* first_row, int64_t row_bytes, int count, int64_t units, uint8_t* to) {
  constexpr FormatShape kFormat = kFormats[F];
  FileRows rows{first_row, row_bytes, count};
  for (int64_t first = 0; first < units; first += kStepUnits) {
    const int step = units_of_step(units, first);
    if constexpr (kFormat.super) {
      pack_super<F>(rows, to);
      rows.p += kFormat.file_bytes;
    } else {
      for (int u = 0; u < step; ++u, rows.p += kFormat.file_bytes)
        pack_unit<F>(rows, to + u * kFormat.quants, to + step * kFormat.quants + u * kFormat.scales);
    }
    to += step_bytes<F>(step);
  }
}
