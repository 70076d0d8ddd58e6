// The kernels that work on rows alone. With few rows their inputs stay in the cache, as in a pass; with many
// they come from memory.
#include <cmath>

#include "kernels/cache.h"

namespace greta::gpu::lab {
namespace {

constexpr size_t kRowsChecked = 4;
constexpr float kEps = 1e-5f;

/// Rows of a call and their width.
struct Shape {
  int64_t rows, width;
  std::string text() const { return fmt::format("{} x {}", rows, width); }
  int64_t count() const { return rows * width; }
  double bytes(double of_an_element) const { return static_cast<double>(count()) * of_an_element; }
};

std::vector<Shape> shapes_of(const Lab& lab, int64_t width) {
  if (lab.quick()) return {{3, 320}, {70, 512}};
  return {{1, width}, {16, width}, {2048, width}};
}

std::vector<double> row_of(const std::vector<float>& all, int64_t row, int64_t width) {
  const auto at = all.begin() + row * width;
  return {at, at + width};
}

constexpr double kFloat = 4.0, kHalf = 2.0;

/// Normed and rounded, in one call.
void rounded_rmsnorm(Lab& lab, const Shape& shape) {
  const std::vector<float> x = random_rows(shape.count(), 1), weight = random_rows(shape.width, 3);
  const Input<float> on_x = lab.input(x), on_weight = lab.input(weight, false);
  const DeviceMemory out = lab.room(shape.count() * 4);
  const RoundedRoom rounded(lab, shape.rows, shape.width);
  const auto launch = [&](int64_t i) {
    RmsnormCall call{on_x.at(i), on_weight.at(0), kEps, shape.rows, shape.width, out.data<float>()};
    call.rounded = rounded.rows();
    lab.kernels().rmsnorm(lab, call);
  };
  const auto judge = [&](Check& check) {
    for (const int64_t row : lab.sample(shape.rows, kRowsChecked)) {
      const std::vector<double> normed = lab.read_row(out.data<float>(), row, shape.width);
      check.add(judge_rmsnorm(row_of(x, row, shape.width), weight, kEps,
                              lab.arithmetic().rmsnorm_roundings(shape.width)),
                normed);
      rounded.check(lab, row, normed, check);
    }
  };
  lab.measure(
      {"rmsnorm to f16", shape.text(), {shape.bytes(2 * kFloat + kHalf), 0.0}, on_x.copies, launch, judge});
}

void plain_rmsnorm(Lab& lab, const Shape& shape) {
  const std::vector<float> x = random_rows(shape.count(), 1), weight = random_rows(shape.width, 3);
  const Input<float> on_x = lab.input(x), on_weight = lab.input(weight, false);
  const DeviceMemory out = lab.room(shape.count() * 4);
  const auto launch = [&](int64_t i) {
    lab.kernels().rmsnorm(lab,
                          {on_x.at(i), on_weight.at(0), kEps, shape.rows, shape.width, out.data<float>()});
  };
  const auto judge = [&](Check& check) {
    for (const int64_t row : lab.sample(shape.rows, kRowsChecked))
      check.add(judge_rmsnorm(row_of(x, row, shape.width), weight, kEps,
                              lab.arithmetic().rmsnorm_roundings(shape.width)),
                lab.read_row(out.data<float>(), row, shape.width));
  };
  lab.measure({"rmsnorm", shape.text(), {shape.bytes(2 * kFloat), 0.0}, on_x.copies, launch, judge});
}

/// Llama's rotation of whole heads.
RopeSpec rope_spec(int head_dim) {
  RopeSpec spec;
  spec.dims = head_dim;
  for (int i = 0; i < head_dim / 2; ++i) spec.inv_freq.push_back(std::pow(10000.0, -2.0 * i / head_dim));
  return spec;
}

struct RopeShape {
  int heads, kv_heads, head_dim;
  int64_t first, rows;  ///< positions of one sequence
  int64_t q_width() const { return int64_t{heads} * head_dim; }
  int64_t kv_width() const { return int64_t{kv_heads} * head_dim; }
};

class Rope {
 public:
  Rope(const Lab& lab, const RopeShape& shape)
      : shape_(shape),
        spec_(rope_spec(shape.head_dim)),
        batch_(1, shape.first, shape.rows),
        cache_(lab, {shape.kv_heads, shape.head_dim, 1, shape.first + shape.rows}, false),
        data_(lab.device()),
        q_(random_rows(shape.rows * shape.q_width(), 1)),
        k_(random_rows(shape.rows * shape.kv_width(), 2)),
        v_(random_rows(shape.rows * shape.kv_width(), 3)),
        on_q_(lab.input(q_)),
        on_k_(lab.input(k_)),
        on_v_(lab.input(v_)),
        q_out_(lab.room(shape.rows * shape.q_width() * 4)),
        frequencies_(lab.room(static_cast<int64_t>(spec_.inv_freq.size() * sizeof(double)))) {
    const KvLayer layer = cache_.layer();
    data_.put(batch_.view(), {}, {&layer, 1}, 1);
    lab.device().upload(frequencies_.data(), spec_.inv_freq.data(), frequencies_.bytes());
  }

