// Products: every type, both activation widths, every path, against FP64 on the rounded operands within the
// certain bound gamma_d T of numerics.md section 5; and the same bits whatever the number of rows, threads or
// path.
#include <algorithm>
#include <array>

#include "backend/cpu/rounding.h"
#include "cpu/support.h"

namespace greta {
namespace {

using namespace cpu_test;

constexpr double kU = 0x1p-24;

bool is_float(quant::Type type) { return quant::traits(type).block == 1; }

/// The row as the kernel multiplies it, exactly.
std::vector<double> operand(const float* x, int64_t k, quant::Type type, Activations activations) {
  std::vector<double> out(x, x + k);
  if (is_float(type)) return out;
  for (int64_t i = 0; i < k; i += 32) {
    const auto block = std::span(x + i, static_cast<size_t>(std::min<int64_t>(32, k - i)));
    const auto rounded =
        activations == Activations::bits8 ? cpu::round_block8(block) : cpu::round_block16(block);
    for (size_t j = 0; j < block.size(); ++j)
      out[static_cast<size_t>(i) + j] =
          static_cast<double>(rounded.q[j]) * static_cast<double>(rounded.scale);
  }
  return out;
}

/// The largest |got - exact| / bound over all outputs; infinity where a comparison fails on NaN.
double worst(const std::vector<float>& got, const std::vector<float>& weights,
             const std::vector<float>& sizes, const std::vector<float>& x, const std::vector<float>& bias,
             int64_t rows, int64_t n, int64_t k, quant::Type type, Activations activations) {
  const double d = cpu::matmul_roundings(type, k, activations);
  const double gamma = d * kU / (1.0 - d * kU);
  double ratio = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<double> row = operand(x.data() + r * k, k, type, activations);
    for (int64_t i = 0; i < n; ++i) {
      double sum = bias.empty() ? 0.0 : bias[static_cast<size_t>(i)];
      double size = std::fabs(sum);
      for (int64_t j = 0; j < k; ++j) {
        const auto at = static_cast<size_t>(i * k + j);
        sum += static_cast<double>(weights[at]) * row[static_cast<size_t>(j)];
        size += std::fabs(static_cast<double>(sizes[at]) * row[static_cast<size_t>(j)]);
      }
      const double error = std::fabs(static_cast<double>(got[static_cast<size_t>(r * n + i)]) - sum);
      const double bound = gamma * size * (1.0 + 1e-9);
      if (!(error <= bound)) return error / bound;
      if (bound > 0) ratio = std::max(ratio, error / bound);
    }
  }
  return ratio;
}

struct Case {
  quant::Type type;
  Activations activations;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const quant::Traits& t : quant::all_types()) {
    all.push_back({t.type, Activations::bits16});
    if (!is_float(t.type)) all.push_back({t.type, Activations::bits8});
  }
  return all;
}

std::vector<int64_t> widths(quant::Type type) {
  const int block = quant::traits(type).block;
  if (block == 1) return {1, 20, 100, 288, 1100};
  if (block == 32) return {32, 96, 288, 544};
  return {256, 768};
}

std::string name(const testing::TestParamInfo<Case>& info) {
  return std::string(quant::traits(info.param.type).name) + (is_float(info.param.type) ? ""
                                                             : info.param.activations == Activations::bits8
                                                                 ? "_8bit"
                                                                 : "_16bit");
}

class CpuMatmul : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Types, CpuMatmul, testing::ValuesIn(cases()), name);

