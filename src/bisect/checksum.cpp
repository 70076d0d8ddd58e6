#include "bisect/checksum.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "bisect/bounds.h"
#include "model/tensor_plan.h"
#include "trace/row_hash.h"

namespace greta {

double multiply_adds(const Plan& plan, int64_t rows) {
  double weights = 0.0;
  for (const PlannedTensor& t : plan.tensors)
    if (t.use == WeightUse::matmul || t.use == WeightUse::experts) {
      const WeightSource source = source_of(t);
      const double met = source.experts > 1
                             ? static_cast<double>(plan.hp.experts_used) / static_cast<double>(source.experts)
                             : 1.0;
      weights += met * static_cast<double>(source.rows) * static_cast<double>(source.cols);
    }
  return weights * static_cast<double>(rows);
}

uint64_t weight_seed(uint64_t seed, int unit, Role role) {
  return mix64(mix64(seed) + static_cast<uint64_t>(unit) * 256 + static_cast<uint64_t>(role));
}

std::vector<int64_t> sampled_outputs(int64_t outputs, uint64_t seed) {
  std::vector<int64_t> places;
  for (int64_t first = 0; first < outputs; first += kSampleGroup) {
    const auto group = static_cast<uint64_t>(std::min(kSampleGroup, outputs - first));
    places.push_back(first + static_cast<int64_t>(mix64(seed + static_cast<uint64_t>(first)) % group));
  }
  return places;
}

OwnMatrix::OwnMatrix(int64_t height, int64_t width) : values_(static_cast<size_t>(height * width)) {
  rows = height;
  cols = width;
}

void OwnMatrix::read_back(int64_t first, int64_t count, float* out) const {
  std::copy_n(values_.data() + first * cols, count * cols, out);
}

float rounded_up(double bound) {
  const auto near = static_cast<float>(bound);
  return double{near} < bound ? std::nextafter(near, std::numeric_limits<float>::infinity()) : near;
}

Checksums::Checksums(const WeightSource& source, const WeightForm& form, uint64_t seed, ThreadPool& pool)
    : coefficients_(static_cast<size_t>(source.rows)),
      sums_(ceil_div(source.rows, kChecksumGroup), source.cols),
      norms_(sums_.rows, ceil_div(source.cols, kNormBlock)) {
  for (size_t i = 0; i < coefficients_.size(); ++i) {
    const uint64_t bits = mix64(mix64(seed) + i);
    const float magnitude = 1.0f + static_cast<float>(bits >> 41) * 0x1p-23f;  // 23 bits
    coefficients_[i] = (bits & 1) != 0 ? -magnitude : magnitude;
  }
  pool.parallel_for(groups(), 1, [&](int64_t begin, int64_t last, int) {
    for (int64_t group = begin; group < last; ++group) fill(source, form, group);
  });
}

int64_t Checksums::end(int64_t group) const {
  return std::min(static_cast<int64_t>(coefficients_.size()), (group + 1) * kChecksumGroup);
}

void Checksums::fill(const WeightSource& source, const WeightForm& form, int64_t group) {
  const auto k = static_cast<size_t>(source.cols);
  std::vector<float> values(k), magnitudes(k);
  std::vector<double> sum(k, 0.0), squares(static_cast<size_t>(norms_.cols), 0.0);
  for (int64_t i = first(group); i < end(group); ++i) {
    judged_row(source, i, form, values.data());
    judged_magnitudes(source, i, form, values, magnitudes);
    const double c = coefficient(i);
    for (size_t j = 0; j < k; ++j) {
      sum[j] += c * double{values[j]};
      const double m = c * double{magnitudes[j]};
      squares[j / static_cast<size_t>(kNormBlock)] += m * m;
    }
  }
  for (size_t j = 0; j < k; ++j) sums_.row(group)[j] = static_cast<float>(sum[j]);
  for (size_t b = 0; b < squares.size(); ++b)
    norms_.row(group)[b] = rounded_up(std::sqrt(squares[b]) * (1 + 0x1p-40));
}

double checksum_limit(const ChecksumSizes& sizes, double relative, int roundings,
                      const Arithmetic& arithmetic, int64_t k) {
  const double d = roundings + 1.0;
  const double of_each = d * arithmetic.sum_unit * arithmetic.sum_unit;
  const double products = (arithmetic.sums_truncate ? d * of_each : of_each) + 0x1p-48;
  const double variance = products * sizes.magnitude * sizes.magnitude +
                          relative * relative * sizes.values * sizes.values +
                          sizes.constants * sizes.constants;
  // Sums of magnitudes are at most sqrt(64) times the roots of sums of squares.
  const double root = std::sqrt(static_cast<double>(kChecksumGroup));
  const double own = gamma(static_cast<double>(k + 2 * kChecksumGroup), 0x1p-53) * root;
  return kLambda * std::sqrt(variance) + own * (sizes.magnitude + sizes.values);
}

}  // namespace greta
