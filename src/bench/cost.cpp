#include "bench/cost.h"

#include <algorithm>
#include <map>

namespace greta {
namespace {

bool is_real(quant::Type type) {
  return type == quant::Type::F32 || type == quant::Type::F16 || type == quant::Type::BF16;
}

/// Bytes of `rows` rows of a tensor in the form that the mode gives it. int8 pads a row's last block (32
/// weights, 34 bytes).
uint64_t bytes_in_mode(const gguf::Tensor& tensor, WeightUse use, WeightMode mode) {
  const bool product = use == WeightUse::matmul || use == WeightUse::experts;
  if (!product || mode == WeightMode::stored) return tensor.bytes.size();
  if (mode == WeightMode::f32) return tensor.elements() * 4;
  const uint64_t cols = tensor.shape.empty() ? 1 : tensor.shape[0];
  return tensor.elements() / cols * ((cols + 31) / 32) * 34;
}

/// Each tensor of the plan once; one that is both embedding and head counts as the head.
std::map<const gguf::Tensor*, WeightUse> uses(const Plan& plan) {
  std::map<const gguf::Tensor*, WeightUse> found;
  for (const PlannedTensor& planned : plan.tensors) {
    const auto [at, added] = found.emplace(planned.tensor, planned.use);
    if (!added && planned.use != WeightUse::embedding) at->second = planned.use;
  }
  return found;
}

uint64_t kv_element_bytes(KvType type) {
  switch (type) {
    case KvType::f16:
    case KvType::bf16:
      return 2;
    case KvType::f32:
      return 4;
    case KvType::f64:
      return 8;
  }
  return 0;
}

/// Keys that `rows` rows see, the first at position `first`; window: as HParams::window_of().
double keys_seen(int64_t first, int64_t rows, int64_t window) {
  const int64_t growing = window == 0 ? rows : std::clamp<int64_t>(window - first, 0, rows);
  const auto n = static_cast<double>(growing);
  return n * static_cast<double>(first) + n * (n + 1.0) / 2.0 +
         static_cast<double>(rows - growing) * static_cast<double>(window);
}

double keys_seen_in_layers(const HParams& hp, int64_t first, int64_t rows) {
  double keys = 0.0;
  for (int64_t layer = 0; layer < hp.layers; ++layer) keys += keys_seen(first, rows, hp.window_of(layer));
  return keys;
}

}  // namespace

uint64_t weight_bytes_read(const Plan& plan, WeightMode mode, int64_t batch) {
  uint64_t bytes = 0;
  for (const auto& [tensor, use] : uses(plan)) {
    const uint64_t whole = bytes_in_mode(*tensor, use, mode);
    if (use == WeightUse::embedding) {
      const uint64_t rows = tensor->elements() / tensor->shape[0];
      bytes += whole / rows * static_cast<uint64_t>(batch);
    } else if (use == WeightUse::experts) {
      const int64_t chosen = std::min(plan.hp.experts, batch * plan.hp.experts_used);
      bytes += whole / static_cast<uint64_t>(plan.hp.experts) * static_cast<uint64_t>(chosen);
    } else {
      bytes += whole;
    }
  }
  return bytes;
}

double kv_bytes_read(const HParams& hp, KvType type, int64_t first, int64_t steps) {
  return keys_seen_in_layers(hp, first, steps) * static_cast<double>(2 * hp.kv_dim()) *
         static_cast<double>(kv_element_bytes(type));
}

uint64_t model_bytes(const Plan& plan, WeightMode mode) {
  uint64_t bytes = 0;
  for (const auto& [tensor, use] : uses(plan)) bytes += bytes_in_mode(*tensor, use, mode);
  return bytes;
}

Work prefill_work(const Plan& plan, WeightMode mode, int64_t depth, int64_t tokens) {
  Work work;
  const auto n = static_cast<double>(tokens);
  for (const PlannedTensor& planned : plan.tensors) {
    double products =
        static_cast<double>(planned.tensor->elements()) * (planned.role == Role::head ? 1.0 : n);
    if (planned.use == WeightUse::experts)
      products *= static_cast<double>(plan.hp.experts_used) / static_cast<double>(plan.hp.experts);
    else if (planned.use != WeightUse::matmul)
      continue;
    const bool real =
        mode == WeightMode::f32 || (mode == WeightMode::stored && is_real(planned.tensor->type));
    (real ? work.real : work.integer) += products;
  }
  // A key costs head_dim products for its score and as many for its value, in each head.
  work.real += keys_seen_in_layers(plan.hp, depth, tokens) * 2.0 * static_cast<double>(plan.hp.q_dim());
  return work;
}

double least_seconds(const Work& work, const ComputeLimit& limit, Activations activations) {
  return work.integer / (activations == Activations::bits8 ? limit.int8 : limit.int16) +
         work.real / limit.fp32;
}

}  // namespace greta
