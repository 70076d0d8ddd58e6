// The product for few tokens (decode): bound by the reading of the weights. A block takes one tile of 16
// outputs after another; its waves share the chunks of K of all of them, one after another, each with the
// next chunk's weights on their way, and leave each chunk's sums in shared memory, where they are added in
// the one order (matmul.h). With very few tokens a block rounds them itself, and norms them before: work that
// every block repeats, and that spares a launch. Some waves have the rows for that; the others unpack their
// first chunk meanwhile, and while the kernel before ends.
#include <algorithm>
#include <type_traits>

#include "backend/gpu/kernels/held_row.h"
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

// Of a block: waves that multiply, as many as registers allow, and behind them waves that add up a tile's
// sums and write its outputs while those are at the next tile.
template <int kTiles>
constexpr int kFewThreads = kTiles == 1 ? 640 : 512;
template <int kTiles>
constexpr int kWorkThreads = kFewThreads<kTiles> - kTiles* kWave;
/// Lanes that share a row of a norm (orders.h).
constexpr int kNormLanes = 512;
static_assert(rmsnorm_lanes(1 << 20) == kNormLanes);
/// Threads that round rows, the last of those that multiply: each stands for kLanesEach such lanes.
constexpr int kRowThreads = 256;
constexpr int kLanesEach = kNormLanes / kRowThreads;
constexpr int kFirstRowThread = kWorkThreads<1> - kRowThreads;
static_assert(kFirstRowThread % kWave == 0);
/// Of shared memory, where a block has rows in memory.
constexpr int kBesideCacheBytes = 96 * 1024;
/// Floats between two tokens' 16 outputs: a fragment of C is stored without bank conflicts.
constexpr int kOutputStride = kTileRows + 4;
/// Of shared memory, for the rows that a block rounds itself.
constexpr int kOwnBytes = 24 * 1024;
/// Elements between two rows in shared memory: fragments of B are read without bank conflicts.
inline int own_stride(int64_t cols) { return static_cast<int>((cols + kChunkK - 1) / kChunkK) * kChunkK + 8; }
/// The same of their sums.
inline int sums_stride(int64_t cols) {
  return static_cast<int>((cols + kChunkK - 1) / kChunkK) * kSumsOfChunk + 8;
}

/// k64 steps that a lane has in registers or on their way.
template <quant::Type T>
constexpr int kFewPiece = T == quant::Type::F32   ? 1
                          : T == quant::Type::F16 ? 2
                                                  : 4;

/// How the work is cut. A tile of two products that meet in a glu has the chunks of both, one after the
/// other.
struct Cut {
  int chunks;      ///< of K
  int parts;       ///< 2 with a glu, else 1
  int all;         ///< chunks of a tile: parts * chunks
  int slots;       ///< chunks whose sums shared memory holds at once
  int tiles;       ///< of all products
  int ends[2];     ///< the tiles behind the first product, behind the second
  int own_stride;  ///< of the rows that a block rounds itself
  int sums_stride;
  int unpacking;  ///< waves that unpack their first chunk before they can multiply it

  /// The product of tile `tile` of all, which becomes the one within it.
  GRETA_DEVICE int product_of(int& tile) const {
    const int product = (tile >= ends[0] ? 1 : 0) + (tile >= ends[1] ? 1 : 0);
    tile -= product == 0 ? 0 : product == 1 ? ends[0] : ends[1];
    return product;
  }
};

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

/// The rounded rows in memory, as fragments of B. Behind the last token stands the last once more: columns of
/// a product know nothing of each other.
template <int kTiles>
struct RowsInMemory {
  const uint32_t* row[kTiles];
  const uint32_t* row_sums[kTiles];

