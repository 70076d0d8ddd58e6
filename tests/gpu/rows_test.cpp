// Row kernels against FP64, within derived bounds, and the same bits whatever else is in a call.
#include <algorithm>
#include <numeric>

#include "backend/gpu/kernels/orders.h"
#include "base/half.h"
#include "gpu/rows_support.h"

namespace greta::gpu {
namespace {

using namespace rows_test;

constexpr double kU = 0x1p-24;
constexpr double kExpUlps = 2.0;

class GpuRows : public testing::TestWithParam<std::string> {
 protected:
  Machine machine_{GetParam()};
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuRows);
INSTANTIATE_TEST_SUITE_P(Device, GpuRows, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

// ---- rmsnorm

TEST_P(GpuRows, RmsnormInsideItsBoundAndAlikeAloneAndInPlace) {
  const float eps = 1e-5f;
  for (const int64_t n : {1, 7, 64, 80, 128, 256, 257, 576, 2048, 5003, 9001}) {
    const int64_t rows = 21;
    const std::vector<float> x = random_rows(rows * n, 8), w = random_rows(n, 4);
    const Array<float> in(machine_, x), weight(machine_, w), out(machine_, rows * n, -1.0f);
    machine_.kernels().rmsnorm(machine_, {in.data(), weight.data(), eps, rows, n, out.data()});
    const std::vector<float> got = out.read();
    // Half of the roundings of the sum; eps, root, division, two products.
    const double bound = ((rmsnorm_roundings(n) + 1) / 2.0 + 4.5) * kU;
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += std::pow(double{x[static_cast<size_t>(r * n + i)]}, 2);
      const double factor = 1.0 / std::sqrt(sum / static_cast<double>(n) + double{eps});
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(r * n + i);
        const double exact = double{x[at]} * factor * double{w[static_cast<size_t>(i)]};
        ASSERT_TRUE(near(got[at], exact, bound * std::fabs(exact))) << n << " row " << r;
        ASSERT_FALSE(near(got[at] * 1.01, exact, bound * std::fabs(exact))) << n;
      }
    }
    const Array<float> alone(machine_, n, -1.0f);
    for (int64_t r = 0; r < rows; r += 5) {
      machine_.kernels().rmsnorm(machine_, {in.data() + r * n, weight.data(), eps, 1, n, alone.data()});
      EXPECT_TRUE(same_bits(alone.read(), {got.begin() + r * n, got.begin() + (r + 1) * n})) << n;
    }
    machine_.kernels().rmsnorm(machine_, {in.data(), weight.data(), eps, rows, n, in.data()});
    EXPECT_TRUE(same_bits(in.read(), got)) << n;
  }
}

TEST_P(GpuRows, RmsnormKeepsNanAndInfinityVisible) {
  for (const int64_t n : {20, 300}) {
    std::vector<float> x = random_rows(3 * n, 1);
    x[3] = NAN;
    x[static_cast<size_t>(n + 3)] = INFINITY;
    const Array<float> in(machine_, x), weight(machine_, n, 1.0f), out(machine_, 3 * n, 0.0f);
    machine_.kernels().rmsnorm(machine_, {in.data(), weight.data(), 1e-5f, 3, n, out.data()});
    const std::vector<float> got = out.read();
    for (int64_t i = 0; i < 3 * n; ++i)
      EXPECT_EQ(std::isnan(got[static_cast<size_t>(i)]), i < n || i == n + 3) << i;
  }
}

// ---- rows rounded on the way

/// Room for rounded rows, set to what nobody leaves.
struct Rounded {
  Rounded(const Machine& machine, int64_t rows, int64_t width)
      : stride((width + kChunkK - 1) / kChunkK * kChunkK),
        data(machine, rows * stride, uint16_t{0xabcd}),
        scale(machine, rows, -1.0f),
        sums(machine, sums_elements(rows * stride), uint16_t{0xabcd}) {}
  RoundedRows view() const { return {data.data(), scale.data(), stride, 0, sums.data()}; }
  int64_t stride;
  Array<uint16_t> data;
  Array<float> scale;
  Array<uint16_t> sums;
};

void expect_rounded(const Machine& machine, const Array<float>& x, const Rounded& got, int64_t rows,
                    int64_t width) {
  const Rounded expected(machine, rows, width);
  machine.kernels().round(machine, {x.data(), rows, width, expected.view()});
  EXPECT_TRUE(same_bits(got.data.read(), expected.data.read())) << width;
  EXPECT_TRUE(same_bits(got.scale.read(), expected.scale.read())) << width;
  EXPECT_TRUE(same_bits(got.sums.read(), expected.sums.read())) << width;
}

TEST_P(GpuRows, RmsnormRoundsAndAddsAsTheOperatorsApart) {
  const int64_t rows = 3;
  for (const int64_t n : {257, 576, 2050, 4097, 9001}) {  // held in registers, up to 8,192, and not
    ASSERT_TRUE(machine_.kernels().rounds_with_norm(n));
    std::vector<float> x = random_rows(rows * n, 1), zeros(static_cast<size_t>(rows * n));
    std::fill_n(x.begin(), n, 0.0f);
    x[static_cast<size_t>(n + 2)] = NAN;
    const Array<float> a(machine_, x), b(machine_, random_rows(rows * n, 2)),
        weight(machine_, random_rows(n, 3)), sum(machine_, zeros), apart(machine_, zeros),
        out(machine_, zeros);
    machine_.kernels().rmsnorm(machine_, {a.data(), weight.data(), 1e-5f, rows, n, apart.data()});
    machine_.kernels().add(machine_, {b.data(), apart.data(), rows * n, sum.data()});
    const Rounded rounded(machine_, rows, n);
    RmsnormCall call{a.data(), weight.data(), 1e-5f, rows, n, out.data()};
    call.rounded = rounded.view();
    machine_.kernels().rmsnorm(machine_, call);
    EXPECT_TRUE(same_bits(out.read(), apart.read())) << n;
    expect_rounded(machine_, out, rounded, rows, n);
    call.rounded = {};
    call.residual = call.out = b.data();  // in place
    machine_.kernels().rmsnorm(machine_, call);
    EXPECT_TRUE(same_bits(b.read(), sum.read())) << n;
  }
  EXPECT_FALSE(machine_.kernels().rounds_with_norm(128));
}

TEST_P(GpuRows, GluRoundsAsTheOperatorsApart) {
  const int64_t rows = 3;
  for (const int64_t n : {1, 300, 8193, 17000})  // held in registers, up to 16,384, and not
    for (const Glu glu : {Glu::silu, Glu::gelu}) {
      const Array<float> gate(machine_, random_rows(rows * n, 1)), up(machine_, random_rows(rows * n, 2)),
          apart(machine_, rows * n, 0.0f);
      machine_.kernels().glu(machine_, {glu, gate.data(), up.data(), rows, n, apart.data()});
      const Rounded rounded(machine_, rows, n);
      machine_.kernels().glu(machine_, {glu, gate.data(), up.data(), rows, n, gate.data(), rounded.view()});
      EXPECT_TRUE(same_bits(gate.read(), apart.read())) << n;
      expect_rounded(machine_, gate, rounded, rows, n);
    }
}

// ---- rope

struct RopeCase {
  bool half;
  int dims, head_dim;
  bool bf16;
};

TEST_P(GpuRows, RopeTurnsPairsAndWritesTheCache) {
  const int heads = 3, kv_heads = 2, stride = 70;
  const double magnitude = 1.25;
  const std::vector<int32_t> positions{0, 1, 63, 64, 4095}, sequences{1, 0, 1, 1, 0}, tokens(5, 0);
  const auto rows = static_cast<int64_t>(positions.size());
  std::vector<int32_t> pages(2 * stride, -1);  // a page for each position here
  pages[stride + 0] = 3;
  pages[0] = 2;
  pages[stride + 1] = 0;
  pages[63] = 1;
  for (const RopeCase& c :
       {RopeCase{false, 64, 64, false}, RopeCase{true, 64, 64, true}, RopeCase{false, 24, 80, true},
        RopeCase{true, 24, 80, false}, RopeCase{true, 128, 128, false}, RopeCase{false, 0, 18, false}}) {
    std::vector<double> inv_freq;
    for (int i = 0; i < c.dims / 2; ++i) inv_freq.push_back(std::pow(10000.0, -2.0 * i / c.dims));
    const std::vector<float> q = random_rows(rows * heads * c.head_dim, 1),
                             v = random_rows(rows * kv_heads * c.head_dim, 3);
    std::vector<float> k;  // q's first heads, so that q_out says what k is before its rounding
    for (int64_t r = 0; r < rows; ++r)
      k.insert(k.end(), q.begin() + r * heads * c.head_dim, q.begin() + (r * heads + kv_heads) * c.head_dim);
    const int64_t page = int64_t{kv_heads} * 64 * c.head_dim;
    const Array<float> q_in(machine_, q), k_in(machine_, k), v_in(machine_, v),
        q_out(machine_, static_cast<int64_t>(q.size()), -1.0f);
    const Array<double> frequencies(machine_, inv_freq);
    const Array<int32_t> t(machine_, tokens), p(machine_, positions), s(machine_, sequences),
        table(machine_, pages);
    const Array<uint16_t> k_pool(machine_, 4 * page, uint16_t{0xabcd}),
        v_pool(machine_, 4 * page, uint16_t{0xabcd});
    RopeCall call{};
    call.batch = {rows, t.data(), p.data(), s.data()};
    call.rotation = {c.half, c.dims, frequencies.data(), magnitude};
    call.heads = heads;
    call.q = q_in.data();
    call.k = k_in.data();
    call.v = v_in.data();
    call.q_out = q_out.data();
    call.cache = {k_pool.data(), v_pool.data(), kv_heads, c.head_dim, c.bf16, table.data(), stride};
    machine_.kernels().rope(machine_, call);
    const std::vector<float> got = q_out.read();
    std::vector<uint16_t> k_expected(static_cast<size_t>(4 * page), 0xabcd), v_expected = k_expected;
    const auto rounded = [&](float x) { return c.bf16 ? f32_to_bf16(x) : f32_to_f16(x); };
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t position = positions[static_cast<size_t>(r)];
      for (int h = 0; h < heads; ++h) {
        const float* x = q.data() + (r * heads + h) * c.head_dim;
        const float* y = got.data() + (r * heads + h) * c.head_dim;
        for (int i = 0; i < c.dims / 2; ++i) {
          const int a = c.half ? i : 2 * i, b = c.half ? i + c.dims / 2 : 2 * i + 1;
          const double angle = position * inv_freq[static_cast<size_t>(i)];
          const double cosine = std::cos(angle) * magnitude, sine = std::sin(angle) * magnitude;
          // Half a unit in cos and sin, one rounding of the product, one of the fma.
          const double bound_a = 3 * kU * (std::fabs(x[a] * cosine) + std::fabs(x[b] * sine));
          const double bound_b = 3 * kU * (std::fabs(x[b] * cosine) + std::fabs(x[a] * sine));
          ASSERT_TRUE(near(y[a], x[a] * cosine - x[b] * sine, bound_a)) << r << " " << h << " " << i;
          ASSERT_TRUE(near(y[b], x[b] * cosine + x[a] * sine, bound_b)) << r << " " << h << " " << i;
        }
        for (int d = c.dims; d < c.head_dim; ++d) ASSERT_EQ(y[d], x[d]);
      }
      const int64_t own =
          pages[static_cast<size_t>(sequences[static_cast<size_t>(r)] * stride + position / 64)];
      for (int h = 0; h < kv_heads; ++h)
        for (int d = 0; d < c.head_dim; ++d) {
          const auto at = static_cast<size_t>(((own * kv_heads + h) * 64 + position % 64) * c.head_dim + d);
          k_expected[at] = rounded(got[static_cast<size_t>((r * heads + h) * c.head_dim + d)]);
          v_expected[at] = rounded(v[static_cast<size_t>((r * kv_heads + h) * c.head_dim + d)]);
        }
    }
    EXPECT_TRUE(same_bits(k_pool.read(), k_expected)) << c.head_dim;
    EXPECT_TRUE(same_bits(v_pool.read(), v_expected)) << c.head_dim;

    call.q_out = q_in.data();  // in place
    machine_.kernels().rope(machine_, call);
    EXPECT_TRUE(same_bits(q_in.read(), got));
  }
}

