#pragma once
// The tap of a run that is examined: hashes of every row, what the chosen layers left, and the rows
// themselves until they are handed on, unit by unit, within a budget.
#include <functional>
#include <set>
#include <span>
#include <vector>

#include "bisect/grid.h"
#include "bisect/rows.h"
#include "decoder/tap.h"
#include "model/model.h"

namespace greta {

struct RecorderOptions {
  bool rows = true;      ///< keep rows and hand them on; else hashes and the coarse picture alone
  std::set<int> layers;  ///< whose residual_post_mlp is kept (sequence 0)
  size_t budget = size_t{512} << 20;  ///< bytes of kept rows, keys and values
};

class RunRecorder : public Tap {
 public:
  /// Called with a unit's rows when they are complete and must go: in ascending unit, calls in their order.
  using Flush =
      std::function<void(const UnitRows& data, std::span<const RowName> names, const LayerHistory& history)>;

  RunRecorder(const HParams& hp, bool wide, RecorderOptions options, Flush flush);
  void on_stage(int layer, Stage stage, const StageRows& rows) override;
  /// Hands on what is left.
  void finish();

  const std::vector<CallShape>& calls() const { return calls_; }
  const Grid<uint64_t>& hashes() const { return hashes_; }
  /// Keys and values as their producers left them, by layer.
  const std::vector<LayerHistory>& history() const { return history_; }
  /// Over every row of logits (numerics.md section 2).
  uint64_t logits_hash(int32_t sequence) const;
  /// residual_post_mlp of a chosen layer, sequence 0, [positions, dim].
  const std::map<int, StoredRows>& residuals() const { return residuals_; }
  /// The last row of logits of sequence 0.
  const std::vector<double>& last_logits() const { return last_logits_; }

  struct NonFinite {
    Place place;
    int64_t index = 0;
    double value = 0.0;
  };
  const std::optional<NonFinite>& nonfinite() const { return nonfinite_; }
  /// Wires whose end has other bits than their beginning.
  const std::set<Place>& broken_wires() const { return broken_wires_; }
  size_t most_bytes() const { return most_bytes_; }

 private:
  void take_row(const Place& place, const std::vector<double>& values);
  void hand_on(bool everything);
  std::vector<RowName> names_of(const UnitRows& data) const;

  HParams hp_;
  bool wide_;
  RecorderOptions options_;
  Flush flush_;
  std::vector<CallShape> calls_;
  Grid<uint64_t> hashes_;
  std::vector<UnitRows> units_;
  std::vector<LayerHistory> history_;
  StoredRows last_residual_;  ///< of the current call, every row: what the head's gather takes from
  std::map<int, StoredRows> residuals_;
  std::vector<double> last_logits_;
  std::optional<NonFinite> nonfinite_;
  std::set<Place> broken_wires_;
  int complete_ = -1;  ///< units up to this one hold the current call whole
  size_t history_bytes_ = 0;
  size_t most_bytes_ = 0;
};

}  // namespace greta
