// Operands of the matrix unit in registers, and from shared memory: one code over each target's maps a_row,
// a_k, b_n and b_k. Included by a target's target.h behind those.

namespace greta::gpu::GRETA_GPU_TARGET {

struct FragmentA {
  uint32_t word[kFragmentA / 2];
};
struct FragmentB {
  uint32_t word[kFragmentB / 2];
};
/// B [k 16, n kTileN] of 16-bit elements from shared memory in which element (k, n) is at n * stride + k;
/// stride a multiple of 8.
GRETA_DEVICE FragmentB fragment_b(const SharedArray<uint16_t>& from, int stride) {
  FragmentB b;
  const int lane = lane_index();
  GRETA_UNROLL
  for (int w = 0; w < kFragmentB / 2; ++w)
    b.word[w] = from.word(b_n(lane, 2 * w) * stride + b_k(lane, 2 * w));
  return b;
}
/// A [m 16, k 16] likewise: element (m, k) at m * stride + k.
GRETA_DEVICE FragmentA fragment_a(const SharedArray<uint16_t>& from, int stride) {
  FragmentA a;
  const int lane = lane_index();
  GRETA_UNROLL
  for (int w = 0; w < kFragmentA / 2; ++w)
    a.word[w] = from.word(a_row(lane, 2 * w) * stride + a_k(lane, 2 * w));
  return a;
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
