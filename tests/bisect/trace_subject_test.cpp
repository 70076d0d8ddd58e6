// Recorded traces as subjects: what is no trace is refused before it is read, and a verdict says no more than
// a recording can tell.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "bisect/report.h"
#include "bisect/summary.h"
#include "bisect_fixture.h"
#include "refusal.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::ordered_json;

/// A trace in memory, to change and write again.
struct EditedTrace {
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;

  explicit EditedTrace(const std::string& path) {
    const SafeTensorsFile file(path);
    metadata = file.metadata();
    for (const auto& [name, t] : file.tensors())
      tensors[name] = {t.dtype, t.shape, {t.bytes.begin(), t.bytes.end()}};
  }
  void save(const std::string& path) const {
    std::vector<SafeTensor> list;
    for (const auto& [name, t] : tensors) list.push_back({name, t.dtype, t.shape, t.bytes});
    write_safetensors(path, list, metadata);
  }
  void integers(const std::string& name, const std::vector<int32_t>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    tensors[name] = {"I32", {static_cast<int64_t>(values.size())}, {bytes.begin(), bytes.end()}};
  }
  void set(const std::string& name, int64_t row, int64_t column, double value) {
    Tensor& t = tensors.at(name);
    std::memcpy(t.bytes.data() + (row * t.shape[1] + column) * 8, &value, 8);
  }
  double get(const std::string& name, int64_t row, int64_t column) const {
    const Tensor& t = tensors.at(name);
    double value;
    std::memcpy(&value, t.bytes.data() + (row * t.shape[1] + column) * 8, 8);
    return value;
  }
  /// The same run again as sequence 1.
  void repeat() {
    for (auto& [name, t] : tensors) {
      if (t.shape.size() != 2) continue;
      const std::vector<std::byte> once = t.bytes;
      t.bytes.insert(t.bytes.end(), once.begin(), once.end());
      t.shape[0] *= 2;
    }
    const auto doubled = [&](const std::string& name, int32_t more) {
      std::vector<int32_t> values(tensors.at(name).bytes.size() / 4);
      std::memcpy(values.data(), tensors.at(name).bytes.data(), values.size() * 4);
      const auto count = static_cast<std::ptrdiff_t>(values.size());
      for (std::ptrdiff_t i = 0; i < count; ++i) values.push_back(values[static_cast<size_t>(i)] + more);
      integers(name, values);
      return static_cast<int32_t>(count);
    };
    const int32_t tokens = doubled("token_ids", 0);
    doubled("positions", 0);
    doubled("sequence", 1);
    integers("sequence_offsets", {0, tokens, 2 * tokens});
    const std::string ids = metadata.at("generated_ids");
    metadata["generated_ids"] = "[" + ids + ", " + ids + "]";
  }
  /// Only these rows of every stage.
  void keep_rows(const std::vector<int32_t>& rows) {
    for (auto& [name, t] : tensors) {
      if (t.shape.size() != 2) continue;
      const auto width = static_cast<std::ptrdiff_t>(t.shape[1] * (t.dtype == "F64" ? 8 : 4));
      std::vector<std::byte> kept;
      for (const int32_t r : rows)
        kept.insert(kept.end(), t.bytes.begin() + r * width, t.bytes.begin() + (r + 1) * width);
      t = {t.dtype, {static_cast<int64_t>(rows.size()), t.shape[1]}, kept};
    }
    integers("sequence", std::vector<int32_t>(rows.size(), 0));
    integers("positions", rows);
  }
};

/// Of 12 positions, 7 of them the prompt's; 2 layers, dim 32, 260 tokens.
class TraceSubject : public test::BisectTest {
 protected:
  const std::string path_ = test::golden("models/bf16.gguf");
  EditedTrace whole() const { return EditedTrace(test::golden("traces/bf16_float64.safetensors")); }
  BisectOptions against(const EditedTrace& trace, const std::string& a = "reference") {
    trace.save(folder_ / "edited.safetensors");
    auto o = options(path_, a, "trace=" + (folder_ / "edited.safetensors"), 0);
    o.examine.layers = {};
    return o;
  }
};

