#pragma once
// What a GPU target offers: one function an operator, that launches its kernels on a stream. The functions
// are compiled from kernels/*.inl once for each target (cuda, hip, sim with waves of 32 and of 64); this
// header is plain C++ and all that the backend knows of them. Pointers are device memory unless they say
// host.
//
// Rows of activations are FP32 [rows, width], row-major, contiguous. Calls check nothing: the backend has.
#include <cstdint>

#include "backend/gpu/device.h"
#include "quant/types.h"

namespace greta::gpu {

/// Of a batch, in device memory: [rows] each.
struct DeviceBatch {
  int64_t rows = 0;
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* sequences = nullptr;
};

/// A layer's cache. In a page, K and V are both [kv_head][64 positions][head_dim] of 16-bit elements.
struct DeviceKv {
  uint16_t* k = nullptr;
  uint16_t* v = nullptr;
  int kv_heads = 0;
  int head_dim = 0;
  bool bf16 = false;               ///< else f16
  const int32_t* pages = nullptr;  ///< [sequences, page_stride] (KvLayer)
  int64_t page_stride = 0;
};

/// A matrix as the matmul kernels read it: kernels/packed.h says how it lies.
struct PackedMatrix {
  quant::Type type = quant::Type::F16;  ///< what the kernel sees: the file's; F16 for BF16; Q8_0 for int8
  int64_t rows = 0;                     ///< outputs
  int64_t cols = 0;
  const std::byte* data = nullptr;   ///< packed_bytes() of it
  const float* row_scale = nullptr;  ///< [rows rounded up to 16]: 2^-e, the operand is f16(w 2^e)
};

/// Activations as the matrix units see them: row r is f16(x 2^e) with scale[r] = 2^-e; [rows, stride], or in
/// the tiles that the warpgroups' kernel copies whole (kernels/rounding.h, rounded_at()).
struct RoundedRows {
  uint16_t* data = nullptr;
  float* scale = nullptr;
  int64_t stride = 0;      ///< elements: cols rounded up to kChunkK, zeros behind cols
  int64_t tiled_rows = 0;  ///< in tiles: of so many rows, a multiple of kTiledRows; else 0
  /// The sums of a row's 32 elements each, of f16(x 2^e), in two parts (kernels/rounding.h, sums_at()): a
  /// 16th of what `data` has.
  uint16_t* sums = nullptr;
};
inline constexpr int64_t kTiledRows = 128;

struct EmbedCall {
  DeviceBatch batch;
  quant::Type type;
  const std::byte* table;  ///< the file's own blocks, [vocab][row_bytes]
  int64_t row_bytes;
  float scale;  ///< out = dequantised * scale, one rounding
  float* out;
  int64_t width;
};
struct RoundCall {
  const float* x;
  int64_t rows;
  int64_t width;
  RoundedRows out;
};
/// Where `rounded` has room, the row is left rounded there, too, as RoundCall would leave it: rows as wide as
/// rounds_with_norm() allows.
struct RmsnormCall {
  const float* x;
  const float* weight;
  float eps;
  int64_t rows;
  int64_t width;
  float* out;  ///< may be x
  RoundedRows rounded = {};
  const float* residual = nullptr;  ///< out = residual + normed; may be out
};
struct Product {
  PackedMatrix weight;
  const float* bias = nullptr;  ///< [weight.rows], added last, one rounding
  float* y = nullptr;           ///< [.., weight.rows]
};
enum class Glu { none, silu, gelu };  ///< gelu: gelu_tanh
/// Rows that the product's own blocks round, as RoundCall would (Kernels::rounds_itself).
struct OwnRows {
  const float* x = nullptr;     ///< [rows, cols]; null: MatmulCall::x has them
  const float* norm = nullptr;  ///< [cols]: what is rounded is their rmsnorm with these weights
  float eps = 0.0f;
  float* normed = nullptr;  ///< [rows, cols]: that is left here
};
/// Products of the same rows by matrices of the same type and cols. Expert products: row r of the call reads
/// x row x_rows[r] and writes output row y_rows[r] (both null: r); the rows of a call all belong to this
/// matrix.
struct MatmulCall {
  Product products[3];
  int count = 1;  ///< of products
  int64_t rows = 0;
  RoundedRows x;
  const int32_t* x_rows = nullptr;
  const int32_t* y_rows = nullptr;
  OwnRows own;
  const float* residual = nullptr;  ///< of a single product: y = residual + it; may be y
  Glu glu = Glu::none;              ///< of two (Kernels::fuses_glu): the first y = glu(first, second)
};
/// How pairs of a head's elements are turned by position (RopeSpec).
struct Rotation {
  bool half = false;  ///< RopeStyle::half, else adjacent
  int dims = 0;
  const double* inv_freq = nullptr;  ///< [dims / 2]
  double magnitude = 1.0;
};
struct RopeCall {
  DeviceBatch batch;
  Rotation rotation;
  int heads;
  const float* q;
  const float* k;
  const float* v;
  float* q_out;
  DeviceKv cache;
};
/// Up to so many consecutive batch rows of one sequence: what a block of the attention kernels works on.
struct AttentionTile {
  int32_t first_row;
  int32_t count;
  int32_t sequence;
  int32_t first_position;  ///< of first_row; the others follow one by one
};
struct AttentionCall {
  DeviceBatch batch;
  int heads;
  float scale;
  float softcap;  ///< 0: none
  int window;     ///< 0: every earlier key
  const float* q;
  DeviceKv cache;
  float* out;
  const AttentionTile* tiles;  ///< [tile_count]
  int64_t tile_count;
  int64_t tile_rows;   ///< most rows of a tile
  int64_t splits;      ///< of the longest row: positions / 64 rounded up, counted from position 0
  float* partial;      ///< attention_scratch_floats() of room, or null where that is 0
  uint32_t* arrivals;  ///< [kMostArrivals] zeros, and zeros again when the call is done
  // What RopeCall says, done by attention's own blocks (Kernels::fuses_rope): q is not turned yet, k and v
  // [rows, kv_heads, head_dim] are what the cache has not got yet.
  Rotation rotation = {};
  const float* k = nullptr;  ///< null: q is turned and the cache has all
  const float* v = nullptr;
};
/// Blocks whose splits are merged by whichever of them comes last count themselves here.
inline constexpr int64_t kMostArrivals = 512;
struct AddCall {
  const float* a;
  const float* b;
  int64_t count;  ///< elements
  float* out;
};
struct GluCall {
  Glu glu;
  const float* gate;
  const float* up;
  int64_t rows;
  int64_t width;
  float* out;
  RoundedRows rounded = {};  ///< where it has room: as RoundCall would leave the row
};
struct ChooseExpertsCall {
  const float* logits;
  int64_t rows;
  int experts;
  int used;
  bool normalised;
  float scale;
  float* chosen;   ///< [rows, used]
  float* weights;  ///< [rows, used]
};
struct CombineCall {
  const float* x;  ///< [rows, used, width]
  const float* weights;
  int64_t rows;
  int used;
  int64_t width;
  float* out;
};
struct SoftcapCall {
  const float* x;
  float cap;
  int64_t count;
  float* out;
};
struct GatherCall {
  const float* x;
  const int32_t* from;  ///< [rows]
  int64_t rows;
  int64_t width;
  float* out;
};
/// The file's blocks to what the kernels read.
struct PackCall {
  quant::Type source_type;
  const std::byte* source;  ///< [rows][source_row_bytes], the file's own bytes
  int64_t source_row_bytes;
  PackedMatrix to;    ///< data and row_scale are written (through const_cast: it is being made)
  bool int8 = false;  ///< to.type is Q8_0: quantised from the dequantised values, a Q8_0 source too
  /// Counts elements that are not kept: of BF16 sources, whose f16(w 2^e) 2^-e is not w; of blocks whose d is
  /// held as f16(d 2^e), where that is not d 2^e; and of super-blocks with an infinite scale, which become
  /// NaN. Zeroed by the caller.
  unsigned long long* inexact;
  /// Where it is there: counts blocks of int8 with an element that is not finite, or whose d f16 cannot hold.
  unsigned long long* unfit = nullptr;
};
struct UnpackCall {
  PackedMatrix from;
  int64_t row;
  float* out;  ///< [cols]: the file's dequantised values (BF16: as rounded; int8: the int8 values)
};
/// A whole tensor to FP32 (norm weights, biases), or one row of an embedding.
struct DequantizeCall {
  quant::Type type;
  const std::byte* source;
  int64_t count;
  float* out;
};

/// Reads `bytes` of memory and does nothing else.
struct ReadCall {
  const std::byte* from;
  int64_t bytes;
  bool apart;  ///< each block a piece of its own, else all side by side
  int loads;   ///< 4 or 8 words of 16 bytes in flight a thread
  int threads;
  int blocks;
  uint32_t never;  ///< the sum at which `sink` is written: a value that will not come up
  uint32_t* sink;
};

/// A target's table. `threads`-independent: every function gives the same bits whatever else it is called
/// with.
struct Kernels {
  int wave = 0;
  const char* matrix_unit = "";  ///< "mma.m16n8k16", "mfma.16x16x16", for reports