// ---- element by element

TEST_P(GpuRows, AddAndGatherMoveExactly) {
  for (const int64_t count : {1, 3, 1024, 5003}) {
    const std::vector<float> a = random_rows(count + 1, 1), b = random_rows(count + 1, 2);
    const Array<float> left(machine_, a), right(machine_, b);
    for (const int offset : {0, 1}) {  // 16-byte aligned and not
      const Array<float> out(machine_, count + 1, -1.0f);
      machine_.kernels().add(machine_, {left.data() + offset, right.data(), count, out.data()});
      const std::vector<float> got = out.read();
      for (size_t i = 0; i < static_cast<size_t>(count); ++i)
        ASSERT_EQ(got[i], a[i + static_cast<size_t>(offset)] + b[i]);
      EXPECT_EQ(got.back(), -1.0f);
    }
    machine_.kernels().add(machine_, {left.data(), right.data(), count, left.data()});
    EXPECT_EQ(left.read()[static_cast<size_t>(count) - 1],
              a[static_cast<size_t>(count) - 1] + b[static_cast<size_t>(count) - 1]);
  }
  const int64_t width = 417;
  const std::vector<float> x = random_rows(50 * width, 5);
  const std::vector<int32_t> rows{7, 49, 7};
  const Array<float> in(machine_, x), out(machine_, 3 * width, 0.0f);
  const Array<int32_t> from(machine_, rows);
  machine_.kernels().gather(machine_, {in.data(), from.data(), 3, width, out.data()});
  const std::vector<float> got = out.read();
  for (size_t r = 0; r < rows.size(); ++r)
    EXPECT_EQ(std::memcmp(got.data() + r * width, x.data() + rows[r] * width, width * sizeof(float)), 0);
}

