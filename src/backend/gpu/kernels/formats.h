#pragma once
// From packed codes to the operands of the matrix unit, in registers. Included after a target's target.h.
//
// A weight is dequantised in FP32 by the file's own operations (quant/types.h), multiplied by its row's 2^e
// and rounded once to f16. 2^e is folded into d and m: they are f16 times small integers, so that nothing
// leaves the normal numbers of FP32 and the product with 2^e commutes with every rounding. And d * code is
// exact in FP32 (11 bits of d, at most 12 of scale and code together), so that d * code + m may be one fused
// operation, and d * (code - offset) the same one with m = -offset * d. Where d is an f16 and there is no
// minimum (kHalfScale), d 2^e is one too, and its product with the code is one operation on two f16.
//
// Where code times scale code is an operand (kSumsCodes), it is exact, no row has a power of two, and d, dmin
// and the minima's codes come behind a chunk's sums (ChunkEnds).
#include "backend/gpu/kernels/packed.h"
#include "backend/gpu/kernels/rounding.h"

namespace greta::gpu::GRETA_GPU_TARGET {

// ---- what a lane loads: from memory (std::byte*), or from where a kernel has brought a tile before, a type
// with operator+ and stream_word, stream_words2 and stream_words4
// -----------------------------------------------------------------------------------------

template <int kCount, class From>
GRETA_DEVICE void load_words(const From& from, uint32_t* to) {
  if constexpr (kCount >= 4) {
    GRETA_UNROLL
    for (int i = 0; i < kCount; i += 4) {
      const Words4 v = stream_words4(from + 4 * i);
      to[i] = v.x;
      to[i + 1] = v.y;
      to[i + 2] = v.z;
      to[i + 3] = v.w;
    }
  } else if constexpr (kCount == 2) {
    const Words2 v = stream_words2(from);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    to[0] = stream_word(from);
  }
}

// Addresses are a lane's own plus what is known when compiled, so that a load has the latter in itself.

/// kWords words of a lane from word `first` on, of a plane in which it has kTotal; `first` is a multiple of
/// kWords, or they are within one group.
template <int kTotal, int kWords, class From>
GRETA_DEVICE void load_plane(const From& plane, int first, uint32_t* to) {
  constexpr int kGroup = Plane<kTotal>::kGroup;
  constexpr int kWide = kWords < kGroup ? kWords : kGroup;
  const From mine = plane + lane_index() * (4 * kGroup);
  GRETA_UNROLL
  for (int i = 0; i < kWords; i += kWide)
    load_words<kWide>(mine + 4 * Plane<kTotal>::at(first + i, 0), to + i);
}

/// Of kCount consecutive k64 steps of a tile, what a lane has beside the low plane.
template <quant::Type T, int kCount>
struct Rest {
  using F = Format<T>;
  static constexpr int kHigh = F::kHighBits == 0                    ? 0
                               : kCount * F::kHighWords < kStepsK64 ? 1
                                                                    : kCount * F::kHighWords / kStepsK64;
  static constexpr int kParams = kCount * F::kParamWords;
  static constexpr int kHeads = !F::kSuper || kSumsCodes<T> ? 0 : F::kMinimum ? kRowsA : 1;
  uint32_t high[kHigh == 0 ? 1 : kHigh];
  uint32_t params[kRowsA][kParams == 0 ? 1 : kParams];
  uint32_t heads[kHeads == 0 ? 1 : kHeads];
};
/// All of it.
template <quant::Type T, int kCount>
struct Piece : Rest<T, kCount> {
  static constexpr int kLowStep = Format<T>::kLowWords / kStepsK64;  ///< words of one k64 step
  uint32_t low[kCount * kLowStep];
};

/// From k64 step `first` of the tile on.
template <quant::Type T, int kCount, class From>
GRETA_DEVICE void load_rest(const From& tile, int first, Rest<T, kCount>& piece) {
  using P = Rest<T, kCount>;
  using F = Format<T>;
  if constexpr (P::kHigh > 0)
    load_plane<F::kHighWords, P::kHigh>(tile + F::kHighAt, first * F::kHighWords / kStepsK64, piece.high);
  const int row0 = a_row(lane_index(), 0);
  constexpr int kRowBytes = 4 * F::kParamWords * kStepsK64;
  constexpr int kNextRow = a_row(0, 2) - a_row(0, 0);
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    if constexpr (P::kParams > 0)
      load_words<P::kParams>(
          tile + row0 * kRowBytes + (F::kParamsAt + i * kNextRow * kRowBytes + 4 * F::kParamWords * first),
          piece.params[i]);
    if constexpr (P::kHeads > 0 && F::kMinimum)
      load_words<1>(tile + row0 * 4 + (F::kHeadsAt + i * kNextRow * 4), piece.heads + i);
  }
  if constexpr (F::kSuper && !F::kMinimum) {
    // Rows r and r + 8 share a word. A lane with one row brings its d to the low half.
    const uint32_t word = stream_word(tile + (row0 & 7) * 4 + F::kHeadsAt);
    piece.heads[0] = kRowsA == 2 ? word : word >> (2 * (row0 & 8));
  }
}

