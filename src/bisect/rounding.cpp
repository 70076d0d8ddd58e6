#include "bisect/rounding.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "bisect/interposer.h"
#include "bisect/row_judge.h"
#include "bisect/wiring.h"

namespace greta {
namespace {

/// Keeps every stage of one position of sequence 0, and the keys and values of all before it.
class RowKeeper : public Tap {
 public:
  RowKeeper(const HParams& hp, bool wide, int64_t position)
      : hp_(hp),
        wide_(wide),
        position_(position),
        units(static_cast<size_t>(hp.layers) + 2),
        history(static_cast<size_t>(hp.layers)) {
    for (size_t u = 0; u < units.size(); ++u) units[u].unit = static_cast<int>(u);
  }

  void on_stage(int layer, Stage stage, const StageRows& rows) override {
    std::vector<double> values(static_cast<size_t>(rows.width));
    for (int64_t i = 0; i < rows.rows; ++i) {
      const int64_t r = rows.batch_row(i);
      const int64_t at = rows.batch->positions[r];
      const bool key = stage == Stage::k_post_rope || stage == Stage::v;
      if (rows.batch->sequences[r] != 0 || at > position_ || (!key && at != position_)) continue;
      rows.read(i, values.data());
      if (key) {
        KvHistory& kv = history[static_cast<size_t>(layer)][0];
        StoredRows& to = stage == Stage::v ? kv.values : kv.keys;
        if (to.width() == 0) to = StoredRows(rows.width, wide_);
        to.append(values.data());
      }
      if (at != position_) continue;
      keep(unit_of({0, at, layer, stage}, hp_.layers), stage, values);
      if (stage == Stage::residual_post_mlp && layer + 1 == hp_.layers)
        keep(static_cast<int>(hp_.layers) + 1, stage, values);
    }
  }

 private:
  void keep(int unit, Stage stage, const std::vector<double>& values) {
    units[static_cast<size_t>(unit)].stages.insert_or_assign(
        stage, StoredRows(static_cast<int64_t>(values.size()), wide_));
    units[static_cast<size_t>(unit)].stages.at(stage).append(values.data());
  }

  HParams hp_;
  bool wide_;
  int64_t position_;

 public:
  std::vector<UnitRows> units;
  std::vector<LayerHistory> history;
};

/// The reference with known errors added behind some operators, to the one row of a one-row call.
class Splice : public Interposer {
 public:
  using Interposer::Interposer;
  std::map<std::pair<int, Stage>, std::vector<double>> errors;  ///< by (layer, stage)
  std::optional<Stage> active;  ///< the stage whose errors are added, in every layer

  void embed(const EmbedArgs& a) override {
    below().embed(a);
    add_to(a.site.layer, Stage::embed_out, a.out, a.batch->rows);
  }
  void rmsnorm(const RmsnormArgs& a) override {
    below().rmsnorm(a);
    add_to(a.site.layer, a.site.stage, {a.out.data, a.out.width * a.site.parts}, a.rows / a.site.parts);
  }
  void matmul(const MatmulArgs& a) override {
    below().matmul(a);
    for (int i = 0; i < a.count; ++i) {
      const MatmulOutput& o = a.outputs[static_cast<size_t>(i)];
      add_to(a.site.layer, o.stage, o.out, a.rows);
    }
  }
  void rope(const RopeArgs& a) override {
    below().rope(a);
    add_to(a.site.layer, Stage::q_post_rope, a.q_out, a.batch->rows);
    if (const auto* error = wanted(a.site.layer, Stage::k_post_rope, a.batch->rows)) {
      std::vector<double> row(error->size());
      below().read_kv(a.cache, KvPart::k, *a.batch, 0, row.data());
      for (size_t i = 0; i < row.size(); ++i) row[i] += (*error)[i];
      below().write_kv(a.cache, KvPart::k, *a.batch, 0, row.data());
    }
  }
  void attention(const AttentionArgs& a) override {
    below().attention(a);
    add_to(a.site.layer, Stage::attn_out, a.out, a.batch->rows);
  }
  void add(const AddArgs& a) override {
    below().add(a);
    add_to(a.site.layer, a.site.stage, a.out, a.rows);
  }
  void glu(const GluArgs& a) override {
    below().glu(a);
    add_to(a.site.layer, a.site.stage, a.out, a.rows);
  }
  void choose_experts(const ChooseExpertsArgs& a) override {
    below().choose_experts(a);
    add_to(a.site.layer, Stage::expert_weights, a.weights, a.rows);  // the choice itself has no error
  }
  void expert_matmul(const ExpertMatmulArgs& a) override {
    below().expert_matmul(a);
    for (int i = 0; i < a.count; ++i) {
      const MatmulOutput& o = a.outputs[static_cast<size_t>(i)];
      add_to(a.site.layer, o.stage, o.out, a.rows);
    }
  }
  void combine(const CombineArgs& a) override {
    below().combine(a);
    add_to(a.site.layer, a.site.stage, a.out, a.rows);
  }
  void softcap(const SoftcapArgs& a) override {
    below().softcap(a);
    add_to(a.site.layer, a.site.stage, a.out, a.rows);
  }

