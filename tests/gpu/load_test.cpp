// How fast weights go from a file in the page cache to the device, beside a plain copy of the same bytes from
// pinned memory. Of CUDA's builds alone.
#if GRETA_TEST_CUDA
#include <cuda_runtime.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/weight_source.h"
#include "base/mapped_file.h"
#include "gpu_devices.h"
#include "temporary_folder.h"

namespace greta::gpu {
namespace {

constexpr int64_t kRows = 8192, kCols = 16384;
constexpr int64_t kBytes = kRows * (kCols / 32) * 34;  ///< 143 MB of Q8_0
constexpr int kTensors = 8, kTimes = 3;

/// Bytes a second of the best of kTimes runs over kTensors * kBytes.
template <class Run>
double best_rate(const Run& run) {
  double best = 0.0;
  for (int i = 0; i < kTimes; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(kTensors * kBytes) / seconds);
  }
  return best;
}

double load_rate() {
  const test::TemporaryFolder folder;
  write_whole_file(folder / "w", std::vector<std::byte>(static_cast<size_t>(kBytes), std::byte{0x11}));
  const MappedFile file(folder / "w");
  WeightSource source{"w", quant::Type::Q8_0, kRows, kCols, file.bytes()};
  source.read = [&](std::span<const std::byte> part, std::byte* to) { file.read(part, to); };
  const auto backend = make_backend("cuda:0", {});
  std::vector<float> row(static_cast<size_t>(kCols));
  return best_rate([&] {
    std::vector<std::unique_ptr<Weight>> weights;
    for (int i = 0; i < kTensors; ++i) weights.push_back(backend->load(source, WeightUse::matmul));
    weights.back()->read_back(kRows - 1, 1, row.data());  // waits for all of it
  });
}

/// 0: a call was refused.
double plain_rate() {
  void *host = nullptr, *device = nullptr;
  bool good = cudaHostAlloc(&host, kBytes, cudaHostAllocDefault) == cudaSuccess &&
              cudaMalloc(&device, kBytes) == cudaSuccess;
  const double rate = best_rate([&] {
    for (int i = 0; i < kTensors && good; ++i)
      good = cudaMemcpyAsync(device, host, kBytes, cudaMemcpyHostToDevice, nullptr) == cudaSuccess;
    good = good && cudaStreamSynchronize(nullptr) == cudaSuccess;
  });
  (void)cudaFree(device);
  (void)cudaFreeHost(host);
  return good ? rate : 0.0;
}

TEST(GpuLoad, RateBesideAPlainCopys) {
  const auto names = test::usable_gpus();
  if (std::find(names.begin(), names.end(), "cuda:0") == names.end()) GTEST_SKIP() << "no usable cuda:0";
  const double load = load_rate(), plain = plain_rate();
  ASSERT_GT(plain, 0.0);
  std::fputs(fmt::format("load {:.1f} GB/s, plain copy from pinned memory {:.1f} GB/s: {:.2f} of it\n",
                         load / 1e9, plain / 1e9, load / plain)
                 .c_str(),
             stdout);
  EXPECT_GT(load, 0.1 * plain) << "the way to the device has collapsed";
}

}  // namespace
}  // namespace greta::gpu
#endif