/// The low plane's words of k64 step `step` of the tile.
template <quant::Type T, class From>
GRETA_DEVICE void load_low(const From& tile, int step, uint32_t* to) {
  constexpr int kWords = Piece<T, 1>::kLowStep;
  load_plane<Format<T>::kLowWords, kWords>(tile, step * kWords, to);
}

template <quant::Type T, int kCount, class From>
GRETA_DEVICE void load_piece(const From& tile, int first, Piece<T, kCount>& piece) {
  GRETA_UNROLL
  for (int i = 0; i < kCount; ++i) load_low<T>(tile, first + i, piece.low + i * Piece<T, 1>::kLowStep);
  load_rest<T, kCount>(tile, first, piece);
}

// ---- parameters of sub-blocks
// ----------------------------------------------------------------------------------

/// For one k64 step, by sub-block and parity o of the pair. Codes are read as f16 subnormals: q 2^-24, where
/// they are in odd pairs of less than 8 bits q 2^-20. d makes up for that, so that a weight is what is read *
/// d[b][o] + m[b][o].
template <quant::Type T, bool = kHalfScale<T> || kSumsCodes<T>>
struct Scales {
  static constexpr int kBlocks = Format<T>::kCodes ? 64 / Format<T>::kBlock : 1;
  float d[kBlocks][2];
  float m[kBlocks][2];
};
/// d, or the scale's code times 2^10, in odd pairs 2^6, so that it makes 2^-14 of the codes: twice in a word.
template <quant::Type T>
struct Scales<T, true> {
  static constexpr int kBlocks = 2;
  uint32_t d[kBlocks][2];
};

inline constexpr float kSubnormal = 0x1p24f;
/// What d of odd pairs is multiplied by besides.
template <quant::Type T>
inline constexpr float kOddPair = Format<T>::kLowBits < 8 ? 0.0625f : 1.0f;
/// What float_with_byte adds to a byte.
inline constexpr float kWithByte = 0x1p23f;
/// `scale` times byte i of the word: exact, as the product with kWithByte is.
GRETA_DEVICE float times_byte(uint32_t word, int i, float scale) {
  return fused(float_with_byte(word, i), scale, -kWithByte * scale);
}

/// An integer of 64 to 2047, negative, as f16, twice in a word.
GRETA_DEVICE constexpr uint32_t minus_f16(int n) {
  int exponent = 6;
  while (n >> (exponent + 1) != 0) ++exponent;
  const auto bits = static_cast<uint32_t>(0x8000 | (exponent + 15) << 10 | ((n << 10 >> exponent) & 0x3ff));
  return bits | bits << 16;
}

/// Powers of two, twice in a word.
inline constexpr uint32_t kOneF16 = 0x3c003c00u, kSixteenthF16 = 0x2c002c00u, kTwo6F16 = 0x54005400u,
                          kTwo10F16 = 0x64006400u;

