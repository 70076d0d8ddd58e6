#include "model/hparams_json.h"

#include <algorithm>

namespace greta {

nlohmann::ordered_json hparams_json(const HParams& hp) {
  return {{"name", hp.name},
          {"architecture", hp.architecture},
          {"layers", hp.layers},
          {"dim", hp.dim},
          {"heads", hp.heads},
          {"kv_heads", hp.kv_heads},
          {"head_dim", hp.head_dim},
          {"ffn_dim", hp.ffn_dim},
          {"experts", hp.experts},
          {"experts_used", hp.experts_used},
          {"expert_ffn_dim", hp.expert_ffn_dim},
          {"vocab", hp.vocab},
          {"context", hp.context},
          {"rope_dims", hp.rope.dims},
          {"rope_scaling", hp.rope_scaling},
          {"window", hp.window},
          {"local_layers", std::count(hp.local.begin(), hp.local.end(), true)},
          {"attention_softcap", hp.attention_softcap},
          {"logits_softcap", hp.logits_softcap}};
}

}  // namespace greta
