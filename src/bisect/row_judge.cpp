#include "bisect/row_judge.h"

#include <algorithm>

#include "base/error.h"
#include "bisect/wiring.h"
#include "model/tensor_plan.h"

namespace greta {
namespace {

void append(Judged& all, const Judged& part) {
  all.value.insert(all.value.end(), part.value.begin(), part.value.end());
  all.certain.insert(all.certain.end(), part.certain.begin(), part.certain.end());
}

Judged judged_embedding(const Plan& truth, double u, int32_t token) {
  const PlannedTensor* table = planned_tensor(truth, kNoLayer, Role::embedding);
  const auto dim = static_cast<size_t>(truth.hp.dim);
  Judged judged{std::vector<double>(dim), std::vector<double>(dim, 0.0)};
  std::vector<float> values(dim);
  judged_row(source_of(*table), token, WeightMode::stored, values.data());
  for (size_t i = 0; i < dim; ++i) {
    judged.value[i] = double{values[i]} * truth.hp.embedding_scale;
    // The scale's rounding to FP32 is relative; the product's is absolute where it is subnormal.
    if (truth.hp.embedding_scale != 1.0) judged.certain[i] = 2 * u * std::abs(judged.value[i]) + 0x1p-150;
  }
  return judged;
}

Judged judged_products(const Arithmetic& arithmetic, const WeightSource& source,
                       const std::vector<float>& bias, std::span<const double> x) {
  const MatmulArithmetic how = arithmetic.matmul(source.type, source.cols);
  const auto operand = rounded_operand(x, how.operand);
  Judged judged{std::vector<double>(static_cast<size_t>(source.rows)),
                std::vector<double>(static_cast<size_t>(source.rows))};
  for (size_t n = 0; n < judged.value.size(); ++n)
    judge_product(judged_weight(source, static_cast<int64_t>(n), {arithmetic.weights, how.weight}), operand,
                  bias.empty() ? 0.0 : double{bias[n]}, how.roundings, judged.value[n], judged.certain[n],
                  arithmetic.sum_unit, operand_underflow(how.operand, source.cols));
  return judged;
}

/// Slot by slot, each with its expert's matrix.
Judged judged_expert_products(const Arithmetic& arithmetic, const WeightSource& stack,
                              std::span<const double> x, std::span<const double> experts) {
  const auto cols = static_cast<size_t>(stack.cols);
  Judged all;
  for (size_t s = 0; s < experts.size(); ++s) {
    const size_t first = x.size() == cols ? 0 : s * cols;
    append(all, judged_products(arithmetic, stack.expert(static_cast<int64_t>(experts[s])), {},
                                x.subspan(first, cols)));
  }
  return all;
}

/// Each part of the row that is as wide as the weight by itself.
Judged judged_norms(std::span<const double> x, const std::vector<float>& weight, float eps,
                    const Arithmetic& arithmetic) {
  Judged all;
  for (size_t first = 0; first < x.size(); first += weight.size())
    append(all,
           judge_rmsnorm(x.subspan(first, weight.size()), weight, eps,
                         arithmetic.rmsnorm_roundings(static_cast<int64_t>(weight.size())), arithmetic.unit));
  return all;
}

}  // namespace

std::vector<double> values_of(const StoredRows& rows, int64_t row) {
  std::vector<double> out(static_cast<size_t>(rows.width()));
  rows.get(row, out.data());
  return out;
}

std::vector<float> planned_vector(const Plan& plan, int layer, Role role) {
  const PlannedTensor* t = role == Role::count ? nullptr : planned_tensor(plan, layer, role);
  if (t == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(t->tensor->elements()));
  judged_row(source_of(*t), 0, WeightMode::stored, values.data());
  return values;
}

Judged judged_head(const HParams& hp, const Arithmetic& arithmetic, const UnitRows& data, int64_t row,
                   const RowName& name, const LayerHistory& history, int64_t head) {
  const KvHistory& kv = history.at(name.sequence);
  const auto width = static_cast<size_t>(hp.head_dim);
  const int64_t kv_head = head / (hp.heads / hp.kv_heads);
  const int64_t window = hp.window_of(layer_of_unit(data.unit, hp.layers));
  const int64_t end = int64_t{name.position} + 1;
  const int64_t begin = window == 0 ? 0 : std::max<int64_t>(end - window, 0);
  const int64_t count = end - begin;
  std::vector<double> keys(static_cast<size_t>(count) * width), values(keys.size()), q(width);
  for (int64_t j = 0; j < count; ++j)
    for (size_t d = 0; d < width; ++d) {
      const int64_t at = kv_head * hp.head_dim + static_cast<int64_t>(d);
      keys[static_cast<size_t>(j) * width + d] = kv.keys.at(begin + j, at);
      values[static_cast<size_t>(j) * width + d] = kv.values.at(begin + j, at);
    }
  const StoredRows& queries = data.stages.at(Stage::q_post_rope);
  for (size_t d = 0; d < width; ++d) q[d] = queries.at(row, head * hp.head_dim + static_cast<int64_t>(d));
  const int64_t splits = name.position / kKvPage - begin / kKvPage + 1;
  return judge_attention(q, keys, values, hp.attention_scale, hp.attention_softcap,
                         arithmetic.score_roundings(hp.head_dim), arithmetic.value_roundings(count, splits),
                         arithmetic, begin);
}

Judged judged_stage(const Plan& truth, const Arithmetic& arithmetic, const UnitRows& data, int64_t row,
                    const RowName& name, const LayerHistory& history, const StageRule& rule) {
  const Stage stage = rule.stage;
  const HParams& hp = truth.hp;
  const int layer = layer_of_unit(data.unit, hp.layers);
  const double u = arithmetic.unit;
  const auto input = [&](size_t i) { return values_of(data.stages.at(rule.reads[i]), row); };
  switch (rule.op) {
    case Op::embed:
      return judged_embedding(truth, u, name.token);
    case Op::rmsnorm:
      return judged_norms(input(0), planned_vector(truth, layer, rule.weight), hp.norm_eps, arithmetic);
    case Op::expert_matmul:
      return judged_expert_products(arithmetic, source_of(*planned_tensor(truth, layer, rule.weight)),
                                    input(0), input(1));
    case Op::choose_experts: {
      auto choice = judge_choice(input(0), hp.experts_used, hp.normalise_experts, hp.expert_scale,
                                 arithmetic.exp_ulps, u);
      return stage == Stage::experts ? std::move(choice.experts) : std::move(choice.weights);
    }
    case Op::combine:
      return judge_combine(input(0), input(1), u);
    case Op::softcap:
      return judge_softcap(input(0), hp.logits_softcap, arithmetic.tanh_ulps, u);
    case Op::matmul: {
      Judged judged = judged_products(arithmetic, source_of(*planned_tensor(truth, layer, rule.weight)),
                                      planned_vector(truth, layer, rule.bias), input(0));
      if (stage == Stage::v) add_cache_rounding(judged, arithmetic.kv_type);
      return judged;
    }
    case Op::rope: {
      const auto x = input(0);
      const auto width = static_cast<size_t>(hp.head_dim);
      Judged all;
      for (size_t begin = 0; begin < x.size(); begin += width)
        append(all, judge_rope(hp.rope_of(layer), name.position, std::span(x).subspan(begin, width), u,
                               arithmetic.angle_unit, arithmetic.rope_roundings));
      if (stage == Stage::k_post_rope) add_cache_rounding(all, arithmetic.kv_type);
      return all;
    }
    case Op::attention: {
      Judged all;
      for (int64_t head = 0; head < hp.heads; ++head)
        append(all, judged_head(hp, arithmetic, data, row, name, history, head));
      return all;
    }
    case Op::add:
      return judge_add(input(0), input(1), u);
    case Op::glu:
      return judge_glu(hp.activation, input(0), input(1), arithmetic.activation_ulps, arithmetic.gelu_cancels,
                       u);
    case Op::wire:
      break;
  }
  fail("{} is a wire: its bits are compared, not judged", name_of(stage));
}

}  // namespace greta
