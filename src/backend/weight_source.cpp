#include "backend/weight_source.h"

#include "base/error.h"

namespace greta {

int64_t file_row_bytes(quant::Type type, int64_t cols) {
  const quant::Traits& t = quant::traits(type);
  return cols / t.block * t.bytes;
}

std::optional<std::string> shape_refusal(quant::Type type, int64_t rows, int64_t cols) {
  const quant::Traits& t = quant::traits(type);
  if (rows < 1 || cols < 1)
    return fmt::format("expected at least one row and column, got {} x {}", rows, cols);
  if (cols % t.block != 0)
    return fmt::format("expected rows of a multiple of {} elements ({} blocks), got {}", t.block, t.name,
                       cols);
  return std::nullopt;
}

void begin_weight(const WeightSource& source, WeightUse use, Weight& weight) {
  if (const auto why = shape_refusal(source.type, source.rows, source.cols))
    fail("{}: {}", source.name, *why);
  const auto expected =
      quant::bytes_for(source.type, static_cast<uint64_t>(source.rows) * static_cast<uint64_t>(source.cols));
  if (!expected || *expected != source.bytes.size())
    fail("{}: expected {} bytes of {} for {} x {}, got {}", source.name, expected.value_or(0),
         quant::traits(source.type).name, source.rows, source.cols, source.bytes.size());
  weight.name = source.name;
  weight.use = use;
  weight.file_type = source.type;
  weight.rows = source.rows;
  weight.cols = source.cols;
  weight.experts = source.experts;
}

}  // namespace greta
