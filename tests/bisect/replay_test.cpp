// Every operator of a cpu run, judged alone in FP64 on the inputs that it had (numerics.md section 5): tiny
// models of every type, and the real model. A planted 1 % gain of one row leaves the bound; clean runs never
// do.
#include <gmock/gmock.h>

#include <cmath>

#include "bisect/bounds.h"
#include "units.h"

namespace greta {
namespace {

/// Tallies rows inside their bounds; keeps the first outside.
struct Tally {
  size_t rows = 0;
  double worst = 0.0;  ///< error over bound
  std::string where = "nowhere";

  void add(const Judged& judged, std::span<const double> got, const std::string& what) {
    ++rows;
    const double ratio = worst_ratio(judged, got);
    if (!(ratio <= worst)) {
      worst = ratio;
      where = what;
    }
  }
};

/// Every judged stage of the rows at some positions.
Tally judged(test::RecordedUnits& run, const std::set<int64_t>& positions) {
  Tally tally;
  const int64_t layers = run.plan().hp.layers;
  const Wiring wiring(run.plan().hp);
  for (const int64_t p : positions)
    for (int unit = 0; unit <= layers + 1; ++unit)
      for (const StageRule& rule : wiring.rules_of_unit(unit)) {
        const Stage stage = rule.stage;
        if (rule.op == Op::wire) continue;
        const int layer = layer_of_unit(unit, layers);
        tally.add(run.definition(layer, stage, p), run.row(layer, stage, p),
                  trace_name(layer, stage) + " at position " + std::to_string(p));
      }
  return tally;
}

struct Mode {
  std::string name;
  quant::Type type;
  WeightMode weights = WeightMode::stored;
  Activations activations = Activations::bits16;
  KvType kv = KvType::f16;
};

EngineOptions options_for(const Mode& mode, int64_t context) {
  EngineOptions o;
  o.context = context;
  o.chunk = 64;
  o.all_logits = true;
  o.backend.weights = mode.weights;
  o.backend.activations = mode.activations;
  o.backend.kv_type = mode.kv;
  return o;
}

class EveryOperator : public testing::TestWithParam<Mode> {};

TEST_P(EveryOperator, InsideItsBoundAndAOnePercentGainIsNot) {
  const test::TemporaryFolder folder;
  SynthOptions synth;
  synth.dim = 256;
  synth.ffn_dim = 512;
  synth.kv_heads = 2;
  synth.vocab = 300;
  synth.type = GetParam().type;
  synth.bias = true;
  synthesise(synth, folder / "m.gguf", 2);
  const auto model = ModelFile::open(folder / "m.gguf");
  const auto options = options_for(GetParam(), 160);
  const auto ids = test::random_tokens(150, 300, 5);

  test::RecordedUnits run(model, options, ids);
  const Tally tally = judged(run, {0, 1, 63, 64, 149});
  EXPECT_EQ(tally.rows, 5u * (3u + 2u * 15u));
  EXPECT_TRUE(tally.worst <= 1.0) << tally.worst << " of the bound in " << tally.where;
  EXPECT_GT(tally.worst, 0.0);

  for (const Stage stage :
       {Stage::attn_norm, Stage::q_pre_rope, Stage::k_post_rope, Stage::v, Stage::attn_out, Stage::attn_proj,
        Stage::residual_post_attn, Stage::ffn_gate, Stage::ffn_act, Stage::mlp_out}) {
    const auto row = run.row(1, stage, 64);
    const auto largest = std::max_element(row.begin(), row.end(),
                                          [](double x, double y) { return std::abs(x) < std::abs(y); });
    run.set(1, stage, 64, largest - row.begin(), double{static_cast<float>(*largest * 1.01)});
    EXPECT_TRUE(judged(run, {64}).worst > 1.0) << name_of(stage);
    run.set(1, stage, 64, largest - row.begin(), *largest);
  }
}

std::vector<Mode> modes() {
  std::vector<Mode> all;
  for (const auto& t : quant::all_types()) all.push_back({std::string(t.name), t.type});
  all.push_back({"Q4_K_8bit", quant::Type::Q4_K, WeightMode::stored, Activations::bits8});
  all.push_back({"Q8_0_8bit", quant::Type::Q8_0, WeightMode::stored, Activations::bits8});
  all.push_back({"Q6_K_as_int8", quant::Type::Q6_K, WeightMode::int8});
  all.push_back({"Q4_K_as_f32", quant::Type::Q4_K, WeightMode::f32});
  all.push_back({"F16_bf16_cache", quant::Type::F16, WeightMode::stored, Activations::bits16, KvType::bf16});
  all.push_back({"BF16_f32_cache", quant::Type::BF16, WeightMode::stored, Activations::bits16, KvType::f32});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Modes, EveryOperator, testing::ValuesIn(modes()),
                         [](const auto& info) { return info.param.name; });

TEST(RealModel, EveryOperatorInsideItsBound) {
  const auto path = test::smollm2();
  if (!path) GTEST_SKIP() << "run scripts/models.sh smollm2";
  const auto model = ModelFile::open(*path);
  const std::string text =
      "The lighthouse keeper wrote down the weather every evening, and in the morning he compared it with "
      "the sea.";
  const auto ids = model.tokenizer->encode(text);
  test::RecordedUnits run(model, options_for({"", quant::Type::Q4_1}, 64), ids);
  const Tally tally = judged(run, {0, 7, static_cast<int64_t>(ids.size()) - 1});
  EXPECT_EQ(tally.rows, 3u * (3u + 30u * 15u));
  EXPECT_TRUE(tally.worst <= 1.0) << tally.worst << " of the bound in " << tally.where;
}

}  // namespace
}  // namespace greta
