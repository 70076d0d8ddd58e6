// Operands of the matrix unit in registers. Included by a target's target.h behind its maps a_row, a_k, b_n
// and b_k.

namespace greta::gpu::GRETA_GPU_TARGET {

struct FragmentA {
  uint32_t word[kFragmentA / 2];
};
struct FragmentB {
  uint32_t word[kFragmentB / 2];
};

}  // namespace greta::gpu::GRETA_GPU_TARGET
