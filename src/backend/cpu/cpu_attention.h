#pragma once
// Which queries share a pass over the cache, and how the passes are shared among threads.
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "base/thread_pool.h"

namespace greta::cpu {

class Attention {
 public:
  Attention(const KernelTable& kernels, ThreadPool& pool, FloatType element, int64_t element_bytes)
      : kernels_(kernels), pool_(pool), element_(element), element_bytes_(element_bytes) {}

  void run(const AttentionArgs& args);
  uint64_t scratch_bytes(int64_t widest) const;

 private:
  /// Rows [row, row + rows) of one sequence, heads [head, head + heads) of one kv head.
  struct Item {
    int32_t row = 0;
    int32_t rows = 0;
    int32_t head = 0;
    int32_t heads = 0;
  };
  void plan(const AttentionArgs& args);
  void run_item(const AttentionArgs& args, const Item& item, int worker);

  struct Worker {
    Memory scratch;
    std::vector<const float*> q;
    std::vector<float*> out;
    std::vector<int32_t> positions;
  };

  const KernelTable& kernels_;
  ThreadPool& pool_;
  FloatType element_;
  int64_t element_bytes_;
  std::vector<Item> items_;
  std::vector<Worker> workers_;
};

}  // namespace greta::cpu
