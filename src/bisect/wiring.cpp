#include "bisect/wiring.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace greta {
namespace {

const std::vector<StageRule>& table() {
  using S = Stage;
  static const std::vector<StageRule> rules = {
      {S::embed_out, Op::embed, {}, Role::embedding},
      {S::residual_pre_attn, Op::wire, {S::residual_post_mlp}},
      {S::attn_norm, Op::rmsnorm, {S::residual_pre_attn}, Role::attn_norm},
      {S::q_pre_rope, Op::matmul, {S::attn_norm}, Role::wq, Role::bq},
      {S::k_pre_rope, Op::matmul, {S::attn_norm}, Role::wk, Role::bk},
      {S::v, Op::matmul, {S::attn_norm}, Role::wv, Role::bv},
      {S::q_post_rope, Op::rope, {S::q_pre_rope}},
      {S::k_post_rope, Op::rope, {S::k_pre_rope}},
      {S::attn_out, Op::attention, {S::q_post_rope, S::k_post_rope, S::v}},
      {S::attn_proj, Op::matmul, {S::attn_out}, Role::wo, Role::bo},
      {S::residual_post_attn, Op::add, {S::residual_pre_attn, S::attn_proj}},
      {S::ffn_norm, Op::rmsnorm, {S::residual_post_attn}, Role::ffn_norm},
      {S::ffn_gate, Op::matmul, {S::ffn_norm}, Role::w_gate, Role::b_gate},
      {S::ffn_up, Op::matmul, {S::ffn_norm}, Role::w_up, Role::b_up},
      {S::ffn_act, Op::glu, {S::ffn_gate, S::ffn_up}},
      {S::mlp_out, Op::matmul, {S::ffn_act}, Role::w_down, Role::b_down},
      {S::residual_post_mlp, Op::add, {S::residual_post_attn, S::mlp_out}},
      {S::final_norm, Op::rmsnorm, {S::residual_post_mlp}, Role::final_norm},
      {S::logits, Op::matmul, {S::final_norm}, Role::head},
  };
  return rules;
}

constexpr std::array kEmbed = {Stage::embed_out};
constexpr std::array kLayer = {Stage::residual_pre_attn,
                               Stage::attn_norm,
                               Stage::q_pre_rope,
                               Stage::k_pre_rope,
                               Stage::v,
                               Stage::q_post_rope,
                               Stage::k_post_rope,
                               Stage::attn_out,
                               Stage::attn_proj,
                               Stage::residual_post_attn,
                               Stage::ffn_norm,
                               Stage::ffn_gate,
                               Stage::ffn_up,
                               Stage::ffn_act,
                               Stage::mlp_out,
                               Stage::residual_post_mlp};
constexpr std::array kHead = {Stage::final_norm, Stage::logits};

}  // namespace

std::span<const StageRule> wiring() { return table(); }

const StageRule& rule_of(Stage stage) {
  const auto found =
      std::find_if(table().begin(), table().end(), [&](const auto& r) { return r.stage == stage; });
  if (found == table().end()) fail("no operator leaves the stage {}", name_of(stage));
  return *found;
}

std::string_view name_of(Op op) {
  constexpr std::array<std::string_view, 8> names = {"wire", "embed",     "rmsnorm", "matmul",
                                                     "rope", "attention", "add",     "glu"};
  return names[static_cast<size_t>(op)];
}

std::string_view operator_of(Stage stage) { return name_of(rule_of(stage).op); }

std::span<const Stage> stages_of_unit(int unit, int64_t layers) {
  if (unit == 0) return kEmbed;
  if (unit > layers) return kHead;
  return kLayer;
}

}  // namespace greta
