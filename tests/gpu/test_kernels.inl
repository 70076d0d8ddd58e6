// Kernels for tests alone: a translation unit a target, behind its target.h.
#include "gpu/test_kernels.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

/// Word w of a lane's fragment of `count` elements of which the `chosen` of the wave (lane * count + e) is
/// `one`.
GRETA_DEVICE uint32_t one_hot_word(int chosen, int count, int w, uint32_t one) {
  const int first = lane_index() * count + 2 * w;
  return chosen == first ? one : chosen == first + 1 ? one << 16 : 0;
}

template <bool Bf16>
GRETA_KERNEL void one_hot_product(Mark mark, const float* start, float* c) {
  entered(mark);
  constexpr uint32_t kOne = Bf16 ? 0x3f80 : 0x3c00;
  FragmentA a;
  FragmentB b;
  for (int w = 0; w < kFragmentA / 2; ++w) a.word[w] = one_hot_word(block_x(), kFragmentA, w, kOne);
  for (int w = 0; w < kFragmentB / 2; ++w) b.word[w] = one_hot_word(block_y(), kFragmentB, w, kOne);
  const int first = lane_index() * kFragmentC;
  float sum[kFragmentC];
  for (int i = 0; i < kFragmentC; ++i) sum[i] = start[first + i];
  if (Bf16) {
    multiply_bf16(sum, a, b);
  } else {
    multiply(sum, a, b);
  }
  c += (int64_t{block_x()} * kWave * kFragmentB + block_y()) * kWave * kFragmentC;
  for (int i = 0; i < kFragmentC; ++i) c[first + i] = sum[i];
}

void one_hot(const Launch& how, bool bf16, const float* start, float* c) {
  launch(how, "one_hot_product", bf16 ? one_hot_product<true> : one_hot_product<false>,
         Grid{kWave * kFragmentA, kWave * kFragmentB, 1}, kWave, 0, start, c);
}

GRETA_KERNEL void write_past_end(Mark mark, float* x, int64_t count) {
  entered(mark);
  if (thread_index() == 0) x[count] = 1.0f;
}

void write_past(const Launch& how, float* x, int64_t count) {
  launch(how, "write_past_end", write_past_end, Grid{1, 1, 1}, kWave, 0, x, count);
}

}  // namespace

const TestKernels& test_kernel_table() {
  static const TestKernels table = {kWave, kTileN, kFragmentA, kFragmentB, kFragmentC, a_row,     a_k,
                                    b_n,   b_k,    c_row,      c_n,        one_hot,    write_past};
  return table;
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