TEST_P(CpuMatmul, InsideTheCertainBoundOnEveryPath) {
  const auto [type, activations] = GetParam();
  for (const int64_t k : widths(type)) {
    const int64_t n = 37;  // two whole groups of 16 rows and a part
    const int64_t rows = 9;
    const Source source = random_weight(type, n, k, static_cast<uint32_t>(k));
    const std::vector<float> weights = dequantised(source), sizes = magnitudes(source);
    const std::vector<float> x = random_rows(rows * k, 7);
    const Source bias = random_weight(quant::Type::F32, 1, n, 3);
    std::vector<float> first;
    for (const Isa isa : isas()) {
      const auto device = backend(isa, 1, activations);
      const auto weight = device->load(source.source, WeightUse::matmul);
      const auto bias_weight = device->load(bias.source, WeightUse::vector);
      const std::vector<float> got = product(*device, *weight, x, rows, bias_weight.get());
      EXPECT_LE(worst(got, weights, sizes, x, dequantised(bias), rows, n, k, type, activations), 1.0)
          << name_of(isa) << " K = " << k;
      if (first.empty()) first = got;
      EXPECT_TRUE(same_bits(got, first)) << name_of(isa) << " K = " << k;
    }
  }
}

TEST_P(CpuMatmul, AGainOfOnePercentInOneRowLeavesTheBound) {
  const auto [type, activations] = GetParam();
  const int64_t k = 768, n = 16, rows = 8;
  const Source source = random_weight(type, n, k, 11);
  const std::vector<float> x = random_rows(rows * k, 5);
  const auto device = backend(isas().back(), 1, activations);
  const auto weight = device->load(source.source, WeightUse::matmul);
  std::vector<float> got = product(*device, *weight, x, rows);
  const auto ratio = [&] {
    return worst(got, dequantised(source), magnitudes(source), x, {}, rows, n, k, type, activations);
  };
  EXPECT_LE(ratio(), 1.0);
  for (int64_t r = 0; r < rows; ++r) got[static_cast<size_t>(r * n + 5)] *= 1.01f;
  EXPECT_GT(ratio(), 1.0);
}

TEST_P(CpuMatmul, SameBitsForAnyNumberOfRowsThreadsAndPath) {
  const auto [type, activations] = GetParam();
  const int64_t n = 150, k = widths(type).back(), most = 33;
  const Source source = random_weight(type, n, k, 23);
  const std::vector<float> x = random_rows(most * k, 29);
  std::vector<float> expected;  // each row alone, one thread, the portable path
  {
    const auto device = backend(Isa::portable, 1, activations);
    const auto weight = device->load(source.source, WeightUse::matmul);
    for (int64_t r = 0; r < most; ++r) {
      const std::vector<float> one =
          product(*device, *weight, {x.begin() + r * k, x.begin() + (r + 1) * k}, 1);
      expected.insert(expected.end(), one.begin(), one.end());
    }
  }
  for (const Isa isa : isas()) {
    for (const int threads : {1, 2, 3}) {
      const auto device = backend(isa, threads, activations);
      const auto weight = device->load(source.source, WeightUse::matmul);
      for (const int64_t rows : {1, 2, 3, 7, 8, 9, 33}) {
        const std::vector<float> got = product(*device, *weight, x, rows);
        EXPECT_TRUE(same_bits(got, {expected.begin(), expected.begin() + rows * n}))
            << name_of(isa) << ", " << threads << " threads, " << rows << " rows";
      }
    }
  }
}

