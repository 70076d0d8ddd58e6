// Every operator of a cpu run, judged alone in FP64 on the inputs that it had (numerics.md section 5): tiny
// models of every type, and the real model. A planted 1 % gain of one row leaves the bound; clean runs never
// do.
#include <gmock/gmock.h>

#include <cmath>

#include "backend/cpu/rounding.h"
#include "base/checked.h"
#include "bisect/bounds.h"
#include "support.h"

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

/// A recorded run with what the judge needs: the file's tensors by role.
class Replay {
 public:
  Replay(const ModelFile& model, const EngineOptions& options, const std::vector<TokenId>& ids,
         std::set<int64_t> judged)
      : model_(model),
        options_(options),
        engine_(model, options),
        ids_(ids),
        positions_(std::move(judged)),
        recorder_({}) {
    engine_.feed_all(0, ids_, Feed::Logits::all, &recorder_);
  }

  Tally judge() {
    const HParams& hp = engine_.hparams();
    for (const int64_t p : positions_) {
      judge_embedding(p);
      for (int layer = 0; layer < hp.layers; ++layer) judge_layer(layer, p);
      norm(kNoLayer, Stage::final_norm, at(static_cast<int>(hp.layers) - 1, Stage::residual_post_mlp, p),
           Role::final_norm, p);
      product(kNoLayer, Stage::logits, Role::head, Role::count, at(kNoLayer, Stage::final_norm, p), p);
    }
    return tally_;
  }
  std::vector<double>& at(int layer, Stage stage, int64_t position) {
    return const_cast<std::vector<double>&>(
        recorder_.rows().at({layer, stage})[static_cast<size_t>(position)].values);
  }
  const HParams& hparams() const { return engine_.hparams(); }

 private:
  const PlannedTensor* planned(int layer, Role role) const {
    for (const auto& t : engine_.plan().tensors)
      if (t.layer == layer && t.role == role) return &t;
    return nullptr;
  }
  static WeightSource source_of(const gguf::Tensor& t) {
    const auto cols = static_cast<int64_t>(t.shape[0]);
    return {t.name, t.type, static_cast<int64_t>(t.elements()) / cols, cols, t.bytes};
  }
  std::vector<float> vector_of(int layer, Role role) const {
    const PlannedTensor* t = planned(layer, role);
    if (t == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(t->tensor->elements()));
    quant::dequantize(t->tensor->type, t->tensor->bytes.data(), static_cast<int64_t>(values.size()),
                      values.data());
    return values;
  }
  std::string place(int layer, Stage stage, int64_t p) const {
    return trace_name(layer, stage) + " at position " + std::to_string(p);
  }

  void judge_embedding(int64_t p) {
    const auto source = source_of(*planned(kNoLayer, Role::embedding)->tensor);
    auto weight = judged_weight(source, ids_[static_cast<size_t>(p)], WeightMode::stored);
    tally_.add({weight.value, std::vector<double>(weight.value.size(), 0.0)},
               at(kNoLayer, Stage::embed_out, p), place(kNoLayer, Stage::embed_out, p));
  }

  void norm(int layer, Stage stage, std::span<const double> x, Role weight, int64_t p) {
    const int roundings = static_cast<int>(ceil_div(static_cast<int64_t>(x.size()), 16)) + 5;
    tally_.add(judge_rmsnorm(x, vector_of(layer, weight), engine_.hparams().norm_eps, roundings),
               at(layer, stage, p), place(layer, stage, p));
  }

  Judged judged_product(int layer, Role role, Role bias_role, std::span<const double> x) {
    const auto source = source_of(*planned(layer, role)->tensor);
    const auto& options = options_.backend;
    const auto resident = options.weights == WeightMode::stored ? source.type
                          : options.weights == WeightMode::int8 ? quant::Type::Q8_0
                                                                : quant::Type::F32;
    const bool integers = cpu::sub_block(resident) != 0;
    const auto rounding = !integers                                    ? OperandRounding::none
                          : options.activations == Activations::bits16 ? OperandRounding::bits16
                                                                       : OperandRounding::bits8;
    const auto operand = rounded_operand(x, rounding);
    const int roundings = cpu::matmul_roundings(resident, source.cols, options.activations);
    const auto bias = bias_role == Role::count ? std::vector<float>() : vector_of(layer, bias_role);
    Judged judged;
    for (int64_t n = 0; n < source.rows; ++n) {
      double value = 0.0;
      double certain = 0.0;
      judge_product(judged_weight(source, n, options.weights), operand,
                    bias.empty() ? 0.0 : double{bias[static_cast<size_t>(n)]}, roundings, value, certain);
      judged.value.push_back(value);
      judged.certain.push_back(certain);
    }
    return judged;
  }

  void product(int layer, Stage stage, Role role, Role bias, std::span<const double> x, int64_t p) {
    auto judged = judged_product(layer, role, bias, x);
    if (stage == Stage::v) add_cache_rounding(judged, options_.backend.kv_type);
    tally_.add(judged, at(layer, stage, p), place(layer, stage, p));
  }

  void rope(int layer, Stage from, Stage to, int64_t p, bool cached) {
    const auto& x = at(layer, from, p);
    const auto head_dim = static_cast<size_t>(engine_.hparams().head_dim);
    Judged all;
    for (size_t begin = 0; begin < x.size(); begin += head_dim) {
      const auto head = judge_rope(engine_.hparams().rope, p, std::span(x).subspan(begin, head_dim));
      all.value.insert(all.value.end(), head.value.begin(), head.value.end());
      all.certain.insert(all.certain.end(), head.certain.begin(), head.certain.end());
    }
    if (cached) add_cache_rounding(all, options_.backend.kv_type);
    tally_.add(all, at(layer, to, p), place(layer, to, p));
  }

