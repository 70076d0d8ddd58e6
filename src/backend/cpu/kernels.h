#pragma once
// The kernels of one instruction set, as a table of plain functions. Three translation units fill one each
// from the same sources (*.inl); which one runs is chosen once, when the backend is made. Nothing here may
// hold an inline function: this header is compiled with AVX-512 switched on, and the linker would be free to
// use that copy everywhere.
#include <cstddef>
#include <cstdint>

namespace greta::cpu {

/// Rows of a packed group: one a SIMD lane.
inline constexpr int kLanes = 16;
/// Elements of K that share an activation scale, and the unit of every packed layout.
inline constexpr int kUnit = 32;
/// Units in a step (a K-quant's super-block; eight blocks of the other types).
inline constexpr int kStepUnits = 8;
/// The most groups of one integer_tile call, and the tokens that it carries through K together: whole tiles.
inline constexpr int kItemGroups = 8;
inline constexpr int kBlockTokens = 264;
/// A step of one group unpacked: 16-bit codes and two sub-blocks a unit at most.
inline constexpr int kPanelBytes = kStepUnits * (kUnit * kLanes * 2 + 2 * 2 * kLanes * 4);
/// Scratch of integer_tile and float_matmul: panels, then the sums of a block.
inline constexpr int kMatmulScratch = 400 << 10;
/// Integer weight types, the index of the kernel arrays.
inline constexpr int kIntegerTypes = 10;
enum IntegerType : int { kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K };
/// Float types of weights and of the KV cache, the index of their kernel arrays.
enum FloatType : int { kF32, kF16, kBF16 };
inline constexpr int kFloatTypes = 3;

/// How a group of 16 rows lies in memory (packed.h). A step is its units' quants, `quants` bytes each, then
/// its scales: `scales` bytes a unit, or once a step where it is a K-quant's super-block. weight = scale *
/// (code - bias), or scale * code + addend where the format has minima; both by sub-block of `sub` elements.
struct FormatShape {
  int file_bytes;  ///< of a block of the file
  int quants;
  int scales;
  bool super;
  int sub;
  int bias;
  bool minima;
  int bits;  ///< of a code
};
inline constexpr FormatShape kFormats[kIntegerTypes] = {
    // Q4_0: low nibbles of 4 k4-groups, high nibbles of the next 4; d
    {18, 256, 32, false, 32, 8, false, 4},
    // Q4_1: the same; d, m
    {20, 256, 64, false, 32, 0, true, 4},
    // Q5_0: nibbles, then 8 planes of the fifth bit in one vector; d
    {22, 320, 32, false, 32, 16, false, 5},
    // Q5_1: the same; d, m
    {24, 320, 64, false, 32, 0, true, 5},
    // Q8_0: q + 128; d
    {34, 512, 32, false, 32, 128, false, 8},
    // Q2_K: pairs of bits of 4 k4-groups, twice; d, dmin, nibbles of scales, of mins
    {84, 128, 320, true, 16, 0, true, 2},
    // Q3_K: pairs of bits, then planes of the third bit; d, 6-bit scales
    {110, 192, 224, true, 16, 4, false, 3},
    // Q4_K: nibbles; d, dmin, 6-bit scales and mins
    {144, 256, 256, true, 32, 0, true, 4},
    // Q5_K: nibbles and the fifth bit; the same
    {176, 320, 256, true, 32, 0, true, 5},
    // Q6_K: four groups of 6 bits in three; d, 8-bit scales
    {210, 384, 288, true, 16, 32, false, 6},
};

/// Rows of activations rounded to integers, in token tiles as even as they come, so that a tile of one token
/// is the only one. Tile i holds the tokens tile_start[i] .. tile_start[i + 1], T of them. A step of K is
/// together for all tokens: a tile's cells of the step that begins at unit u and has n units begin at cell u
/// * rows + (its first token) * n (activation_cell), and are, [units of the step] of
///   q      [...][T] bytes, the instruction set's own order, x_bytes a cell
///   scale  [T] FP32
///   sum    [2][T] int32: exact sums of q over 16 elements
///   extra  [sub-blocks][T], one array for each (sub-block, bias) that an output of the call has (x_extra)
struct Activation {
  int64_t rows = 0;
  int64_t units = 0;
  int64_t tiles = 0;
  const int32_t* tile_start = nullptr;
  uint8_t* q = nullptr;
  float* scale = nullptr;
  int32_t* sum = nullptr;
};

/// Packed groups of 16 rows (packed.h): group `first` and those behind it.
struct Groups {
  const uint8_t* data = nullptr;
  int64_t first = 0;
  int64_t bytes = 0;  ///< of a group
};

/// One product with integer weights.
struct IntegerJob {
  Groups groups;
  int64_t rows = 0;
  const Activation* x = nullptr;
  const void* extra = nullptr;
  const float* bias = nullptr;  ///< [rows] or null
  float* out = nullptr;         ///< [tokens, rows]
};

/// Float weights, packed (packed.h) or in the file's order, in strips of KernelTable::float_rows rows: 16
/// elements from 16 i of K on of row r of strip s are at data + s strip + r row + i sixteen. K is a multiple
/// of 16 or filled up; behind the last row nothing is read.
struct FloatRows {
  const uint8_t* data = nullptr;
  int64_t strip = 0;    ///< bytes
  int64_t row = 0;      ///< bytes; 16 elements where packed
  int64_t sixteen = 0;  ///< bytes
};

/// One product with float weights.
struct FloatJob {
  FloatRows weights;
  int64_t rows = 0;
  int64_t k = 0;
  /// Token tiles of float_tokens, the last may be smaller: a tile of T tokens is [k / 16][T][16], k filled up
  /// to a multiple of 16 with zeros.
  const float* x = nullptr;
  const float* bias = nullptr;  ///< [rows] or null
  float* out = nullptr;         ///< [tokens, rows]
};

/// Queries that read the same kv head of the same sequence. K page: [kv_head][4][head_dim][16];
/// V: [kv_head][64][head_dim].
struct AttentionJob {
  int queries = 0;
  const float* const* q = nullptr;  ///< each [head_dim]
  float* const* out = nullptr;      ///< each [head_dim]
  const int32_t* positions =
      nullptr;                     ///< each sees the keys up to its position, with a window the last of them
  const int32_t* pages = nullptr;  ///< of the sequence
  const std::byte* k = nullptr;    ///< page 0, this kv head
  const std::byte* v = nullptr;
  int64_t page_bytes = 0;
  int head_dim = 0;
  float scale = 0.0f;
  float softcap = 0.0f;  ///< 0: none
  int64_t window = 0;    ///< 0: none
};

struct KernelTable {
  const char* name;
  /// Bytes of Activation::q for 32 elements of a token at most (alone it can take more than in a tile), by
  /// [eight-bit mode].
  int x_bytes[2];
  int tile_groups;  ///< row groups that integer_tile takes through a tile together
  int tile_tokens;  ///< the most tokens of a tile of Activation