/// Of a chunk, what the codes of a row's d and of its minimum (of its offset) are multiplied by, for each of
/// a lane's rows: of a K type the super-block's, else powers of two.
template <quant::Type T>
struct Heads {
  float d[kRowsA];
  float m[kRowsA];
};
/// up[i] = 2^e of the lane's row i.
template <quant::Type T, int kCount>
GRETA_DEVICE Heads<T> heads_of(const Rest<T, kCount>& piece, const float (&up)[kRowsA]) {
  using F = Format<T>;
  Heads<T> heads;
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) {  // with two rows, the pairs of parity i are row i's
    heads.d[i] = (i == 1 ? up[i] * kOddPair<T> : up[i]) * kSubnormal;
    heads.m[i] = up[i];
    if constexpr (F::kSuper && !kSumsCodes<T>) {
      const uint32_t head = F::kMinimum ? piece.heads[i] : piece.heads[0] >> (16 * i);
      heads.d[i] = low_f16(head) * heads.d[i];
      heads.m[i] =
          F::kMinimum ? high_f16(head) * -up[i] : low_f16(head) * (up[i] * -static_cast<float>(F::kOffset));
    }
  }
  return heads;
}

/// d and m of a row's sub-blocks in the k64 step that `params` holds, of its heads `scale` and `minimum`.
template <quant::Type T>
GRETA_DEVICE void row_scales(const uint32_t* params, float scale, float minimum,
                             float (&d)[Scales<T>::kBlocks], float (&m)[Scales<T>::kBlocks]) {
  using F = Format<T>;
  constexpr int kBlocks = Scales<T>::kBlocks;
  if constexpr (!F::kSuper) {  // Q4_1, Q5_1
    GRETA_UNROLL
    for (int b = 0; b < 2; ++b) {
      d[b] = low_f16(params[b]) * scale;
      m[b] = high_f16(params[b]) * minimum;
    }
  } else if constexpr (F::kMinimum) {  // Q2_K: nibbles; Q4_K, Q5_K: bytes
    constexpr bool kNibbles = T == quant::Type::Q2_K;
    const uint32_t sc = kNibbles ? params[0] & 0x0f0f0f0fu : params[0];
    const uint32_t mm = kNibbles ? (params[0] >> 4) & 0x0f0f0f0fu : params[0];
    GRETA_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      d[b] = times_byte(sc, kNibbles ? b : 2 * b, scale);
      m[b] = times_byte(mm, kNibbles ? b : 2 * b + 1, minimum);
    }
  } else {  // Q3_K, Q6_K
    constexpr float kScaleZero = kWithByte + static_cast<float>(F::kScaleOffset);
    GRETA_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const float code = float_with_byte(params[0], b) - kScaleZero;
      d[b] = code * scale;
      m[b] = code * minimum;
    }
  }
}

/// Of the piece's k64 step `local`.
template <quant::Type T, int kCount>
GRETA_DEVICE Scales<T> scales_of(const Piece<T, kCount>& piece, int local, const Heads<T>& heads) {
  using F = Format<T>;
  Scales<T> scales = {};
  if constexpr (kHalfScale<T> || kSumsCodes<T>) {
    GRETA_UNROLL
    for (int o = 0; o < 2; ++o) {
      uint32_t both = piece.params[kRowsA == 2 ? o : 0][local];
      if constexpr (kSumsCodes<T>)  // bytes 0 and 2
        both = fused_f16(fused_f16(f16_with_bytes(both, 0), kOneF16, minus_f16(1024)),
                         o == 0 ? kTwo10F16 : kTwo6F16, 0);
      scales.d[0][o] = (both & 0xffffu) | both << 16;
      scales.d[1][o] = both >> 16 | (both & 0xffff0000u);
    }
  } else if constexpr (F::kCodes) {
    constexpr int kBlocks = Scales<T>::kBlocks;
    float d[kBlocks], m[kBlocks];
    GRETA_UNROLL
    for (int i = 0; i < kRowsA; ++i) {
      row_scales<T>(piece.params[i] + local * F::kParamWords, heads.d[i], heads.m[i], d, m);
      GRETA_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        scales.d[b][i] = d[b];
        scales.m[b][i] = m[b];
        if constexpr (kRowsA == 1) {
          scales.d[b][1] = d[b] * kOddPair<T>;
          scales.m[b][1] = m[b];
        }
      }
    }
  }
  return scales;
}

// ---- elements
// --------------------------------------------------------------------------------------------------

