#pragma once
// Names of everything that a forward pass leaves behind (numerics.md section 1). (layer, stage) is unique.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace greta {

enum class Stage {
  embed_out,
  residual_pre_attn,
  attn_norm,
  q_proj,  ///< q and k before a norm of their own
  k_proj,
  q_pre_rope,
  k_pre_rope,
  v,
  q_post_rope,
  k_post_rope,
  attn_out,
  attn_proj,
  attn_post_norm,
  residual_post_attn,
  ffn_norm,
  ffn_gate,
  ffn_up,
  ffn_act,
  router_logits,
  experts,         ///< the chosen ones, ascending
  expert_weights,  ///< in the same order, as all that follow
  expert_gate,
  expert_up,
  expert_act,
  expert_out,
  mlp_out,
  mlp_post_norm,
  residual_post_mlp,
  final_norm,
  logits_pre_cap,
  logits,
  count
};
inline constexpr int kStages = static_cast<int>(Stage::count);

/// For a stage that exists once a pass.
inline constexpr int kNoLayer = -1;

std::string_view name_of(Stage stage);
std::optional<Stage> stage_from_name(std::string_view name);
/// embed_out, final_norm, logits_pre_cap and logits stand outside the layers.
bool is_per_layer(Stage stage);
/// final_norm and what follows: a row for each row of logits, not for each token.
inline bool is_picked(Stage stage) { return stage >= Stage::final_norm; }
/// "embed_out", "layers.3.attn_out": the tensor name in a trace file.
std::string trace_name(int layer, Stage stage);

}  // namespace greta
