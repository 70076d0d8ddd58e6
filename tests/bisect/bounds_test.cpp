// The judge's own rounding against the definition: binary16 bit by bit (base/half.h), 2^e by ldexp.
#include "bisect/bounds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "backend/arithmetic.h"
#include "backend/cpu/rounding.h"
#include "base/half.h"

namespace greta {
namespace {

double f16_by_definition(double x, int e) {
  return std::ldexp(double{f16_to_f32(f32_to_f16(static_cast<float>(std::ldexp(x, e))))}, -e);
}

int exponent_of(std::span<const float> row) {
  double largest = 0.0;
  for (const float x : row) largest = std::max(largest, std::abs(double{x}));
  return row_exponent(largest);
}

void expect_same(double expected, double got) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(got)) << got;
  } else {
    EXPECT_EQ(expected, got);
    EXPECT_EQ(std::signbit(expected), std::signbit(got));
  }
}

/// Every f16, what lies halfway behind it and beside that, and numbers down to where all is zero, times
/// `scale`.
std::vector<float> hard_row(float scale) {
  std::vector<float> row;
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float here = f16_to_f32(static_cast<uint16_t>(bits));
    const float half = (here + f16_to_f32(static_cast<uint16_t>(bits + 1))) / 2;
    for (const float x : {here, half, std::nextafter(half, 0.0f), std::nextafter(half, 1e6f)})
      row.push_back((bits % 2 == 0 ? x : -x) * scale);
  }
  std::mt19937 random(7);
  std::uniform_real_distribution<float> exponent(-60.0f, 0.0f);
  for (int i = 0; i < 2000; ++i) row.push_back(std::exp2(exponent(random)) * scale);
  for (const float x : {0.0f, -0.0f, std::numeric_limits<float>::denorm_min()}) row.push_back(x);
  return row;
}

std::vector<std::vector<float>> hard_rows() {
  std::vector<std::vector<float>> rows = {hard_row(0x1p-1f), hard_row(1.0f), hard_row(0x1p-60f),
                                          hard_row(0x1p90f)};
  rows.push_back({1.0f, std::numeric_limits<float>::quiet_NaN(), 3.0f});
  // A row with an infinity has e = 0, and what is past f16 there is infinite, too.
  rows.push_back({std::numeric_limits<float>::infinity(), 65504.0f, 65519.0f, 65520.0f, -65520.0f, 3e38f,
                  1e-8f, -1e-7f});
  return rows;
}

TEST(Bounds, OperandsRoundToTheNearestF16OfTheirRow) {
  for (const auto& row : hard_rows()) {
    const std::vector<double> x(row.begin(), row.end());
    const auto got = rounded_operand(x, OperandRounding::f16_row);
    const int e = exponent_of(row);
    for (size_t i = 0; i < row.size(); ++i) {
      SCOPED_TRACE(row[i]);
      expect_same(f16_by_definition(x[i], e), got[i]);
    }
  }
}

TEST(Bounds, WeightsRoundToOneOrTwoF16OfTheirRow) {
  for (const auto& row : hard_rows()) {
    const auto cols = static_cast<int64_t>(row.size());
    const WeightSource source{"w", quant::Type::F32, 1, cols, std::as_bytes(std::span(row))};
    const int e = exponent_of(row);
    for (const auto rounding : {WeightRounding::f16_row, WeightRounding::f16_pair}) {
      std::vector<float> got(row.size());
      judged_row(source, 0, {WeightMode::stored, rounding}, got.data());
      for (size_t i = 0; i < row.size(); ++i) {
        SCOPED_TRACE(row[i]);
        const double high = f16_by_definition(double{row[i]}, e);
        const double low =
            rounding == WeightRounding::f16_pair ? f16_by_definition(double{row[i]} - high, e) : 0.0;
        expect_same(double{static_cast<float>(high + low)}, double{got[i]});
      }
    }
  }
}

/// e^x as FP32 has it, `off` of its smallest subnormals beside it.
double small_power(double x, int off) { return double{static_cast<float>(std::exp(x))} + off * 0x1p-149; }

