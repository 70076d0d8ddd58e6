#pragma once
// The host as a test target: the names of ../cuda/target.h with the same meaning, over runtime.h. The
// includer defines GRETA_SIM_WAVE, once for a translation unit: 32 is the view that CUDA has of the kernels,
// 64 that of HIP on CDNA3.
#if !defined(GRETA_SIM_WAVE) || (GRETA_SIM_WAVE != 32 && GRETA_SIM_WAVE != 64)
#error "define GRETA_SIM_WAVE as 32 or 64"
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "backend/gpu/device.h"
#include "backend/gpu/sim/runtime.h"
#include "base/half.h"

#if GRETA_SIM_WAVE == 32
#define GRETA_GPU_TARGET sim32
#else
#define GRETA_GPU_TARGET sim64
#endif
#define GRETA_KERNEL inline
#define GRETA_DEVICE inline
#define GRETA_BOUNDS(threads, blocks)
#define GRETA_UNROLL
#define GRETA_UNROLL_BY(n)
#define GRETA_ARGUMENT const

namespace greta::gpu::GRETA_GPU_TARGET {

using sim::Where;

// ---- threads
// --------------------------------------------------------------------------------------------------

inline constexpr int kWave = GRETA_SIM_WAVE;
/// Whether kernels of Hopper's warpgroups are among the target's (matmul_warpgroup.inl).
inline constexpr bool kWarpgroups = false;
inline int block_shared_bytes(const Launch& /*how*/) { return (GRETA_SIM_WAVE == 32 ? 96 : 64) * 1024; }
GRETA_DEVICE int thread_index() { return sim::running->index; }
GRETA_DEVICE int block_threads() { return sim::place.block_threads; }
GRETA_DEVICE int lane_index() { return sim::running->index & (kWave - 1); }
GRETA_DEVICE int wave_index() { return sim::running->index / kWave; }
GRETA_DEVICE int block_x() { return static_cast<int>(sim::place.block.x); }
GRETA_DEVICE int block_y() { return static_cast<int>(sim::place.block.y); }
GRETA_DEVICE int block_z() { return static_cast<int>(sim::place.block.z); }
GRETA_DEVICE int grid_x() { return static_cast<int>(sim::place.grid.x); }
/// All threads of the block.
GRETA_DEVICE void barrier(Where where = Where::here()) { sim::barrier(where); }
/// The threads of a wave, and their shared memory writes before it.
GRETA_DEVICE void wave_barrier(Where where = Where::here()) { sim::wave_barrier(where); }
/// 32-bit types; all lanes of the wave take part. A lane outside of the wave is an error.
template <class T>
GRETA_DEVICE T shuffle(T value, int from, Where where = Where::here()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(sim::shuffle(std::bit_cast<uint32_t>(value), from, where));
}
template <class T>
GRETA_DEVICE T shuffle_xor(T value, int mask, Where where = Where::here()) {
  return shuffle(value, lane_index() ^ mask, where);
}
/// Whether `condition` holds in any thread of the block; all threads call it. A barrier.
GRETA_DEVICE bool block_any(bool condition, Where where = Where::here()) {
  return sim::block_any(condition, where);
}
GRETA_DEVICE void atomic_add(unsigned long long* at, unsigned long long value) { *at += value; }
/// Blocks run one after another.
GRETA_DEVICE bool last_to_arrive(uint32_t* count, uint32_t of, Where where = Where::here()) {
  sim::barrier(where);
  const bool last = thread_index() == 0 && ++*count == of;
  if (last) *count = 0;
  return sim::block_any(last, where);
}

// ---- numbers: each rounds once, to nearest even, nothing is contracted
// ------------------------------------------

GRETA_DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
/// Two f16 in a register: `low` in the low half. Past 65504: infinity.
GRETA_DEVICE uint32_t pack_f16(float low, float high) {
  return static_cast<uint32_t>(f32_to_f16(low)) | (static_cast<uint32_t>(f32_to_f16(high)) << 16);
}
GRETA_DEVICE float low_f16(uint32_t packed) { return f16_to_f32(static_cast<uint16_t>(packed)); }
GRETA_DEVICE float high_f16(uint32_t packed) { return f16_to_f32(static_cast<uint16_t>(packed >> 16)); }
GRETA_DEVICE uint16_t to_f16(float x) { return f32_to_f16(x); }
GRETA_DEVICE float from_f16(uint16_t bits) { return f16_to_f32(bits); }
GRETA_DEVICE uint16_t to_bf16(float x) { return f32_to_bf16(x); }
GRETA_DEVICE float from_bf16(uint16_t bits) { return bf16_to_f32(bits); }
GRETA_DEVICE uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
GRETA_DEVICE float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
GRETA_DEVICE uint32_t fused_f16(uint32_t a, uint32_t b, uint32_t c) {
  return pack_f16(std::fma(low_f16(a), low_f16(b), low_f16(c)),
                  std::fma(high_f16(a), high_f16(b), high_f16(c)));
}
inline constexpr uint32_t kF16With = 0x64006400u;
GRETA_DEVICE uint32_t f16_with_bytes(uint32_t word, int i) {
  return ((word >> (8 * i)) & 0x00ff00ffu) | kF16With;
}
GRETA_DEVICE float float_with_byte(uint32_t word, int i) {
  return float_of(((word >> (8 * i)) & 0xffu) | 0x4b000000u);
}
/// The larger; a NaN only if both are. +0 is larger than -0.
GRETA_DEVICE float larger(float a, float b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a < b ? b : a;
}
GRETA_DEVICE float exp_of(float x) { return std::exp(x); }
GRETA_DEVICE float exp2_of(float x) { return std::exp2(x); }
GRETA_DEVICE float tanh_of(float x) { return std::tanh(x); }
GRETA_DEVICE float root_of(float x) { return std::sqrt(x); }
GRETA_DEVICE float reciprocal_of(float x) { return 1.0f / x; }
GRETA_DEVICE float divide(float a, float b) { return a / b; }
GRETA_DEVICE void sincos_of(double angle, double& sine, double& cosine) {
  sine = std::sin(angle);
  cosine = std::cos(angle);
}

// ---- memory
// ---------------------------------------------------------------------------------------------------

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Words2 {
  uint32_t x, y;
};
/// A load of the device's own width: misaligned is an error, as it is there.
template <class T>
GRETA_DEVICE T load_global(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) sim::misaligned(from, sizeof(T));
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
GRETA_DEVICE Words4 stream_words4(const void* from) { return load_global<Words4>(from); }
GRETA_DEVICE Words2 stream_words2(const void* from) { return load_global<Words2>(from); }
GRETA_DEVICE uint32_t stream_word(const void* from) { return load_global<uint32_t>(from); }

/// An array of the block's shared memory, or a slice of one. Every access is checked against its bounds.
template <class T>
class SharedArray {
 public:
  SharedArray(T* data, int count) : data_(data), count_(count) {}
  T& operator[](int i) const {
    check(i, 1);
    return data_[i];
  }
  /// From element `first` on.
  SharedArray from(int first) const {
    check(first, 0);
    return SharedArray(data_ + first, count_ - first);
  }
  /// Elements i .. as one 16-byte or 4-byte word; aligned to it.
  Words4 words4(int i) const { return get<Words4>(i); }
  uint32_t word(int i) const { return get<uint32_t>(i); }
  void put_word(int i, uint32_t v) const { put(i, v); }
  void put_words2(int i, const Words2& v) const { put(i, v); }
  void put_words4(int i, const Words4& v) const { put(i, v); }
  /// 16 bytes from element i on.
  std::byte* bytes16(int i) const { return at<Words4>(i); }