/// The b-bit fields of pair `slot` of a word, moved to bits `target` and 16 + target, all else 0.
template <int Bits>
GRETA_DEVICE uint32_t fields(uint32_t word, int slot, int target) {
  const int right = slot_bit<Bits>(slot) - target;
  const uint32_t moved = right >= 0 ? word >> right : word << -right;
  return moved & (((1u << Bits) - 1) * 0x00010001u << target);
}

/// The codes of pair `pair` (of the k64 step; even element first), at bits 0 and 16, those of odd pairs of
/// less than 8 bits 4 bits above. `first` is the piece's first k64 step, `local` the step within it.
template <quant::Type T, int kCount>
GRETA_DEVICE uint32_t codes_of(const Piece<T, kCount>& piece, int first, int local, int pair) {
  using F = Format<T>;
  const int p = (first + local) * kPairsK64 + pair;  // of the chunk
  constexpr int kLowSlots = 16 / F::kLowBits;
  const int shift = F::kLowBits == 8 ? 0 : 4 * (pair % 2);
  uint32_t q =
      fields<F::kLowBits>(piece.low[p / kLowSlots - first * kPairsK64 / kLowSlots], p % kLowSlots, shift);
  if constexpr (F::kHighBits > 0) {
    constexpr int kHighSlots = 16 / F::kHighBits;
    q |= fields<F::kHighBits>(piece.high[p / kHighSlots - first * kPairsK64 / kHighSlots], p % kHighSlots,
                              shift + F::kLowBits);
  }
  return q;
}

/// codes_of() less the type's offset, as two f16: with a mantissa's bits above them codes are 1024 + q, in
/// odd pairs of less than 8 bits 1024 + 16 q.
template <quant::Type T, int kCount>
GRETA_DEVICE uint32_t centred_codes(const Piece<T, kCount>& piece, int first, int local, int pair) {
  using F = Format<T>;
  if constexpr (F::kLowBits == 8) {
    const int p = local * kPairsK64 + pair;
    return fused_f16(f16_with_bytes(piece.low[p / 2], p % 2), kOneF16, minus_f16(1024 + F::kOffset));
  } else {
    const uint32_t above = codes_of(piece, first, local, pair) | kF16With;
    return pair % 2 == 0 ? fused_f16(above, kOneF16, minus_f16(1024 + F::kOffset))
                         : fused_f16(above, kSixteenthF16, minus_f16(64 + F::kOffset));
  }
}

/// Both elements of a pair of a code format: dequantised, times the row's 2^e.
template <quant::Type T, int kCount>
GRETA_DEVICE void code_values(const Piece<T, kCount>& piece, const Scales<T>& scales, int first, int local,
                              int pair, float& even, float& odd) {
  const int parity = pair % 2;
  const int block = pair / kPairs * 16 / Format<T>::kBlock;
  if constexpr (kHalfScale<T>) {
    const uint32_t q = centred_codes(piece, first, local, pair);
    even = low_f16(q) * low_f16(scales.d[block][parity]);
    odd = high_f16(q) * low_f16(scales.d[block][parity]);
  } else {
    const uint32_t q = codes_of(piece, first, local, pair);
    even = fused(low_f16(q), scales.d[block][parity], scales.m[block][parity]);
    odd = fused(high_f16(q), scales.d[block][parity], scales.m[block][parity]);
  }
}

/// What stands for a weight in the product: one f16; for F32 two, the high part is multiplied first.
template <quant::Type T>
inline constexpr int kParts = T == quant::Type::F32 ? 2 : 1;
template <quant::Type T>
struct Operand {
  FragmentA part[kParts<T>];
};

