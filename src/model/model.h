#pragma once
// A model's hyperparameters, the list of tensors that it needs, and those tensors resident on a device.
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf.h"

namespace greta {

/// Everything the forward pass needs to know of a model, read from the file's metadata.
struct HParams {
  std::string architecture;  ///< general.architecture
  std::string name;          ///< general.name, or the file's
  int64_t layers = 0;
  int64_t dim = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn_dim = 0;
  int64_t vocab = 0;    ///< rows of the embedding
  int64_t context = 0;  ///< longest context that the file states
  float norm_eps = 0.0f;
  double embedding_scale = 1.0;
  double attention_scale = 0.0;  ///< 1 / sqrt(head_dim) unless the file says otherwise
  Activation activation = Activation::silu;
  RopeSpec rope;
  double rope_base = 0.0;  ///< for people: `rope` has it already
  std::string
      rope_scaling;  ///< "none", "linear 2", "yarn 4 of 4096", "factors in rope_freqs.weight": for people

  int64_t q_dim() const { return heads * head_dim; }
  int64_t kv_dim() const { return kv_heads * head_dim; }
};

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
  ffn_norm,
  w_gate,
  w_up,
  w_down,
  b_gate,
  b_up,
  b_down,
  count
};
inline constexpr size_t kRoles = static_cast<size_t>(Role::count);

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
