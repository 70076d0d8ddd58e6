#pragma once
// The table of architectures. An entry is data: which tensors a file of that architecture holds, with their
// shapes in terms of the hyperparameters, and the few conventions in which architectures differ. The one
// forward pass reads the outcome (HParams and the Role slots), never an architecture's name.
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/model.h"

namespace greta {

/// A dimension of a tensor, in terms of the file's hyperparameters.
enum class Dim { one, dim, q_dim, kv_dim, head_dim, ffn_dim, experts, expert_ffn_dim, vocab, rope_pairs };

/// The dimension's value, or nothing where the metadata did not give it.
std::optional<int64_t> value_of(Dim dim, const HParams& hp);
/// "dim", "heads x head_dim", ...: for messages.
std::string_view name_of(Dim dim);

enum class Need {
  required,
  optional,       ///< in every layer or in none
  else_embedding  ///< where it is absent, the embedding's tensor takes the role (tied weights)
};

/// Which models have a tensor at all.
enum class When { always, dense, mixture };

/// Rows of another role that follow in the same tensor (fused q, k and v).
struct FusedRows {
  Role role;
  Dim rows;
};

/// One tensor (or one a layer) that the model is made of. Shapes are [cols, rows] in the file's order, of a
/// stack (WeightUse::experts) [cols, rows, experts].
struct TensorRule {
  std::string_view pattern;  ///< "blk.{}.attn_q.weight", {} being the layer; without {}: once a model
  std::optional<Role> role;  ///< none: the values are hyperparameters (HParams), and nothing is loaded
  WeightUse use;
  Dim rows;  ///< n_out, vocab, or one for a vector
  Dim cols;  ///< n_in: the file's first dimension
  Need need = Need::required;
  When when = When::always;
  std::vector<FusedRows> fused = {};
  std::string_view set = {};  ///< of a layer's optional tensors: a file has all of one set, or none

  bool in(const HParams& hp) const {
    return when == When::always || (when == When::mixture) == (hp.experts > 0);
  }
  bool per_layer() const { return pattern.starts_with("blk.{}."); }
  /// What follows "blk.{}." in a layer's rule: "attn_q.weight".
  std::string_view suffix() const { return per_layer() ? pattern.substr(7) : pattern; }
  std::string name(int64_t layer) const;
};

struct Architecture {
  std::string_view name;  ///< general.architecture, and the prefix of its keys
  RopeStyle rope;         ///< how the file's q and k rows are ordered
  Activation activation;
  std::vector<TensorRule> tensors;

  // What an architecture has fixed where its files have no key for it.
  bool scaled_embedding = false;  ///< by sqrt(dim)
  bool mixture = false;           ///< may have experts
  int64_t window = 0;  ///< published models have one and agree in it: an absent key is told; 0: none
  struct OfContext {
    int64_t context, window;
  };
  std::vector<OfContext> windows = {};  ///< likewise, where models of one context length agree
  bool states_window = false;           ///< published models differ, and 0 is none: an absent key is an error
  bool states_rope_base = false;        ///< published models have not the format's 10000: likewise
  int64_t window_period = 0;  ///< with a window: layer l is global where (l + 1) % period == 0; 0: none is
  double attention_softcap = 0.0;  ///< as `window`
  double logits_softcap = 0.0;     ///< as `window`
  double local_rope_base = 0.0;    ///< of the local layers; 0: the others'
  bool local_unscaled = false;     ///< the rotary scaling is the global layers' alone
  int64_t wide_scale_layers = 0;   ///< the size (by layers) that scales its scores by 1 / sqrt(dim / heads)
};

/// All entries.
std::span<const Architecture> architectures();
/// The entry of this name, or null.
const Architecture* find_architecture(std::string_view name);
/// "llama, ...": for messages.
std::string architecture_names();

}  // namespace greta
