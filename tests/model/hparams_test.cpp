#include "model/hparams.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "model/rope.h"
#include "small_file.h"

namespace greta {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing_model::SmallFile;

std::vector<std::string> problems(const SmallFile& small) {
  const auto file = small.open();
  std::vector<std::string> lines;
  for (const auto& problem : read_hparams(file).problems) lines.push_back(problem.text());
  return lines;
}

HParams good(const SmallFile& small) {
  const auto file = small.open();
  const auto read = read_hparams(file);
  EXPECT_THAT(read.problems, IsEmpty()) << read.problems[0].text();
  return read.hp;
}

TEST(HParams, EverythingFromTheFile) {
  const auto hp = good(SmallFile());
  EXPECT_EQ(hp.architecture, "llama");
  EXPECT_EQ(hp.name, "small");
  EXPECT_EQ(hp.layers, 2);
  EXPECT_EQ(hp.dim, 32);
  EXPECT_EQ(hp.heads, 4);
  EXPECT_EQ(hp.kv_heads, 2);
  EXPECT_EQ(hp.head_dim, 8);
  EXPECT_EQ(hp.q_dim(), 32);
  EXPECT_EQ(hp.kv_dim(), 16);
  EXPECT_EQ(hp.ffn_dim, 64);
  EXPECT_EQ(hp.vocab, 48);
  EXPECT_EQ(hp.context, 1024);
  EXPECT_EQ(hp.norm_eps, 1e-5f);
  EXPECT_EQ(hp.embedding_scale, 1.0f);
  EXPECT_FLOAT_EQ(static_cast<float>(hp.attention_scale), 1.0f / std::sqrt(8.0f));
  EXPECT_EQ(hp.activation, Activation::silu);
  EXPECT_EQ(hp.rope.style, RopeStyle::adjacent);
  EXPECT_EQ(hp.rope.dims, 8);
  ASSERT_EQ(hp.rope.inv_freq.size(), 4u);
  EXPECT_EQ(hp.rope.inv_freq[2], 0.01);
  EXPECT_EQ(hp.rope_base, 10000.0);
  EXPECT_EQ(hp.rope_scaling, "none");
}

TEST(HParams, DefaultsOfAbsentKeys) {
  SmallFile small;
  small.erase("llama.attention.head_count_kv").erase("llama.vocab_size").erase("general.name");
  const auto hp = good(small);
  EXPECT_EQ(hp.kv_heads, 4);
  EXPECT_EQ(hp.vocab, 48);
  EXPECT_EQ(hp.name, "small.gguf");
}

TEST(HParams, StatedHeadDimRopeAndScales) {
  SmallFile small;
  small.u32("llama.attention.key_length", 16).u32("llama.attention.value_length", 16);
  small.u32("llama.rope.dimension_count", 6).f32("llama.rope.freq_base", 500000.0f);
  small.f32("llama.attention.scale", 0.125f).f32("llama.embedding_scale", 2.0f);
  const auto hp = good(small);
  EXPECT_EQ(hp.head_dim, 16);
  EXPECT_EQ(hp.q_dim(), 64);
  EXPECT_EQ(hp.rope.dims, 6);
  EXPECT_EQ(hp.rope.inv_freq.size(), 3u);
  EXPECT_EQ(hp.rope_base, 500000.0);
  EXPECT_EQ(hp.attention_scale, 0.125f);
  EXPECT_EQ(hp.embedding_scale, 2.0f);
}

TEST(HParams, DimNeedNotBeDivisibleWhereKeyLengthIsGiven) {
  EXPECT_EQ(
      good(SmallFile().u32("llama.attention.head_count", 6).u32("llama.attention.key_length", 8)).head_dim,
      8);
}

TEST(HParams, PerLayerArraysOfOneNumber) {
  const auto hp = good(SmallFile()
                           .i32s("llama.attention.head_count", {4, 4})
                           .i32s("llama.attention.head_count_kv", {2, 2})
                           .i32s("llama.feed_forward_length", {64, 64}));
  EXPECT_EQ(hp.heads, 4);
  EXPECT_EQ(hp.kv_heads, 2);
  EXPECT_EQ(hp.ffn_dim, 64);
}

TEST(HParams, ScalingsReachTheFrequencies) {
  SmallFile linear;
  linear.set("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0f);
  EXPECT_EQ(good(linear).rope.inv_freq[0], 0.25);
  EXPECT_EQ(good(linear).rope_scaling, "linear 4");
  EXPECT_EQ(good(SmallFile().f32("llama.rope.scale_linear", 2.0f)).rope.inv_freq[0], 0.5);

  SmallFile yarn;
  yarn.set("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0f);
  yarn.u32("llama.rope.scaling.original_context_length", 256).f32("llama.rope.scaling.attn_factor", 0.5f);
  yarn.f32("llama.rope.scaling.yarn_beta_fast", 16.0f).f32("llama.rope.scaling.yarn_beta_slow", 2.0f);
  RopeSettings settings;
  settings.dims = 8;
  settings.scaling = RopeScaling::yarn;
  settings.factor = 4.0;
  settings.original_context = 256.0;
  settings.attn_factor = 0.5;
  settings.beta_fast = 16.0;
  settings.beta_slow = 2.0;
  const auto want = make_rope(RopeStyle::adjacent, settings);
  const auto got = good(yarn);
  EXPECT_EQ(got.rope.inv_freq, want.inv_freq);
  EXPECT_EQ(got.rope.magnitude, want.magnitude);
  EXPECT_EQ(got.rope_scaling, "yarn 4 of 256");

  SmallFile factors;
  factors.tensor("rope_freqs.weight", {4}, quant::Type::F32, {1.0f, 2.0f, 4.0f, 8.0f});
  const auto hp = good(factors);
  EXPECT_EQ(hp.rope.inv_freq, (std::vector<double>{1.0, 0.1 / 2, 0.01 / 4, 0.001 / 8}));
  EXPECT_EQ(hp.rope_scaling, "factors in rope_freqs.weight");
}

struct Broken {
  const char* what;
  std::function<void(SmallFile&)> change;
  std::vector<std::string> lines;
};

class BrokenMetadata : public testing::TestWithParam<Broken> {};

TEST_P(BrokenMetadata, IsReportedWithKeyExpectedAndGot) {
  SmallFile small;
  GetParam().change(small);
  EXPECT_EQ(problems(small), GetParam().lines) << GetParam().what;
}

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Architecture, BrokenMetadata,
    testing::Values(
        Broken{
            "missing",
            [](auto& f) { f.erase("general.architecture"); },
            {"general.architecture: expected a string, got no such key (the file's metadata is incomplete)"}},
        Broken{"type",
               [](auto& f) { f.u32("general.architecture", 7); },
               {"general.architecture: expected a string, got u32 7"}},
        Broken{"unknown",
               [](auto& f) { f.set("general.architecture", "mamba\n"); },
               {"general.architecture: expected " + architecture_names() +
                    ", got \"mamba\\x0a\" (this build does not know that architecture; "
                    "docs/adding-an-architecture.md says how one is added)",
                "tensors that other architectures have: expected rules of a new entry, got "
                "token_embd.weight (embedding), output_norm.weight (final_norm), output.weight (head), "
                "blk.{}.attn_norm.weight (attn_norm), blk.{}.attn_q.weight (wq), blk.{}.attn_k.weight (wk), "
                "blk.{}.attn_v.weight (wv), blk.{}.attn_output.weight (wo), blk.{}.ffn_norm.weight "
                "(ffn_norm), blk.{}.ffn_gate.weight (w_gate), blk.{}.ffn_up.weight (w_up or w_gate + w_up), "
                "blk.{}.ffn_down.weight (w_down) (in brackets the role that each has there)"}}));

INSTANTIATE_TEST_SUITE_P(Missing, BrokenMetadata,
                         testing::Values(Broken{"layers",
                                                [](auto& f) { f.erase("llama.block_count"); },
                                                {"llama.block_count: expected an integer, 1 to 4096, got no "
                                                 "such key (the file's metadata is incomplete)"}},
                                         Broken{"dim",
                                                [](auto& f) { f.erase("llama.embedding_length"); },
                                                {"llama.embedding_length: expected an integer, 1 to 1048576, "
                                                 "got no such key (the file's metadata is "
                                                 "incomplete)"}},
                                         Broken{"ffn",
                                                [](auto& f) { f.erase("llama.feed_forward_length"); },
                                                {"llama.feed_forward_length: expected an integer, 1 to "
                                                 "16777216, got no such key (the file's metadata "
                                                 "is incomplete)"}},
                                         Broken{"context",
                                                [](auto& f) { f.erase("llama.context_length"); },
                                                {"llama.context_length: expected an integer, 1 to "
                                                 "1073741824, got no such key (the file's metadata is "
                                                 "incomplete)"}},
                                         Broken{"heads",
                                                [](auto& f) { f.erase("llama.attention.head_count"); },
                                                {"llama.attention.head_count: expected an integer, 1 to "
                                                 "16384, got no such key (the file's metadata is "
                                                 "incomplete)"}},
                                         Broken{"eps",
                                                [](auto& f) {
                                                  f.erase("llama.attention.layer_norm_rms_epsilon");
                                                },
                                                {"llama.attention.layer_norm_rms_epsilon: expected f32, "
                                                 "above 0 and at most 1, got no such key (the "
                                                 "file's metadata is incomplete)"}}));

INSTANTIATE_TEST_SUITE_P(
    TypeOrRange, BrokenMetadata,
    testing::Values(
        Broken{"layers a string",
               [](auto& f) { f.set("llama.block_count", "2"); },
               {"llama.block_count: expected an integer, 1 to 4096, got string \"2\""}},
        Broken{"layers a float",
               [](auto& f) { f.f32("llama.block_count", 2.0f); },
               {"llama.block_count: expected an integer, 1 to 4096, got f32 2"}},
        Broken{"no layers",
               [](auto& f) { f.u32("llama.block_count", 0); },
               {"llama.block_count: expected an integer, 1 to 4096, got u32 0"}},
        Broken{"absurd layers",
               [](auto& f) { f.u32("llama.block_count", 4000000000u); },
               {"llama.block_count: expected an integer, 1 to 4096, got u32 4000000000"}},
        Broken{"past int64",
               [](auto& f) {
                 f.put("llama.context_length", [](auto& w, const auto& k) { w.add_u64(k, ~uint64_t{0}); });
               },
               {"llama.context_length: expected an integer, 1 to 1073741824, got u64 18446744073709551615"}},
        Broken{
            "negative",
            [](auto& f) { f.put("llama.context_length", [](auto& w, const auto& k) { w.add_i32(k, -5); }); },
            {"llama.context_length: expected an integer, 1 to 1073741824, got i32 -5"}},
        Broken{"past int64 in every layer",
               [](auto& f) {
                 f.put("llama.attention.head_count_kv", [](auto& w, const auto& k) {
                   static const uint64_t most[] = {~uint64_t{0}, ~uint64_t{0}};
                   w.add_value(
                       k, {gguf::ValueType::Array,
                           gguf::Array{gguf::ValueType::U64, 2, std::as_bytes(std::span(most)), {}, {}}});
                 });
               },
               {"llama.attention.head_count_kv: expected an integer, 1 to 16384, got 18446744073709551615 in "
                "every layer"}},
        Broken{"past int64 in one layer",
               [](auto& f) {
                 f.put("llama.attention.head_count_kv", [](auto& w, const auto& k) {
                   static const uint64_t unlike[] = {2, ~uint64_t{0}};
                   w.add_value(
                       k, {gguf::ValueType::Array,
                           gguf::Array{gguf::ValueType::U64, 2, std::as_bytes(std::span(unlike)), {}, {}}});
                 });
               },
               {"llama.attention.head_count_kv: expected the same number in every layer, got 2 in layer 0, "
                "18446744073709551615 in layer 1 (layers of unlike shapes are not supported)"}},
        Broken{"array where no layers are",
               [](auto& f) {
                 f.i32s("llama.embedding_length", {32, 32});
               },
               {"llama.embedding_length: expected an integer, 1 to 1048576, got array of 2 i32"}},
        Broken{"eps an integer",
               [](auto& f) { f.u32("llama.attention.layer_norm_rms_epsilon", 1); },
               {"llama.attention.layer_norm_rms_epsilon: expected f32, above 0 and at most 1, got u32 1"}},
        Broken{"eps zero",
               [](auto& f) { f.f32("llama.attention.layer_norm_rms_epsilon", 0.0f); },
               {"llama.attention.layer_norm_rms_epsilon: expected f32, above 0 and at most 1, got f32 0"}},
        Broken{"eps NaN",
               [](auto& f) { f.f32("llama.attention.layer_norm_rms_epsilon", kNan); },
               {"llama.attention.layer_norm_rms_epsilon: expected f32, above 0 and at most 1, got f32 nan"}},
        Broken{"base infinite",
               [](auto& f) { f.f32("llama.rope.freq_base", kInf); },
               {"llama.rope.freq_base: expected f32, above 1 and at most 1e+15, got f32 inf"}},
        Broken{"base 1",
               [](auto& f) { f.f32("llama.rope.freq_base", 1.0f); },
               {"llama.rope.freq_base: expected f32, above 1 and at most 1e+15, got f32 1"}},
        Broken{"kv heads a bool",
               [](auto& f) { f.boolean("llama.attention.head_count_kv", true); },
               {"llama.attention.head_count_kv: expected an integer, 1 to 16384, got bool true"}},
        Broken{"key length",
               [](auto& f) { f.u32("llama.attention.key_length", 1); },
               {"llama.attention.key_length: expected an integer, 2 to 8192, got u32 1"}},
        Broken{"yarn's share of the ramp",
               [](auto& f) {
                 f.set("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0f);
                 f.u32("llama.rope.scaling.original_context_length", 256);
                 f.f32("llama.rope.scaling.yarn_ext_factor", -1.0f);
               },
               {"llama.rope.scaling.yarn_ext_factor: expected f32, 0 or above 0 and at most 1, got f32 -1"}},
        Broken{"attention scale",
               [](auto& f) { f.f32("llama.attention.scale", -1.0f); },
               {"llama.attention.scale: expected f32, above 0 and at most 1e+06, got f32 -1"}},
        Broken{"scaling type an integer",
               [](auto& f) { f.u32("llama.rope.scaling.type", 2); },
               {"llama.rope.scaling.type: expected a string, got u32 2"}}));

INSTANTIATE_TEST_SUITE_P(
    Contradiction, BrokenMetadata,
    testing::Values(
        Broken{"heads and kv heads",
               [](auto& f) { f.u32("llama.attention.head_count_kv", 3); },
               {"llama.attention.head_count_kv: expected a divisor of head_count (4), got 3"}},
        Broken{"more kv heads than heads",
               [](auto& f) { f.u32("llama.attention.head_count_kv", 8); },
               {"llama.attention.head_count_kv: expected a divisor of head_count (4), got 8"}},
        Broken{
            "dim and heads",
            [](auto& f) { f.u32("llama.attention.head_count", 5).u32("llama.attention.head_count_kv", 5); },
            {"llama.embedding_length: expected a multiple of head_count (5) by 2 to 8192, as no "
             "attention.key_length is given, got 32"}},
        Broken{
            "key and value lengths",
            [](auto& f) { f.u32("llama.attention.key_length", 8).u32("llama.attention.value_length", 16); },
            {"llama.attention.value_length: expected 8, as the keys', got 16 (keys and values of unlike "
             "lengths are "
             "not supported)"}},
        Broken{"layers unlike",
               [](auto& f) {
                 f.i32s("llama.attention.head_count", {4, 2});
               },
               {"llama.attention.head_count: expected the same number in every layer, got 4 in layer 0, 2 in "
                "layer 1 "
                "(layers of unlike shapes are not supported)"}},
        Broken{"array of another length",
               [](auto& f) {
                 f.i32s("llama.attention.head_count_kv", {2, 2, 2});
               },
               {"llama.attention.head_count_kv: expected one number for each of 2 layers, got 3 numbers"}},
        Broken{"empty array",
               [](auto& f) { f.i32s("llama.attention.head_count_kv", {}); },
               {"llama.attention.head_count_kv: expected an integer, 1 to 16384, got array of 0 i32"}},
        Broken{"array of zeros",
               [](auto& f) {
                 f.i32s("llama.attention.head_count_kv", {0, 0});
               },
               {"llama.attention.head_count_kv: expected an integer, 1 to 16384, got 0 in every layer"}},
        Broken{"odd rope dimensions",
               [](auto& f) { f.u32("llama.rope.dimension_count", 5); },
               {"llama.rope.dimension_count: expected an even number of at most head_dim (8), got 5"}},
        Broken{"more rope dimensions than there are",
               [](auto& f) { f.u32("llama.rope.dimension_count", 10); },
               {"llama.rope.dimension_count: expected an even number of at most head_dim (8), got 10"}},
        Broken{"vocabulary",
               [](auto& f) { f.u32("llama.vocab_size", 50); },
               {"llama.vocab_size: expected 48, the rows of token_embd.weight, got 50"}}));

INSTANTIATE_TEST_SUITE_P(
    Scaling, BrokenMetadata,
    testing::Values(
        Broken{
            "unknown type",
            [](auto& f) { f.set("llama.rope.scaling.type", "longrope"); },
            {"llama.rope.scaling.type: expected none, linear or yarn, got \"longrope\" (this engine does not "
             "compute it)"}},
        Broken{"linear without factor",
               [](auto& f) { f.set("llama.rope.scaling.type", "linear"); },
               {"llama.rope.scaling.factor: expected f32, as the scaling is linear, got no such key"}},
        Broken{"yarn without anything",
               [](auto& f) { f.set("llama.rope.scaling.type", "yarn"); },
               {"llama.rope.scaling.factor: expected f32, as the scaling is yarn, got no such key",
                "llama.rope.scaling.original_context_length: expected an integer, 1 to 1073741824, got no "
                "such key "
                "(the file's metadata is incomplete)"}},
        Broken{
            "none with a factor",
            [](auto& f) { f.set("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4.0f); },
            {"llama.rope.scaling.type: expected linear or yarn, as a factor of 4 is given, got none"}},
        Broken{"two factors",
               [](auto& f) { f.f32("llama.rope.scale_linear", 2.0f).f32("llama.rope.scaling.factor", 4.0f); },
               {"llama.rope.scale_linear: expected 4, as rope.scaling.factor, got 2"}},
        Broken{"factor zero",
               [](auto& f) {
                 f.set("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 0.0f);
               },
               {"llama.rope.scaling.factor: expected f32, above 0 and at most 65536, got f32 0"}},
        Broken{"betas the wrong way round",
               [](auto& f) {
                 f.set("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0f);
                 f.u32("llama.rope.scaling.original_context_length", 256);
                 f.f32("llama.rope.scaling.yarn_beta_fast", 1.0f)
                     .f32("llama.rope.scaling.yarn_beta_slow", 32.0f);
               },
               {"llama.rope.scaling.yarn_beta_fast: expected above yarn_beta_slow (32), got 1"}},
        Broken{
            "original context longer than the context",
            [](auto& f) {
              f.set("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0f);
              f.u32("llama.rope.scaling.original_context_length", 2048);
            },
            {"llama.rope.scaling.original_context_length: expected at most context_length (1024), got 2048"}},
        Broken{"factors of another type",
               [](auto& f) { f.tensor("rope_freqs.weight", {4}, quant::Type::F16); },
               {"rope_freqs.weight: expected F32 numbers, got F16"}},
        Broken{"a factor of zero",
               [](auto& f) {
                 f.tensor("rope_freqs.weight", {4}, quant::Type::F32, {1.0f, 2.0f, 0.0f, 1.0f});
               },
               {"rope_freqs.weight: expected finite numbers above 0, got 0 at index 2"}},
        Broken{"a factor that is not a number",
               [](auto& f) {
                 f.tensor("rope_freqs.weight", {4}, quant::Type::F32, {1.0f, kNan, 1.0f, 1.0f});
               },
               {"rope_freqs.weight: expected finite numbers above 0, got nan at index 1"}}));

INSTANTIATE_TEST_SUITE_P(
    NotComputed, BrokenMetadata,
    testing::Values(
        Broken{"experts that every token uses",
               [](auto& f) { f.u32("llama.expert_shared_count", 1); },
               {"llama.expert_shared_count: expected no such key, or 0, got u32 1 (experts that every token "
                "uses: this engine does not compute it)"}},
        Broken{"another router",
               [](auto& f) { f.u32("llama.expert_gating_func", 2); },
               {"llama.expert_gating_func: expected no such key, or 1, got u32 2 (a router other than "
                "softmax: this engine does not compute it)"}},
        Broken{"experts without a number used",
               [](auto& f) { f.u32("llama.expert_count", 8); },
               {"llama.expert_used_count: expected an integer, 0 to 4096, got no such key (the file's "
                "metadata is "
                "incomplete)"}},
        Broken{"more experts used than there are",
               [](auto& f) { f.u32("llama.expert_count", 2).u32("llama.expert_used_count", 3); },
               {"llama.expert_used_count: expected 1 to expert_count (2), got 3"}},
        Broken{"an absurd number of experts",
               [](auto& f) {
                 f.u32("llama.expert_count", 5000).u32("llama.expert_used_count", 2);
                 f.erase("llama.feed_forward_length").u32("llama.expert_feed_forward_length", 32);
                 f.boolean("llama.expert_weights_norm", true);
               },
               {"llama.expert_count: expected an integer, 0 to 4096, got u32 5000"}},
        Broken{"experts used of none",
               [](auto& f) { f.u32("llama.expert_used_count", 3); },
               {"llama.expert_used_count: expected 0, as there is no expert_count, got 3"}},
        Broken{
            "a pattern of another length",
            [](auto& f) {
              f.u32("llama.attention.sliding_window", 64).set("llama.attention.sliding_window_pattern", "x");
            },
            {"llama.attention.sliding_window_pattern: expected a number of layers, or an array of 2 bools, "
             "got string \"x\""}},
        Broken{"neutral values",
               [](auto& f) { f.u32("llama.expert_count", 0).boolean("llama.attention.causal", true); },
               {}},
        Broken{"not causal",
               [](auto& f) { f.boolean("llama.attention.causal", false); },
               {"llama.attention.causal: expected no such key, or true, got bool false (attention to later "
                "positions: "
                "this engine does not compute it)"}},
        Broken{
            "an unknown key that steers attention",
            [](auto& f) { f.u32("llama.attention.novelty", 3); },
            {"llama.attention.novelty: expected a key that this engine knows, got u32 3 (it may change the "
             "arithmetic; running without it would be another model)"}}));

TEST(HParams, EverythingWrongIsInOneReport) {
  SmallFile small;
  small.u32("llama.block_count", 0).erase("llama.embedding_length").set("llama.feed_forward_length", "64");
  small.u32("llama.attention.head_count_kv", 3).f32("llama.attention.layer_norm_rms_epsilon", kNan);
  small.u32("llama.expert_shared_count", 8).f32("llama.rope.freq_base", -1.0f).u32("llama.vocab_size", 1);
  const auto file = small.open();
  const auto read = read_hparams(file);
  std::vector<std::string> keys;
  for (const auto& problem : read.problems) keys.push_back(problem.where);
  EXPECT_THAT(keys, ElementsAre("llama.block_count", "llama.embedding_length", "llama.feed_forward_length",
                                "llama.attention.layer_norm_rms_epsilon", "llama.attention.head_count_kv",
                                "llama.vocab_size", "llama.rope.freq_base", "llama.expert_shared_count"));
  EXPECT_EQ(read.hp.heads, 4);  // what is sound is there
  EXPECT_EQ(read.hp.context, 1024);
  EXPECT_EQ(read.hp.layers, 0);  // what is not, is 0
}

/// Phi-3 with a window and long factors: local layers without a base of their own follow the run's choice.
TEST(HParams, LocalLayersTakeTheLongFactorsToo) {
  const auto file =
      gguf::File::open(std::string(GRETA_SOURCE_DIR) + "/tests/golden/models/phi3_longrope.gguf");
  HParams hp = read_hparams(file).hp;
  ASSERT_GT(hp.long_rope.dims, 0);
  hp.window = 20;
  hp.local.assign(static_cast<size_t>(hp.layers), true);
  EXPECT_EQ(hp.rope_of(0).inv_freq, hp.rope.inv_freq);
  hp.rope = hp.long_rope;  // as the plan does for a long context
  EXPECT_EQ(hp.rope_of(0).inv_freq, hp.long_rope.inv_freq);
}

/// A file of another architecture: llama's keys and tensors under its name.
SmallFile renamed(const std::string& architecture) {
  SmallFile small;
  small.set("general.architecture", architecture);
  for (const char* key : {"block_count", "context_length", "embedding_length", "feed_forward_length",
                          "attention.head_count", "attention.head_count_kv", "vocab_size"})
    small.erase(std::string("llama.") + key);
  small.erase("llama.attention.layer_norm_rms_epsilon");
  small.u32(architecture + ".block_count", 8).u32(architecture + ".context_length", 1024);
  small.u32(architecture + ".embedding_length", 32).u32(architecture + ".feed_forward_length", 64);
  small.u32(architecture + ".attention.head_count", 4).u32(architecture + ".attention.head_count_kv", 2);
  return small.f32(architecture + ".attention.layer_norm_rms_epsilon", 1e-6f);
}

TEST(HParams, Gemma2WithoutItsKeysIsStillGemma2AndSaysSo) {
  const auto file = renamed("gemma2").open();
  const auto read = read_hparams(file);
  EXPECT_THAT(read.problems, IsEmpty());
  EXPECT_EQ(read.hp.window, 4096);
  EXPECT_EQ(read.hp.local, (std::vector<bool>{true, false, true, false, true, false, true, false}));
  EXPECT_EQ(read.hp.attention_softcap, 50.0);
  EXPECT_EQ(read.hp.logits_softcap, 30.0);
  EXPECT_THAT(
      read.warnings,
      ElementsAre(
          "gemma2.attn_logit_softcapping: no such key; 50 is taken, as published gemma2 models have it",
          "gemma2.final_logit_softcapping: no such key; 30 is taken, as published gemma2 models have it",
          "gemma2.attention.sliding_window: no such key; 4096 is taken, as published gemma2 models have it"));

  const auto stated = renamed("gemma2")
                          .f32("gemma2.attn_logit_softcapping", 8.0f)
                          .f32("gemma2.final_logit_softcapping", 0.0f)
                          .u32("gemma2.attention.sliding_window", 0)
                          .open();
  const auto as_said = read_hparams(stated);
  EXPECT_THAT(as_said.warnings, IsEmpty());
  EXPECT_EQ(as_said.hp.attention_softcap, 8.0);
  EXPECT_EQ(as_said.hp.logits_softcap, 0.0);  // said: none
  EXPECT_EQ(as_said.hp.window, 0);
}

TEST(HParams, AWindowInWhichPublishedModelsDifferIsNotGuessed) {
  for (const std::string name : {"gemma3", "phi3"}) {
    SmallFile small = renamed(name);
    if (name == "gemma3") {
      EXPECT_THAT(problems(small),
                  testing::Contains("gemma3.rope.freq_base: expected f32, above 1 and at most "
                                    "1e+15, got no such key (the file's metadata is "
                                    "incomplete)"));
      small.f32("gemma3.rope.freq_base", 1e6f);
    }
    EXPECT_THAT(problems(small),
                ElementsAre(name + ".attention.sliding_window: expected an integer, 0 to 1073741824, got no "
                                   "such key (the file's metadata is incomplete)"));
    EXPECT_EQ(good(small.u32(name + ".attention.sliding_window", 0)).window, 0);
  }
  // Phi-3's first files have no key, and their contexts tell them apart.
  for (const auto& [context, window] : {std::pair{4096u, 2047}, std::pair{131072u, 262144}}) {
    const auto file = renamed("phi3").u32("phi3.context_length", context).open();
    const auto read = read_hparams(file);
    EXPECT_THAT(read.problems, IsEmpty());
    EXPECT_EQ(read.hp.window, window);
    EXPECT_EQ(read.hp.local, std::vector<bool>(8, true));
    EXPECT_THAT(
        read.warnings,
        ElementsAre(fmt::format("phi3.attention.sliding_window: no such key; {} is taken, as published phi3 "
                                "models have it",
                                window)));
  }
  for (const std::string name : {"llama", "qwen2", "qwen3", "qwen3moe", "olmo2"}) {
    const auto file = renamed(name).f32(name + ".rope.freq_base", 1e6f).open();
    EXPECT_THAT(read_hparams(file).problems, IsEmpty()) << name;
    EXPECT_THAT(read_hparams(file).warnings, IsEmpty()) << name;
  }
}

TEST(HParams, ARotaryBaseThatPublishedModelsStateIsNotGuessed) {
  for (const std::string name : {"qwen2", "qwen3", "qwen3moe", "olmo2"})
    EXPECT_THAT(problems(renamed(name)),
                ElementsAre(name + ".rope.freq_base: expected f32, above 1 and at most 1e+15, got no such "
                                   "key (the file's metadata is incomplete)"));
  EXPECT_EQ(good(renamed("llama")).rope_base, 10000.0);  // Llama 2's, whose files may lack the key
}

/// With a magnitude of 1 it would be another model.
TEST(HParams, LongFactorsNeedTheirMagnitude) {
  SmallFile small = renamed("phi3");
  small.u32("phi3.attention.sliding_window", 0).u32("phi3.rope.scaling.original_context_length", 128);
  for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"})
    small.tensor(name, {4}, quant::Type::F32, {1.0f, 1.0f, 2.0f, 4.0f});
  EXPECT_THAT(
      problems(small),
      ElementsAre("phi3.rope.scaling.attn_factor: expected f32, above 0 and at most 1000, got no such key "
                  "(the file's metadata is incomplete)"));
  EXPECT_FLOAT_EQ(static_cast<float>(good(small.f32("phi3.rope.scaling.attn_factor", 1.25f)).rope.magnitude),
                  1.25f);
}

/// OLMo 3's files say olmo2: three local layers of four, of which none turns scaled.
TEST(HParams, LocalLayersOfOlmoTurnUnscaled) {
  SmallFile small = renamed("olmo2");
  small.u32("olmo2.attention.sliding_window", 64).f32("olmo2.rope.freq_base", 500000.0f);
  small.set("olmo2.rope.scaling.type", "yarn").f32("olmo2.rope.scaling.factor", 8.0f);
  small.u32("olmo2.rope.scaling.original_context_length", 128);
  const auto hp = good(small);
  EXPECT_EQ(hp.local, (std::vector<bool>{true, true, true, false, true, true, true, false}));
  RopeSettings plain;
  plain.dims = 8;
  plain.base = 500000.0;
  EXPECT_EQ(hp.rope_of(0).inv_freq, make_rope(RopeStyle::half, plain).inv_freq);
  EXPECT_EQ(hp.rope_of(0).magnitude, 1.0);
  EXPECT_NE(hp.rope_of(3).inv_freq, hp.rope_of(0).inv_freq);
  EXPECT_GT(hp.rope_of(3).magnitude, 1.0);
}

TEST(HParams, HarmlessKeysAreWarnings) {
  SmallFile small;
  small.set("llama.tensor_data_layout", "Meta AI original pth").boolean("llama.rope.scaling.finetuned", true);
  small.u32("llama.novelty", 3).u32("llama.rope.scaling.original_context_length", 512);
  const auto file = small.open();
  const auto read = read_hparams(file);
  EXPECT_THAT(read.problems, IsEmpty());
  EXPECT_THAT(
      read.warnings,
      ElementsAre(
          "llama.novelty is not read by this engine",
          "llama.rope.scaling.original_context_length has no effect: the rotary scaling is not yarn"));
}

}  // namespace
}  // namespace greta
