#pragma once
// Hopper's own instructions (sm_90a): warpgroups of four waves, barriers in shared memory. Elsewhere these
// functions have no body: the host launches no kernel that calls them there (Launch::warpgroups).
// Source: PTX ISA 8.x, "Asynchronous warpgroup level matrix instructions", "mbarrier", "setmaxnreg".
#include "backend/gpu/cuda/target.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GRETA_WARPGROUP_CODE
#endif

namespace greta::gpu::cuda {

inline constexpr int kWarpgroup = 128;  ///< threads

/// What else Hopper has of such a barrier.
class SharedBarrier : public Arrivals {
 public:
  using Arrivals::Arrivals;
  /// Arrives, and the phase ends not before so many bytes have been brought (copy_bulk).
  __device__ __forceinline__ void expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes)
                 : "memory");
  }
  /// At the same barrier of block `rank` of the cluster.
  __device__ __forceinline__ void arrive_at(int rank) const {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(address()),
        "r"(rank)
        : "memory");
  }
  /// wait() for who is in no hurry: leaves the others their turns to issue.
  __device__ __forceinline__ void wait_idly(uint32_t parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "nanosleep.u32 100;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(address()),
        "r"(parity)
        : "memory");
  }
};
/// So many bytes from global to shared memory by the copy engine; `full` counts them. Both 16-byte aligned.
template <class T>
GRETA_DEVICE void copy_bulk(const SharedArray<T>& to, int i, const void* from, int bytes,
                            const SharedBarrier& full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to, i)),
      "l"(from), "r"(bytes), "r"(full.address())
      : "memory");
}
/// The same to the same place of all blocks of the cluster in `blocks` (bit r: rank r), each one's own
/// barrier counting what it gets.
template <class T>
GRETA_DEVICE void copy_bulk_to(uint32_t blocks, const SharedArray<T>& to, int i, const void* from, int bytes,
                               const SharedBarrier& full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(shared_address(to, i)),
      "l"(from), "r"(bytes), "r"(full.address()), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}
/// True in one lane of the wave, which the compiler then knows to be alone: instructions that take their
/// operands from the wave's common registers, copy_bulk among them, are issued once and not in a loop over
/// lanes. All lanes call it.
GRETA_DEVICE bool elected() {
  uint32_t one;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(one));
  return one != 0;
}
GRETA_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
/// All threads of the cluster's blocks.
GRETA_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
/// What this thread wrote to shared memory is there for the matrix unit's own reads, after a barrier.
GRETA_DEVICE void publish_to_matrix_unit() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Of kCount stages one after another, round and round.
template <int kCount>
struct Turn {
  int stage = 0;
  uint32_t round = 0;
  GRETA_DEVICE void advance() {
    if (++stage == kCount) {
      stage = 0;
      ++round;
    }
  }
};

/// Whether `condition` holds in any lane.
GRETA_DEVICE bool wave_any(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }

/// Some of kThreads say so, the others wait for it; whole waves.
template <int kThreads>
GRETA_DEVICE void named_arrive() {
  asm volatile("bar.arrive 1, %0;" ::"n"(kThreads) : "memory");
}
template <int kThreads>
GRETA_DEVICE void named_wait() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

