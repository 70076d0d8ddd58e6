// greta bisect from end to end: clean pairs stay clean, vacuous ones are refused, planted faults are named.
#include "bisect/bisect.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "bisect/file_faults.h"
#include "bisect/selftest.h"
#include "bisect/summary.h"
#include "bisect/texts.h"
#include "bisect_fixture.h"
#include "refusal.h"
#include "support.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

using testing::HasSubstr;

class Bisect : public test::BisectTest {};

TEST_F(Bisect, PairsThatPeopleNeedAreClean) {
  const auto path = model();
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"reference", "cpu"},
      {"reference", "cpu,activations=8"},
      {"cpu,phase=prefill", "cpu,phase=decode"},
      {"cpu", "cpu,chunk=7,threads=1"},
      {"cpu", "cpu,batch=3"},
      {"cpu", "cpu,isa=portable"},
      {"reference", "cpu,weights=int8"},
      {"reference", "cpu,kv-type=bf16"},
      {"reference", "cpu,weights=f32,kv-type=f32"}};
  for (const auto& [a, b] : pairs) {
    auto o = options(path, a, b);
    o.allow_rounding = true;
    const auto result = run(o);
    const PromptVerdict& v = result.prompts.front();
    EXPECT_EQ(v.error, "") << a << " " << b;
    EXPECT_TRUE(v.kind == FaultKind::none || v.kind == FaultKind::rounding)
        << a << " " << b << ": " << v.cause;
    EXPECT_EQ(v.b.failed, 0u);
    EXPECT_GT(v.b.calls_replayed, 0u);
    // Every stage of every row: 90 prompt tokens and 3 that were fed back, at the least.
    EXPECT_GE(v.b.rows_judged, 93u * (3u + 3u * 15u));
    EXPECT_GT(v.rows_common, 0u);
    EXPECT_EQ(v.rows_compared > 0, a != "reference") << a << " " << b;
    EXPECT_EQ(result.status, 0);
  }
}

TEST_F(Bisect, OnePercentOfOneRowIsFoundInEveryType) {
  for (const auto& t : quant::all_types()) {
    auto o = options(model(t.type), "reference", "cpu,fault=row-gain@1,,3", 40);
    const auto result = run(o);
    const PromptVerdict& v = result.prompts.front();
    EXPECT_EQ(v.kind, FaultKind::operator_) << t.name << " " << v.error;
    ASSERT_TRUE(v.first) << t.name;
    EXPECT_EQ(v.first->place.layer, 1) << t.name;
    EXPECT_EQ(result.status, 1);
  }
}

