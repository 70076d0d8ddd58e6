// Operands of the matrix unit from shared memory, for targets without an instruction of their own for it (HIP
// and sim): one code over each target's maps. Included by their target.h instead of fragments.inl.
#include "backend/gpu/fragments.inl"

namespace greta::gpu::GRETA_GPU_TARGET {

/// A [m 16, k 16] of 16-bit elements from shared memory in which element (m, k) is at m * stride + k; stride
/// a multiple of 8.
GRETA_DEVICE FragmentA fragment_a(const SharedArray<uint16_t>& from, int stride) {
  FragmentA a;
  const int lane = lane_index();
  GRETA_UNROLL
  for (int w = 0; w < kFragmentA / 2; ++w)
    a.word[w] = from.word(a_row(lane, 2 * w) * stride + a_k(lane, 2 * w));
  return a;
}
/// Count of B [k 16, n kTileN], `next` elements apart: element (k, n) at n * stride + k; both multiples of 8.
template <int kCount>
GRETA_DEVICE void fragments_b(const SharedArray<uint16_t>& from, int stride, int next,
                              FragmentB (&b)[kCount]) {
  const int lane = lane_index();
  GRETA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    GRETA_UNROLL
    for (int w = 0; w < kFragmentB / 2; ++w)
      b[i].word[w] = from.word(i * next + b_n(lane, 2 * w) * stride + b_k(lane, 2 * w));
  }
}
/// The same where k runs slower: element (k, n) at k * stride + n.
template <int kCount>
GRETA_DEVICE void fragments_b_by_k(const SharedArray<uint16_t>& from, int stride, int next,
                                   FragmentB (&b)[kCount]) {
  const int lane = lane_index();
  GRETA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    GRETA_UNROLL
    for (int w = 0; w < kFragmentB / 2; ++w) {
      const int at = i * next + b_k(lane, 2 * w) * stride + b_n(lane, 2 * w);
      b[i].word[w] = static_cast<uint32_t>(from[at]) | static_cast<uint32_t>(from[at + stride]) << 16;
    }
  }
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
