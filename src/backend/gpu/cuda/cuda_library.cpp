#include "backend/gpu/cuda/cuda_library.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "backend/gpu/timing.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"

namespace greta::gpu::cuda {
namespace {

constexpr size_t kWorkspace = size_t{64} << 20;
constexpr int kProposals = 64;  ///< asked for; the library has fewer
/// All proposals are timed briefly, then the fastest of them again.
constexpr Stretch kBrief{1e-3, 1, 1000, 1};
constexpr int kAgain = 3;

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
  void call(Function* as, const char* name, Arguments... arguments) const {
    if (const cublasStatus_t status = status_of(as, name, arguments...); status != CUBLAS_STATUS_SUCCESS)
      fail("{} failed with status {}", name, static_cast<int>(status));
  }
  /// Where nothing may be thrown.
  template <class Function, class... Arguments>
  cublasStatus_t status_of(Function*, const char* name, Arguments... arguments) const {
    auto* function = reinterpret_cast<Function*>(::dlsym(library_, name));
    return function == nullptr ? CUBLAS_STATUS_NOT_SUPPORTED : function(arguments...);
  }

 private:
  void* library_;
};
#define GRETA_LT(function, ...) library.call(&function, #function, __VA_ARGS__)
#define GRETA_LT_RELEASE(function, handle) (void)library.status_of(&function, #function, handle)

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

/// Normal f16 numbers as a model's weights, repeated: numbers with fewer bits would let the chip run faster.
void fill(Device& device, void* at, size_t bytes) {
  static const std::vector<uint16_t> numbers = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    std::vector<uint16_t> halves(size_t{1} << 20);
    for (uint16_t& half : halves) half = f32_to_f16(normal(random));
    return halves;
  }();
  const size_t piece = std::min(bytes, numbers.size() * sizeof(uint16_t));
  device.upload(at, numbers.data(), piece);
  for (size_t done = piece; done < bytes; done += piece)
    device.copy(static_cast<std::byte*>(at) + done, at, std::min(piece, bytes - done));
}

/// The library's view of a product: column-major c [outputs, rows] = a^T b, a [cols, outputs] the weights, b
/// [cols, rows] the activations.
class Problem {
 public:
  Problem(const Library& library_of, const ProductShape& product)
      : library(library_of), c_type_(product.f16_out ? CUDA_R_16F : CUDA_R_32F) {
    const auto m = static_cast<uint64_t>(product.outputs), n = static_cast<uint64_t>(product.rows),
               k = static_cast<uint64_t>(product.cols);
    GRETA_LT(cublasLtCreate, &handle_);
    GRETA_LT(cublasLtMatmulDescCreate, &product_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    GRETA_LT(cublasLtMatmulDescSetAttribute, product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
             sizeof transposed);
    GRETA_LT(cublasLtMatrixLayoutCreate, &a_, CUDA_R_16F, k, m, product.cols);
    GRETA_LT(cublasLtMatrixLayoutCreate, &b_, CUDA_R_16F, k, n, product.cols);
    GRETA_LT(cublasLtMatrixLayoutCreate, &c_, c_type_, m, n, product.outputs);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
  ~Problem() {
    GRETA_LT_RELEASE(cublasLtMatrixLayoutDestroy, c_);
    GRETA_LT_RELEASE(cublasLtMatrixLayoutDestroy, b_);
    GRETA_LT_RELEASE(cublasLtMatrixLayoutDestroy, a_);
    GRETA_LT_RELEASE(cublasLtMatmulDescDestroy, product_);
    GRETA_LT_RELEASE(cublasLtDestroy, handle_);
  }

  std::vector<cublasLtMatmulHeuristicResult_t> proposals() const {
    cublasLtMatmulPreference_t preference = nullptr;
    GRETA_LT(cublasLtMatmulPreferenceCreate, &preference);
    const size_t most = kWorkspace;
    GRETA_LT(cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
             &most, sizeof most);
    std::vector<cublasLtMatmulHeuristicResult_t> all(kProposals);
    int count = 0;
    GRETA_LT(cublasLtMatmulAlgoGetHeuristic, handle_, product_, a_, b_, c_, c_, preference, kProposals,
             all.data(), &count);
    GRETA_LT(cublasLtMatmulPreferenceDestroy, preference);
    all.resize(static_cast<size_t>(count));
    std::erase_if(all, [](const auto& proposal) { return proposal.state != CUBLAS_STATUS_SUCCESS; });
    return all;
  }
  void launch(const cublasLtMatmulAlgo_t& how, const void* a, const void* b, void* c, void* workspace,
              void* stream) const {
    const float one = 1.0f, zero = 0.0f;
    GRETA_LT(cublasLtMatmul, handle_, product_, static_cast<const void*>(&one), a, a_, b, b_,
             static_cast<const void*>(&zero), c, c_, c, c_, &how, workspace, kWorkspace,
             static_cast<cudaStream_t>(stream));
  }

 private:
  const Library& library;
  cudaDataType_t c_type_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
};

/// How many copies of a matrix are read in turn: until they fill kColdBytes, or half of what is free.
int64_t copies_of(const Device& device, int64_t bytes) {
  const auto room = static_cast<int64_t>(device.free_bytes() / 2);
  return std::clamp(ceil_div(kColdBytes, bytes), int64_t{1}, std::max(room / bytes, int64_t{1}));
}

double best_seconds(const Library& library, Device& device, const ProductShape& product) {
  const int64_t a_bytes = ceil_div(product.outputs * product.cols * 2, int64_t{256}) * 256;
  const int64_t copies = copies_of(device, a_bytes);
  const auto b_bytes = static_cast<size_t>(product.rows * product.cols * 2);
  const Memory a(device, static_cast<size_t>(copies * a_bytes)), b(device, b_bytes),
      c(device, static_cast<size_t>(product.rows * product.outputs * (product.f16_out ? 2 : 4))),
      workspace(device, kWorkspace);
  fill(device, a.data(), static_cast<size_t>(copies * a_bytes));
  fill(device, b.data(), b_bytes);

  const Problem problem(library, product);
  const auto timed = [&](const cublasLtMatmulAlgo_t& how, Stretch stretch) {
    stretch.least = copies;
    const auto launch = [&](int64_t i) {
      problem.launch(how, static_cast<const std::byte*>(a.data()) + i % copies * a_bytes, b.data(), c.data(),
                     workspace.data(), device.stream());
    };
    return time_launches(device, stretch, launch).seconds;
  };
  std::vector<std::pair<double, cublasLtMatmulAlgo_t>> found;
  for (const auto& proposal : problem.proposals())
    found.emplace_back(timed(proposal.algo, kBrief), proposal.algo);
  if (found.empty())
    fail("cuBLASLt proposes nothing for {} x {} by {}", product.outputs, product.cols, product.rows);
  std::ranges::sort(found, {}, [](const auto& f) { return f.first; });
  found.resize(std::min(found.size(), size_t{kAgain}));
  double best = timed(found.front().second, {});
  for (size_t i = 1; i < found.size(); ++i) best = std::min(best, timed(found[i].second, {}));
  return best;
}

}  // namespace

double library_product_seconds(Device& device, const ProductShape& product) {
  static void* const opened = open_library();
  if (opened == nullptr) return 0.0;
  return best_seconds(Library(opened), device, product);
}

}  // namespace greta::gpu::cuda
