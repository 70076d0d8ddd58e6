#pragma once
// What the tests of weights and products on a device share: packed weights, and the published rounding of
// operands in the judge's own words.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "base/half.h"
#include "gpu/rows_support.h"
#include "kernels/random_inputs.h"
#include "quant/types.h"

namespace greta::gpu::kernel_test {

using quant::Type;
using rows_test::Array;
using rows_test::Machine;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline int64_t multiple_of(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// ---- the published rounding

/// e of a row: the largest finite magnitude times 2^e lies in [2^14, 2^15).
inline int row_exponent(std::span<const float> row) {
  float amax = 0.0f;
  for (const float w : row)
    if (std::fabs(w) > amax) amax = std::fabs(w);  // false for NaN
  if (amax == 0.0f || std::isinf(amax)) return 0;
  return std::clamp(14 - std::ilogb(amax), -113, 126);
}

/// f16(x 2^e), as numbers.
inline std::vector<double> rounded_row(std::span<const float> row, int e) {
  std::vector<double> out;
  for (const float w : row) out.push_back(f16_to_f32(f32_to_f16(std::ldexp(w, e))));
  return out;
}

/// What stands for a weight row: the sum of one f16 or two.
inline std::vector<double> operand_row(std::span<const float> row, int e, bool two) {
  std::vector<double> out = rounded_row(row, e);
  if (two)
    for (size_t i = 0; i < row.size(); ++i) {
      const float low = std::ldexp(row[i], e) - static_cast<float>(out[i]);
      out[i] += f16_to_f32(f32_to_f16(low));
    }
  return out;
}

// ---- on the device

/// A packed matrix.
class Packed {
 public:
  Packed(const Machine& machine, const HostMatrix& source, Type kernel_type, bool int8 = false)
      : machine_(machine),
        data_(machine,
              static_cast<int64_t>(machine.kernels().packed_bytes(kernel_type, source.rows, source.cols)),
              std::byte{0xee}),
        row_scale_(machine, multiple_of(source.rows, 16), -1.0f),
        matrix_{kernel_type, source.rows, source.cols, data_.data(), row_scale_.data()} {
    const Array<std::byte> file(machine, source.bytes);
    const Array<unsigned long long> inexact(machine, 1, 0);
    machine.kernels().pack(machine,
                           {source.type, file.data(), source.row_bytes(), matrix_, int8, inexact.data()});
    inexact_ = inexact.read()[0];
  }

  const PackedMatrix& matrix() const { return matrix_; }
  std::vector<float> row_scale() const { return row_scale_.read(); }
  unsigned long long inexact() const { return inexact_; }
  std::vector<std::byte> data() const { return data_.read(); }
  std::vector<float> row(int64_t row) const {
    const Array<float> out(machine_, matrix_.cols, -1.0f);
    machine_.kernels().unpack(machine_, {matrix_, row, out.data()});
    return out.read();
  }

 private:
  const Machine& machine_;
  Array<std::byte> data_;
  Array<float> row_scale_;
  PackedMatrix matrix_;
  unsigned long long inexact_ = 0;
};

/// Activations, rounded on the device. `tiled`: as the warpgroups' kernel wants them.
class Rounded {
 public:
  Rounded(const Machine& machine, const std::vector<float>& x, int64_t rows, bool tiled = false)
      : width_(static_cast<int64_t>(x.size()) / rows),
        tiled_rows_(tiled ? multiple_of(rows, kTiledRows) : 0),
        held_(std::max(rows, tiled_rows_)),
        data_(machine, data_size(), uint16_t{0x7e00}),
        scale_(machine, rows, -1.0f),
        sums_(machine, sums_elements(data_size()), uint16_t{0x7e00}) {
    const Array<float> from(machine, x);
    machine.kernels().round(machine, {from.data(), rows, width_, rows_of()});
  }
  RoundedRows rows_of() const {
    return {data_.data(), scale_.data(), multiple_of(width_, kChunkK), tiled_rows_, sums_.data()};
  }
  std::vector<uint16_t> data() const { return data_.read(); }
  std::vector<float> scale() const { return scale_.read(); }
  std::vector<uint16_t> sums() const { return sums_.read(); }

 private:
  int64_t data_size() const { return held_ * multiple_of(width_, kChunkK); }

  int64_t width_;
  int64_t tiled_rows_;
  int64_t held_;
  Array<uint16_t> data_;
  Array<float> scale_;
  Array<uint16_t> sums_;
};

/// The same value, NaN for NaN.
inline bool same_value(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}
/// The first index at which they differ, -1: nowhere.
inline int64_t first_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return static_cast<int64_t>(std::min(a.size(), b.size()));
  for (size_t i = 0; i < a.size(); ++i)
    if (!same_value(a[i], b[i])) return static_cast<int64_t>(i);
  return -1;
}

}  // namespace greta::gpu::kernel_test
