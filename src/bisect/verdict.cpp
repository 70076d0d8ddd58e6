#include "bisect/verdict.h"

#include <fmt/format.h>

namespace greta {

std::string Place::text() const {
  const auto where = trace_name(layer, stage);
  return sequence == 0 ? fmt::format("token {}, {}", token, where)
                       : fmt::format("sequence {}, token {}, {}", sequence, token, where);
}

std::string_view name_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::none:
      return "NONE";
    case FaultKind::rounding:
      return "ROUNDING";
    case FaultKind::input:
      return "INPUT";
    case FaultKind::operator_:
      return "OPERATOR";
    case FaultKind::wire:
      return "WIRE";
    case FaultKind::race:
      return "RACE";
  }
  return "";
}

std::string_view audit_class(FaultKind kind, Stage stage) {
  if (kind == FaultKind::none || kind == FaultKind::rounding) return "NONE";
  if (kind == FaultKind::input) return "ROUTING/SELECTION";
  switch (stage) {
    case Stage::embed_out:
    case Stage::residual_pre_attn:
      return "ROUTING/SELECTION";
    case Stage::attn_norm:
    case Stage::q_proj:
    case Stage::k_proj:
    case Stage::q_pre_rope:
    case Stage::k_pre_rope:
    case Stage::v:
    case Stage::q_post_rope:
    case Stage::k_post_rope:
      return "ATTN_KERNEL_INPUTS";
    case Stage::attn_out:
    case Stage::attn_proj:
    case Stage::attn_post_norm:
      return "ATTENTION_MECHANISM";
    case Stage::residual_post_attn:
    case Stage::residual_post_mlp:
      return "RESIDUAL_ADD";
    case Stage::ffn_norm:
      return "FFN_NORM_PATH";
    case Stage::router_logits:
    case Stage::experts:
    case Stage::expert_weights:
    case Stage::expert_gate:
    case Stage::expert_up:
    case Stage::expert_act:
    case Stage::expert_out:
    case Stage::ffn_gate:
    case Stage::ffn_up:
    case Stage::ffn_act:
    case Stage::mlp_out:
    case Stage::mlp_post_norm:
      return "MLP_OUTPUT";
    case Stage::final_norm:
    case Stage::logits_pre_cap:
    case Stage::logits:
    case Stage::count:
      break;
  }
  return "UNKNOWN";
}

}  // namespace greta
