// Block formats against the `gguf` Python package (tests/golden/quant, made by tools/golden_quant.py) and
// against their own error bounds.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/mapped_file.h"
#include "quant/types.h"

namespace greta::quant {
namespace {

std::string golden(std::string_view type, const char* kind) {
  return read_whole_file(fmt::format("{}/tests/golden/quant/{}.{}.bin", GRETA_SOURCE_DIR, type, kind));
}

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Roughly normal numbers whose spread and mean change from one run of 16 to the next, as real weights' do.
std::vector<float> weights(int64_t n, uint64_t seed, float scale) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int k = 0; k < 4; ++k)
      sum += static_cast<double>(mix(seed + 977 * static_cast<uint64_t>(4 * i + k)) >> 40) / 16777216.0 - 0.5;
    const uint64_t group = mix(seed ^ static_cast<uint64_t>(i / 16 + 1));
    const double spread = 0.1 + static_cast<double>(group & 1023) / 700.0;
    const double mean = static_cast<double>((group >> 10) & 1023) / 1023.0 - 0.5;
    x[static_cast<size_t>(i)] = scale * static_cast<float>(sum * spread + 0.4 * mean);
  }
  return x;
}

class EveryType : public testing::TestWithParam<Traits> {};

TEST_P(EveryType, DequantizesBitForBitAsTheGgufPackage) {
  const Traits t = GetParam();
  const std::string file = golden(t.name, "dequantize");
  uint32_t blocks = 0;
  std::memcpy(&blocks, file.data(), 4);
  ASSERT_GE(blocks, 64u);
  const size_t stored = static_cast<size_t>(blocks) * static_cast<size_t>(t.bytes);
  const int64_t n = static_cast<int64_t>(blocks) * t.block;
  ASSERT_EQ(file.size(), 4 + stored + static_cast<size_t>(n) * 4);
  std::vector<float> got(static_cast<size_t>(n), 123.0F);
  dequantize(t.type, reinterpret_cast<const std::byte*>(file.data()) + 4, n, got.data());
  for (int64_t i = 0; i < n; ++i) {
    uint32_t expected = 0;
    std::memcpy(&expected, file.data() + 4 + stored + static_cast<size_t>(i) * 4, 4);
    ASSERT_EQ(std::bit_cast<uint32_t>(got[static_cast<size_t>(i)]), expected)
        << "block " << i / t.block << ", element " << i % t.block << ": got " << got[static_cast<size_t>(i)]
        << ", expected " << std::bit_cast<float>(expected);
  }
}

TEST_P(EveryType, QuantizesAsTheGgufPackageWhereItDoes) {
  const Traits t = GetParam();
  if (t.block == 256 || t.type == Type::F32) return;  // the package has no encoder for these
  const std::string file = golden(t.name, "quantize");
  uint32_t blocks = 0;
  std::memcpy(&blocks, file.data(), 4);
  ASSERT_GE(blocks, 200u);
  const int64_t n = static_cast<int64_t>(blocks) * t.block;
  const size_t stored = static_cast<size_t>(blocks) * static_cast<size_t>(t.bytes);
  std::vector<float> x(static_cast<size_t>(n));
  std::memcpy(x.data(), file.data() + 4, x.size() * 4);
  std::vector<std::byte> got(stored);
  quantize(t.type, x.data(), n, got.data());
  for (size_t i = 0; i < stored; ++i)
    ASSERT_EQ(std::to_integer<int>(got[i]), static_cast<uint8_t>(file[4 + x.size() * 4 + i]))
        << "block " << i / static_cast<size_t>(t.bytes) << ", byte " << i % static_cast<size_t>(t.bytes);
}

