// Source of the keys: the GGUF specification (ggml project, docs/gguf.md) and the `gguf` Python package's
// constants.
#include "model/hparams.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/text.h"
#include "model/metadata.h"
#include "model/ranges.h"
#include "model/rope.h"
#include "model/unknown_architecture.h"

namespace greta {

namespace {

struct NeutralKey {
  std::string_view name;
  double neutral;
  std::string_view meaning;
};

/// Keys that change the arithmetic in ways that the forward pass does not have.
constexpr NeutralKey kNeutral[] = {
    {"expert_shared_count", 0, "experts that every token uses"},
    {"expert_group_count", 0, "experts in groups"},
    {"expert_gating_func", 1, "a router other than softmax"},
    {"router_logit_softcapping", 0, "capped router logits"},
    {"use_parallel_residual", 0, "parallel residual connections"},
    {"logit_scale", 1, "scaled logits"},
    {"residual_scale", 1, "scaled residuals"},
    {"pooling_type", 0, "an embedding model's pooling"},
    {"attention.causal", 1, "attention to later positions"},
    {"attention.clamp_kqv", 0, "clamped queries, keys and values"},
    {"attention.max_alibi_bias", 0, "ALiBi biases"},
    {"rope.scaling.yarn_log_multiplier", 0, "YaRN's logarithmic multiplier"},
};

/// Keys without influence here: a name of the checkpoint's layout, how the model was trained, and the epsilon
/// of a norm with mean that RMS norms do not use.
constexpr std::string_view kHarmless[] = {"tensor_data_layout", "rope.scaling.finetuned",
                                          "attention.layer_norm_epsilon"};

class HParamsReader {
 public:
  HParamsReader(const gguf::File& file, ReadHParams& out)
      : file_(file), out_(out), hp_(out.hp), keys_(file, hp_.architecture + ".", out.problems) {}

  void read() {
    const auto none = std::optional<int64_t>(0);
    hp_.layers = keys_.integer("block_count", kLayers, true).value.value_or(0);
    hp_.dim = keys_.integer("embedding_length", kDim, true).value.value_or(0);
    read_experts();
    hp_.context = keys_.integer("context_length", kContext, true).value.value_or(0);
    hp_.norm_eps =
        static_cast<float>(keys_.real("attention.layer_norm_rms_epsilon", kEps, true).value.value_or(0.0));
    const double own_scale =
        out_.architecture->scaled_embedding ? std::sqrt(static_cast<double>(hp_.dim)) : 1.0;
    hp_.embedding_scale = keys_.real("embedding_scale", kScale, false).or_else(own_scale).value_or(0.0);
    const auto softcap = [&](std::string_view name, double own) {
      return or_told(name, keys_.real(name, kSoftcap, false), own);
    };
    hp_.attention_softcap = softcap("attn_logit_softcapping", out_.architecture->attention_softcap);
    hp_.logits_softcap = softcap("final_logit_softcapping", out_.architecture->logits_softcap);
    read_heads();
    read_window();
    read_vocab(keys_.integer("vocab_size", kVocab, false).or_else(none).value_or(0));
    read_rope();
    for (const auto& key : kNeutral) keys_.neutral(key.name, key.neutral, key.meaning);
    for (const auto name : kHarmless) keys_.ignore(name);
    read_rest();
  }

  /// After read(): keys that it does not compute with, with their values.
  std::vector<std::string> not_computed() const {
    std::vector<std::string> names = keys_.unread();
    for (const auto& key : kNeutral)
      for (const Problem& problem : out_.problems)
        if (problem.where == keys_.key(key.name)) names.emplace_back(key.name);
    for (std::string& name : names)
      name = fmt::format("{} = {}", printable(keys_.key(name), 80), keys_.shown(name));
    return names;
  }

