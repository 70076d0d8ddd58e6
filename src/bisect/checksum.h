#pragma once
// What the judge does where computing every output of a run's matmuls in FP64 would take too long (bisect.md,
// check 4): of every 16 outputs of a weight one, drawn before looking, is judged as ever, and every 64
// outputs of every row have a checksum, so that none is unseen:
//
//   | sum_i c_i yhat_i - (sum_i c_i w_i) . x |  <=  lambda sqrt( sum_i c_i^2 (d u^2 T_i^2 + r^2 y_i^2) )
//
// The left side is sum_i c_i e_i, e_i the error of output i: a sum of roundings that are independent, of mean
// zero and bounded (d of them by u T_i, the last by r |y_i|), so the right side is Higham and Mary's bound
// for it, as the likely bound is for one output (lambda = 7: passed by chance once in 10^10). It is smaller
// than sum_i |c_i| certain_i by a factor near 64 d / (7 sqrt(64 d)), and may be: a checksum past it accuses
// nobody. Where sums truncate (a GPU's matrix unit) an output's errors have a mean, and d^2 stands for d: the
// signs of c_i, drawn without regard to the errors, are then what is independent. The row is then judged
// whole, and only an output past its own certain bound is a fault.
//
// What stays hidden: an error of one unsampled output below the right side over |c_i|, 4 to 18 times the
// certain bound of that output at K of 2,048 and more (docs/summary.md), and errors of several outputs that
// cancel under random coefficients.
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "base/thread_pool.h"
#include "bisect/bounds.h"
#include "model/plan.h"

namespace greta {

/// How much of each matmul is computed in FP64.
struct Sampling {
  bool sampled = false;  ///< else every output is judged
  uint64_t seed = 1;     ///< of the places and of the coefficients
};

/// FP64 multiply-adds up to which a side of a run is judged whole: a minute or two on two cores, 3,700 rows
/// of a model of 135M weights, 70 of one of 7G.
inline constexpr double kWholeMultiplyAdds = 500e9;
/// Of judging so many rows whole: one a row for every element of a matmul weight.
double multiply_adds(const Plan& plan, int64_t rows);

inline constexpr int64_t kSampleGroup = 16;    ///< outputs of which one is judged
inline constexpr int64_t kChecksumGroup = 64;  ///< outputs of one checksum
inline constexpr int64_t kNormBlock = 32;      ///< elements of a row whose magnitudes are bounded together

/// Of one weight: `unit` as in wiring.h.
uint64_t weight_seed(uint64_t seed, int unit, Role role);
/// The drawn outputs of a weight of so many, ascending: one in each kSampleGroup.
std::vector<int64_t> sampled_outputs(int64_t outputs, uint64_t seed);

/// A matrix of the judge's own, FP32: [rows, cols].
class OwnMatrix : public Weight {
 public:
  OwnMatrix(int64_t height, int64_t width);
  float* row(int64_t r) { return values_.data() + r * cols; }
  void read_back(int64_t first, int64_t count, float* out) const override;

 private:
  std::vector<float> values_;
};

/// A bound as FP32, never below it.
float rounded_up(double bound);

/// One weight's checksums, made in one pass over it.
class Checksums {
 public:
  Checksums(const WeightSource& source, const WeightForm& form, uint64_t seed, ThreadPool& pool);

  int64_t groups() const { return sums_.rows; }
  /// Outputs of a group: [first, end).
  int64_t first(int64_t group) const { return group * kChecksumGroup; }
  int64_t end(int64_t group) const;
  /// c_i: of either sign, magnitude in [1, 2), 24 bits; so c_i w_ik is exact in FP64.
  double coefficient(int64_t output) const { return coefficients_[static_cast<size_t>(output)]; }
  /// sum_i c_i w_i of each group, rounded to FP32: [groups, K].
  const Weight& sums() const { return sums_; }
  /// sqrt(sum_i c_i^2 |w_ib|^2) over blocks b of 32, of magnitudes |d q| + |m|: [groups, ceil(K / 32)]. Times
  /// |x_b| and summed it is no less than sqrt(sum_i c_i^2 T_i^2).
  const Weight& norms() const { return norms_; }

 private:
  void fill(const WeightSource& source, const WeightForm& form, int64_t group);

  std::vector<float> coefficients_;
  OwnMatrix sums_, norms_;
};

/// Of one group of one row, each over its outputs.
struct ChecksumSizes {
  double magnitude = 0.0;  ///< norms() . |x_b|
  double values = 0.0;     ///< sqrt(sum c_i^2 yhat_i^2)
  double constants = 0.0;  ///< sqrt(sum c_i^2) times the bound of an output of 0
};
/// The right side above, with the judge's own rounding: FP32 in sums(), which adds to the d of a product one
/// rounding of 2^-24 (of sum_i c_i w_ik, whose signs are random: as large as its norm), and FP64 in k
/// products. `relative`: r.
double checksum_limit(const ChecksumSizes& sizes, double relative, int roundings,
                      const Arithmetic& arithmetic, int64_t k);

}  // namespace greta
