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
  Matmul(const KernelTable& kernels, const WeightMaker& maker, bool eight)
      : kernels_(kernels),
        maker_(maker),
        pool_(maker.pool),
        eight_(eight),
        rounded_(static_cast<size_t>(pool_.size())),
        scratch_(static_cast<size_t>(pool_.size()) * kMatmulScratch),
        packed_(static_cast<size_t>(pool_.size())) {}

  void run(const MatmulArgs& args);
  /// Bytes that run() keeps for calls of this size.
  uint64_t scratch_bytes(int64_t rows, int64_t widest) const;

  /// How often a type's kernels ran.
  struct Runs {
    uint64_t one = 0;  ///< token
    uint64_t tile = 0;
  };
  Runs runs(quant::Type type) const { return runs_[static_cast<size_t>(type)]; }
  void reset_runs() { runs_ = {}; }

 private:
  /// One output of the call, cut into items: row groups, times parts of the tokens where groups are too few.
  struct Part {
    MatmulOutput asked;
    bool packs = false;      ///< each item packs its groups first
    int type = 0;            ///< FloatType or IntegerType
    size_t kernel_type = 0;  ///< in runs_
    int64_t slot = -1;       ///< of an integer output's `extra`; -1: a float one
    // The job of the output's kind, but for its x.
    IntegerJob integer;
    FloatJob floats;
    int64_t piece_rows = 0;  ///< the least that a thread takes of a one-token call
    int64_t pieces = 0;
    int64_t piece_bytes = 0;
    int64_t groups = 0;       ///< of 16 rows
    int64_t item_groups = 1;  ///< groups of an item of a call of more tokens
    int64_t row_items = 0;
    int64_t token_items = 1;
    int64_t items() const { return row_items * token_items; }
    bool integers() const { return slot >= 0; }
    const CpuWeight& weight() const { return static_cast<const CpuWeight&>(*asked.weight); }
  };

  /// All that a call's threads read, weights apart.
  struct Plan {
    const float* x = nullptr;
    int64_t rows = 0;
    int64_t k = 0;
    int64_t slots = 0;  ///< arrays `extra`: outputs of one type share what is computed from the sums
    bool floats = false;
    bool lasts = true;  ///< all weights are packed
    int count = 0;
    std::array<Part, 3> parts;

    std::span<const Part> outputs() const { return {parts.data(), static_cast<size_t>(count)}; }
    bool integers() const { return slots > 0; }
    /// It is of these arguments.
    bool serves(const MatmulArgs& args) const;
  };
  static Plan plan_of(const MatmulArgs& args);
  static Part part_of(const MatmulOutput& output);
  /// Of a call of more than one token.
  void cut_items(Plan& plan) const;

  /// Activations rounded to integers. One token's each thread rounds for itself: that takes no longer than to
  /// fetch what another has rounded, and nobody waits.
  struct alignas(64) Rounded {
    Memory memory;
    Activation x;
    std::array<void*, 3> extra{};  ///< by slot
    uint64_t call = 0;             ///< that they are of
  };
  void make_room(const Plan& plan, std::span<const int32_t> tile_start, Rounded& to) const;
  void round_tile(const Plan& plan, Rounded& to, int64_t tile) const;
  /// The rows as FloatJob::x.
  void tile_floats(const Plan& plan);
  std::byte* scratch_of(int worker) { return scratch_.data() + worker * int64_t{kMatmulScratch}; }
  Groups groups_of(const Part& part, int64_t group0, int64_t group1, int worker);
  static IntegerJob integer_job(const Part& part, const Groups& groups, const Rounded& x);
  FloatJob float_job(const Part& part) const;
  void run_item(const Part& part, int64_t first, int64_t last, int64_t rows, int worker);

  /// One-token calls follow each other alike, token after token: a plan is kept. To make it again would take
  /// far lines of every weight, and every thread would fetch it from the caller.
  struct OneTokenCall {
    Plan plan;
    uint64_t loads = 0;                      ///< of weights when it was made: others, and it is void
    int64_t pieces = 0;                      ///< of all outputs
    int64_t least = 1;                       ///< pieces that a thread takes at once
    std::vector<ThreadPool::Memory> begins;  ///< by thread: the first of what it reads
    OneTokenCall* next = nullptr;            ///< came after it the last time
  };
  void run_many(const MatmulArgs& args);
  /// One token: each thread streams through memory.
  void run_one(const MatmulArgs& args);
  /// The call as it is kept, planned anew where it must be, and noted as the last one's next.
  OneTokenCall& call_of(const MatmulArgs& args);
  void plan_call(const MatmulArgs& args, OneTokenCall& call) const;
  static void ask_for(const OneTokenCall& call);
  static ThreadPool::Memory begin_at(const Plan& plan, int64_t piece);
  void run_pieces(const Part& part, int64_t first, int64_t last, int worker);

  const KernelTable& kernels_;
  const WeightMaker& maker_;
  ThreadPool& pool_;
  bool eight_;
  std::vector<Rounded> rounded_;  ///< by thread; of calls of more tokens the first
  std::vector<int32_t> tile_start_;
  std::array<Runs, 64> runs_{};  ///< by number of quant::Type
  uint64_t call_ = 0;
  const float* floats_ = nullptr;
  Memory tiled_;
  std::unordered_map<const Weight*, OneTokenCall> calls_;  ///< by first weight
  OneTokenCall* last_call_ = nullptr;
  Memory scratch_;              ///< kMatmulScratch bytes a thread
  std::vector<Memory> packed_;  ///< groups of a call that packs, a thread's own
};

}  // namespace greta::cpu