// The second key's probability is subnormal, and its value large: what FP32 loses of it is far above the
// result's own roundings.
TEST(Bounds, ASubnormalProbabilityOfALargeValueIsInsideTheBound) {
  const std::vector<double> q = {1.0, 0.0}, keys = {0.0, 0.0, -100.0, 0.0}, values = {0.0, 1e38, 1e38, 0.0};
  const cpu::CpuArithmetic arithmetic(WeightMode::stored, Activations::bits16, KvType::f32);
  const Judged judged = judge_attention(q, keys, values, 1.0, 0.0, 2, 2, arithmetic);
  const double p = small_power(-100.0, 0);
  EXPECT_GT(std::abs(p - std::exp(-100.0)) * 1e38, 1e-9);
  EXPECT_LE(std::abs(p * 1e38 / (1.0 + p) - judged.value[0]), judged.certain[0]);
  EXPECT_GT(0.01 * 1e38, judged.certain[1]);  // the other key's value is judged as before
}

// Where e^x is subnormal its ulps are absolute, and `up` makes them large.
TEST(Bounds, SiluOfAFarNegativeGateKeepsItsUlps) {
  const double gate = -95.0, up = 1e38, ulps = 5.0;
  const std::vector<double> gates = {gate}, ups = {up};
  const Judged judged = judge_glu(Activation::silu, gates, ups, ulps, 0.0);
  const auto silu = [&](int off) {
    return gate * small_power(gate, off) / (1.0 + small_power(gate, off)) * up;
  };
  EXPECT_LE(std::abs(silu(2) - judged.value[0]), judged.certain[0]);
  EXPECT_GT(std::abs(silu(40) - judged.value[0]), judged.certain[0]);
}

// Blocks whose largest magnitude is near where its 127th has no FP32 reciprocal, and a short last block.
TEST(Bounds, Int8WeightsRoundAsTheKernelsDefinitionHasIt) {
  const float least = std::numeric_limits<float>::denorm_min();
  std::vector<float> row;
  for (const float largest :
       {0.0f, least, 1e-39f, 3.6e-37f, 3.7e-37f, 3.74e-37f, 4e-37f, 1e-30f, 5e-6f, 7.5e-6f, 1.0f, 60000.0f}) {
    row.push_back(largest);
    for (int i = 1; i < 32; ++i)
      row.push_back(i % 3 == 0 ? 0.0f : largest * static_cast<float>(16 - i) / 17.0f);
  }
  row.insert(row.end(), {0.0f, 3.7e-37f, -1e-38f});
  const WeightSource source{"w", quant::Type::F32, 1, static_cast<int64_t>(row.size()),
                            std::as_bytes(std::span(row))};
  std::vector<float> got(row.size());
  judged_row(source, 0, WeightMode::int8, got.data());
  for (size_t begin = 0; begin < row.size(); begin += 32) {
    const size_t count = std::min<size_t>(32, row.size() - begin);
    uint16_t scale = 0;
    int8_t q[32];
    ASSERT_TRUE(cpu::round_weights8(std::span(row).subspan(begin, count), &scale, q));
    for (size_t i = 0; i < count; ++i)
      EXPECT_EQ(f16_to_f32(scale) * static_cast<float>(q[i]), got[begin + i])
          << row[begin + i] << " at " << begin + i;
  }
}

TEST(Bounds, WhatTheCapMultipliesOfASubnormalQuotientIsInsideTheBound) {
  const double ulps = 3.0;
  for (const float cap : {30.0f, 50.0f}) {
    double worst = 0.0;
    for (int i = 1; i < 2000; ++i) {
      const float x = static_cast<float>(i) * 0x1p-149f;
      const float got = cap * (x / cap);  // tanh of a subnormal is itself
      const std::vector<double> row = {double{x}};
      const Judged judged = judge_softcap(row, double{cap}, ulps);
      EXPECT_TRUE(within(judged, 0, double{got})) << x;
      EXPECT_FALSE(within(judged, 0, double{x} + 1000 * 0x1p-149)) << x;
      worst = std::max(worst, std::abs(double{got} - judged.value[0]));
    }
    EXPECT_GT(worst, 10 * 0x1p-149) << "nothing was lost";
  }
}

TEST(Bounds, WhatANormsWeightMultipliesOfASubnormalProductIsInsideTheBound) {
  std::vector<double> x(64, 100.0);
  for (size_t i = 0; i < 8; ++i)
    x[i] = double{static_cast<float>(1e-38 * (1.0 + 0.1 * static_cast<double>(i)))};
  const std::vector<float> weight(64, 60.0f);
  float squares = 0.0f;
  for (const double value : x) squares += static_cast<float>(value) * static_cast<float>(value);
  const float factor = 1.0f / std::sqrt(squares / 64.0f + 1e-6f);
  const Judged judged = judge_rmsnorm(x, weight, 1e-6f, 64);
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float product = static_cast<float>(x[i]) * factor;
    EXPECT_TRUE(within(judged, i, double{product * weight[i]})) << i;
    if (i < 8) worst = std::max(worst, std::abs(double{product * weight[i]} - judged.value[i]));
  }
  EXPECT_GT(worst, 10 * 0x1p-149) << "nothing was lost";
}