// A one-token call is planned once and kept: never for other weights, though they lie where the first one
// lay, nor for other arguments.
TEST_P(CpuMatmul, OneTokenAfterOtherCalls) {
  const auto [type, activations] = GetParam();
  const int64_t n = 150, k = widths(type).back();
  const std::vector<float> x[2] = {random_rows(k, 41), random_rows(k, 43)};
  const Source bias = random_weight(quant::Type::F32, 1, n, 3);
  const auto device = backend(isas().back(), 2, activations);
  const auto bias_weight = device->load(bias.source, WeightUse::vector);
  std::vector<float> out[2] = {std::vector<float>(n), std::vector<float>(n)};
  std::vector<float> in = x[0];
  const auto run = [&](const Weight& weight, std::vector<float>& from, const Weight* with, size_t to) {
    MatmulArgs args{1, {from.data(), k}, {}};
    args.outputs[0] = {&weight, with, {out[to].data(), n}};
    out[to].assign(n, NAN);
    device->matmul(args);
    return out[to];
  };
  const auto expected = [&](const Source& source, const std::vector<float>& row, bool with) {
    const auto fresh = backend(isas().back(), 1, activations);
    const auto weight = fresh->load(source.source, WeightUse::matmul);
    const auto b = fresh->load(bias.source, WeightUse::vector);
    return product(*fresh, *weight, row, 1, with ? b.get() : nullptr);
  };
  std::unique_ptr<Weight> weight;
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    const Source source = random_weight(type, n, k, seed);
    weight.reset();  // the next one lies where it lay
    weight = device->load(source.source, WeightUse::matmul);
    weight->settle();
    for (const std::vector<float>& row : {x[0], x[1], x[0]}) {
      in = row;
      EXPECT_TRUE(same_bits(run(*weight, in, nullptr, 0), expected(source, row, false))) << seed;
    }
    EXPECT_TRUE(same_bits(run(*weight, in, nullptr, 1), expected(source, x[0], false))) << seed;
    EXPECT_TRUE(same_bits(run(*weight, in, bias_weight.get(), 1), expected(source, x[0], true))) << seed;
    std::vector<float> elsewhere = x[1];
    EXPECT_TRUE(same_bits(run(*weight, elsewhere, bias_weight.get(), 1), expected(source, x[1], true)))
        << seed;
    EXPECT_TRUE(same_bits(run(*weight, in, nullptr, 0), expected(source, x[0], false))) << seed;
  }
}

// Past the tokens that a kernel carries through K together, of one thread (several share them): two blocks of
// them for integer weights, three for float.
TEST_P(CpuMatmul, SameBitsInSeveralBlocksOfTokens) {
  const auto [type, activations] = GetParam();
  const int64_t n = 40, k = 768, rows = cpu::kBlockTokens + 19;
  const Source source = random_weight(type, n, k, 31);
  const std::vector<float> x = random_rows(rows * k, 37);
  std::vector<float> expected;  // each row alone
  for (const Isa isa : isas()) {
    const auto device = backend(isa, 1, activations);
    const auto weight = device->load(source.source, WeightUse::matmul);
    if (expected.empty()) {
      for (int64_t r = 0; r < rows; ++r) {
        const std::vector<float> one =
            product(*device, *weight, {x.begin() + r * k, x.begin() + (r + 1) * k}, 1);
        expected.insert(expected.end(), one.begin(), one.end());
      }
    }
    EXPECT_TRUE(same_bits(product(*device, *weight, x, rows), expected)) << name_of(isa);
  }
}

TEST_P(CpuMatmul, RoutesNameTheKernelThatRan) {
  const auto [type, activations] = GetParam();
  const int64_t k = 256;
  const Source source = random_weight(type, 16, k, 1);
  const auto device = backend(Isa::portable, 1, activations);
  const auto weight = device->load(source.source, WeightUse::matmul);
  product(*device, *weight, random_rows(k, 1), 1);
  product(*device, *weight, random_rows(2 * k, 1), 2);
  std::string lower(quant::traits(type).name);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const auto& route = device->route();
  EXPECT_EQ(route.size(), 2u);
  EXPECT_EQ(route.count("matmul." + lower + ".portable.t1"), 1u);
  EXPECT_EQ(route.count("matmul." + lower + ".portable.tile"), 1u);
}

TEST_P(CpuMatmul, NanAndInfinityReachEveryOutputOfTheirRowAndNoOther) {
  const auto [type, activations] = GetParam();
  const int64_t k = 256, n = 20, rows = 5;
  const Source source = random_weight(type, n, k, 2);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    std::vector<float> x = random_rows(rows * k, 4);
    x[static_cast<size_t>(2 * k + 100)] = bad;
    for (const Isa isa : isas()) {
      const auto device = backend(isa, 1, activations);
      const auto weight = device->load(source.source, WeightUse::matmul);
      const std::vector<float> got = product(*device, *weight, x, rows);
      for (int64_t i = 0; i < rows * n; ++i) {
        EXPECT_EQ(std::isfinite(got[static_cast<size_t>(i)]), i / n != 2) << name_of(isa) << " " << i;
      }
    }
  }
}