  /// Bytes of a matrix and of its row scales as the kernels want it.
  uint64_t (*packed_bytes)(quant::Type kernel_type, int64_t rows, int64_t cols);
  /// Floats that AttentionCall::partial must hold for so many rows of so many splits; 0: not used.
  int64_t (*attention_scratch_floats)(int64_t rows, int heads, int head_dim, int64_t splits);
  /// Whether a product of so many rows wants them in tiles; one with x_rows never does.
  bool (*wants_tiles)(const Launch&, int64_t rows);
  /// Whether RmsnormCall may round rows of this width.
  bool (*rounds_with_norm)(int64_t width);
  /// Whether a call of products of so many `outputs` together may have MatmulCall::own; `norm`: and a norm
  /// there.
  bool (*rounds_itself)(const Launch&, int64_t rows, int64_t cols, bool norm, int64_t outputs);
  /// Whether it may have MatmulCall::glu.
  bool (*fuses_glu)(const MatmulCall&);
  /// Most rows that a tile of attention may have.
  int64_t (*attention_tile_rows)(int heads, int kv_heads, int head_dim, int64_t rows);
  /// Whether AttentionCall::k and v may be there, in a batch whose rows are each of a sequence of its own.
  bool (*fuses_rope)(int heads, int kv_heads, int dims);