  int64_t copies() const { return on_q_.copies; }
  RopeCall call(int64_t launch) const {
    return {data_.batch(),        {false, spec_.dims, frequencies_.data<double>(), spec_.magnitude},
            shape_.heads,         on_q_.at(launch),
            on_k_.at(launch),     on_v_.at(launch),
            q_out_.data<float>(), cache_.at(0, data_)};
  }
  void check(Lab& lab, Check& check) const {
    const int hd = shape_.head_dim;
    const double u = lab.arithmetic().unit;
    const auto head_of = [&](const std::vector<float>& rows, int64_t row, int64_t width, int64_t head) {
      return row_of(rows, row * (width / hd) + head, hd);
    };
    for (const int64_t row : lab.sample(shape_.rows, kRowsChecked)) {
      const int64_t position = shape_.first + row;
      const std::vector<double> out = lab.read_row(q_out_.data<float>(), row, shape_.q_width());
      for (int64_t head = 0; head < shape_.heads; ++head)
        check.add(judge_rope(spec_, position, head_of(q_, row, shape_.q_width(), head), u),
                  std::vector<double>(out.begin() + head * hd, out.begin() + (head + 1) * hd));
      for (int head = 0; head < shape_.kv_heads; ++head) {
        Judged key = judge_rope(spec_, position, head_of(k_, row, shape_.kv_width(), head), u);
        add_cache_rounding(key, KvType::f16);
        check.add(key, cache_.stored(lab, false, 0, position, head));
        Judged value{head_of(v_, row, shape_.kv_width(), head), std::vector<double>(static_cast<size_t>(hd))};
        add_cache_rounding(value, KvType::f16);
        check.add(value, cache_.stored(lab, true, 0, position, head));
      }
    }
  }