/// Floats of both signs spread over [2^low, 2^high).
std::vector<float> spread(int low, int high, int count) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(static_cast<float>(low), static_cast<float>(high));
  std::vector<float> x{0.0f, -0.0f, 1e-45f, -1e-45f};
  for (int i = 0; i < count; ++i)
    x.push_back(std::exp2(exponent(random)) * (random() % 2 != 0 ? 1.0f : -1.0f));
  return x;
}

std::vector<float> activated(const Machine& machine, bool gelu, const std::vector<float>& gate, float up) {
  const auto count = static_cast<int64_t>(gate.size());
  const Array<float> in(machine, gate), with(machine, count, up);
  machine.kernels().glu(
      machine, {gelu ? Glu::gelu : Glu::silu, in.data(), with.data(), 1, count, in.data()});  // in place
  return in.read();
}

/// e^-|x|, a product, 1 + e, a division: exp's units, those of x e, of the sum and of the quotient, and up's
/// product; where e^-|x| is subnormal its units are absolute. gelu's argument is a sum of two FP32 numbers.
TEST_P(GpuRows, ActivationsWithinTheirUnits) {
  std::vector<float> x = spread(-30, 6, 20000);
  for (float v = -110.0f; v < 20.0f; v += 0.0131f) x.push_back(v);
  for (const bool gelu : {false, true}) {
    const std::vector<float> got = activated(machine_, gelu, x, 1.5f);
    for (size_t i = 0; i < x.size(); ++i) {
      const long double v = x[i], pi = 3.14159265358979323846264338327950288L;
      const long double y = gelu ? 2.0L * std::sqrt(2.0L / pi) * (v + 0.044715L * v * v * v) : v;
      const auto exact = static_cast<double>(1.5L * v / (1.0L + std::exp(-y)));
      const double bound = (2 * (2 * kExpUlps + 4) + 1) * kU * std::fabs(exact) +
                           (1 + 2 * kExpUlps * std::fabs(x[i])) * 1.5 * 0x1p-149;
      ASSERT_TRUE(near(got[i], exact, bound)) << x[i] << (gelu ? " gelu" : " silu");
    }
    const std::vector<float> ends =
        activated(machine_, gelu, {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 100.0f, -200.0f, 0.0f}, 1.0f);
    EXPECT_EQ(ends[0], INFINITY);
    EXPECT_TRUE(std::isnan(ends[1]));  // -infinity times 0
    EXPECT_TRUE(std::isnan(ends[2]));
    EXPECT_EQ(ends[3], 3e38f);
    EXPECT_EQ(ends[4], 0.0f);
    EXPECT_EQ(ends[5], 100.0f);
    EXPECT_EQ(ends[6], 0.0f);
    EXPECT_EQ(ends[7], 0.0f);
  }
}

