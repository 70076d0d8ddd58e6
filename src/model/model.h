#pragma once
// A model's hyperparameters, the list of tensors that it needs, and those tensors resident on a device.
#include <array>
#include <bitset>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf.h"

namespace greta {

/// What a tensor is to the forward pass. One slot a role in each layer (or once, for the first three).
enum class Role {
  embedding,
  final_norm,
  head,
  attn_norm,
  wq,
  wk,
  wv,
  wo,
  bq,
  bk,
  bv,
  bo,
  q_norm,  ///< [head_dim], each head apart, or the whole row's width
  k_norm,
  attn_post_norm,
  ffn_norm,
  w_gate,
  w_up,
  w_down,
  b_gate,
  b_up,
  b_down,
  router,
  expert_gate,  ///< stacks, one matrix an expert
  expert_up,
  expert_down,
  mlp_post_norm,
  count
};
inline constexpr size_t kRoles = static_cast<size_t>(Role::count);

/// Everything the forward pass needs to know of a model, read from the file's metadata.
struct HParams {
  std::string architecture;  ///< general.architecture
  std::string name;          ///< general.name, or the file's
  int64_t layers = 0;
  int64_t dim = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn_dim = 0;            ///< of a dense MLP
  int64_t experts = 0;            ///< 0: every layer's MLP is dense
  int64_t experts_used = 0;       ///< that each token chooses
  int64_t expert_ffn_dim = 0;     ///< of one expert's MLP
  bool normalise_experts = true;  ///< the chosen experts' weights add up to expert_scale
  double expert_scale = 1.0;
  int64_t vocab = 0;    ///< rows of the embedding
  int64_t context = 0;  ///< longest context that the file states
  float norm_eps = 0.0f;
  double embedding_scale = 1.0;
  double attention_scale = 0.0;    ///< 1 / sqrt(head_dim) unless the file says otherwise
  double attention_softcap = 0.0;  ///< 0: none
  double logits_softcap = 0.0;     ///< 0: none
  int64_t window = 0;              ///< of the local layers, in positions: the row's own and those before it
  std::vector<bool> local;         ///< [layers], or empty: no layer is local
  Activation activation = Activation::silu;
  RopeSpec rope;        ///< of every layer, or of the global ones
  RopeSpec local_rope;  ///< of the local layers; no dims: they turn as all do
  /// Used in place of `rope` by a run whose context is longer than `long_rope_from`; no dims: there is none.
  RopeSpec long_rope;
  int64_t long_rope_from = 0;
  double rope_base = 0.0;        ///< for people: `rope` has it already
  double local_rope_base = 0.0;  ///< likewise
  std::string
      rope_scaling;  ///< "none", "linear 2", "yarn 4 of 4096", "factors in rope_freqs.weight": for people

  std::bitset<kRoles> roles;  ///< that the file's tensors fill (the plan finds them)

  bool has(Role role) const { return roles[static_cast<size_t>(role)]; }
  int64_t q_dim() const { return heads * head_dim; }
  int64_t kv_dim() const { return kv_heads * head_dim; }
  bool is_local(int64_t layer) const { return !local.empty() && local[static_cast<size_t>(layer)]; }
  /// Positions that a row of this layer sees; 0: all.
  int64_t window_of(int64_t layer) const { return is_local(layer) ? window : 0; }
  const RopeSpec& rope_of(int64_t layer) const {
    return is_local(layer) && local_rope.dims > 0 ? local_rope : rope;
  }
  /// Width of ffn_gate, or of expert_gate: every chosen expert's.
  int64_t mlp_width() const { return experts > 0 ? experts_used * expert_ffn_dim : ffn_dim; }
};

using WeightSlots = std::array<const Weight*, kRoles>;

/// A model on a device. `layers[l][role]` and `global[role]` are null where the file has no such (optional)
/// tensor.
struct Model {
  HParams hp;
  WeightSlots global{};
  std::vector<WeightSlots> layers;
  std::vector<std::unique_ptr<Weight>> owned;  ///< in the plan's order

  const Weight* at(Role role) const { return global[static_cast<size_t>(role)]; }
  const Weight* at(size_t layer, Role role) const { return layers[layer][static_cast<size_t>(role)]; }
};

struct Plan;
/// Loads every tensor of the plan (repacking as the backend wishes; repacked file pages are dropped as it
/// goes). `progress` is told (bytes done, bytes in all).
Model load_model(const gguf::File& file, const Plan& plan, Backend& backend,
                 const std::function<void(uint64_t, uint64_t)>& progress = {});

}  // namespace greta