// A scale of weights times a scale of activations that is subnormal, and the block's sum, which is large.
TEST(Bounds, WhatABlocksSumMultipliesOfASubnormalScaleIsInsideTheBound) {
  constexpr size_t kCols = 64;
  double worst = 0.0;
  for (int step = 0; step < 50; ++step) {
    const float largest = 1e-36f * (1.0f + 0.13f * static_cast<float>(step));
    std::vector<std::byte> bytes;
    const uint16_t weight_scale = f32_to_f16(0x1p-14f);
    for (size_t block = 0; block < kCols / 32; ++block) {
      bytes.push_back(static_cast<std::byte>(weight_scale & 0xff));
      bytes.push_back(static_cast<std::byte>(weight_scale >> 8));
      bytes.insert(bytes.end(), 32, std::byte{127});
    }
    const WeightSource source{"w", quant::Type::Q8_0, 1, kCols, bytes};
    const std::vector<float> x(kCols, largest);
    float got = 0.0f;
    for (size_t begin = 0; begin < kCols; begin += 32) {
      const auto block = cpu::round_block8(std::span(x).subspan(begin, 32));
      int sum = 0;
      for (size_t i = 0; i < 32; ++i) sum += 127 * block.q[i];
      got = std::fma(static_cast<float>(sum), f16_to_f32(weight_scale) * block.scale, got);
    }
    const cpu::CpuArithmetic arithmetic(WeightMode::stored, Activations::bits8, KvType::f16);
    const MatmulArithmetic how = arithmetic.matmul(quant::Type::Q8_0, kCols);
    const std::vector<double> wide(x.begin(), x.end());
    double value = 0.0, certain = 0.0;
    judge_product(judged_weight(source, 0, WeightMode::stored), rounded_operand(wide, how.operand), 0.0,
                  how.roundings, value, certain, arithmetic.sum_unit, operand_underflow(how.operand, kCols));
    EXPECT_LE(std::abs(double{got} - value), certain) << largest;
    worst = std::max(worst, std::abs(double{got} - value));
  }
  EXPECT_GT(worst, 1000 * 0x1p-149) << "nothing was lost";
  EXPECT_EQ(operand_underflow(OperandRounding::bits16, kCols), 0.0);
}

/// transformers' rotary embedding of one head in float32 (style half): inv_freq = 1 / base^(i / dims).
std::vector<double> rotated_in_float(std::span<const double> head, float base, int64_t position) {
  const size_t dims = head.size(), half = dims / 2;
  std::vector<double> out(dims);
  for (size_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dims);
    const float angle = static_cast<float>(position) * (1.0f / std::pow(base, exponent));
    const float c = std::cos(angle), s = std::sin(angle);
    const auto a = static_cast<float>(head[i]), b = static_cast<float>(head[i + half]);
    // Products and sum apart, each rounded to FP32.
    const double ac = double{static_cast<float>(double{a} * c)},
                 bs = double{static_cast<float>(double{b} * s)};
    const double as = double{static_cast<float>(double{a} * s)},
                 bc = double{static_cast<float>(double{b} * c)};
    out[i] = double{static_cast<float>(ac - bs)};
    out[i + half] = double{static_cast<float>(as + bc)};
  }
  return out;
}

TEST(Bounds, AnotherProgramsFloatRotationIsInsideTheBound) {
  const PlainArithmetic plain(0x1p-24);
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  for (const auto& [dims, base] : {std::pair(64, 10000.0f), std::pair(80, 10000.0f), std::pair(96, 10000.0f),
                                   std::pair(96, 1e6f), std::pair(128, 500000.0f)}) {
    RopeSpec rope{RopeStyle::half, dims, {}, 1.0};
    for (int i = 0; i < dims / 2; ++i) rope.inv_freq.push_back(std::pow(double{base}, -2.0 * i / dims));
    double worst = 0.0;
    for (int64_t position = 0; position < 8000; position += 13) {
      std::vector<double> head(static_cast<size_t>(dims));
      for (double& value : head) value = double{static_cast<float>(normal(random))};
      const Judged judged =
          judge_rope(rope, position, head, plain.unit, plain.angle_unit, plain.rope_roundings);
      worst = std::max(worst, worst_ratio(judged, rotated_in_float(head, base, position)));
      if (position > 0) EXPECT_GT(worst_ratio(judged, rotated_in_float(head, base, position - 1)), 1.0);
    }
    EXPECT_LE(worst, 1.0) << dims << " " << base;
    EXPECT_GT(worst, 0.1) << dims << " " << base << ": the bound is far too wide";
  }
}