TEST_F(TraceSubject, WhatIsNoTraceIsRefusedBeforeItIsRead) {
  struct Case {
    std::string name;
    std::function<void(EditedTrace&)> change;
    std::vector<std::string> said;
  };
  const std::string stage = "layers.0.attn_norm";
  const std::vector<Case> cases = {
      {"one dimension",
       [&](EditedTrace& t) { t.tensors[stage].shape = {12 * 32}; },
       {stage, "[12, 32]", "F64 [384]"}},
      {"another width",
       [&](EditedTrace& t) {
         t.tensors[stage].shape = {24, 16};
       },
       {stage, "[12, 32]", "F64 [24, 16]"}},
      {"fewer rows",
       [&](EditedTrace& t) {
         t.tensors[stage].shape = {2, 32};
         t.tensors[stage].bytes.resize(2 * 32 * 8);
       },
       {stage, "F64 [2, 32]"}},
      {"halves",
       [&](EditedTrace& t) {
         t.tensors[stage].dtype = "BF16";
         t.tensors[stage].bytes.resize(12 * 32 * 2);
       },
       {stage, "expected F32 or F64", "BF16"}},
      {"another stage",
       [&](EditedTrace& t) { t.tensors["layers.7.attn_norm"] = t.tensors[stage]; },
       {"layers.7.attn_norm", "2 layers"}},
      {"wild offsets",
       [](EditedTrace& t) {
         t.integers("sequence_offsets", {0, 1000000, 1000000, 12});
       },
       {"sequence_offsets", "0 to 12", "1000000"}},
      {"offsets backwards",
       [](EditedTrace& t) {
         t.integers("sequence_offsets", {0, 7, 3, 12});
       },
       {"sequence_offsets"}},
      {"negative offset",
       [](EditedTrace& t) {
         t.integers("sequence_offsets", {0, -4, 12});
       },
       {"sequence_offsets", "-4"}},
      {"floats for ids",
       [](EditedTrace& t) { t.tensors["token_ids"].dtype = "F32"; },
       {"token_ids", "F32 [12]"}},
      {"a token that is none",
       [](EditedTrace& t) {
         t.integers("token_ids", {1, 75, 108, 35, 100, 111, 260, 257, 257, 81, 81, 52});
       },
       {"token_ids", "0 to 259", "260"}},
      {"no positions", [](EditedTrace& t) { t.tensors.erase("positions"); }, {"positions", "none"}},
      {"fewer positions",
       [](EditedTrace& t) {
         t.integers("positions", {0, 1, 2});
       },
       {"positions", "12 and 3"}},
      {"a position past the end",
       [](EditedTrace& t) {
         t.integers("positions", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12});
       },
       {"position 12"}},
      {"a position twice",
       [](EditedTrace& t) {
         t.integers("positions", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10});
       },
       {"sorted"}},
      {"another sequence",
       [](EditedTrace& t) {
         t.integers("sequence", {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
       },
       {"sequence 1"}},
      {"a generated token that is none",
       [](EditedTrace& t) { t.metadata["generated_ids"] = "[[99999999]]"; },
       {"generated_ids", "0 to 259", "99999999"}},
      {"a text for a token",
       [](EditedTrace& t) { t.metadata["generated_ids"] = "[\"x\"]"; },
       {"generated_ids", "\"x\""}},
      {"a negative one", [](EditedTrace& t) { t.metadata["generated_ids"] = "[-1]"; }, {"-1"}},
      {"half a list", [](EditedTrace& t) { t.metadata["generated_ids"] = "[[1], 2]"; }, {"generated_ids"}},
      {"lists of two", [](EditedTrace& t) { t.metadata["generated_ids"] = "[[1], [2]]"; }, {"1 sequences"}},
      {"tokens that were not fed",
       [](EditedTrace& t) { t.metadata["generated_ids"] = "[257, 257, 80, 81, 52, 81]"; },
       {"fed back"}},
      {"no stage",
       [](EditedTrace& t) {
         std::erase_if(t.tensors, [](const auto& x) { return x.second.shape.size() == 2; });
       },
       {"no stage"}}};
  for (const Case& c : cases) {
    EditedTrace trace = whole();
    c.change(trace);
    const std::string said = test::refusal([&] { bisect(against(trace)); });
    EXPECT_THAT(said, HasSubstr("edited.safetensors")) << c.name << ": " << said;
    for (const std::string& part : c.said) EXPECT_THAT(said, HasSubstr(part)) << c.name;
  }
}

