// The bounds of attention: of sums in any order, and of a walk that the device states.
//
// The walk (Arithmetic::page_sum_roundings): pages in ascending order, one chain o <- p_j v_j + o over a
// page's keys, o <- o c where a page begins, c = e^(old maximum - new). With w_j = e^s_j / sum, the computed
// weights are w_j (1 + eta_j) up to a factor that the quotient cancels:
//
//   eta_j = e^(delta_j + exp's ulps (1 + pages after j)) - 1,
//   delta_j = the score's own error + u |s_j| + u (max s - s_j)
//
// since the arguments of p_j and of every c behind it add up to s_j - max s. So what the weights' errors move
// is at most sum_j w_j eta_j |v_ji - out_i|, and |out_i| sum_j w_j gamma of what w_j passes on its way into
// l. A step of the chain errs by no more than u times the sum that it leaves, S_k of the keys so far and what
// is wrong with it already, and by no more than what it adds.
//
// Likely: roundings of scores and of the chain are independent and of mean zero, so lambda times the root of
// the sum of their squares. Those that are not keep their sum: the factor of the scores, exp's own errors,
// and steps whose addend is a few units in the last place of the sum, or none.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bisect/bounds.h"

namespace greta {
namespace {

constexpr double kLeastNormal = 0x1p-126;  ///< of FP32
constexpr double kSubnormal = 0x1p-150;
constexpr double kFewUnits = 8.0;  ///< u |S|: an addend below it may be rounded alike again and again

/// One head: scores, how far each may be off, and what softmax makes of them.
struct Scores {
  std::vector<double> s, off, p;
  double largest = -std::numeric_limits<double>::infinity();
};

Scores scores_of(std::span<const double> q, std::span<const double> keys, double scale, double softcap,
                 int score_roundings, const Arithmetic& arithmetic) {
  const size_t width = q.size();
  const size_t count = keys.size() / width;
  Scores all{std::vector<double>(count, 0.0), std::vector<double>(count), std::vector<double>(count)};
  for (size_t j = 0; j < count; ++j) {
    double magnitude = 0.0;
    for (size_t d = 0; d < width; ++d) {
      all.s[j] += q[d] * keys[j * width + d] * scale;
      magnitude += std::abs(q[d] * keys[j * width + d]) * scale;
    }
    all.off[j] = gamma(score_roundings, arithmetic.sum_unit) * magnitude;
    if (softcap > 0) {
      all.s[j] = softcap * std::tanh(all.s[j] / softcap);
      all.off[j] += softcap_error(all.s[j], softcap, arithmetic.tanh_ulps, arithmetic.unit);
    }
    all.largest = std::max(all.largest, all.s[j]);
  }
  double sum = 0.0;
  for (size_t j = 0; j < count; ++j) sum += all.p[j] = std::exp(all.s[j] - all.largest);
  for (double& p : all.p) p /= sum;
  return all;
}

/// Of one head's walk through its pages.
class Walk {
 public:
  Walk(const Scores& scores, std::span<const double> values, size_t width, int64_t first, bool capped,
       const Arithmetic& arithmetic)
      : scores_(scores), values_(values), width_(width), first_(first), u_(arithmetic.unit) {
    const auto count = static_cast<int64_t>(scores.p.size());
    last_page_ = (first + count - 1) / kKvPage;
    const double most_off = *std::max_element(scores.off.begin(), scores.off.end());
    const double ulps = 2 * arithmetic.probability_ulps * u_;
    for (int64_t j = 0; j < count; ++j) {
      const auto at = static_cast<size_t>(j);
      const double after = static_cast<double>(last_page_ - page(j));
      const double apart = u_ * (scores.largest - scores.s[at] + 2 * most_off);
      const double alike =
          u_ * std::abs(scores.s[at]) + ulps * (1.0 + after) + (capped ? scores.off[at] : 0.0);
      eta_.push_back(std::expm1((1 + 4 * u_) * (scores.off[at] + u_ * std::abs(scores.s[at]) + apart) +
                                ulps * (1.0 + after)));
      eta_alike_.push_back(std::min(eta_.back(), std::expm1((1 + 4 * u_) * alike)));
      most_ = std::max(most_, eta_.back());
      in_sum_ += scores.p[at] * (1 + eta_.back()) *
                 gamma(static_cast<double>(arithmetic.page_sum_roundings) + 1 + after, u_);
    }
    off_ = most_ + (1 + most_) * gamma(static_cast<double>(count + last_page_ - page(0) + 1) +
                                           arithmetic.page_sum_roundings + 1,
                                       u_);
  }
  /// A weight, and a sum of magnitudes, is off by no more than this share of itself. bound() asks for less
  /// than 1.
  double off() const { return off_; }

