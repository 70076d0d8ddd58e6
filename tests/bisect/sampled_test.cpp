// Judging by a sample and checksums (bisect.md, check 4): no alarm on clean runs of every type, and what is
// wrong in an output that the sample has not is found at its exact place, or is as small as checksum.h says.
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <ostream>

#include "bisect/bisect.h"
#include "bisect/summary.h"
#include "model/tensor_plan.h"
#include "units.h"

namespace greta {
namespace {

using testing::HasSubstr;
constexpr int64_t kTokens = 40;
constexpr int kLayer = 1;

struct Mode {
  std::string name;
  quant::Type type;
  std::string keys = {};  ///< of a subject
};
void PrintTo(const Mode& mode, std::ostream* out) { *out << mode.name; }

std::vector<Mode> modes() {
  std::vector<Mode> all;
  for (const auto& t : quant::all_types()) all.push_back({std::string(t.name), t.type});
  all.push_back({"Q4_K_8bit", quant::Type::Q4_K, ",activations=8"});
  all.push_back({"Q6_K_as_int8", quant::Type::Q6_K, ",weights=int8"});
  all.push_back({"Q4_1_as_f32", quant::Type::Q4_1, ",weights=f32"});
  all.push_back({"F16_bf16_cache", quant::Type::F16, ",kv-type=bf16"});
  return all;
}

/// Widths that are no multiples of 16 and 64: the last groups are short.
std::string make_model(const test::TemporaryFolder& folder, quant::Type type) {
  SynthOptions synth;
  synth.dim = 256;
  synth.ffn_dim = quant::traits(type).block > 32 ? 512 : 352;
  synth.layers = 2;
  synth.kv_heads = 2;
  synth.vocab = 331;
  synth.context = 256;
  synth.type = type;
  synth.bias = true;
  std::string path = folder / (std::string(quant::traits(type).name) + ".gguf");
  synthesise(synth, path, 2);
  return path;
}

// ---- whole bisects

class Sampled : public testing::Test {
 protected:
  BisectOptions options(const std::string& path, const std::string& b) {
    BisectOptions o;
    o.model = path;
    o.a = parse_subject("reference", {});
    o.b = parse_subject(b, {});
    o.prompts = {{"test", "", test::random_tokens(kTokens, 300, 7)}};
    o.examine.chunk = 40;
    o.examine.max_tokens = 3;
    o.examine.whole_multiply_adds = 0.0;
    o.allow_rounding = true;
    return o;
  }
  test::TemporaryFolder folder_;
};

class SampledModes : public Sampled, public testing::WithParamInterface<Mode> {};

TEST_P(SampledModes, CleanRunsRaiseNoAlarmAndEveryOutputIsCounted) {
  const auto path = make_model(folder_, GetParam().type);
  auto o = options(path, "cpu" + GetParam().keys);
  const auto result = bisect(o);
  const PromptVerdict& v = result.prompts.front();
  EXPECT_EQ(v.error, "");
  EXPECT_EQ(result.status, 0) << v.cause;
  EXPECT_TRUE(v.b.sampling.sampled);
  EXPECT_EQ(v.b.failed, 0u);
  EXPECT_EQ(v.b.checksums_failed, 0u);
  EXPECT_LT(v.b.values, v.b.outputs);

  o.examine.whole_multiply_adds = kWholeMultiplyAdds;
  const PromptVerdict whole = bisect(o).prompts.front();
  EXPECT_FALSE(whole.b.sampling.sampled);
  EXPECT_EQ(whole.b.values, whole.b.outputs);
  EXPECT_EQ(whole.b.outputs, v.b.outputs);
  EXPECT_EQ(whole.b.checksums, 0u);
  EXPECT_EQ(whole.b.rows_judged, v.b.rows_judged);
  EXPECT_EQ(whole.b.rows_replayed, v.b.rows_replayed);

  // By the definition: matmul outputs are in groups of 64, one in 16 is judged, of other operators all.
  const auto file = ModelFile::open(path);
  const HParams hp = truth_plan(file).hp;
  uint64_t groups = 0, unseen = 0;
  const Wiring wiring(hp);
  for (const StageRule& rule : wiring.rules()) {
    if (rule.op != Op::matmul) continue;
    const auto plan = truth_plan(file);
    const int64_t layer = rule.stage == Stage::logits ? -1 : 0;
    const auto n = static_cast<uint64_t>(source_of(*planned_tensor(plan, layer, rule.weight)).rows);
    const auto times = static_cast<uint64_t>(layer < 0 ? 1 : hp.layers);
    groups += times * ((n + 63) / 64);
    unseen += times * (n - (n + 15) / 16);
  }
  const auto rows = v.b.fed.size();
  EXPECT_EQ(v.b.checksums, groups * rows);
  EXPECT_EQ(v.b.outputs - v.b.values, unseen * rows);
}

INSTANTIATE_TEST_SUITE_P(Modes, SampledModes, testing::ValuesIn(modes()),
                         [](const auto& info) { return info.param.name; });

TEST_F(Sampled, TheCostDecides) {
  const auto path = make_model(folder_, quant::Type::Q4_1);
  const auto file = ModelFile::open(path);
  auto o = options(path, "cpu");
  o.prompts.push_back({"second", "", test::random_tokens(11, 300, 8)});
  const int64_t rows = kTokens + 11 + 2 * (o.examine.max_tokens - 1);
  o.examine.whole_multiply_adds = multiply_adds(truth_plan(file), rows);
  EXPECT_FALSE(bisect(o).prompts.front().b.sampling.sampled);
  o.examine.whole_multiply_adds = multiply_adds(truth_plan(file), rows) - 1;
  EXPECT_TRUE(bisect(o).prompts.front().b.sampling.sampled);

  // q, k, v, output; gate, up, down; the head.
  const double weights = 2.0 * (256 * (256 + 2 * 128 + 256) + 3 * 256 * 352) + 331 * 256;
  const HParams hp = truth_plan(file).hp;
  ASSERT_EQ(hp.kv_dim(), 128);
  EXPECT_EQ(multiply_adds(truth_plan(file), 1), weights);
}

TEST_F(Sampled, TheSeedRunOfSmolLm2IsJudgedWhole) {
  const auto path = test::smollm2();
  if (!path) GTEST_SKIP() << "run scripts/models.sh smollm2";
  const auto file = ModelFile::open(*path);
  ExamineOptions o;
  o.rows = 1 + 827 + 1653 + 3 * 4;
  EXPECT_FALSE(sampling_of(o, truth_plan(file), 1).sampled);
  o.rows *= 2;
  EXPECT_TRUE(sampling_of(o, truth_plan(file), 1).sampled);
}

TEST_F(Sampled, FaultsOfTheCatalogueAreFoundWhereWholeJudgingFindsThem) {
  const auto path = make_model(folder_, quant::Type::Q4_1);
  for (const std::string fault :
       {"nan@1,20,3", "nan@0,7,4", "tile-swap@1,,2", "quant-nibble@1,,5", "quant-nibble-data@0,,5",
        "wq-transposed@1,,1", "f16-overflow@1,9,6", "lmhead-layout", "one-element@1,13,8"}) {
    auto o = options(path, "cpu,fault=" + fault);
    o.keep_going = true;
    const PromptVerdict some = bisect(o).prompts.front();
    o.examine.whole_multiply_adds = kWholeMultiplyAdds;
    const PromptVerdict whole = bisect(o).prompts.front();
    EXPECT_EQ(whole.error + some.error, "") << fault;
    if (fault.starts_with("one-element")) continue;  // it may be too small: see below
    EXPECT_EQ(some.kind, whole.kind) << fault << ": " << some.cause;
    ASSERT_TRUE(whole.first && some.first) << fault;
    EXPECT_EQ(some.first->place, whole.first->place) << fault;
    EXPECT_EQ(some.first->index, whole.first->index) << fault;
  }
}

TEST_F(Sampled, TheSummarySaysHowFarTheVerdictGoes) {
  const auto path = make_model(folder_, quant::Type::Q4_1);
  auto o = options(path, "cpu");
  o.examine.seed = 9;
  auto result = bisect(o);
  auto prompt = summary_of(result, o, nlohmann::ordered_json::object())["prompts"][0];
  const PromptVerdict& v = result.prompts.front();
  EXPECT_EQ(prompt["counts"]["values"], v.b.values);
  EXPECT_EQ(prompt["counts"]["outputs"], v.b.outputs);
  EXPECT_EQ(prompt["counts"]["checksum_only"], v.b.outputs - v.b.values);
  EXPECT_EQ(prompt["counts"]["checksums"], v.b.checksums);
  EXPECT_EQ(prompt["counts"]["checksums_failed"], 0);
  EXPECT_EQ(prompt["judging"]["matmuls"], "sampled");
  EXPECT_EQ(prompt["judging"]["seed"], 9);
  EXPECT_THAT(prompt["judging"]["coverage"].get<std::string>(),
              HasSubstr(fmt::format("none in {} of {} outputs", v.b.values, v.b.outputs)));
  o.examine.whole_multiply_adds = kWholeMultiplyAdds;
  result = bisect(o);
  prompt = summary_of(result, o, nlohmann::ordered_json::object())["prompts"][0];
  EXPECT_EQ(prompt["judging"]["matmuls"], "whole");
  EXPECT_EQ(prompt["judging"]["seed"], nullptr);
  EXPECT_EQ(prompt["counts"]["checksum_only"], 0);
}

// ---- the judge on rows that a run left, some of them changed

EngineOptions engine_options(const Mode& mode) {
  EngineOptions options;
  options.backend = parse_subject("cpu" + mode.keys, {}).backend;
  options.context = kTokens;
  options.all_logits = true;
  return options;
}

class SampledJudge {
 public:
  SampledJudge(const std::string& path, const Mode& mode)
      : file_(ModelFile::open(path)),
        units_(file_, engine_options(mode), test::random_tokens(kTokens, 300, 5)) {}

