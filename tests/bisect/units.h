#pragma once
// The rows that a cpu run left, as the judge gets them, for tests that judge them again or change some.
#include "bisect/examine.h"
#include "bisect/row_judge.h"
#include "bisect/wiring.h"
#include "support.h"

namespace greta::test {

/// Units come in pieces (RunRecorder hands them on from 128 rows on).
struct UnitPiece {
  UnitRows data;
  std::vector<RowName> names;
  LayerHistory history;
};

class RecordedUnits {
 public:
  /// Sequence 0 is fed `ids`, with logits for all.
  RecordedUnits(const ModelFile& model, const EngineOptions& options, const std::vector<TokenId>& ids)
      : plan_(truth_plan(model)), wiring_(plan_.hp), engine_(model, options) {
    RunRecorder tap(plan_.hp, false, {},
                    [&](const UnitRows& data, std::span<const RowName> names, const LayerHistory& history) {
                      pieces_.push_back({data, {names.begin(), names.end()}, history});
                    });
    engine_.feed_all(0, ids, Feed::Logits::all, &tap);
    tap.finish();
  }

  const Plan& plan() const { return plan_; }
  const Wiring& wiring() const { return wiring_; }
  const Arithmetic& arithmetic() { return engine_.backend().arithmetic(); }
  int unit_of(int layer, Stage stage) const { return greta::unit_of({0, 0, layer, stage}, plan_.hp.layers); }
  /// The one that has the position, and its row there.
  std::pair<UnitPiece&, int64_t> find(int layer, Stage stage, int64_t position) {
    for (UnitPiece& piece : pieces_)
      for (size_t r = 0; piece.data.unit == unit_of(layer, stage) && r < piece.names.size(); ++r)
        if (piece.names[r].position == position) return {piece, static_cast<int64_t>(r)};
    throw std::logic_error("no row at position " + std::to_string(position));
  }
  std::vector<double> row(int layer, Stage stage, int64_t position) {
    const auto [piece, r] = find(layer, stage, position);
    return values_of(piece.data.stages.at(stage), r);
  }
  void set(int layer, Stage stage, int64_t position, int64_t index, double value) {
    const auto [piece, at] = find(layer, stage, position);
    StoredRows& old = piece.data.stages.at(stage);
    StoredRows rows(old.width(), old.wide());
    for (int64_t r = 0; r < old.rows(); ++r) {
      auto values = values_of(old, r);
      if (r == at) values[static_cast<size_t>(index)] = value;
      rows.append(values.data());
    }
    old = std::move(rows);
  }
  /// What the stage should be there, by the slow definition, on the inputs that are there.
  Judged definition(int layer, Stage stage, int64_t position) {
    const auto [piece, r] = find(layer, stage, position);
    return judged_stage(plan_, arithmetic(), piece.data, r, piece.names[static_cast<size_t>(r)],
                        piece.history, wiring_.rule(stage));
  }

 private:
  Plan plan_;
  Wiring wiring_;
  Engine engine_;
  std::vector<UnitPiece> pieces_;
};

}  // namespace greta::test
