#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "decoder/kv_cache.h"
#include "decoder/tap.h"
#include "model/model.h"

namespace greta {

/// The activations of one call, one buffer a stage, for up to `max_rows` rows and `max_logits` rows of
/// logits.
class Workspace {
 public:
  Workspace(Backend& backend, const HParams& hp, int64_t max_rows, int64_t max_logits);
  /// Bytes that a Workspace of this size takes on a device with such elements (for the plan).
  static uint64_t bytes(const HParams& hp, int64_t max_rows, int64_t max_logits, size_t element_bytes);

  int64_t max_rows, max_logits;
  View residual, norm, q, k, v, q_rot, attn, proj, gate, up, act, mlp, picked, final_norm, logits;
  View router, experts, expert_weights, expert_out;  ///< of a mixture

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

/// THE forward pass: prefill and decode, every backend. The batch's positions must already have room in the
/// cache (KvCache::grow). Leaves in ws.logits one row for each of `logit_rows` (ascending batch rows; may be
/// empty).
void forward(Backend& backend, const Model& model, const KvCache& cache, const BatchView& batch,
             std::span<const int32_t> logit_rows, Workspace& ws, Tap* tap);

}  // namespace greta
