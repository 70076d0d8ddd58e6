#include <cmath>

#include "backend/gpu/pass_data.h"
#include "base/checked.h"
#include "kernels/cache.h"

namespace greta::gpu::lab {
namespace {

struct Shape {
  int heads, kv_heads, head_dim;
  int64_t sequences;
  int64_t context;  ///< positions of each sequence, the call's own rows the last of them
  int64_t rows;     ///< of each sequence
};

std::string text_of(const Shape& s) {
  const std::string what = s.rows == 1 ? fmt::format("decode, {} x {}", s.sequences, s.context)
                                       : fmt::format("prefill {} to {}", s.rows, s.context);
  return fmt::format("{}, {}/{} heads of {}", what, s.heads, s.kv_heads, s.head_dim);
}

/// Keys and values once, q and the output; a product of each query with each key that it sees, and of each
/// weight with its value.
Work work_of(const Shape& s) {
  const auto rows = static_cast<double>(s.rows), sequences = static_cast<double>(s.sequences);
  const double row_bytes = 2.0 * s.kv_heads * s.head_dim * 2.0;
  const double seen = rows * (static_cast<double>(s.context) - (rows - 1.0) / 2.0);
  return {sequences * (static_cast<double>(s.context) * row_bytes + rows * 2.0 * s.heads * s.head_dim * 4.0),
          sequences * seen * s.heads * 2.0 * s.head_dim};
}

class Attention {
 public:
  Attention(const Lab& lab, const Shape& shape)
      : shape_(shape),
        batch_(shape.sequences, shape.context - shape.rows, shape.rows),
        cache_(lab, {shape.kv_heads, shape.head_dim, shape.sequences, shape.context}, true),
        data_(lab.device()),
        width_(int64_t{shape.heads} * shape.head_dim),
        q_(normal_rows(batch_.view().rows * width_)),
        on_q_(lab.input(q_, false)),
        out_(lab.room(batch_.view().rows * width_ * 4)),
        arrivals_(lab.room(kMostArrivals * 4)) {
    const std::vector<uint32_t> none(kMostArrivals, 0);
    lab.device().upload(arrivals_.data(), none.data(), arrivals_.bytes());
    const Kernels& kernels = lab.kernels();
    const int64_t tile_rows =
        kernels.attention_tile_rows(shape.heads, shape.kv_heads, shape.head_dim, batch_.view().rows);
    const KvLayer layer = cache_.layer();
    data_.put(batch_.view(), {}, {&layer, 1}, tile_rows);
    partial_ = lab.room(4 * kernels.attention_scratch_floats(batch_.view().rows, shape.heads, shape.head_dim,
                                                             data_.splits()));
  }

  int64_t copies() const { return cache_.copies(); }
  AttentionCall call(int64_t launch) const {
    AttentionCall call{};
    call.batch = data_.batch();
    call.heads = shape_.heads;
    call.scale = scale();
    call.q = on_q_.at(0);
    call.cache = cache_.at(launch, data_);
    call.out = out_.data<float>();
    call.tiles = data_.tiles();
    call.tile_count = data_.tile_count();
    call.tile_rows = data_.tile_rows();
    call.splits = data_.splits();
    call.partial = partial_.bytes() > 0 ? partial_.data<float>() : nullptr;
    call.arrivals = arrivals_.data<uint32_t>();
    return call;
  }

  /// Sampled heads of sampled rows.
  void check(Lab& lab, Check& check) const {
    const GpuArithmetic& arithmetic = lab.arithmetic();
    const int hd = shape_.head_dim;
    for (const int64_t row : lab.sample(batch_.view().rows, 3)) {
      const std::vector<double> out = lab.read_row(out_.data<float>(), row, width_);
      const int64_t keys = batch_.view().positions[row] + 1;
      for (const int64_t head : lab.sample(shape_.heads, 2)) {
        const auto kv_head = static_cast<int>(head / (shape_.heads / shape_.kv_heads));
        const auto q = q_.begin() + row * width_ + head * hd;
        const auto got = out.begin() + head * hd;
        const int64_t sequence = batch_.view().sequences[row];
        const Judged judged = judge_attention(
            std::vector<double>(q, q + hd), cache_.keys(sequence, keys, kv_head),
            cache_.values(sequence, keys, kv_head), scale(), 0.0, arithmetic.score_roundings(hd),
            arithmetic.value_roundings(keys, ceil_div(keys, kKvPage)), arithmetic);
        check.add(judged, std::vector<double>(got, got + hd));
      }
    }
  }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  Shape shape_;
  Batch batch_;
  Cache cache_;
  PassData data_;
  int64_t width_;
  std::vector<float> q_;
  Input<float> on_q_;
  DeviceMemory out_, arrivals_, partial_;
};

}  // namespace

void run_attention(Lab& lab) {
  // Llama-2-7B's heads, and eight queries to a key as larger models have them.
  std::vector<Shape> shapes{{32, 32, 128, 1, 512, 1},   {32, 32, 128, 1, 4096, 1},
                            {32, 32, 128, 16, 1024, 1}, {32, 4, 128, 1, 4096, 1},
                            {32, 4, 128, 1, 32768, 1},  {32, 4, 128, 64, 1024, 1},
                            {32, 32, 128, 1, 512, 512}, {32, 32, 128, 1, 2048, 2048},
                            {32, 4, 128, 1, 8192, 512}, {32, 4, 128, 1, 2048, 2048}};
  if (lab.quick()) shapes = {{2, 1, 64, 2, 130, 1}, {2, 2, 64, 1, 100, 40}};
  for (const Shape& shape : shapes) {
    const Attention attention(lab, shape);
    lab.measure({"attention", text_of(shape), work_of(shape), attention.copies(),
                 [&](int64_t launch) { lab.kernels().attention(lab, attention.call(launch)); },
                 [&](Check& check) { attention.check(lab, check); }});
  }
}

}  // namespace greta::gpu::lab
