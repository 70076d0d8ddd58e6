#pragma once
// Random inputs of kernels, seeded: weights of every type as a file has them, and activations. Shared with
// the tests of the kernels (tests/gpu).
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/half.h"
#include "quant/types.h"

namespace greta::gpu {

/// The types that a kernel reads: every type but BF16.
inline std::vector<quant::Type> kernel_types() {
  std::vector<quant::Type> types;
  for (const auto& t : quant::all_types())
    if (t.type != quant::Type::BF16) types.push_back(t.type);
  return types;
}
inline std::string name_of(quant::Type type) { return std::string(quant::traits(type).name); }

/// A matrix as a file has it.
struct HostMatrix {
  quant::Type type = quant::Type::F32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<std::byte> bytes;

  int64_t row_bytes() const { return cols / quant::traits(type).block * quant::traits(type).bytes; }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<size_t>(rows * cols));
    quant::dequantize(type, bytes.data(), rows * cols, out.data());
    return out;
  }
  /// Rows [first, first + count).
  HostMatrix part(int64_t first, int64_t count) const {
    const auto at = bytes.begin() + first * row_bytes();
    return {type, count, cols, {at, at + count * row_bytes()}};
  }
};

/// Offsets of the f16 fields of a block, -1: none.
struct HalfFields {
  int scale = -1;
  int minimum = -1;
};
inline HalfFields half_fields(quant::Type type) {
  using quant::Type;
  switch (type) {
    case Type::Q4_0:
    case Type::Q5_0:
    case Type::Q8_0:
      return {0, -1};
    case Type::Q4_1:
    case Type::Q5_1:
    case Type::Q4_K:
    case Type::Q5_K:
      return {0, 2};
    case Type::Q2_K:
      return {80, 82};
    case Type::Q3_K:
      return {108, -1};
    case Type::Q6_K:
      return {208, -1};
    default:
      return {};
  }
}

inline void put_half(HostMatrix& m, size_t at, float value) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(m.bytes.data() + at, &half, sizeof half);
}

/// Every bit random, but for float fields of a sane size: all codes and all scales occur.
inline HostMatrix random_matrix(quant::Type type, int64_t rows, int64_t cols, uint32_t seed) {
  using quant::Type;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  const quant::Traits& t = quant::traits(type);
  HostMatrix m{type, rows, cols, {}};
  m.bytes.resize(static_cast<size_t>(rows * m.row_bytes()));
  if (t.block == 1) {
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float w = normal(random);
      const uint32_t bits = type == Type::F32    ? std::bit_cast<uint32_t>(w)
                            : type == Type::BF16 ? f32_to_bf16(w)
                                                 : f32_to_f16(w);
      std::memcpy(m.bytes.data() + i * t.bytes, &bits, static_cast<size_t>(t.bytes));
    }
    return m;
  }
  for (auto& b : m.bytes) b = static_cast<std::byte>(random());
  const HalfFields fields = half_fields(type);
  for (size_t block = 0; block < m.bytes.size(); block += static_cast<size_t>(t.bytes))
    for (const int at : {fields.scale, fields.minimum})
      if (at >= 0)
        put_half(m, block + static_cast<size_t>(at),
                 normal(random) / static_cast<float>(t.block == 256 ? 32 : 1));
  return m;
}

/// Activations as a transformer has them: normal, with outliers forty times as large.
inline std::vector<float> random_rows(int64_t count, uint32_t seed, float size = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = normal(random) * (random() % 64 == 0 ? 40.0f : 1.0f);
  return x;
}

}  // namespace greta::gpu
