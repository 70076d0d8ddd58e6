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
  if (use == WeightUse::vector) return Layout::vector;
  if (mode == WeightMode::f32) return Layout::floats;
  return mode == WeightMode::int8 || integer_type(type) ? Layout::integers : Layout::floats;
}

/// The type that the matmul's kernel sees.
quant::Type kernel_type_of(WeightUse use, quant::Type type, WeightMode mode) {
  if (use == WeightUse::embedding) return type;
  if (use == WeightUse::vector || mode == WeightMode::f32) return quant::Type::F32;
  return mode == WeightMode::int8 ? quant::Type::Q8_0 : type;
}

bool packed(Layout layout) { return layout == Layout::integers || layout == Layout::floats; }

/// Bytes of a group of 16 rows.
int64_t group_size_of(quant::Type kernel_type, int64_t cols) {
  const auto index = integer_type(kernel_type);
  return index ? group_bytes(*index, ceil_div(cols, kUnit))
               : float_group_bytes(quant::traits(kernel_type).bytes, cols);
}

/// A row dequantised and rounded to Q8_0 blocks: [units * 34] bytes.
void to_int8(const WeightSource& source, int64_t row, const std::vector<float>& values, std::byte* to) {
  for (int64_t k = 0; k < source.cols; k += kUnit, to += 34) {
    const auto count = static_cast<size_t>(std::min<int64_t>(kUnit, source.cols - k));
    uint16_t scale;
    int8_t q[32];
    if (!round_weights8(std::span(values).subspan(static_cast<size_t>(k), count), &scale, q))
      fail("{}: row {} holds a weight that is not finite or past 8.3 million; --weights int8 expects less",
           source.name, row);
    std::memcpy(to, &scale, 2);
    std::memcpy(to + 2, q, 32);
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

/// A group from `count` rows as they are before packing, row_bytes apart.
void pack_rows(const CpuWeight& weight, const KernelTable& kernels, const std::byte* rows, int64_t count,
               std::byte* to) {
  if (weight.layout == Layout::floats) {
    pack_float_group(quant::traits(weight.kernel_type).bytes, kernels.float_rows, rows, weight.row_bytes,
                     count, weight.cols, to);
  } else {
    kernels.pack_group[weight.index](reinterpret_cast<const uint8_t*>(rows), weight.row_bytes,
                                     static_cast<int>(std::min<int64_t>(kLanes, count)), weight.units,
                                     reinterpret_cast<uint8_t*>(to));
  }
}

/// Row `row` of the file as FP32.
void widen_row(const WeightSource& source, int64_t row, float* to) {
  quant::dequantize(source.type, source.bytes.data() + row * file_row_bytes(source.type, source.cols),
                    source.cols, to);
}

/// --weights int8 and f32: groups of converted rows.
void convert(const WeightSource& source, CpuWeight& weight, WeightMaker& maker) {
  weight.memory = make_groups(weight, maker, [&](int64_t group, std::byte* to) {
    thread_local std::vector<float> values;
    thread_local std::vector<std::byte> rows;
    values.resize(static_cast<size_t>(source.cols));
    rows.resize(static_cast<size_t>(weight.row_bytes) * kLanes);
    const int64_t first = group * kLanes, count = std::min<int64_t>(kLanes, source.rows - first);
    for (int64_t r = 0; r < count; ++r) {
      std::byte* row = rows.data() + r * weight.row_bytes;
      if (weight.layout == Layout::floats) {
        widen_row(source, first + r, reinterpret_cast<float*>(row));
      } else {
        widen_row(source, first + r, values.data());
        to_int8(source, first + r, values, row);
      }
    }
    pack_rows(weight, maker.kernels, rows.data(), count, to);
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
  const Layout layout = layout_of(use, type, mode);
  if (packed(layout))
    return static_cast<uint64_t>(ceil_div(rows, kLanes) *
                                 group_size_of(kernel_type_of(use, type, mode), cols));
  return layout == Layout::vector ? static_cast<uint64_t>(rows * cols) * sizeof(float) : 0;
}

namespace {

/// Calls that are served from the file, and up to so many more: weights are not all packed for one token.
/// Integers must be packed to be used: once a call, or for good. Floats gain 9 % (cpu.md), which has paid for
/// the memory's first touch, and for the copy, only after 70 to 700 tokens.
struct FirstCalls {
  int64_t least, spread;
};
constexpr FirstCalls kIntegerCalls = {1, 8}, kFloatCalls = {128, 128};

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
  const bool integers = weight.layout == Layout::integers;
  if (integers) weight.units = ceil_div(source.cols, kUnit);
  weight.group_size = group_size_of(weight.kernel_type, source.cols);
  weight.row_bytes =  // int8: filled up
      file_row_bytes(weight.kernel_type, integers ? weight.units * kUnit : source.cols);
  weight.resident = fmt::format("{}/16-row groups", int8 ? "int8" : quant::traits(weight.kernel_type).name);
  weight.maker = &maker;
  if (int8 || weight.kernel_type != source.type) return convert(source, weight, maker);
  weight.source = source;
  if (!integers && source.cols % kLanes != 0) return weight.settle();  // K must be filled up
  const FirstCalls& calls = integers ? kIntegerCalls : kFloatCalls;
  weight.calls_from_file = calls.least + maker.put_off++ % calls.spread;
}

}  // namespace

std::unique_ptr<CpuWeight> load_weight(const WeightSource& source, WeightUse use, WeightMaker& maker) {
  if (use == WeightUse::experts) return load_stack(source, maker);
  ++maker.loads;
  auto weight = std::make_unique<CpuWeight>();
  if (const auto why = weight_refusal(use, source.type, source.rows, source.cols))
    fail("{}: {}", source.name, *why);
  begin_weight(source, use, *weight);
  weight->layout = layout_of(use, source.type, maker.mode);
  weight->kernel_type = kernel_type_of(use, source.type, maker.mode);
  weight->index = integer_type(weight->kernel_type).value_or(float_type(weight->kernel_type));
  weight->resident_bytes = weight_bytes(use, source.type, source.rows, source.cols, maker.mode);
  if (packed(weight->layout)) {
    load_groups(source, *weight, maker);
  } else if (weight->layout == Layout::vector) {
    weight->resident = "F32";
    weight->memory = maker.arena.allocate(weight->resident_bytes);
    for (int64_t row = 0; row < source.rows; ++row)
      widen_row(source, row, reinterpret_cast<float*>(weight->memory.get()) + row * source.cols);
  } else {
    weight->data = source.bytes.data();
    weight->row_bytes = file_row_bytes(source.type, source.cols);
    weight->resident = fmt::format("{} in place", quant::traits(weight->kernel_type).name);
    return weight;
  }
  weight->data = weight->memory.get();
  if (weight->data != nullptr) source.let_go();
  return weight;
}

bool CpuWeight::packs_in_this_call() const {
  if (data != nullptr) return false;
  if (calls_from_file-- > 0) return layout == Layout::integers;
  settle();
  return false;
}

FloatRows CpuWeight::float_rows() const {
  const auto* at = reinterpret_cast<const uint8_t*>(stored());
  const int64_t sixteen = kLanes * quant::traits(kernel_type).bytes, strip = maker->kernels.float_rows;
  if (data == nullptr) return {at, strip * row_bytes, row_bytes, sixteen};
  return {at, strip * group_size / kLanes, sixteen, strip * sixteen};
}

void CpuWeight::pack_group(int64_t group, std::byte* to) const {
  const int64_t first = group * kLanes;
  pack_rows(*this, maker->kernels, source.bytes.data() + first * row_bytes, rows - first, to);
}

void CpuWeight::settle() const {
  for (const auto& one : each) one->settle();
  if (!packed(layout) || data != nullptr) return;
  memory = make_groups(*this, *maker, [&](int64_t group, std::byte* to) { pack_group(group, to); });
  data = memory.get();
  source.let_go();
}

void CpuWeight::read_back(int64_t first, int64_t count, float* out) const {
  if (!each.empty()) {
    for (int64_t left = count; left > 0;) {
      const int64_t own = first % rows_each();
      const int64_t together = std::min(left, rows_each() - own);
      each[static_cast<size_t>(first / rows_each())]->read_back(own, together, out);
      first += together;
      left -= together;
      out += together * cols;
    }
    return;
  }
  if (layout == Layout::vector) {
    std::copy_n(reinterpret_cast<const float*>(data) + first * cols, count * cols, out);
    return;
  }
  if (layout == Layout::blocks || (layout == Layout::floats && data == nullptr)) {  // the file's rows
    for (int64_t r = 0; r < count; ++r)
      quant::dequantize(file_type, stored() + (first + r) * row_bytes, cols, out + r * cols);
    return;
  }
  read_groups(first, count, out);
}

void CpuWeight::read_groups(int64_t first, int64_t count, float* out) const {
  std::vector<std::byte> made(data == nullptr ? static_cast<size_t>(group_size) : 0);
  std::vector<std::byte> elements(static_cast<size_t>(row_bytes));
  for (int64_t row = first; row < first + count; ++row, out += cols) {
    const int lane = static_cast<int>(row % kLanes);
    if (data == nullptr && (row == first || lane == 0)) pack_group(row / kLanes, made.data());
    const std::byte* group = data == nullptr ? made.data() : data + row / kLanes * group_size;
    if (layout == Layout::integers) {
      unpack_row(index, group, lane, units, cols, out);
      continue;
    }
    unpack_float_row(quant::traits(kernel_type).bytes, maker->kernels.float_rows, group, lane, cols,
                     elements.data());
    quant::dequantize(kernel_type, elements.data(), cols, out);
  }
}

}  // namespace greta::cpu
