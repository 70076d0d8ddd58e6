#pragma once
// Weights as the CPU backend keeps them.
#include <memory>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "base/thread_pool.h"

namespace greta::cpu {

enum class Layout {
  floats,  ///< [rows][cols] F32, F16 or BF16, row-major: the file's mapping, or `memory` (--weights f32,
           ///< vectors)
  groups,  ///< packed.h, in `memory`
  blocks,  ///< the file's blocks in its mapping: an embedding, looked up by row
};

struct CpuWeight : Weight {
  Layout layout = Layout::floats;
  quant::Type kernel_type = quant::Type::F32;  ///< what the kernel sees: the file's, Q8_0 for int8, F32
  int index = 0;                               ///< FloatType or IntegerType of kernel_type
  const std::byte* data = nullptr;
  int64_t row_bytes = 0;  ///< floats, blocks
  int64_t units = 0;      ///< groups: ceil(cols / 32)
  int64_t group_size = 0;
  std::shared_ptr<std::byte> memory;
  std::vector<std::unique_ptr<CpuWeight>> each;  ///< a stack's matrices; the members above are then unused

  void read_back(int64_t row, float* out) const override;
};

/// Errors: a size that does not fit the type, a byte count unlike the shape, int8 weights that are not finite
/// or past f16.
std::unique_ptr<CpuWeight> load_weight(const WeightSource& source, WeightUse use, WeightMode mode,
                                       ThreadPool& pool, Arena& arena);

/// Bytes that load_weight() allocates.
uint64_t weight_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols, WeightMode mode);

}  // namespace greta::cpu
