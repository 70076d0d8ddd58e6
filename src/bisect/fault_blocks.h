#pragma once
// Inside the fault catalogue: damage to tensors as the file stores them, and the tensor behind a stage.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace greta {

/// The name in the file of the weight that a stage is made with: "blk.3.attn_q.weight". The head's is
/// "output.weight", which tied models lack. Errors: a stage without one, a tensor that several roles share.
std::string tensor_name(const HParams& hp, Stage stage, int layer);

/// Low and high halves of the bytes that hold the quants exchanged, in every block. Errors: a type that packs
/// no two quants in a byte.
void swap_nibbles(quant::Type type, std::span<std::byte> bytes);

/// Doubles the f16 scale of block `block` (halves it where f16 ends there; 2^-10 where it was zero). Errors:
/// a type without scales.
void change_scale(quant::Type type, std::span<std::byte> bytes, int64_t block);
/// A block's scale is not zero, so that changing it changes values.
bool has_scale(quant::Type type, std::span<const std::byte> bytes, int64_t block);

/// Element `flat` of a tensor, counted row after row.
float element_of(const WeightSource& source, int64_t flat);

/// A tensor read as if it were stored [cols][rows]: element (n, k) is what lies at flat index k * rows + n.
/// Same type, quantised again.
std::vector<std::byte> transposed(const WeightSource& source);

}  // namespace greta