 private:
  const std::vector<double>* wanted(int layer, Stage stage, int64_t rows) const {
    if (active != stage || rows != 1) return nullptr;
    const auto found = errors.find({layer, stage});
    return found == errors.end() ? nullptr : &found->second;
  }
  void add_to(int layer, Stage stage, const View& out, int64_t rows) {
    const auto* error = wanted(layer, stage, rows);
    if (error == nullptr) return;
    std::vector<double> row(error->size());
    below().read(out, 0, 1, row.data());
    for (size_t i = 0; i < row.size(); ++i) row[i] += (*error)[i];
    below().write(out, 0, 1, row.data());
  }
};

/// Puts the given keys and values of the positions before `token` into the reference's cache.
void put_history(Engine& engine, const std::vector<LayerHistory>& from, int64_t token) {
  const HParams& hp = engine.hparams();
  std::vector<int32_t> positions, zeros(static_cast<size_t>(token), 0);
  for (int64_t p = 0; p < token; ++p) positions.push_back(static_cast<int32_t>(p));
  const BatchView batch{token, zeros.data(), positions.data(), zeros.data(), 1};
  std::vector<double> row(static_cast<size_t>(hp.kv_dim()));
  for (size_t layer = 0; layer < from.size(); ++layer) {
    const KvLayer kv = engine.cache().layer(layer);
    const KvHistory& given = from[layer].at(0);
    const int64_t window = hp.window_of(static_cast<int64_t>(layer));  // the cache has given back older pages
    for (int64_t p = window == 0 ? 0 : std::max<int64_t>(token + 1 - window, 0); p < token; ++p)
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        (part == KvPart::k ? given.keys : given.values).get(p, row.data());
        engine.backend().write_kv(kv, part, batch, p, row.data());
      }
  }
}

}  // namespace

PositionRows rows_at(SubjectRun& run, const Prompt& prompt, int64_t token) {
  Engine& engine = run.engine();
  RowKeeper kept(engine.hparams(), engine.backend().element_bytes() == sizeof(double), token);
  run.feed_quietly(prompt, &kept);
  return {std::move(kept.units), std::move(kept.history)};
}

namespace {

/// The FP64 run up to the parting, and the gap between the two logits there.
class TrueGap {
 public:
  TrueGap(const ModelFile& truth, const Parting& at, int threads)
      : at_(at), engine_(truth, options(at, threads)), logits_(static_cast<size_t>(hp().vocab)) {
    if (at.token > 0) engine_.feed_all(0, at.ids.first(static_cast<size_t>(at.token)), Feed::Logits::none);
  }

  double measure() {
    engine_.truncate(0, at_.token);
    const Feed feed{0, at_.ids.subspan(static_cast<size_t>(at_.token), 1), Feed::Logits::last};
    engine_.evaluate({&feed, 1});
    engine_.logits(0, logits_);
    return logits_[static_cast<size_t>(at_.a)] - logits_[static_cast<size_t>(at_.b)];
  }
  Engine& engine() { return engine_; }
  const HParams& hp() const { return engine_.hparams(); }
  Splice& splice() { return *splice_; }

