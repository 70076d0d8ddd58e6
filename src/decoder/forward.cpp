#include "decoder/forward.h"

#include "base/error.h"

namespace greta {
namespace {

/// The stages that own a buffer: how wide a row of each is.
struct Width {
  View Workspace::*view;
  int64_t width;
  bool per_logit;  ///< one row for each row of logits, not for each token
};

std::vector<Width> widths(const HParams& hp) {
  std::vector<Width> all = {
      {&Workspace::residual, hp.dim, false},     {&Workspace::norm, hp.dim, false},
      {&Workspace::q, hp.q_dim(), false},        {&Workspace::k, hp.kv_dim(), false},
      {&Workspace::v, hp.kv_dim(), false},       {&Workspace::q_rot, hp.q_dim(), false},
      {&Workspace::attn, hp.q_dim(), false},     {&Workspace::proj, hp.dim, false},
      {&Workspace::gate, hp.mlp_width(), false}, {&Workspace::up, hp.mlp_width(), false},
      {&Workspace::act, hp.mlp_width(), false},  {&Workspace::mlp, hp.dim, false},
      {&Workspace::picked, hp.dim, true},        {&Workspace::final_norm, hp.dim, true},
      {&Workspace::logits, hp.vocab, true}};
  if (hp.experts > 0) {
    all.push_back({&Workspace::router, hp.experts, false});
    all.push_back({&Workspace::experts, hp.experts_used, false});
    all.push_back({&Workspace::expert_weights, hp.experts_used, false});
    all.push_back({&Workspace::expert_out, hp.experts_used * hp.dim, false});
  }
  return all;
}

/// Hands stages to a tap, each before its buffer is written again; a residual one stage later than it is
/// made, so that a backend may add and norm in one go with a tap as without. Without taps compiled in
/// (GRETA_TAPS=0) nothing is left of it.
struct Taps {
  Backend& backend;
  const BatchView& batch;
  std::span<const int32_t> logit_rows;
  Tap* tap;
  struct Held {
    int layer;
    Stage stage;
    View view;
  };
  mutable std::vector<Held> held = {};

