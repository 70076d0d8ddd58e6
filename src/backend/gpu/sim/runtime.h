#pragma once
// The machine behind target.h: a block's threads as fibers, a seeded scheduler, barriers and the collectives
// of a wave, shared memory and asynchronous copies. Compiled once; the wave size is a number here.
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "backend/gpu/device.h"

namespace greta::gpu::sim {

/// What a graph does again, in order.
using Work = std::vector<std::function<void()>>;

/// What Launch::stream points to. The order in which threads run follows from the seed, the number of the
/// launch and the block's index alone.
struct Stream {
  uint64_t seed = 0;
  uint64_t launches = 0;
  Work* recording = nullptr;  ///< where launches go meanwhile, instead of running
};

/// A line of a kernel's source: lanes of a wave, or threads of a block, must wait at the same.
struct Where {
  const char* file = "";
  int line = 0;

  /// As a default argument: the caller's.
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// A target's own numbers.
struct Traits {
  const char* name = "";  ///< "sim:32"
  int wave = 0;
  int max_shared_bytes = 0;  ///< of a block
};

/// A thread of the block that runs now; the rest of it is runtime.cpp's.
struct Thread {
  int index = 0;
};

/// Where a thread is.
struct Place {
  int block_threads = 0;
  Grid grid;
  Grid block;  ///< index
  std::byte* shared = nullptr;
  int shared_bytes = 0;
};

/// Of the thread that runs on this host thread; null outside of a kernel.
inline thread_local constinit Thread* running = nullptr;
inline thread_local constinit Place place;

/// The layouts of 16 x tile_n x 16: element e of a lane's fragment lies at table[lane * count + e].
struct MatrixUnit {
  int wave = 0;
  int tile_n = 0;
  int count_a = 0, count_b = 0, count_c = 0;  ///< elements of a lane
  std::array<uint8_t, 256> a = {};            ///< m * 16 + k
  std::array<uint8_t, 256> b = {};            ///< k * tile_n + n
  std::array<uint8_t, 256> c = {};            ///< m * tile_n + n
};

// ---- what a kernel calls; errors name the kernel, the block and the thread

void barrier(Where where);
bool block_any(bool condition, Where where);
void wave_barrier(Where where);
/// The value that lane `from` of the wave came with.
uint32_t shuffle(uint32_t value, int from, Where where);
/// c += a b for the whole wave. Each element of c: one fused FP32 multiply-add for each k, ascending, to
/// nearest even.
void multiply(float* c, const uint32_t* a, const uint32_t* b, bool bf16, const MatrixUnit& unit, Where where);
void copy_async16(std::byte* to, const void* from, bool valid);
void copy_commit();
void copy_wait(int left);
/// `bytes` of the block's shared memory from offset `at` on, which must be there.
std::byte* shared_array(int64_t at, int64_t bytes);

[[noreturn]] void out_of_bounds(int64_t index, int64_t elements, int64_t count);
[[noreturn]] void misaligned(const void* at, int bytes);

// ---- launching

/// Runs `work` now; while a graph is being recorded on the stream (null: never), whenever that is launched.
template <class Run>
void submit(void* stream, Run work) {
  Work* recording = stream == nullptr ? nullptr : static_cast<Stream*>(stream)->recording;
  if (recording == nullptr) return work();
  recording->push_back(std::move(work));
}

/// Runs call(kernel) once for each thread of each block, blocks one after another in a seeded random order.
/// Errors: greta::Error, of the first thread that met one; and what the target would refuse (threads, shared
/// memory, grid).
void run_grid(const Traits& traits, const char* name, void* stream, Grid grid, int threads, int shared_bytes,
              void (*call)(const void* kernel), const void* kernel);

}  // namespace greta::gpu::sim