TEST_F(TraceSubject, AGeneratedTokenIsTheOneThatItsLogitsChoose) {
  EditedTrace trace = whole();
  trace.metadata["generated_ids"] = "[257, 257, 81, 81, 52, 82]";
  const auto result = bisect(against(trace));
  EXPECT_EQ(result.status, 2);
  EXPECT_THAT(result.prompts.front().error, HasSubstr("generated_ids has 82 after position 11"));
  // A wrong value that moves the choice is the verdict itself.
  EditedTrace moved = whole();
  moved.set("logits", 11, 82, 1e6);
  const auto v = bisect(against(moved)).prompts.front();
  EXPECT_EQ(v.kind, FaultKind::operator_) << v.error;
  EXPECT_EQ(v.first->place.stage, Stage::logits);
}

TEST_F(TraceSubject, AnotherTokenWithoutItsLogitsIsNotCalledRounding) {
  EditedTrace trace = whole();
  trace.metadata["generated_ids"] = "[257, 257, 81, 81, 52, 82]";
  trace.tensors.erase("logits");
  const auto v = bisect(against(trace)).prompts.front();
  EXPECT_THAT(v.error, HasSubstr("no row of logits of position 11"));
}

TEST_F(TraceSubject, AVerdictSaysWhatARecordingCanTell) {
  EditedTrace trace = whole();
  trace.set("layers.1.attn_norm", 3, 5, trace.get("layers.1.attn_norm", 3, 5) + 1.0);
  const auto wrong = bisect(against(trace)).prompts.front();
  EXPECT_EQ(wrong.kind, FaultKind::operator_);
  EXPECT_THAT(wrong.cause, HasSubstr("a trace cannot be repeated"));
  EXPECT_THAT(wrong.cause, Not(HasSubstr("gives the same bits")));

  EditedTrace wired = whole();
  wired.set("layers.1.residual_pre_attn", 3, 5, 7.0);
  const auto wire = bisect(against(wired)).prompts.front();
  EXPECT_EQ(wire.kind, FaultKind::wire) << wire.cause;
  EXPECT_EQ(wire.first->place, (Place{0, 3, 1, Stage::residual_pre_attn}));
  EXPECT_THAT(wire.cause, HasSubstr("element 5 is 7"));

  EditedTrace nan = whole();
  for (int64_t i = 0; i < 32; ++i) nan.set("embed_out", 2, i, std::numeric_limits<double>::quiet_NaN());
  const auto bad = bisect(against(nan)).prompts.front();
  EXPECT_EQ(bad.kind, FaultKind::operator_) << "the file's embedding is finite";
  EXPECT_EQ(bad.first->place, (Place{0, 2, kNoLayer, Stage::embed_out}));
  nan.tensors.erase("embed_out");
  for (int64_t i = 0; i < 32; ++i)
    nan.set("layers.0.residual_pre_attn", 2, i, std::numeric_limits<double>::quiet_NaN());
  nan.tensors.erase("layers.0.attn_norm");
  nan.tensors.erase("layers.0.residual_post_attn");
  const auto o = against(nan);
  const auto result = bisect(o);
  const PromptVerdict& unjudged = result.prompts.front();
  EXPECT_EQ(result.status, 2) << "a NaN that an operator may have made is not the file's";
  EXPECT_THAT(unjudged.error, HasSubstr("nobody has judged it: whether the file or an operator brought it"));
  const Json json = summary_of(result, o, Json::object());
  const Json& p = json["prompts"][0];
  EXPECT_TRUE(p["kind"].is_null());
  EXPECT_EQ(p["first"]["stage"], "residual_pre_attn");
  EXPECT_EQ(p["first"]["token"], 2);
  EXPECT_EQ(p["nonfinite"]["stage"], "residual_pre_attn");
  // What is wrong by its own inputs stays wrong.
  nan.set("layers.1.attn_norm", 3, 5, nan.get("layers.1.attn_norm", 3, 5) + 1.0);
  EXPECT_EQ(bisect(against(nan)).prompts.front().kind, FaultKind::operator_);
}

