// Every entry of the engine's table can be made, fits the plan, and runs with numbers of a sane size.
#include "model/architectures.h"

#include <gmock/gmock.h>

#include <cmath>

#include "gguf/gguf.h"
#include "support.h"

namespace greta {
namespace {

using quant::Type;
using testing::HasSubstr;

/// A small model of the architecture with all that it may have.
SynthOptions small(const std::string& arch) {
  SynthOptions o;
  o.arch = arch;
  o.ffn_dim = 512;
  o.kv_heads = 2;
  o.vocab = 400;
  return o;
}

class SynthFolder : public testing::Test {
 protected:
  gguf::File make(const SynthOptions& options, int threads = 2) const {
    synthesise(options, path_, threads);
    return gguf::File::open(path_);
  }

  std::string error_of(const SynthOptions& options) const {
    try {
      synthesise(options, path_, 1);
    } catch (const Error& error) {
      std::string text = error.what();
      for (const std::string& line : error.details()) text += "\n" + line;
      return text;
    }
    return "no error";
  }

  const test::TemporaryFolder folder_;
  const std::string path_ = folder_ / "model.gguf";
};

class SynthArchitecture : public SynthFolder, public testing::WithParamInterface<Architecture> {
 protected:
  SynthOptions options() const { return small(std::string(GetParam().name)); }
};

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const Architecture& entry : architectures()) all.emplace_back(entry.name);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Table, SynthArchitecture,
                         testing::ValuesIn(architectures().begin(), architectures().end()),
                         [](const auto& info) { return std::string(info.param.name); });

