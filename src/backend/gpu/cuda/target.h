#pragma once
// NVIDIA, sm_80 and up: the target's own instructions behind the names that every kernel in ../kernels uses.
// The same names exist in ../hip/target.h (wave 64, MFMA) and ../sim/target.h (the host, either wave). A
// kernel includes no other header of a target, names no lane count and no matrix instruction.
// Sources: PTX ISA 8.x, "Warp-level matrix instructions" (fragment layouts of mma.m16n8k16) and
// "Asynchronous copy".
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/gpu/device.h"

#define GRETA_GPU_TARGET cuda
#define GRETA_KERNEL __global__
#define GRETA_DEVICE __device__ __forceinline__
/// Beside GRETA_KERNEL: at most so many threads a block, at least so many blocks a multiprocessor.
#define GRETA_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
/// Unrolls the loop that follows.
#define GRETA_UNROLL _Pragma("unroll")
#define GRETA_PRAGMA(text) _Pragma(#text)
#define GRETA_UNROLL_BY(n) GRETA_PRAGMA(unroll n)
/// Before a kernel's argument: read where the launch has put it, never copied, even when indexed.
#define GRETA_ARGUMENT const __grid_constant__

namespace greta::gpu {
namespace cuda {

// ---- threads
// --------------------------------------------------------------------------------------------------

inline constexpr int kWave = 32;
/// Whether kernels of Hopper's warpgroups are among the target's (matmul_warpgroup.inl).
inline constexpr bool kWarpgroups = true;
/// Shared memory that a block may have (CUDA C++ Programming Guide, "Technical Specifications per Compute
/// Capability"): 99 KiB are the least of sm_80 and up, sm_90 has 227.
inline int block_shared_bytes(const Launch& how) { return (how.warpgroups ? 227 : 96) * 1024; }
GRETA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
GRETA_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
GRETA_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) & (kWave - 1); }
GRETA_DEVICE int wave_index() { return static_cast<int>(threadIdx.x) / kWave; }
GRETA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
GRETA_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
GRETA_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
GRETA_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
/// All threads of the block.
GRETA_DEVICE void barrier() { __syncthreads(); }
/// The threads of a wave, and their shared memory writes before it.
GRETA_DEVICE void wave_barrier() { __syncwarp(); }
/// 32-bit types; all lanes of the wave take part.
template <class T>
GRETA_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
GRETA_DEVICE T shuffle(T value, int from) {
  return __shfl_sync(0xffffffffu, value, from);
}
/// The largest of the wave's numbers, none of which is negative or a NaN.
GRETA_DEVICE float wave_largest(float value) {
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(value)));
}
/// Whether `condition` holds in any thread of the block; all threads call it. A barrier.
GRETA_DEVICE bool block_any(bool condition) { return __syncthreads_or(condition) != 0; }
GRETA_DEVICE void atomic_add(unsigned long long* at, unsigned long long value) { atomicAdd(at, value); }

// ---- numbers: each rounds once, to nearest even, nothing is contracted
// ------------------------------------------

GRETA_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
/// Two f16 in a register: `low` in the low half. Past 65504: infinity.
GRETA_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
GRETA_DEVICE float low_f16(uint32_t packed) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(packed)));
}
GRETA_DEVICE float high_f16(uint32_t packed) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(packed >> 16)));
}
GRETA_DEVICE uint16_t to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
GRETA_DEVICE float from_f16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
GRETA_DEVICE uint16_t to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
GRETA_DEVICE float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
GRETA_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
GRETA_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
/// a b + c of two f16 in each: `c` is 0 or all of it exact, so that it rounds once.
GRETA_DEVICE uint32_t fused_f16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
/// Two f16: 1024 + q for q below 1024 in either half.
inline constexpr uint32_t kF16With = 0x64006400u;
/// Bytes i and i + 2 as two f16, each 1024 more.
GRETA_DEVICE uint32_t f16_with_bytes(uint32_t word, int i) {
  return __byte_perm(word, kF16With, static_cast<unsigned>(0x5250 + 0x101 * i));
}
/// Byte i, 2^23 more.
GRETA_DEVICE float float_with_byte(uint32_t word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, static_cast<unsigned>(0x7440 + i)));
}
/// The larger; a NaN only if both are.
GRETA_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
/// e^x, at most 2 ulp (CUDA C++ Programming Guide, "Mathematical functions").
GRETA_DEVICE float exp_of(float x) { return expf(x); }
/// 2^x, relative error at most 2^-22 (PTX ISA, "ex2"); below 2^-126 it is 0.
GRETA_DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GRETA_DEVICE float tanh_of(float x) { return tanhf(x); }
GRETA_DEVICE float root_of(float x) { return __fsqrt_rn(x); }
/// 1 / x for x of 1 to 2, relative error at most 2^-23 (PTX ISA, "rcp").
GRETA_DEVICE float reciprocal_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GRETA_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
/// FP64, at most 2 ulp.
GRETA_DEVICE void sincos_of(double angle, double& sine, double& cosine) { sincos(angle, &sine, &cosine); }