 private:
  /// A broken expert_count leaves open what else there has to be: only what is wrong in either kind of model
  /// is reported beside it.
  void read_experts() {
    const auto count = keys_.integer("expert_count", kExperts, false);
    const bool known = count.absent || count.value;
    hp_.experts = count.value.value_or(0);
    const auto used = keys_.integer("expert_used_count", kExperts, hp_.experts > 0);
    hp_.experts_used = used.value.value_or(0);
    const auto own = keys_.integer("expert_feed_forward_length", kFfnDim, false);
    const bool dense = known && hp_.experts == 0;
    hp_.ffn_dim =
        keys_.integer("feed_forward_length", kFfnDim, dense || own.absent, hp_.layers).value.value_or(0);
    if (dense) {
      if (hp_.experts_used > 0)
        keys_.report("expert_used_count", "0, as there is no expert_count",
                     fmt::format("{}", hp_.experts_used));
      return;
    }
    if (known && !out_.architecture->mixture)
      keys_.report("expert_count", fmt::format("no such key, or 0, in {}", hp_.architecture),
                   fmt::format("{}", hp_.experts),
                   "this engine knows no mixture of experts of that architecture");
    hp_.expert_ffn_dim = own.or_else(hp_.ffn_dim).value_or(0);
    hp_.normalise_experts = keys_.flag("expert_weights_norm").or_else(true).value_or(true);
    hp_.expert_scale = keys_.real("expert_weights_scale", kScale, false).or_else(1.0).value_or(0.0);
    if (known && used.value && (*used.value < 1 || *used.value > hp_.experts))
      keys_.report("expert_used_count", fmt::format("1 to expert_count ({})", hp_.experts),
                   fmt::format("{}", hp_.experts_used));
  }

  /// The value; where the key is absent the architecture's own, and if that is not 0 a warning: older
  /// converters left such keys out, and the model without is another one.
  template <class T>
  T or_told(std::string_view name, const Field<T>& field, T own) {
    if (field.absent && own != 0)
      out_.warnings.push_back(fmt::format("{}: no such key; {} is taken, as published {} models have it",
                                          keys_.key(name), own, hp_.architecture));
    return field.or_else(own).value_or(T{});
  }

  /// Which layers are local: the key's pattern (a period, or one bool a layer), or the architecture's own.
  void read_window() {
    constexpr std::string_view kKey = "attention.sliding_window";
    int64_t own = out_.architecture->window;
    for (const auto& [context, window] : out_.architecture->windows)
      if (context == hp_.context) own = window;
    const auto window = keys_.integer(kKey, kWindow, out_.architecture->states_window && own == 0);
    hp_.window = or_told(kKey, window, own);
    const auto stated = keys_.pattern("attention.sliding_window_pattern", hp_.layers);
    if (hp_.window > 0)
      hp_.local = stated.or_else(every_but_nth(hp_.layers, out_.architecture->window_period))
                      .value_or(std::vector<bool>());
  }

  void read_heads() {
    hp_.heads = keys_.integer("attention.head_count", kHeads, true, hp_.layers).value.value_or(0);
    const auto as_heads = std::optional<int64_t>(hp_.heads);
    hp_.kv_heads =
        keys_.integer("attention.head_count_kv", kHeads, false, hp_.layers).or_else(as_heads).value_or(0);
    if (hp_.heads > 0 && hp_.kv_heads > 0 && hp_.heads % hp_.kv_heads != 0) {
      keys_.report("attention.head_count_kv", fmt::format("a divisor of head_count ({})", hp_.heads),
                   fmt::format("{}", hp_.kv_heads));
      hp_.kv_heads = 0;
    }

    const auto key = keys_.integer("attention.key_length", kHeadDim, false);
    const auto value = keys_.integer("attention.value_length", kHeadDim, false);
    if (!key.absent) {
      hp_.head_dim = key.value.value_or(0);
    } else if (hp_.dim > 0 && hp_.heads > 0) {
      if (hp_.dim % hp_.heads == 0 && hp_.dim / hp_.heads >= kHeadDim.least &&
          hp_.dim / hp_.heads <= kHeadDim.most) {
        hp_.head_dim = hp_.dim / hp_.heads;
      } else {
        keys_.report(
            "embedding_length",
            fmt::format("a multiple of head_count ({}) by {} to {}, as no attention.key_length is given",
                        hp_.heads, kHeadDim.least, kHeadDim.most),
            fmt::format("{}", hp_.dim));
      }
    }
    // Without a key_length a value_length has the derived one to agree with.
    if (value.value && hp_.head_dim > 0 && *value.value != hp_.head_dim) {
      keys_.report("attention.value_length", fmt::format("{}, as the keys'", hp_.head_dim),
                   fmt::format("{}", *value.value), "keys and values of unlike lengths are not supported");
    }
    const bool wide = hp_.layers > 0 && hp_.layers == out_.architecture->wide_scale_layers && hp_.heads > 0;
    const double width = wide ? static_cast<double>(hp_.dim) / static_cast<double>(hp_.heads)
                              : static_cast<double>(hp_.head_dim);
    const double own = width > 0 ? 1.0 / std::sqrt(width) : 0.0;
    hp_.attention_scale = keys_.real("attention.scale", kScale, false).or_else(own).value_or(0.0);
  }