TEST_P(GpuRows, SoftcapWithinItsUnits) {
  std::vector<float> x{0.0f,   -0.0f,  1e-40f, -1e-30f,  1e-5f,    29.9f,
                       -30.0f, 480.0f, -3e38f, INFINITY, -INFINITY};
  for (const float v : random_rows(3000, 3, 20.0f)) x.push_back(v);
  for (const float v : random_rows(1000, 4, 0.01f)) x.push_back(v);
  for (const double cap : {8.0, 30.0, 50.0}) {
    const auto count = static_cast<int64_t>(x.size());
    const Array<float> in(machine_, x);
    machine_.kernels().softcap(machine_, {in.data(), static_cast<float>(cap), count, in.data()});
    const std::vector<float> got = in.read();
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = cap * std::tanh(x[i] / cap);
      // The quotient, tanh's units, the product; a subnormal quotient is off absolutely, and cap times that.
      ASSERT_TRUE(near(got[i], exact, 8 * kU * std::fabs(exact) + (cap + 1) * 0x1p-149)) << x[i];
      EXPECT_EQ(std::signbit(got[i]), std::signbit(x[i]));
      EXPECT_LE(std::fabs(got[i]), cap);
    }
  }
  const Array<float> in(machine_, {1.0f, NAN, 2.0f});
  machine_.kernels().softcap(machine_, {in.data(), 5.0f, 3, in.data()});
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(std::isnan(in.read()[i]), i == 1);
}

