// Weights and products on a device: packing loses nothing, operands are rounded as published, products lie
// within their bound and have the same bits for any number of rows.
#include <gtest/gtest.h>

#include <memory>

#include "backend/gpu/kernels/orders.h"
#include "gpu/kernel_support.h"

namespace greta::gpu::kernel_test {
namespace {

/// y rows of a product of the call's rows.
struct Call {
  std::vector<float> x;
  int64_t rows = 1;
  std::vector<float> bias = {};
  std::vector<int32_t> x_rows = {};  ///< with it, `rows` of y
  std::vector<int32_t> y_rows = {};
  bool tiled = false;  ///< rounded as the warpgroups' kernel wants it
};

class Matmul : public testing::TestWithParam<std::string> {
 protected:
  Machine machine{GetParam()};

  /// [rows, outputs]; rows that nobody wrote are NaN with a payload of their own.
  std::vector<float> product(const Packed& weight, const Call& call) {
    const int64_t in = weight.matrix().cols;
    const int64_t outputs = weight.matrix().rows;
    const Rounded x(machine, call.x, static_cast<int64_t>(call.x.size()) / in, call.tiled);
    const Array<float> bias(machine, call.bias);
    const Array<int32_t> x_rows(machine, call.x_rows);
    const Array<int32_t> y_rows(machine, call.y_rows);
    int64_t rows_of_y = call.rows;
    for (const int32_t row : call.y_rows) rows_of_y = std::max<int64_t>(rows_of_y, row + 1);
    const Array<float> y(machine, rows_of_y * outputs, kUnwritten);
    MatmulCall product;
    product.products[0] = {weight.matrix(), call.bias.empty() ? nullptr : bias.data(), y.data()};
    product.rows = call.rows;
    product.x = x.rows_of();
    product.x_rows = call.x_rows.empty() ? nullptr : x_rows.data();
    product.y_rows = call.y_rows.empty() ? nullptr : y_rows.data();
    machine.kernels().matmul(machine, product);
    return y.read();
  }

