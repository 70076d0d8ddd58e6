#include "bisect/divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace greta {

std::vector<double> log_softmax(std::span<const double> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const double x : logits) sum += std::exp(x - largest);
  const double log_sum = largest + std::log(sum);
  std::vector<double> out(logits.begin(), logits.end());
  for (double& x : out) x -= log_sum;
  return out;
}

double kl_divergence(std::span<const double> truth, std::span<const double> got) {
  if (truth.size() != got.size() || truth.empty())
    fail("a row of {} log-probabilities against one of {}", truth.size(), got.size());
  double kl = 0.0;
  for (size_t i = 0; i < truth.size(); ++i) kl += std::exp(truth[i]) * (truth[i] - got[i]);
  return kl;
}

void Divergence::add(std::span<const double> truth, std::span<const double> got) {
  const double kl = kl_divergence(truth, got);
  ++rows_;
  kl_sum_ += kl;
  if (!(kl <= largest_kl_)) largest_kl_ = std::isnan(kl) ? std::numeric_limits<double>::infinity() : kl;
  const auto best = std::max_element(truth.begin(), truth.end()) - truth.begin();
  const auto chosen = std::max_element(got.begin(), got.end()) - got.begin();
  if (best == chosen) return;
  ++changed_;
  largest_gap_ =
      std::max(largest_gap_, truth[static_cast<size_t>(best)] - truth[static_cast<size_t>(chosen)]);
}

}  // namespace greta