  void read_vocab(int64_t stated) {
    const auto* embedding = file_.find_tensor("token_embd.weight");
    if (embedding != nullptr && embedding->shape.size() >= 2 && embedding->shape[1] > 0 &&
        embedding->shape[1] <= static_cast<uint64_t>(kVocab.most)) {
      hp_.vocab = static_cast<int64_t>(embedding->shape[1]);
      if (stated > 0 && stated != hp_.vocab) {
        keys_.report("vocab_size", fmt::format("{}, the rows of token_embd.weight", hp_.vocab),
                     fmt::format("{}", stated));
      }
    } else {
      hp_.vocab = stated;
    }
  }

  void read_rope();
  bool read_scaling(RopeSettings& settings);
  bool read_yarn(RopeSettings& settings);
  bool read_factors(const RopeSettings& settings, std::string_view name, std::vector<float>& factors);
  bool read_long_rope(RopeSettings settings);
  void read_rest();

  const gguf::File& file_;
  ReadHParams& out_;
  HParams& hp_;
  MetadataReader keys_;
};

void HParamsReader::read_rope() {
  RopeSettings settings;
  bool good = true;
  const auto whole_head = hp_.head_dim > 0 ? std::optional<int64_t>(hp_.head_dim) : std::nullopt;
  const auto dims = keys_.integer("rope.dimension_count", kHeadDim, false).or_else(whole_head);
  if (!dims) {
    good = false;
  } else if (*dims % 2 != 0 || (hp_.head_dim > 0 && *dims > hp_.head_dim)) {
    keys_.report("rope.dimension_count",
                 hp_.head_dim > 0 ? fmt::format("an even number of at most head_dim ({})", hp_.head_dim)
                                  : std::string("an even number"),
                 fmt::format("{}", *dims));
    good = false;
  } else {
    settings.dims = static_cast<int>(*dims);
  }
  const auto base =
      keys_.real("rope.freq_base", kRopeBase, out_.architecture->states_rope_base).or_else(10000.0);
  good = base.has_value() && good;
  settings.base = base.value_or(0.0);
  hp_.rope_base = settings.base;
  good = read_scaling(settings) && good;

  const RopeStyle style = out_.architecture->rope;
  hp_.rope.style = style;
  hp_.rope.dims = settings.dims;
  const double own_base = out_.architecture->local_rope_base;
  const auto local_base =
      keys_.real("rope.freq_base_swa", kRopeBase, false).or_else(own_base > 0 ? own_base : settings.base);
  good = local_base.has_value() && good;
  std::vector<float> factors;
  good = read_factors(settings, "rope_freqs.weight", factors) && good;
  if (!good) return;
  settings.factors = factors;
  if (file_.find_tensor("rope_factors_long.weight") != nullptr ||
      file_.find_tensor("rope_factors_short.weight") != nullptr) {
    if (!read_long_rope(settings)) return;
  } else {
    hp_.rope = make_rope(style, settings);
  }
  hp_.local_rope_base = *local_base;
  const bool scaled = settings.scaling != RopeScaling::none || !factors.empty();
  if (*local_base == settings.base && !(scaled && out_.architecture->local_unscaled)) return;
  // Local layers see short stretches: nothing is scaled there.
  RopeSettings local;
  local.dims = settings.dims;
  local.base = *local_base;
  hp_.local_rope = make_rope(style, local);
}

/// LongRoPE (arXiv 2402.13753), as transformers and ggml compute it: one set of divisors up to the original
/// context, another beyond; cos and sin are multiplied by attn_factor in both. Which set a run takes is the
/// plan's to say, by the context that it asks for.
bool HParamsReader::read_long_rope(RopeSettings settings) {
  const auto original = keys_.integer("rope.scaling.original_context_length", kContext, true);
  const auto attn = keys_.real("rope.scaling.attn_factor", {0.0, 1000.0}, true).value;
  std::vector<float> short_factors, long_factors;
  bool good = original.value && attn && read_factors(settings, "rope_factors_short.weight", short_factors);
  good = read_factors(settings, "rope_factors_long.weight", long_factors) && good;
  for (const auto& [name, factors] : {std::pair{"rope_factors_short.weight", &short_factors},
                                      std::pair{"rope_factors_long.weight", &long_factors}})
    if (good && factors->empty()) {
      out_.problems.push_back({name, "divisors of the rotary frequencies, as the other set is there",
                               "no such tensor", "the file is incomplete"});
      good = false;
    }
  if (!good) return false;
  if (settings.scaling != RopeScaling::none) {
    keys_.report("rope.scaling.type", "none beside rope_factors_long.weight", hp_.rope_scaling);
    return false;
  }
  settings.factors = short_factors;
  hp_.rope = make_rope(out_.architecture->rope, settings);
  settings.factors = long_factors;
  hp_.long_rope = make_rope(out_.architecture->rope, settings);
  hp_.rope.magnitude = hp_.long_rope.magnitude = *attn;
  hp_.long_rope_from = *original.value;
  hp_.rope_scaling = fmt::format("long factors past {} positions", hp_.long_rope_from);
  return true;
}

/// No type and a factor mean linear scaling, as in ggml. Whether all was well.
bool HParamsReader::read_scaling(RopeSettings& settings) {
  const auto type = keys_.string("rope.scaling.type", false);
  const auto factor = keys_.real("rope.scaling.factor", kFactor, false);
  const auto legacy = keys_.real("rope.scale_linear", kFactor, false);
  bool good =
      (type.absent || type.value) && (factor.absent || factor.value) && (legacy.absent || legacy.value);
  const bool yarn = type.value == "yarn";
  if (type.value && !yarn && *type.value != "none" && *type.value != "linear") {
    keys_.report("rope.scaling.type", "none, linear or yarn", quoted(*type.value),
                 "this engine does not compute it");
    good = false;
  }
  if (factor.value && legacy.value && *factor.value != *legacy.value) {
    keys_.report("rope.scale_linear", fmt::format("{}, as rope.scaling.factor", *factor.value),
                 fmt::format("{}", *legacy.value));
    good = false;
  }
  const auto given = factor.value ? factor.value : legacy.value;
  if (type.value == "none" && given && *given != 1.0) {
    keys_.report("rope.scaling.type", fmt::format("linear or yarn, as a factor of {} is given", *given),
                 "none");
    good = false;
  }
  if ((yarn || type.value == "linear") && factor.absent && legacy.absent) {
    keys_.report("rope.scaling.factor", fmt::format("f32, as the scaling is {}", *type.value), "no such key");
    good = false;
  }
  settings.factor = given.value_or(1.0);
  if (yarn) good = read_yarn(settings) && good;
  if (!good) return false;
  if (yarn) {
    settings.scaling = RopeScaling::yarn;
    hp_.rope_scaling = fmt::format("yarn {} of {}", settings.factor, settings.original_context);
  } else if (settings.factor != 1.0) {
    settings.scaling = RopeScaling::linear;
    hp_.rope_scaling = fmt::format("linear {}", settings.factor);
  } else {
    hp_.rope_scaling = "none";
  }
  return true;
}

bool HParamsReader::read_yarn(RopeSettings& settings) {
  const auto original = keys_.integer("rope.scaling.original_context_length", kContext, true);
  const auto attn = keys_.real("rope.scaling.attn_factor", {0.0, 1000.0}, false);
  const auto yarn_attn = keys_.real("rope.scaling.yarn_attn_factor", {0.0, 1000.0}, false);
  const auto ext = keys_.real("rope.scaling.yarn_ext_factor", {0.0, 1.0, true}, false);
  const auto fast = keys_.real("rope.scaling.yarn_beta_fast", {0.0, 1e6}, false);
  const auto slow = keys_.real("rope.scaling.yarn_beta_slow", {0.0, 1e6}, false);
  bool good = original.value.has_value();
  for (const auto* field : {&attn, &yarn_attn, &ext, &fast, &slow})
    good = (field->absent || field->value) && good;
  if (!good) return false;

  settings.original_context = static_cast<double>(*original.value);
  settings.attn_factor = attn.value.value_or(1.0) * yarn_attn.value.value_or(1.0);
  settings.ext_factor = ext.value.value_or(1.0);
  settings.beta_fast = fast.value.value_or(settings.beta_fast);
  settings.beta_slow = slow.value.value_or(settings.beta_slow);
  if (!(settings.beta_fast > settings.beta_slow)) {
    keys_.report("rope.scaling.yarn_beta_fast", fmt::format("above yarn_beta_slow ({})", settings.beta_slow),
                 fmt::format("{}", settings.beta_fast));
    return false;
  }
  if (hp_.context > 0 && *original.value > hp_.context) {
    keys_.report("rope.scaling.original_context_length",
                 fmt::format("at most context_length ({})", hp_.context), fmt::format("{}", *original.value));
    return false;
  }
  return true;
}

/// A tensor of F32 divisors, where the file has it. Its shape is the plan's to check.
bool HParamsReader::read_factors(const RopeSettings& settings, std::string_view name,
                                 std::vector<float>& factors) {
  const auto* tensor = file_.find_tensor(name);
  if (tensor == nullptr) return true;
  const auto complain = [&](std::string expected, std::string got) {
    out_.problems.push_back({std::string(name), std::move(expected), std::move(got), ""});
    return false;
  };
  if (tensor->type != quant::Type::F32) {
    return complain("F32 numbers", std::string(quant::traits(tensor->type).name));
  }
  if (settings.dims == 0 || tensor->elements() != static_cast<uint64_t>(settings.dims / 2)) return false;
  factors.resize(tensor->elements());
  std::memcpy(factors.data(), tensor->bytes.data(), factors.size() * sizeof(float));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] > 0.0f) || !(factors[i] <= std::numeric_limits<float>::max())) {
      return complain("finite numbers above 0", fmt::format("{} at index {}", factors[i], i));
    }
  }
  if (!hp_.rope_scaling.empty()) {
    const bool plain = hp_.rope_scaling == "none";
    hp_.rope_scaling = (plain ? "" : hp_.rope_scaling + ", ") + fmt::format("factors in {}", name);
  }
  return true;
}

