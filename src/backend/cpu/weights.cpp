#include "backend/cpu/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cpu/packed.h"
#include "backend/cpu/rounding.h"
#include "backend/weight_source.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"

namespace greta::cpu {
namespace {

int float_type(quant::Type type) {
  return type == quant::Type::F16 ? kF16 : type == quant::Type::BF16 ? kBF16 : kF32;
}

Layout layout_of(WeightUse use, quant::Type type, WeightMode mode) {
  if (use == WeightUse::embedding) return Layout::blocks;
  if (use == WeightUse::vector || mode == WeightMode::f32) return Layout::floats;
  if (mode == WeightMode::int8 || integer_type(type)) return Layout::groups;
  return Layout::floats;
}

/// The type that the matmul's kernel sees.
quant::Type kernel_type_of(WeightUse use, quant::Type type, WeightMode mode) {
  if (use == WeightUse::embedding) return type;
  if (use == WeightUse::vector || mode == WeightMode::f32) return quant::Type::F32;
  return mode == WeightMode::int8 ? quant::Type::Q8_0 : type;
}

/// F32 in memory of our own (a matmul's F32 file weights are used in place).
bool owns_floats(WeightUse use, quant::Type type, WeightMode mode) {
  return layout_of(use, type, mode) == Layout::floats &&
         (use == WeightUse::vector || (mode == WeightMode::f32 && type != quant::Type::F32));
}

/// Rows dequantised and rounded to Q8_0 blocks: [rows][units * 34] bytes.
void to_int8(const WeightSource& source, int64_t row, int64_t units, std::vector<float>& values,
             std::byte* to) {
  const int64_t bytes = file_row_bytes(source.type, source.cols);
  quant::dequantize(source.type, source.bytes.data() + row * bytes, source.cols, values.data());
  for (int64_t unit = 0; unit < units; ++unit) {
    const auto count = static_cast<size_t>(std::min<int64_t>(kUnit, source.cols - unit * kUnit));
    uint16_t scale;
    int8_t q[32];
    if (!round_weights8(std::span(values).subspan(static_cast<size_t>(unit * kUnit), count), &scale, q))
      fail("{}: row {} holds a weight that is not finite or past 8.3 million; --weights int8 expects less",
           source.name, row);
    std::memcpy(to + unit * 34, &scale, 2);
    std::memcpy(to + unit * 34 + 2, q, 32);
  }
}

void pack(const WeightSource& source, WeightMode mode, CpuWeight& weight, ThreadPool& pool) {
  const int64_t groups = ceil_div(source.rows, kLanes);
  const bool int8 = mode == WeightMode::int8;
  const int64_t row_bytes = int8 ? weight.units * 34 : file_row_bytes(source.type, source.cols);
  pool.parallel_for(
      groups, std::max<int64_t>(1, groups / (pool.size() * 8)), [&](int64_t begin, int64_t end, int) {
        std::vector<float> values(int8 ? static_cast<size_t>(source.cols) : 0);
        std::vector<std::byte> blocks(int8 ? static_cast<size_t>(row_bytes) * kLanes : 0);
        for (int64_t group = begin; group < end; ++group) {
          const std::byte* rows[kLanes] = {};
          for (int64_t r = 0; r < kLanes && group * kLanes + r < source.rows; ++r) {
            const int64_t row = group * kLanes + r;
            rows[r] = int8 ? blocks.data() + r * row_bytes : source.bytes.data() + row * row_bytes;
            if (int8) to_int8(source, row, weight.units, values, blocks.data() + r * row_bytes);
          }
          pack_group(weight.index, rows, weight.units, weight.memory.get() + group * weight.group_size);
        }
      });
}

void widen(const WeightSource& source, CpuWeight& weight, ThreadPool& pool) {
  const int64_t row_bytes = file_row_bytes(source.type, source.cols);
  auto* to = reinterpret_cast<float*>(weight.memory.get());
  pool.parallel_for(source.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      quant::dequantize(source.type, source.bytes.data() + row * row_bytes, source.cols,
                        to + row * source.cols);
  });
}

}  // namespace

uint64_t weight_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols, WeightMode mode) {
  if (layout_of(use, type, mode) == Layout::groups) {
    const int index = *integer_type(kernel_type_of(use, type, mode));
    return static_cast<uint64_t>(ceil_div(rows, kLanes) * group_bytes(index, ceil_div(cols, kUnit)));
  }
  return owns_floats(use, type, mode) ? static_cast<uint64_t>(rows * cols) * sizeof(float) : 0;
}

namespace {

/// One expert after the other.
std::unique_ptr<CpuWeight> load_stack(const WeightSource& source, WeightMode mode, ThreadPool& pool,
                                      Arena& arena) {
  auto stack = std::make_unique<CpuWeight>();
  for (int64_t e = 0; e < source.experts; ++e) {
    stack->each.push_back(load_weight(source.expert(e), WeightUse::matmul, mode, pool, arena));
    stack->resident_bytes += stack->each.back()->resident_bytes;
  }
  const CpuWeight& first = *stack->each.front();
  stack->name = source.name;
  stack->use = WeightUse::experts;
  stack->file_type = source.type;
  stack->kernel_type = first.kernel_type;
  stack->resident = first.resident;
  stack->file_in_use = first.file_in_use;
  stack->rows = source.rows;
  stack->cols = source.cols;
  stack->experts = source.experts;
  return stack;
}

}  // namespace

std::unique_ptr<CpuWeight> load_weight(const WeightSource& source, WeightUse use, WeightMode mode,
                                       ThreadPool& pool, Arena& arena) {
  if (use == WeightUse::experts) return load_stack(source, mode, pool, arena);
  auto weight = std::make_unique<CpuWeight>();
  begin_weight(source, use, *weight);
  weight->layout = layout_of(use, source.type, mode);
  weight->kernel_type = kernel_type_of(use, source.type, mode);
  weight->index = integer_type(weight->kernel_type).value_or(float_type(weight->kernel_type));
  weight->resident_bytes = weight_bytes(use, source.type, source.rows, source.cols, mode);
  const std::string_view type = quant::traits(weight->kernel_type).name;
  if (weight->resident_bytes == 0) {
    weight->data = source.bytes.data();
    weight->row_bytes = file_row_bytes(source.type, source.cols);
    weight->resident = fmt::format("{} in place", type);
    return weight;
  }
  weight->memory = arena.allocate(weight->resident_bytes);
  weight->data = weight->memory.get();
  weight->file_in_use = false;
  if (weight->layout == Layout::groups) {
    weight->units = ceil_div(source.cols, kUnit);
    weight->group_size = group_bytes(weight->index, weight->units);
    weight->resident = fmt::format("{}/16-row groups", mode == WeightMode::int8 ? "int8" : type);
    pack(source, mode, *weight, pool);
  } else {
    weight->row_bytes = source.cols * static_cast<int64_t>(sizeof(float));
    weight->resident = "F32";
    widen(source, *weight, pool);
  }
  return weight;
}

void CpuWeight::read_back(int64_t row, float* out) const {
  if (!each.empty()) {
    each[static_cast<size_t>(row / rows_each())]->read_back(row % rows_each(), out);
    return;
  }
  if (layout == Layout::groups) {
    unpack_row(index, data + row / kLanes * group_size, static_cast<int>(row % kLanes), units, cols, out);
  } else {
    quant::dequantize(layout == Layout::blocks ? file_type : kernel_type, data + row * row_bytes, cols, out);
  }
}

}  // namespace greta::cpu
