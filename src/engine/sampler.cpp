#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

struct Candidate {
  TokenId id;
  double value;  ///< a logit, later a probability
};

void refuse_nans(std::span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i)
    if (std::isnan(logits[i])) fail("the logits hold a NaN at token {}: no token can be chosen", i);
}

/// `largest`: the largest logit, the first token that has it.
void require_finite(double largest, TokenId token, size_t count) {
  if (largest == std::numeric_limits<double>::infinity())
    fail("the logit of token {} is infinite: no token can be chosen", token);
  if (!std::isfinite(largest)) fail("no finite logit among {} to choose a token from", count);
}

/// Larger first; ties to the lower id. No NaN reaches it.
bool before(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

/// The first of the largest: by bits, which order as their numbers do once a negative one's are turned, so
/// that the compiler makes vectors of the loop.
TokenId first_largest(std::span<const float> logits) {
  int32_t largest = std::numeric_limits<int32_t>::min(), nans = 0;
  for (const float logit : logits) {
    const auto bits = std::bit_cast<int32_t>(logit);
    nans |= int32_t{0x7f800000} - (bits & 0x7fffffff);
    largest = std::max(largest, bits ^ (bits >> 31 & 0x7fffffff));
  }
  if (nans < 0) refuse_nans(logits);
  const auto value = std::bit_cast<float>(largest ^ (largest >> 31 & 0x7fffffff));
  const auto token = static_cast<TokenId>(std::find(logits.begin(), logits.end(), value) - logits.begin());
  require_finite(value, token, logits.size());
  return token;
}

std::vector<Candidate> penalised(std::span<const float> logits, float penalty,
                                 std::span<const TokenId> history) {
  refuse_nans(logits);
  std::vector<Candidate> candidates(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {static_cast<TokenId>(i), double{logits[i]}};
  if (penalty == 1.0f) return candidates;
  std::vector<bool> seen(logits.size());
  for (const TokenId id : history) {
    if (seen[static_cast<size_t>(id)]) continue;
    seen[static_cast<size_t>(id)] = true;
    double& value = candidates[static_cast<size_t>(id)].value;
    value = value > 0 ? value / double{penalty} : value * double{penalty};
  }
  return candidates;
}

/// Uniform in [0, 1): 53 bits of a hash of what the draw may depend on.
double uniform(uint64_t seed, uint64_t sequence, int64_t position) {
  const uint64_t bits =
      mix64(mix64(mix64(seed) ^ (sequence + 0x9e3779b97f4a7c15u)) ^ static_cast<uint64_t>(position));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// Logits, sorted, to probabilities.
void to_probabilities(std::vector<Candidate>& candidates) {
  const double largest = candidates.front().value;
  double sum = 0.0;
  for (Candidate& c : candidates) sum += c.value = std::exp(c.value - largest);
  for (Candidate& c : candidates) c.value /= sum;
}

}  // namespace

void SamplerOptions::validate() const {
  const auto require = [](bool holds, const char* option, double value, const char* range) {
    if (!holds) fail("{} {}: expected {}", option, value, range);
  };
  require(temperature >= 0.0f && std::isfinite(temperature), "--temperature", double{temperature},
          "0 or more");
  require(top_k >= 0, "--top-k", top_k, "0 (all) or more");
  require(top_p > 0.0f && top_p <= 1.0f, "--top-p", double{top_p}, "above 0, at most 1");
  require(min_p >= 0.0f && min_p <= 1.0f, "--min-p", double{min_p}, "0 to 1");
  require(repeat_penalty > 0.0f && std::isfinite(repeat_penalty), "--repeat-penalty", double{repeat_penalty},
          "above 0");
}

TokenId sample(std::span<const float> logits, const SamplerOptions& options, std::span<const TokenId> history,
               uint64_t sequence, int64_t position) {
  const bool greedy = options.greedy || options.temperature == 0.0f;
  if (greedy && options.repeat_penalty == 1.0f) return first_largest(logits);
  auto candidates = penalised(logits, options.repeat_penalty, history);
  Candidate best{0, -std::numeric_limits<double>::infinity()};
  if (!candidates.empty()) best = *std::min_element(candidates.begin(), candidates.end(), before);
  require_finite(best.value, best.id, logits.size());
  if (greedy) return best.id;

  for (Candidate& c : candidates) c.value /= double{options.temperature};
  size_t keep = candidates.size();
  if (options.top_k > 0) keep = std::min(keep, static_cast<size_t>(options.top_k));
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(keep),
                    candidates.end(), before);
  candidates.resize(keep);
  to_probabilities(candidates);

  double mass = 0.0;
  size_t kept = 0;
  while (kept < candidates.size() && mass < double{options.top_p}) mass += candidates[kept++].value;
  candidates.resize(std::max<size_t>(kept, 1));
  const double threshold = double{options.min_p} * candidates.front().value;
  while (candidates.size() > 1 && candidates.back().value < threshold) candidates.pop_back();

  double total = 0.0;
  for (const Candidate& c : candidates) total += c.value;
  double left = uniform(options.seed, sequence, position) * total;
  for (const Candidate& c : candidates) {
    left -= c.value;
    if (left < 0.0) return c.id;
  }
  return candidates.back().id;  // the draw was within rounding of the total
}

TokenLogprobs logprobs_of(std::span<const float> logits, TokenId chosen, int count) {
  auto candidates = penalised(logits, 1.0f, {});
  const size_t keep = std::min(candidates.size(), static_cast<size_t>(std::max(count, 1)));
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(keep),
                    candidates.end(), before);
  const double largest = candidates.front().value;
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  const double log_sum = largest + std::log(sum);
  TokenLogprobs result{chosen, double{logits[static_cast<size_t>(chosen)]} - log_sum, {}};
  for (int i = 0; i < count && static_cast<size_t>(i) < keep; ++i)
    result.top.emplace_back(candidates[static_cast<size_t>(i)].id,
                            candidates[static_cast<size_t>(i)].value - log_sum);
  return result;
}

}  // namespace greta