  GRETA_DEVICE explicit RowsInMemory(const MatmulCall& call) {
    const int lane = lane_index();
    GRETA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * kTileN + b_n(lane, 0);
      const int x_row = x_row_of(call, token < call.rows ? token : static_cast<int>(call.rows) - 1);
      row[tile] = reinterpret_cast<const uint32_t*>(call.x.data + x_row * call.x.stride) + b_k(lane, 0) / 2;
      row_sums[tile] =
          reinterpret_cast<const uint32_t*>(call.x.sums + sums_at(call.x, x_row, 0, 0)) + b_k(lane, 0) / 2;
    }
  }
  /// Of a tile, the chunk's sums of the rows.
  GRETA_DEVICE FragmentB sums(int tile, int chunk) const {
    FragmentB b;
    GRETA_UNROLL
    for (int i = 0; i < 2; ++i)
      b.word[i] = row_sums[tile][chunk * (kSumsOfChunk / 2) + (b_k(0, 2 * i) - b_k(0, 0)) / 2];
    return b;
  }
  /// Of a tile, the four k16 steps of k64 step `j` of a chunk.
  GRETA_DEVICE void fragments(int tile, int chunk, int j, FragmentB (&b)[4]) const {
    GRETA_UNROLL
    for (int i = 0; i < 8; ++i)
      b[i / 2].word[i % 2] =
          row[tile][chunk * (kChunkK / 2) + 32 * j + 8 * (i / 2) + (b_k(0, i % 2 * 2) - b_k(0, 0)) / 2];
  }
};
static_assert(kFragmentB == 4);
constexpr bool b_is_as_stated() {
  for (int lane = 0; lane < kWave; ++lane)
    for (int e = 0; e < kFragmentB; ++e)
      if (b_element(b_k(lane, e)) != e || b_lane(b_k(lane, e)) != b_lane(b_k(lane, 0))) return false;
  return true;
}
static_assert(b_is_as_stated());
/// Those that the block has rounded itself: of each k64 step, first the eight words of a lane of B that has
/// the lowest k, then those of the next.
struct OwnRounded {
  SharedArray<uint16_t> rows, row_sums;
  int at, sums_at;

  GRETA_DEVICE static int place(int k) {
    const auto at = static_cast<unsigned>(k);
    const int of_16 = static_cast<int>(at % 16);
    return static_cast<int>(at / 64 * 64 + at % 64 / 16 * 4) + b_lane(of_16) * 16 + b_element(of_16);
  }
  GRETA_DEVICE OwnRounded(const MatmulCall& call, const Cut& cut, const SharedArray<uint16_t>& own,
                          const SharedArray<uint16_t>& own_sums)
      : rows(own), row_sums(own_sums) {
    const int lane = lane_index();
    const int token = b_n(lane, 0) < call.rows ? b_n(lane, 0) : static_cast<int>(call.rows) - 1;
    at = token * cut.own_stride + b_lane(b_k(lane, 0)) * 16;
    sums_at = token * cut.sums_stride + b_k(lane, 0);
  }
  GRETA_DEVICE FragmentB sums(int /*tile*/, int chunk) const {
    FragmentB b;
    GRETA_UNROLL
    for (int i = 0; i < 2; ++i)
      b.word[i] = row_sums.word(sums_at + chunk * kSumsOfChunk + b_k(0, 2 * i) - b_k(0, 0));
    return b;
  }
  GRETA_DEVICE void fragments(int /*tile*/, int chunk, int j, FragmentB (&b)[4]) const {
    GRETA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Words4 v = rows.words4(at + chunk * kChunkK + 64 * j + 8 * half);
      b[2 * half] = {{v.x, v.y}};
      b[2 * half + 1] = {{v.z, v.w}};
    }
  }
};

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
  /// To to[tokens][outputs].
  GRETA_DEVICE void put(const SharedArray<float>& to) const {
    const int lane = lane_index();
    GRETA_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      GRETA_UNROLL
      for (int i = 0; i < kFragmentC; ++i)
        to[(t * kTileN + c_n(lane, i)) * kOutputStride + c_row(lane, i)] = c[t][i];
    }
  }
};

/// A wave's chunk, unpacked in shared memory.
struct Unpacked {
  static constexpr int kWords = kStepsK64 * kPairsK64;  ///< of a lane, each two operands
  static constexpr int kBytes = 4 * kWave * kWords;
  SharedArray<uint16_t> operands;

