#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"

namespace greta {
namespace {

double* row_of(const View& view, int64_t row) { return static_cast<double*>(view.data) + row * view.width; }

class HostBuffer : public Buffer {
 public:
  explicit HostBuffer(size_t bytes)
      : bytes_(bytes), memory_(std::calloc(std::max<size_t>(bytes, 1), 1), &std::free) {
    if (!memory_) fail("cannot allocate {} bytes of memory", bytes);
  }
  void* data() override { return memory_.get(); }
  size_t bytes() const override { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<void, decltype(&std::free)> memory_;
};

/// The file's own bytes, dequantised a row at a time when they are needed.
class FileWeight : public Weight {
 public:
  FileWeight(const WeightSource& source, WeightUse use_as) : bytes_(source.bytes) {
    name = source.name;
    use = use_as;
    file_type = source.type;
    resident = fmt::format("{} in place", quant::traits(source.type).name);
    rows = source.rows;
    cols = source.cols;
  }
  void read_back(int64_t row, float* out) const override {
    const auto& t = quant::traits(file_type);
    quant::dequantize(file_type, bytes_.data() + row * (cols / t.block) * t.bytes, cols, out);
  }

 private:
  std::span<const std::byte> bytes_;
};

std::vector<float> whole_vector(const Weight& weight) {
  std::vector<float> values(static_cast<size_t>(weight.cols));
  weight.read_back(0, values.data());
  return values;
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// Cache layout: a page is [kKvPage, kv_heads * head_dim] doubles, keys and values alike.
double* cache_row(void* pool, const KvLayer& cache, const BatchView& batch, int64_t sequence,
                  int64_t position) {
  const int64_t width = int64_t{cache.kv_heads} * cache.head_dim;
  const int64_t page = batch.pages[sequence * batch.page_stride + position / kKvPage];
  return static_cast<double*>(pool) + (page * kKvPage + position % kKvPage) * width;
}

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(const BackendOptions& options)
      : pool_(options.threads > 0 ? options.threads : usable_cpus()) {
    if (options.weights != WeightMode::stored)
      fail("the reference computes on the file's own weights: expected --weights stored");
    if (options.activations != Activations::bits16)
      fail("the reference rounds no activation: --activations 8 needs --device cpu");
  }

  std::string name() const override { return "reference"; }
  std::string description() const override {
    return fmt::format("reference (FP64 plain loops, FP64 cache, {} threads)", pool_.size());
  }
  size_t element_bytes() const override { return sizeof(double); }
  const Arithmetic& arithmetic() const override { return arithmetic_; }

  std::optional<std::string> refuses(WeightUse, quant::Type, int64_t, int64_t) const override {
    return std::nullopt;
  }
  uint64_t resident_bytes(WeightUse, quant::Type, int64_t, int64_t) const override { return 0; }
  uint64_t kv_page_bytes(int kv_heads, int head_dim) const override {
    return uint64_t{kKvPage} * static_cast<uint64_t>(kv_heads) * static_cast<uint64_t>(head_dim) *
           sizeof(double);
  }
  uint64_t scratch_bytes(int64_t rows, int64_t widest) const override {
    return static_cast<uint64_t>(rows + pool_.size() * (rows + 1)) * static_cast<uint64_t>(widest) *
           sizeof(double);
  }
  uint64_t available_bytes() const override { return available_memory(); }

  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<HostBuffer>(bytes); }
  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    return std::make_unique<FileWeight>(source, use);
  }

  void read(const View& view, int64_t first, int64_t count, float* out) const override {
    const double* from = row_of(view, first);
    for (int64_t i = 0; i < count * view.width; ++i) out[i] = static_cast<float>(from[i]);
  }
  void read(const View& view, int64_t first, int64_t count, double* out) const override {
    std::copy_n(row_of(view, first), count * view.width, out);
  }
  void write(const View& view, int64_t first, int64_t count, const double* in) override {
    std::copy_n(in, count * view.width, row_of(view, first));
  }
  void read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
               double* out) const override {
    const double* from = cache_row(part == KvPart::k ? cache.k : cache.v, cache, batch, batch.sequences[row],
                                   batch.positions[row]);
    std::copy_n(from, int64_t{cache.kv_heads} * cache.head_dim, out);
  }

