#include "bisect/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "bisect/wiring.h"

namespace greta {
namespace {

/// Slots of buffers: inputs from 0 on, outputs from here. v_ stays in its own until rope has read it.
constexpr size_t kOutputs = 4;

HParams one_layer(HParams hp) {
  hp.layers = 1;
  return hp;
}

/// Nothing is given back while a window moves on.
HParams all_keys(HParams hp) {
  hp.local.clear();
  return hp;
}

bool same_bits(double a, double b) {
  return (a == b && std::signbit(a) == std::signbit(b)) || (std::isnan(a) && std::isnan(b));
}

}  // namespace

struct Replayer::Call {
  const UnitRows& data;
  const CallShape& shape;
  int64_t first;  ///< row of the unit
  int64_t rows;
  BatchView batch;
};

Replayer::Replayer(Backend& backend, const Model& model, int64_t sequences, int64_t context)
    : backend_(backend),
      model_(model),
      wiring_(model.hp),
      cache_(backend, all_keys(model.hp), sequences, context, context),
      rope_cache_(backend, all_keys(one_layer(model.hp)), sequences, context, context) {}

View Replayer::buffer(size_t slot, int64_t rows, int64_t width) {
  const auto bytes = static_cast<size_t>(rows * width) * backend_.element_bytes();
  if (slot >= buffers_.size()) buffers_.resize(slot + 1);
  if (!buffers_[slot] || buffers_[slot]->bytes() < bytes) buffers_[slot] = backend_.allocate(bytes);
  return {buffers_[slot]->data(), width};
}

View Replayer::input(size_t slot, const Call& call, Stage stage) {
  const StoredRows& rows = call.data.stages.at(stage);
  const View view = buffer(slot, call.rows, rows.width());
  std::vector<double> values(static_cast<size_t>(rows.width()));
  for (int64_t r = 0; r < call.rows; ++r) {
    rows.get(call.first + r, values.data());
    backend_.write(view, r, 1, values.data());
  }
  return view;
}

/// Poisoned: a row that the call does not write is seen.
View Replayer::output(size_t slot, const Call& call, int64_t width) {
  const View view = buffer(slot, call.rows, width);
  const std::vector<double> poison(static_cast<size_t>(width), std::numeric_limits<double>::quiet_NaN());
  for (int64_t r = 0; r < call.rows; ++r) backend_.write(view, r, 1, poison.data());
  return view;
}

void Replayer::compare_row(const Call& call, Stage stage, int64_t row, const std::vector<double>& again,
                           const Sink& mismatch) {
  const StoredRows& rows = call.data.stages.at(stage);
  ++counts_.rows;
  for (int64_t i = 0; i < rows.width(); ++i) {
    const double run = rows.at(call.first + row, i);
    if (same_bits(run, again[static_cast<size_t>(i)])) continue;
    mismatch({stage, call.first + row, i, run, again[static_cast<size_t>(i)]});
    return;
  }
}

void Replayer::compare(const Call& call, Stage stage, const View& view, const Sink& mismatch) {
  std::vector<double> again(static_cast<size_t>(view.width));
  for (int64_t r = 0; r < call.rows; ++r) {
    backend_.read(view, r, 1, again.data());
    compare_row(call, stage, r, again, mismatch);
  }
}

void Replayer::compare_cached(const Call& call, Stage stage, const KvLayer& cache, KvPart part,
                              const Sink& mismatch) {
  std::vector<double> again(static_cast<size_t>(model_.hp.kv_dim()));
  for (int64_t r = 0; r < call.rows; ++r) {
    backend_.read_kv(cache, part, call.batch, r, again.data());
    compare_row(call, stage, r, again, mismatch);
  }
}

Site Replayer::site(const Call& call, int layer, Stage stage) const {
  const bool head = is_picked(stage);
  return {layer, stage, &call.batch, head ? call.shape.picked.data() : nullptr};
}

void Replayer::replay(const UnitRows& data, std::span<const CallShape> calls, const Sink& mismatch) {
  int64_t first = 0;
  for (const int64_t index : data.calls) {
    const CallShape& shape = calls[static_cast<size_t>(index)];
    for (size_t r = 0; r < shape.positions.size(); ++r) {  // pages for every position of the call, once
      const int64_t needed = int64_t{shape.positions[r]} + 1 - cache_.length(shape.sequences[r]);
      if (needed <= 0) continue;
      cache_.grow(shape.sequences[r], needed);
      rope_cache_.grow(shape.sequences[r], needed);
    }
    const bool head = data.unit > model_.hp.layers;
    const int64_t rows = head ? static_cast<int64_t>(shape.picked.size()) : shape.rows();
    const Call call{data,
                    shape,
                    first,
                    rows,
                    {shape.rows(), shape.tokens.data(), shape.positions.data(), shape.sequences.data(),
                     cache_.sequences()}};
    first += rows;
    if (rows == 0) continue;
    for (const StageRule& rule : wiring_.rules_of_unit(data.unit)) replay_call(call, rule, mismatch);
  }
}

/// Puts what the producers of this call left into the cache that attention will read.
void Replayer::remember(const Call& call, int layer) {
  const KvLayer kv = cache_.layer(static_cast<size_t>(layer));
  std::vector<double> values(static_cast<size_t>(model_.hp.kv_dim()));
  for (int64_t r = 0; r < call.rows; ++r) {
    call.data.stages.at(Stage::k_post_rope).get(call.first + r, values.data());
    backend_.write_kv(kv, KvPart::k, call.batch, r, values.data());
    call.data.stages.at(Stage::v).get(call.first + r, values.data());
    backend_.write_kv(kv, KvPart::v, call.batch, r, values.data());
  }
}

/// The call that leaves the rule's stage; nothing where an earlier stage of the same call has it.
void Replayer::replay_call(const Call& call, const StageRule& rule, const Sink& mismatch) {
  const HParams& hp = model_.hp;
  const int layer = layer_of_unit(call.data.unit, hp.layers);
  const Weight* weight = weight_of(layer, rule.weight);
  const int64_t rows = call.rows;
  const auto read = [&](size_t i) { return input(i, call, rule.reads[i]); };
  const Site at = site(call, layer, rule.stage);
  switch (rule.op) {
    case Op::wire:
      return;
    case Op::matmul:
    case Op::expert_matmul:
      return replay_products(call, rule, mismatch);
    case Op::rope:
      if (rule.stage == Stage::q_post_rope) replay_rope(call, mismatch);
      return;
    case Op::choose_experts:
      if (rule.stage == Stage::experts) replay_choice(call, rule, mismatch);
      return;
    default:
      break;
  }
  const View out = output(kOutputs, call, call.data.stages.at(rule.stage).width());
  switch (rule.op) {
    case Op::embed:
      backend_.embed({&call.batch, weight, hp.embedding_scale, out, at});
      break;
    case Op::rmsnorm: {
      const View x = read(0);
      Site parts = at;
      parts.parts = x.width / weight->cols;
      backend_.rmsnorm(
          {rows * parts.parts, {x.data, weight->cols}, weight, hp.norm_eps, {out.data, weight->cols}, parts});
      break;
    }
    case Op::attention:
      remember(call, layer);
      backend_.attention({&call.batch, static_cast<int>(hp.heads), hp.attention_scale, read(0),
                          cache_.layer(static_cast<size_t>(layer)), out, hp.attention_softcap,
                          hp.window_of(layer), at});
      break;
    case Op::add:
      backend_.add({rows, read(0), read(1), out, at});
      break;
    case Op::glu:
      backend_.glu({rows, hp.activation, read(0), read(1), out, at});
      break;
    case Op::combine:
      backend_.combine({rows, read(0), read(1), out, at});
      break;
    case Op::softcap:
      backend_.softcap({rows, read(0), hp.logits_softcap, out, at});
      break;
    default:
      fail("{} is not repeated", name_of(rule.op));
  }
  ++counts_.calls;
  compare(call, rule.stage, out, mismatch);
}

const Weight* Replayer::weight_of(int layer, Role role) const {
  if (role == Role::count) return nullptr;
  return layer == kNoLayer ? model_.at(role) : model_.at(static_cast<size_t>(layer), role);
}

/// Products of the same rows are one call, made at the first of them.
void Replayer::replay_products(const Call& call, const StageRule& rule, const Sink& mismatch) {
  const int layer = layer_of_unit(call.data.unit, model_.hp.layers);
  std::vector<MatmulOutput> outputs;
  for (const StageRule& other : wiring_.rules_of_unit(call.data.unit)) {
    if (other.op != rule.op || other.reads != rule.reads) continue;
    if (outputs.empty() && other.stage != rule.stage) return;
    outputs.push_back({weight_of(layer, other.weight), weight_of(layer, other.bias),
                       output(kOutputs + outputs.size(), call, call.data.stages.at(other.stage).width()),
                       other.stage});
  }
  const View x = input(0, call, rule.reads[0]);
  if (rule.op == Op::matmul) {
    MatmulArgs args{call.rows, x, {}, static_cast<int>(outputs.size()), site(call, layer, rule.stage)};
    std::copy(outputs.begin(), outputs.end(), args.outputs.begin());
    backend_.matmul(args);
  } else {
    ExpertMatmulArgs args{call.rows,
                          x,
                          input(1, call, rule.reads[1]),
                          {},
                          static_cast<int>(outputs.size()),
                          site(call, layer, rule.stage)};
    std::copy(outputs.begin(), outputs.end(), args.outputs.begin());
    backend_.expert_matmul(args);
  }
  ++counts_.calls;
  for (const MatmulOutput& o : outputs) {
    if (o.stage == Stage::v) {
      v_ = o.out;  // what the cache holds of it goes through the repeated rope call
    } else {
      compare(call, o.stage, o.out, mismatch);
    }
  }
}

void Replayer::replay_rope(const Call& call, const Sink& mismatch) {
  const HParams& hp = model_.hp;
  const int layer = layer_of_unit(call.data.unit, hp.layers);
  const KvLayer kv = rope_cache_.layer(0);
  const View q = output(kOutputs, call, hp.q_dim());
  backend_.rope({&call.batch, &hp.rope_of(layer), static_cast<int>(hp.heads),
                 input(0, call, Stage::q_pre_rope), input(1, call, Stage::k_pre_rope), v_, q, kv,
                 site(call, layer, Stage::q_post_rope)});
  ++counts_.calls;
  compare_cached(call, Stage::v, kv, KvPart::v, mismatch);
  compare(call, Stage::q_post_rope, q, mismatch);
  compare_cached(call, Stage::k_post_rope, kv, KvPart::k, mismatch);
}

void Replayer::replay_choice(const Call& call, const StageRule& rule, const Sink& mismatch) {
  const HParams& hp = model_.hp;
  const View experts = output(kOutputs, call, hp.experts_used);
  const View weights = output(kOutputs + 1, call, hp.experts_used);
  backend_.choose_experts({call.rows, input(0, call, rule.reads[0]), hp.normalise_experts, hp.expert_scale,
                           experts, weights,
                           site(call, layer_of_unit(call.data.unit, hp.layers), rule.stage)});
  ++counts_.calls;
  compare(call, Stage::experts, experts, mismatch);
  compare(call, Stage::expert_weights, weights, mismatch);
}

}  // namespace greta