  // rows: element-wise and norms
  void (*rmsnorm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*scale)(const float* x, float factor, int64_t n, float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*exp)(const float* x, int64_t n, float* out);
  void (*softcap)(const float* x, float cap, int64_t n, float* out);
  /// x: [used, n]
  void (*combine)(const float* x, const float* weights, int64_t used, int64_t n, float* out);

  // rope
  void (*sincos)(const double* x, int64_t n, double* sin, double* cos);
  void (*rope_table)(int32_t position, const double* inv_freq, int64_t n, double magnitude, float* cos,
                     float* sin);
  void (*rotate_adjacent)(const float* x, const float* cos, const float* sin, int pairs, float* out);
  void (*rotate_half)(const float* x, const float* cos, const float* sin, int pairs, float* out);
  /// FP32 to the cache's element type, nearest even.
  void (*round_to[kFloatTypes])(const float* x, int64_t n, void* out);

  // matmul
  int float_rows;      ///< rows of a strip of float weights (packed.h), divides 8
  int float_tokens;    ///< tokens of a tile of FloatJob::x
  int float_together;  ///< rows that a block of tokens passes together: groups of 16
  /// Rows [row0, row1), row0 a strip's first, x tokens [token0, token1), whole tiles; scratch: kMatmulScratch
  /// bytes.
  void (*float_matmul[kFloatTypes])(const FloatJob& job, int64_t row0, int64_t row1, int64_t token0,
                                    int64_t token1, std::byte* scratch);
  /// Packs up to 16 rows of file blocks, `row_bytes` apart (15 row_bytes < 2^31), the lanes past `count`
  /// being zero rows. to: group_bytes() of packed.h.
  void (*pack_group[kIntegerTypes])(const uint8_t* first_row, int64_t row_bytes, int count, int64_t units,
                                    uint8_t* to);
  /// Rounds one tile of rows, x: [tokens, k] from the tile's first token on.
  void (*round_tile[2])(const float* x, int64_t k, Activation& to, int64_t tile);
  /// extra[] of one tile for a weight type: -bias * sum as int32, or float(sum) * scale.
  void (*x_extra[kIntegerTypes])(const Activation& x, int64_t tile, void* extra);
  /// One token: groups [group0, group1).
  void (*integer_one[2][kIntegerTypes])(const IntegerJob& job, int64_t group0, int64_t group1);
  /// Tiles [tile0, tile1) x groups [group0, group1), kItemGroups at most; scratch: kMatmulScratch bytes.
  void (*integer_tile[2][kIntegerTypes])(const IntegerJob& job, int64_t group0, int64_t group1, int64_t tile0,
                                         int64_t tile1, std::byte* scratch);

  // attention; scratch: attention_scratch() bytes, 64-byte aligned
  void (*attention[kFloatTypes])(const AttentionJob& job, std::byte* scratch);
};

/// Floats of scratch that a query has besides two rows (q and its output): the scores of a page of 64 keys,
/// and m, l, c, begin and end of attention.inl.
inline constexpr int64_t kQueryFloats = 64 + 5;
int64_t attention_scratch(int queries, int head_dim);

const KernelTable& kernels_avx512();
const KernelTable& kernels_avx2();
const KernelTable& kernels_portable();

}  // namespace greta::cpu
