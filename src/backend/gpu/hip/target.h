#pragma once
// AMD, gfx90a and gfx942: waves of 64 and MFMA behind the names of ../cuda/target.h, which says what each
// does. This code has been compiled and has never run on a device; its fragment maps are those of the
// documents below, unproved on a chip. (They run in emulation: ../sim.) Sources: "AMD Instinct MI300
// Instruction Set Architecture" and "AMD Instinct MI200 ...", sections on matrix arithmetic (MFMA)
// instructions; AMD's matrix instruction calculator, v_mfma_f32_16x16x16_f16. The MI200 document says that
// its MFMA takes subnormal f16 and bf16 operands as zero, so that gfx90a is refused (architectures.h);
// MI300's does not.
#include <hip/hip_runtime.h>

#include <cstdint>

#include "backend/gpu/device.h"

#define GRETA_GPU_TARGET hip
#define GRETA_KERNEL __global__
#define GRETA_DEVICE __device__ __forceinline__
/// HIP wants the least number of waves on each of a compute unit's four SIMDs in the place of blocks.
#define GRETA_BOUNDS(threads, blocks) \
  __launch_bounds__(threads, ((threads) * (blocks) + 4 * 64 - 1) / (4 * 64))
#define GRETA_UNROLL _Pragma("unroll")
#define GRETA_PRAGMA(text) _Pragma(#text)
#define GRETA_UNROLL_BY(n) GRETA_PRAGMA(unroll n)
#define GRETA_ARGUMENT const

namespace greta::gpu {
namespace hip {

// ---- threads
// --------------------------------------------------------------------------------------------------

inline constexpr int kWave = 64;
inline constexpr bool kWarpgroups = false;
/// Shared memory that a block may have: a compute unit's of both chips, less what block_any() has of its own.
inline constexpr int kMostSharedBytes = 64 * 1024 - 256;
inline int block_shared_bytes(const Launch& /*how*/) { return kMostSharedBytes; }
#if defined(__HIP_DEVICE_COMPILE__)
static_assert(__AMDGCN_WAVEFRONT_SIZE == kWave, "compiled for gfx9: waves of 64");
#endif
GRETA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
GRETA_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
GRETA_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) & (kWave - 1); }
GRETA_DEVICE int wave_index() { return static_cast<int>(threadIdx.x) / kWave; }
GRETA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
GRETA_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
GRETA_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
GRETA_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
GRETA_DEVICE void barrier() { __syncthreads(); }
/// A wave's instructions run in step; the compiler must not move shared memory accesses across.
GRETA_DEVICE void wave_barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
template <class T>
GRETA_DEVICE T shuffle(T value, int from) {
  static_assert(sizeof(T) == 4);
  return __builtin_bit_cast(T, __builtin_amdgcn_ds_bpermute(from << 2, __builtin_bit_cast(int, value)));
}
template <class T>
GRETA_DEVICE T shuffle_xor(T value, int mask) {
  return shuffle(value, lane_index() ^ mask);
}
GRETA_DEVICE bool block_any(bool condition) { return __syncthreads_or(condition) != 0; }
GRETA_DEVICE void atomic_add(unsigned long long* at, unsigned long long value) { atomicAdd(at, value); }

// ---- numbers: each rounds once, to nearest even, nothing is contracted
// ------------------------------------------

GRETA_DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GRETA_DEVICE uint16_t to_f16(float x) { return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x)); }
GRETA_DEVICE float from_f16(uint16_t bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }
GRETA_DEVICE uint32_t pack_f16(float low, float high) {
  return static_cast<uint32_t>(to_f16(low)) | static_cast<uint32_t>(to_f16(high)) << 16;
}
GRETA_DEVICE float low_f16(uint32_t packed) { return from_f16(static_cast<uint16_t>(packed)); }
GRETA_DEVICE float high_f16(uint32_t packed) { return from_f16(static_cast<uint16_t>(packed >> 16)); }
GRETA_DEVICE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
GRETA_DEVICE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
/// A NaN becomes 0x7fff, as CUDA has it.
GRETA_DEVICE uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
GRETA_DEVICE float from_bf16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }
GRETA_DEVICE uint32_t fused_f16(uint32_t a, uint32_t b, uint32_t c) {
  using Two = _Float16 __attribute__((ext_vector_type(2)));
  return __builtin_bit_cast(uint32_t,
                            __builtin_elementwise_fma(__builtin_bit_cast(Two, a), __builtin_bit_cast(Two, b),
                                                      __builtin_bit_cast(Two, c)));
}
inline constexpr uint32_t kF16With = 0x64006400u;
GRETA_DEVICE uint32_t f16_with_bytes(uint32_t word, int i) {
  return ((word >> (8 * i)) & 0x00ff00ffu) | kF16With;
}
GRETA_DEVICE float float_with_byte(uint32_t word, int i) {
  return float_of(((word >> (8 * i)) & 0xffu) | 0x4b000000u);
}
GRETA_DEVICE float larger(float a, float b) { return __builtin_fmaxf(a, b); }
/// At most 1 ulp (OpenCL's table of the device library, to which these functions are held: 3 ulp).
GRETA_DEVICE float exp_of(float x) { return expf(x); }
/// 2^x, at most 1 ulp (AMD ISA, V_EXP_F32); below 2^-126 it is 0.
GRETA_DEVICE float exp2_of(float x) { return __builtin_amdgcn_exp2f(x); }
GRETA_DEVICE float tanh_of(float x) { return tanhf(x); }
/// Correctly rounded: clang's default for HIP (-fhip-fp32-correctly-rounded-divide-sqrt). Not __fsqrt_rn,
/// which is the hardware's approximation there.
GRETA_DEVICE float root_of(float x) { return __builtin_sqrtf(x); }
/// 1 / x for x of 1 to 2, at most 1 ulp (AMD ISA, V_RCP_F32).
GRETA_DEVICE float reciprocal_of(float x) { return __builtin_amdgcn_rcpf(x); }
GRETA_DEVICE float divide(float a, float b) { return a / b; }
GRETA_DEVICE void sincos_of(double angle, double& sine, double& cosine) { sincos(angle, &sine, &cosine); }