/// The largest error of a round trip in units of the block's largest magnitude A. Half a step, for the types
/// with 4-bit codes and a minimum: (2A / 15) / 2. Then what the codes of scale and minimum round away: with C
/// codes, (levels - 1) / 2 of the scale's step and half of the minimum's. Symmetric types lose up to a whole
/// step at the end that has no code (+Levels / 2). An f16 scale adds 2^-11 of the value.
double worst_error(Type type) {
  constexpr double kHalf = 0x1p-10;
  switch (type) {
    case Type::F32:
      return 0;
    case Type::F16:
      return 0x1p-11;
    case Type::BF16:
      return 0x1p-8;
    case Type::Q4_0:
      return 1.0 / 8 + kHalf;
    case Type::Q4_1:
      return 2.0 / 15 / 2 + 2 * kHalf;
    case Type::Q5_0:
      return 1.0 / 16 + kHalf;
    case Type::Q5_1:
      return 2.0 / 31 / 2 + 2 * kHalf;
    case Type::Q8_0:
      return 0.5 / 127 + kHalf;
    case Type::Q2_K:
      return 2.0 / 3 / 2 + 3 * 0.5 * (2.0 / 3) / 15 + 0.5 / 15 + 2 * kHalf;
    case Type::Q3_K:
      return 1.0 / 4 + 4 * 1.0 * (1.0 / 4) / 32 + kHalf;
    case Type::Q4_K:
      return 2.0 / 15 / 2 + 15 * 0.5 * (2.0 / 15) / 63 + 0.5 / 63 + 2 * kHalf;
    case Type::Q5_K:
      return 2.0 / 31 / 2 + 31 * 0.5 * (2.0 / 31) / 63 + 0.5 / 63 + 2 * kHalf;
    case Type::Q6_K:
      return 1.0 / 32 + 32 * 1.0 * (1.0 / 32) / 128 + kHalf;
  }
  return 0;
}

/// Below 2^-14 an f16 scale is off by up to 2^-25, times the largest code (and code of a code) that it meets.
double subnormal_error(Type type) {
  switch (type) {
    case Type::F32:
    case Type::BF16:
      return 0;
    case Type::F16:
      return 0x1p-25;
    case Type::Q4_0:
      return 8 * 0x1p-25;
    case Type::Q4_1:
      return (15 + 1) * 0x1p-25;
    case Type::Q5_0:
      return 16 * 0x1p-25;
    case Type::Q5_1:
      return (31 + 1) * 0x1p-25;
    case Type::Q8_0:
      return 127 * 0x1p-25;
    case Type::Q2_K:
      return (3 * 15 + 15) * 0x1p-25;
    case Type::Q3_K:
      return 4 * 32 * 0x1p-25;
    case Type::Q4_K:
      return (15 * 63 + 63) * 0x1p-25;
    case Type::Q5_K:
      return (31 * 63 + 63) * 0x1p-25;
    case Type::Q6_K:
      return 32 * 128 * 0x1p-25;
  }
  return 0;
}

/// Root mean square of the error over that of the data, for the data of weights(): measured, with a tenth of
/// room.
double usual_error(Type type) {
  switch (type) {
    case Type::F32:
      return 0;
    case Type::F16:
      return 3.0e-4;
    case Type::BF16:
      return 2.0e-3;
    case Type::Q4_0:
      return 0.099;
    case Type::Q4_1:
      return 0.089;
    case Type::Q5_0:
      return 0.049;
    case Type::Q5_1:
      return 0.043;
    case Type::Q8_0:
      return 0.0058;
    case Type::Q2_K:
      return 0.33;
    case Type::Q3_K:
      return 0.16;
    case Type::Q4_K:
      return 0.089;
    case Type::Q5_K:
      return 0.040;
    case Type::Q6_K:
      return 0.020;
  }
  return 0;
}

