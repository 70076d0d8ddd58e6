#pragma once
// Weights as the CPU backend keeps them.
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "base/thread_pool.h"

namespace greta::cpu {

enum class Layout {
  integers,  ///< groups of 16 rows (packed.h), in `memory`
  floats,    ///< the same of float elements
  vector,    ///< F32, in `memory`
  blocks,    ///< the file's blocks in its mapping: an embedding, looked up by row
};

/// What the weights of a backend are made with.
struct WeightMaker {
  const KernelTable& kernels;
  ThreadPool& pool;
  WeightMode mode;
  Arena arena = {};
  int64_t put_off = 0;  ///< weights so far whose packing was put off
  uint64_t loads = 0;   ///< weights so far: each may lie where another was
};

/// Weights as stored are not packed as they are loaded: that would hold the first token up. Their first calls
/// are served from the file: integers pack each group into a thread's cache, use it and forget it; floats are
/// read where they lie. Later, each weight at a call of its own, they are packed for good and the file's
/// pages go.
struct CpuWeight : Weight {
  Layout layout = Layout::vector;
  quant::Type kernel_type = quant::Type::F32;  ///< what the kernel sees: the file's, Q8_0 for int8, F32
  int index = 0;                               ///< FloatType or IntegerType of kernel_type
  int64_t row_bytes = 0;                       ///< blocks; of the rows that groups are packed from
  int64_t units = 0;                           ///< integers: ceil(cols / 32)
  int64_t group_size = 0;
  mutable const std::byte* data = nullptr;  ///< null: groups that are not packed yet
  mutable std::shared_ptr<std::byte> memory;
  std::vector<std::unique_ptr<CpuWeight>> each;  ///< a stack's matrices; the members above are then unused

  WeightMaker* maker = nullptr;  ///< of groups
  // Groups whose packing was put off.
  WeightSource source;
  mutable int64_t calls_from_file = 0;  ///< yet to come

  /// Asked once a call: true where it is to pack what it needs with pack_group(), else `data` is there, or
  /// float_rows().
  bool packs_in_this_call() const;
  /// Group `group` of the file's rows, to group_size bytes.
  void pack_group(int64_t group, std::byte* to) const;
  /// What the calls read: packed, or the file's.
  const std::byte* stored() const { return data != nullptr ? data : source.bytes.data(); }
  /// Floats, packed or not.
  FloatRows float_rows() const;
  void settle() const override;
  void read_back(int64_t first, int64_t count, float* out) const override;

 private:
  /// read_back() of packed layouts.
  void read_groups(int64_t first, int64_t count, float* out) const;
};

/// Why this backend cannot use a tensor, or nothing.
std::optional<std::string> weight_refusal(WeightUse use, quant::Type type, int64_t rows, int64_t cols);

/// Errors: weight_refusal(), a size that does not fit the type, a byte count unlike the shape, int8 weights
/// that are not finite or past f16.
std::unique_ptr<CpuWeight> load_weight(const WeightSource& source, WeightUse use, WeightMaker& maker);

/// Bytes that load_weight() allocates.
uint64_t weight_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols, WeightMode mode);

}  // namespace greta::cpu