// ---- memory
// ---------------------------------------------------------------------------------------------------

}  // namespace hip
}  // namespace greta::gpu
#include "backend/gpu/chip_memory.inl"
namespace greta::gpu {
namespace hip {

using U32x4 = uint32_t __attribute__((ext_vector_type(4)));
using U32x2 = uint32_t __attribute__((ext_vector_type(2)));
GRETA_DEVICE Words4 stream_words4(const void* from) {
  return __builtin_bit_cast(Words4, __builtin_nontemporal_load(static_cast<const U32x4*>(from)));
}
GRETA_DEVICE Words2 stream_words2(const void* from) {
  return __builtin_bit_cast(Words2, __builtin_nontemporal_load(static_cast<const U32x2*>(from)));
}
GRETA_DEVICE uint32_t stream_word(const void* from) {
  return __builtin_nontemporal_load(static_cast<const uint32_t*>(from));
}

}  // namespace hip
}  // namespace greta::gpu
#include "backend/gpu/barrier_turns.inl"
namespace greta::gpu {
namespace hip {

/// gfx9 has no such copy of 16 bytes: through registers, complete when it returns.
template <class T>
GRETA_DEVICE void copy_async16(const SharedArray<T>& to, int i, const void* from, bool valid = true) {
  to.put_words4(i, valid ? *static_cast<const Words4*>(from) : Words4{0, 0, 0, 0});
}
GRETA_DEVICE void copy_commit() {}
template <int Left>
GRETA_DEVICE void copy_wait() {}

// ---- the matrix unit: 16 (m) x kTileN (n), k in steps of 16
// ----------------------------------------------------

inline constexpr int kTileN = 16;
inline constexpr int kFragmentA = 4;
inline constexpr int kFragmentB = 4;
inline constexpr int kFragmentC = 4;
inline constexpr int kRowsA = 1;
__host__ __device__ constexpr int a_row(int lane, int /*e*/) { return lane % 16; }
__host__ __device__ constexpr int a_k(int lane, int e) { return 4 * (lane / 16) + e; }
__host__ __device__ constexpr int b_n(int lane, int /*e*/) { return lane % 16; }
__host__ __device__ constexpr int b_k(int lane, int e) { return 4 * (lane / 16) + e; }
__host__ __device__ constexpr int b_lane(int k) { return k / 4; }     ///< the inverse: of a column's lanes,
__host__ __device__ constexpr int b_element(int k) { return k % 4; }  ///< and of its elements
__host__ __device__ constexpr int c_row(int lane, int i) { return 4 * (lane / 16) + i; }
__host__ __device__ constexpr int c_n(int lane, int /*i*/) { return lane % 16; }

}  // namespace hip
}  // namespace greta::gpu
#include "backend/gpu/fragment_loads.inl"
namespace greta::gpu {
namespace hip {

using F16x4 = _Float16 __attribute__((ext_vector_type(4)));
using I16x4 = short __attribute__((ext_vector_type(4)));
using F32x4 = float __attribute__((ext_vector_type(4)));

/// How the unit rounds its sum is in no document: unproved.
GRETA_DEVICE void multiply(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b) {
  F32x4 sum = {c[0], c[1], c[2], c[3]};
  sum = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(F16x4, a), __builtin_bit_cast(F16x4, b), sum,
                                              0, 0, 0);
  GRETA_UNROLL
  for (int i = 0; i < kFragmentC; ++i) c[i] = sum[i];
}
GRETA_DEVICE void multiply_bf16(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b) {
  F32x4 sum = {c[0], c[1], c[2], c[3]};
  sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(I16x4, a), __builtin_bit_cast(I16x4, b),
                                                  sum, 0, 0, 0);
  GRETA_UNROLL
  for (int i = 0; i < kFragmentC; ++i) c[i] = sum[i];
}
// ---- launching
// ------------------------------------------------------------------------------------------------

GRETA_DEVICE void await_earlier() {}
GRETA_DEVICE void leave(const Mark& mark) {
  if (mark.at != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.x == 0)
    *const_cast<volatile uint32_t*>(mark.at) = mark.id;
}
GRETA_DEVICE void after_earlier(const Mark& mark) { leave(mark); }
GRETA_DEVICE void entered(const Mark& mark) { leave(mark); }
/// Kernels of this target begin when those before have ended.
GRETA_DEVICE void entered_early(const Mark& /*mark*/) {}

void check_launch(hipError_t status, const char* kernel);  // api_device.inl
template <class... Taken, class... Given>
void launch(const Launch& how, const char* name, void (*kernel)(Mark, Taken...), Grid grid, int threads,
            int shared_bytes, Given... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kMostSharedBytes) check_launch(hipErrorInvalidConfiguration, name);
  kernel<<<dim3(grid.x, grid.y, grid.z), dim3(static_cast<unsigned>(threads)),
           static_cast<size_t>(shared_bytes), static_cast<hipStream_t>(how.stream)>>>(
      how.mark(name), static_cast<Taken>(arguments)...);
  check_launch(hipGetLastError(), name);
}

}  // namespace hip
}  // namespace greta::gpu