TEST_F(Bisect, VacuousComparisonsAreRefused) {
  const auto path = model();
  const auto refused = [&](BisectOptions o) -> std::string {
    try {
      const auto result = bisect(o);
      EXPECT_EQ(result.status, 2);
      return result.prompts.front().error;
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_THAT(refused(options(path, "cpu", "cpu")), HasSubstr("--repeat-run"));
  EXPECT_THAT(refused(options(path, "cpu", "cpu,chunk=40")), HasSubstr("same route"));
  auto empty = options(path, "reference", "cpu");
  empty.prompts = {{"empty", "", {}}};
  EXPECT_THAT(refused(empty), HasSubstr("empty"));
  auto past = options(path, "reference", "cpu");
  past.examine.layers = {3};
  EXPECT_THAT(refused(past), HasSubstr("past the last layer, 2"));
  auto longer = options(path, "reference", "cpu", 254);
  EXPECT_THAT(refused(longer), HasSubstr("the context holds 256"));
  EXPECT_THROW(options(path, "reference", "gpu"), Error);
  EXPECT_THROW(options(path, "reference", "cpu,speed=9"), Error);
  EXPECT_THROW(options(path, "reference,weights=int8", "cpu"), Error);
  EXPECT_THAT(test::refusal([&] { options(path, "reference", "cpu,chunk=7,chunk=8"); }),
              HasSubstr("expected each key once, got chunk again with 'chunk=8'"));
  EXPECT_THROW(options(path, "reference", "cpu,fault=no-such-fault"), Error);
  // With --repeat-run the same route is what is asked for.
  auto again = options(path, "cpu", "cpu");
  again.repeat_run = true;
  EXPECT_EQ(run(again).status, 0);
}

TEST_F(Bisect, AFaultThatNeverFiredIsNoCleanRun) {
  // In a batch no call has one row, which is where this fault spoils.
  const auto path = model();
  const auto batched = bisect(options(path, "reference", "cpu,batch=2,fault=seq-len"));
  EXPECT_EQ(batched.status, 2);
  EXPECT_THAT(batched.prompts.front().error,
              HasSubstr("the planted fault seq-len changed no bit of this run of side b"));
  // It fires in the first prompt and cannot in the second, which is too short.
  auto o = options(path, "reference", "cpu,fault=one-element@1,20", 30);
  o.prompts.push_back({"short", "", test::random_tokens(5, 300, 3)});
  const auto result = bisect(o);
  EXPECT_EQ(result.prompts[0].kind, FaultKind::operator_) << result.prompts[0].error;
  EXPECT_THAT(result.prompts[1].error, HasSubstr("the planted fault one-element changed no bit"));
}

TEST_F(Bisect, AFailureOfOnePromptLeavesTheOthers) {
  auto o = options(model(), "reference", "cpu", 20);
  o.prompts.push_back({"too-long", "", test::random_tokens(300, 300, 1)});
  o.prompts.push_back({"last", "", test::random_tokens(9, 300, 2)});
  const auto result = run(o);
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.prompts[0].error, "");
  EXPECT_THAT(result.prompts[1].error, HasSubstr("300 tokens"));
  EXPECT_EQ(result.prompts[2].error, "");
  EXPECT_GT(result.prompts[2].b.rows_judged, 0u);
}

TEST_F(Bisect, TheBudgetHoldsAndChangesNothing) {
  const auto path = model();
  auto o = options(path, "reference", "cpu,fault=one-element@2,50,9", 200);
  const auto wide = run(o).prompts.front();
  o.examine.trace_budget = size_t{3} << 20;
  const auto narrow = run(o).prompts.front();
  EXPECT_GT(wide.b.most_bytes, size_t{3} << 20);
  EXPECT_LE(narrow.b.most_bytes, size_t{3} << 20);
  EXPECT_EQ(narrow.kind, wide.kind);
  EXPECT_EQ(narrow.first->place, wide.first->place);
  EXPECT_EQ(narrow.b.rows_judged, wide.b.rows_judged);
  EXPECT_EQ(narrow.b.traced_hash, wide.b.traced_hash);
}

TEST_F(Bisect, TwoFilesThatDifferInOneBlock) {
  const auto path = model();
  const auto other = folder_ / "other.gguf";
  change_block_in_file(path, other, "blk.1.ffn_up.weight", 33);
  auto o = options(path, "cpu", "cpu,file=" + other);
  const auto stopped = bisect(o);
  EXPECT_EQ(stopped.prompts.front().kind, FaultKind::input);
  EXPECT_THAT(stopped.prompts.front().cause, HasSubstr("blk.1.ffn_up.weight"));
  EXPECT_EQ(stopped.prompts.front().b.rows_judged, 0u) << "the search was to stop at the input";
  o.keep_going = true;
  const auto went_on = bisect(o).prompts.front();
  EXPECT_EQ(went_on.kind, FaultKind::input);
  ASSERT_TRUE(went_on.first);
  EXPECT_EQ(went_on.first->place.layer, 1);
  EXPECT_EQ(went_on.first->place.stage, Stage::ffn_up);
}

TEST_F(Bisect, RoundingIsToldFromAFault) {
  const auto path = model();
  auto o = options(path, "cpu", "cpu,activations=8", 12);
  o.examine.max_tokens = 120;
  const auto v = run(o).prompts.front();
  ASSERT_EQ(v.kind, FaultKind::rounding)
      << "the tokens of this model must part within 120 steps; take another prompt";
  ASSERT_TRUE(v.rounding);
  EXPECT_NE(v.rounding->a, v.rounding->b);
  EXPECT_EQ(v.side, 'b') << "side a has FP64's token of this prompt; take another";
  EXPECT_GT(v.rounding->true_gap, 0.0);
  EXPECT_LE(v.rounding->true_gap + *v.rounding->difference, 0.0);
  // The contributions, each put in alone, come near the whole difference.
  double sum = 0.0;
  for (const auto& c : v.rounding->contributors) sum += c.shift;
  EXPECT_NEAR(sum, *v.rounding->difference, 0.35 * std::abs(*v.rounding->difference) + 1e-3);
  auto turned = options(path, "cpu,activations=8", "cpu", 12);
  turned.examine.max_tokens = 120;
  const auto w = run(turned).prompts.front();
  ASSERT_EQ(w.kind, FaultKind::rounding) << w.error;
  EXPECT_EQ(w.side, 'a');
  EXPECT_EQ(w.rounding->true_gap, -v.rounding->true_gap);
  EXPECT_EQ(*w.rounding->difference, -*v.rounding->difference);
  EXPECT_THAT(w.cause, HasSubstr(fmt::format("FP64 has token {} ahead by {:.9g}, side a's rounding",
                                             w.rounding->b, v.rounding->true_gap)));
  o.b = parse_subject("cpu,activations=8,fault=row-gain@1,,3", {});
  const auto fault = run(o).prompts.front();
  EXPECT_EQ(fault.kind, FaultKind::operator_);
}

// ---- recorded traces

struct Changed {
  std::string tensor;
  int64_t row;
  int64_t column;
};

/// A copy of a trace with one value moved.
void change_trace(const std::string& from, const std::string& to, const Changed& at, double factor) {
  const SafeTensorsFile file(from);
  std::vector<SafeTensor> tensors;
  std::vector<std::vector<std::byte>> kept;
  for (const auto& [name, t] : file.tensors()) {
    kept.emplace_back(t.bytes.begin(), t.bytes.end());
    tensors.push_back(t);
    if (name == at.tensor) {
      const auto index = static_cast<size_t>(at.row * t.shape[1] + at.column);
      double value;
      std::memcpy(&value, kept.back().data() + index * 8, 8);
      value = value * factor + (factor - 1);
      std::memcpy(kept.back().data() + index * 8, &value, 8);
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].bytes = kept[i];
  write_safetensors(to, tensors, file.metadata());
}

TEST_F(Bisect, ATraceFromTransformersIsCleanAndOneChangedValueIsItsPlace) {
  const auto path = test::golden("models/bf16.gguf");
  const auto trace = test::golden("traces/bf16_float64.safetensors");
  for (const std::string name : {"bf16_float64", "bf16_float32"}) {
    const auto clean = run(options(path, name == "bf16_float64" ? "reference" : "cpu",
                                   "trace=" + test::golden("traces/" + name + ".safetensors"), 0));
    EXPECT_EQ(clean.status, 0) << name << clean.prompts.front().cause << clean.prompts.front().error;
    EXPECT_EQ(clean.prompts.front().kind, FaultKind::none);
    EXPECT_GT(clean.prompts.front().b.rows_judged, 100u);
  }
  const SafeTensorsFile file(trace);
  std::mt19937 random(5);
  int planted = 0;
  while (planted < 40) {
    auto it = file.tensors().begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random() % file.tensors().size()));
    const SafeTensor& t = it->second;
    if (t.shape.size() != 2) continue;
    const Changed at{t.name, static_cast<int64_t>(random() % static_cast<uint64_t>(t.shape[0])),
                     static_cast<int64_t>(random() % static_cast<uint64_t>(t.shape[1]))};
    const auto changed = folder_ / "changed.safetensors";
    change_trace(trace, changed, at, 1.001);
    const auto v = run(options(path, "reference", "trace=" + changed, 0)).prompts.front();
    ASSERT_TRUE(v.first) << at.tensor << " row " << at.row << " column " << at.column << ": " << v.cause
                         << v.error;
    EXPECT_EQ(trace_name(v.first->place.layer, v.first->place.stage), at.tensor);
    EXPECT_EQ(v.first->place.token, file.numbers("positions")[static_cast<size_t>(at.row)]);
    EXPECT_EQ(v.first->index, at.column);
    ++planted;
  }
}