  GRETA_DEVICE Unpacked(Shared& shared, int waves)
      : operands(shared.array<uint16_t>(waves * (kBytes / 2))
                     .from(wave_index() < waves ? wave_index() * (kBytes / 2) : 0)) {}
  /// Of word i of k64 step j.
  GRETA_DEVICE static int at(int j, int i) { return 2 * Plane<kWords>::at(j * kPairsK64 + i, lane_index()); }
  template <quant::Type T>
  GRETA_DEVICE void put(int j, const Operand<T> (&a)[4]) const {
    const auto word = [&](int i) { return a[i / kPairs].part[0].word[i % kPairs]; };
    GRETA_UNROLL
    for (int i = 0; i < kPairsK64; i += 4)
      operands.put_words4(at(j, i), {word(i), word(i + 1), word(i + 2), word(i + 3)});
  }
  template <quant::Type T>
  GRETA_DEVICE void take(int j, Operand<T> (&a)[4]) const {
    const auto word = [&](int i) -> uint32_t& { return a[i / kPairs].part[0].word[i % kPairs]; };
    GRETA_UNROLL
    for (int i = 0; i < kPairsK64; i += 4) {
      const Words4 v = operands.words4(at(j, i));
      word(i) = v.x;
      word(i + 1) = v.y;
      word(i + 2) = v.z;
      word(i + 3) = v.w;
    }
  }
};

// ---- rows that the block rounds itself

/// Shared memory of a block that rounds rows itself.
struct OwnShared {
  SharedArray<uint16_t> rows;  ///< [tokens][own_stride]
  SharedArray<uint16_t> sums;  ///< [tokens][sums_stride]
  SharedArray<float> scales;   ///< [tokens]
  SharedArray<float> trees;    ///< [kNormLanes / kTree]
  SharedArray<float> largest;  ///< [row threads' waves]
  Meeting meeting;             ///< of the row threads
  /// But for the rows and their sums, each array a multiple of 16 bytes.
  static constexpr int kBytes = 4 * (kTileN + kNormLanes / kTree + kRowThreads / kWave) + Meeting::kBytes;

  GRETA_DEVICE OwnShared(Shared& shared, const MatmulCall& call, const Cut& cut)
      : rows(shared.array<uint16_t>(static_cast<int>(call.rows) * cut.own_stride)),
        sums(shared.array<uint16_t>(static_cast<int>(call.rows) * cut.sums_stride)),
        scales(shared.array<float>(kTileN)),
        trees(shared.array<float>(kNormLanes / kTree)),
        largest(shared.array<float>(kRowThreads / kWave)),
        meeting(shared, kRowThreads) {}
};

/// A row, or a norm's weights, as a row thread holds it: of each of its lanes `kHeld` elements.
template <int kHeld>
struct OwnRow {
  using Part = HeldRow<kNormLanes, kHeld, true>;
  Part part[kLanesEach];

  GRETA_DEVICE void load(const float* from, int lane, int cols) {
    GRETA_UNROLL
    for (int p = 0; p < kLanesEach; ++p) part[p].load(from, lane + p * kRowThreads, cols);
  }
  /// f(which lane of the thread's, i, held value, which of the lane's).
  template <class F>
  GRETA_DEVICE void each(int lane, int cols, const F& f) {
    GRETA_UNROLL
    for (int p = 0; p < kLanesEach; ++p)
      part[p].each(lane + p * kRowThreads, cols, [&](int i, float& v, int e) { f(p, i, v, e); });
  }
};
/// Elements of a lane, at most: as many as kOwnBytes allow.
constexpr int kOwnHeld = 24;
static_assert(kOwnBytes / 2 <= kOwnHeld * kNormLanes);
/// Of a norm's weights, which lie in registers beside the row: more would not fit.
constexpr int kNormHeld = 16;
/// Of rows without a norm that have code of their own.
constexpr int kShortHeld = 12;

/// The row's largest magnitude of the threads' own.
GRETA_DEVICE float largest_of_row(float value, int lane, OwnShared& shared) {
  value = wave_largest(value);
  if (lane_index() == 0) shared.largest[lane / kWave] = value;
  shared.meeting.meet();
  return wave_largest(shared.largest[lane_index() % (kRowThreads / kWave)]);
}

