#pragma once
// What every device asks of a tensor before it loads it.
#include <optional>
#include <string>

#include "backend/backend.h"

namespace greta {

/// Bytes of a row of the file. cols is a multiple of the type's block.
int64_t file_row_bytes(quant::Type type, int64_t cols);

/// Why no device could use a matrix of this shape, or nothing.
std::optional<std::string> shape_refusal(quant::Type type, int64_t rows, int64_t cols);

/// Errors: shape_refusal(), a byte count unlike the shape. `weight` is then told what it is: name, use, file
/// type, shape.
void begin_weight(const WeightSource& source, WeightUse use, Weight& weight);

}  // namespace greta
