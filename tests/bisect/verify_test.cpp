// greta verify's rows: all green on a healthy engine, and with a fault exactly those red that can see it.
#include "bisect/verify.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

#include "base/error.h"
#include "bisect/divergence.h"
#include "bisect/examine.h"
#include "bisect/faults.h"
#include "bisect/interposer.h"
#include "support.h"

namespace greta {
namespace {

using testing::HasSubstr;
using Reds = std::set<std::string>;

/// Changes one row of what a matmul left, where a condition holds.
class ChangedProduct : public Interposer {
 public:
  using Condition = std::function<bool(const Backend& below, const MatmulArgs& args)>;
  using Change = std::function<void(std::vector<double>& row)>;
  ChangedProduct(std::unique_ptr<Backend> below, Stage stage, Condition condition, Change change)
      : Interposer(std::move(below)),
        stage_(stage),
        condition_(std::move(condition)),
        change_(std::move(change)) {}
  void matmul(const MatmulArgs& args) override {
    below().matmul(args);
    if (args.site.stage != stage_ || !condition_(below(), args)) return;
    const View& out = args.outputs[0].out;
    std::vector<double> row(static_cast<size_t>(out.width));
    for (int64_t i = 0; i < args.rows; ++i) {
      below().read(out, i, 1, row.data());
      change_(row);
      below().write(out, i, 1, row.data());
    }
  }

 private:
  Stage stage_;
  Condition condition_;
  Change change_;
};

auto changed(Stage stage, ChangedProduct::Condition condition, ChangedProduct::Change change) {
  return [=](std::unique_ptr<Backend> below) -> std::unique_ptr<Backend> {
    return std::make_unique<ChangedProduct>(std::move(below), stage, condition, change);
  };
}

/// One bit of one element.
void nudge(std::vector<double>& row) { row[3] = std::nextafter(static_cast<float>(row[3]), 1e30f); }

/// Every second time, as chance has it, q is overwritten before attention reads it.
class Race : public Interposer {
 public:
  Race(std::unique_ptr<Backend> below, std::shared_ptr<std::mt19937> chance)
      : Interposer(std::move(below)), chance_(std::move(chance)) {}
  void attention(const AttentionArgs& args) override {
    if (args.site.layer == 1 && (*chance_)() % 2 == 0) {
      const std::vector<double> zeros(static_cast<size_t>(args.q.width), 0.0);
      below().write(args.q, 0, 1, zeros.data());
    }
    below().attention(args);
  }

