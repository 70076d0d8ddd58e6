#pragma once
// A row shared by the threads of a block, in their registers: norms, and rounding. Included after a target's
// target.h.
#include "backend/gpu/kernels/orders.h"
#include "backend/gpu/kernels/rounding.h"

namespace greta::gpu::GRETA_GPU_TARGET {

/// Lanes that meet by shuffles. They lie in one wave of either size.
inline constexpr int kTree = 32;

GRETA_DEVICE float tree_sum(float sum) {
  GRETA_UNROLL
  for (int mask = 1; mask < kTree; mask *= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

struct alignas(16) Floats4 {
  float x, y, z, w;
};

/// A row shared by kThreads threads: thread t has elements 4 t .. 4 t + 3, and those kEvery further on, and
/// so on. kHeld of them lie in its registers, so that all loads of a row are on their way together, zeros
/// behind the row's end; kHeld 0: a row of any width, read again from memory. kFours: widths are multiples of
/// four, which makes for a quarter of the instructions; all of a block's waves go through them.
template <int kThreads, int kHeld, bool kFours = false>
struct HeldRow {
  static_assert(kHeld % 4 == 0);
  static constexpr int kEvery = 4 * kThreads;
  float v[kHeld];

  GRETA_DEVICE void load(const float* from, int thread, int width) {
    GRETA_UNROLL
    for (int g = 0; g < kHeld / 4; ++g) {
      float* const to = v + 4 * g;
      to[0] = to[1] = to[2] = to[3] = 0.0f;
      if (g * kEvery >= width) continue;
      const int first = g * kEvery + 4 * thread;
      if (kFours || width % 4 == 0) {
        if (first >= width) continue;
        const Floats4 four = *reinterpret_cast<const Floats4*>(from + first);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
      } else {
        GRETA_UNROLL
        for (int e = 0; e < 4; ++e)
          if (first + e < width) to[e] = from[first + e];
      }
    }
  }
  /// f(i, held value, which of them) for each of the thread's elements.
  template <class F>
  GRETA_DEVICE void each(int thread, int width, const F& f) {
    GRETA_UNROLL
    for (int g = 0; g < kHeld / 4; ++g) {
      if (g * kEvery >= width) break;
      const int first = g * kEvery + 4 * thread;
      if (first + 4 <= width) {
        GRETA_UNROLL
        for (int e = 0; e < 4; ++e) f(first + e, v[4 * g + e], 4 * g + e);
      } else if (!kFours) {
        GRETA_UNROLL
        for (int e = 0; e < 3; ++e)
          if (first + e < width) f(first + e, v[4 * g + e], 4 * g + e);
      }
    }
  }
  /// f(which four of the thread's), as long as the block's first one is below `end`.
  template <class F>
  GRETA_DEVICE static void each_group(int end, const F& f) {
    GRETA_UNROLL
    for (int g = 0; g < kHeld / 4; ++g) {
      if (g * kEvery >= end) break;
      f(g);
    }
  }
  /// Four g of the thread, which begins at element `first`; zeros behind the row's end.
  GRETA_DEVICE void four(int g, int /*first*/, int /*width*/, float (&to)[4]) const {
    GRETA_UNROLL
    for (int e = 0; e < 4; ++e) to[e] = v[4 * g + e];
  }
  /// four(i, held values i .. i + 3) where those are there and lie on 16 bytes, else one(i, held value).
  template <class Four, class One>
  GRETA_DEVICE void each_four(int thread, int width, const Four& four, const One& one) {
    GRETA_UNROLL
    for (int g = 0; g < kHeld / 4; ++g) {
      if (g * kEvery >= width) break;
      const int first = g * kEvery + 4 * thread;
      if (first + 4 <= width && (kFours || width % 4 == 0)) {
        four(first, v + 4 * g);
        continue;
      }
      GRETA_UNROLL
      for (int e = 0; e < 4; ++e)
        if (first + e < width) one(first + e, v[4 * g + e]);
    }
  }
};
template <int kThreads>
struct HeldRow<kThreads, 0, false> {
  static constexpr int kEvery = 4 * kThreads;
  const float* again;  ///< where the row has been left
  template <class F>
  GRETA_DEVICE static void each_group(int end, const F& f) {
    for (int g = 0; g * kEvery < end; ++g) f(g);
  }
  GRETA_DEVICE void four(int /*g*/, int first, int width, float (&to)[4]) const {
    GRETA_UNROLL
    for (int e = 0; e < 4; ++e) to[e] = again != nullptr && first + e < width ? again[first + e] : 0.0f;
  }
  template <class F>
  GRETA_DEVICE void each(int thread, int width, const F& f) {
    for (int first = 4 * thread; first < width; first += 4 * kThreads)
      for (int i = first; i < first + 4 && i < width; ++i) {
        float v = again == nullptr ? 0.0f : again[i];
        f(i, v, 0);
      }
  }
};

/// Leaves the row rounded, `amax` being the largest magnitude of the thread's elements, and its sums of 32.
/// `largest` has an element for each wave.
template <int kThreads, int kHeld>
GRETA_DEVICE void round_row(HeldRow<kThreads, kHeld>& held, int64_t row, int width, float amax,
                            const RoundedRows& to, const SharedArray<float>& largest) {
  const float up = row_power(block_largest(amax, largest));
  if (thread_index() == 0) to.scale[row] = inverse_power(up);
  const int lane = thread_index(), stride = static_cast<int>(to.stride);
  // All of a wave are within the stride or none: it is made of chunks.
  static_assert(kChunkK % (4 * kWave) == 0);
  held.each_group(stride, [&](int g) {
    const int first = g * HeldRow<kThreads, kHeld>::kEvery + 4 * lane;
    if (first >= stride) return;
    float v[4];
    held.four(g, first, width, v);
    const Words2 words = {pack_f16(v[0] * up, v[1] * up), pack_f16(v[2] * up, v[3] * up)};
    *reinterpret_cast<Words2*>(to.data + rounded_at(to, row, first)) = words;
    const float sum = sum_of_fours(four_sum(words.x, words.y));
    if (lane % (kSumOf / 4) != 0) return;
    const SumParts parts(sum);
    const int chunk = first / kChunkK, i = first % kChunkK / kSumOf;
    to.sums[sums_at(to, row, chunk, i)] = parts.high;
    to.sums[sums_at(to, row, chunk, i + kSumsOfChunk / 2)] = parts.low;
  });
}

/// r = 1 / sqrt(mean + eps) of a row's Lanes sums of squares, in the order of orders.h. The threads that
/// share it have kEach of them, `sums[e]` that of lane `lane` + e Lanes / kEach, and come together in `meet`.
/// `trees` has an element for each kTree of the lanes (of Lanes = kTree none).
template <int Lanes, int kEach, class Meet>
GRETA_DEVICE float norm_factor(const float (&sums)[kEach], int lane, int64_t width, float eps,
                               const SharedArray<float>& trees, const Meet& meet) {
  static_assert(Lanes / kEach % kTree == 0);
  float sum = 0.0f;
  GRETA_UNROLL
  for (int e = 0; e < kEach; ++e) {
    sum = tree_sum(sums[e]);
    if (Lanes > kTree && lane % kTree == 0) trees[(lane + e * (Lanes / kEach)) / kTree] = sum;
  }
  if constexpr (Lanes > kTree) {
    constexpr int kSums = Lanes / kTree;
    static_assert(kSums <= kTree);
    meet();
    sum = trees[lane_index() % kSums];
    GRETA_UNROLL
    for (int mask = 1; mask < kSums; mask *= 2) sum += shuffle_xor(sum, mask);
  }
  return divide(1.0f, root_of(divide(sum, static_cast<float>(width)) + eps));
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
