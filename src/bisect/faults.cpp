#include "bisect/faults.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "bisect/fault_base.h"
#include "bisect/wiring.h"

namespace greta {
namespace {

constexpr uint64_t kLayer = 16;  // what plant_bits() are drawn for
constexpr uint64_t kToken = 17;
constexpr uint64_t kStage = 18;
constexpr uint64_t kOtherId = 19;

/// A whole number, or nothing.
template <class T>
std::optional<T> number(std::string_view part) {
  T value{};
  const auto [end, problem] = std::from_chars(part.data(), part.data() + part.size(), value);
  if (problem != std::errc() || end != part.data() + part.size()) return std::nullopt;
  return value;
}

/// Why a model of this shape cannot have the fault, or nothing.
std::optional<std::string> shape_problem(const FaultInfo& info, const HParams& hp) {
  const std::string_view id = info.id;
  if (info.needs.recorded && hp.experts > 0)
    return "passes that are launched as recordings, those of a model with experts are not";
  if (hp.layers < info.needs.layers)
    return fmt::format("at least {} layers, the model has {}", info.needs.layers, hp.layers);
  if (info.needs.grouped && hp.kv_heads == hp.heads)
    return fmt::format("fewer kv heads than heads, the model has {} of each", hp.heads);
  if (id == "v-head-swap" && hp.kv_heads < 2) return "two kv heads, the model has one";
  if (id == "norm-eps" && hp.norm_eps == 1e-2F) return "an eps other than its own, 1e-2";
  if (id == "softmax-scale" && hp.attention_scale == 1.0 / std::sqrt(static_cast<double>(hp.dim)))
    return fmt::format("a scale other than its own, 1/sqrt({})", hp.dim);
  if ((id == "rope-half" || id == "rope-base") && hp.rope.dims < 4)
    return fmt::format("two rotary pairs, the model has {}", hp.rope.dims / 2);
  if (id == "rope-scaling-dropped" && hp.rope_scaling == "none") return "rotary scaling, the model has none";
  if (id == "window-short" && hp.local.empty()) return "a window, the model has none";
  if (id == "softcap-dropped" && hp.attention_softcap == 0 && hp.logits_softcap == 0)
    return "a soft cap, the model has none";
  if (id == "rope-exchange" && (hp.local.empty() || hp.local_rope_base == hp.rope_base))
    return "local layers with a rotary base of their own, the model has none";
  if (id == "expert-extra" && hp.experts_used >= hp.experts)
    return fmt::format("more experts than the {} that are used", hp.experts_used);
  if (id == "embed-scale" && hp.embedding_scale == 1.0) return "an embedding scale, the model has none";
  return std::nullopt;
}

std::optional<std::string> length_problem(const FaultInfo& info, int64_t prompt, int64_t tokens) {
  const FaultNeeds& needs = info.needs;
  if (needs.prefill && prompt < std::max<int64_t>(needs.tokens, 2))
    return fmt::format("a prompt of at least {} positions, the run has {}",
                       std::max<int64_t>(needs.tokens, 2), prompt);
  if (tokens < needs.tokens)
    return fmt::format("at least {} positions, the run has {}", needs.tokens, tokens);
  if (needs.recorded && tokens < prompt + 2)
    return fmt::format("two positions after the prompt, the run has {} and its prompt {}", tokens, prompt);
  if (needs.decode && tokens <= prompt)
    return fmt::format("a position after the prompt, the run has {} and its prompt {}", tokens, prompt);
  return std::nullopt;
}

/// Half-open ranges of what may be drawn.
struct Range {
  int64_t first = 0;
  int64_t end = 0;
  bool holds(int64_t x) const { return x >= first && x < end; }
  int64_t draw(uint64_t bits) const {
    return first + static_cast<int64_t>(bits % static_cast<uint64_t>(end - first));
  }
};

Range tokens_of(const FaultInfo& info, Stage stage, int64_t prompt, int64_t tokens) {
  if (info.planted == Planted::input) return {0, prompt};
  if (is_picked(stage)) return {std::max<int64_t>(prompt, 1) - 1, tokens};
  return {info.id == "norm-input" ? 1 : 0, tokens};
}

/// The stages that the model has and the spec's layer and token leave.
std::vector<Stage> possible_stages(const FaultInfo& info, const FaultSpec& spec, const HParams& hp,
                                   int64_t prompt, int64_t tokens) {
  const Wiring wiring(hp);
  const auto fits = [&](Stage stage) {
    if (!wiring.has(stage)) return false;
    const Op op = wiring.rule(stage).op;
    if (info.id == "head-norm-late") return op == Op::rmsnorm;
    if (info.product) return op == Op::matmul || op == Op::expert_matmul;
    if (info.id == "softcap-dropped") return op == Op::softcap || hp.attention_softcap > 0;
    return true;
  };
  std::vector<Stage> stages;
  for (const Stage stage : info.stages) {
    if (!fits(stage)) continue;
    if (spec.layer && !is_per_layer(stage)) continue;
    if (spec.token && !tokens_of(info, stage, prompt, tokens).holds(*spec.token)) continue;
    stages.push_back(stage);
  }
  return stages;
}

}  // namespace

const FaultInfo* find_fault(std::string_view id) {
  for (const FaultInfo& info : fault_catalogue())
    if (info.id == id) return &info;
  return nullptr;
}

FaultSpec parse_fault(std::string_view whole) {
  FaultSpec spec;
  const size_t at = whole.find('@');
  spec.id = whole.substr(0, at);
  if (find_fault(spec.id) == nullptr) {
    std::vector<std::string_view> ids;
    for (const FaultInfo& info : fault_catalogue()) ids.push_back(info.id);
    fail("fault '{}': there is none of that name; expected one of {}", spec.id, fmt::join(ids, ", "));
  }
  if (at == std::string_view::npos) return spec;
  std::string_view rest = whole.substr(at + 1);
  for (int part = 0; part < 3; ++part) {
    const size_t comma = rest.find(',');
    const std::string_view piece = rest.substr(0, comma);
    if (!piece.empty()) {
      if (part == 0) spec.layer = number<int>(piece);
      if (part == 1) spec.token = number<int64_t>(piece);
      const auto seed = part == 2 ? number<uint64_t>(piece) : std::nullopt;
      if (seed) spec.seed = *seed;
      const bool good = part == 0   ? spec.layer && *spec.layer >= 0
                        : part == 1 ? spec.token && *spec.token >= 0
                                    : seed.has_value();
      if (!good) fail("fault '{}': expected ID@LAYER,TOKEN,SEED, '{}' is no such number", whole, piece);
    }
    if (comma == std::string_view::npos) return spec;
    rest = rest.substr(comma + 1);
  }
  fail("fault '{}': expected ID@LAYER,TOKEN,SEED, got more parts", whole);
}

Plant draw_plant(const FaultSpec& spec, const HParams& hp, int64_t prompt_tokens, int64_t tokens, bool gpu) {
  const FaultInfo* info = find_fault(spec.id);
  if (info == nullptr) fail("fault '{}': there is none of that name", spec.id);
  if (info->needs.gpu && !gpu) fail("{} cannot be planted: it needs a GPU backend", info->id);
  if (const auto problem = shape_problem(*info, hp))
    fail("{} cannot be planted: it needs {}", info->id, *problem);
  if (const auto problem = length_problem(*info, prompt_tokens, tokens))
    fail("{} cannot be planted: it needs {}", info->id, *problem);
  if (spec.token && !info->one_token)
    fail("{} concerns every token of the planted calls: expected no token, got {}", info->id, *spec.token);
  const std::vector<Stage> stages = possible_stages(*info, spec, hp, prompt_tokens, tokens);
  if (stages.empty() && !spec.layer && !spec.token)
    fail("{} cannot be planted: this model has no {} of that kind", info->id, name_of(info->stages.front()));
  if (stages.empty())
    fail("{} cannot be planted in layer {} at token {}: expected {} of {} positions, the prompt's {}",
         info->id, spec.layer ? std::to_string(*spec.layer) : "any",
         spec.token ? std::to_string(*spec.token) : "any", name_of(info->stages.front()), tokens,
         prompt_tokens);

  Plant plant;
  plant.info = info;
  plant.seed = spec.seed;
  plant.log = std::make_shared<FaultLog>();
  plant.stage = stages[plant_bits(plant, kStage) % stages.size()];
  plant.layer = kNoLayer;
  if (is_per_layer(plant.stage)) {
    const Range layers{info->needs.layers - 1, hp.layers};  // what needs a layer before it is in none before
    if (spec.layer && !layers.holds(*spec.layer))
      fail("{} cannot be planted in layer {}: expected {} to {}", info->id, *spec.layer, layers.first,
           layers.end - 1);
    plant.layer = spec.layer.value_or(static_cast<int>(layers.draw(plant_bits(plant, kLayer))));
  }
  if (info->one_token) {
    const Range positions = tokens_of(*info, plant.stage, prompt_tokens, tokens);
    plant.token = spec.token.value_or(positions.draw(plant_bits(plant, kToken)));
  }
  return plant;
}

std::unique_ptr<Backend> plant_fault(std::unique_ptr<Backend> below, const Plant& plant, const HParams& hp) {
  const FaultInfo& info = *plant.info;
  if (info.needs.gpu && !is_gpu(below->name()))
    fail("{} cannot be planted: it needs a GPU backend, this is {}", info.id, below->name());
  const FaultMaker make = maker_of(info);
  return make == nullptr ? std::move(below) : make(std::move(below), plant, hp);
}

std::vector<int32_t> planted_tokens(const Plant& plant, std::span<const int32_t> ids, int64_t vocab) {
  std::vector<int32_t> entering(ids.begin(), ids.end());
  const auto at = static_cast<size_t>(plant.token);
  if (plant.info->planted != Planted::input || at >= entering.size()) return entering;
  const auto step = 1 + plant_bits(plant, kOtherId) % static_cast<uint64_t>(vocab - 1);
  const auto other = (static_cast<uint64_t>(ids[at]) + step) % static_cast<uint64_t>(vocab);
  entering[at] = static_cast<int32_t>(other);
  plant.log->add({0, plant.token, kNoLayer, Stage::embed_out},
                 {{static_cast<double>(ids[at])}, {static_cast<double>(other)}});
  return entering;
}

}  // namespace greta