 private:
  EngineOptions options(const Parting& at, int threads) {
    EngineOptions o;
    o.device = "reference";
    o.backend.kv_type = KvType::f64;
    o.backend.threads = threads;
    o.context = at.context;
    o.room = at.token + 1;
    o.chunk = std::min<int64_t>(256, at.token + 1);
    o.between = [this](std::unique_ptr<Backend> below) {
      auto made = std::make_unique<Splice>(std::move(below));
      splice_ = made.get();
      return made;
    };
    return o;
  }

  Parting at_;
  Splice* splice_ = nullptr;
  Engine engine_;
  std::vector<double> logits_;
};

bool has_history(const PositionRows& run, int layer) {
  return layer != kNoLayer && run.history[static_cast<size_t>(layer)].contains(0);
}

/// Whether the run holds the stage and all that it was made from.
bool can_judge(const PositionRows& run, const UnitRows& unit, int layer, const StageRule& rule) {
  if (rule.op == Op::wire || !unit.stages.contains(rule.stage)) return false;
  if (rule.op == Op::attention) return unit.stages.contains(Stage::q_post_rope) && has_history(run, layer);
  return std::all_of(rule.reads.begin(), rule.reads.end(),
                     [&](Stage read) { return unit.stages.contains(read); });
}

/// What each operator of the row added to the exact value on its own inputs; which stages have some.
std::set<Stage> take_errors(TrueGap& gap, const PositionRows& run, const Parting& at) {
  const Wiring wiring(gap.hp());
  const RowName name{0, static_cast<int32_t>(at.token), at.ids[static_cast<size_t>(at.token)]};
  static const LayerHistory none;
  std::set<Stage> stages;
  for (const UnitRows& unit : run.units)
    for (const StageRule& rule : wiring.rules_of_unit(unit.unit)) {
      const int layer = layer_of_unit(unit.unit, gap.hp().layers);
      if (!can_judge(run, unit, layer, rule)) continue;
      const auto& history = layer == kNoLayer ? none : run.history[static_cast<size_t>(layer)];
      auto error =
          judged_stage(gap.engine().plan(), gap.engine().backend().arithmetic(), unit, 0, name, history, rule)
              .value;
      const StoredRows& got = unit.stages.at(rule.stage);
      for (size_t i = 0; i < error.size(); ++i) error[i] = got.at(0, static_cast<int64_t>(i)) - error[i];
      gap.splice().errors[{layer, rule.stage}] = std::move(error);
      stages.insert(rule.stage);
    }
  return stages;
}

}  // namespace

Rounding explain_rounding(const ModelFile& truth, const Parting& at, int threads,
                          const std::function<PositionRows(double true_gap)>& rows_of) {
  TrueGap gap(truth, at, threads);
  Rounding result{at.step, at.token, at.a, at.b, gap.measure(), {}, {}};
  const PositionRows run = rows_of(result.true_gap);
  const UnitRows& head = run.units.back();
  if (const auto logits = head.stages.find(Stage::logits); logits != head.stages.end())
    result.difference = logits->second.at(0, at.a) - logits->second.at(0, at.b) - result.true_gap;
  for (const Stage stage : take_errors(gap, run, at)) {
    gap.splice().active = stage;
    result.contributors.push_back({std::string(name_of(stage)), gap.measure() - result.true_gap});
  }
  gap.splice().active.reset();
  bool histories = at.token > 0;
  for (int64_t layer = 0; layer < gap.hp().layers; ++layer)
    histories = histories && has_history(run, static_cast<int>(layer));
  if (histories) {
    put_history(gap.engine(), run.history, at.token);
    result.contributors.push_back({"keys and values of earlier tokens", gap.measure() - result.true_gap});
  }
  std::sort(result.contributors.begin(), result.contributors.end(),
            [](const auto& x, const auto& y) { return std::abs(x.shift) > std::abs(y.shift); });
  return result;
}

}  // namespace greta
