#pragma once
// What a bisect can say: where, what kind of fault, and the older reports' class.
#include <compare>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>

#include "backend/stages.h"

namespace greta {

/// Where a value stands in a run. The order is that of FIRST: sequence, token, layer, stage; embed_out comes
/// before layer 0, final_norm and logits after the last layer.
struct Place {
  int32_t sequence = 0;
  int64_t token = 0;  ///< position in its sequence
  int layer = kNoLayer;
  Stage stage = Stage::embed_out;

  /// kNoLayer, with the last two stages behind every layer.
  int layer_order() const { return is_picked(stage) ? std::numeric_limits<int>::max() : layer; }
  auto key() const { return std::tuple(sequence, token, layer_order(), stage); }
  bool operator==(const Place& other) const { return key() == other.key(); }
  bool operator<(const Place& other) const { return key() < other.key(); }
  std::string text() const;  ///< "token 5, layers.3.attn_out", with the sequence where it is not 0
};

enum class FaultKind {
  none,       ///< no divergence
  rounding,   ///< tokens part, every operator inside its bound
  input,      ///< tokens, hyperparameters, tensors or resident weights differ
  operator_,  ///< a call gives the run's bits again, and they lie outside its bound
  wire,       ///< a call was handed something else than the plan says, each time
  race,       ///< the same, but not each time
};
std::string_view name_of(FaultKind kind);  ///< "OPERATOR"

/// The class that audits of the predecessor used, for people who know its reports: "ATTENTION_MECHANISM".
std::string_view audit_class(FaultKind kind, Stage stage);

}  // namespace greta
