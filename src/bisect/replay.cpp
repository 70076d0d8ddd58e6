#include "bisect/replay.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "bisect/wiring.h"

namespace greta {
namespace {

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
    const HParams& hp = model_.hp;
    if (data.unit == 0) {
      const View out = output(0, call, hp.dim);
      backend_.embed({&call.batch, model_.at(Role::embedding), hp.embedding_scale, out,
                      site(call, kNoLayer, Stage::embed_out)});
      ++counts_.calls;
      compare(call, Stage::embed_out, out, mismatch);
    } else if (head) {
      replay_head(call, mismatch);
    } else {
      replay_layer(call, layer_of_unit(data.unit, hp.layers), mismatch);
    }
  }
}

void Replayer::replay_head(const Call& call, const Sink& mismatch) {
  const HParams& hp = model_.hp;
  const View x = input(0, call, Stage::residual_post_mlp);
  const View norm = output(1, call, hp.dim);
  backend_.rmsnorm({call.rows, x, model_.at(Role::final_norm), hp.norm_eps, norm,
                    site(call, kNoLayer, Stage::final_norm)});
  compare(call, Stage::final_norm, norm, mismatch);
  const View in = input(0, call, Stage::final_norm);
  const View logits = output(2, call, hp.vocab);
  backend_.matmul({call.rows,
                   in,
                   {{{model_.at(Role::head), nullptr, logits, Stage::logits}}},
                   1,
                   site(call, kNoLayer, Stage::logits)});
  compare(call, Stage::logits, logits, mismatch);
  counts_.calls += 2;
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

void Replayer::replay_layer(const Call& call, int layer, const Sink& mismatch) {
  const HParams& hp = model_.hp;
  const int64_t rows = call.rows;
  const int heads = static_cast<int>(hp.heads);
  const auto w = [&](Role role) { return model_.at(static_cast<size_t>(layer), role); };
  const auto norm = [&](Stage from, Stage to, Role weight) {
    const View x = input(0, call, from);
    const View out = output(1, call, hp.dim);
    backend_.rmsnorm({rows, x, w(weight), hp.norm_eps, out, site(call, layer, to)});
    compare(call, to, out, mismatch);
  };
  const auto product = [&](Stage from, Stage to, Role weight, Role bias) {
    const View x = input(0, call, from);
    const View out = output(1, call, w(weight)->rows);
    backend_.matmul({rows, x, {{{w(weight), w(bias), out, to}}}, 1, site(call, layer, to)});
    compare(call, to, out, mismatch);
  };
  const auto sum = [&](Stage a, Stage b, Stage to) {
    const View x = input(0, call, a);
    const View y = input(1, call, b);
    const View out = output(2, call, hp.dim);
    backend_.add({rows, x, y, out, site(call, layer, to)});
    compare(call, to, out, mismatch);
  };

  norm(Stage::residual_pre_attn, Stage::attn_norm, Role::attn_norm);
  const View x = input(0, call, Stage::attn_norm);
  const View q = output(1, call, hp.q_dim());
  const View k = output(2, call, hp.kv_dim());
  const View v = output(3, call, hp.kv_dim());
  backend_.matmul({rows,
                   x,
                   {{{w(Role::wq), w(Role::bq), q, Stage::q_pre_rope},
                     {w(Role::wk), w(Role::bk), k, Stage::k_pre_rope},
                     {w(Role::wv), w(Role::bv), v, Stage::v}}},
                   3,
                   site(call, layer, Stage::q_pre_rope)});
  compare(call, Stage::q_pre_rope, q, mismatch);
  compare(call, Stage::k_pre_rope, k, mismatch);
  // v is what the cache holds: the repeated product goes through the repeated rope call.
  const KvLayer rope_kv = rope_cache_.layer(0);
  const View q_rot = output(4, call, hp.q_dim());
  backend_.rope({&call.batch, &hp.rope_of(layer), heads, input(5, call, Stage::q_pre_rope),
                 input(6, call, Stage::k_pre_rope), v, q_rot, rope_kv,
                 site(call, layer, Stage::q_post_rope)});
  compare_cached(call, Stage::v, rope_kv, KvPart::v, mismatch);
  compare(call, Stage::q_post_rope, q_rot, mismatch);
  compare_cached(call, Stage::k_post_rope, rope_kv, KvPart::k, mismatch);

  remember(call, layer);
  const View attn = output(1, call, hp.q_dim());
  backend_.attention({&call.batch, heads, hp.attention_scale, input(0, call, Stage::q_post_rope),
                      cache_.layer(static_cast<size_t>(layer)), attn, hp.attention_softcap,
                      hp.window_of(layer), site(call, layer, Stage::attn_out)});
  compare(call, Stage::attn_out, attn, mismatch);
  product(Stage::attn_out, Stage::attn_proj, Role::wo, Role::bo);
  sum(Stage::residual_pre_attn, Stage::attn_proj, Stage::residual_post_attn);

  norm(Stage::residual_post_attn, Stage::ffn_norm, Role::ffn_norm);
  const View y = input(0, call, Stage::ffn_norm);
  const View gate = output(1, call, hp.ffn_dim);
  const View up = output(2, call, hp.ffn_dim);
  backend_.matmul({rows,
                   y,
                   {{{w(Role::w_gate), w(Role::b_gate), gate, Stage::ffn_gate},
                     {w(Role::w_up), w(Role::b_up), up, Stage::ffn_up}}},
                   2,
                   site(call, layer, Stage::ffn_gate)});
  compare(call, Stage::ffn_gate, gate, mismatch);
  compare(call, Stage::ffn_up, up, mismatch);
  const View act = output(3, call, hp.ffn_dim);
  backend_.glu({rows, hp.activation, input(1, call, Stage::ffn_gate), input(2, call, Stage::ffn_up), act,
                site(call, layer, Stage::ffn_act)});
  compare(call, Stage::ffn_act, act, mismatch);
  product(Stage::ffn_act, Stage::mlp_out, Role::w_down, Role::b_down);
  sum(Stage::residual_post_attn, Stage::mlp_out, Stage::residual_post_mlp);
  counts_.calls += 11;
}

}  // namespace greta