TEST_F(TraceSubject, WhatATraceLacksIsNotAcquitted) {
  struct Case {
    std::string name;
    std::function<void(EditedTrace&)> change;
    std::string lacks;
  };
  const std::vector<Case> cases = {
      {"a stage of a layer", [](EditedTrace& t) { t.tensors.erase("layers.1.attn_out"); },
       "made from): attn_out, attn_proj of layer 1;"},
      {"the hidden states alone",
       [](EditedTrace& t) {
         std::erase_if(t.tensors, [](const auto& x) {
           return x.second.shape.size() == 2 && x.first.starts_with("layers.") &&
                  x.first.find("residual_post_mlp") == std::string::npos;
         });
       },
       "residual_post_mlp of every layer;"},
      {"the head", [](EditedTrace& t) { t.tensors.erase("logits"); }, "made from): logits;"},
      {"positions",
       [](EditedTrace& t) {
         t.keep_rows({0, 1, 2, 5});
       },
       "every stage of positions 3-4, 6-11; attn_out of every layer;"}};
  for (const Case& c : cases) {
    EditedTrace trace = whole();
    c.change(trace);
    const auto o = against(trace);
    const auto result = bisect(o);
    const PromptVerdict& v = result.prompts.front();
    EXPECT_EQ(result.status, 2) << c.name;
    EXPECT_THAT(v.error, HasSubstr("whether the rest is sound cannot be told")) << c.name;
    EXPECT_THAT(v.error, HasSubstr(c.lacks)) << c.name;
    EXPECT_THAT(v.error, HasSubstr(fmt::format("{} of {} rows", v.b.rows_judged, v.b.rows_expected)));
    const Json json = summary_of(result, o, Json::object());
    EXPECT_TRUE(json["kind"].is_null()) << c.name;
    EXPECT_TRUE(json["prompts"][0]["kind"].is_null()) << c.name;
    EXPECT_EQ(json["prompts"][0]["counts"]["rows_judged"], v.b.rows_judged) << c.name;
    EXPECT_THAT(json["prompts"][0]["judging"]["not_judged"].get<std::string>(), HasSubstr(v.b.lacks));
    EXPECT_THAT(terminal_table(json), HasSubstr(v.error)) << c.name;
    EXPECT_THAT(report_markdown(json), HasSubstr(v.error)) << c.name;
  }
  // A value that is wrong is a verdict, which says how far it goes.
  EditedTrace trace = whole();
  trace.tensors.erase("logits");
  trace.set("layers.1.attn_norm", 3, 5, trace.get("layers.1.attn_norm", 3, 5) + 1.0);
  const auto o = against(trace);
  const auto result = bisect(o);
  EXPECT_EQ(result.prompts.front().kind, FaultKind::operator_) << result.prompts.front().error;
  EXPECT_EQ(result.status, 1);
  const std::string table = terminal_table(summary_of(result, o, Json::object()));
  EXPECT_THAT(table, HasSubstr("made from): logits\n"));
}

TEST_F(TraceSubject, CountsAreOfWhatWasJudged) {
  EditedTrace trace = whole();
  trace.keep_rows({1, 3});
  std::erase_if(trace.tensors, [](const auto& x) {
    return x.second.shape.size() == 2 && x.first != "layers.1.residual_pre_attn" &&
           x.first != "layers.1.attn_norm" && x.first != "layers.1.v";
  });
  const auto o = against(trace);
  const Json counts = summary_of(bisect(o), o, Json::object())["prompts"][0]["counts"];
  EXPECT_EQ(counts["tokens"], 2);
  EXPECT_EQ(counts["layers"], 1);
  EXPECT_EQ(counts["stages"], 2);
  EXPECT_EQ(counts["rows_judged"], 4);
  EXPECT_GT(counts["rows_common"], 0);
  EXPECT_EQ(counts["rows_compared"], 0) << "two programs' bits need not agree";
}

TEST_F(TraceSubject, SequencesWithOnePromptAreEachJudged) {
  EditedTrace trace = whole();
  trace.repeat();
  const auto clean = bisect(against(trace));
  ASSERT_EQ(clean.prompts.size(), 2u);
  EXPECT_EQ(clean.status, 0) << clean.prompts[0].error << clean.prompts[1].error;
  trace.set("layers.1.attn_norm", 12 + 3, 5, trace.get("layers.1.attn_norm", 12 + 3, 5) + 1.0);
  auto o = against(trace);
  const auto result = bisect(o);
  EXPECT_EQ(result.prompts[0].kind, FaultKind::none);
  EXPECT_EQ(result.prompts[1].kind, FaultKind::operator_);
  const Json p = summary_of(result, o, Json::object())["prompts"][1];
  EXPECT_EQ(p["first"]["sequence"], 1);
  EXPECT_EQ(p["failures"][0]["sequence"], 1);
  EXPECT_THAT(p["first_fail"].get<std::string>(), HasSubstr("prompt=trace1 sequence=1 token=3 layer=1"));

  // Ids alone do not say which of the two is meant.
  o.prompts = {{"given", "", result.prompts[0].prompt.ids}};
  const auto given = bisect(o);
  EXPECT_EQ(given.status, 2);
  EXPECT_THAT(given.prompts.front().error,
              HasSubstr("sequences 0, 1 of the trace all have the prompt given"));

  // What only side b has is not passed over.
  o.prompts.clear();
  o.a = parse_subject("trace=" + test::golden("traces/bf16_float64.safetensors"), {});
  const auto traces = bisect(o);
  ASSERT_EQ(traces.prompts.size(), 2u);
  EXPECT_EQ(traces.prompts[0].kind, FaultKind::none) << traces.prompts[0].error;
  EXPECT_EQ(traces.prompts[1].kind, FaultKind::operator_) << traces.prompts[1].error;
  EXPECT_EQ(traces.prompts[1].prompt.name, "trace1-b");
}

