// The product for few tokens (decode), bound by the reading of the weights: what its two kernels share. The
// waves of a block share the chunks of K of all its tiles of 16 outputs, one after another, each with the
// next chunk's weights on their way, and leave each chunk's sums in shared memory, where they are added in
// the one order (matmul.h).
#pragma once
#include <algorithm>
#include <type_traits>

#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

/// Floats between two tokens' 16 outputs: a fragment of C is stored without bank conflicts.
constexpr int kOutputStride = kTileRows + 4;

/// k64 steps that a lane has in registers or on their way.
template <quant::Type T>
constexpr int kFewPiece = T == quant::Type::F32   ? 1
                          : T == quant::Type::F16 ? 2
                                                  : 4;

/// How the work is cut. A tile of two products that meet in a glu has the chunks of both, one after the
/// other.
struct Cut {
  int chunks;   ///< of K
  int parts;    ///< 2 with a glu, else 1
  int all;      ///< chunks of a tile: parts * chunks
  int tiles;    ///< of all products
  int ends[2];  ///< the tiles behind the first product, behind the second
  int waves;    ///< of a block: that multiply

  /// The product of tile `tile` of all, which becomes the one within it.
  GRETA_DEVICE int product_of(int& tile) const {
    if (parts == 2) return 0;
    const int product = (tile >= ends[0] ? 1 : 0) + (tile >= ends[1] ? 1 : 0);
    tile -= product == 0 ? 0 : product == 1 ? ends[0] : ends[1];
    return product;
  }
};
Cut cut_of(const MatmulCall& call, int waves) {
  const auto tiles_of = [](const Product& product) {
    return static_cast<int>((product.weight.rows + kTileRows - 1) / kTileRows);
  };
  Cut cut;
  cut.chunks = static_cast<int>((call.products[0].weight.cols + kChunkK - 1) / kChunkK);
  cut.parts = call.glu == Glu::none ? 1 : 2;
  cut.all = cut.parts * cut.chunks;
  cut.tiles = static_cast<int>(cut.parts == 2 ? tiles_of(call.products[0]) : product_tiles(call, kTileRows));
  cut.ends[0] = cut.ends[1] = cut.tiles;
  for (int p = 0, end = 0; p + 1 < call.count && cut.parts == 1; ++p)
    cut.ends[p] = end += tiles_of(call.products[p]);
  cut.waves = waves;
  return cut;
}

/// Chunk `chunk` of a tile: the next for a wave is as many further on as there are waves, through all tiles
/// of its block.
struct Place {
  int tile;
  int chunk;

  GRETA_DEVICE void settle(const Cut& cut) {
    for (; chunk >= cut.all; chunk -= cut.all) tile += grid_x();
  }
};

/// What comes behind a chunk's sums, if anything does.
struct NoEnds {
  GRETA_DEVICE void load(const std::byte*) {}
};
template <quant::Type T>
using Ends = std::conditional_t<kSumsCodes<T>, ChunkEnds<T>, NoEnds>;

/// A chunk's weights, in registers or on their way.
template <quant::Type T>
struct Held : Ends<T> {
  Piece<T, kFewPiece<T>> piece;
  float row_scale[kRowsA];
  const std::byte* data;  ///< for the parts that are still to be loaded
  int chunk;              ///< of K
};

/// Where a chunk lies.
struct Chunk {
  const std::byte* data = nullptr;
  const float* row_scale = nullptr;  ///< of its tile
  int chunk = 0;                     ///< of K
};
template <quant::Type T>
GRETA_DEVICE Chunk chunk_at(const MatmulCall& call, const Cut& cut, const Place& place) {
  int tile = place.tile, chunk = place.chunk, product = 0;
  if (cut.parts == 2) {
    product = chunk >= cut.chunks ? 1 : 0;
    chunk -= product * cut.chunks;
  } else {
    product = cut.product_of(tile);
  }
  const PackedMatrix& weight = call.products[product].weight;
  return {weight.data + (static_cast<int64_t>(tile) * cut.chunks + chunk) * Format<T>::kTileBytes,
          weight.row_scale + tile * kTileRows, chunk};
}

template <quant::Type T>
GRETA_DEVICE void load_row_scale(const Chunk& chunk, float (&row_scale)[kRowsA]) {
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) row_scale[i] = chunk.row_scale[a_row(lane_index(), 2 * i)];
}

