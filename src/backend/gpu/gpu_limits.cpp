#include "backend/gpu/gpu_limits.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace greta::gpu {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double GpuLimits::read_rate(std::string& how) {
  const size_t bytes = std::min<size_t>(kBuffer, device_.free_bytes() / 2) / 4096 * 4096;
  if (buffer_.bytes() == 0) buffer_ = DeviceMemory(device_, bytes + 256);
  const auto bytes_read = static_cast<int64_t>(buffer_.bytes() - 256);
  double best = 0.0;
  for (const bool apart : {false, true})
    for (const int loads : {4, 8})
      for (const int threads : {256, 512, 1024}) {
        const int blocks = device_.multiprocessors() * (2048 / threads);
        ReadCall call{buffer_.data(), bytes_read,
                      apart,          loads,
                      threads,        blocks,
                      0x9e3779b9u,    reinterpret_cast<uint32_t*>(buffer_.data() + bytes_read)};
        device_.synchronize();
        const double begin = seconds_now();
        constexpr int kRepeats = 2;
        for (int i = 0; i < kRepeats; ++i) device_.kernels().read(launch_, call);
        device_.synchronize();
        const double rate = kRepeats * static_cast<double>(bytes_read) / (seconds_now() - begin);
        if (rate <= best) continue;
        best = rate;
        how = fmt::format("{} blocks of {} threads, {} words a thread in flight, {}", blocks, threads, loads,
                          apart ? "each block apart" : "side by side");
      }
  return best;
}

double GpuLimits::matrix_rate(std::string& how) {
  double rate = 0.0;
  for (const int64_t n : {4096, 8192}) {
    constexpr uint64_t kSpare = uint64_t{256} << 20;  // workspace, and a second copy of the smaller matrix
    const auto size = static_cast<double>(n);
    if (device_.free_bytes() < 3 * static_cast<uint64_t>(n * n) * sizeof(uint16_t) + kSpare) continue;
    const double seconds = device_.product_seconds({n, n, n});
    if (seconds > 0.0) rate = std::max(rate, size * size * size / seconds);
  }
  if (!(rate > 0.0))
    fail(
        "{}: no library of the vendor's to measure the matrix rate with (cuBLASLt); install CUDA's "
        "libraries, or "
        "bench decode alone (--pp 0)",
        device_.name());
  how = "cuBLASLt, the best of 4,096 and 8,192 cubed";
  return rate;
}

}  // namespace greta::gpu
