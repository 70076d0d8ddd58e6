#include "bisect/inputs.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "bisect/wiring.h"
#include "model/architectures.h"
#include "model/plan.h"

namespace greta {
namespace {

template <class T>
void differ(std::vector<InputDifference>& out, const char* name, const T& a, const T& b,
            std::optional<Stage> spoils) {
  if (a == b) return;
  std::optional<Place> place;
  if (spoils) place = Place{0, 0, is_per_layer(*spoils) ? 0 : kNoLayer, *spoils};
  out.push_back({"hyperparameter", name, fmt::format("a has {}, b has {}", a, b), place, {}});
}

/// The first place that a tensor spoils: `blk.3.attn_q.weight` -> layer 3, q_pre_rope (q_proj where q is
/// normed).
std::optional<Place> place_of(const std::string& tensor, const HParams& hp) {
  const Architecture* architecture = find_architecture(hp.architecture);
  if (architecture == nullptr) return std::nullopt;
  for (const TensorRule& rule : architecture->tensors) {
    if (!rule.in(hp)) continue;
    for (int64_t layer = 0; layer < (rule.per_layer() ? hp.layers : 1); ++layer) {
      if (rule.name(layer) != tensor) continue;
      if (!rule.role) return Place{0, 1, 0, Stage::q_post_rope};  // factors of the rotary frequencies
      const auto stage = Wiring(hp).first_made_with(*rule.role);
      if (!stage) return std::nullopt;
      return Place{0, 0, rule.per_layer() ? static_cast<int>(layer) : kNoLayer, *stage};
    }
  }
  return std::nullopt;
}

}  // namespace

std::vector<InputDifference> compare_files(const ModelFile& a, const HParams& ha, const ModelFile& b,
                                           const HParams& hb, uint64_t& tensors) {
  std::vector<InputDifference> out;
  differ(out, "architecture", ha.architecture, hb.architecture, {});
  if (ha.layers != hb.layers)
    out.push_back({"hyperparameter",
                   "layers",
                   fmt::format("a has {}, b has {}", ha.layers, hb.layers),
                   ha.layers > hb.layers ? Place{0, 0, static_cast<int>(hb.layers), Stage::residual_pre_attn}
                                         : Place{0, 0, kNoLayer, Stage::final_norm},
                   {}});
  differ(out, "dim", ha.dim, hb.dim, Stage::embed_out);
  differ(out, "heads", ha.heads, hb.heads, Stage::attn_out);
  differ(out, "kv_heads", ha.kv_heads, hb.kv_heads, Stage::attn_out);
  differ(out, "head_dim", ha.head_dim, hb.head_dim, Stage::attn_out);
  differ(out, "ffn_dim", ha.ffn_dim, hb.ffn_dim, Stage::ffn_gate);
  differ(out, "vocab", ha.vocab, hb.vocab, Stage::embed_out);
  differ(out, "norm_eps", ha.norm_eps, hb.norm_eps, Stage::attn_norm);
  differ(out, "embedding_scale", ha.embedding_scale, hb.embedding_scale, Stage::embed_out);
  differ(out, "attention_scale", ha.attention_scale, hb.attention_scale, Stage::attn_out);
  differ(out, "activation", static_cast<int>(ha.activation), static_cast<int>(hb.activation), Stage::ffn_act);
  differ(out, "attention_softcap", ha.attention_softcap, hb.attention_softcap, Stage::attn_out);
  differ(out, "logits_softcap", ha.logits_softcap, hb.logits_softcap, {});
  differ(out, "window", ha.window, hb.window, Stage::attn_out);
  differ(out, "experts", ha.experts, hb.experts, ha.experts > 0 ? Stage::router_logits : Stage::ffn_gate);
  differ(out, "expert_ffn_dim", ha.expert_ffn_dim, hb.expert_ffn_dim, Stage::expert_gate);
  differ(out, "experts_used", ha.experts_used, hb.experts_used, Stage::experts);
  differ(out, "normalise_experts", ha.normalise_experts, hb.normalise_experts, Stage::expert_weights);
  differ(out, "expert_scale", ha.expert_scale, hb.expert_scale, Stage::expert_weights);
  if (ha.local != hb.local)
    out.push_back({"hyperparameter", "local layers", "other layers have a window", {}, {}});
  differ(out, "local rope base", ha.local_rope_base, hb.local_rope_base, Stage::q_post_rope);
  differ(out, "rope dims", ha.rope.dims, hb.rope.dims, Stage::q_post_rope);
  differ(out, "rope magnitude", ha.rope.magnitude, hb.rope.magnitude, Stage::q_post_rope);
  if (ha.rope.inv_freq != hb.rope.inv_freq || ha.rope.style != hb.rope.style)
    out.push_back({"hyperparameter",
                   "rope frequencies",
                   fmt::format("a: base {}, scaling {}; b: base {}, scaling {}", ha.rope_base,
                               ha.rope_scaling, hb.rope_base, hb.rope_scaling),
                   Place{0, 1, 0, Stage::q_post_rope},
                   {}});
  for (const gguf::Tensor& t : a.file.tensors()) {
    ++tensors;
    const gguf::Tensor* u = b.file.find_tensor(t.name);
    if (u == nullptr) {
      out.push_back({"tensor", std::string(t.name), "b has none", place_of(t.name, ha), {}});
      continue;
    }
    const bool alike =
        t.type == u->type && std::equal(t.shape.begin(), t.shape.end(), u->shape.begin(), u->shape.end());
    if (!alike) {
      out.push_back({"tensor", std::string(t.name), "type or shape differ", place_of(t.name, ha), {}});
      continue;
    }
    if (t.bytes.data() == u->bytes.data() ||
        std::memcmp(t.bytes.data(), u->bytes.data(), t.bytes.size()) == 0)
      continue;
    const auto at = std::mismatch(t.bytes.begin(), t.bytes.end(), u->bytes.begin()).first - t.bytes.begin();
    const auto& type = quant::traits(t.type);
    const auto block = static_cast<int64_t>(at) / type.bytes;
    const auto row_blocks = static_cast<int64_t>(t.shape[0]) / type.block;
    out.push_back({"tensor", std::string(t.name),
                   fmt::format("bytes differ from byte {} on: row {}, block {} of {}", at, block / row_blocks,
                               block % row_blocks, row_blocks),
                   place_of(t.name, ha), block / row_blocks});
  }
  for (const gguf::Tensor& u : b.file.tensors())
    if (a.file.find_tensor(u.name) == nullptr)
      out.push_back({"tensor", std::string(u.name), "a has none", place_of(u.name, hb), {}});
  const Wiring wiring(ha);
  for (InputDifference& d : out)
    if (d.place && (!wiring.has(d.place->stage) || d.place->layer >= ha.layers)) d.place.reset();
  return out;
}

}  // namespace greta
