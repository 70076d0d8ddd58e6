#pragma once
// From packed codes to the operands of the matrix unit, in registers. Included after a target's target.h.
//
// A weight is dequantised in FP32 by the file's own operations (quant/types.h), multiplied by its row's 2^e
// and rounded once to f16. 2^e is folded into d and m: they are f16 times small integers, so that nothing
// leaves the normal numbers of FP32 and the product with 2^e commutes with every rounding. And d * code is
// exact in FP32 (11 bits of d, at most 12 of scale and code together), so that d * code + m may be one fused
// operation, and d * (code - offset) the same one with m = -offset * d.
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
  static constexpr int kHeads = !F::kSuper ? 0 : F::kMinimum ? kRowsA : 1;
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
    if constexpr (F::kSuper && F::kMinimum)
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
template <quant::Type T>
struct Scales {
  static constexpr int kBlocks = Format<T>::kCodes ? 64 / Format<T>::kBlock : 1;
  float d[kBlocks][2];
  float m[kBlocks][2];
};

inline constexpr float kSubnormal = 0x1p24f;

/// d and m of a row's sub-blocks in the k64 step that `params` holds; d times `up_d`, m times `up`: powers of
/// two.
template <quant::Type T>
GRETA_DEVICE void row_scales(const uint32_t* params, uint32_t head, float up_d, float up,
                             float (&d)[Scales<T>::kBlocks], float (&m)[Scales<T>::kBlocks]) {
  using F = Format<T>;
  constexpr auto kZero = static_cast<float>(F::kOffset);
  if constexpr (!F::kSuper) {
    GRETA_UNROLL
    for (int b = 0; b < 2; ++b) {
      const float scale = F::kMinimum || b == 0 ? low_f16(params[F::kMinimum ? b : 0]) : high_f16(params[0]);
      d[b] = scale * (up_d * kSubnormal);
      m[b] = F::kMinimum ? high_f16(params[b]) * up : scale * (up * -kZero);
    }
  } else if constexpr (T == quant::Type::Q2_K) {
    const float scale = low_f16(head) * (up_d * (kSubnormal * kSubnormal));
    const float minimum = high_f16(head) * (up * -kSubnormal);
    GRETA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const uint32_t sc = (params[0] >> (8 * h)) & 0x000f000fu;
      const uint32_t mm = (params[0] >> (8 * h + 4)) & 0x000f000fu;
      d[h] = low_f16(sc) * scale;
      d[h + 2] = high_f16(sc) * scale;
      m[h] = low_f16(mm) * minimum;
      m[h + 2] = high_f16(mm) * minimum;
    }
  } else if constexpr (F::kMinimum) {  // Q4_K, Q5_K
    const float scale = low_f16(head) * (up_d * (kSubnormal * kSubnormal));
    const float minimum = high_f16(head) * (up * -kSubnormal);
    const uint32_t sc = params[0] & 0x00ff00ffu;
    const uint32_t mm = (params[0] >> 8) & 0x00ff00ffu;
    d[0] = low_f16(sc) * scale;
    d[1] = high_f16(sc) * scale;
    m[0] = low_f16(mm) * minimum;
    m[1] = high_f16(mm) * minimum;
  } else {  // Q3_K, Q6_K
    constexpr auto kScaleZero = static_cast<float>(F::kScaleOffset);
    const float scale = low_f16(head) * (up_d * kSubnormal);
    const float zero = low_f16(head) * (up * -kZero);
    GRETA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const uint32_t sc = (params[0] >> (8 * h)) & 0x00ff00ffu;
      const float even = fused(low_f16(sc), kSubnormal, -kScaleZero);
      const float odd = fused(high_f16(sc), kSubnormal, -kScaleZero);
      d[h] = even * scale;
      d[h + 2] = odd * scale;
      m[h] = even * zero;
      m[h + 2] = odd * zero;
    }
  }
}

/// Of the piece's k64 step `local`, with up[i] = 2^e of the lane's row i.
template <quant::Type T, int kCount>
GRETA_DEVICE Scales<T> scales_of(const Piece<T, kCount>& piece, int local, const float (&up)[kRowsA]) {
  using F = Format<T>;
  Scales<T> scales = {};
  if constexpr (F::kCodes) {
    constexpr int kBlocks = Scales<T>::kBlocks;
    constexpr float kOdd = F::kLowBits < 8 ? 0.0625f : 1.0f;
    float d[kBlocks], m[kBlocks];
    GRETA_UNROLL
    for (int i = 0; i < kRowsA; ++i) {  // with two rows, the pairs of parity i are row i's
      uint32_t head = 0;
      if constexpr (F::kSuper) head = F::kMinimum ? piece.heads[i] : piece.heads[0] >> (16 * i);
      row_scales<T>(piece.params[i] + local * F::kParamWords, head, i == 1 ? up[i] * kOdd : up[i], up[i], d,
                    m);
      GRETA_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        scales.d[b][i] = d[b];
        scales.m[b][i] = m[b];
        if constexpr (kRowsA == 1) {
          scales.d[b][1] = d[b] * kOdd;
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

/// Both elements of pair `pair` (of the k64 step; even element first) of a code format: dequantised, times
/// the row's 2^e. `first` is the piece's first k64 step, `local` the step within it.
template <quant::Type T, int kCount>
GRETA_DEVICE void code_values(const Piece<T, kCount>& piece, const Scales<T>& scales, int first, int local,
                              int pair, float& even, float& odd) {
  using F = Format<T>;
  const int parity = pair % 2;
  const int block = pair / kPairs * 16 / F::kBlock;
  const int p = (first + local) * kPairsK64 + pair;  // of the chunk
  constexpr int kLowSlots = 16 / F::kLowBits;
  const int shift = F::kLowBits == 8 ? 0 : 4 * parity;
  uint32_t q =
      fields<F::kLowBits>(piece.low[p / kLowSlots - first * kPairsK64 / kLowSlots], p % kLowSlots, shift);
  if constexpr (F::kHighBits > 0) {
    constexpr int kHighSlots = 16 / F::kHighBits;
    q |= fields<F::kHighBits>(piece.high[p / kHighSlots - first * kPairsK64 / kHighSlots], p % kHighSlots,
                              shift + F::kLowBits);
  }
  even = fused(low_f16(q), scales.d[block][parity], scales.m[block][parity]);
  odd = fused(high_f16(q), scales.d[block][parity], scales.m[block][parity]);
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
  const Scales<T> scales = scales_of(piece, local, up);
  GRETA_UNROLL
  for (int step = 0; step < 4; ++step) unpack_k16(piece, scales, up, first, local, step, to[step]);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