  void bound(Judged& judged) const {
    std::vector<double> sum(width_, 0.0), size(width_, 0.0);
    std::vector<double> certain(width_, 0.0), likely(width_, 0.0), squares(width_, 0.0);
    for (size_t j = 0; j < scores_.p.size(); ++j)
      for (size_t d = 0; d < width_; ++d) size[d] += scores_.p[j] * std::abs(values_[j * width_ + d]);
    for (size_t j = 0; j < scores_.p.size(); ++j) {
      const double p = scores_.p[j];
      const double* v = values_.data() + j * width_;
      const bool begins = j > 0 && page(static_cast<int64_t>(j)) != page(static_cast<int64_t>(j) - 1);
      for (size_t d = 0; d < width_; ++d) {
        const double moved = p * std::abs(v[d] - judged.value[d]);
        const double apart = moved * (eta_[j] - eta_alike_[j]);
        const double wrong = u_ * off_ * size[d];
        const double rescaled = begins ? u_ * std::abs(sum[d]) : 0.0;
        const double addend = std::abs(p * v[d]) * (1 + off_);
        sum[d] += p * v[d];
        const double rounded = u_ * std::abs(sum[d]);
        const double step = std::min(rounded + wrong, addend);
        const bool few = addend < kFewUnits * rounded;
        const double more = begins ? wrong : 0.0;
        certain[d] += moved * eta_[j] + rescaled + more + step;
        likely[d] += moved * eta_alike_[j] + more + (few ? step : wrong);
        squares[d] += apart * apart + rescaled * rescaled + (few ? 0.0 : rounded * rounded);
      }
    }
    const double whole = (1 + 4 * u_) / (1 - off_);
    judged.likely.resize(width_);
    for (size_t d = 0; d < width_; ++d) {
      const double last = (in_sum_ + u_) * std::abs(judged.value[d]);
      judged.certain[d] = whole * (certain[d] + last);
      judged.likely[d] =
          std::min(judged.certain[d], whole * (likely[d] + kLambda * std::sqrt(squares[d]) + last));
    }
  }

 private:
  int64_t page(int64_t j) const { return (first_ + j) / kKvPage; }

  const Scores& scores_;
  std::span<const double> values_;
  size_t width_;
  int64_t first_, last_page_ = 0;
  double u_;
  std::vector<double> eta_, eta_alike_;
  double most_ = 0.0, in_sum_ = 0.0, off_ = 0.0;
};

}  // namespace

double attention_relative(double delta, int value_roundings, const Arithmetic& arithmetic) {
  return std::expm1(2 * delta) + 4 * arithmetic.probability_ulps * arithmetic.unit +
         gamma(value_roundings, arithmetic.sum_unit) + arithmetic.probability_relative;
}

Judged judge_attention(std::span<const double> queries, std::span<const double> keys,
                       std::span<const double> values, double scale, double softcap, int score_roundings,
                       int value_roundings, const Arithmetic& arithmetic, int64_t first) {
  const auto q = rounded_operand(queries, arithmetic.query);
  const double u = arithmetic.unit;
  const size_t width = q.size();
  const Scores scores = scores_of(q, keys, scale, softcap, score_roundings, arithmetic);
  const size_t count = scores.p.size();
  Judged judged{std::vector<double>(width, 0.0), std::vector<double>(width, 0.0)};
  for (size_t j = 0; j < count; ++j)
    for (size_t d = 0; d < width; ++d) judged.value[d] += scores.p[j] * values[j * width + d];

  bool walked = false;
  if (arithmetic.page_sum_roundings > 0) {
    const Walk walk(scores, values, width, first, softcap > 0, arithmetic);
    walked = walk.off() < 0.5;
    if (walked) walk.bound(judged);
  }
  // A probability below 2^-126 may be anything from there to zero in FP32, times a value of any size; so may
  // each product of the sums.
  const double lost = kLeastNormal * static_cast<double>(count);
  double delta = 0.0;
  for (size_t j = 0; j < count; ++j)
    delta = std::max(delta, scores.off[j] + kArgumentRoundings * u * std::abs(scores.s[j]));
  const double relative = walked ? 0.0 : attention_relative(delta, value_roundings, arithmetic);
  std::vector<double> any(width, lost + kSubnormal);
  for (size_t j = 0; j < count; ++j)
    for (size_t d = 0; d < width; ++d)
      any[d] += (scores.p[j] * (relative + lost) + arithmetic.probability_absolute + kLeastNormal) *
                std::abs(values[j * width + d]);
  for (size_t d = 0; d < width; ++d) {
    judged.certain[d] += any[d];
    if (walked) judged.likely[d] += any[d];
  }
  return judged;
}

}  // namespace greta
