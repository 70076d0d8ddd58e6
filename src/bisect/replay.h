#pragma once
// Calls of a run repeated: the same kernels on the same rows in buffers of our own that hold what the
// producers left, every argument made anew from the plan. What comes out must have the run's bits; where it
// has not, the run's call was handed something else than the plan says.
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bisect/rows.h"
#include "bisect/wiring.h"
#include "decoder/kv_cache.h"
#include "model/model.h"

namespace greta {

struct Mismatch {
  Stage stage = Stage::embed_out;
  int64_t row = 0;  ///< of the unit
  int64_t index = 0;
  double run = 0.0;
  double replayed = 0.0;
};

class Replayer {
 public:
  using Sink = std::function<void(const Mismatch&)>;
  struct Counts {
    uint64_t calls = 0;
    uint64_t rows = 0;  ///< of stages
  };

  /// `backend`: the operators of the run (Backend::operators()); `model` resident on it. Room for sequences
  /// of `context` positions.
  Replayer(Backend& backend, const Model& model, int64_t sequences, int64_t context);

  /// Repeats the calls of a unit in their order. Units of one layer must come in the order of the calls.
  void replay(const UnitRows& data, std::span<const CallShape> calls, const Sink& mismatch);
  const Counts& counts() const { return counts_; }

 private:
  struct Call;  ///< one call's rows inside a unit's
  View buffer(size_t slot, int64_t rows, int64_t width);
  View input(size_t slot, const Call& call, Stage stage);
  View output(size_t slot, const Call& call, int64_t width);
  void compare(const Call& call, Stage stage, const View& view, const Sink& mismatch);
  void compare_cached(const Call& call, Stage stage, const KvLayer& cache, KvPart part, const Sink& mismatch);
  void compare_row(const Call& call, Stage stage, int64_t row, const std::vector<double>& again,
                   const Sink& mismatch);
  void replay_call(const Call& call, const StageRule& rule, const Sink& mismatch);
  void replay_products(const Call& call, const StageRule& rule, const Sink& mismatch);
  void replay_rope(const Call& call, const Sink& mismatch);
  void replay_choice(const Call& call, const StageRule& rule, const Sink& mismatch);
  const Weight* weight_of(int layer, Role role) const;
  void remember(const Call& call, int layer);
  Site site(const Call& call, int layer, Stage stage) const;

  Backend& backend_;
  const Model& model_;
  const Wiring wiring_;
  View v_;              ///< of the call in hand: the repeated product, before the cache rounds it
  KvCache cache_;       ///< what the producers left, in pages of our own
  KvCache rope_cache_;  ///< one layer: where repeated rope calls write
  std::vector<std::unique_ptr<Buffer>> buffers_;
  Counts counts_;
};

}  // namespace greta