  void attention(int layer, int64_t p) {
    const HParams& hp = engine_.hparams();
    const auto head_dim = static_cast<size_t>(hp.head_dim);
    const auto& q = at(layer, Stage::q_post_rope, p);
    Judged all;
    for (size_t h = 0; h < static_cast<size_t>(hp.heads); ++h) {
      const size_t kv = h / static_cast<size_t>(hp.heads / hp.kv_heads);
      std::vector<double> keys;
      std::vector<double> values;
      for (int64_t j = 0; j <= p; ++j) {
        const auto& k = at(layer, Stage::k_post_rope, j);
        const auto& v = at(layer, Stage::v, j);
        keys.insert(keys.end(), k.begin() + static_cast<std::ptrdiff_t>(kv * head_dim),
                    k.begin() + static_cast<std::ptrdiff_t>((kv + 1) * head_dim));
        values.insert(values.end(), v.begin() + static_cast<std::ptrdiff_t>(kv * head_dim),
                      v.begin() + static_cast<std::ptrdiff_t>((kv + 1) * head_dim));
      }
      const int splits = static_cast<int>(p / kKvPage) + 1;
      const auto head = judge_attention(std::span(q).subspan(h * head_dim, head_dim), keys, values,
                                        hp.attention_scale, static_cast<int>(head_dim) + 2,
                                        2 * (static_cast<int>(p) + 1 + 3 * splits) + 2, 2.0);
      all.value.insert(all.value.end(), head.value.begin(), head.value.end());
      all.certain.insert(all.certain.end(), head.certain.begin(), head.certain.end());
    }
    tally_.add(all, at(layer, Stage::attn_out, p), place(layer, Stage::attn_out, p));
  }

  void judge_layer(int l, int64_t p) {
    norm(l, Stage::attn_norm, at(l, Stage::residual_pre_attn, p), Role::attn_norm, p);
    product(l, Stage::q_pre_rope, Role::wq, Role::bq, at(l, Stage::attn_norm, p), p);
    product(l, Stage::k_pre_rope, Role::wk, Role::bk, at(l, Stage::attn_norm, p), p);
    product(l, Stage::v, Role::wv, Role::bv, at(l, Stage::attn_norm, p), p);
    rope(l, Stage::q_pre_rope, Stage::q_post_rope, p, false);
    rope(l, Stage::k_pre_rope, Stage::k_post_rope, p, true);
    attention(l, p);
    product(l, Stage::attn_proj, Role::wo, Role::bo, at(l, Stage::attn_out, p), p);
    tally_.add(judge_add(at(l, Stage::residual_pre_attn, p), at(l, Stage::attn_proj, p)),
               at(l, Stage::residual_post_attn, p), place(l, Stage::residual_post_attn, p));
    norm(l, Stage::ffn_norm, at(l, Stage::residual_post_attn, p), Role::ffn_norm, p);
    product(l, Stage::ffn_gate, Role::w_gate, Role::b_gate, at(l, Stage::ffn_norm, p), p);
    product(l, Stage::ffn_up, Role::w_up, Role::b_up, at(l, Stage::ffn_norm, p), p);
    tally_.add(
        judge_glu(engine_.hparams().activation, at(l, Stage::ffn_gate, p), at(l, Stage::ffn_up, p), 3.0),
        at(l, Stage::ffn_act, p), place(l, Stage::ffn_act, p));
    product(l, Stage::mlp_out, Role::w_down, Role::b_down, at(l, Stage::ffn_act, p), p);
    tally_.add(judge_add(at(l, Stage::residual_post_attn, p), at(l, Stage::mlp_out, p)),
               at(l, Stage::residual_post_mlp, p), place(l, Stage::residual_post_mlp, p));
  }

  const ModelFile& model_;
  EngineOptions options_;
  Engine engine_;
  std::vector<TokenId> ids_;
  std::set<int64_t> positions_;
  TraceRecorder recorder_;
  Tally tally_;
};

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

  Replay clean(model, options, ids, {0, 1, 63, 64, 149});
  const Tally tally = clean.judge();
  EXPECT_EQ(tally.rows, 5u * (3u + 2u * 15u));
  EXPECT_TRUE(tally.worst <= 1.0) << tally.worst << " of the bound in " << tally.where;
  EXPECT_GT(tally.worst, 0.0);

  for (const Stage stage :
       {Stage::attn_norm, Stage::q_pre_rope, Stage::k_post_rope, Stage::v, Stage::attn_out, Stage::attn_proj,
        Stage::residual_post_attn, Stage::ffn_gate, Stage::ffn_act, Stage::mlp_out}) {
    Replay faulty(model, options, ids, {64});
    auto& row = faulty.at(1, stage, 64);
    const auto largest = std::max_element(row.begin(), row.end(),
                                          [](double a, double b) { return std::abs(a) < std::abs(b); });
    *largest = double{static_cast<float>(*largest * 1.01)};
    EXPECT_TRUE(faulty.judge().worst > 1.0) << name_of(stage);
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
  Replay replay(model, options_for({"", quant::Type::Q4_1}, 64), ids,
                {0, 7, static_cast<int64_t>(ids.size()) - 1});
  const Tally tally = replay.judge();
  EXPECT_EQ(tally.rows, 3u * (3u + 30u * 15u));
  EXPECT_TRUE(tally.worst <= 1.0) << tally.worst << " of the bound in " << tally.where;
}

}  // namespace
}  // namespace greta
