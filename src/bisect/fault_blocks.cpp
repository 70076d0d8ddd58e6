#include "bisect/fault_blocks.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "bisect/wiring.h"
#include "model/architectures.h"

namespace greta {
namespace {

/// Bytes [first, first + count) of a block hold two (Q2_K, Q3_K: four) quants each.
struct Packed {
  size_t first = 0;
  size_t count = 0;
};

std::optional<Packed> packed_quants(quant::Type type) {
  switch (type) {
    case quant::Type::Q4_0:
      return Packed{2, 16};
    case quant::Type::Q4_1:
      return Packed{4, 16};
    case quant::Type::Q5_0:
      return Packed{6, 16};
    case quant::Type::Q5_1:
      return Packed{8, 16};
    case quant::Type::Q2_K:
      return Packed{16, 64};
    case quant::Type::Q3_K:
      return Packed{32, 64};
    case quant::Type::Q4_K:
      return Packed{16, 128};
    case quant::Type::Q5_K:
      return Packed{48, 128};
    case quant::Type::Q6_K:
      return Packed{0, 128};
    default:
      return std::nullopt;
  }
}

/// Where a block's f16 scale lies.
std::optional<size_t> scale_offset(quant::Type type) {
  switch (type) {
    case quant::Type::F32:
    case quant::Type::F16:
    case quant::Type::BF16:
      return std::nullopt;
    case quant::Type::Q2_K:
      return 80;
    case quant::Type::Q3_K:
      return 108;
    case quant::Type::Q6_K:
      return 208;
    default:
      return 0;
  }
}

size_t scale_at(quant::Type type, int64_t block) {
  const auto offset = scale_offset(type);
  if (!offset) fail("{} blocks have no scale: the fault needs quantised weights", quant::traits(type).name);
  return static_cast<size_t>(block * quant::traits(type).bytes) + *offset;
}

}  // namespace

std::string tensor_name(const HParams& hp, Stage stage, int layer) {
  const Architecture* architecture = find_architecture(hp.architecture);
  const Wiring wiring(hp);
  const Role role = wiring.has(stage) ? wiring.rule(stage).weight : Role::count;
  if (architecture != nullptr && role != Role::count) {
    for (const TensorRule& rule : architecture->tensors) {
      if (!rule.in(hp)) continue;
      const bool inside =
          std::any_of(rule.fused.begin(), rule.fused.end(), [&](const auto& f) { return f.role == role; });
      if (inside || (rule.role == role && !rule.fused.empty()))
        fail("{} of architecture '{}' lies in one tensor with others ({})", name_of(stage), hp.architecture,
             rule.name(layer));
      if (rule.role == role) return rule.name(layer);
    }
  }
  fail("{} of architecture '{}' is made with no weight matrix", name_of(stage), hp.architecture);
}

void swap_nibbles(quant::Type type, std::span<std::byte> bytes) {
  const auto packed = packed_quants(type);
  if (!packed) fail("{} blocks have no nibbles", quant::traits(type).name);
  const auto size = static_cast<size_t>(quant::traits(type).bytes);
  for (size_t block = 0; block < bytes.size(); block += size)
    for (std::byte& b : bytes.subspan(block + packed->first, packed->count)) b = (b << 4) | (b >> 4);
}

bool has_scale(quant::Type type, std::span<const std::byte> bytes, int64_t block) {
  uint16_t half;
  std::memcpy(&half, bytes.data() + scale_at(type, block), sizeof half);
  return (half & 0x7fffu) != 0;
}

void change_scale(quant::Type type, std::span<std::byte> bytes, int64_t block) {
  std::byte* at = bytes.data() + scale_at(type, block);
  uint16_t half;
  std::memcpy(&half, at, sizeof half);
  const uint32_t exponent = (half >> 10) & 0x1fu;
  if ((half & 0x7fffu) == 0) {
    half = 0x1400;
  } else if (exponent == 0) {  // a subnormal: sign apart, its bits count up to the first normal number's
    half = static_cast<uint16_t>((half & 0x8000u) | ((half & 0x7fffu) * 2));
  } else {
    half = static_cast<uint16_t>(exponent >= 30 ? half - 0x400u : half + 0x400u);
  }
  std::memcpy(at, &half, sizeof half);
}

float element_of(const WeightSource& source, int64_t flat) {
  const quant::Traits& t = quant::traits(source.type);
  float values[256];
  quant::dequantize(source.type, source.bytes.data() + flat / t.block * t.bytes, t.block, values);
  return values[flat % t.block];
}

std::vector<std::byte> transposed(const WeightSource& source) {
  const auto count = static_cast<size_t>(source.rows * source.cols);
  std::vector<float> values(count), turned(count);
  quant::dequantize(source.type, source.bytes.data(), source.rows * source.cols, values.data());
  size_t to = 0;
  for (int64_t n = 0; n < source.rows; ++n)
    for (int64_t k = 0; k < source.cols; ++k) turned[to++] = values[static_cast<size_t>(k * source.rows + n)];
  std::vector<std::byte> bytes(source.bytes.size());
  quant::quantize(source.type, turned.data(), source.rows * source.cols, bytes.data());
  return bytes;
}

}  // namespace greta
