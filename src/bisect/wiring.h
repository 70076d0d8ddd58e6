#pragma once
// The judge's own statement of a forward pass (numerics.md section 1): which operator leaves each stage and
// what it reads. It is data, written down apart from decoder/forward.cpp, so that a wiring mistake there is a
// difference here.
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/stages.h"
#include "bisect/verdict.h"
#include "model/model.h"

namespace greta {

enum class Op {
  wire,
  embed,
  rmsnorm,
  matmul,
  rope,
  attention,
  add,
  glu,
  choose_experts,
  expert_matmul,
  combine,
  softcap
};
std::string_view name_of(Op op);

struct StageRule {
  Stage stage;
  Op op;
  std::vector<Stage> reads;  ///< of the same layer; residual_pre_attn and final_norm: the unit before
  Role weight = Role::count;
  Role bias = Role::count;
};

/// A run's work is cut into units: 0 the embedding, 1 .. layers a layer each, layers + 1 the head.
inline int unit_of(const Place& place, int64_t layers) {
  if (place.stage == Stage::embed_out) return 0;
  return place.layer == kNoLayer ? static_cast<int>(layers) + 1 : place.layer + 1;
}
inline int layer_of_unit(int unit, int64_t layers) {
  return unit == 0 || unit > layers ? kNoLayer : unit - 1;
}

/// The wiring of one model: its optional norms, its experts, its caps.
class Wiring {
 public:
  explicit Wiring(const HParams& hp);

  /// In the order of the pass, which is that of the stages.
  std::span<const StageRule> rules() const { return rules_; }
  /// Of a unit.
  std::span<const StageRule> rules_of_unit(int unit) const;
  bool has(Stage stage) const;
  /// Errors: this model has no such stage.
  const StageRule& rule(Stage stage) const;
  /// The first stage that is made with a tensor of this role.
  std::optional<Stage> first_made_with(Role role) const;

 private:
  int64_t layers_;
  std::vector<StageRule> rules_;
  size_t head_;  ///< where the head's rules begin; the layer's begin at 1
};

/// Elements of one row of a stage.
int64_t width_of(const HParams& hp, Stage stage);

/// Why runs of the two models leave other rows than each other, "layers: expected 2, got 1"; nothing where
/// they leave the same, however much the values differ.
std::optional<std::string> other_shape(const HParams& expected, const HParams& got);

/// The stages with which a unit begins and ends, in every model.
Stage first_stage_of_unit(int unit, int64_t layers);
Stage last_stage_of_unit(int unit, int64_t layers);

}  // namespace greta