std::vector<float> values_of(const gguf::File& file, const std::string& name) {
  const gguf::Tensor* t = file.find_tensor(name);
  if (t == nullptr) fail("no tensor {}", name);
  std::vector<float> values(t->elements());
  quant::dequantize(t->type, t->bytes.data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

double spread_of(std::span<const float> values) {
  double sum = 0.0, squares = 0.0;
  for (const float v : values) {
    sum += v;
    squares += double{v} * v;
  }
  const auto n = static_cast<double>(values.size());
  return std::sqrt(squares / n - sum / n * (sum / n));
}

uint64_t number(const gguf::File& file, const std::string& key) {
  const gguf::Value* value = file.find(key);
  if (value == nullptr) fail("no key {}", key);
  return std::get<uint64_t>(value->data);
}
double real(const gguf::File& file, const std::string& key) {
  const gguf::Value* value = file.find(key);
  if (value == nullptr) fail("no key {}", key);
  return std::get<double>(value->data);
}

TEST_P(SynthArchitecture, SameSeedSameBytesAtAnyThreadCount) {
  const std::string one = (make(options(), 1), read_whole_file(path_));
  EXPECT_TRUE((make(options(), 2), read_whole_file(path_)) == one);
  EXPECT_TRUE((make(options(), 5), read_whole_file(path_)) == one);
}

/// The plan uses every tensor, complains of nothing and warns of nothing; of what it may leave out nothing is
/// there unasked, and everything that was asked for is.
TEST_P(SynthArchitecture, FitsThePlanWithoutAWarning) {
  const auto backend = make_backend("cpu", {});
  for (const bool more : {false, true}) {
    SynthOptions o = options();
    const bool biased = std::any_of(GetParam().tensors.begin(), GetParam().tensors.end(),
                                    [](const TensorRule& rule) { return rule.role == Role::bo; });
    if (more) {
      o.bias = biased;
      o.tied = true;
      if (GetParam().mixture) o.experts = 5;
    }
    const gguf::File file = make(o);
    const Plan plan = make_plan(file, *backend, {});
    for (const Problem& problem : plan.problems) ADD_FAILURE() << problem.text();
    EXPECT_THAT(plan.warnings, testing::IsEmpty());
    EXPECT_EQ(plan.hp.experts, more && GetParam().mixture ? 5 : GetParam().name == "qwen3moe" ? 8 : 0);
    EXPECT_EQ(plan.hp.experts_used, plan.hp.experts > 0 ? 2 : 0);
    EXPECT_EQ(file.find_tensor("blk.1.attn_output.bias") != nullptr, more && biased);
    EXPECT_EQ(file.find_tensor("blk.1.attn_q.bias") != nullptr,
              (more && biased) || GetParam().name == "qwen2");
    EXPECT_EQ(file.find_tensor("output.weight") != nullptr, !more && !GetParam().scaled_embedding);
  }
}

/// What a run leaves: logits of spread 1 to 10 (near 3), a token that is not merely the one before, scores
/// that pick keys, layers that add about what came in.
TEST_P(SynthArchitecture, RunsWithNumbersOfASaneSize) {
  for (const uint64_t dim : {256, 768}) {
    SynthOptions o = options();
    o.dim = dim;
    o.layers = 3;
    const bool windowed = GetParam().window > 0 || GetParam().states_window;
    o.window = windowed ? std::optional<uint64_t>(20) : std::nullopt;
    make(o);
    const ModelFile model = ModelFile::open(path_);
    EngineOptions run;
    run.all_logits = true;
    run.chunk = 64;
    Engine engine(model, run);
    const auto ids = test::random_tokens(60, 400, 3);
    engine.feed_all(0, ids, Feed::Logits::all);
    std::vector<float> all;
    size_t own = 0;
    std::set<ptrdiff_t> chosen;
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto row = engine.logits(i);
      all.insert(all.end(), row.begin(), row.end());
      const auto best = std::max_element(row.begin(), row.end()) - row.begin();
      own += best == ids[i] ? 1 : 0;
      chosen.insert(best);
    }
    const double spread = spread_of(all);
    EXPECT_TRUE(spread > 2.4 && spread < 3.7) << spread << " at dim " << dim;
    EXPECT_LT(own, 12u) << "tokens predict themselves";
    EXPECT_GT(chosen.size(), 25u);
  }
}

TEST_F(SynthFolder, SpreadsOfFusedRowsExpertsAndNorms) {
  SynthOptions phi = small("phi3");
  const gguf::File fused = make(phi);
  const std::vector<float> qkv = values_of(fused, "blk.0.attn_qkv.weight");
  ASSERT_EQ(fused.find_tensor("blk.0.attn_qkv.weight")->shape, (std::vector<uint64_t>{256, 256 + 2 * 128}));
  ASSERT_EQ(fused.find_tensor("blk.0.ffn_up.weight")->shape, (std::vector<uint64_t>{256, 1024}));
  const auto near = [](double got, double expected) { return std::fabs(got / expected - 1.0) <= 0.03; };
  const std::span<const float> rows(qkv);
  EXPECT_TRUE(near(spread_of(rows.first(384 * 256)), 1.4 / 16)) << spread_of(rows.first(384 * 256));
  EXPECT_TRUE(near(spread_of(rows.last(128 * 256)), 1.0 / 16)) << spread_of(rows.last(128 * 256));

  SynthOptions moe = small("qwen3moe");
  moe.experts = 6;
  moe.ffn_dim = 256;
  moe.type = Type::Q4_K;
  const gguf::File mixture = make(moe);
  const gguf::Tensor* router = mixture.find_tensor("blk.1.ffn_gate_inp.weight");
  EXPECT_EQ(router->type, Type::F32);
  EXPECT_EQ(router->shape, (std::vector<uint64_t>{256, 6}));
  EXPECT_EQ(mixture.find_tensor("blk.1.ffn_up_exps.weight")->shape, (std::vector<uint64_t>{256, 256, 6}));
  EXPECT_EQ(mixture.find_tensor("blk.1.ffn_down_exps.weight")->type, Type::Q4_K);
  EXPECT_TRUE(near(spread_of(values_of(mixture, "blk.1.ffn_down_exps.weight")), 2.0 / 16));
  const std::vector<float> experts = values_of(mixture, "blk.1.ffn_up_exps.weight");
  for (size_t e = 1; e < 6; ++e) EXPECT_NE(experts[e * 65536], experts[0]);
  for (const float v : values_of(mixture, "blk.0.attn_q_norm.weight")) ASSERT_TRUE(v >= 0.9F && v <= 1.9F);

  const gguf::File gemma = make(small("gemma2"));
  for (const float v : values_of(gemma, "blk.0.post_ffw_norm.weight")) ASSERT_TRUE(v >= 0.5F && v <= 1.5F);
  for (const float v : values_of(gemma, "output_norm.weight")) ASSERT_TRUE(v >= 8.0F && v <= 24.0F);
}

TEST_F(SynthFolder, TheKeysOfConverters) {
  const gguf::File gemma2 = make(small("gemma2"));
  EXPECT_EQ(number(gemma2, "gemma2.attention.sliding_window"), 4096u);
  EXPECT_EQ(number(gemma2, "gemma2.attention.key_length"), 64u);
  EXPECT_EQ(real(gemma2, "gemma2.attn_logit_softcapping"), 8.0);
  EXPECT_EQ(real(gemma2, "gemma2.final_logit_softcapping"), 12.0);

  SynthOptions o = small("gemma3");
  o.window = 77;
  const gguf::File gemma3 = make(o);
  EXPECT_EQ(number(gemma3, "gemma3.attention.sliding_window"), 77u);
  EXPECT_EQ(real(gemma3, "gemma3.rope.freq_base"), 1e6);
  EXPECT_EQ(real(gemma3, "gemma3.rope.freq_base_swa"), 1e4);
  EXPECT_EQ(gemma3.find("gemma3.attn_logit_softcapping"), nullptr);
  o.window = std::nullopt;
  EXPECT_EQ(number(make(o), "gemma3.attention.sliding_window"), 512u);
  o.window = 0;  // said, for other readers have a default of their own
  EXPECT_EQ(number(make(o), "gemma3.attention.sliding_window"), 0u);
  EXPECT_EQ(number(make(small("phi3")), "phi3.attention.sliding_window"), 0u);

  SynthOptions moe = small("qwen3moe");
  moe.experts_used = 3;
  const gguf::File qwen3moe = make(moe);
  EXPECT_EQ(number(qwen3moe, "qwen3moe.expert_count"), 8u);
  EXPECT_EQ(number(qwen3moe, "qwen3moe.expert_used_count"), 3u);
  EXPECT_EQ(number(qwen3moe, "qwen3moe.expert_feed_forward_length"), 512u);
  EXPECT_EQ(number(qwen3moe, "qwen3moe.feed_forward_length"), 1536u);
  moe.arch = "llama";
  moe.experts = 4;
  const gguf::File mixtral = make(moe);
  EXPECT_EQ(number(mixtral, "llama.feed_forward_length"), 512u);
  EXPECT_EQ(mixtral.find("llama.expert_feed_forward_length"), nullptr);
  EXPECT_EQ(number(mixtral, "llama.expert_used_count"), 3u);
  moe.experts = 1;
  moe.experts_used = 0;
  EXPECT_EQ(number(make(moe), "llama.expert_used_count"), 1u);
}

TEST_F(SynthFolder, LongRope) {
  SynthOptions o = small("phi3");
  o.rope_scaling = "longrope:32:64";
  const gguf::File file = make(o);
  EXPECT_EQ(number(file, "phi3.rope.scaling.original_context_length"), 64u);
  EXPECT_EQ(real(file, "phi3.rope.scaling.attn_factor"),
            static_cast<double>(static_cast<float>(std::sqrt(1.0 + 5.0 / 6.0))));  // ln 32 / ln 64
  const std::vector<float> far = values_of(file, "rope_factors_long.weight");
  const std::vector<float> near = values_of(file, "rope_factors_short.weight");
  ASSERT_EQ(far.size(), 32u);
  ASSERT_EQ(near.size(), 32u);
  EXPECT_EQ(far.front(), 1.0F);
  EXPECT_EQ(far.back(), 32.0F);
  EXPECT_EQ(near.back(), 2.0F);
  for (size_t i = 1; i < 32; ++i) EXPECT_GT(far[i], near[i]) << i;
  const Plan plan = make_plan(file, *make_backend("cpu", {}), {});
  for (const Problem& problem : plan.problems) ADD_FAILURE() << problem.text();
  EXPECT_THAT(plan.hp.rope_scaling, HasSubstr("past 64 positions"));
  EXPECT_EQ(plan.hp.long_rope_from, 64);
}

TEST_F(SynthFolder, WhatAnArchitectureLacksIsSaidWithTheWayOut) {
  const auto refused = [&](const std::string& arch, auto change, const std::string& line) {
    SynthOptions o = small(arch);
    change(o);
    EXPECT_THAT(error_of(o), HasSubstr(line));
    EXPECT_EQ(folder_.entries(), 0u);
  };
  std::string all;
  for (const std::string& name : names()) all += (all.empty() ? "" : ", ") + name;
  refused(
      "gpt2", [](auto&) {}, "--arch: expected " + all + ", got gpt2");
  refused(
      "gemma2", [](auto& o) { o.experts = 4; },
      "--experts: expected none, as gemma2 has no experts, got 4; leave it out, or take llama, qwen3moe");
  refused(
      "qwen3", [](auto& o) { o.window = 64; },
      "--window: expected none, as qwen3 has no window in its files, got 64; leave it out, or take "
      "gemma2, gemma3, phi3");
  refused(
      "phi3", [](auto& o) { o.bias = true; }, "--bias: expected none, as phi3 has no biases, got it");
  refused(
      "llama", [](auto& o) { o.rope_scaling = "longrope:4:512"; },
      "--rope-scaling: expected none, as llama has no rope_factors_long.weight, got longrope:4:512; leave "
      "it out, or take phi3, linear or yarn");
  refused(
      "gemma3", [](auto& o) { o.rope_scaling = "llama3:8:8192"; }, "gemma3 has no rope_freqs.weight");
  refused(
      "llama", [](auto& o) { o.experts_used = 2; }, "--experts-used: expected 0, as --experts is not given");
  refused(
      "llama", [](auto& o) { o.experts = 4, o.experts_used = 5; },
      "--experts-used: expected 1 to --experts, 4, got 5");
  refused(
      "llama", [](auto& o) { o.experts = 4097; }, "--experts: expected 1 to 4096, got 4097");
  refused(
      "qwen3moe", [](auto& o) { o.ffn_dim = 100; }, "--ffn-dim 100: a row is not a multiple of 32");
  refused(
      "qwen3moe", [](auto& o) { o.experts_used = 8, o.ffn_dim = 1u << 22; },
      "--experts-used times --ffn-dim: expected 1 to 16777216, got 33554432");
  // All of them at once.
  SynthOptions o = small("olmo2");
  o.experts = 4;
  o.window = 9;
  o.bias = true;
  o.rope_scaling = "llama3:8:8192";
  o.ffn_dim = 7;
  for (const char* part : {"--experts", "--window", "--bias", "--rope-scaling", "--ffn-dim 7"})
    EXPECT_THAT(error_of(o), HasSubstr(part));
}

}  // namespace
}  // namespace greta
