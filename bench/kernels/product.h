#pragma once
// A product on the device and its judge: what the table of kernels and that of the price share.
#include "kernels/lab.h"

namespace greta::gpu::lab {

/// A packed matrix of random file blocks, as many copies as no cache holds.
class PackedCopies {
 public:
  PackedCopies(const Lab& lab, quant::Type file_type, int64_t outputs, int64_t cols);
  const FileMatrix& file() const { return file_; }
  int64_t copies() const { return copies_; }
  PackedMatrix at(int64_t launch) const {
    PackedMatrix one = matrix_;
    one.data += launch % copies_ * stride_;
    return one;
  }

 private:
  FileMatrix file_;
  DeviceMemory memory_, row_scale_;
  PackedMatrix matrix_;
  int64_t stride_ = 0;  ///< bytes
  int64_t copies_ = 1;
};

/// Activations of the most tokens that a shape is tried with.
class Activations {
 public:
  Activations(const Lab& lab, int64_t tokens, int64_t width)
      : width_(width), values_(random_rows(tokens * width, 3)), memory_(lab.room(tokens * width * 4)) {
    lab.device().upload(memory_.data(), values_.data(), values_.size() * sizeof(float));
  }
  const float* on_device() const { return memory_.data<float>(); }
  /// As the matrix unit sees it.
  std::vector<double> operand(int64_t token) const {
    const auto at = values_.begin() + token * width_;
    const std::vector<double> x(at, at + width_);
    return rounded_operand(x, OperandRounding::f16_row);
  }

 private:
  int64_t width_;
  std::vector<float> values_;
  DeviceMemory memory_;
};

/// y = W x for the first `tokens` rows of x.
class Product {
 public:
  Product(const Lab& lab, const PackedCopies& weight, const Activations& x, int64_t tokens);
  /// As the engine calls it, with copy `launch` of the matrix.
  MatmulCall call(int64_t launch) const;
  /// y as it is now, sampled outputs of sampled tokens. `roundings` of a product on its way into a sum.
  void check(Lab& lab, int roundings, Check& check) const;
  /// Of the one order.
  int roundings(const Lab& lab) const;
  /// The matrix as the file has it, once; x in 16 bits, y in FP32. F32 weights are two operands each.
  Work work() const;

 private:
  const PackedCopies& weight_;
  const Activations& x_;
  int64_t tokens_;
  RoundedRoom rounded_;
  DeviceMemory y_;
};

}  // namespace greta::gpu::lab