/// Keys that nobody asked for: in the two groups that steer arithmetic they are errors.
void HParamsReader::read_rest() {
  for (const auto& name : keys_.unread()) {
    // YaRN's own keys beside another scaling have no effect.
    if (name.starts_with("rope.scaling.yarn_") || name == "rope.scaling.original_context_length" ||
        name == "rope.scaling.attn_factor") {
      out_.warnings.push_back(
          fmt::format("{} has no effect: the rotary scaling is not yarn", keys_.key(name)));
    } else if (name.starts_with("rope.") || name.starts_with("attention.")) {
      keys_.report(name, "a key that this engine knows", keys_.shown(name),
                   "it may change the arithmetic; running without it would be another model");
    } else {
      out_.warnings.push_back(fmt::format("{} is not read by this engine", keys_.key(name)));
    }
  }
}

/// What reading the keys under an unknown prefix as a known one's leaves aside.
std::vector<std::string> keys_not_computed(const gguf::File& file, const std::string& architecture) {
  static const Architecture plain{"", RopeStyle::half, Activation::silu, {}};
  ReadHParams trial;
  trial.hp.architecture = architecture;
  trial.architecture = &plain;
  HParamsReader reader(file, trial);
  reader.read();
  return reader.not_computed();
}

}  // namespace

ReadHParams read_hparams(const gguf::File& file) {
  ReadHParams out;
  MetadataReader general(file, "general.", out.problems);
  out.hp.name = general.string("name", false).value.value_or("");
  if (out.hp.name.empty()) {
    const auto slash = file.path().rfind('/');
    out.hp.name = slash == std::string::npos ? file.path() : file.path().substr(slash + 1);
  }
  const auto name = general.string("architecture", true);
  if (!name.value) return out;
  out.hp.architecture = *name.value;
  out.architecture = find_architecture(*name.value);
  if (out.architecture == nullptr) {
    general.report("architecture", architecture_names(), quoted(*name.value),
                   "this build does not know that architecture; docs/adding-an-architecture.md says how one "
                   "is added");
    for (Problem& problem : what_an_entry_needs(file, *name.value, keys_not_computed(file, *name.value)))
      out.problems.push_back(std::move(problem));
    return out;
  }
  out.hp.activation = out.architecture->activation;
  HParamsReader(file, out).read();
  return out;
}

}  // namespace greta