  static inline const float kUnwritten = std::bit_cast<float>(0x7fc0abcdu);
};

std::vector<float> row_of(const std::vector<float>& all, int64_t row, int64_t width) {
  return {all.begin() + row * width, all.begin() + (row + 1) * width};
}

// ---- packing

/// Every row comes back as `expected` has it, -0 as 0, and has the scale that follows.
void expect_rows(const Packed& packed, const std::vector<float>& expected, bool as_stored,
                 const std::string& what) {
  const int64_t rows = packed.matrix().rows;
  const int64_t cols = packed.matrix().cols;
  const std::vector<float> scale = packed.row_scale();
  for (int64_t r = 0; r < static_cast<int64_t>(scale.size()); ++r) {
    const int e = r < rows && !as_stored ? row_exponent(row_of(expected, r, cols)) : 0;
    ASSERT_EQ(scale[static_cast<size_t>(r)], std::ldexp(1.0f, -e)) << what << " row " << r;
  }
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> row = packed.row(r), file = row_of(expected, r, cols);
    for (float& v : row) v += 0.0f;
    for (float& v : file) v += 0.0f;
    const int64_t at = first_difference(row, file);
    ASSERT_EQ(at, -1) << what << " row " << r << ": " << row[static_cast<size_t>(at)] << ", in the file "
                      << file[static_cast<size_t>(at)];
  }
}

TEST_P(Matmul, PackingLosesNothing) {
  for (const Type type : kernel_types()) {
    for (const int64_t cols :
         {int64_t{256}, quant::traits(type).block == 256 ? int64_t{768} : int64_t{608}}) {
      const HostMatrix m = random_matrix(type, 37, cols, 1);
      expect_rows(Packed(machine, m, type), m.values(), type == Type::F16 || sums_codes(type), name_of(type));
    }
  }
}

TEST_P(Matmul, PackingAMatrixInPiecesGivesTheSameBytes) {
  for (const Type type : {Type::Q4_K, Type::F16, Type::Q5_0}) {
    const HostMatrix m = random_matrix(type, 41, 512, 2);
    const Packed whole(machine, m, type);
    const Packed first(machine, m.part(0, 32), type);
    const Packed rest(machine, m.part(32, 9), type);
    std::vector<std::byte> joined = first.data();
    const std::vector<std::byte> tail = rest.data();
    joined.insert(joined.end(), tail.begin(), tail.end());
    EXPECT_EQ(joined, whole.data()) << name_of(type);
  }
}

/// Scales that are zero, negative, subnormal, the largest, infinite or NaN.
TEST_P(Matmul, PackingKeepsUnusualScales) {
  const float unusual[] = {0.0f, -0.0f, 0x1p-24f, -0x1.8p-23f, 65504.0f, -65504.0f, kInf, -kInf, kNan};
  for (const Type type : kernel_types()) {
    const HalfFields fields = half_fields(type);
    if (fields.scale < 0) continue;
    const auto bytes = static_cast<size_t>(quant::traits(type).bytes);
    HostMatrix m = random_matrix(type, 81, 256, 3);
    for (size_t r = 0; r < 81; ++r) {
      const size_t block = r * static_cast<size_t>(m.row_bytes());
      for (size_t b = 0; b < static_cast<size_t>(m.row_bytes()) / bytes; ++b) {
        put_half(m, block + b * bytes + static_cast<size_t>(fields.scale), unusual[r % 9]);
        if (fields.minimum >= 0)
          put_half(m, block + b * bytes + static_cast<size_t>(fields.minimum), unusual[r / 9]);
      }
    }
    // An infinite d or dmin makes NaN of its super-block, and that is told; but for types whose sums are of
    // codes.
    std::vector<float> expected = m.values();
    uint64_t lost = 0;
    const bool loses = quant::traits(type).block == 256 && !sums_codes(type);
    for (size_t i = 0; i < expected.size() && loses; ++i) {
      const size_t r = i / 256;
      if (!std::isinf(unusual[r % 9]) && (fields.minimum < 0 || !std::isinf(unusual[r / 9]))) continue;
      expected[i] = kNan;
      ++lost;
    }
    const Packed packed(machine, m, type);
    expect_rows(packed, expected, sums_codes(type), name_of(type));
    EXPECT_EQ(packed.inexact(), lost) << name_of(type);
  }
}

/// d lies in the tile as f16 behind the row's power of two: exact for every d of a row whose weights stay
/// below 2^15, however far apart they are; past that what is lost is told; of a block of zeros d may be
/// anything.
TEST_P(Matmul, ScalesOfARowMayBeFarApart) {
  for (const Type type : {Type::Q4_0, Type::Q5_0, Type::Q8_0}) {
    const HalfFields fields = half_fields(type);
    const auto bytes = static_cast<size_t>(quant::traits(type).bytes);
    HostMatrix m = random_matrix(type, 3, 96, 6);
    const auto put = [&](size_t row, size_t block, float d) {
      put_half(
          m, row * static_cast<size_t>(m.row_bytes()) + block * bytes + static_cast<size_t>(fields.scale), d);
    };
    const float far[3][3] = {
        {0x1p-24f, 100.0f, 0x1.004p-14f}, {0x1.ffcp-13f, 60000.0f, 1.0f}, {1.0f, 60000.0f, -0x1p-20f}};
    for (size_t row = 0; row < 3; ++row)
      for (size_t block = 0; block < 3; ++block) put(row, block, far[row][block]);
    // Row 2, block 1: nothing but the code that means 0.
    auto* codes = m.bytes.data() + 2 * static_cast<size_t>(m.row_bytes()) + bytes +
                  static_cast<size_t>(fields.scale) + 2;
    std::memset(codes, type == Type::Q8_0 ? 0 : type == Type::Q4_0 ? 0x88 : 0x00, bytes - 2);
    if (type == Type::Q5_0) std::memset(codes, 0xff, 4);  // the fifth bits
    const Packed packed(machine, m, type);
    for (const int64_t row : {0, 2})
      EXPECT_EQ(first_difference(packed.row(row), row_of(m.values(), row, 96)), -1) << name_of(type) << row;
    EXPECT_EQ(packed.inexact(), 32u) << name_of(type);  // row 1, block 0
  }
}

TEST_P(Matmul, Bf16BecomesF16BehindAScale) {
  HostMatrix m = random_matrix(Type::BF16, 19, 80, 4);
  const auto put = [&](int64_t row, int64_t k, float w) {
    const uint16_t bits = f32_to_bf16(w);
    std::memcpy(m.bytes.data() + 2 * (row * m.cols + k), &bits, 2);
  };
  for (int64_t k = 0; k < 80; ++k) {
    put(1, k, 0.0f);
    put(2, k, std::ldexp(1.5f, static_cast<int>(k) - 40));  // far more than f16 holds
    put(3, k, std::ldexp(-1.25f, -130));                    // FP32 subnormal
    put(4, k, std::ldexp(1.75f, 127 - static_cast<int>(k)));
    put(5, k, k == 7 ? kInf : 3.0f);
    put(6, k, k == 7 ? kNan : 3.0f);
  }
  const Packed packed(machine, m, Type::F16);
  const std::vector<float> values = m.values();
  std::vector<float> rounded = values;
  unsigned long long inexact = 0;
  for (int64_t r = 0; r < m.rows; ++r) {
    const int e = row_exponent(row_of(values, r, 80));
    for (int64_t k = 0; k < 80; ++k) {
      float& w = rounded[static_cast<size_t>(r * 80 + k)];
      w = std::ldexp(f16_to_f32(f32_to_f16(std::ldexp(w, e))), -e);
      if (!same_value(w, values[static_cast<size_t>(r * 80 + k)])) ++inexact;
    }
    ASSERT_EQ(packed.row_scale()[static_cast<size_t>(r)], std::ldexp(1.0f, -e)) << r;
    ASSERT_EQ(first_difference(packed.row(r), row_of(rounded, r, 80)), -1) << r;
  }
  EXPECT_EQ(packed.inexact(), inexact);
  EXPECT_GT(inexact, 20u);
  EXPECT_EQ(Packed(machine, random_matrix(Type::BF16, 16, 300, 5), Type::F16).inexact(), 0u);
}

TEST_P(Matmul, F32ModePacksDequantisedValues) {
  for (const Type type : {Type::Q4_1, Type::Q6_K, Type::F16, Type::BF16}) {
    const HostMatrix m = random_matrix(type, 17, 512, 6);
    expect_rows(Packed(machine, m, Type::F32), m.values(), false, name_of(type));
  }
}

/// Blocks of 32: d = amax / 127, q to nearest even, d stored as f16.
std::vector<float> int8_values(const std::vector<float>& w, int64_t cols) {
  std::vector<float> out(w.size());
  for (int64_t row = 0; row < static_cast<int64_t>(w.size()) / cols; ++row) {
    for (int64_t first = 0; first < cols; first += 32) {
      const auto count = static_cast<size_t>(std::min<int64_t>(32, cols - first));
      const std::span block(w.data() + row * cols + first, count);
      float amax = 0.0f;
      for (const float v : block) amax = std::max(amax, std::fabs(v));
      const float d = amax / 127.0f;
      const float inverse = std::isfinite(1.0f / d) ? 1.0f / d : 0.0f;
      const float stored = inverse == 0.0f ? 0.0f : f16_to_f32(f32_to_f16(d));
      for (size_t i = 0; i < count; ++i)
        out[static_cast<size_t>(row * cols + first) + i] =
            std::clamp(std::nearbyint(block[i] * inverse), -127.0f, 127.0f) * stored;
    }
  }
  return out;
}

TEST_P(Matmul, Int8ModeQuantisesDequantisedValues) {
  for (const Type type : {Type::F32, Type::F16, Type::BF16, Type::Q4_K, Type::Q8_0}) {
    const int64_t cols = quant::traits(type).block == 1 ? 300 : 512;
    HostMatrix m = random_matrix(type, 21, cols, 7);
    if (type == Type::F32) std::memset(m.bytes.data(), 0, 40 * 4);  // a block of zeros
    const std::vector<float> expected = int8_values(m.values(), cols);
    const Packed packed(machine, m, Type::Q8_0, true);
    for (int64_t r = 0; r < m.rows; ++r) {
      const std::vector<float> got = packed.row(r);
      for (int64_t k = 0; k < cols; ++k)  // -0 is 0
        ASSERT_EQ(got[static_cast<size_t>(k)], expected[static_cast<size_t>(r * cols + k)])
            << name_of(type) << " " << r << " " << k;
    }
  }
}

// ---- as in the file

TEST_P(Matmul, DequantisesEveryType) {
  for (const auto& t : quant::all_types()) {
    const HostMatrix m = random_matrix(t.type, 3, t.block == 1 ? 333 : 512, 8);
    const Array<std::byte> file(machine, m.bytes);
    const Array<float> out(machine, m.rows * m.cols, -1.0f);
    machine.kernels().dequantize(machine, {t.type, file.data(), m.rows * m.cols, out.data()});
    EXPECT_EQ(first_difference(out.read(), m.values()), -1) << t.name;
  }
}

TEST_P(Matmul, EmbedsRowsOfEveryType) {
  const std::vector<int32_t> tokens = {4, 0, 8, 4};
  const Array<int32_t> ids(machine, tokens);
  for (const auto& t : quant::all_types()) {
    const HostMatrix m = random_matrix(t.type, 9, t.block == 1 ? 333 : 512, 9);
    const std::vector<float> values = m.values();
    const Array<std::byte> file(machine, m.bytes);
    const Array<float> out(machine, 4 * m.cols, -1.0f);
    EmbedCall call{};
    call.batch.rows = 4;
    call.batch.tokens = ids.data();
    call.type = t.type;
    call.table = file.data();
    call.row_bytes = m.row_bytes();
    call.scale = 1.7f;
    call.out = out.data();
    call.width = m.cols;
    machine.kernels().embed(machine, call);
    const std::vector<float> got = out.read();
    for (size_t r = 0; r < tokens.size(); ++r) {
      std::vector<float> expected = row_of(values, tokens[r], m.cols);
      for (float& v : expected) v *= 1.7f;
      EXPECT_EQ(first_difference(row_of(got, static_cast<int64_t>(r), m.cols), expected), -1) << t.name;
    }
  }
}

// ---- activations

/// A row's sums of 32 in two f16, 2^-5 of them and 2^6 of what that leaves: five additions in FP32 and a
/// second f16 off what the rounded elements say.
void expect_sums(const std::vector<uint16_t>& sums, const std::vector<uint16_t>& data, int64_t row,
                 int64_t stride) {
  for (int64_t block = 0; block < stride / kSumOf; ++block) {
    double sum = 0.0, magnitude = 0.0;
    for (int64_t k = block * kSumOf; k < (block + 1) * kSumOf; ++k) {
      const double x = f16_to_f32(data[static_cast<size_t>(row * stride + k)]);
      sum += x;
      magnitude += std::fabs(x);
    }
    const auto at = static_cast<size_t>(sums_elements(row * stride) + block / 8 * kSumsOfChunk + block % 8);
    const double got = 32.0 * f16_to_f32(sums[at]) + f16_to_f32(sums[at + 8]) / 64.0;
    ASSERT_TRUE(rows_test::near(got, sum, 5 * 0x1p-24 * magnitude + 0x1p-23 * std::fabs(sum)))
        << row << " " << block;
  }
}

TEST_P(Matmul, RoundsActivationsAsPublished) {
  for (const int64_t width : {33, 80, 256, 576, 1500}) {
    constexpr int64_t kRows = 9;
    std::vector<float> x = rows_test::random_rows(kRows * width, 10);
    const auto row = [&](int64_t r) {
      return std::span(x).subspan(static_cast<size_t>(r * width), static_cast<size_t>(width));
    };
    for (float& v : row(1)) v = 0.0f;
    for (float& v : row(2)) v *= 1e30f;
    for (float& v : row(3)) v *= 1e-30f;
    for (float& v : row(4)) v *= 1e-42f;
    row(5)[5] = kNan;
    row(6)[6] = -kInf;
    row(7)[7] = -std::ldexp(1.0f, 15);
    row(8)[8] = std::numeric_limits<float>::max();
    const Rounded rounded(machine, x, kRows);
    const std::vector<uint16_t> data = rounded.data(), sums = rounded.sums();
    const int64_t stride = multiple_of(width, kChunkK);
    for (int64_t r = 0; r < kRows; ++r) {
      const int e = row_exponent(row(r));
      ASSERT_EQ(rounded.scale()[static_cast<size_t>(r)], std::ldexp(1.0f, -e)) << width << " " << r;
      const std::vector<double> expected = rounded_row(row(r), e);
      for (int64_t k = 0; k < stride; ++k) {
        const float got = f16_to_f32(data[static_cast<size_t>(r * stride + k)]);
        ASSERT_TRUE(same_value(got, k < width ? static_cast<float>(expected[static_cast<size_t>(k)]) : 0.0f))
            << width << " " << r << " " << k << " " << got;
      }
      if (r != 5 && r != 6) expect_sums(sums, data, r, stride);
    }
  }
}

// ---- products

/// The matrix's values without its minima.
std::vector<float> without_minima(HostMatrix m) {
  const auto bytes = static_cast<size_t>(quant::traits(m.type).bytes);
  for (size_t block = 0; block < m.bytes.size(); block += bytes)
    put_half(m, block + static_cast<size_t>(half_fields(m.type).minimum), 0.0f);
  return m.values();
}

/// Every element of y against FP64 on the same rounded operands: gamma_d(2^-23) of the sum of the terms'
/// magnitudes, d = 256 + 16 (F32: twice that) + chunks + 2, and the bias' rounding. Where sums are of codes
/// (orders.h) weights are not rounded, minima are terms of their own, and d is 3 more (FP32 values here, d S
/// - dmin M there).
void expect_product(const HostMatrix& m, Type kernel_type, const Call& call, const std::vector<float>& y,
                    const std::string& what) {
  const std::vector<float> w = m.values();
  const double chunks = static_cast<double>(multiple_of(m.cols, kChunkK) / kChunkK);
  const bool two = kernel_type == Type::F32;
  const bool codes = sums_codes(kernel_type);
  const std::vector<float> products = codes ? without_minima(m) : w;
  const double d = (two ? 2.0 : 1.0) * (256 + 16) + chunks + (codes ? 5 : 2);
  std::vector<std::vector<double>> x;
  for (int64_t r = 0; r < static_cast<int64_t>(call.x.size()) / m.cols; ++r) {
    const std::vector<float> row = row_of(call.x, r, m.cols);
    const int e = row_exponent(row);
    x.push_back(rounded_row(row, e));
    for (double& v : x.back()) v = std::ldexp(v, -e);
  }
  for (int64_t o = 0; o < m.rows; ++o) {
    const std::vector<float> row = row_of(w, o, m.cols);
    const int e = codes || (kernel_type == Type::F16 && m.type == Type::F16) ? 0 : row_exponent(row);
    const std::vector<double> operand =
        codes ? std::vector<double>(row.begin(), row.end()) : operand_row(row, e, two);
    for (int64_t r = 0; r < call.rows; ++r) {
      const auto& in = x[static_cast<size_t>(call.x_rows.empty() ? r : call.x_rows[static_cast<size_t>(r)])];
      double sum = 0.0;
      double terms = 0.0;
      for (size_t k = 0; k < operand.size(); ++k) {
        sum += std::ldexp(operand[k], -e) * in[k];
        terms += std::fabs(std::ldexp(operand[k], -e) * in[k]);
        if (!codes) continue;
        const double product = products[static_cast<size_t>(o * m.cols) + k];
        terms +=
            (std::fabs(product) + std::fabs(operand[k] - product) - std::fabs(operand[k])) * std::fabs(in[k]);
      }
      const double bias = call.bias.empty() ? 0.0 : call.bias[static_cast<size_t>(o)];
      const int64_t to = call.y_rows.empty() ? r : call.y_rows[static_cast<size_t>(r)];
      const double bound = rows_test::gamma(d, 0x1p-23) * terms + 0x1p-24 * std::fabs(sum + bias) + 0x1p-148;
      const float got = y[static_cast<size_t>(to * m.rows + o)];
      if (!std::isfinite(sum + bias)) {
        ASSERT_FALSE(std::isfinite(got)) << what << " row " << r << " output " << o;
        // Two operands may be an infinity less another, and a code may be 0 where its weight is not.
        if (!std::isnan(sum) && !two && !codes)
          ASSERT_EQ(got, sum + bias) << what << " row " << r << " output " << o;
      } else {
        ASSERT_TRUE(rows_test::near(got, sum + bias, bound)) << what << " row " << r << " output " << o;
      }
    }
  }
}

struct Shape {
  int64_t outputs, cols;
};

TEST_P(Matmul, ProductsLieWithinTheirBound) {
  for (const Type type : kernel_types()) {
    const bool super = quant::traits(type).block == 256;
    const std::vector<Shape> shapes = super ? std::vector<Shape>{{37, 1536}, {16, 256}}
                                            : std::vector<Shape>{{37, 576}, {16, 32}, {33, 1312}};
    for (const Shape& shape : shapes) {
      const HostMatrix m = random_matrix(type, shape.outputs, shape.cols, 11);
      const Packed packed(machine, m, type);
      for (const int64_t rows : {1, 40, 70}) {
        const Call call{rows_test::random_rows(rows * shape.cols, 12), rows};
        expect_product(m, type, call, product(packed, call),
                       name_of(type) + " x " + std::to_string(rows) + " x " + std::to_string(shape.cols));
      }
    }
  }
}

TEST_P(Matmul, ProductsOfOddShapes) {
  for (const Type type : {Type::F16, Type::F32}) {
    for (const Shape& shape : {Shape{1, 1}, Shape{5, 80}, Shape{17, 333}, Shape{150, 257}, Shape{16, 2080}}) {
      const HostMatrix m = random_matrix(type, shape.outputs, shape.cols, 13);
      const Packed packed(machine, m, type);
      for (const int64_t rows : {2, 67}) {
        Call call{rows_test::random_rows(rows * shape.cols, 14), rows};
        call.bias = rows_test::random_rows(shape.outputs, 15);
        expect_product(m, type, call, product(packed, call),
                       name_of(type) + " x " + std::to_string(shape.cols));
      }
    }
  }
}

TEST_P(Matmul, ProductsInEveryWeightMode) {
  struct Mode {
    Type source, kernel;
    bool int8;
  };
  for (const Mode& mode : {Mode{Type::BF16, Type::F16, false}, Mode{Type::Q5_1, Type::F32, false},
                           Mode{Type::F32, Type::Q8_0, true}}) {
    const HostMatrix source = random_matrix(mode.source, 35, 352, 16);
    const Packed packed(machine, source, mode.kernel, mode.int8);
    HostMatrix m{Type::F32, source.rows, source.cols, {}};
    m.bytes.resize(static_cast<size_t>(m.rows * m.row_bytes()));
    for (int64_t r = 0; r < m.rows; ++r) {
      const std::vector<float> row = packed.row(r);
      std::memcpy(m.bytes.data() + r * m.row_bytes(), row.data(), static_cast<size_t>(m.row_bytes()));
    }
    for (const int64_t rows : {3, 66}) {
      const Call call{rows_test::random_rows(rows * m.cols, 17), rows};
      expect_product(m, mode.kernel, call, product(packed, call), name_of(mode.source));
    }
  }
}

/// More chunks than a block has waves: each wave takes several.
TEST_P(Matmul, ProductsOfLongRows) {
  for (const Type type : kernel_types()) {
    const HostMatrix m =
        random_matrix(type, 16, 256 * 18 + (quant::traits(type).block == 256 ? 256 : 96), 18);
    const Packed packed(machine, m, type);
    const std::vector<float> x = rows_test::random_rows(70 * m.cols, 19);
    const std::vector<float> many = product(packed, {x, 70});
    for (const int64_t rows : {1, 20}) {
      const Call call{x, rows};
      const std::vector<float> y = product(packed, call);
      expect_product(m, type, call, y, name_of(type));
      ASSERT_EQ(first_difference(y, std::span(many).first(y.size())), -1) << name_of(type) << " x " << rows;
    }
  }
}

/// Chunks' sums pass through shared memory in several rounds.
TEST_P(Matmul, ProductsOfVeryLongRows) {
  const HostMatrix m = random_matrix(Type::Q4_0, 16, 256 * 70 + 32, 18);
  const Packed packed(machine, m, Type::Q4_0);
  const std::vector<float> x = rows_test::random_rows(33 * m.cols, 19);
  const std::vector<float> many = product(packed, {x, 33});
  for (const int64_t rows : {1, 20, 32}) {
    const Call call{x, rows};
    const std::vector<float> y = product(packed, call);
    if (rows == 20) expect_product(m, Type::Q4_0, call, y, "Q4_0");
    EXPECT_EQ(first_difference(y, std::span(many).first(y.size())), -1) << rows;
  }
}

/// q, k and v in one call: each as if alone.
TEST_P(Matmul, SeveralProductsInOneCall) {
  const int64_t outputs[] = {40, 16, 33};
  for (const Type type : {Type::Q4_K, Type::F16}) {
    std::vector<std::unique_ptr<Packed>> weights;
    for (const int64_t count : outputs)
      weights.push_back(std::make_unique<Packed>(
          machine, random_matrix(type, count, 512, static_cast<uint32_t>(count)), type));
    const Array<float> bias(machine, rows_test::random_rows(33, 34));
    for (const int64_t rows : {1, 12, 67}) {
      const std::vector<float> x = rows_test::random_rows(rows * 512, 35);
      const Rounded rounded(machine, x, rows);
      std::vector<std::unique_ptr<Array<float>>> y;
      for (const int64_t count : outputs)
        y.push_back(std::make_unique<Array<float>>(machine, rows * count, kUnwritten));
      MatmulCall call;
      call.products[0] = {weights[0]->matrix(), nullptr, y[0]->data()};
      call.products[1] = {weights[1]->matrix(), nullptr, y[1]->data()};
      call.products[2] = {weights[2]->matrix(), bias.data(), y[2]->data()};
      call.count = 3;
      call.rows = rows;
      call.x = rounded.rows_of();
      machine.kernels().matmul(machine, call);
      for (size_t i = 0; i < 3; ++i) {
        Call alone{x, rows};
        if (i == 2) alone.bias = bias.read();
        EXPECT_EQ(first_difference(y[i]->read(), product(*weights[i], alone)), -1)
            << name_of(type) << " " << i;
      }
    }
  }
}

/// What a product takes into itself, beside the operators apart: the same bits.
class Fused : public Matmul {
 protected:
  static constexpr int64_t kOutputs = 40;
  /// y of a call with one or two products.
  std::vector<float> run(MatmulCall call, const std::vector<const Packed*>& weights, int64_t rows,
                         const std::vector<float>& residual = {}) {
    const auto outputs = static_cast<size_t>(rows * weights[0]->matrix().rows);
    const Array<float> y(machine, residual.empty() ? std::vector<float>(outputs) : residual);
    call.rows = rows;
    call.count = static_cast<int>(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) call.products[i] = {weights[i]->matrix(), nullptr, y.data()};
    if (!residual.empty()) call.residual = y.data();  // in place
    machine.kernels().matmul(machine, call);
    return y.read();
  }
};

TEST_P(Fused, RowsRoundedAndNormedByTheProduct) {
  for (const Type type : {Type::Q4_K, Type::F16, Type::F32, Type::Q6_K})
    for (const int64_t cols : {int64_t{512}, int64_t{2048}, int64_t{11008}}) {
      const Packed packed(machine, random_matrix(type, kOutputs, cols, 50), type);
      for (const int64_t rows : {1, 2, 5}) {
        if (!machine.kernels().rounds_itself(machine, rows, cols, false, kOutputs)) continue;
        std::vector<float> x = rows_test::random_rows(rows * cols, 51);
        std::fill_n(x.begin(), rows > 1 ? cols : 0, 0.0f);  // a row of zeros
        const Array<float> from(machine, x), weight(machine, rows_test::random_rows(cols, 52)),
            normed(machine, rows * cols, 0.0f), apart(machine, rows * cols, 0.0f);
        MatmulCall call;
        call.own.x = from.data();
        EXPECT_EQ(first_difference(run(call, {&packed}, rows), product(packed, {x, rows})), -1)
            << name_of(type) << " " << cols << " x " << rows;
        if (!machine.kernels().rounds_itself(machine, rows, cols, true, kOutputs)) continue;
        call.own = {from.data(), weight.data(), 1e-5f, normed.data()};
        machine.kernels().rmsnorm(machine, {from.data(), weight.data(), 1e-5f, rows, cols, apart.data()});
        EXPECT_EQ(first_difference(run(call, {&packed}, rows), product(packed, {apart.read(), rows})), -1)
            << name_of(type) << " normed " << cols << " x " << rows;
        EXPECT_EQ(first_difference(normed.read(), apart.read()), -1);
      }
    }
  const auto rounds = [&](int64_t rows, int64_t cols, bool norm, int64_t outputs) {
    return machine.kernels().rounds_itself(machine, rows, cols, norm, outputs);
  };
  EXPECT_TRUE(rounds(1, 8192, true, kOutputs));
  EXPECT_TRUE(rounds(1, 11008, false, kOutputs));
  EXPECT_FALSE(rounds(1, 128, true, kOutputs));
  EXPECT_FALSE(rounds(17, 512, false, kOutputs));
  EXPECT_FALSE(rounds(1, 4096, false, int64_t{1} << 24));  // more sums than shared memory holds
}

TEST_P(Fused, ResidualAndGlu) {
  for (const Type type : {Type::Q4_K, Type::F16})
    for (const int64_t cols : {int64_t{512}, int64_t{4096}}) {
      const Packed gate(machine, random_matrix(type, kOutputs, cols, 53), type);
      const Packed up(machine, random_matrix(type, kOutputs, cols, 54), type);
      for (const int64_t rows : {1, 7, 12, 20, 67}) {
        const std::vector<float> x = rows_test::random_rows(rows * cols, 55);
        const std::vector<float> residual = rows_test::random_rows(rows * kOutputs, 56);
        const Rounded rounded(machine, x, rows, machine.kernels().wants_tiles(machine, rows));
        MatmulCall call;
        call.x = rounded.rows_of();
        const Array<float> g(machine, product(gate, {x, rows})), u(machine, product(up, {x, rows})),
            old(machine, residual), out(machine, rows * kOutputs, 0.0f);
        machine.kernels().add(machine, {old.data(), g.data(), rows * kOutputs, out.data()});
        // Rows rounded in memory, and by the product's own blocks.
        const Array<float> from(machine, x);
        const bool itself = machine.kernels().rounds_itself(machine, rows, cols, false, 2 * kOutputs);
        EXPECT_TRUE(itself || rows * cols > 4096) << cols << " x " << rows;
        const auto expect = [&](const std::vector<const Packed*>& weights, const std::vector<float>& before,
                                const char* what) {
          for (const bool own : {false, true}) {
            if (own && !itself) continue;
            call.own.x = own ? from.data() : nullptr;
            EXPECT_EQ(first_difference(run(call, weights, rows, before), out.read()), -1)
                << name_of(type) << " " << what << " " << cols << " x " << rows << (own ? " own" : "");
          }
          call.own.x = nullptr;
        };
        expect({&gate}, residual, "residual");
        for (const Glu glu : {Glu::silu, Glu::gelu}) {
          call.rows = rows;
          call.count = 2;
          call.products[0].weight = gate.matrix();
          call.products[1].weight = up.matrix();
          call.glu = Glu::none;
          if (!machine.kernels().fuses_glu(call)) continue;
          machine.kernels().glu(machine, {glu, g.data(), u.data(), rows, kOutputs, out.data()});
          call.glu = glu;
          expect({&gate, &up}, {}, "glu");
        }
        EXPECT_TRUE(rows > 8 || machine.kernels().fuses_glu(call)) << cols;
      }
    }
}

/// The product's whole point.
TEST_P(Matmul, RowsHaveTheSameBitsInAnyCompany) {
  constexpr int64_t kMost = 130;
  for (const Type type : kernel_types()) {
    const int64_t cols = quant::traits(type).block == 256 ? 768 : 608;
    const HostMatrix m = random_matrix(type, 37, cols, 20);
    const Packed packed(machine, m, type);
    const std::vector<float> x = rows_test::random_rows(kMost * cols, 21);
    const std::vector<float> all = product(packed, {x, kMost});
    const auto kernels = machine.ran();
    EXPECT_EQ(kernels.count("matmul_many." + name_of(type)), 1u);
    if (machine.kernels().wants_tiles(machine, kMost)) {
      Call tiled{x, kMost};
      tiled.tiled = true;
      ASSERT_EQ(first_difference(product(packed, tiled), all), -1) << name_of(type) << ", tiled";
      EXPECT_EQ(machine.ran().count("matmul_warpgroup." + name_of(type)), 1u);
    }
    for (const int64_t rows : {1, 3, 8, 9, 33}) {
      // The last `rows` rows, so that each stands at another place than in the whole.
      const std::vector<float> part(x.end() - rows * cols, x.end());
      const std::vector<float> y = product(packed, {part, rows});
      ASSERT_EQ(first_difference(y, std::span(all).last(y.size())), -1) << name_of(type) << " x " << rows;
    }
    EXPECT_EQ(machine.ran().count("matmul_few." + name_of(type)), 1u);
    for (int64_t r = 0; r < kMost; r += 43)
      ASSERT_EQ(first_difference(product(packed, {row_of(x, r, cols), 1}), row_of(all, r, m.rows)), -1)
          << name_of(type) << " row " << r;
  }
}

/// A block's waves go from tile to tile wherever that falls.
TEST_P(Fused, RowsHaveTheSameBitsHoweverManyBlocksThereAre) {
  const Type type = Type::Q4_K;
  constexpr int64_t kCols = 7 * 256;
  const HostMatrix gate_m = random_matrix(type, 150, kCols, 57), up_m = random_matrix(type, 150, kCols, 58);
  const Packed gate(machine, gate_m, type), up(machine, up_m, type);
  for (const int64_t rows : {1, 8, 27}) {
    const std::vector<float> x = rows_test::random_rows(rows * kCols, 59);
    const Rounded rounded(machine, x, rows, machine.kernels().wants_tiles(machine, rows));
    MatmulCall call;
    call.x = rounded.rows_of();
    MatmulCall glu = call;
    glu.glu = Glu::silu;
    machine.multiprocessors = 1;
    const std::vector<float> single = run(call, {&gate}, rows), both = run(glu, {&gate, &up}, rows);
    for (const int blocks : {2, 7}) {
      machine.multiprocessors = blocks;
      EXPECT_EQ(first_difference(run(call, {&gate}, rows), single), -1) << rows << ", " << blocks;
      EXPECT_EQ(first_difference(run(glu, {&gate, &up}, rows), both), -1) << rows << ", " << blocks;
    }
  }
}

TEST_P(Matmul, RowsAreTakenAndLeftWhereTheCallSays) {
  const HostMatrix m = random_matrix(Type::Q4_1, 40, 320, 22);
  const Packed packed(machine, m, Type::Q4_1);
  constexpr int64_t kX = 90;
  const std::vector<float> x = rows_test::random_rows(kX * m.cols, 23);
  const std::vector<float> all = product(packed, {x, kX});
  for (const int64_t rows : {1, 6, 71}) {
    Call call{x, rows};
    std::vector<bool> written(static_cast<size_t>(rows + 20), false);
    for (int32_t r = 0; r < rows; ++r) {
      call.x_rows.push_back((r * 37 + 5) % kX);
      call.y_rows.push_back(static_cast<int32_t>(rows) + 19 - r -
                            (r % 2 == 0 && r + 1 < rows ? 1
                             : r % 2 == 1               ? -1
                                                        : 0));
      written[static_cast<size_t>(call.y_rows.back())] = true;
    }
    const std::vector<float> y = product(packed, call);
    for (int64_t r = 0; r < rows; ++r)
      ASSERT_EQ(first_difference(row_of(y, call.y_rows[static_cast<size_t>(r)], m.rows),
                                 row_of(all, call.x_rows[static_cast<size_t>(r)], m.rows)),
                -1)
          << rows << " " << r;
    for (size_t r = 0; r < written.size() && r < y.size() / 40; ++r)
      if (!written[r])
        for (int64_t o = 0; o < m.rows; ++o)
          ASSERT_EQ(std::bit_cast<uint32_t>(y[r * 40 + static_cast<size_t>(o)]), 0x7fc0abcdu)
              << rows << " " << r;
  }
}

TEST_P(Matmul, BiasIsAddedLast) {
  const HostMatrix m = random_matrix(Type::Q8_0, 50, 288, 24);
  const Packed packed(machine, m, Type::Q8_0);
  for (const int64_t rows : {2, 65}) {
    Call call{rows_test::random_rows(rows * m.cols, 25), rows};
    const std::vector<float> bare = product(packed, call);
    call.bias = rows_test::random_rows(m.rows, 26);
    const std::vector<float> y = product(packed, call);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], bare[i] + call.bias[i % 50]) << rows;
  }
}

