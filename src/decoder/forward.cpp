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
  return {{&Workspace::residual, hp.dim, false}, {&Workspace::norm, hp.dim, false},
          {&Workspace::q, hp.q_dim(), false},    {&Workspace::k, hp.kv_dim(), false},
          {&Workspace::v, hp.kv_dim(), false},   {&Workspace::q_rot, hp.q_dim(), false},
          {&Workspace::attn, hp.q_dim(), false}, {&Workspace::proj, hp.dim, false},
          {&Workspace::gate, hp.ffn_dim, false}, {&Workspace::up, hp.ffn_dim, false},
          {&Workspace::act, hp.ffn_dim, false},  {&Workspace::mlp, hp.dim, false},
          {&Workspace::picked, hp.dim, true},    {&Workspace::final_norm, hp.dim, true},
          {&Workspace::logits, hp.vocab, true}};
}

/// Hands stages to a tap. Without taps compiled in (GRETA_TAPS=0) nothing is left of it.
struct Taps {
  Backend& backend;
  const BatchView& batch;
  std::span<const int32_t> logit_rows;
  Tap* tap;

  void operator()(int layer, Stage stage, const View& view) const {
    if constexpr (GRETA_TAPS) {
      if (tap != nullptr)
        tap->on_stage(layer, stage,
                      {&backend, &batch, nullptr, batch.rows, view.width, view, nullptr, KvPart::k});
    }
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
  const HParams& hp = model.hp;
  const int64_t rows = batch.rows;
  if (rows > ws.max_rows || static_cast<int64_t>(logit_rows.size()) > ws.max_logits)
    fail("a call of {} rows with {} rows of logits, the workspace holds {} and {}", rows, logit_rows.size(),
         ws.max_rows, ws.max_logits);
  const Taps tap{backend, batch, logit_rows, observer};
  const auto at = [&](int layer, Stage stage) { return Site{layer, stage, &batch, nullptr}; };
  const int heads = static_cast<int>(hp.heads);

  backend.embed(
      {&batch, model.at(Role::embedding), hp.embedding_scale, ws.residual, at(kNoLayer, Stage::embed_out)});
  tap(kNoLayer, Stage::embed_out, ws.residual);

  for (size_t l = 0; l < model.layers.size(); ++l) {
    const auto w = [&](Role role) { return model.at(l, role); };
    const int layer = static_cast<int>(l);
    const KvLayer kv = cache.layer(l);

    // Attention: residual += wo . attention(rope(q), rope(k), v)
    tap(layer, Stage::residual_pre_attn, ws.residual);
    backend.rmsnorm(
        {rows, ws.residual, w(Role::attn_norm), hp.norm_eps, ws.norm, at(layer, Stage::attn_norm)});
    tap(layer, Stage::attn_norm, ws.norm);
    backend.matmul({rows,
                    ws.norm,
                    {{{w(Role::wq), w(Role::bq), ws.q, Stage::q_pre_rope},
                      {w(Role::wk), w(Role::bk), ws.k, Stage::k_pre_rope},
                      {w(Role::wv), w(Role::bv), ws.v, Stage::v}}},
                    3,
                    at(layer, Stage::q_pre_rope)});
    tap(layer, Stage::q_pre_rope, ws.q);
    tap(layer, Stage::k_pre_rope, ws.k);
    backend.rope({&batch, &hp.rope, heads, ws.q, ws.k, ws.v, ws.q_rot, kv, at(layer, Stage::q_post_rope)});
    tap.cached(layer, Stage::v, kv, KvPart::v);
    tap(layer, Stage::q_post_rope, ws.q_rot);
    tap.cached(layer, Stage::k_post_rope, kv, KvPart::k);
    backend.attention({&batch, heads, hp.attention_scale, ws.q_rot, kv, ws.attn, at(layer, Stage::attn_out)});
    tap(layer, Stage::attn_out, ws.attn);
    backend.matmul({rows,
                    ws.attn,
                    {{{w(Role::wo), w(Role::bo), ws.proj, Stage::attn_proj}}},
                    1,
                    at(layer, Stage::attn_proj)});
    tap(layer, Stage::attn_proj, ws.proj);
    backend.add({rows, ws.residual, ws.proj, ws.residual, at(layer, Stage::residual_post_attn)});
    tap(layer, Stage::residual_post_attn, ws.residual);

    // MLP: residual += w_down . (activation(w_gate . x) * (w_up . x))
    backend.rmsnorm({rows, ws.residual, w(Role::ffn_norm), hp.norm_eps, ws.norm, at(layer, Stage::ffn_norm)});
    tap(layer, Stage::ffn_norm, ws.norm);
    backend.matmul({rows,
                    ws.norm,
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
    tap(layer, Stage::mlp_out, ws.mlp);
    backend.add({rows, ws.residual, ws.mlp, ws.residual, at(layer, Stage::residual_post_mlp)});
    tap(layer, Stage::residual_post_mlp, ws.residual);
  }

  if (logit_rows.empty()) return;
  const auto picked = static_cast<int64_t>(logit_rows.size());
  const auto at_picked = [&](Stage stage) { return Site{kNoLayer, stage, &batch, logit_rows.data()}; };
  backend.gather({logit_rows, ws.residual, ws.picked, at_picked(Stage::final_norm)});
  backend.rmsnorm({picked, ws.picked, model.at(Role::final_norm), hp.norm_eps, ws.final_norm,
                   at_picked(Stage::final_norm)});
  tap.picked(Stage::final_norm, ws.final_norm);
  backend.matmul({picked,
                  ws.final_norm,
                  {{{model.at(Role::head), nullptr, ws.logits, Stage::logits}}},
                  1,
                  at_picked(Stage::logits)});
  tap.picked(Stage::logits, ws.logits);
}

}  // namespace greta
