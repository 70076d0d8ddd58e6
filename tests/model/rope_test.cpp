#include "model/rope.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

namespace greta {
namespace {

double relative(double got, double want) { return std::abs(got - want) / std::abs(want); }

TEST(Rope, FollowsTransformersInFloat64) {
  std::ifstream in(GRETA_SOURCE_DIR "/tests/golden/model/rope.json");
  const auto cases = nlohmann::json::parse(in);
  ASSERT_EQ(cases.size(), 15u);
  for (const auto& c : cases) {
    SCOPED_TRACE(c["name"].get<std::string>());
    RopeSettings settings;
    settings.dims = c["dims"];
    settings.base = c["base"];
    settings.factor = c["factor"];
    settings.scaling = c["scaling"] == "yarn"     ? RopeScaling::yarn
                       : c["scaling"] == "linear" ? RopeScaling::linear
                                                  : RopeScaling::none;
    settings.original_context = c.value("original_context", 0.0);
    settings.beta_fast = c.value("beta_fast", 32.0);
    settings.beta_slow = c.value("beta_slow", 1.0);
    settings.attn_factor = c.value("attn_factor", 1.0);
    const auto factors = c.value("factors", std::vector<float>{});
    settings.factors = factors;
    const auto rope = make_rope(RopeStyle::half, settings);
    EXPECT_EQ(rope.style, RopeStyle::half);
    EXPECT_EQ(rope.dims, settings.dims);
    EXPECT_LE(relative(rope.magnitude, c["magnitude"]), 1e-15);
    const auto want = c["inv_freq"].get<std::vector<double>>();
    ASSERT_EQ(rope.inv_freq.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT_LE(relative(rope.inv_freq[i], want[i]), 1e-15) << "pair " << i;
  }
}

// The C library's pow is within an ulp of the true power; so must ours be, and the bits must not depend on
// it.
TEST(Rope, PowersAreRoundedCorrectly) {
  EXPECT_EQ(exact_pow(10000.0, 0.5), 100.0);
  EXPECT_EQ(exact_pow(10000.0, 0.0), 1.0);
  EXPECT_EQ(exact_pow(10000.0, 1.0), 10000.0);
  EXPECT_EQ(exact_pow(1e6, 0.5), 1000.0);
  EXPECT_EQ(exact_log(1.0), 0.0);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponents(0.0, 1.0), logs(0.1, 34.0);
  for (int i = 0; i < 20000; ++i) {
    const double base = std::exp(logs(random)), exponent = exponents(random);
    const long double want = std::pow(static_cast<long double>(base), static_cast<long double>(exponent));
    const double got = exact_pow(base, exponent);
    // Half an ulp of the double, and what the wider power may be off (x87: 64 bits; elsewhere it may be a
    // double's).
    const double half_ulp = std::ldexp(1.0, std::ilogb(got) - 53);
    const double slack =
        sizeof(long double) > 8 && std::numeric_limits<long double>::digits > 53 ? 0.002 : 1.0;
    EXPECT_LE(std::abs(static_cast<double>(got - want)), half_ulp * (1 + slack)) << base << "^" << exponent;
    EXPECT_LE(std::abs(static_cast<double>(exact_log(base) - std::log(static_cast<long double>(base)))),
              std::ldexp(1.0, std::ilogb(exact_log(base)) - 53) * (1 + slack));
  }
}

TEST(Rope, YarnWithoutItsRampIsInterpolation) {
  RopeSettings settings;
  settings.dims = 64;
  settings.scaling = RopeScaling::yarn;
  settings.factor = 4.0;
  settings.original_context = 2048.0;
  settings.ext_factor = 0.0;
  const auto yarn = make_rope(RopeStyle::adjacent, settings);
  settings.scaling = RopeScaling::linear;
  const auto linear = make_rope(RopeStyle::adjacent, settings);
  EXPECT_EQ(yarn.magnitude, 1.0);
  for (size_t i = 0; i < linear.inv_freq.size(); ++i) {
    EXPECT_LE(relative(yarn.inv_freq[i], linear.inv_freq[i]), 4e-16) << i;
  }
}

}  // namespace
}  // namespace greta