/// Rounds the row that the threads hold, as row r, and sums it where kSums.
template <bool kSums, int kHeld>
GRETA_DEVICE void round_own_row(OwnRow<kHeld>& row, int lane, int cols, int r, const Cut& cut,
                                OwnShared& shared) {
  float amax = 0.0f;
  row.each(lane, cols, [&](int, int, float v, int) { amax = larger(amax, magnitude_of(v)); });
  const float up = row_power(largest_of_row(amax, lane, shared));
  if (lane == 0) shared.scales[r] = inverse_power(up);
  // In pairs, and zeros behind the row's end. A lane's fours, and a thread's lanes, are whole k64 steps
  // apart.
  constexpr int kEvery = OwnRow<kHeld>::Part::kEvery;
  static_assert(kEvery % 64 == 0 && kRowThreads * 4 % 64 == 0);
  const SharedArray<uint16_t> to = shared.rows.from(r * cut.own_stride);
  const int first = OwnRounded::place(4 * lane), second = OwnRounded::place(4 * lane + 2);
  const SharedArray<uint16_t> sums = shared.sums.from(r * cut.sums_stride);
  GRETA_UNROLL
  for (int p = 0; p < kLanesEach; ++p) {
    GRETA_UNROLL
    for (int g = 0; g < kHeld / 4; ++g) {
      const int further = g * kEvery + p * kRowThreads * 4;
      if (further + 4 * lane >= cut.chunks * kChunkK) break;  // all of a wave
      const float* const v = row.part[p].v + 4 * g;
      const uint32_t low = pack_f16(v[0] * up, v[1] * up), high = pack_f16(v[2] * up, v[3] * up);
      to.put_word(first + further, low);
      to.put_word(second + further, high);
      if constexpr (kSums) {
        const float sum = sum_of_fours(four_sum(low, high));
        if (lane % (kSumOf / 4) != 0) continue;
        const SumParts parts(sum);
        const int of_row = (further + 4 * lane) / kSumOf;
        const int at = of_row + of_row / (kSumsOfChunk / 2) * (kSumsOfChunk / 2);
        sums[at] = parts.high;
        sums[at + kSumsOfChunk / 2] = parts.low;
      }
    }
  }
}

/// Norms the row that the threads hold, as row r.
template <int kHeld>
GRETA_DEVICE void norm_own_row(OwnRow<kHeld>& row, const OwnRow<kHeld>& weight, const OwnRows& own, int lane,
                               int cols, int r, OwnShared& shared) {
  float sums[kLanesEach] = {};
  row.each(lane, cols, [&](int p, int, float v, int) { sums[p] = fused(v, v, sums[p]); });
  const float factor =
      norm_factor<kNormLanes>(sums, lane, cols, own.eps, shared.trees, [&] { shared.meeting.meet(); });
  row.each(lane, cols, [&](int p, int, float& v, int e) { v = (v * factor) * weight.part[p].v[e]; });
  if (block_x() != 0) return;
  float* const normed = own.normed + static_cast<int64_t>(r) * cols;
  row.each(lane, cols, [&](int, int i, float v, int) { normed[i] = v; });
}

/// What `own` says, for all rows, of which a lane has at most kHeld elements: the row threads. Waits for the
/// kernels before. A barrier follows.
template <bool kSums, int kHeld>
GRETA_DEVICE void round_held_rows(const MatmulCall& call, OwnShared& shared, const Cut& cut, int lane) {
  constexpr bool kNorms = kHeld <= kNormHeld && kHeld != kShortHeld;
  const int cols = static_cast<int>(call.products[0].weight.cols);
  const OwnRows& own = call.own;
  OwnRow<kHeld> weight;
  if constexpr (kNorms) {
    if (own.norm != nullptr) weight.load(own.norm, lane, cols);
  }
  // The first row is asked for before anything else is done: until it is there, nobody can multiply.
  OwnRow<kHeld> row;
  await_earlier();
  row.load(own.x, lane, cols);
  for (int r = 0;;) {
    if constexpr (kNorms) {
      if (own.norm != nullptr) norm_own_row(row, weight, own, lane, cols, r, shared);
    }
    round_own_row<kSums>(row, lane, cols, r, cut, shared);
    if (++r == call.rows) break;
    row.load(own.x + static_cast<int64_t>(r) * cols, lane, cols);
    shared.meeting.meet();  // `largest` has been read
  }
}
/// Short code for short rows: much of its time goes into fetching instructions.
template <bool kSums>
GRETA_DEVICE void round_own_rows(const MatmulCall& call, OwnShared& shared, const Cut& cut, int lane) {
  const int64_t cols = call.products[0].weight.cols;
  if (cols <= 4 * kNormLanes) {
    round_held_rows<kSums, 4>(call, shared, cut, lane);
  } else if (cols <= 8 * kNormLanes) {
    round_held_rows<kSums, 8>(call, shared, cut, lane);
  } else if (cols <= kNormHeld * kNormLanes && call.own.norm != nullptr) {
    round_held_rows<kSums, kNormHeld>(call, shared, cut, lane);
  } else if (cols <= kShortHeld * kNormLanes) {
    round_held_rows<kSums, kShortHeld>(call, shared, cut, lane);
  } else {
    round_held_rows<kSums, kOwnHeld>(call, shared, cut, lane);
  }
}
/// The other threads, meanwhile.
GRETA_DEVICE void attend_rounding(const MatmulCall& call, OwnShared& shared) {
  for (int r = 0; !Meeting::kApart && r < call.rows; ++r) {
    if (r > 0) shared.meeting.meet();
    if (call.own.norm != nullptr) shared.meeting.meet();
    shared.meeting.meet();
  }
}

