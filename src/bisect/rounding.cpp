#include "bisect/rounding.h"

#include <algorithm>
#include <cmath>

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

/// Exchanges the reference's keys and values of the positions before `token` with those given; gives the old
/// ones back.
std::vector<LayerHistory> exchange(Engine& engine, const std::vector<LayerHistory>& with, int64_t token) {
  const HParams& hp = engine.hparams();
  std::vector<int32_t> positions, zeros(static_cast<size_t>(token), 0);
  for (int64_t p = 0; p < token; ++p) positions.push_back(static_cast<int32_t>(p));
  const BatchView batch{token, zeros.data(), positions.data(), zeros.data(), 1};
  std::vector<LayerHistory> old(with.size());
  std::vector<double> row(static_cast<size_t>(hp.kv_dim()));
  for (size_t layer = 0; layer < with.size(); ++layer) {
    const KvLayer kv = engine.cache().layer(layer);
    KvHistory& kept = old[layer][0];
    kept.keys = kept.values = StoredRows(hp.kv_dim(), true);
    for (int64_t p = 0; p < token; ++p)
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        engine.backend().read_kv(kv, part, batch, p, row.data());
        (part == KvPart::k ? kept.keys : kept.values).append(row.data());
        (part == KvPart::k ? with[layer].at(0).keys : with[layer].at(0).values).get(p, row.data());
        engine.backend().write_kv(kv, part, batch, p, row.data());
      }
  }
  return old;
}

}  // namespace

Rounding explain_rounding(const ModelFile& truth, SubjectRun& run, const Prompt& prompt, int64_t step,
                          int64_t token, TokenId a, TokenId b, std::span<const TokenId> ids, int threads) {
  Splice* splice = nullptr;
  EngineOptions options;
  options.device = "reference";
  options.backend.kv_type = KvType::f64;
  options.backend.threads = threads;
  options.context = token + 1;
  options.chunk = std::min<int64_t>(256, token + 1);
  options.between = [&](std::unique_ptr<Backend> below) {
    auto made = std::make_unique<Splice>(std::move(below));
    splice = made.get();
    return made;
  };
  Engine reference(truth, options);
  const HParams& hp = reference.hparams();
  if (token > 0) reference.feed_all(0, ids.first(static_cast<size_t>(token)), Feed::Logits::none);
  std::vector<double> logits(static_cast<size_t>(hp.vocab));
  const auto gap = [&] {
    reference.truncate(0, token);
    const Feed feed{0, ids.subspan(static_cast<size_t>(token), 1), Feed::Logits::last};
    reference.evaluate({&feed, 1});
    reference.logits(0, logits);
    return logits[static_cast<size_t>(a)] - logits[static_cast<size_t>(b)];
  };

  Rounding result;
  result.step = step;
  result.token = token;
  result.a = a;
  result.b = b;
  result.true_gap = gap();

  RowKeeper kept(hp, run.engine().backend().element_bytes() == sizeof(double), token);
  run.feed_quietly(prompt, &kept);
  const auto head = static_cast<size_t>(hp.layers) + 1;
  const Wiring wiring(hp);
  const StoredRows& run_logits = kept.units[head].stages.at(Stage::logits);
  result.difference = run_logits.at(0, a) - run_logits.at(0, b) - result.true_gap;

  const RowName name{0, static_cast<int32_t>(token), ids[static_cast<size_t>(token)]};
  static const LayerHistory none;
  for (const UnitRows& unit : kept.units)
    for (const StageRule& rule : wiring.rules_of_unit(unit.unit)) {
      if (rule.op == Op::wire) continue;
      const Stage stage = rule.stage;
      const int layer = layer_of_unit(unit.unit, hp.layers);
      const auto& history = layer == kNoLayer ? none : kept.history[static_cast<size_t>(layer)];
      auto error =
          judged_stage(reference.plan(), reference.backend().arithmetic(), unit, 0, name, history, rule)
              .value;
      const StoredRows& got = unit.stages.at(stage);
      for (size_t i = 0; i < error.size(); ++i) error[i] = got.at(0, static_cast<int64_t>(i)) - error[i];
      splice->errors[{layer, stage}] = std::move(error);
    }
  for (const StageRule& rule : wiring.rules()) {
    if (rule.op == Op::wire) continue;
    splice->active = rule.stage;
    result.contributors.push_back({std::string(name_of(rule.stage)), gap() - result.true_gap});
  }
  splice->active.reset();
  if (token > 0) {
    const auto old = exchange(reference, kept.history, token);
    result.contributors.push_back({"keys and values of earlier tokens", gap() - result.true_gap});
    exchange(reference, old, token);
  }
  std::sort(result.contributors.begin(), result.contributors.end(),
            [](const auto& x, const auto& y) { return std::abs(x.shift) > std::abs(y.shift); });
  return result;
}

}  // namespace greta
