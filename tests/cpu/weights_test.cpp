// Weights as they lie in memory: lossless, of the promised size, in every weight mode; and the roundings in
// words.
#include <algorithm>

#include "backend/cpu/packed.h"
#include "backend/cpu/rounding.h"
#include "base/error.h"
#include "cpu/support.h"

namespace greta {
namespace {

using namespace cpu_test;

class CpuWeights : public testing::TestWithParam<quant::Type> {};
std::vector<quant::Type> types() {
  std::vector<quant::Type> all;
  for (const quant::Traits& t : quant::all_types()) all.push_back(t.type);
  return all;
}
INSTANTIATE_TEST_SUITE_P(Types, CpuWeights, testing::ValuesIn(types()),
                         [](const auto& type) { return std::string(quant::traits(type.param).name); });

std::vector<float> read_all(const Weight& weight) {
  std::vector<float> out(static_cast<size_t>(weight.rows * weight.cols));
  weight.read_back(0, weight.rows, out.data());
  return out;
}

TEST_P(CpuWeights, ReadBackIsTheFilesRowBitForBit) {
  const quant::Traits& t = quant::traits(GetParam());
  for (const Isa isa : isas()) {
    const auto device = backend(isa, 2);
    for (const int64_t rows : {1, 15, 16, 17, 100}) {
      for (const int64_t blocks :
           {1, 3, 8, 11, 16}) {  // 16: float rows of whole vectors, not packed at first
        const int64_t cols = t.block == 1 ? blocks * 7 : blocks * t.block;
        const Source source = random_weight(GetParam(), rows, cols, static_cast<uint32_t>(rows + blocks));
        const auto weight = device->load(source.source, WeightUse::matmul);
        const std::vector<float> file = dequantised(source);
        EXPECT_TRUE(same_bits(read_all(*weight), file)) << name_of(isa) << ' ' << rows << " x " << blocks;
        weight->settle();
        EXPECT_TRUE(same_bits(read_all(*weight), file)) << name_of(isa) << ' ' << rows << " x " << blocks;
        EXPECT_EQ(weight->resident_bytes, device->resident_bytes(WeightUse::matmul, GetParam(), rows, cols));
        // The file's bytes, rows filled up to 16, a float type's to 16 elements each, a group to 64 bytes:
        // nothing else.
        const auto groups = static_cast<uint64_t>((rows + 15) / 16);
        const int64_t filled = t.block == 1 ? (cols + 15) / 16 * 16 : cols;
        EXPECT_LT(weight->resident_bytes,
                  groups * (static_cast<uint64_t>(16 * filled / t.block * t.bytes) + 64));
      }
    }
  }
}

/// From the middle of a group and of an expert to the middle of another.
TEST_P(CpuWeights, AnyRowsOfAStackAreReadBack) {
  constexpr int64_t kAll = 60, kFirst = 7, kRows = 45;  // three experts of 20
  const int64_t cols = 3 * std::max<int64_t>(quant::traits(GetParam()).block, 7);
  Source stack = random_weight(GetParam(), kAll, cols, 5);
  stack.source.experts = 3;
  const auto device = backend(isas().front(), 2);
  const auto weight = device->load(stack.source, WeightUse::experts);
  const std::vector<float> file = dequantised(stack);
  const auto at = [&](int64_t row) { return file.begin() + row * cols; };
  std::vector<float> got(static_cast<size_t>(kRows * cols));
  weight->read_back(kFirst, kRows, got.data());
  EXPECT_TRUE(same_bits(got, std::vector<float>(at(kFirst), at(kFirst + kRows))));
}

/// The first calls take their groups from the file's blocks; then the weight is packed, its file is let go
/// and not read again. No bit of a product tells when.
TEST_P(CpuWeights, FirstCallsAreServedFromTheFile) {
  const bool floats = quant::traits(GetParam()).block == 1;  // read where they lie, for longer, in one mode
  for (const Isa isa : isas()) {
    for (const auto activations : {Activations::bits16, Activations::bits8}) {
      if (floats && activations == Activations::bits8) continue;
      for (const int64_t tokens : {1, 3, 40}) {
        const auto device = backend(isa, 2, activations);
        Source source = random_weight(GetParam(), 333, 512, 5);
        int64_t released = 0;
        source.source.release = [&](std::span<const std::byte> part) {
          EXPECT_EQ(part.data(), source.bytes.data());
          released += static_cast<int64_t>(part.size());
          std::fill(source.bytes.begin(), source.bytes.end(), std::byte{0});
        };
        const auto weight = device->load(source.source, WeightUse::matmul);
        const std::vector<float> x = random_rows(tokens * 512, 6);
        const std::vector<float> first = product(*device, *weight, x, tokens);
        EXPECT_EQ(released, 0);
        int calls = 1;
        for (; calls < (floats ? 300 : 20) && released == 0; ++calls)
          EXPECT_TRUE(same_bits(product(*device, *weight, x, tokens), first)) << name_of(isa) << calls;
        EXPECT_GT(calls, floats ? 128 : 1);
        EXPECT_EQ(released, static_cast<int64_t>(source.bytes.size()));
        EXPECT_TRUE(same_bits(product(*device, *weight, x, tokens), first)) << name_of(isa);
      }
    }
  }
}

/// What a first call packs is filled up with zeros, whatever the call before left in the thread's cache.
TEST_P(CpuWeights, WhatIsFilledUpIsZero) {
  const quant::Traits& t = quant::traits(GetParam());
  const int64_t cols = t.block == 1 ? 20 : t.block;
  const Source source = random_weight(GetParam(), 21, cols, 3);
  Source bad = random_weight(GetParam(), 48, 512, 4);
  std::fill(bad.bytes.begin(), bad.bytes.end(), std::byte{0xff});
  const std::vector<float> x = random_rows(512, 5);
  for (const Isa isa : isas()) {
    const auto fresh = backend(isa), used = backend(isa);
    const auto weight = fresh->load(source.source, WeightUse::matmul);
    product(*used, *used->load(bad.source, WeightUse::matmul), x, 1);
    const auto again = used->load(source.source, WeightUse::matmul);
    const auto row = std::vector(x.begin(), x.begin() + cols);
    EXPECT_TRUE(same_bits(product(*used, *again, row, 1), product(*fresh, *weight, row, 1))) << name_of(isa);
  }
}

/// Weights that are loaded together are not all packed in the same call.
TEST(CpuWeightsLoad, PackingIsSpreadOverCalls) {
  const auto device = backend(Isa::portable);
  std::vector<Source> sources(16);
  std::vector<std::unique_ptr<Weight>> weights;
  int released = 0;
  for (auto& s : sources) {
    s = random_weight(quant::Type::Q4_K, 16, 256, 1);
    s.source.release = [&](std::span<const std::byte>) { ++released; };
    weights.push_back(device->load(s.source, WeightUse::matmul));
  }
  const std::vector<float> x = random_rows(256, 2);
  std::vector<int> after;
  while (released < 16 && after.size() < 20) {
    for (const auto& weight : weights) product(*device, *weight, x, 1);
    after.push_back(released);
  }
  EXPECT_EQ(after, (std::vector<int>{0, 2, 4, 6, 8, 10, 12, 14, 16}));
}

/// Rows that end within a vector cannot be read where they lie.
TEST(CpuWeightsLoad, FloatRowsOfBrokenVectorsArePackedAtLoad) {
  for (const int64_t cols : {15, 16, 17, 100, 112}) {
    Source source = random_weight(quant::Type::F16, 7, cols, 1);
    bool released = false;
    source.source.release = [&](std::span<const std::byte>) { released = true; };
    const auto weight = backend(best_isa())->load(source.source, WeightUse::matmul);
    EXPECT_EQ(released, cols % 16 != 0) << cols;
  }
}

TEST_P(CpuWeights, ZeroBlocksGiveZero) {
  Source source = random_weight(GetParam(), 5, 256, 1);
  std::fill(source.bytes.begin(), source.bytes.end(), std::byte{0});
  for (const Isa isa : isas()) {
    const auto device = backend(isa);
    const auto weight = device->load(source.source, WeightUse::matmul);
    for (const float y : product(*device, *weight, random_rows(3 * 256, 2), 3)) EXPECT_EQ(y, 0.0f);
  }
}

TEST_P(CpuWeights, ModesConvertAtLoad) {
  const Source source = random_weight(GetParam(), 21, 512, 3);
  const std::vector<float> values = dequantised(source);
  const auto f32 = backend(Isa::portable, 1, Activations::bits16, KvType::f16, WeightMode::f32);
  EXPECT_TRUE(same_bits(read_all(*f32->load(source.source, WeightUse::matmul)), values));
  const auto int8 = backend(Isa::portable, 1, Activations::bits16, KvType::f16, WeightMode::int8);
  const auto weight = int8->load(source.source, WeightUse::matmul);
  EXPECT_EQ(weight->resident_bytes, int8->resident_bytes(WeightUse::matmul, GetParam(), 21, 512));
  const std::vector<float> got = read_all(*weight);
  for (size_t i = 0; i < values.size(); i += 32) {
    float largest = 0.0f;
    for (size_t j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(values[i + j]));
    const float d = largest / 127.0f, stored = f16_to_f32(f32_to_f16(d));
    for (size_t j = 0; j < 32; ++j)
      ASSERT_EQ(got[i + j], d == 0.0f ? 0.0f : std::nearbyint(values[i + j] * (1.0f / d)) * stored) << i + j;
  }
}

TEST(CpuWeightsInt8, RowsThatAreNoMultipleOf32ArePadded) {
  for (const int64_t k : {1, 20, 33, 100}) {
    const Source source = random_weight(quant::Type::F16, 19, k, 3);
    const std::vector<float> x = random_rows(7 * k, 5);
    std::vector<float> first;
    for (const Isa isa : isas()) {
      const auto device = backend(isa, 1, Activations::bits16, KvType::f16, WeightMode::int8);
      const auto weight = device->load(source.source, WeightUse::matmul);
      const std::vector<float> w = read_all(*weight), got = product(*device, *weight, x, 7);
      if (first.empty()) first = got;
      EXPECT_TRUE(same_bits(got, first));
      for (int64_t r = 0; r < 7; ++r) {  // alone it is rounded by code of its own
        const std::vector<float> row(x.begin() + r * k, x.begin() + (r + 1) * k);
        const std::vector<float> expected(got.begin() + r * 19, got.begin() + (r + 1) * 19);
        EXPECT_TRUE(same_bits(product(*device, *weight, row, 1), expected)) << name_of(isa) << " K = " << k;
      }
      const double gamma = cpu::matmul_roundings(quant::Type::Q8_0, k, Activations::bits16) * 0x1p-24 * 1.001;
      for (int64_t r = 0; r < 7; ++r) {
        for (int64_t n = 0; n < 19; ++n) {
          double sum = 0.0, size = 0.0;
          for (int64_t i = 0; i < k; i += 32) {
            const auto block = std::span(x).subspan(static_cast<size_t>(r * k + i),
                                                    static_cast<size_t>(std::min<int64_t>(32, k - i)));
            const auto rounded = cpu::round_block16(block);
            for (size_t j = 0; j < block.size(); ++j) {
              const double term =
                  static_cast<double>(w[static_cast<size_t>(n * k + i) + j]) * rounded.q[j] * rounded.scale;
              sum += term;
              size += std::fabs(term);
            }
          }
          EXPECT_TRUE(std::fabs(got[static_cast<size_t>(r * 19 + n)] - sum) <= gamma * size) << k;
        }
      }
    }
  }
}

TEST(CpuWeightsInt8, WeightsPastF16AreRefused) {
  const auto device = backend(Isa::portable, 1, Activations::bits16, KvType::f16, WeightMode::int8);
  for (const float bad : {NAN, INFINITY, 1e8f}) {
    Source source = random_weight(quant::Type::F32, 2, 64, 3);
    std::memcpy(source.bytes.data() + 70 * 4, &bad, 4);
    EXPECT_THROW(device->load(source.source, WeightUse::matmul), Error);
  }
}

TEST(CpuWeightsLoad, WrongSizesAreRefused) {
  const auto device = backend(Isa::portable);
  EXPECT_TRUE(device->refuses(WeightUse::matmul, quant::Type::Q4_K, 16, 128).has_value());
  EXPECT_TRUE(device->refuses(WeightUse::embedding, quant::Type::Q8_0, 16, 40).has_value());
  EXPECT_FALSE(device->refuses(WeightUse::matmul, quant::Type::F16, 16, 20).has_value());
  EXPECT_FALSE(device->refuses(WeightUse::matmul, quant::Type::Q8_0, 16, 1 << 26).has_value());
  EXPECT_TRUE(device->refuses(WeightUse::matmul, quant::Type::Q8_0, 16, (1 << 26) + 32).has_value());
  for (const quant::Type type : types())
    EXPECT_FALSE(device->refuses(WeightUse::matmul, type, 3, 512).has_value());
  Source source = random_weight(quant::Type::Q4_K, 4, 256, 3);
  source.source.rows = 5;
  EXPECT_THROW(device->load(source.source, WeightUse::matmul), Error);
}

/// The kernels' own rounding of activations against the plain functions: the product with unit weights shows
/// it.
TEST(CpuRounding, KernelsRoundAsTheScalarFunctionsSay) {
  const int64_t k = 96;
  std::vector<float> x;
  std::mt19937 random(9);
  std::vector<float> sizes{1e35f, 1e3f, 1.0f, 1e-20f, 1e-33f, 1e-37f, 1e-40f, 0.0f};
  for (const float size : sizes) {
    for (int64_t i = 0; i < k; ++i)
      x.push_back(size * (static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f));
  }
  const float edge = 32639.0f;  // the borders of the exponent's choice, and ties
  for (const float first :
       {edge, std::nextafter(edge, 1e9f), edge * 2, 32640.0f, 16384.0f, 65278.5f, 127.0f}) {
    for (int64_t i = 0; i < k; ++i) x.push_back(i % 32 == 0 ? first : static_cast<float>(i) + 0.5f);
  }
  const auto rows = static_cast<int64_t>(x.size()) / k;
  for (const Isa isa : isas()) {
    const cpu::KernelTable& table = cpu::kernels_of(isa);
    for (const bool eight : {false, true}) {
      std::vector<int32_t> starts;
      for (int32_t r = 0; r <= rows; ++r) starts.push_back(r);
      cpu::Activation to;
      std::vector<uint8_t> q(static_cast<size_t>(rows * 3 * table.x_bytes[eight ? 1 : 0]));
      std::vector<float> scale(static_cast<size_t>(rows * 3));
      std::vector<int32_t> sum(static_cast<size_t>(rows * 6));
      to.units = 3;
      to.tiles = rows;
      to.tile_start = starts.data();
      to.q = q.data();
      to.scale = scale.data();
      to.sum = sum.data();
      const auto expect_row = [&](int64_t r, int64_t cell) {
        for (int64_t unit = 0; unit < 3; ++unit, ++cell) {
          const auto block = std::span(x).subspan(static_cast<size_t>(r * k + unit * 32), 32);
          const cpu::RoundedBlock expected = eight ? cpu::round_block8(block) : cpu::round_block16(block);
          ASSERT_EQ(scale[static_cast<size_t>(cell)], expected.scale) << name_of(isa) << " row " << r;
          int32_t low = 0, high = 0;
          for (int i = 0; i < 32; ++i) (i < 16 ? low : high) += expected.q[i];
          ASSERT_EQ(sum[static_cast<size_t>(cell * 2)], low) << name_of(isa) << " row " << r;
          ASSERT_EQ(sum[static_cast<size_t>(cell * 2 + 1)], high) << name_of(isa) << " row " << r;
        }
      };
      for (int64_t r = 0; r < rows; ++r) {
        to.rows = rows;
        table.round_tile[eight ? 1 : 0](x.data() + r * k, k, to, r);
        expect_row(r, r * 3);
      }
      for (int64_t r = 0; r < rows; ++r) {
        to.rows = 1;
        table.round_tile[eight ? 1 : 0](x.data() + r * k, k, to, 0);
        expect_row(r, 0);
      }
    }
  }
}

TEST(CpuRounding, SixteenBitsByDefinition) {
  std::mt19937 random(4);
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> x(32);
    const float size = std::exp2(static_cast<float>(static_cast<int>(random() % 200) - 100));
    for (float& v : x) v = size * (static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f);
    const cpu::RoundedBlock block = cpu::round_block16(x);
    float largest = 0.0f;
    for (size_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, std::fabs(x[i]));
      EXPECT_LE(std::fabs(static_cast<double>(x[i]) -
                          static_cast<double>(block.q[i]) * static_cast<double>(block.scale)),
                block.scale / 2.0);
    }
    EXPECT_LE(largest / static_cast<double>(block.scale), 32639.0);
    EXPECT_GT(largest / static_cast<double>(block.scale), 32639.0 / 2);
  }
}

TEST(CpuRounding, RoundingsOfAProduct) {
  EXPECT_EQ(cpu::matmul_roundings(quant::Type::F16, 2048, Activations::bits16), 128 + 5);
  EXPECT_EQ(cpu::matmul_roundings(quant::Type::Q8_0, 2048, Activations::bits16), 64 + 2);
  EXPECT_EQ(cpu::matmul_roundings(quant::Type::Q6_K, 2048, Activations::bits8), 128 + 2);
  EXPECT_EQ(cpu::matmul_roundings(quant::Type::Q4_K, 2048, Activations::bits16), 128 + 3);
}

TEST(CpuBackend, UnknownMachinesAndTypesAreErrors) {
  BackendOptions options;
  options.kv_type = KvType::f64;
  EXPECT_THROW(make_cpu_backend(options), Error);
  EXPECT_TRUE(has_isa(Isa::portable));
  EXPECT_TRUE(has_isa(best_isa()));
  const auto device = backend(Isa::automatic, 2);
  EXPECT_NE(device->description().find(std::string(name_of(best_isa()))), std::string::npos);
}

}  // namespace
}  // namespace greta