 private:
  std::shared_ptr<std::mt19937> chance_;
};

/// Reading a stage, as a tap does, changes it.
class ChangedByReading : public Interposer {
 public:
  using Interposer::Interposer;
  void read(const View& view, int64_t first, int64_t count, float* out) const override {
    below().read(view, first, count, out);
  }
  void read(const View& view, int64_t first, int64_t count, double* out) const override {
    below().read(view, first, count, out);
    if (first == 0) static_cast<float*>(view.data)[0] *= 1.5f;
  }
};

template <class Fault>
std::unique_ptr<Backend> with(std::unique_ptr<Backend> below) {
  return std::make_unique<Fault>(std::move(below));
}

bool always(const Backend&, const MatmulArgs&) { return true; }

class Verify : public testing::Test {
 protected:
  explicit Verify(uint64_t context = 2048) : model_(make(context)) { options_.engine.backend.threads = 2; }
  ModelFile make(uint64_t context) const {
    SynthOptions synth;
    synth.dim = 128;
    synth.layers = 3;
    synth.ffn_dim = 256;
    synth.heads = 4;
    synth.kv_heads = 2;
    synth.vocab = 300;
    synth.context = context;
    synth.type = quant::Type::Q4_1;
    const std::string path = folder_ / std::to_string(context);
    synthesise(synth, path, 2);
    return ModelFile::open(path);
  }
  VerifyResult run(decltype(EngineOptions::between) between = {}) {
    options_.engine.between = std::move(between);
    return verify(model_, options_);
  }
  using Between = decltype(EngineOptions::between);
  /// A fault of the catalogue at a stage, in the backends that `where` names.
  Between planted(
      const std::string& spec, Stage stage,
      const std::function<bool(const Backend&)>& where = [](const Backend&) { return true; }) const {
    const HParams hp = truth_plan(model_).hp;
    Plant plant = draw_plant(parse_fault(spec), hp, 64, 300);
    plant.stage = stage;
    plant.log->recording = false;
    return [=](std::unique_ptr<Backend> below) {
      return where(*below) ? plant_fault(std::move(below), plant, hp) : std::move(below);
    };
  }
  static const VerifyRow& row(const VerifyResult& result, const std::string& id) {
    const auto found =
        std::find_if(result.rows.begin(), result.rows.end(), [&](const VerifyRow& r) { return r.id == id; });
    if (found == result.rows.end()) throw std::logic_error("no row " + id);
    return *found;
  }
  /// The rows that are no pass; each must have said so with a place or a figure, and none may be an error.
  static Reds reds(const VerifyResult& result) {
    Reds ids;
    for (const VerifyRow& r : result.rows) {
      if (r.verdict != RowVerdict::pass) ids.insert(r.id);
      EXPECT_TRUE(r.verdict == RowVerdict::pass || r.verdict == RowVerdict::fail) << r.id << ": " << r.detail;
    }
    EXPECT_EQ(result.passed(), ids.empty());
    return ids;
  }

