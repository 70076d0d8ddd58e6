#pragma once
// How far one set of next-token distributions lies from the true one (numerics.md section 3).
#include <cstdint>
#include <span>
#include <vector>

namespace greta {

/// Logits as natural-log probabilities, FP64.
std::vector<double> log_softmax(std::span<const double> logits);

/// KL(truth || got) in nats, of natural-log probabilities. Errors: other lengths, empty.
double kl_divergence(std::span<const double> truth, std::span<const double> got);

/// What a mode changed, row by row. NaN in a row makes the means and the largest values NaN or infinite: no
/// bound holds then.
class Divergence {
 public:
  /// One row: log-probabilities of the truth and of the mode, equally long.
  void add(std::span<const double> truth, std::span<const double> got);

  uint64_t rows() const { return rows_; }
  double mean_kl() const { return kl_sum_ / static_cast<double>(rows_); }  ///< KL(truth || got), nats
  double largest_kl() const { return largest_kl_; }
  uint64_t changed() const { return changed_; }  ///< rows whose most probable token is another
  double top1_agreement() const { return 1.0 - static_cast<double>(changed_) / static_cast<double>(rows_); }
  /// The largest true gap between the logits of a token that was overturned and of the one that won.
  double largest_gap() const { return largest_gap_; }

 private:
  uint64_t rows_ = 0;
  double kl_sum_ = 0.0;
  double largest_kl_ = 0.0;
  uint64_t changed_ = 0;
  double largest_gap_ = 0.0;
};

}  // namespace greta
