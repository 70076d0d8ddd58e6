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

/// All groups, each made in `to` by make(group, to).
template <class Make>
std::shared_ptr<std::byte> make_groups(const CpuWeight& weight, WeightMaker& maker, const Make& make) {
  const int64_t groups = ceil_div(weight.rows, kLanes);
  auto memory = maker.arena.allocate(static_cast<size_t>(groups * weight.group_size));
  maker.pool.parallel_for(groups, std::max<int64_t>(1, groups / (maker.pool.size() * 8)),
                          [&](int64_t begin, int64_t end, int) {
                            for (int64_t group = begin; group < end; ++group)
                              make(group, memory.get() + group * weight.group_size);
                          });
  return memory;
}

void pack_rows(const CpuWeight& weight, const KernelTable& kernels, const std::byte* rows, int64_t count,
               std::byte* to) {
  kernels.pack_group[weight.index](reinterpret_cast<const uint8_t*>(rows), weight.row_bytes,
                                   static_cast<int>(std::min<int64_t>(kLanes, count)), weight.units,
                                   reinterpret_cast<uint8_t*>(to));
}

void make_int8(const WeightSource& source, CpuWeight& weight, WeightMaker& maker) {
  weight.memory = make_groups(weight, maker, [&](int64_t group, std::byte* to) {
    thread_local std::vector<float> values;
    thread_local std::vector<std::byte> blocks;
    values.resize(static_cast<size_t>(source.cols));
    blocks.resize(static_cast<size_t>(weight.row_bytes) * kLanes);
    const int64_t first = group * kLanes, count = std::min<int64_t>(kLanes, source.rows - first);
    for (int64_t r = 0; r < count; ++r)
      to_int8(source, first + r, weight.units, values, blocks.data() + r * weight.row_bytes);
    pack_rows(weight, maker.kernels, blocks.data(), count, to);
  });
}

void widen(const WeightSource& source, float* to, ThreadPool& pool) {
  const int64_t row_bytes = file_row_bytes(source.type, source.cols);
  pool.parallel_for(source.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      quant::dequantize(source.type, source.bytes.data() + row * row_bytes, source.cols,
                        to + row * source.cols);
  });
}

}  // namespace

std::optional<std::string> weight_refusal(WeightUse use, quant::Type type, int64_t rows, int64_t cols) {
  const bool product = use == WeightUse::matmul || use == WeightUse::experts;
  if (product && cols > kMostColumns)
    return fmt::format("expected rows of at most {} elements, got {}", kMostColumns, cols);
  return shape_refusal(type, rows, cols);
}

uint64_t weight_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols, WeightMode mode) {
  if (layout_of(use, type, mode) == Layout::groups) {
    const int index = *integer_type(kernel_type_of(use, type, mode));
    return static_cast<uint64_t>(ceil_div(rows, kLanes) * group_bytes(index, ceil_div(cols, kUnit)));
  }
  return owns_floats(use, type, mode) ? static_cast<uint64_t>(rows * cols) * sizeof(float) : 0;
}

namespace {

/// A first call from the file, and up to so many more: weights are not all packed before the second token.
constexpr int64_t kSpread = 8;

/// One expert after the other.
std::unique_ptr<CpuWeight> load_stack(const WeightSource& source, WeightMaker& maker) {
  auto stack = std::make_unique<CpuWeight>();
  for (int64_t e = 0; e < source.experts; ++e) {
    stack->each.push_back(load_weight(source.expert(e), WeightUse::matmul, maker));
    stack->resident_bytes += stack->each.back()->resident_bytes;
  }
  const CpuWeight& first = *stack->each.front();
  stack->name = source.name;
  stack->use = WeightUse::experts;
  stack->file_type = source.type;
  stack->kernel_type = first.kernel_type;
  stack->resident = first.resident;
  stack->rows = source.rows;
  stack->cols = source.cols;
  stack->experts = source.experts;
  return stack;
}

void load_groups(const WeightSource& source, CpuWeight& weight, WeightMaker& maker) {
  const bool int8 = maker.mode == WeightMode::int8;
  weight.units = ceil_div(source.cols, kUnit);
  weight.group_size = group_bytes(weight.index, weight.units);
  weight.row_bytes = file_row_bytes(weight.kernel_type, weight.units * kUnit);  // int8: filled up
  weight.resident = fmt::format("{}/16-row groups", int8 ? "int8" : quant::traits(weight.kernel_type).name);
  if (int8) return make_int8(source, weight, maker);
  weight.maker = &maker;
  weight.source = source;
  weight.calls_from_file = 1 + maker.put_off++ % kSpread;
}

}  // namespace

std::unique_ptr<CpuWeight> load_weight(const WeightSource& source, WeightUse use, WeightMaker& maker) {
  if (use == WeightUse::experts) return load_stack(source, maker);
  auto weight = std::make_unique<CpuWeight>();
  if (const auto why = weight_refusal(use, source.type, source.rows, source.cols))
    fail("{}: {}", source.name, *why);
  begin_weight(source, use, *weight);
  weight->layout = layout_of(use, source.type, maker.mode);
  weight->kernel_type = kernel_type_of(use, source.type, maker.mode);
  weight->index = integer_type(weight->kernel_type).value_or(float_type(weight->kernel_type));
  weight->resident_bytes = weight_bytes(use, source.type, source.rows, source.cols, maker.mode);
  if (weight->layout == Layout::groups) {
    load_groups(source, *weight, maker);
  } else if (weight->resident_bytes > 0) {
    weight->row_bytes = source.cols * static_cast<int64_t>(sizeof(float));
    weight->resident = "F32";
    weight->memory = maker.arena.allocate(weight->resident_bytes);
    widen(source, reinterpret_cast<float*>(weight->memory.get()), maker.pool);
  } else {
    weight->data = source.bytes.data();
    weight->row_bytes = file_row_bytes(source.type, source.cols);
    weight->resident = fmt::format("{} in place", quant::traits(weight->kernel_type).name);
    return weight;
  }
  weight->data = weight->memory.get();
  if (weight->data != nullptr && source.release) source.release(source.bytes);
  return weight;
}

bool CpuWeight::packs_in_this_call() const {
  if (data != nullptr) return false;
  if (calls_from_file-- > 0) return true;
  settle();
  return false;
}

void CpuWeight::pack_group(int64_t group, std::byte* to) const {
  const int64_t first = group * kLanes;
  pack_rows(*this, maker->kernels, source.bytes.data() + first * row_bytes, rows - first, to);
}

void CpuWeight::settle() const {
  for (const auto& one : each) one->settle();
  if (maker == nullptr || data != nullptr) return;
  memory = make_groups(*this, *maker, [&](int64_t group, std::byte* to) { pack_group(group, to); });
  data = memory.get();
  if (source.release) source.release(source.bytes);
}

void CpuWeight::read_back(int64_t row, float* out) const {
  if (!each.empty()) {
    each[static_cast<size_t>(row / rows_each())]->read_back(row % rows_each(), out);
    return;
  }
  if (layout != Layout::groups) {
    quant::dequantize(layout == Layout::blocks ? file_type : kernel_type, data + row * row_bytes, cols, out);
    return;
  }
  std::vector<std::byte> packed(data == nullptr ? static_cast<size_t>(group_size) : 0);
  if (data == nullptr) pack_group(row / kLanes, packed.data());
  const std::byte* group = data == nullptr ? packed.data() : data + row / kLanes * group_size;
  unpack_row(index, group, static_cast<int>(row % kLanes), units, cols, out);
}

}  // namespace greta::cpu