 private:
  RopeShape shape_;
  RopeSpec spec_;
  Batch batch_;
  Cache cache_;
  PassData data_;
  std::vector<float> q_, k_, v_;
  Input<float> on_q_, on_k_, on_v_;
  DeviceMemory q_out_, frequencies_;
};

void measure_glu(Lab& lab, const Shape& shape) {
  const std::vector<float> gate = random_rows(shape.count(), 1), up = random_rows(shape.count(), 2);
  const Input<float> on_gate = lab.input(gate), on_up = lab.input(up);
  const DeviceMemory out = lab.room(shape.count() * 4);
  const RoundedRoom rounded(lab, shape.rows, shape.width);
  const auto launch = [&](int64_t i) {
    lab.kernels().glu(lab, {Glu::silu, on_gate.at(i), on_up.at(i), shape.rows, shape.width, out.data<float>(),
                            rounded.rows()});
  };
  const auto judge = [&](Check& check) {
    const GpuArithmetic& arithmetic = lab.arithmetic();
    for (const int64_t row : lab.sample(shape.rows, kRowsChecked)) {
      const std::vector<double> got = lab.read_row(out.data<float>(), row, shape.width);
      check.add(judge_glu(Activation::silu, row_of(gate, row, shape.width), row_of(up, row, shape.width),
                          arithmetic.activation_ulps, arithmetic.gelu_cancels, arithmetic.unit),
                got);
      rounded.check(lab, row, got, check);
    }
  };
  lab.measure(
      {"glu silu, f16", shape.text(), {shape.bytes(3 * kFloat + kHalf), 0.0}, on_gate.copies, launch, judge});
}

void measure_round(Lab& lab, const Shape& shape) {
  const std::vector<float> x = random_rows(shape.count(), 1);
  const Input<float> on_x = lab.input(x);
  const RoundedRoom rounded(lab, shape.rows, shape.width);
  const auto judge = [&](Check& check) {
    for (const int64_t row : lab.sample(shape.rows, kRowsChecked))
      rounded.check(lab, row, row_of(x, row, shape.width), check);
  };
  lab.measure({"round",
               shape.text(),
               {shape.bytes(kFloat + kHalf), 0.0},
               on_x.copies,
               [&](int64_t i) {
                 lab.kernels().round(lab, {on_x.at(i), shape.rows, shape.width, rounded.rows()});
               },
               judge});
}

/// A launch looks up other tokens than the one before.
void measure_embed(Lab& lab, const FileMatrix& table, int64_t rows) {
  const int64_t lists = lab.copies_of(rows * table.row_bytes());
  std::mt19937 random(1);
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(table.rows()) - 2);
  std::vector<int32_t> tokens(static_cast<size_t>(rows * lists));
  for (int32_t& token : tokens) token = any(random);
  const Input<int32_t> on_tokens = lab.input(tokens, false);
  const DeviceMemory out = lab.room(rows * table.cols() * 4);
  constexpr float kScale = 1.7f;
  const auto launch = [&](int64_t i) {
    EmbedCall call{};
    call.batch.rows = rows;
    call.batch.tokens = on_tokens.at(0) + i % lists * rows;
    call.type = table.type();
    call.table = table.on_device();
    call.row_bytes = table.row_bytes();
    call.scale = kScale;
    call.out = out.data<float>();
    call.width = table.cols();
    lab.kernels().embed(lab, call);
  };
  const auto judge = [&](Check& check) {
    for (const int64_t row : lab.sample(rows, kRowsChecked)) {
      Judged judged{
          judged_weight(table.source(), tokens[static_cast<size_t>(row)] % FileMatrix::kPeriod, {}).value,
          {}};
      for (double& v : judged.value) {
        v *= double{kScale};
        judged.certain.push_back(lab.arithmetic().unit * std::abs(v) + 0x1p-150);
      }
      check.add(judged, lab.read_row(out.data<float>(), row, table.cols()));
    }
  };
  const double bytes = static_cast<double>(rows * (table.row_bytes() + 4 * table.cols()));
  lab.measure({fmt::format("embed {}", name_of(table.type())),
               fmt::format("{} of {} x {}", rows, table.rows(), table.cols()),
               {bytes, 0.0},
               lists,
               launch,
               judge});
}

}  // namespace

void run_rmsnorm(Lab& lab) {
  for (const Shape& shape : shapes_of(lab, 4096)) {
    plain_rmsnorm(lab, shape);
    if (lab.kernels().rounds_with_norm(shape.width)) rounded_rmsnorm(lab, shape);
  }
}

void run_rope(Lab& lab) {
  std::vector<RopeShape> shapes{
      {32, 32, 128, 4000, 1}, {32, 4, 128, 4000, 1}, {32, 32, 128, 0, 2048}, {32, 4, 128, 0, 2048}};
  if (lab.quick()) shapes = {{4, 2, 64, 60, 9}};
  for (const RopeShape& s : shapes) {
    const Rope rope(lab, s);
    const auto rows = static_cast<double>(s.rows);
    // q in and out in FP32; k and v in FP32, out in f16.
    const double bytes = rows * (static_cast<double>(s.q_width()) * 2 * kFloat +
                                 static_cast<double>(s.kv_width()) * 2 * (kFloat + kHalf));
    lab.measure({"rope",
                 fmt::format("{} rows, {}/{} heads of {}", s.rows, s.heads, s.kv_heads, s.head_dim),
                 {bytes, 0.0},
                 rope.copies(),
                 [&](int64_t launch) { lab.kernels().rope(lab, rope.call(launch)); },
                 [&](Check& check) { rope.check(lab, check); }});
  }
}

void run_glu(Lab& lab) {
  for (const Shape& shape : shapes_of(lab, 11008)) measure_glu(lab, shape);
}

void run_round(Lab& lab) {
  for (const Shape& shape : shapes_of(lab, 4096)) measure_round(lab, shape);
}

void run_embed(Lab& lab) {
  for (const quant::Type type : {quant::Type::F16, quant::Type::Q4_K}) {
    const FileMatrix table(lab, type, lab.quick() ? 90 : 32000, lab.quick() ? 512 : 4096);
    for (const int64_t rows : lab.quick() ? std::vector<int64_t>{5} : std::vector<int64_t>{1, 2048})
      measure_embed(lab, table, rows);
  }
}

}  // namespace greta::gpu::lab