// ---- a block

/// Shared memory for the sums of two turns.
template <int kTiles>
struct SumsShared {
  static constexpr int kSlot = kTiles * kTileN * kOutputStride;
  SharedArray<float> both;
  int slots;

  GRETA_DEVICE SumsShared(Shared& shared, const Cut& cut)
      : both(shared.array<float>(2 * cut.slots * kSlot)), slots(cut.slots) {}
  GRETA_DEVICE SharedArray<float> of(int turn) const { return both.from(turn % 2 * slots * kSlot); }
};

/// What a sum begins with: any number added to it stays as it is.
constexpr float kNothing = -0.0f;

/// Adds to total[p] the numbers at p's slots [first[p], end[p]), `size` apart, ascending.
template <int kSums>
GRETA_DEVICE void add_slots(float (&total)[2], const SharedArray<float>& at, int size, const int (&first)[2],
                            const int (&end)[2]) {
  constexpr int kAtOnce = 8;
  for (int i = 0; first[0] + i < end[0] || (kSums == 2 && first[1] + i < end[1]); i += kAtOnce) {
    float v[kSums][kAtOnce];
    GRETA_UNROLL
    for (int p = 0; p < kSums; ++p) {
      const int slot = first[p] + i;
      GRETA_UNROLL
      for (int u = 0; u < kAtOnce; ++u) v[p][u] = slot + u < end[p] ? at[(slot + u) * size] : kNothing;
    }
    GRETA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      GRETA_UNROLL
      for (int p = 0; p < kSums; ++p) total[p] += v[p][u];
    }
  }
}

/// What a thread that finishes tiles reads of memory for its outputs of one, on its way while the others
/// multiply.
template <int kTiles>
struct Ahead {
  static constexpr int kThreads = kTiles * kWave;
  /// Outputs of a tile that are this thread's.
  static constexpr int kMost = kTiles * kTileN * kTileRows / kThreads;
  float row_scale[2][kMost];  ///< of both products of a glu
  float residual[kMost];

  /// Outputs `output` + .. of the tile for token `token`: which of them is this thread's number n.
  GRETA_DEVICE static int token(int thread, int n) { return (thread + n * kThreads) / kTileRows; }
  GRETA_DEVICE static int row(int thread) { return thread % kTileRows; }
  static_assert(kThreads % kTileRows == 0);

  GRETA_DEVICE void load(const MatmulCall& call, const Cut& cut, int product, int tile, int thread) {
    const int output = tile * kTileRows + row(thread);
    GRETA_UNROLL
    for (int n = 0; n < kMost; ++n) {
      row_scale[0][n] = row_scale[1][n] = residual[n] = 0.0f;
      if (token(thread, n) >= call.rows || output >= call.products[product].weight.rows) continue;
      row_scale[0][n] = call.products[product].weight.row_scale[output];
      if (cut.parts == 2) row_scale[1][n] = call.products[1].weight.row_scale[output];
      if (call.residual != nullptr)
        residual[n] = call.residual[output_at(call, call.products[product], output, token(thread, n))];
    }
  }
};

/// A thread's sums so far of its outputs of a tile, of both products of a glu.
template <int kTiles>
struct Totals {
  static constexpr int kMost = Ahead<kTiles>::kMost;
  float of[kMost][2];

  /// A tile begins.
  GRETA_DEVICE void clear() {
    GRETA_UNROLL
    for (int n = 0; n < kMost; ++n) of[n][0] = of[n][1] = kNothing;
  }
  /// The sums of chunks [from, to) of the tile are complete, at `sums`.
  GRETA_DEVICE void add(const MatmulCall& call, const Cut& cut, int from, int to,
                        const SharedArray<float>& sums, int thread) {
    constexpr int kSlot = SumsShared<kTiles>::kSlot;
    const int middle = cut.chunks < from ? from : cut.chunks < to ? cut.chunks : to;
    const int first[2] = {0, middle - from}, end[2] = {middle - from, to - from};
    GRETA_UNROLL
    for (int n = 0; n < kMost; ++n) {
      const int token = Ahead<kTiles>::token(thread, n);
      if (token >= call.rows) break;
      const SharedArray<float> at = sums.from(token * kOutputStride + Ahead<kTiles>::row(thread));
      if (cut.parts == 2) {
        add_slots<2>(of[n], at, kSlot, first, end);
      } else {
        add_slots<1>(of[n], at, kSlot, first, end);
      }
    }
  }
};