/// A block keeps the registers that it was launched with, of three warpgroups 168 a thread: whoever takes
/// more than others gave waits for ever.
constexpr bool registers_suffice(int producer, int consumers, int consumer) {
  return producer + consumers * consumer <=
         (consumers + 1) * (65536 / ((consumers + 1) * kWarpgroup) / 8 * 8);
}
/// Registers of a thread of this warpgroup from here on; every warpgroup says how many it needs.
template <int kCount>
GRETA_DEVICE void take_registers() {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
GRETA_DEVICE void give_registers() {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

/// Before the first product that reads registers written since. Products want a wave's lanes together:
/// whatever branches they took before, they meet here.
GRETA_DEVICE void warpgroup_begin() {
#ifdef GRETA_WARPGROUP_CODE
  wave_barrier();
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
GRETA_DEVICE void warpgroup_commit() {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// All products but those of the `Left` newest groups are done.
template <int Left>
GRETA_DEVICE void warpgroup_wait() {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
#endif
}

/// From the first element on that lies on 1024 bytes, as shared_tile() wants it; a block's shared memory
/// begins on 128.
template <class T>
GRETA_DEVICE SharedArray<T> from_1024(const SharedArray<T>& array) {
  const uint32_t skip = (1024u - (shared_address(array, 0) & 1023u)) & 1023u;
  return array.from(static_cast<int>(skip / sizeof(T)));
}
/// B [k 16, n] of f16 in shared memory: rows n of 64 k, 128 bytes each, 16-byte pieces of a row permuted by
/// rounded_at() (kernels/rounding.h); 1024-byte aligned. `address`: of its first byte; the tile begins
/// `offset` bytes behind it, kStepBytes for each k16 step of the row's four. An offset is a sum with what is
/// the same for all tiles at one address.
inline constexpr int kStepBytes = 32;
GRETA_DEVICE uint64_t shared_tile(uint32_t address, int offset) {
  const uint32_t leading = 1, stride = 1024 >> 4;  // stride: from 8 rows to the next 8
  const uint32_t start = (((address & 0x3ffffu) >> 4) | (leading << 16)) + static_cast<uint32_t>(offset) / 16;
  return uint64_t{stride | uint32_t{1} << 30} << 32 | start;  // 128-byte swizzle
}
/// c [64, 128] = a b, or c + a b. c: as C of mma.m16n8k16 for each 8 of n; `b`: shared_tile().
GRETA_DEVICE void warpgroup_multiply(float (&c)[64], const FragmentA& a, uint64_t b, bool add) {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n"
      "}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]),
        "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
        "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]),
        "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]),
        "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]), "+f"(c[49]), "+f"(c[50]),
        "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), "+f"(c[57]),
        "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(b), "r"(static_cast<int>(add)));
#endif
}

/// c [64, 64] = a b, or c + a b. ByK: b lies by k, rows k of 64 n, instead (PTX ISA, "Matrix descriptor":
/// leading dimension of the rows' own direction; 8 rows of k are 1024 bytes).
template <bool ByK>
GRETA_DEVICE void warpgroup_multiply(float (&c)[32], const FragmentA& a, uint64_t b, bool add) {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n"
      "}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]),
        "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
        "+f"(c[30]), "+f"(c[31])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(ByK ? 1 : 0));
#endif
}

/// Of sums of rows (kernels/rounding.h, sums_at()), f16 [n][16] in pieces of 8 x 8 without a swizzle, two
/// side by side in k: as B [k 16, n], from row 64 `half` on. 16-byte aligned.
GRETA_DEVICE uint64_t sums_tile(uint32_t address, int half) {
  const uint32_t leading = 128 >> 4, stride = 256 >> 4;  // to the next 8 of k, of n
  const uint32_t start = (address + static_cast<uint32_t>(half) * 8 * 256) & 0x3ffffu;
  return uint64_t{stride} << 32 | (start >> 4 | leading << 16);
}
/// c [64, 64] = a b. Unlike warpgroup_multiply() it reads nothing of c, whose registers need not be set
/// before.
GRETA_DEVICE void warpgroup_product(float (&c)[32], const FragmentA& a, uint64_t b) {
#ifdef GRETA_WARPGROUP_CODE
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u64 p, %36, %36;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n"
      "}\n"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3]), "=f"(c[4]), "=f"(c[5]), "=f"(c[6]), "=f"(c[7]),
        "=f"(c[8]), "=f"(c[9]), "=f"(c[10]), "=f"(c[11]), "=f"(c[12]), "=f"(c[13]), "=f"(c[14]), "=f"(c[15]),
        "=f"(c[16]), "=f"(c[17]), "=f"(c[18]), "=f"(c[19]), "=f"(c[20]), "=f"(c[21]), "=f"(c[22]),
        "=f"(c[23]), "=f"(c[24]), "=f"(c[25]), "=f"(c[26]), "=f"(c[27]), "=f"(c[28]), "=f"(c[29]),
        "=f"(c[30]), "=f"(c[31])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(b));
#endif
}

}  // namespace greta::gpu::cuda