  /// Of one stage, row by row.
  std::vector<Judgement> judge(Stage stage) {
    Judge judge(units_.plan(), units_.arithmetic(), {true, kSeed}, 2);
    const auto [unit, first] = units_.find(layer_of(stage), stage, 0);
    std::vector<Judgement> all;
    judge.judge(unit.data, unit.names, unit.history, [&](const Judgement& j) {
      if (j.stage == stage) all.push_back(j);
    });
    return all;
  }
  /// That one output of one row was wrong, and nothing else: false where nothing was.
  bool finds(Stage stage, int64_t row, int64_t index) {
    bool found = false;
    for (const Judgement& j : judge(stage)) {
      EXPECT_EQ(j.outputs, width(stage));
      EXPECT_EQ(j.checksums, (width(stage) + 63) / 64);
      EXPECT_FALSE(j.failed() && j.row != row) << name_of(stage) << " row " << j.row;
      if (j.row != row) continue;
      found = j.failed();
      EXPECT_TRUE(!found || j.index == index) << name_of(stage) << " index " << j.index;
      EXPECT_EQ(j.checksums_failed > 0, j.values == j.outputs) << "a failed row is judged whole";
    }
    return found;
  }
  double get(Stage stage, int64_t row, int64_t index) {
    return units_.row(layer_of(stage), stage, row)[static_cast<size_t>(index)];
  }
  void set(Stage stage, int64_t row, int64_t index, double value) {
    units_.set(layer_of(stage), stage, row, index, value);
  }
  int64_t width(Stage stage) {
    return units_.find(layer_of(stage), stage, 0).first.data.stages.at(stage).width();
  }
  /// The first output from `from` on that the sample has not.
  int64_t unsampled(Stage stage, int64_t from) {
    const uint64_t seed =
        weight_seed(kSeed, units_.unit_of(layer_of(stage), stage), units_.wiring().rule(stage).weight);
    const auto places = sampled_outputs(width(stage), seed);
    while (std::binary_search(places.begin(), places.end(), from)) ++from;
    return from;
  }
  Judged definition(Stage stage, int64_t row) { return units_.definition(layer_of(stage), stage, row); }