/// The outputs of a tile.
template <int kTiles, class Scale>
GRETA_DEVICE void write_tile(const MatmulCall& call, const Cut& cut, int product, int tile,
                             const Totals<kTiles>& totals, const Scale& x_scale, const Ahead<kTiles>& ahead,
                             int thread) {
  const Product& of = call.products[product];
  const int output = tile * kTileRows + ahead.row(thread);
  if (output >= of.weight.rows) return;
  GRETA_UNROLL
  for (int n = 0; n < Ahead<kTiles>::kMost; ++n) {
    const int token = ahead.token(thread, n);
    if (token >= call.rows) break;
    const float scale = x_scale(token);
    float y = with_bias(of, output, scaled(totals.of[n][0], ahead.row_scale[0][n], scale));
    if (cut.parts == 2) {
      const float up = scaled(totals.of[n][1], ahead.row_scale[1][n], scale);
      y = glu_of(call.glu, y, with_bias(call.products[1], output, up));
    }
    of.y[output_at(call, of, output, token)] = call.residual == nullptr ? y : ahead.residual[n] + y;
  }
}

/// f(tile, from, to, turn) for each of the block's tiles, and of each for as many chunks as shared memory
/// holds the sums of.
template <class F>
GRETA_DEVICE void each_turn(const Cut& cut, const F& f) {
  int turn = 0;
  for (int tile = block_x(); tile < cut.tiles; tile += grid_x()) {
    for (int from = 0; from < cut.all; from += cut.slots)
      f(tile, from, from + cut.slots < cut.all ? from + cut.slots : cut.all, turn++);
  }
}

/// A wave's part of the block's chunks.
template <quant::Type T, int kTiles>
struct Wave {
  static constexpr bool kUnpacks = Format<T>::kCodes && kTiles == 1;
  const MatmulCall& call;
  const Cut& cut;
  const Unpacked& room;
  Place here;         ///< the chunk that is to be multiplied next
  int unpacked = -1;  ///< where that lies unpacked in `room`: which of K it is; `held` has the one behind it
  Ends<T> unpacked_ends;
  Held<T> held;  ///< its weights