 private:
  void check(int i, int elements) const {
    if (i < 0 || i > count_ - elements) sim::out_of_bounds(i, elements, count_);
  }
  template <class Word>
  std::byte* at(int i) const {
    static_assert(sizeof(Word) % sizeof(T) == 0);
    check(i, static_cast<int>(sizeof(Word) / sizeof(T)));
    T* place = data_ + i;
    if (reinterpret_cast<uintptr_t>(place) % sizeof(Word) != 0) sim::misaligned(place, sizeof(Word));
    return reinterpret_cast<std::byte*>(place);
  }
  template <class Word>
  Word get(int i) const {
    Word v;
    std::memcpy(&v, at<Word>(i), sizeof v);
    return v;
  }
  template <class Word>
  void put(int i, const Word& v) const {
    std::memcpy(at<Word>(i), &v, sizeof v);
  }

  T* data_;
  int count_;
};
/// The block's shared memory, handed out from its start. Arrays are 16-byte aligned.
class Shared {
 public:
  template <class T>
  SharedArray<T> array(int count) {
    const int bytes = count * static_cast<int>(sizeof(T));
    T* at = reinterpret_cast<T*>(sim::shared_array(used_, bytes));
    used_ += (bytes + 15) & ~15;
    return SharedArray<T>(at, count);
  }

