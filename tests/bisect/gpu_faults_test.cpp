// Faults that need a GPU, on every one that is usable here and on the kernels' emulation: each is found,
// placed where its log says, and called WIRE; and a sound run has the same bits launched as recordings as
// call by call.
#include <gmock/gmock.h>

#include <set>

#include "base/error.h"
#include "bisect/bisect.h"
#include "bisect/verify.h"
#include "gpu_devices.h"
#include "support.h"

namespace greta {
namespace {

using testing::HasSubstr;

class GpuFaults : public testing::TestWithParam<std::string> {
 protected:
  GpuFaults() {
    SynthOptions synth;
    synth.arch = "qwen3";  // with norms of q and k
    synth.dim = 64;
    synth.ffn_dim = 64;
    synth.layers = 2;
    synth.heads = 2;
    synth.kv_heads = 1;
    synth.vocab = 300;
    synth.context = 64;
    synth.type = quant::Type::Q8_0;
    const std::string path = folder_ / "model.gguf";
    synthesise(synth, path, 2);
    model_ = std::make_unique<ModelFile>(ModelFile::open(path));
  }
  static Prompt prompt() { return {"test", "", test::random_tokens(7, 300, 5)}; }
  std::unique_ptr<SubjectRun> subject(const std::string& fault) {
    Subject subject;
    subject.device = GetParam();
    if (!fault.empty()) subject.fault = parse_fault(fault);
    ExamineOptions options;
    options.room = 16;
    options.chunk = 4;
    options.max_tokens = 6;
    return std::make_unique<SubjectRun>(subject, *model_, *model_, options, prompt());
  }
  static uint64_t launches(const Examined& run) {
    uint64_t sum = 0;
    for (const auto& [kernel, count] : run.route) sum += count;
    return sum;
  }
  /// Plants and looks. Returns the planted place.
  Place found(const std::string& fault) {
    const auto run = subject(fault);
    const PromptVerdict v = verdict_alone(*run, prompt(), {});
    EXPECT_EQ(v.kind, FaultKind::wire) << fault << ": " << v.cause;
    const FaultLog& log = *run->plant()->log;
    EXPECT_FALSE(log.fired.empty()) << fault;
    if (log.fired.empty()) return {};
    const Place place = log.fired.begin()->first;
    EXPECT_TRUE(v.first) << fault;
    if (v.first) EXPECT_EQ(v.first->place.text(), place.text()) << fault;
    EXPECT_EQ(place.layer, run->plant()->layer);
    EXPECT_EQ(place.stage, run->plant()->stage);
    cause_ = v.cause;
    return place;
  }
  test::TemporaryFolder folder_;
  std::unique_ptr<ModelFile> model_;
  std::string cause_;
};

TEST_P(GpuFaults, ASoundRunHasNeither) {
  const auto run = subject("");
  const PromptVerdict v = verdict_alone(*run, prompt(), {});
  EXPECT_EQ(v.kind, FaultKind::none) << v.cause;
  EXPECT_EQ(v.b.untraced_hash, v.b.traced_hash);
  EXPECT_FALSE(v.b.launched_hash);
  EXPECT_GT(launches(v.b), 0u);
}

TEST_P(GpuFaults, ALostCopyIsPlacedExactlyAnywhere) {
  std::set<Stage> stages;
  for (int seed = 1; seed <= 8; ++seed) {
    const Place place = found("lost-copy@,," + std::to_string(seed));
    stages.insert(place.stage);
    EXPECT_THAT(cause_, HasSubstr("handed something else"));
  }
  EXPECT_GE(stages.size(), 5u);
  EXPECT_EQ(found("lost-copy@1,3").token, 3);
}

TEST_P(GpuFaults, AFrozenRecordingIsPlacedExactlyFromTheSecondStepOn) {
  std::set<Stage> stages;
  for (int seed = 1; seed <= 8; ++seed) {
    const Place place = found("graph-frozen@,," + std::to_string(seed));
    stages.insert(place.stage);
    EXPECT_EQ(place.token, 8) << "the prompt's seven, then one step as it comes; the second is recorded";
    EXPECT_THAT(cause_, HasSubstr("launched as a recording"));
  }
  EXPECT_GE(stages.size(), 5u);
}

/// Who looks at every stage sees none of it: the fault is in the recording alone.
TEST_P(GpuFaults, AFrozenRecordingIsSoundWhereATapLooks) {
  const auto run = subject("graph-frozen");
  const Examined examined = run->examine(prompt());
  ASSERT_EQ(examined.findings.size(), 1u);
  EXPECT_EQ(examined.findings.begin()->second.check, Finding::Check::launched);
  EXPECT_NE(examined.untraced_hash, examined.traced_hash);
  EXPECT_GT(run->plant()->log->fired.size(), 2u) << "every step from the second on";
}

/// Who traces sees operators by themselves, who does not runs kernels that fuse them: verify's row compares
/// the two, and a recording that is frozen parts them.
TEST_P(GpuFaults, VerifysTapsCompareOperatorsApartWithFusedOnes) {
  SynthOptions synth;
  synth.dim = synth.ffn_dim = 64;
  synth.heads = 2;
  synth.vocab = 300;
  synth.context = 512;
  synth.type = quant::Type::Q8_0;
  synthesise(synth, folder_ / "llama.gguf", 2);
  const ModelFile model = ModelFile::open(folder_ / "llama.gguf");
  VerifyOptions options;
  options.engine.device = GetParam();
  options.rows = {"taps"};
  const VerifyRow sound = verify(model, options).rows.at(0);
  EXPECT_EQ(sound.verdict, RowVerdict::pass) << sound.detail;
  EXPECT_THAT(sound.detail, HasSubstr("by fused kernels"));
  const HParams hp = truth_plan(model).hp;
  const Plant plant = draw_plant(parse_fault("graph-frozen"), hp, 64, 300, true);
  options.engine.between = [&](std::unique_ptr<Backend> below) {
    return plant_fault(std::move(below), plant, hp);
  };
  EXPECT_EQ(verify(model, options).rows.at(0).verdict, RowVerdict::fail);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuFaults);
INSTANTIATE_TEST_SUITE_P(Devices, GpuFaults, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

std::string refusal(const std::string& fault, bool gpu, int64_t tokens = 12, int64_t experts = 0) {
  HParams hp;
  hp.layers = 2;
  hp.experts = experts;
  try {
    draw_plant(parse_fault(fault), hp, 7, tokens, gpu);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(GpuFaultPlants, SayWhatTheyNeed) {
  for (const std::string fault : {"lost-copy", "graph-frozen"}) {
    EXPECT_THAT(refusal(fault, false), HasSubstr("needs a GPU backend"));
    EXPECT_EQ(refusal(fault, true), "");
  }
  EXPECT_THAT(refusal("graph-frozen", true, 8), HasSubstr("two positions after the prompt"));
  EXPECT_THAT(refusal("graph-frozen", true, 12, 4), HasSubstr("experts"));
  EXPECT_THAT(refusal("graph-frozen@,8", true), HasSubstr("expected no token"));
}

}  // namespace
}  // namespace greta