TEST_P(EveryType, RoundTripStaysInsideItsBound) {
  const Traits t = GetParam();
  for (const float scale : {1.0F, 1e-2F, 300.0F}) {
    const int64_t n = 256 * 400;
    const std::vector<float> x = weights(n, 7, scale);
    std::vector<std::byte> stored(static_cast<size_t>(*bytes_for(t.type, static_cast<uint64_t>(n))));
    std::vector<float> y(x.size());
    quantize(t.type, x.data(), n, stored.data());
    dequantize(t.type, stored.data(), n, y.data());
    double error2 = 0;
    double data2 = 0;
    for (int64_t b = 0; b < n; b += t.block) {
      double largest = 0;
      for (int64_t i = b; i < b + t.block; ++i)
        largest = std::max(largest, std::fabs(double{x[static_cast<size_t>(i)]}));
      const double bound = worst_error(t.type) * largest + subnormal_error(t.type);
      for (int64_t i = b; i < b + t.block; ++i) {
        const double error = std::fabs(double{x[static_cast<size_t>(i)]} - y[static_cast<size_t>(i)]);
        ASSERT_FALSE(!(error <= bound))
            << "element " << i << ": " << x[static_cast<size_t>(i)] << " came back as "
            << y[static_cast<size_t>(i)] << ", bound " << bound;
        error2 += error * error;
        data2 += double{x[static_cast<size_t>(i)]} * x[static_cast<size_t>(i)];
      }
    }
    const double relative = std::sqrt(error2 / data2);
    EXPECT_FALSE(!(relative <= usual_error(t.type))) << "relative " << relative;
  }
}

/// Where a block's f16 numbers start; all other bytes of a block format are codes.
std::vector<size_t> halves(Type type) {
  switch (type) {
    case Type::Q4_0:
    case Type::Q5_0:
    case Type::Q8_0:
      return {0};
    case Type::Q4_1:
    case Type::Q5_1:
    case Type::Q4_K:
    case Type::Q5_K:
      return {0, 2};
    case Type::Q2_K:
      return {80, 82};
    case Type::Q3_K:
      return {108};
    case Type::Q6_K:
      return {208};
    default:
      return {};
  }
}

TEST_P(EveryType, EveryBitOfEveryCodeIsUsed) {
  const Traits t = GetParam();
  if (t.block == 1) return;  // no codes
  const int64_t n = 256 * 2000;
  const std::vector<float> x = weights(n, 11, 1.0F);
  std::vector<std::byte> stored(static_cast<size_t>(*bytes_for(t.type, static_cast<uint64_t>(n))));
  quantize(t.type, x.data(), n, stored.data());
  std::vector<int> ones(static_cast<size_t>(t.bytes) * 8, 0);
  for (size_t i = 0; i < stored.size(); ++i)
    for (size_t bit = 0; bit < 8; ++bit)
      ones[i % static_cast<size_t>(t.bytes) * 8 + bit] += (std::to_integer<int>(stored[i]) >> bit) & 1;
  const std::vector<size_t> skip = halves(t.type);
  const auto blocks = static_cast<int>(n / t.block);
  for (size_t i = 0; i < ones.size(); ++i) {
    if (std::any_of(skip.begin(), skip.end(), [&](size_t at) { return i / 16 * 2 == at; })) continue;
    EXPECT_TRUE(ones[i] > 0 && ones[i] < blocks)
        << "byte " << i / 8 << ", bit " << i % 8 << " is set in " << ones[i] << " of " << blocks;
  }
  std::vector<std::byte> again(stored.size());
  quantize(t.type, x.data(), n, again.data());
  EXPECT_EQ(stored, again);
}

TEST_P(EveryType, EdgeBlocks) {
  const Traits t = GetParam();
  const auto n = static_cast<int64_t>(std::max(t.block, 32));
  std::vector<float> x(static_cast<size_t>(n));
  std::vector<float> y(x.size());
  std::vector<std::byte> stored(static_cast<size_t>(*bytes_for(t.type, static_cast<uint64_t>(n))));
  const auto trip = [&] {
    quantize(t.type, x.data(), n, stored.data());
    dequantize(t.type, stored.data(), n, y.data());
    for (const float v : y) ASSERT_TRUE(std::isfinite(v));
  };
  trip();
  for (const float v : y) ASSERT_EQ(v, 0.0F);
  for (const float tiny : {1e-45F, 1e-38F, 1e-12F, 1e-8F, 2e-7F}) {  // scales that vanish in f16
    for (size_t i = 0; i < x.size(); ++i) x[i] = (i % 3 == 0 ? -tiny : tiny) * static_cast<float>(i % 7);
    trip();
    for (size_t i = 0; i < x.size(); ++i) ASSERT_FALSE(!(std::fabs(y[i] - x[i]) <= 6 * tiny + 2e-5F)) << i;
  }
  for (const float level : {-1e4F, 1e4F}) {  // a large mean, a small spread
    for (size_t i = 0; i < x.size(); ++i) x[i] = level + 1e-2F * static_cast<float>(i % 5);
    trip();
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_FALSE(!(std::fabs(y[i] - x[i]) <= worst_error(t.type) * 1.0001e4)) << i;
  }
}

