// The product for very few tokens (few_chunks.inl) whose blocks round the rows themselves, and norm them
// before: work that every block repeats, and that spares a launch. Some waves have the rows for that; the
// others unpack their first chunk meanwhile, and while the kernel before ends. All waves multiply; shared
// memory has room for all sums of a block, so that behind one barrier all add up. Launches as short as these
// are bound by what they do once: two barriers, and code that is short.
#include "backend/gpu/kernels/few_chunks.inl"
#include "backend/gpu/kernels/held_row.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

constexpr int kOwnThreads = 512;
/// Lanes that share a row of a norm (orders.h).
constexpr int kNormLanes = 512;
static_assert(rmsnorm_lanes(1 << 20) == kNormLanes);
/// Threads that round rows, the last of the block: each stands for kLanesEach such lanes.
constexpr int kRowThreads = 256;
constexpr int kLanesEach = kNormLanes / kRowThreads;
constexpr int kFirstRowThread = kOwnThreads - kRowThreads;
static_assert(kFirstRowThread % kWave == 0);
/// Of shared memory, for the rows.
constexpr int kOwnBytes = 24 * 1024;
/// Elements between two rows in shared memory: fragments of B are read without bank conflicts.
inline int own_stride(int64_t cols) { return static_cast<int>((cols + kChunkK - 1) / kChunkK) * kChunkK + 8; }
/// The same of their sums.
inline int sums_stride(int64_t cols) {
  return static_cast<int>((cols + kChunkK - 1) / kChunkK) * kSumsOfChunk + 8;
}

struct OwnCut : Cut {
  int own_stride;
  int sums_stride;
  int unpacking;  ///< waves that unpack their first chunk before they can multiply it
  int each;       ///< tiles of a block; of the first `more` blocks one more
  int more;
  int token_sums;  ///< floats between two tokens' sums, of all of a block's chunks

  GRETA_DEVICE int block_tiles() const { return each + (block_x() < more ? 1 : 0); }
};
/// For so many chunks: fragments of C are stored without bank conflicts, as with kOutputStride.
inline int64_t token_sums_of(int64_t chunks) {
  static_assert(kOutputStride % 32 == 20);
  return (chunks * kOutputStride + 11) / 32 * 32 + 20;
}

/// The rows as fragments of B: of each k64 step, first the eight words of a lane of B that has
/// the lowest k, then those of the next.
struct OwnRounded {
  SharedArray<uint16_t> rows, row_sums;
  int at, sums_at;

