#pragma once
// How a matrix lies in device memory for the matmul kernels. Included after a target's target.h: the layout
// follows the target's fragment of A, so that it differs between wave sizes; sizes do not.
//
// Tiles of 16 rows x 256 k (kChunkK), rows and K padded with zeros. Tile (row tile t, chunk c) is the piece
// of Format::kTileBytes bytes at (t * chunks + c) * kTileBytes:
//
//   low plane    the low kLowBits bits of each code, or the whole f16 or FP32
//   high plane   the other kHighBits bits of codes that have 3, 5 or 6
//   parameters   [16 rows][4 k64][kParamWords] words: what the row's sub-blocks in those 64 k are scaled by
//   heads        of the K types: d and dmin of the row's super-block
//
// Planes. A lane of the wave holds kFragmentA elements of each k16 step: pair w of step s is elements 2w and
// 2w + 1, neighbours in k. Pairs are counted through the chunk, P = s * kFragmentA / 2 + w. Of b-bit codes a
// word holds the 16 / b pairs from P = word * 16 / b on, the even element of a pair in the low half of the
// word, the odd one in its high half, at the bit that slot_bit names: a pair of odd P lies 4 bits above the
// one before it, so that one shift brings both to where an f16's mantissa takes them as they are. A 16-bit
// pair is a word; an FP32 pair is two words. Words of a lane lie in groups of four (of two, where a lane has
// two in a tile), lanes one after another: word x of lane l is the word ((x / 4) * kWave + l) * 4 + x % 4.
//
// Parameters of a row for k64 step j (halves and bytes from the low end):
//   Q4_0 Q5_0 Q8_0   word: d 2^e of block 2j, d 2^e of block 2j + 1, 2^-e being the row's scale
//   Q4_1 Q5_1        two words: d and m of block 2j, d and m of block 2j + 1
//   Q4_K Q5_K        bytes: sc[2j], m[2j], sc[2j + 1], m[2j + 1]
//   Q2_K             bytes 4j .. 4j + 3: sc in the low, m in the high nibble, as in the file
//   Q3_K Q6_K        bytes 4j .. 4j + 3: the file's code (32 is subtracted), sc + 128
// Heads: Q2_K Q4_K Q5_K: word r has d and dmin of row r. Q3_K Q6_K: word r (0 .. 7) has d of rows r and r
// + 8.
#include <cstdint>
#include <string>

#include "backend/gpu/kernels.h"
#include "backend/gpu/kernels/orders.h"
#include "quant/types.h"

namespace greta::gpu::GRETA_GPU_TARGET {

inline constexpr int kTileRows = 16;
inline constexpr int kStepsK64 = kChunkK / 64;  ///< k64 steps of a chunk
inline constexpr int kPairs = kFragmentA / 2;   ///< of a lane in a k16 step
inline constexpr int kPairsK64 = 4 * kPairs;

// A lane's pairs of odd number are of its second row, where it has two.
static_assert(kPairs % 2 == 0 && a_row(0, 0) == a_row(0, 2 * kPairs - 4) &&
              (kRowsA == 2) == (a_row(0, 0) != a_row(0, 2)));

/// What a code means: w = d' * (code - kOffset), or d' * code + m' where kMinimum, d' and m' being the
/// parameters of its sub-block of kBlock elements (0: codes are the weights themselves).
template <int LowBits, int HighBits, int Block, bool Minimum, bool Super, int Offset, int ScaleOffset>
struct FormatOf {
  static constexpr int kLowBits = LowBits;
  static constexpr int kHighBits = HighBits;
  static constexpr int kBlock = Block;
  static constexpr bool kMinimum = Minimum;
  static constexpr bool kSuper = Super;  ///< a K type: a chunk is a super-block
  static constexpr int kOffset = Offset;
  static constexpr int kScaleOffset = ScaleOffset;  ///< subtracted from a K type's scale code
  static constexpr bool kCodes = Block != 0;