TEST_P(EveryType, RefusesWhatItCannotHold) {
  const Traits t = GetParam();
  const auto n = static_cast<int64_t>(std::max(t.block, 32));
  std::vector<float> x(static_cast<size_t>(n), 1.0F);
  std::vector<std::byte> stored(static_cast<size_t>(*bytes_for(t.type, static_cast<uint64_t>(n))));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    x[17] = bad;
    try {
      quantize(t.type, x.data(), n, stored.data());
      ADD_FAILURE() << bad << " was taken";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("element 17"), std::string::npos) << error.what();
    }
  }
  if (t.type != Type::F32) {  // finite, but no stored number reaches it
    x[17] = 3.4028235e38F;
    EXPECT_THROW(quantize(t.type, x.data(), n, stored.data()), Error);
  }
  if (t.block > 1) {
    EXPECT_THROW(quantize(t.type, x.data(), t.block - 1, stored.data()), Error);
    EXPECT_THROW(dequantize(t.type, stored.data(), t.block - 1, x.data()), Error);
    EXPECT_FALSE(bytes_for(t.type, static_cast<uint64_t>(t.block) + 1));
  }
  EXPECT_NO_THROW(dequantize(t.type, stored.data(), 0, x.data()));
}

INSTANTIATE_TEST_SUITE_P(Quant, EveryType, testing::ValuesIn(all_types().begin(), all_types().end()),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(Types, NamesAndNumbers) {
  EXPECT_EQ(all_types().size(), 13u);
  for (const Traits& t : all_types()) {
    EXPECT_EQ(from_number(static_cast<uint32_t>(t.type)), t.type);
    EXPECT_EQ(from_name(t.name), t.type);
    EXPECT_EQ(traits(t.type).bytes, t.bytes);
    EXPECT_EQ(name_of_number(static_cast<uint32_t>(t.type)), t.name);
  }
  EXPECT_EQ(from_name("q4_k"), Type::Q4_K);
  EXPECT_EQ(from_name("bf16"), Type::BF16);
  EXPECT_EQ(from_name("q4_k_m"), std::nullopt);
  EXPECT_EQ(from_name("q4"), std::nullopt);
  EXPECT_EQ(from_number(16), std::nullopt);
  EXPECT_EQ(name_of_number(16), "IQ2_XXS");
  EXPECT_EQ(name_of_number(99), "type 99");
  EXPECT_THROW(traits(static_cast<Type>(99)), Error);
}

TEST(Types, BytesForNeverOverflows) {
  EXPECT_EQ(bytes_for(Type::Q4_K, 512), 288u);
  EXPECT_EQ(bytes_for(Type::F32, 0), 0u);
  EXPECT_EQ(bytes_for(Type::F32, std::numeric_limits<uint64_t>::max()), std::nullopt);
  EXPECT_EQ(bytes_for(Type::Q8_0, std::numeric_limits<uint64_t>::max() - 31), std::nullopt);
  EXPECT_EQ(bytes_for(Type::F32, std::numeric_limits<uint64_t>::max() / 4),
            std::numeric_limits<uint64_t>::max() / 4 * 4);
}

TEST(Types, EveryHalfAgreesWithTheBaseLibrary) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto stored = static_cast<uint16_t>(h);
    float wide = 0;
    dequantize(Type::F16, reinterpret_cast<const std::byte*>(&stored), 1, &wide);
    ASSERT_EQ(std::bit_cast<uint32_t>(wide), std::bit_cast<uint32_t>(f16_to_f32(stored))) << h;
  }
}

}  // namespace
}  // namespace greta::quant