TEST_F(Bisect, ATraceOfOtherTokensOrAnotherModelIsRefused) {
  const auto trace = "trace=" + test::golden("traces/bf16_float64.safetensors");
  EXPECT_THROW(bisect(options(model(), "reference", trace, 0)), Error);
  auto o = options(test::golden("models/bf16.gguf"), "reference", trace, 0);
  o.prompts = {{"other", "", {5, 6, 7}}};
  const auto result = bisect(o);
  EXPECT_EQ(result.status, 2);
  EXPECT_THAT(result.prompts.front().error, HasSubstr("other tokens"));
}

TEST_F(Bisect, ATraceSaysHowItsDeviceRounds) {
  const auto path = model();
  const auto trace = folder_ / "cpu.safetensors";
  const auto ids = test::random_tokens(20, 300, 7);
  const auto record = [&](const std::string& device, const std::string& arithmetic) {
    const auto file = ModelFile::open(path);
    EngineOptions options;
    options.backend.weights = WeightMode::int8;
    options.context = 20;
    options.all_logits = true;
    Engine engine(file, options);
    TraceRecorder recorder({});
    engine.feed_all(0, ids, Feed::Logits::all, &recorder);
    std::map<std::string, std::string> metadata = {{"model_sha256", file.file.sha256()}, {"device", device}};
    if (!arithmetic.empty()) metadata["arithmetic"] = arithmetic;
    recorder.write(trace, {ids}, false, metadata);
    auto o = this->options(path, "reference", "trace=" + trace, 0);
    o.examine.layers = {};
    return bisect(o).prompts.front();
  };
  BackendOptions int8;
  int8.weights = WeightMode::int8;
  EXPECT_EQ(arithmetic_text("cpu", int8), "cpu,weights=int8,activations=16,kv-type=f16");
  EXPECT_EQ(arithmetic_text("reference", {}), "float64");
  const PromptVerdict right = record("cpu", arithmetic_text("cpu", int8));
  EXPECT_EQ(right.error, "");
  EXPECT_EQ(right.b.failed, 0u) << right.cause;
  EXPECT_GT(right.b.rows_judged, 20u * 40u);
  EXPECT_GT(record("cpu", arithmetic_text("cpu", {})).b.failed, 0u)
      << "int8 judged as the file's own weights";
  for (const std::string arithmetic : {"", "bfloat16"}) {
    try {
      record("cpu", arithmetic);
      FAIL() << "'" << arithmetic << "' was taken";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("does not say how its device 'cpu' rounds"));
      EXPECT_THAT(error.what(), HasSubstr("record it again"));
    }
  }
  EXPECT_THROW(record("cpu", "cpu,weights=int4"), Error);
  EXPECT_GT(record("transformers", "").b.failed, 0u) << "float32 by its stages, of int8 weights";
}