  static constexpr int kLowWords = LowBits * kTileRows * kChunkK / 32 / kWave;  ///< of a lane in a tile
  static constexpr int kHighWords = HighBits * kTileRows * kChunkK / 32 / kWave;
  static constexpr int kParamWords = !kCodes ? 0 : Minimum && !Super ? 2 : 1;
  static constexpr int kHighAt = 4 * kWave * kLowWords;  ///< bytes from the start of the tile
  static constexpr int kParamsAt = kHighAt + 4 * kWave * kHighWords;
  static constexpr int kHeadsAt = kParamsAt + 4 * kTileRows * kStepsK64 * kParamWords;
  static constexpr int kHeads = !Super ? 0 : Minimum ? kTileRows : kTileRows / 2;  ///< words
  static constexpr int kTileBytes = kHeadsAt + 4 * kHeads;
  static_assert(kTileBytes % 16 == 0);
};

template <quant::Type T>
struct Format;
/// Types of which a weight is one f16 times a small integer: that f16 lies in the tile behind its row's power
/// of two. Exact unless the row has a weight past 2^15 (2^e < 1).
template <quant::Type T>
inline constexpr bool kHalfScale = Format<T>::kCodes && !Format<T>::kMinimum && !Format<T>::kSuper;
/// Types whose operands are code times scale code (orders.h).
template <quant::Type T>
inline constexpr bool kSumsCodes = sums_codes(T);
template <>
struct Format<quant::Type::F16> : FormatOf<16, 0, 0, false, false, 0, 0> {};
template <>
struct Format<quant::Type::F32> : FormatOf<32, 0, 0, false, false, 0, 0> {};
template <>
struct Format<quant::Type::Q4_0> : FormatOf<4, 0, 32, false, false, 8, 0> {};
template <>
struct Format<quant::Type::Q4_1> : FormatOf<4, 0, 32, true, false, 0, 0> {};
template <>
struct Format<quant::Type::Q5_0> : FormatOf<4, 1, 32, false, false, 16, 0> {};
template <>
struct Format<quant::Type::Q5_1> : FormatOf<4, 1, 32, true, false, 0, 0> {};
template <>
struct Format<quant::Type::Q8_0> : FormatOf<8, 0, 32, false, false, 128, 0> {};
template <>
struct Format<quant::Type::Q2_K> : FormatOf<2, 0, 16, true, true, 0, 0> {};
template <>
struct Format<quant::Type::Q3_K> : FormatOf<2, 1, 16, false, true, 4, 32> {};
template <>
struct Format<quant::Type::Q4_K> : FormatOf<4, 0, 32, true, true, 0, 0> {};
template <>
struct Format<quant::Type::Q5_K> : FormatOf<4, 1, 32, true, true, 0, 0> {};
template <>
struct Format<quant::Type::Q6_K> : FormatOf<4, 2, 16, false, true, 32, 128> {};

/// What follows from a number of words: how a lane's words lie.
template <int Words>
struct Plane {
  static constexpr int kGroup = Words < 4 ? Words : 4;
  /// Of word x of a lane, in words from the plane's start.
  GRETA_DEVICE static int at(int x, int lane) { return ((x / kGroup) * kWave + lane) * kGroup + x % kGroup; }
};

/// The bit of a word at which the even element of its pair `slot` lies; the odd one's is 16 higher.
template <int Bits>
GRETA_DEVICE constexpr int slot_bit(int slot) {
  if constexpr (Bits >= 8) {
    return Bits * slot;
  } else {
    const int v = slot / 2;
    return 4 * (slot % 2) + Bits * (v % (4 / Bits)) + 8 * (v / (4 / Bits));
  }
}

/// Of K.
GRETA_DEVICE int chunks_of(int64_t cols) { return static_cast<int>((cols + kChunkK - 1) / kChunkK); }

// ---- on the host

/// "matmul_few.Q4_K"
template <quant::Type T>
std::string kernel_name(const char* kernel) {
  return std::string(kernel) + "." + std::string(quant::traits(T).name);
}

/// Calls f.operator()<T>() for the kernel type.
template <class F>
void for_type(quant::Type type, const F& f) {
  using quant::Type;
  switch (type) {
    case Type::F16:
      return f.template operator()<Type::F16>();
    case Type::F32:
      return f.template operator()<Type::F32>();
    case Type::Q4_0:
      return f.template operator()<Type::Q4_0>();
    case Type::Q4_1:
      return f.template operator()<Type::Q4_1>();
    case Type::Q5_0:
      return f.template operator()<Type::Q5_0>();
    case Type::Q5_1:
      return f.template operator()<Type::Q5_1>();
    case Type::Q8_0:
      return f.template operator()<Type::Q8_0>();
    case Type::Q2_K:
      return f.template operator()<Type::Q2_K>();
    case Type::Q3_K:
      return f.template operator()<Type::Q3_K>();
    case Type::Q4_K:
      return f.template operator()<Type::Q4_K>();
    case Type::Q5_K:
      return f.template operator()<Type::Q5_K>();
    case Type::Q6_K:
      return f.template operator()<Type::Q6_K>();
    case Type::BF16:
      return;  // packed as F16
  }
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