  void (*embed)(const Launch&, const EmbedCall&);
  void (*rmsnorm)(const Launch&, const RmsnormCall&);
  void (*round)(const Launch&, const RoundCall&);
  void (*matmul)(const Launch&, const MatmulCall&);
  void (*rope)(const Launch&, const RopeCall&);
  void (*attention)(const Launch&, const AttentionCall&);
  void (*add)(const Launch&, const AddCall&);
  void (*glu)(const Launch&, const GluCall&);
  void (*choose_experts)(const Launch&, const ChooseExpertsCall&);
  void (*combine)(const Launch&, const CombineCall&);
  void (*softcap)(const Launch&, const SoftcapCall&);
  void (*gather)(const Launch&, const GatherCall&);
  void (*pack)(const Launch&, const PackCall&);
  void (*unpack)(const Launch&, const UnpackCall&);
  void (*dequantize)(const Launch&, const DequantizeCall&);
  void (*read)(const Launch&, const ReadCall&);
};

/// K is summed in chunks of so many, each an ascending walk of k16 steps from zero; the chunks' sums are
/// added in ascending order, the first as it is. Every kernel keeps to this, whatever the number of rows.
inline constexpr int kChunkK = 256;
/// Elements of a row that RoundedRows::sums has one sum of.
inline constexpr int kSumOf = 32;
/// f16 there of a chunk: the first part of each of its sums, then the second ones.
inline constexpr int kSumsOfChunk = 2 * kChunkK / kSumOf;
static_assert(kSumsOfChunk == 16);
/// f16 that RoundedRows::sums has for so many elements of its `data`.
constexpr int64_t sums_elements(int64_t elements) { return elements / kChunkK * kSumsOfChunk; }

}  // namespace greta::gpu
