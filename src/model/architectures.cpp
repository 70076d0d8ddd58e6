// Source of the tensor names and of each architecture's rotary pairing: the GGUF specification (ggml project,
// docs/gguf.md) and the `gguf` Python package's constants.
#include "model/architectures.h"

#include <fmt/format.h>

#include <initializer_list>

namespace greta {

namespace {

using Rules = std::vector<TensorRule>;

Rules join(std::initializer_list<Rules> groups) {
  Rules all;
  for (const auto& group : groups) all.insert(all.end(), group.begin(), group.end());
  return all;
}

/// Optional tensors that are there together.
Rules together(std::string_view set, Rules rules) {
  for (TensorRule& rule : rules) rule.set = set;
  return rules;
}

constexpr auto kMatmul = WeightUse::matmul;
constexpr auto kVector = WeightUse::vector;
constexpr auto kExpertStack = WeightUse::experts;

const Rules kEnds = {
    {"token_embd.weight", Role::embedding, WeightUse::embedding, Dim::vocab, Dim::dim},
    {"output_norm.weight", Role::final_norm, kVector, Dim::one, Dim::dim},
    {"output.weight", Role::head, kMatmul, Dim::vocab, Dim::dim, Need::else_embedding},
};

const Rules kPreNorms = {
    {"blk.{}.attn_norm.weight", Role::attn_norm, kVector, Dim::one, Dim::dim},
    {"blk.{}.ffn_norm.weight", Role::ffn_norm, kVector, Dim::one, Dim::dim},
};

const Rules kPostNorms = {
    {"blk.{}.post_attention_norm.weight", Role::attn_post_norm, kVector, Dim::one, Dim::dim},
    {"blk.{}.post_ffw_norm.weight", Role::mlp_post_norm, kVector, Dim::one, Dim::dim},
};

const Rules kHeadNorms = {
    {"blk.{}.attn_q_norm.weight", Role::q_norm, kVector, Dim::one, Dim::head_dim},
    {"blk.{}.attn_k_norm.weight", Role::k_norm, kVector, Dim::one, Dim::head_dim},
};

const Rules kRowNorms = {
    {"blk.{}.attn_q_norm.weight", Role::q_norm, kVector, Dim::one, Dim::q_dim},
    {"blk.{}.attn_k_norm.weight", Role::k_norm, kVector, Dim::one, Dim::kv_dim},
};

const Rules kAttention = {
    {"blk.{}.attn_q.weight", Role::wq, kMatmul, Dim::q_dim, Dim::dim},
    {"blk.{}.attn_k.weight", Role::wk, kMatmul, Dim::kv_dim, Dim::dim},
    {"blk.{}.attn_v.weight", Role::wv, kMatmul, Dim::kv_dim, Dim::dim},
    {"blk.{}.attn_output.weight", Role::wo, kMatmul, Dim::dim, Dim::q_dim},
};

const Rules kGatedFfn = {
    {"blk.{}.ffn_gate.weight", Role::w_gate, kMatmul, Dim::ffn_dim, Dim::dim, Need::required, When::dense},
    {"blk.{}.ffn_up.weight", Role::w_up, kMatmul, Dim::ffn_dim, Dim::dim, Need::required, When::dense},
    {"blk.{}.ffn_down.weight", Role::w_down, kMatmul, Dim::dim, Dim::ffn_dim, Need::required, When::dense},
};

/// Fused: q, k and v in one tensor; gate and up in another.
const Rules kFused = {
    {"blk.{}.attn_qkv.weight",
     Role::wq,
     kMatmul,
     Dim::q_dim,
     Dim::dim,
     Need::required,
     When::always,
     {{Role::wk, Dim::kv_dim}, {Role::wv, Dim::kv_dim}}},
    {"blk.{}.attn_output.weight", Role::wo, kMatmul, Dim::dim, Dim::q_dim},
    {"blk.{}.ffn_up.weight",
     Role::w_gate,
     kMatmul,
     Dim::ffn_dim,
     Dim::dim,
     Need::required,
     When::always,
     {{Role::w_up, Dim::ffn_dim}}},
    {"blk.{}.ffn_down.weight", Role::w_down, kMatmul, Dim::dim, Dim::ffn_dim},
};

const Rules kExperts = {
    {"blk.{}.ffn_gate_inp.weight", Role::router, kMatmul, Dim::experts, Dim::dim, Need::required,
     When::mixture},
    {"blk.{}.ffn_gate_exps.weight", Role::expert_gate, kExpertStack, Dim::expert_ffn_dim, Dim::dim,
     Need::required, When::mixture},
    {"blk.{}.ffn_up_exps.weight", Role::expert_up, kExpertStack, Dim::expert_ffn_dim, Dim::dim,
     Need::required, When::mixture},
    {"blk.{}.ffn_down_exps.weight", Role::expert_down, kExpertStack, Dim::dim, Dim::expert_ffn_dim,
     Need::required, When::mixture},
};

const Rules kInputBiases = {
    {"blk.{}.attn_q.bias", Role::bq, kVector, Dim::one, Dim::q_dim, Need::optional},
    {"blk.{}.attn_k.bias", Role::bk, kVector, Dim::one, Dim::kv_dim, Need::optional},
    {"blk.{}.attn_v.bias", Role::bv, kVector, Dim::one, Dim::kv_dim, Need::optional},
};
const Rules kOutputBias = {
    {"blk.{}.attn_output.bias", Role::bo, kVector, Dim::one, Dim::dim, Need::optional},
};
const Rules kFfnBiases = {
    {"blk.{}.ffn_gate.bias", Role::b_gate, kVector, Dim::one, Dim::ffn_dim, Need::optional, When::dense},
    {"blk.{}.ffn_up.bias", Role::b_up, kVector, Dim::one, Dim::ffn_dim, Need::optional, When::dense},
    {"blk.{}.ffn_down.bias", Role::b_down, kVector, Dim::one, Dim::dim, Need::optional, When::dense},
};
const Rules kOptionalBiases =
    join({together("q, k, v", kInputBiases), kOutputBias, together("gate, up, down", kFfnBiases)});

/// Divisors of the rotary frequencies, one a pair (Llama 3.1 and later): they end in HParams::rope.
const Rules kRopeFactors = {
    {"rope_freqs.weight", std::nullopt, kVector, Dim::one, Dim::rope_pairs, Need::optional},
};
/// Two sets of divisors, for contexts up to the original one and for longer ones ("LongRoPE").
const Rules kLongRopeFactors = {
    {"rope_factors_short.weight", std::nullopt, kVector, Dim::one, Dim::rope_pairs, Need::optional},
    {"rope_factors_long.weight", std::nullopt, kVector, Dim::one, Dim::rope_pairs, Need::optional},
};

const std::vector<Architecture>& table() {
  constexpr auto kHalf = RopeStyle::half;
  constexpr auto kSilu = Activation::silu;
  constexpr auto kGelu = Activation::gelu_tanh;
  static const std::vector<Architecture> entries = {
      {.name = "llama",
       .rope = RopeStyle::adjacent,
       .activation = kSilu,
       .tensors = join({kEnds, kRopeFactors, kPreNorms, kAttention, kGatedFfn, kExperts, kOptionalBiases}),
       .mixture = true},
      {.name = "qwen2",
       .rope = kHalf,
       .activation = kSilu,
       .tensors = join({kEnds, kPreNorms, kAttention, kGatedFfn, kOptionalBiases}),
       .states_rope_base = true},
      {.name = "qwen3",
       .rope = kHalf,
       .activation = kSilu,
       .tensors = join({kEnds, kPreNorms, kHeadNorms, kAttention, kGatedFfn, kOptionalBiases}),
       .states_rope_base = true},
      {.name = "qwen3moe",
       .rope = kHalf,
       .activation = kSilu,
       .tensors = join({kEnds, kPreNorms, kHeadNorms, kAttention, kGatedFfn, kExperts, kOptionalBiases}),
       .mixture = true,
       .states_rope_base = true},
      {.name = "gemma2",
       .rope = kHalf,
       .activation = kGelu,
       .tensors = join({kEnds, kPreNorms, kPostNorms, kAttention, kGatedFfn}),
       .scaled_embedding = true,
       .window = 4096,
       .window_period = 2,
       .attention_softcap = 50.0,
       .logits_softcap = 30.0,
       .wide_scale_layers = 46},
      {.name = "gemma3",
       .rope = kHalf,
       .activation = kGelu,
       .tensors = join({kEnds, kPreNorms, kPostNorms, kHeadNorms, kAttention, kGatedFfn}),
       .scaled_embedding = true,
       .states_window = true,
       .states_rope_base = true,
       .window_period = 6,
       .local_rope_base = 10000.0,
       .local_unscaled = true,
       .wide_scale_layers = 62},
      {.name = "phi3",
       .rope = kHalf,
       .activation = kSilu,
       .tensors = join({kEnds, kLongRopeFactors, kPreNorms, kFused}),
       .windows = {{4096, 2047}, {131072, 262144}},
       .states_window = true},
      {.name = "olmo2",
       .rope = kHalf,
       .activation = kSilu,
       .tensors = join({kEnds, kPostNorms, kRowNorms, kAttention, kGatedFfn}),
       .states_rope_base = true,
       .window_period = 4,  // OLMo 3 is of this name, too
       .local_unscaled = true},
  };
  return entries;
}

}  // namespace

std::optional<int64_t> value_of(Dim dim, const HParams& hp) {
  int64_t value = 0;
  switch (dim) {
    case Dim::one:
      value = 1;
      break;
    case Dim::dim:
      value = hp.dim;
      break;
    case Dim::q_dim:
      value = hp.q_dim();
      break;
    case Dim::kv_dim:
      value = hp.kv_dim();
      break;
    case Dim::head_dim:
      value = hp.head_dim;
      break;
    case Dim::ffn_dim:
      value = hp.ffn_dim;
      break;
    case Dim::experts:
      value = hp.experts;
      break;
    case Dim::expert_ffn_dim:
      value = hp.expert_ffn_dim;
      break;
    case Dim::vocab:
      value = hp.vocab;
      break;
    case Dim::rope_pairs:
      value = hp.rope.dims / 2;
      break;
  }
  if (value <= 0) return std::nullopt;
  return value;
}

std::string_view name_of(Dim dim) {
  switch (dim) {
    case Dim::one:
      return "1";
    case Dim::dim:
      return "dim";
    case Dim::q_dim:
      return "heads x head_dim";
    case Dim::kv_dim:
      return "kv_heads x head_dim";
    case Dim::head_dim:
      return "head_dim";
    case Dim::ffn_dim:
      return "ffn_dim";
    case Dim::experts:
      return "experts";
    case Dim::expert_ffn_dim:
      return "an expert's ffn_dim";
    case Dim::vocab:
      return "vocab";
    case Dim::rope_pairs:
      return "rotated pairs";
  }
  return "?";
}

std::string TensorRule::name(int64_t layer) const {
  return per_layer() ? fmt::format("blk.{}.{}", layer, suffix()) : std::string(pattern);
}

std::span<const Architecture> architectures() { return table(); }

const Architecture* find_architecture(std::string_view name) {
  for (const auto& entry : table()) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string architecture_names() {
  std::string names;
  for (const auto& entry : table()) {
    if (!names.empty()) names += ", ";
    names += entry.name;
  }
  return names;
}

}  // namespace greta
