// Weights: from the file's blocks to packed tiles and back, and the tables that are read as they lie in the
// file. The byte layouts of the blocks are those of src/quant (legacy.cpp, kquants_dequantize.cpp), so are
// the FP32 operations of each element and their order.
#include "backend/gpu/kernels/formats.h"
#include "backend/gpu/kernels/launchers.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

using quant::Type;

constexpr int kPackThreads = 128;
constexpr int kRowThreads = 256;
constexpr int kInt8Block = 32;

// ---- the file's blocks
// -----------------------------------------------------------------------------------------

GRETA_DEVICE uint32_t half_bits(const uint8_t* at) {
  return static_cast<uint32_t>(at[0]) | static_cast<uint32_t>(at[1]) << 8;
}
GRETA_DEVICE float half_at(const uint8_t* at) { return from_f16(static_cast<uint16_t>(half_bits(at))); }

/// Where the fields of a block lie.
template <int Elements, int Bytes, int D, int M, int Scales, int Low, int High>
struct BlockOf {
  static constexpr int kElements = Elements;
  static constexpr int kBytes = Bytes;
  static constexpr int kD = D;
  static constexpr int kM = M;  ///< m or dmin
  static constexpr int kScales = Scales;
  static constexpr int kLow = Low;
  static constexpr int kHigh = High;
};
template <Type T>
struct Block;
template <>
struct Block<Type::Q4_0> : BlockOf<32, 18, 0, 0, 0, 2, 0> {};
template <>
struct Block<Type::Q4_1> : BlockOf<32, 20, 0, 2, 0, 4, 0> {};
template <>
struct Block<Type::Q5_0> : BlockOf<32, 22, 0, 0, 0, 6, 2> {};
template <>
struct Block<Type::Q5_1> : BlockOf<32, 24, 0, 2, 0, 8, 4> {};
template <>
struct Block<Type::Q8_0> : BlockOf<32, 34, 0, 0, 0, 2, 0> {};
template <>
struct Block<Type::Q2_K> : BlockOf<256, 84, 80, 82, 0, 16, 0> {};
template <>
struct Block<Type::Q3_K> : BlockOf<256, 110, 108, 0, 96, 32, 0> {};
template <>
struct Block<Type::Q4_K> : BlockOf<256, 144, 0, 2, 4, 16, 0> {};
template <>
struct Block<Type::Q5_K> : BlockOf<256, 176, 0, 2, 4, 48, 16> {};
template <>
struct Block<Type::Q6_K> : BlockOf<256, 210, 208, 0, 192, 0, 128> {};

template <Type T>
GRETA_DEVICE const uint8_t* block_of(const uint8_t* row, int64_t k) {
  return row + k / Block<T>::kElements * Block<T>::kBytes;
}

