#include "backend/stages.h"

#include <fmt/format.h>

#include <array>

namespace greta {
namespace {

constexpr std::array<std::string_view, kStages> kNames = {"embed_out",      "residual_pre_attn",
                                                          "attn_norm",      "q_proj",
                                                          "k_proj",         "q_pre_rope",
                                                          "k_pre_rope",     "v",
                                                          "q_post_rope",    "k_post_rope",
                                                          "attn_out",       "attn_proj",
                                                          "attn_post_norm", "residual_post_attn",
                                                          "ffn_norm",       "ffn_gate",
                                                          "ffn_up",         "ffn_act",
                                                          "router_logits",  "experts",
                                                          "expert_weights", "expert_gate",
                                                          "expert_up",      "expert_act",
                                                          "expert_out",     "mlp_out",
                                                          "mlp_post_norm",  "residual_post_mlp",
                                                          "final_norm",     "logits_pre_cap",
                                                          "logits"};

}  // namespace

std::string_view name_of(Stage stage) { return kNames[static_cast<size_t>(stage)]; }

std::optional<Stage> stage_from_name(std::string_view name) {
  for (int i = 0; i < kStages; ++i)
    if (kNames[static_cast<size_t>(i)] == name) return static_cast<Stage>(i);
  return std::nullopt;
}

bool is_per_layer(Stage stage) { return stage != Stage::embed_out && stage < Stage::final_norm; }

std::string trace_name(int layer, Stage stage) {
  if (!is_per_layer(stage)) return std::string(name_of(stage));
  return fmt::format("layers.{}.{}", layer, name_of(stage));
}

}  // namespace greta