TEST_F(TraceSubject, APartialTraceKeepsItsPositions) {
  EditedTrace trace = whole();
  trace.keep_rows({1, 3});
  auto o = against(trace);
  o.examine.layers = {0, 1};
  const auto result = bisect(o);
  const Json json = summary_of(result, o, Json::object());
  ASSERT_TRUE(result.prompts.front().undecided) << result.prompts.front().error;
  const Json& drift = json["prompts"][0]["drift"];
  ASSERT_EQ(drift["relative"].size(), 2u);
  for (const Json& line : drift["relative"])
    for (size_t p = 0; p < line.size(); ++p) {
      const size_t token = drift["tokens"][p].get<size_t>();
      EXPECT_EQ(line[p].is_null(), token != 1 && token != 3) << token;
      if (!line[p].is_null()) EXPECT_LT(line[p].get<double>(), 1e-9) << token;
    }
  const auto path = folder_ / "out.safetensors";
  ASSERT_TRUE(write_result_trace(path, result, o));
  const SafeTensorsFile file(path);
  EXPECT_EQ(file.find("layers.0.residual_post_mlp")->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(file.numbers("positions"), (std::vector<double>{1, 3}));
  EXPECT_EQ(file.metadata().at("device"), "transformers");
  EXPECT_EQ(file.metadata().at("arithmetic"), "float64");
}

TEST_F(TraceSubject, WithoutLayersTheTraceHasTheLogitsThatChose) {
  auto o = options(model(), "reference", "cpu", 20);
  o.examine.layers = {};
  const auto result = bisect(o);
  const auto path = folder_ / "out.safetensors";
  ASSERT_TRUE(write_result_trace(path, result, o));
  const SafeTensorsFile file(path);
  EXPECT_EQ(file.find("logits")->shape, (std::vector<int64_t>{4, 300}));
  EXPECT_EQ(file.numbers("positions"), (std::vector<double>{19, 20, 21, 22}));
}

/// A greedy run of the cpu as a trace of all its stages.
void record(const std::string& model, const std::vector<TokenId>& prompt, int steps, Activations activations,
            const std::string& path) {
  const auto file = ModelFile::open(model);
  EngineOptions options;
  options.backend.activations = activations;
  options.all_logits = true;
  Engine engine(file, options);
  TraceRecorder recorder({});
  std::vector<TokenId> fed = prompt, generated;
  engine.feed_all(0, prompt, Feed::Logits::all, &recorder);
  for (int step = 0; step < steps; ++step) {
    const auto row = engine.logits(engine.logits_rows().size() - 1);
    generated.push_back(static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin()));
    if (step + 1 == steps) break;
    fed.push_back(generated.back());
    engine.feed_all(0, std::span(fed).last(1), Feed::Logits::all, &recorder);
  }
  recorder.write(path, {fed}, false,
                 {{"model_sha256", file.file.sha256()},
                  {"device", "cpu"},
                  {"arithmetic", arithmetic_text("cpu", options.backend)},
                  {"generated_ids", Json(generated).dump()}});
}

TEST_F(TraceSubject, EveryArchitecturesTraceIsTakenWhole) {
  std::ifstream in(test::golden("models/manifest.json"));
  for (const auto& entry : nlohmann::json::parse(in)) {
    SCOPED_TRACE(entry.at("name").get<std::string>());
    const std::string path = test::golden("models/" + entry.at("gguf").get<std::string>());
    const auto vocab = ModelFile::open(path).tokenizer->vocab_size();
    const auto trace = folder_ / "trace.safetensors";
    record(path, test::random_tokens(12, vocab, 7), 3, Activations::bits16, trace);
    const auto v = bisect(options(path, "reference", "trace=" + trace, 0)).prompts.front();
    EXPECT_EQ(v.error, "");
    EXPECT_EQ(v.b.failed, 0u) << v.cause;
    EXPECT_EQ(v.b.lacks, "");
    EXPECT_EQ(v.b.rows_judged, v.b.rows_expected);
    EXPECT_EQ(v.b.generated.size(), 3u);
  }
}