// ---- the self-test

TEST_F(Bisect, SelfTestOnTwoTinyShapes) {
  for (const bool bias : {true, false}) {
    SelfTestOptions o;
    o.model = bias ? model(quant::Type::Q4_1, true) : model(quant::Type::Q6_K);
    o.subject.text = "cpu";
    o.plantings = bias ? 50 : 49;
    o.clean = 50;
    o.seed = 11;
    const SelfTestResult result = self_test(o);
    EXPECT_EQ(result.detected(), result.plantings.size()) << self_test_text(result);
    EXPECT_GE(result.exact() * 100, result.plantings.size() * 95) << self_test_text(result);
    EXPECT_EQ(result.clean, 50u);
    EXPECT_TRUE(result.false_alarms.empty()) << self_test_text(result);
    EXPECT_LE(result.not_planted.size(), 15u) << self_test_text(result);  // 9 of them of other architectures
  }
}

/// Every operator of every architecture inside its bound, on the models that transformers has judged: prompts
/// past their windows, in calls and token by token.
TEST_F(Bisect, EveryArchitectureIsClean) {
  std::set<std::string> architectures;
  std::ifstream in(test::golden("models/manifest.json"));
  for (const auto& entry : nlohmann::json::parse(in)) {
    if (entry.at("name") == "phi3_short") continue;  // the file of phi3_long
    SCOPED_TRACE(entry.at("name").get<std::string>());
    architectures.insert(entry.at("architecture"));
    const std::string path = test::golden("models/" + entry.at("gguf").get<std::string>());
    const auto file = ModelFile::open(path);
    auto o = options(path, "reference", "cpu", 0);
    const auto vocab = file.tokenizer->vocab_size();
    const int64_t context = truth_plan(file).hp.context;
    o.prompts = {
        {"test", "", test::random_tokens(static_cast<size_t>(std::min<int64_t>(56, context - 4)), vocab, 7)}};
    o.examine.chunk = 23;
    const auto result = run(o);
    const PromptVerdict& v = result.prompts.front();
    EXPECT_EQ(v.kind, FaultKind::none) << v.cause;
    EXPECT_EQ(v.b.failed, 0u);
    EXPECT_EQ(v.b.values, v.b.outputs);
    EXPECT_GT(v.b.calls_replayed, 0u);
  }
  EXPECT_EQ(architectures.size(), 8u);
}

