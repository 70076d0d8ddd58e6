#pragma once
// How a matmul call is shared among threads: rounding of the activations, then row groups (and token tiles).
#include <array>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/weights.h"
#include "base/thread_pool.h"

namespace greta::cpu {

class Matmul {
 public:
  Matmul(const KernelTable& kernels, ThreadPool& pool, bool eight)
      : kernels_(kernels),
        pool_(pool),
        eight_(eight),
        rounded_(static_cast<size_t>(pool.size())),
        scratch_(static_cast<size_t>(pool.size()) * kMatmulScratch),
        packed_(static_cast<size_t>(pool.size())) {}

  void run(const MatmulArgs& args);
  /// Bytes that run() keeps for calls of this size.
  uint64_t scratch_bytes(int64_t rows, int64_t widest) const;

 private:
  /// One output of the call, cut into items: row groups, times parts of the tokens where groups are too few.
  struct Part {
    int index = 0;
    const CpuWeight* weight = nullptr;
    const float* bias = nullptr;
    float* out = nullptr;
    bool packs = false;      ///< each item packs its groups first
    int64_t piece_rows = 0;  ///< the least that a thread takes of a one-token call
    int64_t pieces = 0;
    int64_t groups = 0;       ///< of 16 rows
    int64_t item_groups = 1;  ///< groups of an item of a call of more tokens
    int64_t row_items = 0;
    int64_t token_items = 1;
    int64_t items() const { return row_items * token_items; }
  };

  /// Activations rounded to integers. One token's each thread rounds for itself: that takes no longer than to
  /// fetch what another has rounded, and nobody waits.
  struct alignas(64) Rounded {
    Memory memory;
    Activation x;
    std::array<void*, 3> extra{};  ///< by output, for its type
    uint64_t call = 0;             ///< that they are of
  };
  /// What is alike for every thread's: the tiles, and which outputs share an `extra`.
  void plan_rounding(const MatmulArgs& args);
  void make_room(const MatmulArgs& args, Rounded& to) const;
  void round_tile(const MatmulArgs& args, Rounded& to, int64_t tile) const;
  /// The rows as FloatJob::x.
  void tile_floats(const MatmulArgs& args);
  std::byte* scratch_of(int worker) { return scratch_.data() + worker * int64_t{kMatmulScratch}; }
  Groups groups_of(const Part& part, int64_t group0, int64_t group1, int worker);
  IntegerJob integer_job(const Part& part, const Groups& groups, const Rounded& x) const;
  FloatJob float_job(const Part& part) const;
  Part make_part(const MatmulArgs& args, int index, int64_t all_groups) const;
  void run_item(const Part& part, int64_t first, int64_t last, int64_t rows, int worker);
  /// One token: each thread streams through memory.
  void run_one(const MatmulArgs& args, const Part (&parts)[3], bool integers);
  /// The first of what is read from piece `piece` of a call on.
  static ThreadPool::Memory begin_at(const Part (&parts)[3], int count, int64_t piece);
  /// Notes the call, and gives what each thread will read first in the one that is expected after it.
  std::span<const ThreadPool::Memory> expect_next(const Part (&parts)[3], int count, int64_t pieces);
  void run_pieces(const Part& part, int64_t first, int64_t last, int worker);

  /// One-token calls follow each other alike, token after token.
  struct OneTokenCall {
    const CpuWeight* first = nullptr;        ///< weight, which may be gone
    std::vector<ThreadPool::Memory> begins;  ///< by thread
    OneTokenCall* next = nullptr;            ///< came after it the last time
  };

  const KernelTable& kernels_;
  ThreadPool& pool_;
  bool eight_;
  std::vector<Rounded> rounded_;  ///< by thread; of calls of more tokens the first
  std::vector<int32_t> tile_start_;
  std::array<int64_t, 3> slot_{};  ///< of an output's `extra`; -1: it needs none
  int64_t slots_ = 0;
  uint64_t call_ = 0;
  const float* floats_ = nullptr;
  Memory tiled_;
  std::unordered_map<const CpuWeight*, OneTokenCall> calls_;  ///< by first weight
  OneTokenCall* last_call_ = nullptr;
  Memory scratch_;              ///< kMatmulScratch bytes a thread
  std::vector<Memory> packed_;  ///< groups of a call that packs, a thread's own
};

}  // namespace greta::cpu
