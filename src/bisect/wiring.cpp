#include "bisect/wiring.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace greta {
namespace {

using S = Stage;

/// A norm that a model may have: what is read after it.
class Chain {
 public:
  Chain(std::vector<StageRule>& rules, const HParams& hp) : rules_(rules), hp_(hp) {}

  S norm(S from, S to, Role weight) {
    if (!hp_.has(weight)) return from;
    rules_.push_back({to, Op::rmsnorm, {from}, weight});
    return to;
  }

 private:
  std::vector<StageRule>& rules_;
  const HParams& hp_;
};

void attention_rules(const HParams& hp, std::vector<StageRule>& rules) {
  Chain chain(rules, hp);
  rules.push_back({S::residual_pre_attn, Op::wire, {S::residual_post_mlp}});
  const S x = chain.norm(S::residual_pre_attn, S::attn_norm, Role::attn_norm);
  const bool q_norm = hp.has(Role::q_norm);
  const bool k_norm = hp.has(Role::k_norm);
  const StageRule q{q_norm ? S::q_proj : S::q_pre_rope, Op::matmul, {x}, Role::wq, Role::bq};
  const StageRule k{k_norm ? S::k_proj : S::k_pre_rope, Op::matmul, {x}, Role::wk, Role::bk};
  if (q_norm) rules.push_back(q);
  if (k_norm) rules.push_back(k);
  rules.push_back(q_norm ? StageRule{S::q_pre_rope, Op::rmsnorm, {S::q_proj}, Role::q_norm} : q);
  rules.push_back(k_norm ? StageRule{S::k_pre_rope, Op::rmsnorm, {S::k_proj}, Role::k_norm} : k);
  rules.push_back({S::v, Op::matmul, {x}, Role::wv, Role::bv});
  rules.push_back({S::q_post_rope, Op::rope, {S::q_pre_rope}});
  rules.push_back({S::k_post_rope, Op::rope, {S::k_pre_rope}});
  rules.push_back({S::attn_out, Op::attention, {S::q_post_rope, S::k_post_rope, S::v}});
  rules.push_back({S::attn_proj, Op::matmul, {S::attn_out}, Role::wo, Role::bo});
  const S branch = chain.norm(S::attn_proj, S::attn_post_norm, Role::attn_post_norm);
  rules.push_back({S::residual_post_attn, Op::add, {S::residual_pre_attn, branch}});
}

void mlp_rules(const HParams& hp, std::vector<StageRule>& rules) {
  Chain chain(rules, hp);
  const S x = chain.norm(S::residual_post_attn, S::ffn_norm, Role::ffn_norm);
  if (hp.experts == 0) {
    rules.push_back({S::ffn_gate, Op::matmul, {x}, Role::w_gate, Role::b_gate});
    rules.push_back({S::ffn_up, Op::matmul, {x}, Role::w_up, Role::b_up});
    rules.push_back({S::ffn_act, Op::glu, {S::ffn_gate, S::ffn_up}});
    rules.push_back({S::mlp_out, Op::matmul, {S::ffn_act}, Role::w_down, Role::b_down});
  } else {
    rules.push_back({S::router_logits, Op::matmul, {x}, Role::router});
    rules.push_back({S::experts, Op::choose_experts, {S::router_logits}});
    rules.push_back({S::expert_weights, Op::choose_experts, {S::router_logits}});
    rules.push_back({S::expert_gate, Op::expert_matmul, {x, S::experts}, Role::expert_gate});
    rules.push_back({S::expert_up, Op::expert_matmul, {x, S::experts}, Role::expert_up});
    rules.push_back({S::expert_act, Op::glu, {S::expert_gate, S::expert_up}});
    rules.push_back({S::expert_out, Op::expert_matmul, {S::expert_act, S::experts}, Role::expert_down});
    rules.push_back({S::mlp_out, Op::combine, {S::expert_out, S::expert_weights}});
  }
  const S branch = chain.norm(S::mlp_out, S::mlp_post_norm, Role::mlp_post_norm);
  rules.push_back({S::residual_post_mlp, Op::add, {S::residual_post_attn, branch}});
}

}  // namespace