// ---- memory
// ---------------------------------------------------------------------------------------------------

}  // namespace cuda
}  // namespace greta::gpu
#include "backend/gpu/chip_memory.inl"
namespace greta::gpu {
namespace cuda {

/// Read once, not kept in the first cache: weights.
GRETA_DEVICE Words4 stream_words4(const void* from) {
  Words4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
GRETA_DEVICE Words2 stream_words2(const void* from) {
  Words2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}
GRETA_DEVICE uint32_t stream_word(const void* from) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}

/// Of element i, as the instructions of shared memory want it.
template <class T>
GRETA_DEVICE uint32_t shared_address(const SharedArray<T>& array, int i) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(&array[i]));
}

/// 16 bytes from global to shared memory, complete after copy_wait; both 16-byte aligned. `valid` false:
/// zeros, and nothing is read.
template <class T>
GRETA_DEVICE void copy_async16(const SharedArray<T>& to, int i, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to, i)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
GRETA_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// This thread's groups but the `Left` newest are complete; others' after a barrier.
template <int Left>
GRETA_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/// mbarrier i of `at`: a phase ends when as many have arrived as start() was told. After start() a barrier.
class Arrivals {
 public:
  GRETA_DEVICE Arrivals(const SharedArray<uint64_t>& at, int i) : address_(shared_address(at, i)) {}
  GRETA_DEVICE void start(int threads) const {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address_), "r"(threads) : "memory");
  }
  GRETA_DEVICE void arrive() const {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(address_)
                 : "memory");
  }
  GRETA_DEVICE uint32_t address() const { return address_; }
  /// Until phase `phase` has ended, of which the parity counts.
  GRETA_DEVICE void wait(uint32_t phase) const {
#if __CUDA_ARCH__ >= 900
#define GRETA_TRY_WAIT "mbarrier.try_wait"  // the thread sleeps meanwhile
#else
#define GRETA_TRY_WAIT "mbarrier.test_wait"
#endif
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n" GRETA_TRY_WAIT
        ".parity.shared.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(address_),
        "r"(phase & 1u)
        : "memory");
#undef GRETA_TRY_WAIT
  }

 private:
  uint32_t address_;
};

/// Where some of a block's threads meet. kApart: the others know nothing of it; else all of the block must
/// come. After the constructor a barrier. (Not bar.sync with a count: racecheck does not follow it.)
class Meeting {
 public:
  static constexpr bool kApart = true;
  static constexpr int kBytes = 16;
  GRETA_DEVICE Meeting(Shared& shared, int threads) : arrivals_(shared.array<uint64_t>(1), 0) {
    if (thread_index() == 0) arrivals_.start(threads);
  }
  GRETA_DEVICE void meet() {
    arrivals_.arrive();
    arrivals_.wait(phase_++);
  }

 private:
  Arrivals arrivals_;
  uint32_t phase_ = 0;
};

/// Two buffers that waves fill and others empty, turn about: turn t is of buffer t % 2. Waves that fill call
/// wait_free and filled, those that empty wait_filled and freed, each once a turn. After the constructor a
/// barrier. Nobody waits but for the other side: mbarriers, at which every thread arrives for itself.
class Turns {
 public:
  static constexpr int kBytes = 4 * 8;
  /// So many threads of either kind.
  GRETA_DEVICE Turns(Shared& shared, int filling, int emptying) : at_(shared.array<uint64_t>(4)) {
    if (thread_index() != 0) return;
    for (int i = 0; i < 4; ++i) Arrivals(at_, i).start(i < 2 ? filling : emptying);
  }
  GRETA_DEVICE void wait_free(int turn) const {
    if (turn >= 2) Arrivals(at_, 2 + turn % 2).wait(static_cast<uint32_t>(turn / 2 - 1));
  }
  GRETA_DEVICE void filled(int turn) const { Arrivals(at_, turn % 2).arrive(); }
  GRETA_DEVICE void wait_filled(int turn) const {
    Arrivals(at_, turn % 2).wait(static_cast<uint32_t>(turn / 2));
  }
  GRETA_DEVICE void freed(int turn) const { Arrivals(at_, 2 + turn % 2).arrive(); }

 private:
  SharedArray<uint64_t> at_;
};

// ---- the matrix unit: 16 (m) x kTileN (n), k in steps of 16
// ----------------------------------------------------
// A wave holds a tile together. Of each operand a lane has elements at the places that these functions name;
// elements 2i and 2i + 1 of A and B are neighbours in k and share a register, the lower in its low half.