/// The code of a block's element i, as packed.h counts: kOffset is not subtracted yet.
template <Type T>
GRETA_DEVICE int code_of(const uint8_t* block, int i) {
  using B = Block<T>;
  const uint8_t* low = block + B::kLow;
  const uint8_t* high = block + B::kHigh;
  if constexpr (T == Type::Q8_0) {
    return low[i] ^ 0x80;
  } else if constexpr (T == Type::Q2_K || T == Type::Q3_K) {
    const int two = (low[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3;
    return T == Type::Q2_K ? two : two | ((high[i % 32] >> (i / 32)) & 1) << 2;
  } else if constexpr (T == Type::Q4_K || T == Type::Q5_K) {
    const int four = (low[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15;
    return T == Type::Q4_K ? four : four | ((high[i % 32] >> (i / 32)) & 1) << 4;
  } else if constexpr (T == Type::Q6_K) {
    const int quarter = i % 128 / 32;
    const int four = (low[64 * (i / 128) + 32 * (quarter % 2) + i % 32] >> (4 * (quarter / 2))) & 15;
    return four | ((high[32 * (i / 128) + i % 32] >> (2 * quarter)) & 3) << 4;
  } else {  // Q4_0, Q4_1, Q5_0, Q5_1
    const int four = (low[i % 16] >> (4 * (i / 16))) & 15;
    return B::kHigh == 0 ? four : four | ((high[i / 8] >> (i % 8)) & 1) << 4;
  }
}

/// The scale code of sub-block s of a K type's block, as packed.h counts: kScaleOffset is not subtracted yet.
template <Type T>
GRETA_DEVICE int scale_code(const uint8_t* block, int s) {
  const uint8_t* scales = block + Block<T>::kScales;
  if constexpr (T == Type::Q2_K) {
    return scales[s] & 15;
  } else if constexpr (T == Type::Q3_K) {
    const int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
    return low | ((scales[8 + s % 4] >> (2 * (s / 4))) & 3) << 4;
  } else if constexpr (T == Type::Q6_K) {
    return scales[s] ^ 0x80;
  } else {  // Q4_K, Q5_K
    return s < 4 ? scales[s] & 63 : (scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4;
  }
}
template <Type T>
GRETA_DEVICE int minimum_code(const uint8_t* block, int s) {
  const uint8_t* scales = block + Block<T>::kScales;
  if constexpr (T == Type::Q2_K) {
    return scales[s] >> 4;
  } else {  // Q4_K, Q5_K
    return s < 4 ? scales[s + 4] & 63 : (scales[s + 4] >> 4) | (scales[s] >> 6) << 4;
  }
}

template <Type T>
GRETA_DEVICE float block_element(const uint8_t* row, int64_t k) {
  using B = Block<T>;
  using F = Format<T>;
  const uint8_t* block = block_of<T>(row, k);
  const int i = static_cast<int>(k % B::kElements);
  const auto code = static_cast<float>(code_of<T>(block, i) - F::kOffset);
  float scale = half_at(block + B::kD);
  if constexpr (F::kSuper)
    scale = scale * static_cast<float>(scale_code<T>(block, i / F::kBlock) - F::kScaleOffset);
  if constexpr (!F::kMinimum) {
    return scale * code;
  } else if constexpr (F::kSuper) {
    const float minimum = half_at(block + B::kM) * static_cast<float>(minimum_code<T>(block, i / F::kBlock));
    return scale * code - minimum;
  } else {
    return scale * code + half_at(block + B::kM);
  }
}

/// Element k of a row as the file has it, dequantised.
GRETA_DEVICE float element(Type type, const uint8_t* row, int64_t k) {
  switch (type) {
    case Type::F32: {
      const uint8_t* at = row + 4 * k;
      return float_of(half_bits(at) | half_bits(at + 2) << 16);
    }
    case Type::F16:
      return half_at(row + 2 * k);
    case Type::BF16:
      return from_bf16(static_cast<uint16_t>(half_bits(row + 2 * k)));
    case Type::Q4_0:
      return block_element<Type::Q4_0>(row, k);
    case Type::Q4_1:
      return block_element<Type::Q4_1>(row, k);
    case Type::Q5_0:
      return block_element<Type::Q5_0>(row, k);
    case Type::Q5_1:
      return block_element<Type::Q5_1>(row, k);
    case Type::Q8_0:
      return block_element<Type::Q8_0>(row, k);
    case Type::Q2_K:
      return block_element<Type::Q2_K>(row, k);
    case Type::Q3_K:
      return block_element<Type::Q3_K>(row, k);
    case Type::Q4_K:
      return block_element<Type::Q4_K>(row, k);
    case Type::Q5_K:
      return block_element<Type::Q5_K>(row, k);
    case Type::Q6_K:
      return block_element<Type::Q6_K>(row, k);
  }
  return 0.0f;
}

GRETA_DEVICE const uint8_t* source_row(const PackCall& call, int64_t row) {
  return reinterpret_cast<const uint8_t*>(call.source) + row * call.source_row_bytes;
}

// ---- int8: Q8_0 from dequantised values
// ------------------------------------------------------------------------

/// A block of 32 elements: q = w / d to nearest even, d = amax / 127.
struct Int8Block {
  float inverse;   ///< 1 / d; 0: all codes are 0
  uint16_t scale;  ///< f16(d)

  GRETA_DEVICE bool is_finite() const { return (scale & 0x7fffu) < 0x7c00u; }
};
GRETA_DEVICE Int8Block int8_block(const PackCall& call, int64_t row, int64_t first) {
  const uint8_t* from = source_row(call, row);
  float amax = 0.0f;
  bool nan = false;
  for (int64_t k = first; k < first + kInt8Block && k < call.to.cols; ++k) {
    const float w = element(call.source_type, from, k);
    nan = nan || w != w;
    amax = larger(amax, magnitude_of(w));
  }
  if (nan) amax = float_of(0x7fc00000u);
  const float d = divide(amax, 127.0f);
  const float inverse = divide(1.0f, d);
  if (inverse > 0x1.fffffep127f) return {0.0f, 0};
  return {inverse, to_f16(d)};
}
/// Within [-127, 127]. The sum's last bit is worth 1: it rounds to nearest even.
GRETA_DEVICE int int8_code(float w, float inverse) {
  const float x = w * inverse;
  const float limited = x < -127.0f ? -127.0f : x > 127.0f ? 127.0f : x == x ? x : 0.0f;
  return static_cast<int>(bits_of(limited + 12582912.0f)) - 0x4b400000;
}

// ---- scales of rows
// --------------------------------------------------------------------------------------------

/// A block a row, those behind the last too: row_scale = 2^-e; `as_stored`: 1.
GRETA_KERNEL void pack_scales(Mark mark, PackCall call, bool as_stored) {
  entered(mark);
  Shared shared;
  const SharedArray<float> largest = shared.array<float>(kRowThreads / kWave);
  const auto row = static_cast<int64_t>(block_x());
  float amax = 0.0f;
  if (row < call.to.rows) {
    const uint8_t* from = source_row(call, row);
    if (call.int8) {
      for (int64_t first = static_cast<int64_t>(thread_index()) * kInt8Block; first < call.to.cols;
           first += static_cast<int64_t>(kRowThreads) * kInt8Block) {
        const Int8Block block = int8_block(call, row, first);
        const float d = from_f16(block.scale);
        for (int64_t k = first; k < first + kInt8Block && k < call.to.cols; ++k) {
          const int q = int8_code(element(call.source_type, from, k), block.inverse);
          amax = larger(amax, magnitude_of(static_cast<float>(q) * d));
        }
      }
    } else {
      for (int64_t k = thread_index(); k < call.to.cols; k += kRowThreads)
        amax = larger(amax, magnitude_of(element(call.source_type, from, k)));
    }
  }
  amax = block_largest(amax, largest);
  if (thread_index() == 0)
    const_cast<float*>(call.to.row_scale)[row] = as_stored ? 1.0f : inverse_power(row_power(amax));
}

// ---- tiles
// -----------------------------------------------------------------------------------------------------

/// The bits that the packed type has for element k of a row: its code, f16 or FP32. Outside of the matrix: of
/// zero. `inverse` is the int8 block's.
template <Type T>
GRETA_DEVICE uint32_t element_bits(const PackCall& call, int64_t row, int64_t k, float inverse,
                                   unsigned& inexact) {
  if (row >= call.to.rows || k >= call.to.cols) return Format<T>::kOffset;
  const uint8_t* from = source_row(call, row);
  if constexpr (T == Type::F32) {
    return bits_of(element(call.source_type, from, k));
  } else if constexpr (T == Type::F16) {
    if (call.source_type == Type::F16) return half_bits(from + 2 * k);
    const float w = element(call.source_type, from, k);
    const float scale = call.to.row_scale[row];
    const uint16_t half = to_f16(w * inverse_power(scale));
    if (w == w && from_f16(half) * scale != w) ++inexact;
    return half;
  } else {
    if (T == Type::Q8_0 && call.int8)
      return static_cast<uint32_t>(int8_code(element(call.source_type, from, k), inverse) + 128);
    return static_cast<uint32_t>(code_of<T>(block_of<T>(from, k), static_cast<int>(k % Block<T>::kElements)));
  }
}

/// Of int8: 1 / d and f16(d) of the tile's blocks, [16 rows][8].
struct Int8Tile {
  SharedArray<float> inverse;
  SharedArray<uint32_t> scale;
};

/// A plane of the tile at `to`: `Bits` bits of each element, from bit `Shift` of element_bits on.
template <Type T, int Bits, int Shift, int LaneWords>
GRETA_DEVICE void pack_plane(const PackCall& call, int64_t row0, int64_t k0, const Int8Tile& int8,
                             uint32_t* to, unsigned& inexact) {
  constexpr int kSlots = Bits < 16 ? 16 / Bits : 1;
  for (int i = thread_index(); i < LaneWords * kWave; i += kPackThreads) {
    const int lane = i / LaneWords;
    const int word = i % LaneWords;
    uint32_t bits = 0;
    for (int slot = 0; slot < kSlots; ++slot) {
      const int p = Bits == 32 ? word / 2 : word * kSlots + slot;
      const int e = 2 * (p % kPairs);
      const int row = a_row(lane, e);
      const int k = p / kPairs * 16 + a_k(lane, e);
      const float inverse = T == Type::Q8_0 && call.int8 ? int8.inverse[row * 8 + k / kInt8Block] : 0.0f;
      if constexpr (Bits == 32) {
        bits = element_bits<T>(call, row0 + row, k0 + k + word % 2, inverse, inexact);
      } else {
        constexpr uint32_t kMask = (1u << Bits) - 1;
        const uint32_t even = (element_bits<T>(call, row0 + row, k0 + k, inverse, inexact) >> Shift) & kMask;
        const uint32_t odd =
            (element_bits<T>(call, row0 + row, k0 + k + 1, inverse, inexact) >> Shift) & kMask;
        bits |= (even | odd << 16) << slot_bit<Bits>(slot);
      }
    }
    to[Plane<LaneWords>::at(word, lane)] = bits;
  }
}

/// The f16 at `offset` of the row's block of element k; 0 outside of the matrix.
template <Type T>
GRETA_DEVICE uint32_t field_at(const PackCall& call, int64_t row, int64_t k, int offset) {
  if (row >= call.to.rows || k >= call.to.cols) return 0;
  return half_bits(block_of<T>(source_row(call, row), k) + offset);
}

/// d of a block behind its row's power of two, both f16. Where that is too large all codes are zeros, else
/// the row would be behind a smaller one.
GRETA_DEVICE uint32_t scaled_d(const PackCall& call, int64_t row, uint32_t d, unsigned& inexact) {
  const float value = from_f16(static_cast<uint16_t>(d)), scale = call.to.row_scale[row];
  const uint16_t scaled = to_f16(value * inverse_power(scale));
  const float back = from_f16(scaled) * scale;
  constexpr float kMostF16 = 65504.0f;
  if (magnitude_of(value) <= kMostF16 && magnitude_of(back) > kMostF16 * scale) return 0;
  if (value == value && back != value) inexact += kInt8Block;
  return scaled;
}

/// Parameter word `part` of a row and k64 step (packed.h).
template <Type T>
GRETA_DEVICE uint32_t parameter_word(const PackCall& call, int64_t row, int64_t k0, int step, int part) {
  using F = Format<T>;
  using B = Block<T>;
  const int64_t k = k0 + 64 * step;
  if constexpr (!F::kSuper) {
    return F::kMinimum ? field_at<T>(call, row, k + 32 * part, B::kD) |
                             field_at<T>(call, row, k + 32 * part, B::kM) << 16
                       : field_at<T>(call, row, k, B::kD) | field_at<T>(call, row, k + 32, B::kD) << 16;
  } else {
    if (row >= call.to.rows || k >= call.to.cols) return 0;
    const uint8_t* block = block_of<T>(source_row(call, row), k);
    uint32_t word = 0;
    for (int byte = 0; byte < 4; ++byte) {
      int code;
      if constexpr (T == Type::Q4_K || T == Type::Q5_K) {
        const int s = 2 * step + byte / 2;
        code = byte % 2 == 0 ? scale_code<T>(block, s) : minimum_code<T>(block, s);
      } else {
        const int s = 4 * step + byte;
        code = scale_code<T>(block, s);
        if constexpr (T == Type::Q2_K) code |= minimum_code<T>(block, s) << 4;
      }
      word |= static_cast<uint32_t>(code) << (8 * byte);
    }
    return word;
  }
}

template <Type T>
GRETA_DEVICE uint32_t head_word(const PackCall& call, int64_t row0, int64_t k0, int i) {
  using B = Block<T>;
  const uint32_t low = field_at<T>(call, row0 + i, k0, B::kD);
  const uint32_t high = Format<T>::kMinimum ? field_at<T>(call, row0 + i, k0, B::kM)
                                            : field_at<T>(call, row0 + i + 8, k0, B::kD);
  return low | high << 16;
}

/// Elements of super-blocks with an infinite d or dmin in `word`: where these are multiplied into each
/// weight, all are read as NaN (times_byte).
template <Type T>
GRETA_DEVICE unsigned lost_to_infinity(uint32_t word) {
  const unsigned low = (word & 0x7fffu) == 0x7c00u ? 1 : 0;
  const unsigned high = ((word >> 16) & 0x7fffu) == 0x7c00u ? 1 : 0;
  return (Format<T>::kMinimum ? low | high : low + high) * kChunkK;
}

/// A block a tile. Grid: tiles of rows, chunks.
template <Type T>
GRETA_KERNEL void pack_tiles(Mark mark, PackCall call) {
  entered(mark);
  using F = Format<T>;
  Shared shared;
  const Int8Tile int8{shared.array<float>(kTileRows * 8), shared.array<uint32_t>(kTileRows * 8)};
  const auto row0 = static_cast<int64_t>(block_x()) * kTileRows;
  const auto k0 = static_cast<int64_t>(block_y()) * kChunkK;
  auto* tile = reinterpret_cast<uint32_t*>(
      const_cast<std::byte*>(call.to.data) +
      (static_cast<int64_t>(block_x()) * chunks_of(call.to.cols) + block_y()) * F::kTileBytes);
  if (call.int8) {
    unsigned unfit = 0;
    for (int i = thread_index(); i < kTileRows * 8; i += kPackThreads) {
      const int64_t row = row0 + i / 8;
      const Int8Block block =
          row < call.to.rows ? int8_block(call, row, k0 + i % 8 * kInt8Block) : Int8Block{0.0f, 0};
      int8.inverse[i] = block.inverse;
      int8.scale[i] = block.scale;
      if (!block.is_finite()) ++unfit;
    }
    if (unfit > 0 && call.unfit != nullptr) atomic_add(call.unfit, unfit);
    barrier();
  }
  unsigned inexact = 0;
  pack_plane<T, F::kLowBits, 0, F::kLowWords>(call, row0, k0, int8, tile, inexact);
  if constexpr (F::kHighBits > 0)
    pack_plane<T, F::kHighBits, F::kLowBits, F::kHighWords>(call, row0, k0, int8, tile + F::kHighAt / 4,
                                                            inexact);
  if constexpr (F::kCodes) {
    for (int i = thread_index(); i < kTileRows * kStepsK64 * F::kParamWords; i += kPackThreads) {
      const int row = i / (kStepsK64 * F::kParamWords);
      const int step = i / F::kParamWords % kStepsK64;
      uint32_t word;
      if (T == Type::Q8_0 && call.int8) {
        const int at = row * 8 + 2 * step;
        word = int8.scale[at] | int8.scale[at + 1] << 16;
      } else {
        word = parameter_word<T>(call, row0 + row, k0, step, i % F::kParamWords);
      }
      if constexpr (kHalfScale<T>)
        word = scaled_d(call, row0 + row, word & 0xffffu, inexact) |
               scaled_d(call, row0 + row, word >> 16, inexact) << 16;
      tile[F::kParamsAt / 4 + i] = word;
    }
    if constexpr (F::kSuper) {
      for (int i = thread_index(); i < F::kHeads; i += kPackThreads) {
        const uint32_t word = head_word<T>(call, row0, k0, i);
        tile[F::kHeadsAt / 4 + i] = word;
        if constexpr (!kSumsCodes<T>) inexact += lost_to_infinity<T>(word);
      }
    }
  }
  if (inexact > 0) atomic_add(call.inexact, inexact);
}

/// A wave a chunk: the row's elements through the registers that a product would take them from.
template <Type T>
GRETA_KERNEL void unpack_row(Mark mark, UnpackCall call) {
  entered(mark);
  using F = Format<T>;
  const int chunk = block_x() * (block_threads() / kWave) + wave_index();
  const int chunks = chunks_of(call.from.cols);
  if (chunk >= chunks) return;
  const std::byte* tile = call.from.data + (call.row / kTileRows * chunks + chunk) * F::kTileBytes;
  const float scale = call.from.row_scale[call.row];
  const int lane = lane_index();
  float up[kRowsA];
  for (float& u : up) u = 1.0f;
  GRETA_UNROLL
  for (int j = 0; j < kStepsK64; ++j) {
    Piece<T, 1> piece;
    load_piece(tile, j, piece);
    const Scales<T> scales = scales_of(piece, 0, heads_of(piece, up));
    GRETA_UNROLL
    for (int pair = 0; pair < kPairsK64; ++pair) {
      const int e = 2 * (pair % kPairs);
      float even, odd;
      if constexpr (T == Type::F16) {
        even = low_f16(piece.low[pair]) * scale;
        odd = high_f16(piece.low[pair]) * scale;
      } else if constexpr (T == Type::F32) {
        even = float_of(piece.low[2 * pair]);
        odd = float_of(piece.low[2 * pair + 1]);
      } else if constexpr (kSumsCodes<T>) {
        Operand<T> codes;
        unpack_k16(piece, scales, up, j, 0, pair / kPairs, codes);
        const uint32_t word = codes.part[0].word[pair % kPairs];
        const uint32_t head = stream_word(tile + call.row % kTileRows * 4 + F::kHeadsAt);
        const uint32_t params = piece.params[pair % kRowsA][0];
        const int block = pair / kPairs * 16 / F::kBlock;
        const float d = low_f16(head) * (1.0f / kCodePower);
        const float m = high_f16(head) * -static_cast<float>(params >> (16 * block + 8) & 0xffu);
        even = fused(low_f16(word), d, m);
        odd = fused(high_f16(word), d, m);
      } else {
        code_values(piece, scales, j, 0, pair, even, odd);
        if constexpr (kHalfScale<T>) {
          even = even * scale;
          odd = odd * scale;
        }
      }
      if (a_row(lane, e) != call.row % kTileRows) continue;
      const int64_t k = static_cast<int64_t>(chunk) * kChunkK + 64 * j + pair / kPairs * 16 + a_k(lane, e);
      if (k < call.from.cols) call.out[k] = even;
      if (k + 1 < call.from.cols) call.out[k + 1] = odd;
    }
  }
}

// ---- as in the file
// --------------------------------------------------------------------------------------------

GRETA_KERNEL void dequantize_elements(Mark mark, DequantizeCall call) {
  entered(mark);
  const int64_t k = static_cast<int64_t>(block_x()) * kRowThreads + thread_index();
  if (k < call.count) call.out[k] = element(call.type, reinterpret_cast<const uint8_t*>(call.source), k);
}

/// Grid: rows, pieces of the width.
GRETA_KERNEL void embed_rows(Mark mark, EmbedCall call) {
  entered(mark);
  const auto row = static_cast<int64_t>(block_x());
  const int64_t k = static_cast<int64_t>(block_y()) * kRowThreads + thread_index();
  if (k >= call.width) return;
  const auto* from = reinterpret_cast<const uint8_t*>(call.table) + call.batch.tokens[row] * call.row_bytes;
  call.out[row * call.width + k] = element(call.type, from, k) * call.scale;
}

unsigned pieces(int64_t count, int64_t of) { return static_cast<unsigned>((count + of - 1) / of); }

}  // namespace

uint64_t packed_matrix_bytes(quant::Type kernel_type, int64_t rows, int64_t cols) {
  uint64_t bytes = 0;
  for_type(kernel_type, [&]<Type T>() {
    bytes = static_cast<uint64_t>(pieces(rows, kTileRows)) * pieces(cols, kChunkK) * Format<T>::kTileBytes;
  });
  return bytes;
}

void run_pack(const Launch& how, const PackCall& call) {
  const unsigned tiles = pieces(call.to.rows, kTileRows);
  const bool as_stored =
      (call.to.type == Type::F16 && call.source_type == Type::F16) || sums_codes(call.to.type);
  launch(how, "pack_scales", pack_scales, Grid{tiles * kTileRows}, kRowThreads,
         kRowThreads / kWave * static_cast<int>(sizeof(float)), call, as_stored);
  for_type(call.to.type, [&]<Type T>() {
    static const std::string name = kernel_name<T>("pack_tiles");
    launch(how, name.c_str(), pack_tiles<T>, Grid{tiles, pieces(call.to.cols, kChunkK)}, kPackThreads,
           2 * kTileRows * 8 * 4, call);
  });
}

void run_unpack(const Launch& how, const UnpackCall& call) {
  for_type(call.from.type, [&]<Type T>() {
    constexpr int kWaves = kPackThreads / kWave;
    static const std::string name = kernel_name<T>("unpack_row");
    launch(how, name.c_str(), unpack_row<T>,
           Grid{pieces(call.from.cols, static_cast<int64_t>(kChunkK) * kWaves)}, kPackThreads, 0, call);
  });
}

void run_dequantize(const Launch& how, const DequantizeCall& call) {
  launch(how, "dequantize", dequantize_elements, Grid{pieces(call.count, kRowThreads)}, kRowThreads, 0, call);
}

void run_embed(const Launch& how, const EmbedCall& call) {
  launch(how, "embed", embed_rows,
         Grid{static_cast<unsigned>(call.batch.rows), pieces(call.width, kRowThreads)}, kRowThreads, 0, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