// ---- experts

struct Choice {
  std::vector<float> experts, weights;
};
Choice choose(const Machine& machine, const std::vector<float>& logits, int64_t rows, int used,
              bool normalised, float scale = 1.0f) {
  const Array<float> in(machine, logits), chosen(machine, rows * used, -1.0f),
      weights(machine, rows * used, -1.0f);
  machine.kernels().choose_experts(
      machine, {in.data(), rows, static_cast<int>(static_cast<int64_t>(logits.size()) / rows), used,
                normalised, scale, chosen.data(), weights.data()});
  return {chosen.read(), weights.read()};
}

/// The `used` largest by counting, for each, how many come before it.
std::vector<size_t> naive_choice(const float* row, size_t experts, size_t used) {
  const auto before = [&](size_t a, size_t b) {
    if (std::isnan(row[a]) != std::isnan(row[b])) return std::isnan(row[a]);
    return std::isnan(row[a]) || row[a] == row[b] ? a < b : row[a] > row[b];
  };
  std::vector<size_t> chosen;
  for (size_t e = 0; e < experts; ++e) {
    size_t ahead = 0;
    for (size_t other = 0; other < experts; ++other) ahead += other != e && before(other, e) ? 1 : 0;
    if (ahead < used) chosen.push_back(e);
  }
  return chosen;
}

void expect_choice(const Machine& machine, const std::vector<float>& logits, int64_t rows, int used,
                   bool normalised, float scale) {
  const Choice got = choose(machine, logits, rows, used, normalised, scale);
  const size_t experts = logits.size() / static_cast<size_t>(rows);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    const float* row = logits.data() + r * experts;
    const auto chosen = naive_choice(row, experts, static_cast<size_t>(used));
    const double largest = *std::max_element(row, row + experts);
    double sum = 0.0, furthest = 0.0;
    for (size_t e = 0; e < experts; ++e) {
      if (normalised && std::find(chosen.begin(), chosen.end(), e) == chosen.end()) continue;
      sum += std::exp(row[e] - largest);
      if (largest - row[e] < 90.0) furthest = std::max(furthest, largest - row[e]);
    }
    // e^x: its own units and the rounding of x = l - max; lanes of 8 and the tree; quotient and product.
    const double relative = kU * (2 * (furthest + 2 * kExpUlps) + 8 + 5 + 3);
    for (size_t s = 0; s < chosen.size(); ++s) {
      const size_t at = r * static_cast<size_t>(used) + s;
      ASSERT_EQ(got.experts[at], static_cast<float>(chosen[s])) << "row " << r << " slot " << s;
      const double exact = std::exp(row[chosen[s]] - largest) / sum * scale;
      ASSERT_TRUE(near(got.weights[at], exact, relative * exact + 0x1p-126)) << "row " << r;
    }
  }
}

