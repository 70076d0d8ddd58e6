// Pairs of subjects that cannot be compared number by number: other files, the judge on both sides, models
// that give NaN.
#include <gmock/gmock.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/mapped_file.h"
#include "bisect/file_faults.h"
#include "bisect/report.h"
#include "bisect/summary.h"
#include "bisect_fixture.h"
#include "refusal.h"

namespace greta {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

class Pairs : public test::BisectTest {
 protected:
  std::string shaped(const std::string& name, const std::function<void(SynthOptions&)>& change) {
    SynthOptions synth;
    synth.dim = 64;
    synth.ffn_dim = 96;
    synth.layers = 2;
    synth.kv_heads = 2;
    synth.vocab = 300;
    synth.context = 256;
    change(synth);
    synthesise(synth, folder_ / name, 2);
    return folder_ / name;
  }
  BisectOptions pair(const std::string& path, const std::string& a, const std::string& b) {
    auto o = options(path, a, b, 20);
    o.examine.layers = {};
    return o;
  }
  static Json summary(const BisectResult& result, const BisectOptions& o) {
    return summary_of(result, o, Json::object());
  }
};

TEST_F(Pairs, FilesOfOtherShapesAreInputBeforeAnythingRuns) {
  const auto path = shaped("m.gguf", [](SynthOptions&) {});
  const std::vector<std::pair<std::string, std::function<void(SynthOptions&)>>> others = {
      {"layers", [](SynthOptions& s) { s.layers = 1; }},
      {"layers", [](SynthOptions& s) { s.layers = 3; }},
      {"dim", [](SynthOptions& s) { s.dim = 128; }},
      {"ffn_dim", [](SynthOptions& s) { s.ffn_dim = 128; }},
      {"vocab", [](SynthOptions& s) { s.vocab = 280; }},
      {"kv_heads", [](SynthOptions& s) { s.kv_heads = 4; }},
      {"experts", [](SynthOptions& s) { s.experts = 4; }},
      {"architecture", [](SynthOptions& s) { s.arch = "qwen3"; }}};
  for (const auto& [name, change] : others) {
    const auto other = shaped("other.gguf", change);
    for (const bool swapped : {false, true}) {
      auto o = swapped ? pair(other, "cpu", "cpu,file=" + path) : pair(path, "cpu", "cpu,file=" + other);
      const auto result = bisect(o);
      const PromptVerdict& v = result.prompts.front();
      EXPECT_EQ(v.kind, FaultKind::input) << name << v.error;
      EXPECT_THAT(v.cause, HasSubstr("hyperparameter " + name)) << name;
      EXPECT_EQ(result.status, 1) << name;
      EXPECT_TRUE(v.a.fed.empty() && v.b.fed.empty()) << name << ": a side was run";
      const Json json = summary(result, o);
      EXPECT_THAT(json["prompts"][0]["first_fail"].get<std::string>(), HasSubstr("kind=INPUT")) << name;
      EXPECT_THAT(report_markdown(json), HasSubstr("# greta bisect: INPUT\n")) << name;
      o.keep_going = true;
      EXPECT_THAT(test::refusal([&] { bisect(o); }), HasSubstr("--keep-going")) << name;
    }
  }
}

TEST_F(Pairs, ARunIsJudgedByAModelOfItsShape) {
  const auto deep = ModelFile::open(shaped("m.gguf", [](SynthOptions&) {}));
  const auto flat = ModelFile::open(shaped("other.gguf", [](SynthOptions& s) { s.layers = 1; }));
  ExamineOptions options;
  options.room = 8;
  const Prompt prompt{"test", "", {1, 2, 3}};
  const Subject cpu = parse_subject("cpu", {});
  EXPECT_THAT(test::refusal([&] { SubjectRun(cpu, flat, deep, options, prompt); }),
              HasSubstr("layers: expected 2, got 1"));
}

TEST_F(Pairs, AFileWithAnotherNumberIsFollowedToWhatItSpoils) {
  const auto path = shaped("m.gguf", [](SynthOptions&) {});
  const auto other = folder_ / "eps.gguf";
  set_metadata_in_file(path, other, "llama.attention.layer_norm_rms_epsilon", "0.01");
  auto o = pair(path, "cpu", "cpu,file=" + other);
  o.keep_going = true;
  const auto v = bisect(o).prompts.front();
  EXPECT_EQ(v.kind, FaultKind::input) << v.error;
  ASSERT_TRUE(v.first);
  EXPECT_EQ(v.first->place.stage, Stage::attn_norm);
}

TEST_F(Pairs, AKnownDifferenceStopsTheSearch) {
  const auto path = shaped("m.gguf", [](SynthOptions&) {});
  const auto other = folder_ / "other.gguf";
  change_block_in_file(path, other, "blk.1.ffn_up.weight", 33);
  const auto o = pair(path, "cpu", "cpu,file=" + other);
  const auto result = bisect(o);
  EXPECT_TRUE(result.prompts.front().a.fed.empty()) << "side a was run although its verdict was known";
  const Json json = summary(result, o);
  const Json& p = json["prompts"][0];
  EXPECT_EQ(p["first"]["stage"], "ffn_up");
  for (const char* key : {"index", "got", "expected", "error", "bound", "ratio"})
    EXPECT_TRUE(p["first"][key].is_null()) << key << ": nobody measured it";
  for (const char* key : {"stages", "heat", "drift"}) EXPECT_TRUE(p[key].is_null()) << key;
  // 96 columns are 3 blocks of Q8_0 a row... of dim 64: 2.
  EXPECT_EQ(json["input"]["differences"][0]["row"], 33 / 2);
  EXPECT_THAT(report_markdown(json), Not(HasSubstr("First wrong value")));
}

TEST_F(Pairs, TheJudgeIsNotJudged) {
  const auto path = shaped("m.gguf", [](SynthOptions&) {});
  EXPECT_THAT(test::refusal([&] { bisect(pair(path, "reference", "reference,chunk=2")); }),
              HasSubstr("both are the reference"));
  EXPECT_THAT(test::refusal([&] { pair(path, "reference", "reference,fault=row-gain@1"); }),
              HasSubstr("never in the judge"));
}

TEST_F(Pairs, WhereEveryPromptFailsThereIsNoKind) {
  const auto path = shaped("m.gguf", [](SynthOptions&) {});
  const auto o = pair(path, "cpu", "cpu,chunk=40");  // options() gives 40 to both
  const auto result = bisect(o);
  EXPECT_EQ(result.status, 2);
  const Json json = summary(result, o);
  EXPECT_TRUE(json["kind"].is_null()) << json["kind"];
  EXPECT_THAT(report_markdown(json), testing::StartsWith("# greta bisect: ERROR\n"));
}

/// A copy whose first block of the tensor has a NaN for its scale (Q8_0: the first two bytes).
void spoil_scale(const std::string& from, const std::string& to, const std::string& tensor) {
  std::string bytes = read_whole_file(from);
  const auto file = gguf::File::open(from);
  const auto block = file.find_tensor(tensor)->bytes.first(34);
  const std::string_view wanted(reinterpret_cast<const char*>(block.data()), block.size());
  const size_t at = bytes.find(wanted);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = '\0';
  bytes[at + 1] = '\x7e';
  std::ofstream(to, std::ios::binary) << bytes;
}

TEST_F(Pairs, AModelThatGivesNanIsNeverNone) {
  const auto path = shaped("m.gguf", [](SynthOptions& s) { s.type = quant::Type::Q8_0; });
  const auto spoilt = folder_ / "nan.gguf";
  spoil_scale(path, spoilt, "blk.1.ffn_up.weight");
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"reference", "cpu"}, {"cpu", "cpu,phase=decode"}, {"cpu", "cpu,activations=8"}, {"cpu", "reference"}};
  for (const auto& [a, b] : pairs) {
    const auto o = pair(spoilt, a, b);
    const auto result = bisect(o);
    const PromptVerdict& v = result.prompts.front();
    EXPECT_EQ(v.kind, FaultKind::input) << a << ' ' << b << ": " << v.cause << v.error;
    EXPECT_EQ(result.status, 1);
    EXPECT_THAT(v.cause, HasSubstr("blk.1.ffn_up.weight"));
    ASSERT_TRUE(v.first);
    EXPECT_EQ(v.first->place, (Place{0, 0, 1, Stage::ffn_up}));
    EXPECT_EQ(v.first->index, 0);
    const std::string table = terminal_table(summary(result, o));
    EXPECT_THAT(table, HasSubstr("First nan of side "));
    EXPECT_LT(table.find("First nan"), table.find("FIRST_FAIL"));
  }
}

TEST_F(Pairs, ANanOfAKernelIsItsOperators) {
  const auto path = shaped("m.gguf", [](SynthOptions&) {});
  const auto v = bisect(pair(path, "reference", "cpu,fault=nan@1,,3")).prompts.front();
  EXPECT_EQ(v.kind, FaultKind::operator_) << v.cause << v.error;
  EXPECT_TRUE(v.b.nonfinite);
}

}  // namespace
}  // namespace greta