  void operator()(int layer, Stage stage, const View& view) const {
    if constexpr (GRETA_TAPS) {
      if (tap == nullptr) return;
      held.push_back({layer, stage, view});
      const bool residual = stage == Stage::residual_pre_attn || stage == Stage::residual_post_attn ||
                            stage == Stage::residual_post_mlp;
      if (!residual) deliver();
    }
  }
  void deliver() const {
    for (const Held& h : held)
      tap->on_stage(h.layer, h.stage,
                    {&backend, &batch, nullptr, batch.rows, h.view.width, h.view, nullptr, KvPart::k});
    held.clear();
  }
  void cached(int layer, Stage stage, const KvLayer& cache, KvPart part) const {
    if constexpr (GRETA_TAPS) {
      const int64_t width = int64_t{cache.kv_heads} * cache.head_dim;
      if (tap != nullptr)
        tap->on_stage(layer, stage, {&backend, &batch, nullptr, batch.rows, width, {}, &cache, part});
    }
  }
  void picked(Stage stage, const View& view) const {
    if constexpr (GRETA_TAPS) {
      if (tap != nullptr)
        tap->on_stage(kNoLayer, stage,
                      {&backend, &batch, logit_rows.data(), static_cast<int64_t>(logit_rows.size()),
                       view.width, view, nullptr, KvPart::k});
    }
  }
};

/// The pass, top to bottom.
void queue_pass(Backend& backend, const Model& model, std::span<const KvLayer> cache, const BatchView& batch,
                std::span<const int32_t> logit_rows, Workspace& ws, Tap* observer) {
  const HParams& hp = model.hp;
  const int64_t rows = batch.rows;
  const Taps tap{backend, batch, logit_rows, observer};
  const auto at = [&](int layer, Stage stage) { return Site{layer, stage, &batch, nullptr}; };
  const int heads = static_cast<int>(hp.heads);

  backend.embed(
      {&batch, model.at(Role::embedding), hp.embedding_scale, ws.residual, at(kNoLayer, Stage::embed_out)});
  tap(kNoLayer, Stage::embed_out, ws.residual);

  // A norm that the model may have: the rows normed into `out`, or `x` itself. Where the weight is narrower
  // than a row, each head is normed apart.
  const auto normed = [&](const Weight* weight, const View& x, const View& out, int layer, Stage stage) {
    if (weight == nullptr) return x;
    const int64_t parts = x.width / weight->cols;
    Site site = at(layer, stage);
    site.parts = parts;
    backend.rmsnorm(
        {rows * parts, {x.data, weight->cols}, weight, hp.norm_eps, {out.data, weight->cols}, site});
    tap(layer, stage, out);
    return out;
  };

  for (size_t l = 0; l < model.layers.size(); ++l) {
    const auto w = [&](Role role) { return model.at(l, role); };
    const int layer = static_cast<int>(l);
    const KvLayer& kv = cache[l];

    // Attention: residual += norm(wo . attention(rope(norm(q)), rope(norm(k)), v)), each norm where there is
    // one
    tap(layer, Stage::residual_pre_attn, ws.residual);
    const View attn_in = normed(w(Role::attn_norm), ws.residual, ws.norm, layer, Stage::attn_norm);
    const Stage q_stage = w(Role::q_norm) != nullptr ? Stage::q_proj : Stage::q_pre_rope;
    const Stage k_stage = w(Role::k_norm) != nullptr ? Stage::k_proj : Stage::k_pre_rope;
    backend.matmul({rows,
                    attn_in,
                    {{{w(Role::wq), w(Role::bq), ws.q, q_stage},
                      {w(Role::wk), w(Role::bk), ws.k, k_stage},
                      {w(Role::wv), w(Role::bv), ws.v, Stage::v}}},
                    3,
                    at(layer, q_stage)});
    tap(layer, q_stage, ws.q);
    tap(layer, k_stage, ws.k);
    normed(w(Role::q_norm), ws.q, ws.q, layer, Stage::q_pre_rope);
    normed(w(Role::k_norm), ws.k, ws.k, layer, Stage::k_pre_rope);
    backend.rope(
        {&batch, &hp.rope_of(layer), heads, ws.q, ws.k, ws.v, ws.q_rot, kv, at(layer, Stage::q_post_rope)});
    tap.cached(layer, Stage::v, kv, KvPart::v);
    tap(layer, Stage::q_post_rope, ws.q_rot);
    tap.cached(layer, Stage::k_post_rope, kv, KvPart::k);
    backend.attention({&batch, heads, hp.attention_scale, ws.q_rot, kv, ws.attn, hp.attention_softcap,
                       hp.window_of(layer), at(layer, Stage::attn_out)});
    tap(layer, Stage::attn_out, ws.attn);
    backend.matmul({rows,
                    ws.attn,
                    {{{w(Role::wo), w(Role::bo), ws.proj, Stage::attn_proj}}},
                    1,
                    at(layer, Stage::attn_proj)});
    tap(layer, Stage::attn_proj, ws.proj);
    normed(w(Role::attn_post_norm), ws.proj, ws.proj, layer, Stage::attn_post_norm);
    backend.add({rows, ws.residual, ws.proj, ws.residual, at(layer, Stage::residual_post_attn)});
    tap(layer, Stage::residual_post_attn, ws.residual);

    // MLP: residual += norm(w_down . (activation(w_gate . x) * (w_up . x))), or the weighted sum of that by
    // experts
    const View mlp_in = normed(w(Role::ffn_norm), ws.residual, ws.norm, layer, Stage::ffn_norm);
    if (hp.experts == 0) {
      backend.matmul({rows,
                      mlp_in,
                      {{{w(Role::w_gate), w(Role::b_gate), ws.gate, Stage::ffn_gate},
                        {w(Role::w_up), w(Role::b_up), ws.up, Stage::ffn_up}}},
                      2,
                      at(layer, Stage::ffn_gate)});
      tap(layer, Stage::ffn_gate, ws.gate);
      tap(layer, Stage::ffn_up, ws.up);
      backend.glu({rows, hp.activation, ws.gate, ws.up, ws.act, at(layer, Stage::ffn_act)});
      tap(layer, Stage::ffn_act, ws.act);
      backend.matmul({rows,
                      ws.act,
                      {{{w(Role::w_down), w(Role::b_down), ws.mlp, Stage::mlp_out}}},
                      1,
                      at(layer, Stage::mlp_out)});
    } else {
      backend.matmul({rows,
                      mlp_in,
                      {{{w(Role::router), nullptr, ws.router, Stage::router_logits}}},
                      1,
                      at(layer, Stage::router_logits)});
      tap(layer, Stage::router_logits, ws.router);
      backend.choose_experts({rows, ws.router, hp.normalise_experts, hp.expert_scale, ws.experts,
                              ws.expert_weights, at(layer, Stage::experts)});
      tap(layer, Stage::experts, ws.experts);
      tap(layer, Stage::expert_weights, ws.expert_weights);
      backend.expert_matmul({rows,
                             mlp_in,
                             ws.experts,
                             {{{w(Role::expert_gate), nullptr, ws.gate, Stage::expert_gate},
                               {w(Role::expert_up), nullptr, ws.up, Stage::expert_up}}},
                             2,
                             at(layer, Stage::expert_gate)});
      tap(layer, Stage::expert_gate, ws.gate);
      tap(layer, Stage::expert_up, ws.up);
      backend.glu({rows, hp.activation, ws.gate, ws.up, ws.act, at(layer, Stage::expert_act)});
      tap(layer, Stage::expert_act, ws.act);
      backend.expert_matmul({rows,
                             ws.act,
                             ws.experts,
                             {{{w(Role::expert_down), nullptr, ws.expert_out, Stage::expert_out}}},
                             1,
                             at(layer, Stage::expert_out)});
      tap(layer, Stage::expert_out, ws.expert_out);
      backend.combine({rows, ws.expert_out, ws.expert_weights, ws.mlp, at(layer, Stage::mlp_out)});
    }
    tap(layer, Stage::mlp_out, ws.mlp);
    normed(w(Role::mlp_post_norm), ws.mlp, ws.mlp, layer, Stage::mlp_post_norm);
    backend.add({rows, ws.residual, ws.mlp, ws.residual, at(layer, Stage::residual_post_mlp)});
    tap(layer, Stage::residual_post_mlp, ws.residual);
  }

  if constexpr (GRETA_TAPS) tap.deliver();
  if (logit_rows.empty()) return;
  const auto picked = static_cast<int64_t>(logit_rows.size());
  const auto at_picked = [&](Stage stage) { return Site{kNoLayer, stage, &batch, logit_rows.data()}; };
  const Stage head_stage = hp.logits_softcap > 0 ? Stage::logits_pre_cap : Stage::logits;
  backend.gather({logit_rows, ws.residual, ws.picked, at_picked(Stage::final_norm)});
  backend.rmsnorm({picked, ws.picked, model.at(Role::final_norm), hp.norm_eps, ws.final_norm,
                   at_picked(Stage::final_norm)});
  tap.picked(Stage::final_norm, ws.final_norm);
  backend.matmul({picked,
                  ws.final_norm,
                  {{{model.at(Role::head), nullptr, ws.logits, head_stage}}},
                  1,
                  at_picked(head_stage)});
  tap.picked(head_stage, ws.logits);
  if (hp.logits_softcap == 0) return;
  backend.softcap({picked, ws.logits, hp.logits_softcap, ws.logits, at_picked(Stage::logits)});
  tap.picked(Stage::logits, ws.logits);
}

}  // namespace

Workspace::Workspace(Backend& backend, const HParams& hp, int64_t rows, int64_t logit_rows)
    : max_rows(rows), max_logits(logit_rows) {
  for (const Width& w : widths(hp)) {
    const int64_t count = w.width * (w.per_logit ? max_logits : max_rows);
    buffers_.push_back(backend.allocate(static_cast<size_t>(count) * backend.element_bytes()));
    this->*w.view = {buffers_.back()->data(), w.width};
  }
}

uint64_t Workspace::bytes(const HParams& hp, int64_t max_rows, int64_t max_logits, size_t element_bytes) {
  int64_t elements = 0;
  for (const Width& w : widths(hp)) elements += w.width * (w.per_logit ? max_logits : max_rows);
  return static_cast<uint64_t>(elements) * element_bytes;
}

void forward(Backend& backend, const Model& model, const KvCache& cache, const BatchView& batch,
             std::span<const int32_t> logit_rows, Workspace& ws, Tap* observer) {
  if (batch.rows > ws.max_rows || static_cast<int64_t>(logit_rows.size()) > ws.max_logits)
    fail("a call of {} rows with {} rows of logits, the workspace holds {} and {}", batch.rows,
         logit_rows.size(), ws.max_rows, ws.max_logits);
  std::vector<KvLayer> layers;
  for (size_t l = 0; l < model.layers.size(); ++l) layers.push_back(cache.layer(l));
  if (backend.begin_pass(
          {&batch, logit_rows, layers, static_cast<int>(model.hp.heads), &model, &ws, observer != nullptr}))
    return;
  queue_pass(backend, model, layers, batch, logit_rows, ws, observer);
  backend.end_pass();
}

}  // namespace greta
