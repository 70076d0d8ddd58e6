// How fast device memory is read: kernels that do nothing else (bench).
#include "backend/gpu/kernels/launchers.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

GRETA_DEVICE void mix(uint32_t& sum, const Words4& v) { sum ^= v.x ^ v.y ^ v.z ^ v.w; }

/// All blocks side by side through the buffer, or each through a piece of its own; kLoads 16-byte words of a
/// thread are on their way together. XOR of everything, so that nothing can be left out.
template <int kLoads>
GRETA_KERNEL void read_memory(Mark mark, ReadCall call) {
  entered(mark);
  const int64_t words = call.bytes / 16;
  const int64_t threads = block_threads();
  const int64_t piece = call.apart ? words / grid_x() : threads * kLoads;
  const int64_t jump = call.apart ? threads * kLoads : piece * grid_x();
  const int64_t begin = piece * block_x();
  const int64_t end = call.apart ? begin + piece : words;
  uint32_t sum = 0;
  for (int64_t at = begin + thread_index(); at + (kLoads - 1) * threads < end; at += jump) {
    Words4 v[kLoads];
    GRETA_UNROLL
    for (int i = 0; i < kLoads; ++i) v[i] = stream_words4(call.from + (at + i * threads) * 16);
    GRETA_UNROLL
    for (int i = 0; i < kLoads; ++i) mix(sum, v[i]);
  }
  if (sum == call.never) *call.sink = sum;
}

}  // namespace

void run_read(const Launch& how, const ReadCall& call) {
  const Grid grid{static_cast<unsigned>(call.blocks)};
  if (call.loads == 8) return launch(how, "read_memory", read_memory<8>, grid, call.threads, 0, call);
  launch(how, "read_memory", read_memory<4>, grid, call.threads, 0, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
