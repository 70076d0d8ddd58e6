#include "bisect/recorder.h"

#include <cmath>

#include "bisect/wiring.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

/// Rows that are judged together without loss: more would only take memory.
constexpr int64_t kEnough = 128;

}  // namespace

RunRecorder::RunRecorder(const HParams& hp, bool wide, RecorderOptions options, Flush flush)
    : hp_(hp),
      wide_(wide),
      options_(std::move(options)),
      flush_(std::move(flush)),
      hashes_(hp.layers),
      units_(static_cast<size_t>(hp.layers) + 2),
      history_(static_cast<size_t>(hp.layers)) {
  for (size_t unit = 0; unit < units_.size(); ++unit) units_[unit].unit = static_cast<int>(unit);
}

void RunRecorder::take_row(const Place& place, const std::vector<double>& values) {
  const uint64_t hash = row_hash(values, wide_);
  hashes_.set(place, hash);
  if (place.stage == Stage::residual_pre_attn) {
    const bool first = place.layer == 0;
    const Place from{place.sequence, place.token, first ? kNoLayer : place.layer - 1,
                     first ? Stage::embed_out : Stage::residual_post_mlp};
    const uint64_t* before = hashes_.find(from);
    if (before == nullptr || *before != hash) broken_wires_.insert(place);
  }
  if (!nonfinite_ || place < nonfinite_->place)
    for (size_t i = 0; i < values.size(); ++i)
      if (!std::isfinite(values[i])) {
        nonfinite_ = NonFinite{place, static_cast<int64_t>(i), values[i]};
        break;
      }
}

void RunRecorder::on_stage(int layer, Stage stage, const StageRows& rows) {
  const int unit = unit_of({0, 0, layer, stage}, hp_.layers);
  if (stage == Stage::embed_out) {
    const BatchView& b = *rows.batch;
    calls_.push_back({{b.tokens, b.tokens + b.rows},
                      {b.positions, b.positions + b.rows},
                      {b.sequences, b.sequences + b.rows},
                      {}});
    complete_ = -1;
  }
  CallShape& call = calls_.back();
  UnitRows& data = units_[static_cast<size_t>(unit)];
  const bool last_layer = layer == static_cast<int>(hp_.layers) - 1;
  if (stage == first_stage_of_unit(unit, hp_.layers)) {
    if (options_.rows) data.calls.push_back(static_cast<int64_t>(calls_.size()) - 1);
    if (stage == Stage::final_norm) call.picked.assign(rows.batch_rows, rows.batch_rows + rows.rows);
  }
  if (stage == Stage::residual_post_mlp && last_layer) last_residual_ = StoredRows(rows.width, wide_);
  StoredRows* kept = nullptr;
  if (options_.rows) kept = &data.stages.try_emplace(stage, StoredRows(rows.width, wide_)).first->second;
  if (kept != nullptr) kept->make_room(rows.rows);
  std::vector<double> values(static_cast<size_t>(rows.width));
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t r = rows.batch_row(i);
    rows.read(i, values.data());
    const Place place{rows.batch->sequences[r], rows.batch->positions[r], layer, stage};
    take_row(place, values);
    if (kept != nullptr) kept->append(values.data());
    if (options_.rows && (stage == Stage::k_post_rope || stage == Stage::v)) {
      KvHistory& kv = history_[static_cast<size_t>(layer)][place.sequence];
      StoredRows& to = stage == Stage::v ? kv.values : kv.keys;
      if (to.width() == 0) to = StoredRows(rows.width, wide_);
      to.append(values.data());
      history_bytes_ += values.size() * (wide_ ? 8 : 4);
    }
    if (stage == Stage::residual_post_mlp) {
      if (last_layer) last_residual_.append(values.data());
      if (place.sequence == 0 && options_.layers.contains(layer))
        residuals_.try_emplace(layer, StoredRows(rows.width, wide_)).first->second.append(values.data());
    }
    if (stage == Stage::logits && place.sequence == 0) last_logits_ = values;
  }
  if (stage == Stage::final_norm && options_.rows) {  // what the head read: the residual's picked rows
    StoredRows& from =
        data.stages.try_emplace(Stage::residual_post_mlp, StoredRows(hp_.dim, wide_)).first->second;
    std::vector<double> row(static_cast<size_t>(hp_.dim));
    for (const int32_t r : call.picked) {
      last_residual_.get(r, row.data());
      from.append(row.data());
    }
  }
  if (options_.rows && stage == last_stage_of_unit(unit, hp_.layers)) {
    complete_ = unit;
    hand_on(false);
  }
}

std::vector<RowName> RunRecorder::names_of(const UnitRows& data) const {
  std::vector<RowName> names;
  for (const int64_t c : data.calls) {
    const CallShape& call = calls_[static_cast<size_t>(c)];
    const auto add = [&](size_t r) {
      names.push_back({call.sequences[r], call.positions[r], call.tokens[r]});
    };
    if (data.unit > hp_.layers) {
      for (const int32_t r : call.picked) add(static_cast<size_t>(r));
    } else {
      for (size_t r = 0; r < call.tokens.size(); ++r) add(r);
    }
  }
  return names;
}

void RunRecorder::hand_on(bool everything) {
  size_t bytes = history_bytes_;
  size_t largest = 0;
  for (const UnitRows& unit : units_) {
    bytes += unit.bytes();
    largest = std::max(largest, unit.bytes());
  }
  most_bytes_ = std::max(most_bytes_, bytes);
  // The next unit of this call comes on top: keep room for one as large as the largest.
  const bool full = everything || bytes + largest >= options_.budget;
  static const LayerHistory none;
  for (UnitRows& unit : units_) {
    if (unit.stages.empty() || (!everything && unit.unit > complete_)) continue;
    if (!full && unit.stages.begin()->second.rows() < kEnough) continue;
    const int layer = layer_of_unit(unit.unit, hp_.layers);
    flush_(unit, names_of(unit), layer == kNoLayer ? none : history_[static_cast<size_t>(layer)]);
    unit.stages.clear();
    unit.calls.clear();
  }
}

void RunRecorder::finish() {
  if (options_.rows) hand_on(true);
}

uint64_t RunRecorder::logits_hash(int32_t sequence) const {
  uint64_t sum = 0;
  hashes_.each([&](const Place& place, uint64_t hash) {
    if (place.sequence == sequence && place.stage == Stage::logits) sum += positioned(hash, place.token);
  });
  return sum;
}

}  // namespace greta