// Where the angle is as good as exact, all that is left are the roundings: cos and sin a unit in the last
// place off, their magnitude, the products, the sum.
TEST(Bounds, AnotherProgramsCosineMayBeAWholeUnitOff) {
  const PlainArithmetic plain(0x1p-24);
  const RopeSpec rope{RopeStyle::half, 2, {1.0}, double{1.19f}};
  std::mt19937 random(3);
  std::uniform_real_distribution<float> draw(1.0f, 2.0f);
  const float c = std::nextafter(std::cos(1.0f), 0.0f) * 1.19f, s = std::sin(1.0f) * 1.19f;
  double worst = 0.0;
  for (int i = 0; i < 20000; ++i) {
    const float a = draw(random), b = draw(random) * 0x1p-10f;
    const double ac = double{static_cast<float>(double{a} * c)},
                 bs = double{static_cast<float>(double{b} * s)};
    const std::vector<double> head = {double{a}, double{b}};
    Judged judged = judge_rope(rope, 1, head, plain.unit, 0.0, plain.rope_roundings);
    judged.value.resize(1);
    worst = std::max(worst, worst_ratio(judged, std::vector<double>{double{static_cast<float>(ac - bs)}}));
  }
  EXPECT_LE(worst, 1.0);
  EXPECT_GT(worst, cpu::CpuArithmetic(WeightMode::stored, Activations::bits16, KvType::f16).rope_roundings /
                       plain.rope_roundings)
      << "nothing was off";
}

double stored_in(KvType type, float x) {
  return double{type == KvType::f16 ? f16_to_f32(f32_to_f16(x)) : bf16_to_f32(f32_to_bf16(x))};
}

TEST(Bounds, OfACachedValueOnlyWhatItCanRoundToIsInsideTheBound) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> share(-1.0, 1.0), exponent(-30.0, 15.0);
  for (const auto& [type, bits] : {std::pair(KvType::f16, 10), std::pair(KvType::bf16, 7)}) {
    for (int i = 0; i < 20000; ++i) {
      const double value = std::exp2(exponent(random)) * share(random);
      const double before = std::abs(value) * std::exp2(-4.0 - i % 20);
      const double certain = with_cache_rounding(value, before, type);
      const auto got = static_cast<float>(value + share(random) * before);
      if (std::abs(double{got} - value) <= before) {
        EXPECT_LE(std::abs(stored_in(type, got) - value), certain);
      }
      EXPECT_LE(certain, with_widest_cache_rounding(value, before, type));
    }
    // 1.9 lies near the top of its binade, where half an ulp is little more than half of 2^-(bits + 1) of it.
    const double near = stored_in(type, 1.9f), value = near + 0.3 * std::exp2(-bits);
    const Judged judged{{value}, {with_cache_rounding(value, 1e-6, type)}};
    EXPECT_TRUE(within(judged, 0, near));
    EXPECT_FALSE(within(judged, 0, near + std::exp2(-bits))) << "the wrong neighbour";
    EXPECT_LE(std::abs(near + std::exp2(-bits) - value), with_widest_cache_rounding(value, 1e-6, type));
  }
  // Past the largest number, and across it, the bound is as wide as ever, and an infinity outside.
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double value : {65510.0, 65530.0, -70000.0}) {
    const double certain = with_cache_rounding(value, 20.0, KvType::f16);
    EXPECT_EQ(certain, with_widest_cache_rounding(value, 20.0, KvType::f16)) << value;
    EXPECT_FALSE(within({{value}, {certain}}, 0, std::copysign(infinity, value)));
  }
  EXPECT_TRUE(std::isnan(with_cache_rounding(std::nan(""), 1.0, KvType::f16)));
  EXPECT_EQ(with_cache_rounding(1.9, 1e-6, KvType::f32), 1e-6);
}

}  // namespace
}  // namespace greta
