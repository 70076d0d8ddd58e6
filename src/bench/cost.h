#pragma once
// What a model's work needs at least: the bytes that a decode step reads and the multiply-adds of a prefill
// (docs/cli.md, "How the share of the limit is counted").
#include <cstdint>

#include "bench/limits.h"
#include "model/plan.h"

namespace greta {

/// Bytes that one decode step of `batch` sequences reads of the weights: every tensor once, in the weight
/// mode's own size (never a repacked one); of an embedding one row a sequence, unless it is the output head
/// too; of a layer's experts those that the sequences choose, as if no two chose the same.
uint64_t weight_bytes_read(const Plan& plan, WeightMode mode, int64_t batch);

/// Bytes of keys and values, as stored, that `steps` decode steps of one sequence read, the first at position
/// `first`: in each layer every position so far, or the window's.
double kv_bytes_read(const HParams& hp, KvType type, int64_t first, int64_t steps);

/// Bytes of all tensors of the plan in the weight mode's size: what a model-sized buffer is.
uint64_t model_bytes(const Plan& plan, WeightMode mode);

/// Multiply-adds by the units that do them.
struct Work {
  double integer = 0.0;  ///< products of integer weights
  double real = 0.0;     ///< products of F32, F16 and BF16 weights, and attention
};

/// `tokens` new tokens after `depth` positions, logits for the last alone.
Work prefill_work(const Plan& plan, WeightMode mode, int64_t depth, int64_t tokens);

/// The least time that this work takes.
double least_seconds(const Work& work, const ComputeLimit& limit, Activations activations);

}  // namespace greta