inline constexpr int kTileN = 8;
inline constexpr int kFragmentA = 8;  ///< elements of A [16, 16] a lane has
inline constexpr int kFragmentB = 4;  ///< of B [16, kTileN]
inline constexpr int kFragmentC = 4;  ///< of C [16, kTileN], FP32
inline constexpr int kRowsA = 2;      ///< rows of A that a lane has elements of
__host__ __device__ constexpr int a_row(int lane, int e) { return lane / 4 + 8 * ((e >> 1) & 1); }
__host__ __device__ constexpr int a_k(int lane, int e) { return 2 * (lane % 4) + (e & 1) + 8 * (e >> 2); }
__host__ __device__ constexpr int b_n(int lane, int /*e*/) { return lane / 4; }
__host__ __device__ constexpr int b_k(int lane, int e) { return 2 * (lane % 4) + (e & 1) + 8 * (e >> 1); }
__host__ __device__ constexpr int b_lane(int k) { return k / 2 % 4; }  ///< the inverse: of a column's lanes,
__host__ __device__ constexpr int b_element(int k) { return k % 2 + k / 8 * 2; }  ///< and of its elements
__host__ __device__ constexpr int c_row(int lane, int i) { return lane / 4 + 8 * (i >> 1); }
__host__ __device__ constexpr int c_n(int lane, int i) { return 2 * (lane % 4) + (i & 1); }

}  // namespace cuda
}  // namespace greta::gpu
#include "backend/gpu/fragments.inl"
namespace greta::gpu {
namespace cuda {

/// Four matrices of 8 x 8 16-bit elements, lane l naming row l % 8 of matrix l / 8; word i of a lane is of
/// matrix i, in the places of an operand. By_k: turned on the way (PTX ISA, "ldmatrix").
template <bool By_k>
GRETA_DEVICE void load_matrices(uint32_t at, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  if constexpr (By_k) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(at)
                 : "memory");
  }
}
/// A [m 16, k 16] of 16-bit elements from shared memory in which element (m, k) is at m * stride + k; stride
/// a multiple of 8.
GRETA_DEVICE FragmentA fragment_a(const SharedArray<uint16_t>& from, int stride) {
  FragmentA a;
  const int lane = lane_index(), row = lane % 8 + lane / 8 % 2 * 8, k = lane / 16 * 8;
  load_matrices<false>(shared_address(from, row * stride + k), a.word[0], a.word[1], a.word[2], a.word[3]);
  return a;
}
/// Count of B [k 16, n kTileN], `next` elements apart: element (k, n) at n * stride + k; both multiples of 8.
template <int kCount>
GRETA_DEVICE void fragments_b(const SharedArray<uint16_t>& from, int stride, int next,
                              FragmentB (&b)[kCount]) {
  static_assert(kCount % 2 == 0);
  const int lane = lane_index(), at = lane / 16 * next + lane % 8 * stride + lane / 8 % 2 * 8;
  GRETA_UNROLL
  for (int i = 0; i < kCount; i += 2)
    load_matrices<false>(shared_address(from, i * next + at), b[i].word[0], b[i].word[1], b[i + 1].word[0],
                         b[i + 1].word[1]);
}
/// The same where k runs slower: element (k, n) at k * stride + n.
template <int kCount>
GRETA_DEVICE void fragments_b_by_k(const SharedArray<uint16_t>& from, int stride, int next,
                                   FragmentB (&b)[kCount]) {
  static_assert(kCount % 2 == 0);
  const int lane = lane_index(), at = lane / 16 * next + lane % 16 * stride;
  GRETA_UNROLL
  for (int i = 0; i < kCount; i += 2)
    load_matrices<true>(shared_address(from, i * next + at), b[i].word[0], b[i].word[1], b[i + 1].word[0],
                        b[i + 1].word[1]);
}

/// c += a b, f16 operands. Products are exact; the sum truncates (u = 2^-23).
GRETA_DEVICE void multiply(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}
/// The same on bf16 operands.
GRETA_DEVICE void multiply_bf16(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}
// ---- launching
// ------------------------------------------------------------------------------------------------

/// A kernel may begin while those launched before it end. entered() waits for them at once; a kernel that
/// begins with entered_early() calls after_earlier(), or its two parts, before it touches what they leave.
GRETA_DEVICE void entered_early(const Mark&) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
GRETA_DEVICE void await_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Says which kernel is running, for the report of a fault that comes later (device.h).
GRETA_DEVICE void leave(const Mark& mark) {
  if (mark.at != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.x == 0)
    *const_cast<volatile uint32_t*>(mark.at) = mark.id;
}
GRETA_DEVICE void after_earlier(const Mark& mark) {
  await_earlier();
  leave(mark);
}
GRETA_DEVICE void entered(const Mark& mark) {
  entered_early(mark);
  after_earlier(mark);
}

/// launch(how, name, kernel, {x, y, z}, threads, shared bytes, arguments...): `kernel` gets a Mark before its
/// arguments. Errors: the launch was refused (with the kernel's name).
void check_launch(cudaError_t status, const char* kernel);  // api_device.inl
template <class... Taken, class... Given>
void launch(const Launch& how, const char* name, void (*kernel)(Mark, Taken...), Grid grid, int threads,
            int shared_bytes, Given... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024)
    check_launch(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                 name);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {grid.cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = attributes;
  config.numAttrs = !how.warpgroups ? 0 : grid.cluster == 1 ? 1 : 2;  // Hopper has all
  check_launch(cudaLaunchKernelEx(&config, kernel, how.mark(name), static_cast<Taken>(arguments)...), name);
}

}  // namespace cuda
}  // namespace greta::gpu