  void write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                const double* in) override {
    std::copy_n(in, int64_t{cache.kv_heads} * cache.head_dim,
                cache_row(part == KvPart::k ? cache.k : cache.v, cache, batch, batch.sequences[row],
                          batch.positions[row]));
  }

  void embed(const EmbedArgs& a) override {
    ran("reference.embed");
    std::vector<float> values(static_cast<size_t>(a.table->cols));
    for (int64_t r = 0; r < a.batch->rows; ++r) {
      a.table->read_back(a.batch->tokens[r], values.data());
      double* out = row_of(a.out, r);
      for (size_t i = 0; i < values.size(); ++i) out[i] = double{values[i]} * a.scale;
    }
  }

  void rmsnorm(const RmsnormArgs& a) override {
    ran("reference.rmsnorm");
    const auto weight = whole_vector(*a.weight);
    pool_.parallel_for(a.rows, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const double* x = row_of(a.x, r);
        double* out = row_of(a.out, r);
        double squares = 0.0;
        for (int64_t i = 0; i < a.x.width; ++i) squares += x[i] * x[i];
        const double factor = 1.0 / std::sqrt(squares / static_cast<double>(a.x.width) + double{a.eps});
        for (int64_t i = 0; i < a.x.width; ++i)
          out[i] = x[i] * factor * double{weight[static_cast<size_t>(i)]};
      }
    });
  }

  void matmul(const MatmulArgs& a) override {
    ran("reference.matmul");
    // x transposed, [width, rows]: the inner loop runs over tokens, each with its own sum in ascending k.
    std::vector<double> transposed(static_cast<size_t>(a.rows * a.x.width));
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t k = 0; k < a.x.width; ++k)
        transposed[static_cast<size_t>(k * a.rows + r)] = row_of(a.x, r)[k];
    for (int i = 0; i < a.count; ++i) product(transposed, a.rows, a.outputs[static_cast<size_t>(i)]);
  }

  void product(const std::vector<double>& x, int64_t rows, const MatmulOutput& o) {
    const auto bias = o.bias == nullptr ? std::vector<float>() : whole_vector(*o.bias);
    const int64_t width = o.weight->cols;
    pool_.parallel_for(o.weight->rows, kTile, [&](int64_t begin, int64_t end, int) {
      std::vector<float> tile(static_cast<size_t>(kTile * width));  // [kTile, width]
      std::vector<double> sums(static_cast<size_t>(kTile * rows));  // [kTile, rows]
      for (int64_t n = begin; n < end; ++n) o.weight->read_back(n, tile.data() + (n - begin) * width);
      multiply_tile(tile.data(), x.data(), width, rows, sums.data());
      for (int64_t n = begin; n < end; ++n) {
        const double added = o.bias == nullptr ? 0.0 : double{bias[static_cast<size_t>(n)]};
        for (int64_t r = 0; r < rows; ++r)
          row_of(o.out, r)[n] = sums[static_cast<size_t>((n - begin) * rows + r)] + added;
      }
    });
  }

  static constexpr int64_t kTile = 8;  ///< output rows together: with few tokens they are the parallel sums

  /// sums[i, r] = sum over ascending k of tile[i, k] * x[k, r].
  static void multiply_tile(const float* tile, const double* x, int64_t width, int64_t rows, double* sums) {
    std::fill_n(sums, kTile * rows, 0.0);
    if (rows < 4) {
      for (int64_t r = 0; r < rows; ++r) {
        double s[kTile] = {};
        for (int64_t k = 0; k < width; ++k)
          for (int64_t i = 0; i < kTile; ++i) s[i] += double{tile[i * width + k]} * x[k * rows + r];
        for (int64_t i = 0; i < kTile; ++i) sums[i * rows + r] = s[i];
      }
      return;
    }
    for (int64_t i = 0; i < kTile; ++i)
      for (int64_t k = 0; k < width; ++k) {
        const double w = tile[i * width + k];
        for (int64_t r = 0; r < rows; ++r) sums[i * rows + r] += w * x[k * rows + r];
      }
  }

  void rope(const RopeArgs& a) override {
    ran("reference.rope");
    const int head_dim = a.cache.head_dim;
    for (int64_t r = 0; r < a.batch->rows; ++r) {
      const int64_t sequence = a.batch->sequences[r];
      const int64_t position = a.batch->positions[r];
      for (int h = 0; h < a.heads; ++h)
        rotate(*a.rope, position, head_dim, row_of(a.q, r) + h * head_dim, row_of(a.q_out, r) + h * head_dim);
      double* k_row = cache_row(a.cache.k, a.cache, *a.batch, sequence, position);
      for (int h = 0; h < a.cache.kv_heads; ++h)
        rotate(*a.rope, position, head_dim, row_of(a.k, r) + h * head_dim, k_row + h * head_dim);
      std::copy_n(row_of(a.v, r), int64_t{a.cache.kv_heads} * head_dim,
                  cache_row(a.cache.v, a.cache, *a.batch, sequence, position));
    }
  }

  static void rotate(const RopeSpec& rope, int64_t position, int head_dim, const double* in, double* out) {
    std::copy_n(in, head_dim, out);
    for (int i = 0; i < rope.dims / 2; ++i) {
      const double angle = static_cast<double>(position) * rope.inv_freq[static_cast<size_t>(i)];
      const double c = std::cos(angle) * rope.magnitude;
      const double s = std::sin(angle) * rope.magnitude;
      const int a = rope.style == RopeStyle::adjacent ? 2 * i : i;
      const int b = rope.style == RopeStyle::adjacent ? 2 * i + 1 : i + rope.dims / 2;
      out[a] = in[a] * c - in[b] * s;
      out[b] = in[a] * s + in[b] * c;
    }
  }

  void attention(const AttentionArgs& a) override {
    ran("reference.attention");
    const int head_dim = a.cache.head_dim;
    const int group = a.heads / a.cache.kv_heads;
    pool_.parallel_for(a.batch->rows * a.heads, 4, [&](int64_t begin, int64_t end, int) {
      std::vector<double> p;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t r = item / a.heads;
        const int64_t h = item % a.heads;
        const int64_t sequence = a.batch->sequences[r];
        const int64_t keys = a.batch->positions[r] + 1;
        const double* q = row_of(a.q, r) + h * head_dim;
        p.assign(static_cast<size_t>(keys), 0.0);
        for (int64_t j = 0; j < keys; ++j) {
          const double* k = cache_row(a.cache.k, a.cache, *a.batch, sequence, j) + h / group * head_dim;
          double dot = 0.0;
          for (int d = 0; d < head_dim; ++d) dot += q[d] * k[d];
          p[static_cast<size_t>(j)] = dot * a.scale;
        }
        double* out = row_of(a.out, r) + h * head_dim;
        softmax(p);
        std::fill_n(out, head_dim, 0.0);
        for (int64_t j = 0; j < keys; ++j) {
          const double* v = cache_row(a.cache.v, a.cache, *a.batch, sequence, j) + h / group * head_dim;
          for (int d = 0; d < head_dim; ++d) out[d] += p[static_cast<size_t>(j)] * v[d];
        }
      }
    });
  }

  static void softmax(std::vector<double>& scores) {
    double largest = -std::numeric_limits<double>::infinity();
    for (const double s : scores)
      largest = s > largest ? s : largest;  // a NaN shows in the exponentials below
    double sum = 0.0;
    for (double& s : scores) sum += s = std::exp(s - largest);
    for (double& s : scores) s /= sum;
  }

  void add(const AddArgs& a) override {
    ran("reference.add");
    for (int64_t i = 0; i < a.rows * a.a.width; ++i)
      row_of(a.out, 0)[i] = row_of(a.a, 0)[i] + row_of(a.b, 0)[i];
  }

  void glu(const GluArgs& a) override {
    ran("reference.glu");
    for (int64_t i = 0; i < a.rows * a.gate.width; ++i)
      row_of(a.out, 0)[i] = activate(a.activation, row_of(a.gate, 0)[i]) * row_of(a.up, 0)[i];
  }

  void gather(const GatherArgs& a) override {
    ran("reference.gather");
    for (size_t i = 0; i < a.rows.size(); ++i)
      std::copy_n(row_of(a.x, a.rows[i]), a.x.width, row_of(a.out, static_cast<int64_t>(i)));
  }

 private:
  ThreadPool pool_;
  PlainArithmetic arithmetic_{0x1p-53};
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace greta