  GRETA_DEVICE Wave(const MatmulCall& of, const Cut& by, const Unpacked& unpack_to)
      : call(of), cut(by), room(unpack_to), here{block_x(), wave_index()} {
    here.settle(cut);
  }
  GRETA_DEVICE bool is_there(const Place& place) const { return place.tile < cut.tiles; }
  GRETA_DEVICE Chunk at(const Place& place) const {
    return is_there(place) ? chunk_at<T>(call, cut, place) : Chunk{};
  }
  GRETA_DEVICE Place behind() const {
    Place next{here.tile, here.chunk + kWorkThreads<kTiles> / kWave};
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
  /// What load_first() will load comes nearer.
  GRETA_DEVICE void prefetch_first() const {
    if (lane_index() == 0 && is_there(here)) prefetch(at(here).data, Format<T>::kTileBytes);
  }
  /// Behind load_first(): unpacks that chunk, and loads the next. Only a chunk whose sums have room from the
  /// start: of the first turn, or of the second tile where a turn is a tile.
  GRETA_DEVICE void unpack_first() {
    if constexpr (kUnpacks) {
      const int last = block_x() + (cut.slots == cut.all ? grid_x() : 0);
      if (wave_index() >= cut.unpacking || !is_there(here) || here.tile > last || here.chunk >= cut.slots)
        return;
      unpacked = held.chunk;
      unpacked_ends = held;
      const Place next = behind();
      unpack_chunk<T>(held, is_there(next), at(next),
                      [&](int j, const Operand<T>(&a)[4]) { room.put(j, a); });
    }
  }
  /// The sums of what unpack_first() has unpacked, and on to the next.
  template <class Rows>
  GRETA_DEVICE void multiply_unpacked(const Rows& x, const SumsShared<kTiles>& sums) {
    if (!kUnpacks || unpacked < 0) return;
    ChunkSums<kTiles> c;
    GRETA_UNROLL
    for (int j = 0; j < kStepsK64; ++j) {
      Operand<T> a[4];
      room.take(j, a);
      c.template add<T>(x, unpacked, j, a);
    }
    c.end(x, unpacked, unpacked_ends);
    c.put(sums.of(here.tile == block_x() ? 0 : 1).from(here.chunk * SumsShared<kTiles>::kSlot));
    here = behind();
  }
  /// The sums of the chunk at `here` to `to`, and on to the next.
  template <class Rows>
  GRETA_DEVICE void multiply_next(const Rows& x, const SharedArray<float>& to) {
    here = behind();
    const int chunk = held.chunk;
    const Ends<T> ends = held;
    ChunkSums<kTiles> sums;
    unpack_chunk<T>(held, is_there(here), at(here),
                    [&](int j, const Operand<T>(&a)[4]) { sums.template add<T>(x, chunk, j, a); });
    sums.end(x, chunk, ends);
    sums.put(to);
  }
  /// All of them.
  template <class Rows>
  GRETA_DEVICE void multiply_tiles(const Rows& x, const SumsShared<kTiles>& sums, const Turns& turns) {
    each_turn(cut, [&](int tile, int from, int to, int turn) {
      turns.wait_free(turn);
      while (here.tile == tile && here.chunk < to)
        multiply_next(x, sums.of(turn).from((here.chunk - from) * SumsShared<kTiles>::kSlot));
      turns.filled(turn);
    });
  }
};
template <int kTiles, class Scale>
GRETA_DEVICE void finish_tiles(const MatmulCall& call, const Cut& cut, const Scale& x_scale,
                               const SumsShared<kTiles>& room, const Turns& turns) {
  const int thread = thread_index() - kWorkThreads<kTiles>;
  int product = 0, within = 0;  // of the tile: its product, and the tile of that
  Ahead<kTiles> ahead;
  Totals<kTiles> totals;
  each_turn(cut, [&](int tile, int from, int to, int turn) {
    if (from == 0) {
      within = tile;
      product = cut.parts == 2 ? 0 : cut.product_of(within);
      ahead.load(call, cut, product, within, thread);
      totals.clear();
    }
    turns.wait_filled(turn);
    totals.add(call, cut, from, to, room.of(turn), thread);
    turns.freed(turn);
    if (to == cut.all) write_tile<kTiles>(call, cut, product, within, totals, x_scale, ahead, thread);
  });
}

template <quant::Type T, int kTiles, bool kOwn>
GRETA_KERNEL void GRETA_BOUNDS(kFewThreads<kTiles>, 1)
    matmul_few(Mark mark, GRETA_ARGUMENT MatmulCall call, GRETA_ARGUMENT Cut cut) {
  entered_early(mark);
  Shared shared;
  const Turns turns(shared, kWorkThreads<kTiles>, kTiles * kWave);
  const bool works = thread_index() < kWorkThreads<kTiles>;
  const Unpacked unpacked(shared, cut.unpacking);
  Wave<T, kTiles> wave(call, cut, unpacked);
  if constexpr (kOwn) {
    OwnShared own(shared, call, cut);
    const SumsShared<kTiles> sums(shared, cut);
    const bool rounds = works && thread_index() >= kFirstRowThread;
    if (rounds) {
      wave.prefetch_first();
    } else if (works) {
      wave.load_first();
    }
    barrier();  // `turns` and the meeting are there
    if (rounds) {
      round_own_rows<kSumsCodes<T>>(call, own, cut, thread_index() - kFirstRowThread);
      wave.held = {};  // so that its registers may be the row's until here
      wave.load_first();
    } else {
      if (works) wave.unpack_first();
      after_earlier(mark);
      attend_rounding(call, own);
    }
    barrier();
    if (works) {
      const OwnRounded x(call, cut, own.rows, own.sums);
      wave.multiply_unpacked(x, sums);
      wave.multiply_tiles(x, sums, turns);
    } else {
      finish_tiles<kTiles>(
          call, cut, [&](int token) { return own.scales[token]; }, sums, turns);
    }
  } else {
    const SumsShared<kTiles> sums(shared, cut);
    if (works) wave.load_first();
    after_earlier(mark);
    barrier();  // `turns` are there
    if (works) {
      wave.multiply_tiles(RowsInMemory<kTiles>(call), sums, turns);
    } else {
      finish_tiles<kTiles>(
          call, cut, [&](int token) { return x_scale_of(call, token); }, sums, turns);
    }
  }
}

/// Of shared memory, for a block's own rows.
int own_bytes(const MatmulCall& call) {
  if (call.own.x == nullptr) return 0;
  const int64_t cols = call.products[0].weight.cols;
  return static_cast<int>(call.rows) * (own_stride(cols) + sums_stride(cols)) * 2 + OwnShared::kBytes;
}

template <int kTiles>
constexpr int kSlotBytes = SumsShared<kTiles>::kSlot* static_cast<int>(sizeof(float));

template <quant::Type T, int kTiles>
Cut cut_of(const Launch& how, const MatmulCall& call) {
  const auto tiles_of = [](const Product& product) {
    return static_cast<int>((product.weight.rows + kTileRows - 1) / kTileRows);
  };
  Cut cut;
  cut.chunks = static_cast<int>((call.products[0].weight.cols + kChunkK - 1) / kChunkK);
  cut.own_stride = own_stride(call.products[0].weight.cols);
  cut.sums_stride = sums_stride(call.products[0].weight.cols);
  cut.parts = call.glu == Glu::none ? 1 : 2;
  cut.all = cut.parts * cut.chunks;
  // Rows in memory come through the first cache, which is what shared memory leaves.
  const bool own = call.own.x != nullptr;
  const int most = block_shared_bytes(how);
  const int room = (own ? most : std::min(most, kBesideCacheBytes)) - own_bytes(call) - Turns::kBytes;
  cut.slots = std::min(cut.all, room / (2 * kSlotBytes<kTiles>));
  cut.unpacking =
      !own || !Wave<T, kTiles>::kUnpacks
          ? 0
          : std::min(kFirstRowThread / kWave, (room - 2 * cut.slots * kSlotBytes<kTiles>) / Unpacked::kBytes);
  cut.tiles = static_cast<int>(cut.parts == 2 ? tiles_of(call.products[0]) : product_tiles(call, kTileRows));
  cut.ends[0] = cut.ends[1] = cut.tiles;
  for (int p = 0, end = 0; p + 1 < call.count && cut.parts == 1; ++p)
    cut.ends[p] = end += tiles_of(call.products[p]);
  return cut;
}

/// As many as there are multiprocessors; but where blocks that round their own rows have two tiles or one, a
/// few fewer, for the launch behind to begin on at once.
int blocks_of(const Cut& cut, int multiprocessors, bool own) {
  constexpr int kLeft = 4;
  const bool leaves = own && cut.tiles > multiprocessors && cut.tiles <= 2 * (multiprocessors - kLeft);
  return std::min(cut.tiles, leaves ? multiprocessors - kLeft : multiprocessors);
}

template <quant::Type T, int kTiles, bool kOwn>
void launch_few(const Launch& how, const MatmulCall& call) {
  const Cut cut = cut_of<T, kTiles>(how, call);
  const int blocks = blocks_of(cut, how.multiprocessors, kOwn);
  static const std::string name = kernel_name<T>("matmul_few");
  launch(
      how, name.c_str(), matmul_few<T, kTiles, kOwn>, Grid{static_cast<unsigned>(blocks)},
      kFewThreads<kTiles>,
      Turns::kBytes + cut.unpacking * Unpacked::kBytes + own_bytes(call) + 2 * cut.slots * kSlotBytes<kTiles>,
      call, cut);
}

template <quant::Type T>
void launch_few(const Launch& how, const MatmulCall& call) {
  if (call.own.x != nullptr) return launch_few<T, 1, true>(how, call);
  if (call.rows <= kTileN) return launch_few<T, 1, false>(how, call);
  if (call.rows <= 2 * kTileN) return launch_few<T, 2, false>(how, call);
  launch_few<T, 4, false>(how, call);
}

}  // namespace

bool rounds_itself(int64_t rows, int64_t cols, bool norm) {
  if (cols % 4 != 0) return false;
  if (norm && (rmsnorm_lanes(cols) != kNormLanes || cols > kNormHeld * kNormLanes)) return false;
  return rows <= kTileN && rows * own_stride(cols) * 2 <= kOwnBytes;
}

void run_matmul_few(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() { launch_few<T>(how, call); });
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