  test::TemporaryFolder folder_;
  ModelFile model_;
  VerifyOptions options_;
};

TEST_F(Verify, AHealthyEngineIsGreenAndSaysWhatItCompared) {
  std::set<std::string> seen;
  options_.progress = [&](std::string_view id, size_t done, size_t total) {
    EXPECT_LE(done, total) << id;
    seen.insert(std::string(id));
  };
  std::vector<std::string> finished;
  options_.finished = [&](const VerifyRow& r) { finished.push_back(r.id); };
  const VerifyResult result = run();
  std::vector<std::string> ids;
  for (const VerifyRowInfo& info : verify_rows()) ids.emplace_back(info.id);
  EXPECT_EQ(finished, ids);
  EXPECT_EQ(seen, std::set<std::string>(ids.begin(), ids.end()));
  for (const VerifyRow& r : result.rows) {
    EXPECT_EQ(r.verdict, RowVerdict::pass) << r.id << ": " << r.detail;
    EXPECT_FALSE(r.compared.nothing()) << r.id;
    EXPECT_EQ(r.compared.layers, 3u) << r.id;
    EXPECT_FALSE(r.first.has_value()) << r.id;
    EXPECT_GE(r.sides.size(), 2u) << r.id;
    EXPECT_EQ(r.compared.runs, r.sides.size()) << r.id;
    for (const VerifySide& side : r.sides) EXPECT_FALSE(side.route.empty() || side.device.empty()) << r.id;
  }
  EXPECT_TRUE(result.passed());

  constexpr uint64_t kRows = 3 * 16 + 3;  // of a token
  constexpr uint64_t kWide = 3 * (10 * 128 + 3 * 64 + 3 * 256) + 2 * 128 + 300;
  EXPECT_EQ(row(result, "phase").compared.rows, 300 * kRows);
  EXPECT_EQ(row(result, "phase").compared.values, 300 * kWide);
  EXPECT_EQ(row(result, "phase").compared.tokens, 300u);
  EXPECT_EQ(row(result, "phase").compared.stages, 19u);
  EXPECT_EQ(row(result, "phase").sides[1].calls, (std::map<int64_t, uint64_t>{{1, 300}}));
  EXPECT_EQ(row(result, "chunk").compared.rows, 2 * 1300 * kRows);
  EXPECT_EQ(row(result, "chunk").sides[0].calls, (std::map<int64_t, uint64_t>{{512, 2}, {276, 1}}));
  EXPECT_EQ(row(result, "batch").compared.rows, (301 + 150 + 77 + 64 + 29) * kRows);
  EXPECT_GE(row(result, "batch").sides[1].calls.at(5), 8u);
  EXPECT_EQ(row(result, "batch").sides[1].calls.count(1), 0u);
  EXPECT_EQ(row(result, "repeats").compared.rows, 9 * 100 * kRows);
  EXPECT_EQ(row(result, "taps").compared.rows, 200u);
  EXPECT_EQ(row(result, "context").compared.rows, 16 * kRows);
  EXPECT_EQ(row(result, "context").figures.at("context"), 2048);
  EXPECT_EQ(row(result, "weights").compared.values, 4 * 384 * 300u);
  EXPECT_GT(row(result, "weights").figures.at("int8.mean_kl"),
            10 * row(result, "weights").figures.at("int8_rounded_truth.mean_kl"))
      << "the rounded weights are no nearer to the mode than the file's own";
}

TEST_F(Verify, RopePositionInDecode) {
  const VerifyResult result = run(planted("rope-pos@0", Stage::q_post_rope));
  EXPECT_EQ(reds(result), (Reds{"phase", "context"}));
  EXPECT_EQ(row(result, "phase").first, (Place{0, 0, 0, Stage::q_post_rope}));
  EXPECT_EQ(row(result, "context").first, (Place{0, 2048 - 16, 0, Stage::q_post_rope}));
}

TEST_F(Verify, PagesLostBetweenChunks) {
  const VerifyResult result = run(planted("kv-chunk@0", Stage::attn_out));
  EXPECT_EQ(reds(result), (Reds{"chunk", "batch", "context"}));
  EXPECT_EQ(row(result, "chunk").first, (Place{0, 7, 0, Stage::attn_out})) << "the second chunk of 7";
}

TEST_F(Verify, Race) {
  const auto chance = std::make_shared<std::mt19937>(7);
  const VerifyResult result =
      run([&](std::unique_ptr<Backend> below) { return std::make_unique<Race>(std::move(below), chance); });
  const Reds red = reds(result);  // any row can see it; which do is chance
  EXPECT_TRUE(red.contains("repeats"));
  ASSERT_TRUE(row(result, "repeats").first.has_value());
  EXPECT_EQ(row(result, "repeats").first->layer, 1);
  EXPECT_EQ(row(result, "repeats").first->stage, Stage::attn_out);
}

TEST_F(Verify, Int8Undivided) {
  const auto in_int8 = [](const Backend& b) { return b.arithmetic().weights == WeightMode::int8; };
  const VerifyResult result = run(planted("int8-undivided@1", Stage::ffn_gate, in_int8));
  EXPECT_EQ(reds(result), Reds{"weights"});
  EXPECT_THAT(row(result, "weights").detail,
              HasSubstr("int8 against FP64 on the rounded weights is outside"));
  EXPECT_THAT(row(result, "weights").detail, testing::Not(HasSubstr("; stored is outside")));
}

TEST_F(Verify, WrongInTheSameWayEverywhereIsSeenByTheJudgeAlone) {
  const VerifyResult result = run(planted("gate-up-swap@1", Stage::ffn_act));
  EXPECT_EQ(reds(result), Reds{"weights"});
}

TEST_F(Verify, OneBitWithOneThread) {
  const auto alone = [](const Backend& below, const MatmulArgs&) {
    return below.description().find(" 1 thread,") != std::string::npos;
  };
  const VerifyResult result = run(changed(Stage::attn_proj, alone, nudge));
  EXPECT_EQ(reds(result), Reds{"threads"});
  EXPECT_EQ(row(result, "threads").first, (Place{0, 0, 0, Stage::attn_proj}));
}

TEST_F(Verify, OneBitOnOneInstructionSet) {
  const auto portable = [](const Backend& below, const MatmulArgs&) {
    return below.description().find("portable") != std::string::npos;
  };
  EXPECT_EQ(reds(run(changed(Stage::attn_proj, portable, nudge))), Reds{"isa"});
}

TEST_F(Verify, OneBitBesideANeighbour) {
  const auto shared = [](const Backend&, const MatmulArgs& args) {
    const BatchView& batch = *args.site.batch;
    return batch.sequences[0] != batch.sequences[batch.rows - 1];
  };
  EXPECT_EQ(reds(run(changed(Stage::attn_proj, shared, nudge))), Reds{"batch"});
}

TEST_F(Verify, ATapThatChangesTheRun) {
  options_.rows = {"repeats", "taps"};
  EXPECT_EQ(reds(run(with<ChangedByReading>)), Reds{"taps"});
}

TEST_F(Verify, NotANumberIsTheSameBitsAndNoPass) {
  options_.rows = {"repeats", "weights", "context"};
  const VerifyResult result =
      run(changed(Stage::logits, always, [](std::vector<double>& out) { out[5] = std::nan(""); }));
  EXPECT_EQ(reds(result), (Reds{"weights", "context"}));
  EXPECT_THAT(row(result, "context").detail, HasSubstr("1 of the last row's 300 logits are not finite"));
}

TEST_F(Verify, SidesThatDoNotDifferAreAnError) {
  options_.engine.chunk = 1;
  options_.rows = {"phase", "context"};
  const VerifyResult result = run();
  for (const VerifyRow& r : result.rows) {
    EXPECT_EQ(r.verdict, RowVerdict::error) << r.id;
    EXPECT_THAT(r.detail, HasSubstr("both sides ran matmul.")) << r.id;
  }
  EXPECT_FALSE(result.passed());
}

TEST_F(Verify, EightBitActivationsAreOutsideTheBudgetAndInsideEveryOtherPromise) {
  options_.engine.backend.activations = Activations::bits8;
  EXPECT_EQ(reds(run()), Reds{"weights"});
}

TEST_F(Verify, AShortContextScalesTheRowsDownAndSaysSo) {
  const ModelFile small = make(100);
  const VerifyResult result = verify(small, options_);
  EXPECT_EQ(reds(result), Reds{});
  EXPECT_EQ(row(result, "chunk").compared.tokens, 100u);
  EXPECT_THAT(row(result, "chunk").detail, HasSubstr("chunks of 40, 7 (scaled down to the context of 100)"));
  const ModelFile tiny = make(2);
  options_.rows = {"chunk"};
  const VerifyResult none = verify(tiny, options_);
  EXPECT_EQ(none.rows[0].verdict, RowVerdict::not_run);
  EXPECT_THAT(none.rows[0].detail, HasSubstr("too short for two sizes of chunks"));
  EXPECT_FALSE(none.passed());
}

// Experts' matrices are rounded to int8 blocks by the mode, and by the truth that it is held to.
TEST_F(Verify, Int8OfExpertsIsHeldToTheirRoundedMatrices) {
  SynthOptions synth;
  synth.dim = 128;
  synth.layers = 2;
  synth.ffn_dim = 256;
  synth.heads = 4;
  synth.vocab = 300;
  synth.context = 128;
  synth.experts = 4;
  synth.type = quant::Type::F16;
  const std::string path = folder_ / "experts";
  synthesise(synth, path, 2);
  options_.rows = {"weights"};
  const VerifyResult result = verify(ModelFile::open(path), options_);
  EXPECT_EQ(reds(result), Reds{}) << row(result, "weights").detail;
  EXPECT_GT(row(result, "weights").figures.at("int8.mean_kl"),
            10 * row(result, "weights").figures.at("int8_rounded_truth.mean_kl"));
}

TEST_F(Verify, WhatCannotBeDoneIsAnErrorBeforeAnyRow) {
  options_.engine.context = 2049;
  EXPECT_THROW(run(), Error);
  options_.engine.context = 300;
  options_.rows = {"context"};
  EXPECT_EQ(row(run(), "context").figures.at("context"), 300);
  options_.engine.device = "reference";
  EXPECT_THROW(run(), Error);
  EXPECT_THROW(parse_verify_rows("phase,nonsense"), Error);
  EXPECT_THROW(parse_verify_rows("phase,phase"), Error);
  EXPECT_THROW(parse_verify_rows(""), Error);
  EXPECT_EQ(parse_verify_rows("context,phase"), (std::vector<std::string>{"context", "phase"}));
  options_.engine.device = "cpu";
  options_.rows = {"nonsense"};
  EXPECT_THROW(run(), Error);
  EXPECT_FALSE(VerifyResult{}.passed());
}

TEST(BitComparison, OfUnlikeRunsIsAnErrorAndOfNothingIsNothing) {
  HashedRun one;
  one.widths[Stage::logits] = 4;
  one.hashes[{0, 0, kNoLayer, Stage::logits}] = 1;
  HashedRun other = one;
  other.hashes[{0, 1, kNoLayer, Stage::logits}] = 1;
  BitComparison comparison(one);
  EXPECT_THROW(comparison.add(other), Error);
  other.hashes.erase({0, 0, kNoLayer, Stage::logits});
  EXPECT_THROW(comparison.add(other), Error);
  EXPECT_TRUE(comparison.compared().nothing());
  BitComparison empty(HashedRun{});
  empty.add({});
  EXPECT_TRUE(empty.compared().nothing());
}

TEST(BitComparison, TheFirstPlaceIsTheSmallestOfAnyRun) {
  HashedRun expected;
  for (int layer : {kNoLayer, 0, 1})
    for (int32_t position : {0, 1}) {
      const Stage stage = layer == kNoLayer ? Stage::logits : Stage::attn_out;
      expected.hashes[{0, position, layer, stage}] = 1;
      expected.widths[stage] = 2;
    }
  BitComparison comparison(expected);
  HashedRun run = expected;
  run.hashes[{0, 0, kNoLayer, Stage::logits}] = 2;
  comparison.add(run);
  EXPECT_EQ(comparison.first(), (Place{0, 0, kNoLayer, Stage::logits}));
  run = expected;
  run.hashes[{0, 0, 1, Stage::attn_out}] = 2;
  run.hashes[{0, 1, 0, Stage::attn_out}] = 2;
  comparison.add(run);
  EXPECT_EQ(comparison.first(), (Place{0, 0, 1, Stage::attn_out})) << "logits come behind every layer";
  EXPECT_EQ(comparison.differing_rows(), 3u);
  EXPECT_EQ(comparison.compared().values, 2 * 6 * 2u);
}

TEST(Divergence, OfKnownRows) {
  const std::vector<double> truth = {std::log(0.5), std::log(0.25), std::log(0.25)};
  const std::vector<double> got = {std::log(0.25), std::log(0.5), std::log(0.25)};
  Divergence divergence;
  divergence.add(truth, truth);
  divergence.add(truth, got);
  EXPECT_NEAR(divergence.largest_kl(), 0.25 * std::log(2.0), 1e-15);
  EXPECT_NEAR(divergence.mean_kl(), 0.125 * std::log(2.0), 1e-15);
  EXPECT_EQ(divergence.changed(), 1u);
  EXPECT_EQ(divergence.top1_agreement(), 0.5);
  EXPECT_NEAR(divergence.largest_gap(), std::log(2.0), 1e-15);
  divergence.add(truth, std::vector<double>(3, std::nan("")));
  EXPECT_FALSE(divergence.mean_kl() <= 1.0);
  EXPECT_FALSE(divergence.largest_kl() <= 1.0);
  EXPECT_THROW(divergence.add(truth, {}), Error);
  const auto p = log_softmax(std::vector<double>{1000.0, 1000.0});
  EXPECT_NEAR(p[0], -std::log(2.0), 1e-12);
}

}  // namespace
}  // namespace greta