  GRETA_DEVICE static int place(int k) {
    const auto at = static_cast<unsigned>(k);
    const int of_16 = static_cast<int>(at % 16);
    return static_cast<int>(at / 64 * 64 + at % 64 / 16 * 4) + b_lane(of_16) * 16 + b_element(of_16);
  }
  GRETA_DEVICE OwnRounded(const MatmulCall& call, const OwnCut& cut, const SharedArray<uint16_t>& own,
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

// ---- the rows

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

  GRETA_DEVICE OwnShared(Shared& shared, const MatmulCall& call, const OwnCut& cut)
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
GRETA_DEVICE void round_own_row(OwnRow<kHeld>& row, int lane, int cols, int r, const OwnCut& cut,
                                OwnShared& shared) {
  float amax = 0.0f;
  row.each(lane, cols, [&](int, int, float v, int) { amax = larger(amax, magnitude_of(v)); });
  const float up = row_power(largest_of_row(amax, lane, shared));
  if (lane == 0) shared.scales[r] = inverse_power(up);
  // In pairs, and zeros behind the row's end. A lane's fours, and a thread's lanes, are whole k64 steps
  // apart. What all fours have to go through, they go through together.
  constexpr int kEvery = OwnRow<kHeld>::Part::kEvery, kFours = kHeld / 4;
  static_assert(kEvery % 64 == 0 && kRowThreads * 4 % 64 == 0);
  const int end = cut.chunks * kChunkK - 4 * lane;  // of all of a wave on the same side
  const auto further = [](int i) { return i % kFours * kEvery + i / kFours * kRowThreads * 4; };
  const SharedArray<uint16_t> to = shared.rows.from(r * cut.own_stride);
  const int first = OwnRounded::place(4 * lane), second = OwnRounded::place(4 * lane + 2);
  float fours[kLanesEach * kFours];
  GRETA_UNROLL
  for (int i = 0; i < kLanesEach * kFours; ++i) {
    const float* const v = row.part[i / kFours].v + 4 * (i % kFours);
    const uint32_t low = pack_f16(v[0] * up, v[1] * up), high = pack_f16(v[2] * up, v[3] * up);
    fours[i] = four_sum(low, high);
    if (further(i) >= end) continue;
    to.put_word(first + further(i), low);
    to.put_word(second + further(i), high);
  }
  if constexpr (kSums) {
    GRETA_UNROLL
    for (int mask = 1; mask < kSumOf / 4; mask *= 2) {
      GRETA_UNROLL
      for (int i = 0; i < kLanesEach * kFours; ++i) fours[i] += shuffle_xor(fours[i], mask);
    }
    if (lane % (kSumOf / 4) != 0) return;
    const SharedArray<uint16_t> sums = shared.sums.from(r * cut.sums_stride);
    GRETA_UNROLL
    for (int i = 0; i < kLanesEach * kFours; ++i) {
      if (further(i) >= end) continue;
      const SumParts parts(fours[i]);
      const int of_row = (further(i) + 4 * lane) / kSumOf;
      const int at = of_row + of_row / (kSumsOfChunk / 2) * (kSumsOfChunk / 2);
      sums[at] = parts.high;
      sums[at + kSumsOfChunk / 2] = parts.low;
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
GRETA_DEVICE void round_held_rows(const MatmulCall& call, OwnShared& shared, const OwnCut& cut, int lane) {
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
GRETA_DEVICE void round_own_rows(const MatmulCall& call, OwnShared& shared, const OwnCut& cut, int lane) {
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

/// A wave's part, of which it may have unpacked the first chunk.
template <quant::Type T>
struct OwnWave : Wave<T, 1> {
  static constexpr bool kUnpacks = Format<T>::kCodes;
  using Base = Wave<T, 1>;
  const Unpacked& room;
  int unpacked = -1;  ///< the chunk of K that lies in `room`; `held` has the one behind it
  Ends<T> unpacked_ends;

  GRETA_DEVICE OwnWave(const MatmulCall& of, const OwnCut& by, const Unpacked& to) : Base(of, by), room(to) {}

  /// Behind load_first(): unpacks that chunk, and loads the next.
  GRETA_DEVICE void unpack_first() {
    if constexpr (kUnpacks) {
      if (!Base::is_there(Base::here)) return;
      unpacked = Base::held.chunk;
      unpacked_ends = Base::held;
      const Place next = Base::behind();
      unpack_chunk<T>(Base::held, Base::is_there(next), Base::at(next),
                      [&](int j, const Operand<T>(&a)[4]) { room.put(j, a); });
    }
  }
  /// The sums of what unpack_first() has unpacked to `to`, and on to the next.
  GRETA_DEVICE void multiply_unpacked(const OwnRounded& x, const SharedArray<float>& to, int token_sums) {
    if constexpr (kUnpacks) {
      ChunkSums<1> sums;
      GRETA_UNROLL
      for (int j = 0; j < kStepsK64; ++j) {
        Operand<T> a[4];
        room.take(j, a);
        sums.template add<T>(x, unpacked, j, a);
      }
      sums.end(x, unpacked, unpacked_ends);
      sums.put(to, static_cast<int>(Base::call.rows), token_sums);
      Base::here = Base::behind();
    }
  }
};

/// An output that a thread writes, and where.
struct Output : OutputRow {
  int token;
  float* to;
  float before;  ///< of the residual
};
/// Of the block's `tiles` tiles and all tokens, what group `item` of 16 threads writes.
GRETA_DEVICE void load_output(const MatmulCall& call, const Cut& cut, int tiles, int item, Output& output) {
  output.token = call.rows == 1 ? 0 : item / tiles;
  const int number = item - output.token * tiles;
  output.there = false;
  if (number >= tiles || output.token >= call.rows) return;
  output.load(call, cut, block_x() + number * grid_x(), thread_index() % kTileRows);
  if (!output.there) return;
  output.to = call.products[output.product].y + output.at(call, output.token);
  output.before = output.residual(call, output.token);
}
GRETA_DEVICE void write_output(const MatmulCall& call, const OwnCut& cut, int tiles, int item,
                               const Output& output, const SharedArray<float>& sums,
                               const SharedArray<float>& scales) {
  if (!output.there) return;
  const int first = (item - output.token * tiles) * cut.all;
  const int begin[2] = {first, first + cut.chunks}, end[2] = {first + cut.chunks, first + cut.all};
  const SharedArray<float> at = sums.from(output.token * cut.token_sums + thread_index() % kTileRows);
  float totals[2] = {kNothing, kNothing};
  if (cut.parts == 2) {
    add_slots<2, kOutputStride>(totals, at, begin, end);
  } else {
    add_slots<1, kOutputStride>(totals, at, begin, end);
  }
  *output.to = output.before + output.value(call.glu, totals, scales[output.token]);
}

template <quant::Type T>
GRETA_KERNEL void GRETA_BOUNDS(kOwnThreads, 1)
    matmul_own(Mark mark, GRETA_ARGUMENT MatmulCall call, GRETA_ARGUMENT OwnCut cut) {
  entered_early(mark);
  Shared shared;
  const Unpacked unpacked(shared, cut.unpacking);
  OwnShared own(shared, call, cut);
  const SharedArray<float> sums = shared.array<float>(static_cast<int>(call.rows) * cut.token_sums);
  OwnWave<T> wave(call, cut, unpacked);
  const int row_thread = thread_index() - kFirstRowThread;
  wave.load_first();
  barrier();  // the meeting is there
  if (row_thread >= 0) {
    round_own_rows<kSumsCodes<T>>(call, own, cut, row_thread);
  } else {
    if (wave_index() < cut.unpacking) wave.unpack_first();
    after_earlier(mark);
    attend_rounding(call, own);
  }
  // What the first outputs need is on its way from here on: those of the waves that have no rows to round.
  constexpr int kGroups = kOwnThreads / kTileRows;
  const int tiles = cut.block_tiles(), group = thread_index() / kTileRows, rows = static_cast<int>(call.rows);
  Output output;
  load_output(call, cut, tiles, group, output);
  barrier();  // the rows are there
  const OwnRounded x(call, cut, own.rows, own.sums);
  int slot = wave_index();  // of the wave's next chunk
  if (wave.unpacked >= 0) {
    wave.multiply_unpacked(x, sums.from(slot * kOutputStride), cut.token_sums);
    slot += cut.waves;
  }
  for (; wave.is_there(wave.here); slot += cut.waves)
    wave.multiply_next(x, sums.from(slot * kOutputStride), rows, cut.token_sums);
  barrier();  // the sums are there
  write_output(call, cut, tiles, group, output, sums, own.scales);
  for (int item = group + kGroups; item < tiles * rows; item += kGroups) {
    load_output(call, cut, tiles, item, output);
    write_output(call, cut, tiles, item, output, sums, own.scales);
  }
}

// ---- launching

/// As many as there are multiprocessors; but where blocks have two tiles or one, a few fewer, for the launch
/// behind to begin on at once.
constexpr int kLeft = 4;
int blocks_of(int tiles, int multiprocessors) {
  const bool leaves = tiles > multiprocessors && tiles <= 2 * (multiprocessors - kLeft);
  return std::min(tiles, leaves ? multiprocessors - kLeft : multiprocessors);
}

int row_bytes(int64_t rows, int64_t cols) {
  return static_cast<int>(rows) * (own_stride(cols) + sums_stride(cols)) * 2 + OwnShared::kBytes;
}

int64_t sums_bytes(int64_t rows, int64_t token_sums) {
  return rows * token_sums * static_cast<int64_t>(sizeof(float));
}

template <quant::Type T>
void launch_own(const Launch& how, const MatmulCall& call) {
  const int64_t cols = call.products[0].weight.cols;
  const Cut all = cut_of(call, kOwnThreads / kWave);
  const int blocks = blocks_of(all.tiles, how.multiprocessors);
  OwnCut cut{all, own_stride(cols), sums_stride(cols), 0, all.tiles / blocks, all.tiles % blocks, 0};
  cut.token_sums = static_cast<int>(token_sums_of((cut.each + (cut.more > 0 ? 1 : 0)) * cut.all));
  const int bytes = row_bytes(call.rows, cols) + static_cast<int>(sums_bytes(call.rows, cut.token_sums));
  const int room = (block_shared_bytes(how) - bytes) / Unpacked::kBytes;
  if (OwnWave<T>::kUnpacks) cut.unpacking = std::min(kFirstRowThread / kWave, room);
  static const std::string name = kernel_name<T>("matmul_own");
  launch(how, name.c_str(), matmul_own<T>, Grid{static_cast<unsigned>(blocks)}, kOwnThreads,
         cut.unpacking * Unpacked::kBytes + bytes, call, cut);
}

}  // namespace

bool rounds_itself(const Launch& how, int64_t rows, int64_t cols, bool norm, int64_t outputs) {
  if (cols % 4 != 0) return false;
  if (norm && (rmsnorm_lanes(cols) != kNormLanes || cols > kNormHeld * kNormLanes)) return false;
  if (rows > kTileN || rows * own_stride(cols) * 2 > kOwnBytes) return false;
  // Of a block, at most: each of three products may begin a tile, and both of a glu's go by whole tiles.
  const int64_t tiles = outputs / kTileRows / std::max(how.multiprocessors - kLeft, 1) + 6;
  const int64_t chunks = tiles * ((cols + kChunkK - 1) / kChunkK);
  return row_bytes(rows, cols) + sums_bytes(rows, token_sums_of(chunks)) <= block_shared_bytes(how);
}

void run_matmul_own(const Launch& how, const MatmulCall& call) {
  for_type(call.products[0].weight.type, [&]<quant::Type T>() { launch_own<T>(how, call); });
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