/// What other architectures add, with the faults that only they can have.
TEST_F(Bisect, SelfTestOfExpertsWindowsAndCaps) {
  for (const char* arch : {"qwen3moe", "gemma2", "gemma3"}) {
    const test::TemporaryFolder folder;
    SynthOptions synth;
    synth.arch = arch;
    synth.dim = 64;
    synth.layers = 3;
    synth.ffn_dim = 64;
    synth.kv_heads = 2;
    synth.head_dim = 16;
    synth.vocab = 300;
    synth.context = 256;
    synth.type = quant::Type::Q8_0;
    if (synth.arch.starts_with("gemma")) synth.window = 24;
    synthesise(synth, folder / "m.gguf", 2);
    SelfTestOptions o;
    o.model = folder / "m.gguf";
    o.subject.text = "cpu";
    o.plantings = 60;
    o.clean = 10;
    o.seed = 5;
    const SelfTestResult result = self_test(o);
    EXPECT_EQ(result.detected(), result.plantings.size()) << self_test_text(result);
    EXPECT_GE(result.exact() * 100, result.plantings.size() * 95) << self_test_text(result);
    EXPECT_TRUE(result.false_alarms.empty()) << self_test_text(result);
    const auto planted = [&](std::string_view id) {
      return std::any_of(result.plantings.begin(), result.plantings.end(),
                         [&](const auto& p) { return p.id == id; });
    };
    const bool mixture = std::string_view(arch) == "qwen3moe";
    for (const char* id : {"expert-extra", "expert-unnormalised", "experts-exchanged", "router-precision"})
      EXPECT_EQ(planted(id), mixture) << arch << ' ' << id;
    for (const char* id : {"window-short", "post-norm-skip", "embed-scale"})
      EXPECT_EQ(planted(id), !mixture) << arch << ' ' << id;
    EXPECT_EQ(planted("softcap-dropped"), std::string_view(arch) == "gemma2");
    EXPECT_EQ(planted("rope-exchange"), std::string_view(arch) == "gemma3");
    EXPECT_EQ(planted("head-norm-late"), std::string_view(arch) != "gemma2");
  }
}

// ---- the summary

TEST_F(Bisect, SummaryHoldsWhatTheVerdictSays) {
  auto o = options(model(), "reference", "cpu,fault=gqa-group@2,,4");
  o.examine.layers = {0, 2};
  const auto result = run(o);
  const auto json = summary_of(result, o, nlohmann::ordered_json::object());
  EXPECT_EQ(json["schema"], "greta-bisect-1");
  EXPECT_EQ(json["status"], 1);
  const auto& p = json["prompts"][0];
  EXPECT_EQ(p["kind"], "OPERATOR");
  EXPECT_EQ(p["class"], "ATTENTION_MECHANISM");
  EXPECT_EQ(p["first"]["stage"], "attn_out");
  EXPECT_EQ(p["first"]["layer"], 2);
  EXPECT_THAT(p["first_fail"].get<std::string>(), testing::StartsWith("FIRST_FAIL "));
  EXPECT_THAT(p["cause"].get<std::string>(), testing::StartsWith("CAUSE "));
  EXPECT_EQ(p["heat"]["ratio"].size(), 5u);
  EXPECT_EQ(p["heat"]["ratio"][0].size(), 93u);
  EXPECT_EQ(p["drift"]["layers"], (std::vector<int>{0, 2}));
  EXPECT_EQ(p["logits"].size() >= 1, true);
  EXPECT_GT(p["counts"]["rows_judged"].get<int>(), 0);
  EXPECT_EQ(p["counts"]["tokens"], 93);
  EXPECT_EQ(p["counts"]["layers"], 3);
  const auto trace = folder_ / "t.safetensors";
  ASSERT_TRUE(write_result_trace(trace, result, o));
  EXPECT_NE(SafeTensorsFile(trace).find("layers.2.residual_post_mlp"), nullptr);
}

}  // namespace
}  // namespace greta