Wiring::Wiring(const HParams& hp) : layers_(hp.layers) {
  rules_.push_back({S::embed_out, Op::embed, {}, Role::embedding});
  attention_rules(hp, rules_);
  mlp_rules(hp, rules_);
  head_ = rules_.size();
  rules_.push_back({S::final_norm, Op::rmsnorm, {S::residual_post_mlp}, Role::final_norm});
  const bool capped = hp.logits_softcap > 0;
  rules_.push_back({capped ? S::logits_pre_cap : S::logits, Op::matmul, {S::final_norm}, Role::head});
  if (capped) rules_.push_back({S::logits, Op::softcap, {S::logits_pre_cap}});
}

std::span<const StageRule> Wiring::rules_of_unit(int unit) const {
  const std::span<const StageRule> all = rules_;
  if (unit == 0) return all.first(1);
  return unit > layers_ ? all.subspan(head_) : all.subspan(1, head_ - 1);
}

bool Wiring::has(Stage stage) const {
  return std::any_of(rules_.begin(), rules_.end(), [&](const auto& r) { return r.stage == stage; });
}

const StageRule& Wiring::rule(Stage stage) const {
  const auto found =
      std::find_if(rules_.begin(), rules_.end(), [&](const auto& r) { return r.stage == stage; });
  if (found == rules_.end()) fail("no operator of this model leaves the stage {}", name_of(stage));
  return *found;
}

std::optional<Stage> Wiring::first_made_with(Role role) const {
  for (const StageRule& rule : rules_)
    if (rule.weight == role || rule.bias == role) return rule.stage;
  return std::nullopt;
}

std::string_view name_of(Op op) {
  constexpr std::array<std::string_view, 12> names = {
      "wire", "embed", "rmsnorm",        "matmul",        "rope",    "attention",
      "add",  "glu",   "choose_experts", "expert_matmul", "combine", "softcap"};
  return names[static_cast<size_t>(op)];
}

int64_t width_of(const HParams& hp, Stage stage) {
  switch (stage) {
    case S::q_proj:
    case S::q_pre_rope:
    case S::q_post_rope:
    case S::attn_out:
      return hp.q_dim();
    case S::k_proj:
    case S::k_pre_rope:
    case S::k_post_rope:
    case S::v:
      return hp.kv_dim();
    case S::router_logits:
      return hp.experts;
    case S::experts:
    case S::expert_weights:
      return hp.experts_used;
    case S::expert_out:
      return hp.experts_used * hp.dim;
    case S::ffn_gate:
    case S::ffn_up:
    case S::ffn_act:
    case S::expert_gate:
    case S::expert_up:
    case S::expert_act:
      return hp.mlp_width();
    case S::logits_pre_cap:
    case S::logits:
      return hp.vocab;
    default:
      return hp.dim;
  }
}

std::optional<std::string> other_shape(const HParams& expected, const HParams& got) {
  constexpr std::pair<const char*, int64_t HParams::*> kNumbers[] = {
      {"layers", &HParams::layers},
      {"dim", &HParams::dim},
      {"heads", &HParams::heads},
      {"kv_heads", &HParams::kv_heads},
      {"head_dim", &HParams::head_dim},
      {"ffn_dim", &HParams::ffn_dim},
      {"experts", &HParams::experts},
      {"experts_used", &HParams::experts_used},
      {"expert_ffn_dim", &HParams::expert_ffn_dim},
      {"vocab", &HParams::vocab},
  };
  for (const auto& [name, field] : kNumbers)
    if (expected.*field != got.*field)
      return fmt::format("{}: expected {}, got {}", name, expected.*field, got.*field);
  const Wiring wiring(expected), other(got);
  for (int i = 0; i < kStages; ++i) {
    const auto stage = static_cast<Stage>(i);
    if (wiring.has(stage) != other.has(stage))
      return fmt::format("{}: expected {}, got {}", name_of(stage), wiring.has(stage) ? "the stage" : "none",
                         other.has(stage) ? "the stage" : "none");
  }
  return std::nullopt;
}

Stage first_stage_of_unit(int unit, int64_t layers) {
  return unit == 0 ? S::embed_out : unit > layers ? S::final_norm : S::residual_pre_attn;
}

Stage last_stage_of_unit(int unit, int64_t layers) {
  return unit == 0 ? S::embed_out : unit > layers ? S::logits : S::residual_post_mlp;
}

}  // namespace greta
