#pragma once
// The judge's own statement of a forward pass (numerics.md section 1): which operator leaves each stage and
// what it reads. It is data, written down apart from decoder/forward.cpp, so that a wiring mistake there is a
// difference here.
#include <span>
#include <string_view>
#include <vector>

#include "backend/stages.h"
#include "bisect/verdict.h"
#include "model/model.h"

namespace greta {

enum class Op { wire, embed, rmsnorm, matmul, rope, attention, add, glu };

struct StageRule {
  Stage stage;
  Op op;
  std::vector<Stage> reads;  ///< of the same layer; residual_pre_attn and final_norm: the unit before
  Role weight = Role::count;
  Role bias = Role::count;
};

/// In the order of the pass.
std::span<const StageRule> wiring();
const StageRule& rule_of(Stage stage);
std::string_view name_of(Op op);

/// A run's work is cut into units: 0 the embedding, 1 .. layers a layer each, layers + 1 the head.
inline int unit_of(const Place& place, int64_t layers) {
  if (place.stage == Stage::embed_out) return 0;
  return place.layer == kNoLayer ? static_cast<int>(layers) + 1 : place.layer + 1;
}
inline int layer_of_unit(int unit, int64_t layers) {
  return unit == 0 || unit > layers ? kNoLayer : unit - 1;
}
/// The stages of a unit in the order of the pass.
std::span<const Stage> stages_of_unit(int unit, int64_t layers);

}  // namespace greta