/// Magnitudes from the smallest subnormal to near the top: the power-of-two scale must neither overflow nor
/// underflow.
TEST_P(CpuMatmul, HugeTinyZeroAndSubnormalRows) {
  const auto [type, activations] = GetParam();
  const int64_t k = 256, n = 20;
  const Source source = random_weight(type, n, k, 6);
  const std::vector<float> sizes{1e33f, 1e30f, 1e20f, 1e-20f, 1e-30f, 1e-36f, 1e-38f, 1e-41f, 1e-45f, 0.0f};
  const auto rows = static_cast<int64_t>(sizes.size());
  std::vector<float> x;
  for (size_t r = 0; r < sizes.size(); ++r) {
    const std::vector<float> row = random_rows(k, static_cast<uint32_t>(r), 1.0f);
    for (const float v : row) x.push_back(v * sizes[r]);
  }
  const std::vector<float> weights = dequantised(source), magnitude = magnitudes(source);
  std::vector<float> first;
  for (const Isa isa : isas()) {
    const auto device = backend(isa, 1, activations);
    const auto weight = device->load(source.source, WeightUse::matmul);
    const std::vector<float> got = product(*device, *weight, x, rows);
    if (first.empty()) first = got;
    EXPECT_TRUE(same_bits(got, first)) << name_of(isa);
    for (int64_t r = 0; r < rows; ++r) {
      // Where products fall below 2^-126 a rounding is absolute. In 16-bit mode none happens: every scale is
      // exact.
      if ((is_float(type) || activations == Activations::bits8) && sizes[static_cast<size_t>(r)] < 1e-29f)
        continue;
      const std::vector<float> row(x.begin() + r * k, x.begin() + (r + 1) * k);
      const std::vector<float> out(got.begin() + r * n, got.begin() + (r + 1) * n);
      EXPECT_LE(worst(out, weights, magnitude, row, {}, 1, n, k, type, activations), 1.0)
          << name_of(isa) << " " << sizes[static_cast<size_t>(r)];
    }
    for (int64_t i = (rows - 1) * n; i < rows * n; ++i) EXPECT_EQ(got[static_cast<size_t>(i)], 0.0f);
  }
}

TEST(CpuMatmulCall, ThreeOutputsOfUnlikeTypesAreThreeProducts) {
  const int64_t k = 512;
  const std::array<quant::Type, 3> types{quant::Type::Q4_K, quant::Type::Q6_K, quant::Type::F16};
  for (const Isa isa : isas()) {
    for (const int64_t rows : {1, 5, 40}) {
      const auto device = backend(isa, 2);
      const std::vector<float> x = random_rows(rows * k, 9);
      std::vector<float> in = x;
      std::vector<Source> sources;
      std::vector<std::unique_ptr<Weight>> weights;
      std::array<std::vector<float>, 3> outs;
      MatmulArgs args;
      args.rows = rows;
      args.x = {in.data(), k};
      args.count = 3;
      for (size_t i = 0; i < 3; ++i) {
        sources.push_back(
            random_weight(types[i], 40 + 30 * static_cast<int64_t>(i), k, static_cast<uint32_t>(i)));
        weights.push_back(device->load(sources[i].source, WeightUse::matmul));
        outs[i].resize(static_cast<size_t>(rows * weights[i]->rows));
        args.outputs[i] = {weights[i].get(), nullptr, {outs[i].data(), weights[i]->rows}};
      }
      device->matmul(args);
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(outs[i], product(*device, *weights[i], x, rows)));
    }
  }
}

}  // namespace
}  // namespace greta
