// Our own exp, silu, gelu, sin and cos: how far from the truth, measured against long double, and alike on
// every path.
#include <algorithm>

#include "backend/cpu/kernels.h"
#include "cpu/support.h"

namespace greta {
namespace {

using namespace cpu_test;

/// Floats of both signs spread over [2^low, 2^high), and the special ones.
std::vector<float> spread(int low, int high, int count) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(static_cast<float>(low), static_cast<float>(high));
  std::vector<float> x{0.0f, -0.0f, 1e-45f, -1e-45f, INFINITY, -INFINITY, NAN, 3e38f, -3e38f};
  for (int i = 0; i < count; ++i)
    x.push_back(std::exp2(exponent(random)) * (random() % 2 != 0 ? 1.0f : -1.0f));
  return x;
}

/// |got - exact| in units of the last place of the float next to exact, no smaller than `least`.
long double ulps(float got, long double exact, long double least = 0x1p-149L) {
  if (std::isnan(exact)) return std::isnan(got) ? 0.0L : INFINITY;
  const auto near = static_cast<float>(exact);
  if (std::isinf(near)) return got == near ? 0.0L : INFINITY;
  const float size = std::fabs(near);
  const long double unit = std::max<long double>(std::nextafter(size, INFINITY) - size, least);
  const long double error = std::fabs(got - exact) / unit;
  return std::isnan(error) ? INFINITY : error;
}

template <class Exact>
long double most_ulps(const std::vector<float>& x, const std::vector<float>& got, const Exact& exact,
                      long double least = 0x1p-149L) {
  long double most = 0.0L;
  for (size_t i = 0; i < x.size(); ++i) most = std::max(most, ulps(got[i], exact(x[i]), least));
  return most;
}

TEST(CpuMath, ExpIsWithinOneUlpEverywhere) {
  std::vector<float> x = spread(-30, 8, 400000);
  for (float v = -105.0f; v < 90.0f; v += 0.00391f) x.push_back(v);
  std::vector<float> first;
  for (const Isa isa : isas()) {
    std::vector<float> got(x.size());
    cpu::kernels_of(isa).exp(x.data(), static_cast<int64_t>(x.size()), got.data());
    const long double most = most_ulps(x, got, [](float v) { return std::exp(static_cast<long double>(v)); });
    EXPECT_LE(most, 1.0L) << name_of(isa);
    RecordProperty(std::string("exp_ulps_") + std::string(name_of(isa)), std::to_string(most));
    if (first.empty()) first = got;
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) continue;
      ASSERT_EQ(got[i], first[i]) << name_of(isa) << " " << x[i];
    }
  }
}

long double silu(float x) {
  const long double v = x;
  return v / (1.0L + std::exp(-v));
}
long double gelu(float x) {
  const long double v = x;
  const long double pi = 3.14159265358979323846264338327950288L;
  const long double y = 2.0L * std::sqrt(2.0L / pi) * (v + 0.044715L * v * v * v);
  return v / (1.0L + std::exp(-y));
}

TEST(CpuMath, SiluWithinThreeAndGeluWithinFourUlps) {
  std::vector<float> x = spread(-30, 6, 300000);
  x.erase(x.begin() + 4, x.begin() + 9);  // infinities and NaN: below
  for (float v = -110.0f; v < 20.0f; v += 0.000513f) x.push_back(v);
  const std::vector<float> one(x.size(), 1.0f);
  // Where e^-|x| is subnormal its half a unit is multiplied by x: up to 50 of the smallest subnormals.
  const long double least = 50 * 0x1p-149L;
  std::vector<float> first;
  for (const Isa isa : isas()) {
    std::vector<float> a(x.size()), b(x.size());
    const auto n = static_cast<int64_t>(x.size());
    cpu::kernels_of(isa).silu_mul(x.data(), one.data(), n, a.data());
    cpu::kernels_of(isa).gelu_mul(x.data(), one.data(), n, b.data());
    const long double silu_ulps = most_ulps(x, a, silu, least), gelu_ulps = most_ulps(x, b, gelu, least);
    EXPECT_LE(silu_ulps, 3.0L) << name_of(isa);
    EXPECT_LE(gelu_ulps, 4.0L) << name_of(isa);
    RecordProperty("silu_ulps", std::to_string(silu_ulps));
    RecordProperty("gelu_ulps", std::to_string(gelu_ulps));
    a.insert(a.end(), b.begin(), b.end());
    if (first.empty()) first = a;
    EXPECT_TRUE(same_bits(a, first)) << name_of(isa);
  }
}

TEST(CpuMath, ActivationsAtTheEnds) {
  const std::vector<float> x{INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 100.0f, -100.0f, 0.0f, -0.0f};
  const std::vector<float> one(x.size(), 1.0f);
  for (const Isa isa : isas()) {
    for (const auto kernel : {cpu::kernels_of(isa).silu_mul, cpu::kernels_of(isa).gelu_mul}) {
      std::vector<float> y(x.size());
      kernel(x.data(), one.data(), static_cast<int64_t>(x.size()), y.data());
      EXPECT_EQ(y[0], INFINITY);
      EXPECT_TRUE(std::isnan(y[1]));  // -infinity times 0
      EXPECT_TRUE(std::isnan(y[2]));
      EXPECT_EQ(y[3], 3e38f);
      EXPECT_EQ(y[4], 0.0f);
      EXPECT_EQ(y[5], 100.0f);
      EXPECT_LE(std::fabs(y[6]), 1e-40f);
      EXPECT_EQ(y[7], 0.0f);
      EXPECT_EQ(y[8], 0.0f);
    }
  }
}

TEST(CpuMath, SinAndCosOfAnglesUpTo2e9) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> exponent(-40.0, 31.0);
  std::vector<double> x{0.0, 1.0, 1e7, 2147483647.0};
  for (int i = 0; i < 300000; ++i)
    x.push_back(std::exp2(exponent(random)) * (random() % 2 != 0 ? 1.0 : -1.0));
  for (int i = 1; i < 20000; ++i) x.push_back(i * 1.5707963267948966);  // where one of them nearly vanishes
  std::vector<double> first;
  for (const Isa isa : isas()) {
    std::vector<double> s(x.size()), c(x.size());
    cpu::kernels_of(isa).sincos(x.data(), static_cast<int64_t>(x.size()), s.data(), c.data());
    long double most = 0.0L;
    for (size_t i = 0; i < x.size(); ++i) {
      const long double angle = x[i];
      most = std::max({most, std::fabs(s[i] - std::sin(angle)), std::fabs(c[i] - std::cos(angle))});
      // rounded to FP32 it is the nearest float, or its neighbour where the truth lies between
      ASSERT_LE(ulps(static_cast<float>(s[i]), std::sin(angle)), 0.5001L) << x[i];
      ASSERT_LE(ulps(static_cast<float>(c[i]), std::cos(angle)), 0.5001L) << x[i];
    }
    EXPECT_LE(most, 3e-16L) << name_of(isa);
    RecordProperty("sincos_error", std::to_string(static_cast<double>(most * 1e16L)) + "e-16");
    s.insert(s.end(), c.begin(), c.end());
    if (first.empty()) first = s;
    EXPECT_EQ(std::memcmp(s.data(), first.data(), s.size() * sizeof(double)), 0) << name_of(isa);
  }
}

}  // namespace
}  // namespace greta