 private:
  static constexpr uint64_t kSeed = 3;
  static int layer_of(Stage stage) { return stage == Stage::logits ? kNoLayer : kLayer; }

  ModelFile file_;
  test::RecordedUnits units_;
};

class SampledOutputs : public Sampled, public testing::WithParamInterface<Mode> {};

TEST_P(SampledOutputs, AGrossErrorOutsideTheSampleIsFoundAtItsIndex) {
  SampledJudge judge(make_model(folder_, GetParam().type), GetParam());
  int64_t row = 0;
  for (const Stage stage :
       {Stage::q_pre_rope, Stage::v, Stage::attn_proj, Stage::ffn_up, Stage::mlp_out, Stage::logits}) {
    const int64_t last = judge.width(stage) - 1;
    for (const int64_t from : {int64_t{0}, int64_t{70}, last - 1}) {
      const int64_t index = judge.unsampled(stage, from);
      if (index > last) continue;
      row = (row + 7) % kTokens;
      const double right = judge.get(stage, row, index);
      EXPECT_FALSE(judge.finds(stage, row, index));
      double rms = 0.0;
      for (int64_t i = 0; i <= last; ++i)
        rms += std::pow(judge.get(stage, row, i), 2) / static_cast<double>(last + 1);
      rms = std::sqrt(rms);
      for (const double wrong : {right + rms, right - rms, std::numeric_limits<double>::quiet_NaN(),
                                 std::numeric_limits<double>::infinity(), 1e30}) {
        judge.set(stage, row, index, wrong);
        EXPECT_TRUE(judge.finds(stage, row, index)) << name_of(stage) << " " << index << ": " << wrong;
      }
      judge.set(stage, row, index, right);
    }
  }
}

/// The judge's quick bounds are wide; near them it takes the exact ones, of the stage that lies in the cache
/// too, where the cache's rounding does not hide the difference.
TEST_F(Sampled, TheExactBoundDecides) {
  for (const Mode& mode : {Mode{"Q4_K", quant::Type::Q4_K, ",kv-type=f32"}, Mode{"Q4_K", quant::Type::Q4_K},
                           Mode{"Q8_0", quant::Type::Q8_0, ",kv-type=f32"}}) {
    SampledJudge judge(make_model(folder_, mode.type), mode);
    for (const Stage stage : {Stage::v, Stage::ffn_up}) {
      const int64_t row = 5;
      int64_t index = 0;
      while (judge.unsampled(stage, index) == index) ++index;
      const Judged exact = judge.definition(stage, row);
      const double value = exact.value[static_cast<size_t>(index)],
                   certain = exact.certain[static_cast<size_t>(index)];
      for (const double share : {1.01, -1.01, 0.99, -0.99}) {
        judge.set(stage, row, index, value + share * certain);
        EXPECT_EQ(judge.judge(stage)[static_cast<size_t>(row)].failed(), std::abs(share) > 1.0)
            << mode.name << mode.keys << " " << name_of(stage) << " " << share;
      }
    }
  }
}

TEST_P(SampledOutputs, TwoOutputsExchangedAreFound) {
  SampledJudge judge(make_model(folder_, GetParam().type), GetParam());
  const Stage stage = Stage::ffn_gate;
  int64_t found = 0;
  for (int64_t row = 0; row < kTokens; ++row) {
    const int64_t i = judge.unsampled(stage, row), j = judge.unsampled(stage, i + 1);
    const double x = judge.get(stage, row, i), y = judge.get(stage, row, j);
    judge.set(stage, row, i, y);
    judge.set(stage, row, j, x);
    found += judge.judge(stage)[static_cast<size_t>(row)].failed() ? 1 : 0;
    judge.set(stage, row, i, x);
    judge.set(stage, row, j, y);
  }
  EXPECT_GE(found, kTokens - 2);  // two that are nearly equal need not be
}

/// How many times its own certain bound an error of one unsampled output may be before it is seen.
TEST_P(SampledOutputs, WhatStaysHiddenIsAsSmallAsDocumented) {
  SampledJudge judge(make_model(folder_, GetParam().type), GetParam());
  double most = 0.0;
  for (const Stage stage : {Stage::q_pre_rope, Stage::ffn_up, Stage::mlp_out, Stage::logits})
    for (int64_t row = 3; row < kTokens; row += 18) {
      const int64_t index = judge.unsampled(stage, (row * 29) % (judge.width(stage) - 16));
      const Judged truth = judge.definition(stage, row);
      const auto at = static_cast<size_t>(index);
      const double right = judge.get(stage, row, index);
      double hidden = 1.0, seen = 1e6;
      while (seen > 1.1 * hidden) {
        const double multiple = std::sqrt(hidden * seen);
        judge.set(stage, row, index, truth.value[at] + multiple * truth.certain[at]);
        (judge.finds(stage, row, index) ? seen : hidden) = multiple;
      }
      judge.set(stage, row, index, right);
      most = std::max(most, hidden);
    }
  RecordProperty("largest_hidden", fmt::format("{:.1f}", most));
  EXPECT_LT(most, 60.0);
}

INSTANTIATE_TEST_SUITE_P(Modes, SampledOutputs, testing::ValuesIn(modes()),
                         [](const auto& info) { return info.param.name; });

TEST_F(Sampled, AnOperandThatIsNoNumberMakesEveryOutputNone) {
  const Mode mode{"Q4_1", quant::Type::Q4_1};
  SampledJudge judge(make_model(folder_, mode.type), mode);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const int64_t row = 5;
  judge.set(Stage::ffn_norm, row, 3, nan);
  for (int64_t i = 0; i < judge.width(Stage::ffn_up); ++i) judge.set(Stage::ffn_up, row, i, nan);
  const int64_t index = judge.unsampled(Stage::ffn_up, 90);
  EXPECT_FALSE(judge.finds(Stage::ffn_up, row, index));
  judge.set(Stage::ffn_up, row, index, 0.5);
  EXPECT_TRUE(judge.finds(Stage::ffn_up, row, index));
}

// ---- the checksums themselves

TEST_F(Sampled, ChecksumsAreTheSumsThatTheyShouldBe) {
  ThreadPool pool(2);
  for (const Mode& mode : modes()) {
    const auto file = ModelFile::open(make_model(folder_, mode.type));
    const Plan plan = truth_plan(file);
    const WeightSource source = source_of(*planned_tensor(plan, kLayer, Role::w_up));
    const WeightMode held = parse_subject("cpu" + mode.keys, {}).backend.weights;
    const Checksums sums(source, held, 5, pool);
    ASSERT_EQ(sums.groups(), (source.rows + 63) / 64);
    int64_t outputs = 0, negative = 0;
    const auto k = static_cast<size_t>(source.cols);
    for (int64_t g = 0; g < sums.groups(); ++g) {
      std::vector<double> sum(k, 0.0), size(k, 0.0), squares((k + 31) / 32, 0.0);
      for (int64_t i = sums.first(g); i < sums.end(g); ++i, ++outputs) {
        ASSERT_EQ(i, outputs);
        const double c = sums.coefficient(i);
        EXPECT_TRUE(std::abs(c) >= 1.0 && std::abs(c) < 2.0);
        negative += c < 0 ? 1 : 0;
        const JudgedWeight w = judged_weight(source, i, held);
        for (size_t j = 0; j < k; ++j) {
          sum[j] += c * w.value[j];
          size[j] += std::abs(c * w.value[j]);
          squares[j / 32] += c * c * w.magnitude[j] * w.magnitude[j];
        }
      }
      std::vector<float> got(k), norms(squares.size());
      sums.sums().read_back(g, 1, got.data());
      sums.norms().read_back(g, 1, norms.data());
      for (size_t j = 0; j < k; ++j)
        EXPECT_NEAR(double{got[j]}, sum[j], 0x1p-24 * std::abs(sum[j]) + 1e-14 * size[j]);
      for (size_t b = 0; b < squares.size(); ++b) {
        EXPECT_GE(double{norms[b]}, std::sqrt(squares[b]));
        EXPECT_LE(double{norms[b]}, std::sqrt(squares[b]) * (1 + 0x1p-22));
      }
    }
    EXPECT_EQ(outputs, source.rows);
    EXPECT_GT(negative, source.rows / 3);
    EXPECT_LT(negative, source.rows * 2 / 3);
  }
}

TEST(SampledPlaces, OneInEverySixteenDrawnFromTheSeed) {
  for (const int64_t outputs : {1, 15, 16, 17, 331}) {
    const auto places = sampled_outputs(outputs, 4);
    ASSERT_EQ(static_cast<int64_t>(places.size()), (outputs + 15) / 16);
    for (size_t g = 0; g < places.size(); ++g) {
      EXPECT_EQ(places[g] / 16, static_cast<int64_t>(g));
      EXPECT_LT(places[g], outputs);
    }
    EXPECT_EQ(places, sampled_outputs(outputs, 4));
  }
  EXPECT_NE(sampled_outputs(331, 4), sampled_outputs(331, 5));
  std::set<int64_t> inside;
  for (uint64_t seed = 0; seed < 200; ++seed)
    inside.insert(sampled_outputs(64, weight_seed(seed, 1, Role::wq))[2] % 16);
  EXPECT_EQ(inside.size(), 16u) << "every output can be drawn";
  EXPECT_NE(weight_seed(1, 1, Role::wq), weight_seed(1, 2, Role::wq));
  EXPECT_NE(weight_seed(1, 1, Role::wq), weight_seed(1, 1, Role::wk));
  EXPECT_NE(weight_seed(1, 1, Role::wq), weight_seed(2, 1, Role::wq));
}

}  // namespace
}  // namespace greta