/// What is not finite stays so in its own row and column, and nowhere else.
TEST_P(Matmul, NanAndInfinityArePassedOnAndKeptApart) {
  for (const Type type : {Type::F16, Type::F32, Type::Q4_0, Type::Q4_K, Type::Q6_K}) {
    HostMatrix m = random_matrix(type, 36, 512, 27);
    const int at = std::max(half_fields(type).scale, 0);
    const size_t end = static_cast<size_t>(m.row_bytes() - quant::traits(type).bytes + at);
    for (const auto& [row, value] : {std::pair<size_t, float>{3, kNan}, {20, kInf}}) {
      if (type == Type::F32) {
        std::memcpy(m.bytes.data() + row * static_cast<size_t>(m.row_bytes()) + end, &value, 4);
      } else {
        put_half(m, row * static_cast<size_t>(m.row_bytes()) + end, value);
      }
    }
    const Packed packed(machine, m, type);
    for (const int64_t rows : {5, 68}) {
      Call call{rows_test::random_rows(rows * m.cols, 28), rows};
      call.x[static_cast<size_t>(1 * m.cols + 300)] = kNan;
      call.x[static_cast<size_t>(2 * m.cols + 10)] = kInf;
      const std::vector<float> y = product(packed, call);
      expect_product(m, type, call, y, name_of(type));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t o = 0; o < m.rows; ++o)
          ASSERT_EQ(std::isfinite(y[static_cast<size_t>(r * m.rows + o)]),
                    r != 1 && r != 2 && o != 3 && o != 20)
              << name_of(type) << " row " << r << " output " << o;
    }
  }
}

/// Far outside of f16's range, and on both ends of FP32's.
TEST_P(Matmul, MagnitudesAreHeldByScales) {
  const HostMatrix m = random_matrix(Type::F32, 20, 300, 29);
  for (const float weight : {1e-25f, 1.0f, 1e25f}) {
    HostMatrix scaled = m;
    for (int64_t i = 0; i < m.rows * m.cols; ++i) {
      float w;
      std::memcpy(&w, m.bytes.data() + 4 * i, 4);
      w *= weight;
      std::memcpy(scaled.bytes.data() + 4 * i, &w, 4);
    }
    const Packed packed(machine, scaled, Type::F32);
    for (const float size : {1e-10f, 1e10f}) {
      const Call call{rows_test::random_rows(4 * m.cols, 30, size), 4};
      expect_product(scaled, Type::F32, call, product(packed, call), std::to_string(weight));
    }
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Matmul);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Fused);
INSTANTIATE_TEST_SUITE_P(Devices, Matmul, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);
INSTANTIATE_TEST_SUITE_P(Devices, Fused, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

}  // namespace
}  // namespace greta::gpu::kernel_test
