// The row `weights`: each weight mode against FP64 on the weights that the mode has.
//
// A mode is held to the budget of numerics.md section 3 against the truth of its own weights. For the weights
// as stored and as f32 these are the file's. For int8 they are the file's rounded to Q8_0's blocks, which is
// what the mode declares: the reference runs on weights rounded by the judge's own statement of that rounding
// (bounds.h), and what is left is the arithmetic, which has no reason to be worse than that of the other
// modes. So the criterion does not depend on how well a model bears 8 bits, and a scale applied twice cannot
// hide in it. What int8 costs against the file's own weights is reported beside it.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "bisect/bounds.h"
#include "bisect/divergence.h"
#include "bisect/interposer.h"
#include "bisect/verify_rows.h"

namespace greta {
namespace {

constexpr double kMeanKl = 1e-5;
constexpr double kTrueGap = 0.005;

constexpr size_t kTokens = 384;
constexpr int64_t kReferenceChunk = 128;
constexpr size_t kTruthBytes = size_t{256} << 20;  ///< most that is kept of one reference run

/// A matrix rounded to int8 blocks as the judge states it; row by row, when it is read.
class RoundedWeight : public Weight {
 public:
  RoundedWeight(WeightSource source, const Weight& stored) : Weight(stored), source_(std::move(source)) {
    resident += " rounded to int8 blocks";
  }
  void read_back(int64_t first, int64_t count, float* out) const override {
    for (int64_t r = 0; r < count; ++r) judged_row(source_, first + r, WeightMode::int8, out + r * cols);
  }

 private:
  WeightSource source_;
};

/// The reference on rounded matrices, those of experts too; the embedding's rows stay as stored, as in every
/// mode.
class RoundedReference : public Interposer {
 public:
  using Interposer::Interposer;
  std::string description() const override { return below().description() + ", weights rounded to int8"; }
  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    auto stored = below().load(source, use);
    if (use != WeightUse::matmul && use != WeightUse::experts) return stored;
    return std::make_unique<RoundedWeight>(source, *stored);
  }
};

/// Hands every row of logits, as log-probabilities, to a visitor.
class LogProbabilities : public Tap {
 public:
  using Visit = std::function<void(size_t position, std::vector<double> row)>;
  explicit LogProbabilities(Visit visit) : visit_(std::move(visit)) {}
  void on_stage(int, Stage stage, const StageRows& rows) override {
    if (stage == Stage::embed_out) ++calls[rows.rows];
    if (stage != Stage::logits) return;
    std::vector<double> row(static_cast<size_t>(rows.width));
    for (int64_t i = 0; i < rows.rows; ++i) {
      rows.read(i, row.data());
      visit_(static_cast<size_t>(rows.batch->positions[rows.batch_row(i)]), log_softmax(row));
    }
  }
  std::map<int64_t, uint64_t> calls;

 private:
  Visit visit_;
};

using Truth = std::vector<std::vector<double>>;  ///< [tokens][vocab] log-probabilities

struct Weights {
  Audit& audit;
  std::vector<TokenId> ids;
  std::string outside;  ///< what left the budget

  void run(const std::string& name, Engine& engine, const LogProbabilities::Visit& visit) {
    LogProbabilities tap(visit);
    feed_alone(engine, ids, 0, &tap, audit.fed());
    audit.row.sides.push_back({name, engine.backend().description(), engine.backend().route(), tap.calls});
    ++audit.row.compared.runs;
  }

  Truth truth(bool rounded) {
    EngineOptions options;
    options.device = "reference";
    options.backend.threads = audit.options.engine.backend.threads;
    options.context = audit.options.engine.context;
    options.room = static_cast<int64_t>(ids.size());
    options.chunk = kReferenceChunk;
    options.all_logits = true;
    if (rounded)
      options.between = [](std::unique_ptr<Backend> below) {
        return std::make_unique<RoundedReference>(std::move(below));
      };
    Engine engine(audit.model, options);
    Truth rows(ids.size());
    run(rounded ? "reference, int8 weights" : "reference", engine,
        [&](size_t position, std::vector<double> row) { rows[position] = std::move(row); });
    return rows;
  }

  Truth mode(WeightMode weights, const std::string& name) {
    EngineOptions options = audit.engine(static_cast<int64_t>(ids.size()));
    options.backend.weights = weights;
    Engine engine(audit.model, options);
    if (engine.backend().arithmetic().weights != weights)
      throw NotAsMeant{fmt::format("'{}' is not in weight mode {}", engine.backend().description(), name)};
    Truth rows(ids.size());
    run(name, engine, [&](size_t position, std::vector<double> row) { rows[position] = std::move(row); });
    return rows;
  }

  Divergence compare(const Truth& truth_rows, const Truth& rows, const std::string& name) {
    Divergence divergence;
    for (size_t i = 0; i < rows.size(); ++i) {
      divergence.add(truth_rows[i], rows[i]);
      audit.row.compared.values += rows[i].size();
      ++audit.row.compared.rows;
    }
    auto& figures = audit.row.figures;
    figures[name + ".mean_kl"] = divergence.mean_kl();
    figures[name + ".largest_kl"] = divergence.largest_kl();
    figures[name + ".top1_agreement"] = divergence.top1_agreement();
    figures[name + ".largest_gap"] = divergence.largest_gap();
    return divergence;
  }

  void judge(const Divergence& divergence, const std::string& name) {
    if (divergence.mean_kl() <= kMeanKl && divergence.largest_gap() <= kTrueGap) return;
    outside += fmt::format(
        "; {} is outside the budget (mean KL {:.1e}, at most {:.0e}; largest true gap "
        "overturned {:.4f}, at most {})",
        name, divergence.mean_kl(), kMeanKl, divergence.largest_gap(), kTrueGap);
  }
};

}  // namespace

void verify_weights(Audit& audit) {
  const size_t fits = kTruthBytes / sizeof(double) / static_cast<size_t>(audit.hp.vocab);
  Weights weights{audit, audit.prompt(std::min(audit.length(kTokens), std::max<size_t>(fits, 1))), ""};
  const Truth true_rows = weights.truth(false);
  std::string text;
  for (const auto& [mode, name] :
       {std::pair(WeightMode::stored, "stored"), std::pair(WeightMode::f32, "f32")}) {
    const Divergence d = weights.compare(true_rows, weights.mode(mode, name), name);
    weights.judge(d, name);
    text += fmt::format("{} KL {:.1e}, top-1 {:.2f} %; ", name, d.mean_kl(), 100 * d.top1_agreement());
  }
  const Truth int8_rows = weights.mode(WeightMode::int8, "int8");
  const Divergence cost = weights.compare(true_rows, int8_rows, "int8");
  const Divergence d = weights.compare(weights.truth(true), int8_rows, "int8_rounded_truth");
  weights.judge(d, "int8 against FP64 on the rounded weights");
  text += fmt::format("int8 KL {:.1e}, top-1 {:.2f} % (on its rounded weights {:.1e})", cost.mean_kl(),
                      100 * cost.top1_agreement(), d.mean_kl());

  VerifyRow& row = audit.row;
  row.compared.tokens = weights.ids.size();
  row.compared.layers = static_cast<uint64_t>(audit.hp.layers);  // behind the logits
  row.compared.stages = 1;
  row.verdict = weights.outside.empty() ? RowVerdict::pass : RowVerdict::fail;
  row.detail = fmt::format("{} tokens against FP64: {}{}", weights.ids.size(), text, weights.outside);
}

}  // namespace greta
