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
  q_pre_rope,
  k_pre_rope,
  v,
  q_post_rope,
  k_post_rope,
  attn_out,
  attn_proj,
  residual_post_attn,
  ffn_norm,
  ffn_gate,
  ffn_up,
  ffn_act,
  mlp_out,
  residual_post_mlp,
  final_norm,
  logits,
  count
};
inline constexpr int kStages = static_cast<int>(Stage::count);

/// For a stage that exists once a pass.
inline constexpr int kNoLayer = -1;

std::string_view name_of(Stage stage);
std::optional<Stage> stage_from_name(std::string_view name);
/// embed_out, final_norm and logits stand outside the layers.
bool is_per_layer(Stage stage);
/// "embed_out", "layers.3.attn_out": the tensor name in a trace file.
std::string trace_name(int layer, Stage stage);

}  // namespace greta
