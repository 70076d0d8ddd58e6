#pragma once
// Rows as a run left them, kept for the judge: FP32 of the fast backends, FP64 of the reference and of
// traces.
#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "backend/backend.h"
#include "bisect/verdict.h"

namespace greta {

/// [rows, width] in one precision, exact.
class StoredRows {
 public:
  StoredRows() = default;
  StoredRows(int64_t width, bool wide) : width_(width), wide_(wide) {}

  int64_t width() const { return width_; }
  int64_t rows() const { return rows_; }
  bool wide() const { return wide_; }
  /// Held, not only used: a vector that doubles would take twice what it is asked for.
  size_t bytes() const { return narrow_.capacity() * sizeof(float) + double_.capacity() * sizeof(double); }
  /// Room for `more` rows, with little to spare.
  void make_room(int64_t more) {
    const auto grow = [&](auto& values) {
      const size_t needed = values.size() + static_cast<size_t>(more * width_);
      if (needed > values.capacity())
        values.reserve(std::max(needed, values.capacity() + values.capacity() / 8));
    };
    wide_ ? grow(double_) : grow(narrow_);
  }
  /// Appends a row, [width].
  void append(const double* row) {
    if (wide_) {
      double_.insert(double_.end(), row, row + width_);
    } else {
      for (int64_t i = 0; i < width_; ++i) narrow_.push_back(static_cast<float>(row[i]));
    }
    ++rows_;
  }
  void get(int64_t row, double* out) const {
    const auto at = static_cast<size_t>(row * width_);
    for (size_t i = 0; i < static_cast<size_t>(width_); ++i)
      out[i] = wide_ ? double_[at + i] : double{narrow_[at + i]};
  }
  double at(int64_t row, int64_t i) const {
    const auto k = static_cast<size_t>(row * width_ + i);
    return wide_ ? double_[k] : double{narrow_[k]};
  }
  void clear() {
    rows_ = 0;
    narrow_ = {};
    double_ = {};
  }

 private:
  int64_t width_ = 0;
  int64_t rows_ = 0;
  bool wide_ = false;
  std::vector<float> narrow_;
  std::vector<double> double_;
};

/// One forward call: which token, of which sequence, at which position in each row, and the rows that got
/// logits.
struct CallShape {
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;
  std::vector<int32_t> sequences;
  std::vector<int32_t> picked;
  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

/// Everything that some calls left of one unit (wiring.h), call after call.
struct UnitRows {
  int unit = 0;
  std::vector<int64_t> calls;  ///< indices into the run's calls
  std::map<Stage, StoredRows> stages;
  size_t bytes() const {
    size_t sum = 0;
    for (const auto& [stage, rows] : stages) sum += rows.bytes();
    return sum;
  }
};

/// A row of a unit: who it is.
struct RowName {
  int32_t sequence = 0;
  int32_t position = 0;
  int32_t token = 0;
};

/// What the cache holds, as its producers left it: keys and values of one sequence, [positions, kv_dim].
struct KvHistory {
  StoredRows keys;
  StoredRows values;
};
/// Of one layer, by sequence.
using LayerHistory = std::map<int32_t, KvHistory>;

}  // namespace greta