/// The operand of k16 step `step` within k64 step `local` of a piece that begins at k64 step `first`. All
/// three are known to the compiler where loops are unrolled.
template <quant::Type T, int kCount>
GRETA_DEVICE void unpack_k16(const Piece<T, kCount>& piece, const Scales<T>& scales,
                             const float (&up)[kRowsA], int first, int local, int step, Operand<T>& to) {
  GRETA_UNROLL
  for (int w = 0; w < kPairs; ++w) {
    const int pair = step * kPairs + w;
    if constexpr (T == quant::Type::F16) {
      to.part[0].word[w] = piece.low[local * kPairsK64 + pair];
    } else if constexpr (T == quant::Type::F32) {
      const int at = 2 * (local * kPairsK64 + pair);
      const float scale = up[w % kRowsA];
      const float even = float_of(piece.low[at]) * scale;
      const float odd = float_of(piece.low[at + 1]) * scale;
      const uint32_t high = pack_f16(even, odd);
      to.part[0].word[w] = high;
      to.part[1].word[w] = pack_f16(even - low_f16(high), odd - high_f16(high));
    } else if constexpr (kHalfScale<T> || kSumsCodes<T>) {
      const uint32_t d = scales.d[pair / kPairs * 16 / Format<T>::kBlock][pair % 2];
      const uint32_t codes =
          kHalfScale<T> ? centred_codes(piece, first, local, pair) : codes_of(piece, first, local, pair);
      to.part[0].word[w] = fused_f16(codes, d, 0);
    } else {
      float even, odd;
      code_values(piece, scales, first, local, pair, even, odd);
      to.part[0].word[w] = pack_f16(even, odd);
    }
  }
}

/// The four k16 steps of k64 step `local`.
template <quant::Type T, int kCount>
GRETA_DEVICE void unpack_k64(const Piece<T, kCount>& piece, const float (&up)[kRowsA], int first, int local,
                             Operand<T> (&to)[4]) {
  const Scales<T> scales = scales_of(piece, local, heads_of(piece, up));
  GRETA_UNROLL
  for (int step = 0; step < 4; ++step) unpack_k16(piece, scales, up, first, local, step, to[step]);
}

// ---- behind a chunk's sums, where operands are codes
// -----------------------------------------------------------------------

/// What the operands are less than code times scale code.
inline constexpr float kCodePower = 0x1p-14f;
/// Rows of C that a lane has elements of.
inline constexpr int kRowsC = c_row(0, 0) == c_row(0, 1) ? 2 : 4;
static_assert(kFragmentC == 4 && c_row(0, 1) - c_row(0, 0) == (kRowsC == 2 ? 0 : 1));

/// The minima of a chunk as an operand, 16 rows by the chunk's sums of rows (sums_at()), and d and dmin of
/// the lane's rows of C.
template <quant::Type T>
struct ChunkEnds {
  uint32_t params[2];  ///< of pair 0 or 2, 1 or 3 of the operand
  uint32_t heads[kRowsC];

  template <class From>
  GRETA_DEVICE void load(const From& tile) {
    const int lane = lane_index();
    GRETA_UNROLL
    for (int i = 0; i < 2; ++i)
      params[i] = stream_word(tile + (a_row(lane, 2 * i) * kStepsK64 + a_k(lane, 2 * i) % 8 / 2) * 4 +
                              Format<T>::kParamsAt);
    GRETA_UNROLL
    for (int i = 0; i < kRowsC; ++i)
      heads[i] = stream_word(tile + c_row(lane, i * (4 / kRowsC)) * 4 + Format<T>::kHeadsAt);
  }
  /// Bytes 1 and 3 of a k64 step's word; those that meet a sum's `low`, behind 2^-11.
  GRETA_DEVICE FragmentA minima() const {
    FragmentA a;
    GRETA_UNROLL
    for (int w = 0; w < kPairs; ++w) {
      const uint32_t codes = fused_f16(f16_with_bytes(params[w % 2], 1), kOneF16, minus_f16(1024));
      const uint32_t power = a_k(lane_index(), 2 * w) < kSumsOfChunk / 2 ? kOneF16 : kInverseLowPower;
      a.word[w] = fused_f16(codes, power, 0);
    }
    return a;
  }
  /// d S - dmin M of element i of C.
  GRETA_DEVICE float sum(int i, float codes, float minima) const {
    const uint32_t head = heads[i / (4 / kRowsC)];
    const float m = minima * (high_f16(head) * (-1.0f / kSumPower));
    return fused(codes, low_f16(head) * (1.0f / kCodePower), m);
  }

 private:
  static constexpr uint32_t kInverseLowPower = 0x10001000u;  ///< 2^-11
};
// Words w and w + 2 have the same parameters.
static_assert(kPairs == 2 || (a_row(0, 0) == a_row(0, 4) && a_k(0, 4) == a_k(0, 0) + 8));

}  // namespace greta::gpu::GRETA_GPU_TARGET