 private:
  int used_ = 0;
};

}  // namespace greta::gpu::GRETA_GPU_TARGET
#include "backend/gpu/barrier_turns.inl"
namespace greta::gpu::GRETA_GPU_TARGET {

/// 16 bytes from global to shared memory, poison until the copy_wait that covers them; both 16-byte aligned.
/// `valid` false: zeros, and nothing is read.
template <class T>
GRETA_DEVICE void copy_async16(const SharedArray<T>& to, int i, const void* from, bool valid = true) {
  sim::copy_async16(to.bytes16(i), from, valid);
}
GRETA_DEVICE void copy_commit() { sim::copy_commit(); }
/// This thread's groups but the `Left` newest are complete; others' after a barrier.
template <int Left>
GRETA_DEVICE void copy_wait() {
  sim::copy_wait(Left);
}

// ---- the matrix unit: 16 (m) x kTileN (n), k in steps of 16
// ----------------------------------------------------
// As in ../cuda/target.h. Elements 2i and 2i + 1 of A and B are neighbours in k and share a register.

#if GRETA_SIM_WAVE == 32
// mma.m16n8k16 (PTX ISA 8.x, "Warp-level matrix instructions").
inline constexpr int kTileN = 8;
inline constexpr int kFragmentA = 8;
inline constexpr int kFragmentB = 4;
inline constexpr int kFragmentC = 4;
inline constexpr int kRowsA = 2;
constexpr int a_row(int lane, int e) { return lane / 4 + 8 * ((e >> 1) & 1); }
constexpr int a_k(int lane, int e) { return 2 * (lane % 4) + (e & 1) + 8 * (e >> 2); }
constexpr int b_n(int lane, int /*e*/) { return lane / 4; }
constexpr int b_k(int lane, int e) { return 2 * (lane % 4) + (e & 1) + 8 * (e >> 1); }
constexpr int b_lane(int k) { return k / 2 % 4; }             ///< the inverse: of a column's lanes,
constexpr int b_element(int k) { return k % 2 + k / 8 * 2; }  ///< and of its elements
constexpr int c_row(int lane, int i) { return lane / 4 + 8 * (i >> 1); }
constexpr int c_n(int lane, int i) { return 2 * (lane % 4) + (i & 1); }
#else
// v_mfma_f32_16x16x16_f16 (AMD, "CDNA3 Instruction Set Architecture", "Matrix Arithmetic Instructions", and
// AMD's matrix instruction calculator). From the documents alone: not proved on a chip.
inline constexpr int kTileN = 16;
inline constexpr int kFragmentA = 4;
inline constexpr int kFragmentB = 4;
inline constexpr int kFragmentC = 4;
inline constexpr int kRowsA = 1;
constexpr int a_row(int lane, int /*e*/) { return lane % 16; }
constexpr int a_k(int lane, int e) { return 4 * (lane / 16) + e; }
constexpr int b_n(int lane, int /*e*/) { return lane % 16; }
constexpr int b_k(int lane, int e) { return 4 * (lane / 16) + e; }
constexpr int b_lane(int k) { return k / 4; }     ///< the inverse: of a column's lanes,
constexpr int b_element(int k) { return k % 4; }  ///< and of its elements
constexpr int c_row(int lane, int i) { return 4 * (lane / 16) + i; }
constexpr int c_n(int lane, int /*i*/) { return lane % 16; }
#endif

constexpr sim::MatrixUnit matrix_unit() {
  sim::MatrixUnit unit;
  unit.wave = kWave;
  unit.tile_n = kTileN;
  unit.count_a = kFragmentA;
  unit.count_b = kFragmentB;
  unit.count_c = kFragmentC;
  for (int lane = 0; lane < kWave; ++lane) {
    for (int e = 0; e < kFragmentA; ++e)
      unit.a[lane * kFragmentA + e] = static_cast<uint8_t>(a_row(lane, e) * 16 + a_k(lane, e));
    for (int e = 0; e < kFragmentB; ++e)
      unit.b[lane * kFragmentB + e] = static_cast<uint8_t>(b_k(lane, e) * kTileN + b_n(lane, e));
    for (int i = 0; i < kFragmentC; ++i)
      unit.c[lane * kFragmentC + i] = static_cast<uint8_t>(c_row(lane, i) * kTileN + c_n(lane, i));
  }
  return unit;
}
inline constexpr sim::MatrixUnit kMatrixUnit = matrix_unit();

}  // namespace greta::gpu::GRETA_GPU_TARGET
#include "backend/gpu/fragment_loads.inl"
namespace greta::gpu::GRETA_GPU_TARGET {

/// c += a b, f16 operands: FP32 fused multiply-adds in ascending k, to nearest even.
GRETA_DEVICE void multiply(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b,
                           Where where = Where::here()) {
  sim::multiply(c, a.word, b.word, false, kMatrixUnit, where);
}
/// The same on bf16 operands.
GRETA_DEVICE void multiply_bf16(float (&c)[kFragmentC], const FragmentA& a, const FragmentB& b,
                                Where where = Where::here()) {
  sim::multiply(c, a.word, b.word, true, kMatrixUnit, where);
}
// ---- launching
// ------------------------------------------------------------------------------------------------

GRETA_DEVICE void await_earlier() {}
/// Says which kernel is running, for the report of a fault that comes later (device.h).
GRETA_DEVICE void leave(const Mark& mark) {
  if (mark.at != nullptr && thread_index() == 0 && block_x() == 0 && block_y() == 0 && block_z() == 0)
    *mark.at = mark.id;
}
GRETA_DEVICE void after_earlier(const Mark& mark) { leave(mark); }
GRETA_DEVICE void entered(const Mark& mark) { leave(mark); }
/// Kernels of this target begin when those before have ended.
GRETA_DEVICE void entered_early(const Mark& /*mark*/) {}

/// Shared memory of a block: what sm_80 allows (CUDA C++ Programming Guide, "Technical Specifications per
/// Compute Capability": 163 KiB), and CDNA3's 64 KiB of LDS.
inline constexpr sim::Traits kTraits =
    GRETA_SIM_WAVE == 32 ? sim::Traits{"sim:32", 32, 163 * 1024} : sim::Traits{"sim:64", 64, 64 * 1024};

/// launch(how, name, kernel, {x, y, z}, threads, shared bytes, arguments...): `kernel` gets a Mark before its
/// arguments. Runs at once, unless a graph is being recorded. Errors: greta::Error with the kernel's name.
template <class... Taken, class... Given>
void launch(const Launch& how, const char* name, void (*kernel)(Mark, Taken...), Grid grid, int threads,
            int shared_bytes, Given... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  struct Bound {
    void (*kernel)(Mark, Taken...);
    std::tuple<Mark, Taken...> arguments;
  };
  const Bound bound{kernel, {how.mark(name), static_cast<Taken>(arguments)...}};
  sim::submit(how.stream, [=, stream = how.stream] {
    sim::run_grid(
        kTraits, name, stream, grid, threads, shared_bytes,
        [](const void* at) {
          const auto& b = *static_cast<const Bound*>(at);
          std::apply(b.kernel, b.arguments);
        },
        &bound);
  });
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