TEST_P(GpuRows, ChooseExpertsTakesTheLargestInAscendingIndex) {
  for (const int experts : {1, 2, 8, 17, 64, 256})
    for (const int used : {1, 2, 16, experts - 1, experts})
      for (const bool normalised : {true, false})
        if (used >= 1 && used <= experts && used <= kMostExpertsUsed)
          expect_choice(machine_, random_rows(19 * experts, 5), 19, used, normalised,
                        normalised ? 1.0f : 2.5f);
}

TEST_P(GpuRows, ChooseExpertsTiesAndNan) {
  const std::vector<float> ties = {1,  3,     3,    3,  0,  3,  //
                                   0,  0,     0,    0,  0,  0,  //
                                   5,  -0.0f, 0.0f, 5,  4,  4,  //
                                   -2, -1,    -1,   -2, -1, -3};
  for (int used = 1; used <= 6; ++used)
    for (const bool normalised : {true, false}) expect_choice(machine_, ties, 4, used, normalised, 1.0f);
  EXPECT_EQ(choose(machine_, ties, 4, 2, true).experts, (std::vector<float>{1, 2, 0, 1, 0, 3, 1, 2}));

  const std::vector<float> nan = {1, 2, NAN, 4, NAN, -INFINITY};
  for (const bool normalised : {true, false}) {
    EXPECT_EQ(choose(machine_, nan, 1, 1, normalised).experts, std::vector<float>{2});
    const Choice three = choose(machine_, nan, 1, 3, normalised);
    EXPECT_EQ(three.experts, (std::vector<float>{2, 3, 4}));
    for (const float w : three.weights) EXPECT_TRUE(std::isnan(w));
  }
  const Choice far = choose(machine_, {-INFINITY, 1, 1, -200}, 1, 4, true);
  EXPECT_EQ(far.experts, (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(far.weights[0], 0.0f);
  EXPECT_TRUE(near(far.weights[1], 0.5, 2 * kU));
}

TEST_P(GpuRows, ChooseExpertsAloneAsWithNeighbours) {
  const std::vector<float> logits = random_rows(21 * 40, 9);
  const Choice all = choose(machine_, logits, 21, 6, true);
  for (int64_t r = 0; r < 21; ++r) {
    const Choice alone =
        choose(machine_, {logits.begin() + r * 40, logits.begin() + (r + 1) * 40}, 1, 6, true);
    EXPECT_TRUE(same_bits(alone.weights, {all.weights.begin() + r * 6, all.weights.begin() + (r + 1) * 6}));
    EXPECT_TRUE(same_bits(alone.experts, {all.experts.begin() + r * 6, all.experts.begin() + (r + 1) * 6}));
  }
}

TEST_P(GpuRows, CombineIsAChainInAscendingSlots) {
  constexpr int64_t kRows = 5;
  for (const int64_t width : {1, 40, 257})
    for (const int used : {1, 2, 8}) {
      std::vector<float> x = random_rows(kRows * used * width, 11);
      const std::vector<float> w = random_rows(kRows * used, 12);
      x[0] = NAN;
      const Array<float> in(machine_, x), weights(machine_, w), out(machine_, kRows * width, -1.0f);
      machine_.kernels().combine(machine_, {in.data(), weights.data(), kRows, used, width, out.data()});
      const std::vector<float> got = out.read();
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t i = 0; i < width; ++i) {
          float sum = 0.0f;
          for (int s = 0; s < used; ++s) {
            const float weight = w[static_cast<size_t>(r * used + s)];
            const float value = x[static_cast<size_t>((r * used + s) * width + i)];
            sum = s == 0 ? weight * value : std::fma(weight, value, sum);
          }
          const float value = got[static_cast<size_t>(r * width + i)];
          if (r == 0 && i == 0) {
            EXPECT_TRUE(std::isnan(value));
          } else {
            ASSERT_EQ(value, sum) << used << " " << width;
          }
        }
    }
}

}  // namespace
}  // namespace greta::gpu