static_assert(kFragmentB == 4);
constexpr bool b_is_as_stated() {
  for (int lane = 0; lane < kWave; ++lane)
    for (int e = 0; e < kFragmentB; ++e)
      if (b_element(b_k(lane, e)) != e || b_lane(b_k(lane, e)) != b_lane(b_k(lane, 0))) return false;
  return true;
}
static_assert(b_is_as_stated());

/// f(j, the operands of k64 step j) for a chunk. `held` gives way to the weights at `next` as they are used
/// up (not `more`: to nothing).
template <quant::Type T, class F>
GRETA_DEVICE void unpack_chunk(Held<T>& held, bool more, const Chunk& next, const F& f) {
  constexpr int kPiece = kFewPiece<T>;
  constexpr bool kRest = Format<T>::kCodes;
  static_assert(kPiece == kStepsK64 || !kRest);
  Rest<T, kPiece> next_rest = held.piece;
  Ends<T> next_ends = held;
  float next_scale[kRowsA], up[kRowsA];
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    up[i] = inverse_power(held.row_scale[i]);
    next_scale[i] = held.row_scale[i];
  }
  if (more) {
    if constexpr (kRest) load_rest(next.data, 0, next_rest);
    next_ends.load(next.data);
    load_row_scale<T>(next, next_scale);
  }
  GRETA_UNROLL
  for (int j = 0; j < kStepsK64; ++j) {
    Operand<T> a[4];
    unpack_k64(held.piece, up, j - j % kPiece, j % kPiece, a);
    f(j, a);
    const bool same = j + kPiece < kStepsK64;
    if (same || more)
      load_low<T>(same ? held.data : next.data, (j + kPiece) % kStepsK64,
                  held.piece.low + j % kPiece * Piece<T, 1>::kLowStep);
  }
  static_cast<Rest<T, kPiece>&>(held.piece) = next_rest;
  static_cast<Ends<T>&>(held) = next_ends;
  GRETA_UNROLL
  for (int i = 0; i < kRowsA; ++i) held.row_scale[i] = next_scale[i];
  held.data = next.data;
  held.chunk = next.chunk;
}

/// A chunk's sums.
template <int kTiles>
struct ChunkSums {
  float c[kTiles][kFragmentC] = {};

  /// Of K, k64 step `j` of chunk `chunk`.
  template <quant::Type T, class Rows>
  GRETA_DEVICE void add(const Rows& x, int chunk, int j, const Operand<T> (&a)[4]) {
    GRETA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      FragmentB b[4];
      x.fragments(tile, chunk, j, b);
      GRETA_UNROLL
      for (int step = 0; step < 4; ++step) {
        GRETA_UNROLL
        for (int part = 0; part < kParts<T>; ++part) multiply(c[tile], a[step].part[part], b[step]);
      }
    }
  }
  /// Behind all of it, of types whose sums are of codes.
  template <class Rows, class E>
  GRETA_DEVICE void end(const Rows& x, int chunk, const E& ends) {
    if constexpr (!std::is_same_v<E, NoEnds>) {
      const FragmentA a = ends.minima();
      GRETA_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        float minima[kFragmentC] = {};
        multiply(minima, a, x.sums(tile, chunk));
        GRETA_UNROLL
        for (int i = 0; i < kFragmentC; ++i) c[tile][i] = ends.sum(i, c[tile][i], minima[i]);
      }
    }
  }
  /// The first `tokens` of them: to[outputs], a token's `stride` floats behind the one before.
  GRETA_DEVICE void put(const SharedArray<float>& to, int tokens, int stride) const {
    const int lane = lane_index();
    GRETA_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      GRETA_UNROLL
      for (int i = 0; i < kFragmentC; ++i) {
        const int token = t * kTileN + c_n(lane, i);
        if (token < tokens) to[token * stride + c_row(lane, i)] = c[t][i];
      }
    }
  }
};

/// What a sum begins with: any number added to it stays as it is.
constexpr float kNothing = -0.0f;

