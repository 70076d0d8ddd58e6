#include "backend/gpu/cuda/cuda_library.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"

namespace greta::gpu::cuda {
namespace {

constexpr size_t kWorkspace = size_t{64} << 20;
constexpr int kProposals = 8;
constexpr int kRepeats = 10;

void* open_library() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  for (const std::string& path : {name, "/usr/local/cuda/lib64/" + name})
    if (void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

/// Calls a function of the library by its own name.
class Library {
 public:
  explicit Library(void* library) : library_(library) {}
  template <class Function, class... Arguments>
  void call(Function*, const char* name, Arguments... arguments) const {
    auto* function = reinterpret_cast<Function*>(::dlsym(library_, name));
    if (function == nullptr) fail("cuBLASLt has no {}", name);
    if (const cublasStatus_t status = function(arguments...); status != CUBLAS_STATUS_SUCCESS)
      fail("{} failed with status {}", name, static_cast<int>(status));
  }

 private:
  void* library_;
};
#define GRETA_LT(function, ...) library.call(&function, #function, __VA_ARGS__)

class Memory {
 public:
  Memory(Device& device, size_t bytes) : device_(device), data_(device.allocate(bytes)) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { device_.release(data_); }
  void* data() const { return data_; }

 private:
  Device& device_;
  void* data_;
};

/// f16 numbers of random sign and mantissa between 0.5 and 1: zeros would let the chip run faster.
void fill(Device& device, void* at, size_t bytes) {
  std::vector<uint16_t> numbers(std::min(bytes, size_t{16} << 20) / sizeof(uint16_t));
  uint32_t x = 1;
  for (uint16_t& number : numbers) {
    x = x * 1664525u + 1013904223u;
    number = static_cast<uint16_t>(0x3800u | (x >> 22) | (x >> 31) << 15);
  }
  const size_t piece = numbers.size() * sizeof(uint16_t);
  for (size_t done = 0; done < bytes; done += piece)
    device.upload(static_cast<std::byte*>(at) + done, numbers.data(), std::min(piece, bytes - done));
}

/// c = a^T b, n cubed, f16 with FP32 sums; multiply-adds a second.
double rate(const Library& library, cublasLtHandle_t handle, Device& device, uint64_t n) {
  const size_t bytes = n * n * sizeof(uint16_t);
  const Memory a(device, bytes), b(device, bytes), c(device, bytes), workspace(device, kWorkspace);
  fill(device, a.data(), bytes);
  fill(device, b.data(), bytes);

  cublasLtMatmulDesc_t product = nullptr;
  GRETA_LT(cublasLtMatmulDescCreate, &product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  GRETA_LT(cublasLtMatmulDescSetAttribute, product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
           sizeof transposed);
  cublasLtMatrixLayout_t layout = nullptr;
  GRETA_LT(cublasLtMatrixLayoutCreate, &layout, CUDA_R_16F, n, n, static_cast<int64_t>(n));
  cublasLtMatmulPreference_t preference = nullptr;
  GRETA_LT(cublasLtMatmulPreferenceCreate, &preference);
  const size_t most = kWorkspace;
  GRETA_LT(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
           sizeof most);
  std::array<cublasLtMatmulHeuristicResult_t, kProposals> proposals = {};
  int count = 0;
  GRETA_LT(cublasLtMatmulAlgoGetHeuristic, handle, product, layout, layout, layout, layout, preference,
           kProposals, proposals.data(), &count);

  const float one = 1.0f, zero = 0.0f;
  double best = 0.0;
  for (int i = 0; i < count; ++i) {
    const auto run = [&] {
      GRETA_LT(cublasLtMatmul, handle, product, static_cast<const void*>(&one), a.data(), layout, b.data(),
               layout, static_cast<const void*>(&zero), c.data(), layout, c.data(), layout,
               &proposals[static_cast<size_t>(i)].algo, workspace.data(), kWorkspace,
               static_cast<cudaStream_t>(device.stream()));
    };
    run();
    device.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int repeat = 0; repeat < kRepeats; ++repeat) run();
    device.synchronize();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const auto size = static_cast<double>(n);
    best = std::max(best, kRepeats * size * size * size / seconds);
  }
  GRETA_LT(cublasLtMatmulPreferenceDestroy, preference);
  GRETA_LT(cublasLtMatrixLayoutDestroy, layout);
  GRETA_LT(cublasLtMatmulDescDestroy, product);
  return best;
}

}  // namespace

double library_matrix_rate(Device& device) {
  static void* const opened = open_library();
  if (opened == nullptr) return 0.0;
  const Library library(opened);
  cublasLtHandle_t handle = nullptr;
  GRETA_LT(cublasLtCreate, &handle);
  double best = 0.0;
  for (const uint64_t n : {uint64_t{4096}, uint64_t{8192}}) {
    const uint64_t needed = 3 * n * n * sizeof(uint16_t) + kWorkspace;
    if (device.free_bytes() > needed) best = std::max(best, rate(library, handle, device, n));
  }
  GRETA_LT(cublasLtDestroy, handle);
  return best;
}

}  // namespace greta::gpu::cuda
