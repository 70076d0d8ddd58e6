#include "engine/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "base/error.h"

namespace greta {
namespace {

using testing::HasSubstr;

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, 3.0f, -1.0f};

SamplerOptions wide_open() {
  SamplerOptions o;
  o.temperature = 1.0f;
  o.top_k = 0;
  o.top_p = 1.0f;
  o.min_p = 0.0f;
  return o;
}

/// How often each token is drawn over many positions.
std::map<TokenId, int> draws(const SamplerOptions& options, int count, std::vector<TokenId> history = {}) {
  std::map<TokenId, int> seen;
  for (int p = 0; p < count; ++p) ++seen[sample(kLogits, options, history, 0, p)];
  return seen;
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowerIdOfEquals) {
  SamplerOptions greedy;
  greedy.greedy = true;
  EXPECT_EQ(sample(kLogits, greedy, {}, 0, 0), 1);
  SamplerOptions cold;
  cold.temperature = 0.0f;
  EXPECT_EQ(sample(kLogits, cold, {}, 0, 0), 1);
}

/// Of the signs, of zeros alike, of what is far apart and of what is side by side, at every place of a
/// vector.
TEST(Sampler, GreedyIsMaxElement) {
  SamplerOptions greedy;
  greedy.greedy = true;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const std::vector<float> few = {-0.0f,  0.0f,   -INFINITY, -1e-45f,
                                  1e-45f, -3e38f, 1.0f,      std::nextafter(1.0f, 2.0f)};
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> logits(1 + random() % 70);
    const size_t kinds = 1 + random() % few.size();
    for (float& x : logits)
      x = round % 3 == 0   ? normal(random)
          : round % 3 == 1 ? -std::abs(normal(random))
                           : few[random() % kinds];
    const auto best = std::max_element(logits.begin(), logits.end());
    if (std::isinf(*best)) continue;
    EXPECT_EQ(sample(logits, greedy, {}, 0, 0), best - logits.begin()) << "round " << round;
  }
}

TEST(Sampler, FrequenciesAreTheSoftmax) {
  double sum = 0.0;
  for (const float x : kLogits) sum += std::exp(double{x});
  constexpr int kDraws = 200'000;
  const auto seen = draws(wide_open(), kDraws);
  for (TokenId id = 0; id < 5; ++id) {
    const double p = std::exp(double{kLogits[static_cast<size_t>(id)]}) / sum;
    const double deviation = std::sqrt(p * (1 - p) * kDraws);
    EXPECT_NEAR(seen.at(id), p * kDraws, 5 * deviation) << id;
  }
}

TEST(Sampler, TopKTopPAndMinPCut) {
  auto o = wide_open();
  o.top_k = 2;
  EXPECT_THAT(draws(o, 2000), testing::UnorderedElementsAre(testing::Key(1), testing::Key(3)));
  o = wide_open();
  o.top_p = 0.5f;  // the two of 3.0 hold 0.39 each: the second is needed to reach a half
  EXPECT_THAT(draws(o, 2000), testing::UnorderedElementsAre(testing::Key(1), testing::Key(3)));
  o = wide_open();
  o.min_p = 0.2f;  // e^-1 = 0.37 stays, e^-2 = 0.14 goes
  EXPECT_THAT(draws(o, 5000),
              testing::UnorderedElementsAre(testing::Key(1), testing::Key(2), testing::Key(3)));
}

TEST(Sampler, PenaltyDividesPositiveAndMultipliesNegative) {
  auto o = wide_open();
  o.greedy = true;
  o.repeat_penalty = 2.0f;
  const std::vector<TokenId> seen_one = {1, 1, 1};
  EXPECT_EQ(sample(kLogits, o, seen_one, 0, 0), 3);
  const std::vector<TokenId> seen_both = {1, 3};
  EXPECT_EQ(sample(kLogits, o, seen_both, 0, 0), 2);
  const std::vector<float> negative = {-1.0f, -1.5f};
  const std::vector<TokenId> zero = {0};
  EXPECT_EQ(sample(negative, o, zero, 0, 0), 1);
}

TEST(Sampler, DrawDependsOnSeedSequenceAndPositionAlone) {
  auto o = wide_open();
  std::vector<TokenId> a, b, other_seed, other_sequence;
  for (int p = 0; p < 64; ++p) {
    a.push_back(sample(kLogits, o, {}, 0, p));
    b.push_back(sample(kLogits, o, {}, 0, p));
    other_sequence.push_back(sample(kLogits, o, {}, 1, p));
  }
  o.seed = 1;
  for (int p = 0; p < 64; ++p) other_seed.push_back(sample(kLogits, o, {}, 0, p));
  EXPECT_EQ(a, b);
  EXPECT_NE(a, other_seed);
  EXPECT_NE(a, other_sequence);
}

TEST(Sampler, RefusesNaNAndNonsense) {
  const auto message = [](const std::vector<float>& logits, const SamplerOptions& o) {
    try {
      o.validate();
      sample(logits, o, {}, 0, 0);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(message({0.0f, NAN}, {}), HasSubstr("NaN at token 1"));
  EXPECT_THAT(message({-INFINITY, -INFINITY}, {}), HasSubstr("no finite logit"));
  EXPECT_THAT(message({0.0f, INFINITY}, {}), HasSubstr("the logit of token 1 is infinite"));
  SamplerOptions o;
  o.greedy = true;
  EXPECT_THAT(message({0.0f, NAN}, o), HasSubstr("NaN at token 1"));
  EXPECT_THAT(message({0.0f, 1.0f, -NAN}, o), HasSubstr("NaN at token 2"));
  EXPECT_THAT(message({-INFINITY, -INFINITY}, o), HasSubstr("no finite logit among 2"));
  EXPECT_THAT(message({INFINITY, 0.0f}, o), HasSubstr("the logit of token 0 is infinite"));
  EXPECT_THAT(message({}, o), HasSubstr("no finite logit among 0"));
  o = {};
  o.top_p = 0.0f;
  EXPECT_THAT(message(kLogits, o), HasSubstr("--top-p 0: expected above 0"));
  o = {};
  o.temperature = -1.0f;
  EXPECT_THAT(message(kLogits, o), HasSubstr("--temperature"));
}

TEST(Logprobs, AreTheLogSoftmax) {
  const auto l = logprobs_of(kLogits, 2, 3);
  double sum = 0.0;
  for (const float x : kLogits) sum += std::exp(double{x});
  EXPECT_NEAR(l.logprob, 2.0 - std::log(sum), 1e-12);
  ASSERT_EQ(l.top.size(), 3u);
  EXPECT_EQ(l.top[0].first, 1);
  EXPECT_EQ(l.top[1].first, 3);
  EXPECT_EQ(l.top[2].first, 2);
  EXPECT_NEAR(l.top[0].second, 3.0 - std::log(sum), 1e-12);
}

}  // namespace
}  // namespace greta