/// Adds to total[p] the numbers at p's slots [first[p], end[p]), kSize apart, ascending.
template <int kSums, int kSize>
GRETA_DEVICE void add_slots(float (&total)[2], const SharedArray<float>& at, const int (&first)[2],
                            const int (&end)[2]) {
  constexpr int kAtOnce = 8;
  const int count[2] = {end[0] - first[0], kSums == 2 ? end[1] - first[1] : 0};
  const int most = count[0] > count[1] ? count[0] : count[1];
  for (int i = 0; i < most; i += kAtOnce) {
    float v[kSums][kAtOnce];
    GRETA_UNROLL
    for (int p = 0; p < kSums; ++p) {
      GRETA_UNROLL
      for (int u = 0; u < kAtOnce; ++u)
        v[p][u] = i + u < count[p] ? at[(first[p] + i + u) * kSize] : kNothing;
    }
    GRETA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      GRETA_UNROLL
      for (int p = 0; p < kSums; ++p) total[p] += v[p][u];
    }
  }
}

/// A row of a tile, and what is read of memory for its outputs: on its way while others multiply.
struct OutputRow {
  bool there;
  int product;
  int output;          ///< of the product
  float row_scale[2];  ///< of both products of a glu, as `bias`
  float bias[2];       ///< kNothing where there is none

  GRETA_DEVICE void load(const MatmulCall& call, const Cut& cut, int tile, int row) {
    product = cut.product_of(tile);
    output = tile * kTileRows + row;
    const Product& of = call.products[product];
    there = output < of.weight.rows;
    row_scale[0] = row_scale[1] = 0.0f;
    bias[0] = bias[1] = kNothing;
    if (!there) return;
    load_product(of, 0);
    if (cut.parts == 2) load_product(call.products[1], 1);
  }
  GRETA_DEVICE void load_product(const Product& of, int which) {
    row_scale[which] = of.weight.row_scale[output];
    if (of.bias != nullptr) bias[which] = of.bias[output];
  }
  GRETA_DEVICE int64_t at(const MatmulCall& call, int token) const {
    return output_at(call, call.products[product], output, token);
  }
  GRETA_DEVICE float residual(const MatmulCall& call, int token) const {
    return call.residual == nullptr ? kNothing : call.residual[at(call, token)];
  }
  /// From its totals, of both products of a glu.
  GRETA_DEVICE float value(Glu glu, const float (&total)[2], float x_scale) const {
    const float y = scaled(total[0], row_scale[0], x_scale) + bias[0];
    return glu == Glu::none ? y : glu_of(glu, y, scaled(total[1], row_scale[1], x_scale) + bias[1]);
  }
};

/// A wave's part of the block's chunks.
template <quant::Type T, int kTiles>
struct Wave {
  const MatmulCall& call;
  const Cut& cut;
  Place here;    ///< the chunk that is to be multiplied next
  Held<T> held;  ///< its weights

  GRETA_DEVICE Wave(const MatmulCall& of, const Cut& by) : call(of), cut(by), here{block_x(), wave_index()} {
    here.settle(cut);
  }
  GRETA_DEVICE bool is_there(const Place& place) const { return place.tile < cut.tiles; }
  GRETA_DEVICE Chunk at(const Place& place) const {
    return is_there(place) ? chunk_at<T>(call, cut, place) : Chunk{};
  }
  GRETA_DEVICE Place behind() const {
    Place next{here.tile, here.chunk + cut.waves};
    next.settle(cut);
    return next;
  }

  GRETA_DEVICE void load_first() {
    if (!is_there(here)) return;
    const Chunk first = at(here);
    load_piece(first.data, 0, held.piece);
    held.load(first.data);
    load_row_scale<T>(first, held.row_scale);
    held.data = first.data;
    held.chunk = first.chunk;
  }
  /// The sums of the chunk at `here` to `to`, as ChunkSums::put() leaves them, and on to the next.
  template <class Rows>
  GRETA_DEVICE void multiply_next(const Rows& x, const SharedArray<float>& to, int tokens, int stride) {
    here = behind();
    const int chunk = held.chunk;
    const Ends<T> ends = held;
    ChunkSums<kTiles> sums;
    unpack_chunk<T>(held, is_there(here), at(here),
                    [&](int j, const Operand<T>(&a)[4]) { sums.template add<T>(x, chunk, j, a); });
    sums.end(x, chunk, ends);
    sums.put(to, tokens, stride);
  }
};

}  // namespace
}  // namespace greta::gpu::GRETA_GPU_TARGET
