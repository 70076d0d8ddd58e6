#include <algorithm>

#include "base/checked.h"
#include "kernels/product.h"

namespace greta::gpu::lab {
namespace {

/// What the kernels see of a file's type.
quant::Type kernel_type(quant::Type file_type) {
  return kernel_type_of(WeightUse::matmul, file_type, WeightMode::stored);
}

/// The sign of one element of the packed matrix is another, or the highest bit of a code.
void change_one(const Lab& lab, std::byte* packed) {
  std::byte byte = lab.read(packed + 3, 1)[0] ^ std::byte{0x80};
  lab.device().upload(packed + 3, &byte, 1);
}

}  // namespace

PackedCopies::PackedCopies(const Lab& lab, quant::Type file_type, int64_t outputs, int64_t cols)
    : file_(lab, file_type, outputs, cols) {
  const Kernels& kernels = lab.kernels();
  const auto bytes = static_cast<int64_t>(kernels.packed_bytes(kernel_type(file_type), outputs, cols));
  stride_ = ceil_div(bytes, int64_t{256}) * 256;
  copies_ = lab.copies_of(bytes);
  memory_ = lab.room(stride_ * copies_);
  row_scale_ = lab.room(ceil_div(outputs, int64_t{16}) * 16 * 4);
  matrix_ = {kernel_type(file_type), outputs, cols, memory_.data(), row_scale_.data<float>()};
  const DeviceMemory inexact = lab.room(sizeof(unsigned long long));
  kernels.pack(lab, {file_type, file_.on_device(), file_.row_bytes(), matrix_, false,
                     inexact.data<unsigned long long>()});
  if (lab.planted()) change_one(lab, memory_.data());
  lab.repeat(memory_, bytes, stride_, copies_);
  lab.device().synchronize();  // a product may read its weights before the kernels ahead of it have ended
}

Product::Product(const Lab& lab, const PackedCopies& weight, const Activations& x, int64_t tokens)
    : weight_(weight),
      x_(x),
      tokens_(tokens),
      rounded_(lab, tokens, weight.file().cols()),
      y_(lab.room(tokens * weight.file().rows() * 4)) {
  lab.kernels().round(lab, {x.on_device(), tokens, weight.file().cols(), rounded_.rows()});
}

MatmulCall Product::call(int64_t launch) const {
  MatmulCall call;
  call.products[0] = {weight_.at(launch), nullptr, y_.data<float>()};
  call.rows = tokens_;
  call.x = rounded_.rows();
  return call;
}

int Product::roundings(const Lab& lab) const {
  return lab.arithmetic().matmul(weight_.file().type(), weight_.file().cols()).roundings;
}

void Product::check(Lab& lab, int roundings, Check& check) const {
  const FileMatrix& file = weight_.file();
  const GpuArithmetic& arithmetic = lab.arithmetic();
  const WeightForm form(WeightMode::stored, arithmetic.matmul(file.type(), file.cols()).weight);
  const std::vector<int64_t> outputs = lab.sample(file.rows(), 40);
  std::vector<JudgedWeight> weights;
  weights.reserve(outputs.size());
  for (const int64_t output : outputs)
    weights.push_back(judged_weight(file.source(), output % FileMatrix::kPeriod, form));
  for (const int64_t token : lab.sample(tokens_, 6)) {
    const std::vector<double> operand = x_.operand(token);
    const std::vector<double> y = lab.read_row(y_.data<float>(), token, file.rows());
    Judged judged{std::vector<double>(outputs.size()), std::vector<double>(outputs.size())};
    std::vector<double> got;
    for (size_t i = 0; i < outputs.size(); ++i) {
      judge_product(weights[i], operand, 0.0, roundings, judged.value[i], judged.certain[i],
                    arithmetic.sum_unit);
      got.push_back(y[static_cast<size_t>(outputs[i])]);
    }
    check.add(judged, got);
  }
}

Work Product::work() const {
  const FileMatrix& file = weight_.file();
  const auto tokens = static_cast<double>(tokens_), outputs = static_cast<double>(file.rows()),
             cols = static_cast<double>(file.cols());
  const double operands = file.type() == quant::Type::F32 ? 2.0 : 1.0;
  return {static_cast<double>(file.rows() * file.row_bytes()) + tokens * (2.0 * cols + 4.0 * outputs),
          operands * tokens * outputs * cols};
}

void run_matmul(Lab& lab) {
  struct Shape {
    int64_t outputs, cols;
  };
  // Llama-2-7B's widest two: gate and up in one, down.
  const std::vector<Shape> shapes =
      lab.quick() ? std::vector<Shape>{{40, 512}} : std::vector<Shape>{{22016, 4096}, {4096, 11008}};
  const std::vector<int64_t> token_counts =
      lab.quick() ? std::vector<int64_t>{1, 9, 70} : std::vector<int64_t>{1, 8, 16, 64, 512, 2048};
  for (const Shape& shape : shapes) {
    const Activations x(lab, token_counts.back(), shape.cols);
    for (const auto& type : quant::all_types()) {
      const PackedCopies weight(lab, type.type, shape.outputs, shape.cols);
      for (const int64_t tokens : token_counts) {
        const Product product(lab, weight, x, tokens);
        lab.measure({fmt::format("matmul {}", type.name),
                     fmt::format("{} x {}, {} tokens", shape.outputs, shape.cols, tokens), product.work(),
                     weight.copies(),
                     [&](int64_t launch) { lab.kernels().matmul(lab, product.call(launch)); },
                     [&](Check& check) { product.check(lab, product.roundings(lab), check); }});
      }
    }
  }
}

}  // namespace greta::gpu::lab
