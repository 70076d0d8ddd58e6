// The product for few tokens (decode): bound by the reading of the weights. A block is one tile of 16
// outputs; its waves share the chunks of K, so that all of them are in flight at once, and leave each chunk's
// sums in shared memory, where they are added in the one order (matmul.h).
#include <algorithm>

#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

/// Of a block at most; half as many where there are tiles for two blocks a multiprocessor.
constexpr int kFewThreads = 512;
constexpr int kFewTiles = 192;
/// Of shared memory, for chunks' sums.
constexpr int kFewSumsBytes = 40 * 1024;
/// Floats between two tokens' 16 outputs: a fragment of C is stored without bank conflicts.
constexpr int kOutputStride = kTileRows + 4;

/// k64 steps that a lane has in registers or on their way.
template <quant::Type T>
constexpr int kFewPiece = T == quant::Type::F32 ? 2 : 4;

/// c += the product of k64 step `local` of a piece with the tokens' activations from word `at` on.
template <quant::Type T, int kTiles>
GRETA_DEVICE void multiply_k64(const Piece<T, kFewPiece<T>>& piece, const float (&up)[kRowsA], int first,
                               int local, const uint32_t* const (&x)[kTiles], int at,
                               float (&c)[kTiles][kFragmentC]) {
  const Scales<T> scales = scales_of(piece, local, up);
  GRETA_UNROLL
  for (int step = 0; step < 4; ++step) {
    Operand<T> a;
    unpack_k16(piece, scales, up, first, local, step, a);
    GRETA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      FragmentB b;
      GRETA_UNROLL
      for (int w = 0; w < kFragmentB / 2; ++w)
        b.word[w] = x[tile][at + 8 * step + (b_k(0, 2 * w) - b_k(0, 0)) / 2];
      GRETA_UNROLL
      for (int part = 0; part < kParts<T>; ++part) multiply(c[tile], a.part[part], b);
    }
  }
}

/// A chunk's sums, to sums[tokens][outputs]. The chunk at `tile` is in `piece`, which gives way to that at
/// `next` as it is used up (not kMore: to nothing).
template <quant::Type T, int kTiles, bool kMore>
GRETA_DEVICE void sum_chunk(const std::byte* tile, const std::byte* next, Piece<T, kFewPiece<T>>& piece,
                            const float (&up)[kRowsA], const uint32_t* const (&x)[kTiles],
                            const SharedArray<float>& sums) {
  constexpr int kPiece = kFewPiece<T>;
  constexpr bool kNextRest = kMore && Format<T>::kCodes;
  static_assert(kPiece == kStepsK64 || !Format<T>::kCodes);
  Rest<T, kPiece> next_rest = piece;
  if constexpr (kNextRest) load_rest(next, 0, next_rest);
  float c[kTiles][kFragmentC] = {};
  GRETA_UNROLL
  for (int j = 0; j < kStepsK64; ++j) {
    multiply_k64<T>(piece, up, j - j % kPiece, j % kPiece, x, 32 * j, c);
    const bool same = j + kPiece < kStepsK64;
    if (same || kMore)
      load_low<T>(same ? tile : next, (j + kPiece) % kStepsK64,
                  piece.low + j % kPiece * Piece<T, 1>::kLowStep);
  }
  if constexpr (kNextRest) static_cast<Rest<T, kPiece>&>(piece) = next_rest;
  const int lane = lane_index();
  GRETA_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    GRETA_UNROLL
    for (int i = 0; i < kFragmentC; ++i)
      sums[(t * kTileN + c_n(lane, i)) * kOutputStride + c_row(lane, i)] = c[t][i];
  }
}

/// Chunks first, first + waves, .. below `end`: chunk i's sums go to sums[i - base][tokens][outputs].
template <quant::Type T, int kTiles>
GRETA_DEVICE void sum_chunks(const std::byte* tiles, const float (&up)[kRowsA],
                             const uint32_t* const (&x)[kTiles], int first, int waves, int base, int end,
                             const SharedArray<float>& sums, const Mark& mark) {
  if (first >= end) return;
  constexpr int kSlot = kTiles * kTileN * kOutputStride;
  const std::byte* tile = tiles + static_cast<int64_t>(first) * Format<T>::kTileBytes;
  const int64_t stride = static_cast<int64_t>(waves) * Format<T>::kTileBytes;
  const uint32_t* at[kTiles];
  GRETA_UNROLL
  for (int t = 0; t < kTiles; ++t) at[t] = x[t] + static_cast<int64_t>(first) * (kChunkK / 2);
  Piece<T, kFewPiece<T>> piece;
  load_piece(tile, 0, piece);
  after_earlier(mark);  // the weights are on their way; x is what the kernel before leaves
  int chunk = first;
  for (; chunk + waves < end; chunk += waves, tile += stride) {
    sum_chunk<T, kTiles, true>(tile, tile + stride, piece, up, at, sums.from((chunk - base) * kSlot));
    GRETA_UNROLL
    for (int t = 0; t < kTiles; ++t) at[t] += waves * (kChunkK / 2);
  }
  sum_chunk<T, kTiles, false>(tile, nullptr, piece, up, at, sums.from((chunk - base) * kSlot));
}