TEST_F(TraceSubject, AnExpertThatIsNoneIsRefused) {
  const auto path = test::golden("models/mixtral.gguf");
  const auto trace = folder_ / "experts.safetensors";
  record(path, {1, 2, 3}, 2, Activations::bits16, trace);
  for (const float wrong : {99.0F, -1.0F, 0.5F, std::numeric_limits<float>::quiet_NaN()}) {
    EditedTrace edited(trace);
    std::memcpy(edited.tensors.at("layers.0.experts").bytes.data(), &wrong, sizeof wrong);
    edited.save(folder_ / "wrong.safetensors");
    const auto said = test::refusal(
        [&] { bisect(options(path, "reference", "trace=" + (folder_ / "wrong.safetensors"), 0)); });
    EXPECT_THAT(said, HasSubstr("layers.0.experts")) << wrong;
  }
}

/// The side that is explained took the token that FP64 has below the other, and the contributions, each put
/// in alone, come near the whole difference.
void expect_overturned(const PromptVerdict& v) {
  const Rounding& r = *v.rounding;
  const double sign = v.side == 'b' ? 1.0 : -1.0;
  EXPECT_GE(sign * r.true_gap, 0.0);
  EXPECT_LE(sign * (r.true_gap + *r.difference), 0.0);
  double sum = 0.0;
  for (const auto& c : r.contributors) sum += c.shift;
  EXPECT_NEAR(sum, *r.difference, 0.35 * std::abs(*r.difference) + 1e-3);
}

TEST_F(TraceSubject, RoundingOfATraceHasItsTrueGap) {
  const auto path = model();
  const auto prompt = test::random_tokens(12, 300, 7);
  const auto narrow = folder_ / "8.safetensors", wide = folder_ / "16.safetensors";
  record(path, prompt, 120, Activations::bits8, narrow);
  record(path, prompt, 120, Activations::bits16, wide);
  auto live = options(path, "cpu", "cpu,activations=8", 12);
  live.examine.max_tokens = 120;
  const auto expected = bisect(live).prompts.front();
  ASSERT_EQ(expected.kind, FaultKind::rounding) << "take another prompt";
  const std::string eight = "trace=" + narrow, sixteen = "trace=" + wide;
  for (const auto& [a, b] : {std::pair<std::string, std::string>("reference", eight),
                             {sixteen, eight},
                             {eight, "reference"},
                             {eight, sixteen}}) {
    auto o = options(path, a, b, 0);
    const auto result = bisect(o);
    const PromptVerdict& v = result.prompts.front();
    SCOPED_TRACE(a + " " + b + ": " + v.cause + v.error);
    ASSERT_EQ(v.kind, FaultKind::rounding);
    ASSERT_TRUE(v.first);
    EXPECT_EQ(v.first->place.stage, Stage::logits);
    ASSERT_TRUE(v.rounding);
    ASSERT_TRUE(v.rounding->difference);
    expect_overturned(v);
    const double turned = a == eight ? -1.0 : 1.0;
    EXPECT_EQ(v.side, a == eight ? 'a' : 'b') << "the 8-bit run rounded";
    if (a != "reference" && b != "reference") {
      EXPECT_EQ(v.rounding->step, expected.rounding->step);
      EXPECT_NEAR(v.rounding->true_gap, turned * expected.rounding->true_gap, 1e-9);
      EXPECT_NEAR(*v.rounding->difference, turned * *expected.rounding->difference, 1e-9);
    }
    EXPECT_THAT(terminal_table(summary_of(result, o, Json::object())), HasSubstr("\nFIRST_FAIL "));
  }
  EditedTrace lacking(narrow);
  lacking.tensors.erase("layers.1.ffn_gate");
  lacking.save(folder_ / "lacking.safetensors");
  auto o = options(path, sixteen, "trace=" + (folder_ / "lacking.safetensors"), 0);
  const auto result = bisect(o);
  EXPECT_EQ(result.status, 2);
  EXPECT_THAT(result.prompts.front().error, HasSubstr("whether that is rounding cannot be told"));
  EXPECT_THAT(result.prompts.front().error, HasSubstr("ffn_gate, ffn_act of layer 1;"));
}

}  // namespace
}  // namespace greta