/// `slots`: chunks whose sums shared memory holds at once. Grid: tiles of outputs, tiles of tokens.
template <quant::Type T, int kTiles>
GRETA_KERNEL void GRETA_BOUNDS(kFewThreads, 1) matmul_few(Mark mark, MatmulCall calls, int slots) {
  entered_early(mark);
  int block_tile = block_x();
  const MatmulCall call = product_of(calls, kTileRows, block_tile);
  constexpr int kTokens = kTiles * kTileN;
  constexpr int kSlot = kTokens * kOutputStride;
  Shared shared;
  const SharedArray<float> sums = shared.array<float>(slots * kSlot);
  const SharedArray<float> totals = shared.array<float>(kSlot);
  const int lane = lane_index();
  const int chunks = chunks_of(call.weight.cols);
  const int output0 = block_tile * kTileRows;
  const int token0 = block_y() * kTokens;
  const std::byte* tiles =
      call.weight.data + static_cast<int64_t>(block_tile) * chunks * Format<T>::kTileBytes;
  const uint32_t* x[kTiles];
  GRETA_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    // Behind the last token stands the last once more: columns of a product know nothing of each other.
    const int token = token0 + tile * kTileN + b_n(lane, 0);
    const int row = x_row_of(call, token < call.rows ? token : static_cast<int>(call.rows) - 1);
    x[tile] = reinterpret_cast<const uint32_t*>(call.x.data + row * call.x.stride) + b_k(lane, 0) / 2;
  }
  float up[kRowsA];
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) up[i] = inverse_power(call.weight.row_scale[output0 + a_row(lane, 2 * i)]);

  const int tokens =
      static_cast<int>(call.rows) - token0 < kTokens ? static_cast<int>(call.rows) - token0 : kTokens;
  for (int base = 0; base < chunks; base += slots) {
    const int end = base + slots < chunks ? base + slots : chunks;
    sum_chunks<T, kTiles>(tiles, up, x, base + wave_index(), block_threads() / kWave, base, end, sums, mark);
    barrier();
    for (int i = thread_index(); i < tokens * kTileRows; i += block_threads()) {
      const int at = i / kTileRows * kOutputStride + i % kTileRows;
      float total = base == 0 ? sums[at] : totals[at] + sums[at];
      for (int slot = 1; slot < end - base; ++slot) total = total + sums[slot * kSlot + at];
      if (end < chunks) {
        totals[at] = total;
      } else if (output0 + i % kTileRows < call.weight.rows) {
        store_output(call, output0 + i % kTileRows, token0 + i / kTileRows, total);
      }
    }
    if (end < chunks) barrier();
  }
}

template <quant::Type T, int kTiles>
void launch_few(const Launch& how, const MatmulCall& call) {
  constexpr int kTokens = kTiles * kTileN;
  constexpr int kSlotBytes = kTokens * kOutputStride * static_cast<int>(sizeof(float));
  const auto chunks = static_cast<int>((call.weight.cols + kChunkK - 1) / kChunkK);
  const int slots = std::min(chunks, kFewSumsBytes / kSlotBytes);
  const int64_t tiles = product_tiles(call, kTileRows);
  const int most = tiles < kFewTiles ? kFewThreads : kFewThreads / 2;
  // A whole number of 64 threads.
  const int threads = std::min(most, (slots * kWave + 63) / 64 * 64);
  const Grid grid{static_cast<unsigned>(tiles), static_cast<unsigned>((call.rows + kTokens - 1) / kTokens)};
  static const std::string name = kernel_name<T>("matmul_few");
  launch(how, name.c_str(), matmul_few<T, kTiles>, grid, threads, (slots + 1) * kSlotBytes, call, slots);
}

}  // namespace

void run_matmul_few(const Launch& how, const MatmulCall& call) {
  for_type(call.weight.type, [&]<quant::Type T>() {
    if (call.rows <= kTileN) return launch_few<T, 1>(how, call);
    if (call.rows <= 2 * kTileN) return launch_few<T, 2>(how, call);
    return launch_few<T, 4>(how, call);
  });
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
