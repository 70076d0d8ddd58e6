#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "backend/reference/products.h"
#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"

namespace greta {
namespace {

using reference::kLanes;

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
      : pool_(options.threads > 0 ? options.threads : usable_cpus()),
        tiles_(static_cast<size_t>(pool_.size())) {
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
  uint64_t scratch_bytes(int64_t, int64_t widest) const override {
    return static_cast<uint64_t>(pool_.size() * kLanes * widest) * (sizeof(float) + sizeof(double));
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
    for (int i = 0; i < a.count; ++i) product(a.x, a.rows, a.outputs[static_cast<size_t>(i)]);
  }

  /// The lanes are kLanes outputs, the rows are tokens.
  void product(const View& x, int64_t rows, const MatmulOutput& o) {
    const auto bias = o.bias == nullptr ? std::vector<float>() : whole_vector(*o.bias);
    const int64_t width = o.weight->cols;
    const int64_t outputs = o.weight->rows;
    pool_.parallel_for((outputs + kLanes - 1) / kLanes, 1, [&](int64_t tile, int64_t, int worker) {
      const int64_t first = tile * kLanes;
      const int64_t count = std::min<int64_t>(kLanes, outputs - first);
      WeightTile& weights = tiles_[static_cast<size_t>(worker)];
      weights.read(*o.weight, first, count);
      std::array<double, kRowsTogether * kLanes> sums;  // [rows, kLanes]
      for (int64_t r = 0; r < rows; r += kRowsTogether) {
        const int64_t together = std::min(kRowsTogether, rows - r);
        sums.fill(0.0);
        add_products_({together, row_of(x, r), width, 1, width, weights.lanes.data(), sums.data()});
        for (int64_t i = 0; i < together; ++i)
          for (int64_t l = 0; l < count; ++l) {
            const double added = o.bias == nullptr ? 0.0 : double{bias[static_cast<size_t>(first + l)]};
            row_of(o.out, r + i)[first + l] = sums[static_cast<size_t>(i * kLanes + l)] + added;
          }
      }
    });
  }

  static constexpr int64_t kRowsTogether = 64;

  /// One worker's weights: kLanes rows as they are read, [kLanes, cols], and turned, [cols, kLanes].
  struct WeightTile {
    std::vector<float> rows;
    std::vector<double> lanes;

    /// Outputs first .. first + count; the lanes past `count` are zero.
    void read(const Weight& weight, int64_t first, int64_t count) {
      const auto cols = static_cast<size_t>(weight.cols);
      rows.resize(kLanes * cols);
      lanes.resize(cols * kLanes);
      for (int64_t l = 0; l < count; ++l) weight.read_back(first + l, rows.data() + l * weight.cols);
      std::fill(rows.begin() + count * weight.cols, rows.end(), 0.0F);
      for (size_t k = 0; k < cols; ++k)
        for (size_t l = 0; l < kLanes; ++l) lanes[k * kLanes + l] = rows[l * cols + k];
    }
  };

  void rope(const RopeArgs& a) override {
    ran("reference.rope");
    const int head_dim = a.cache.head_dim;
    pool_.parallel_for(a.batch->rows, 1, [&](int64_t r, int64_t, int) {
      const int64_t sequence = a.batch->sequences[r];
      const int64_t position = a.batch->positions[r];
      const auto turns = turns_at(*a.rope, position);
      for (int h = 0; h < a.heads; ++h)
        rotate(*a.rope, turns, head_dim, row_of(a.q, r) + h * head_dim, row_of(a.q_out, r) + h * head_dim);
      double* k_row = cache_row(a.cache.k, a.cache, *a.batch, sequence, position);
      for (int h = 0; h < a.cache.kv_heads; ++h)
        rotate(*a.rope, turns, head_dim, row_of(a.k, r) + h * head_dim, k_row + h * head_dim);
      std::copy_n(row_of(a.v, r), int64_t{a.cache.kv_heads} * head_dim,
                  cache_row(a.cache.v, a.cache, *a.batch, sequence, position));
    });
  }

  struct Turn {
    double cos, sin;
  };

  /// Of each pair, the same for every head of a row: [dims / 2].
  static std::vector<Turn> turns_at(const RopeSpec& rope, int64_t position) {
    std::vector<Turn> turns;
    for (int i = 0; i < rope.dims / 2; ++i) {
      const double angle = static_cast<double>(position) * rope.inv_freq[static_cast<size_t>(i)];
      turns.push_back({std::cos(angle) * rope.magnitude, std::sin(angle) * rope.magnitude});
    }
    return turns;
  }

  static void rotate(const RopeSpec& rope, const std::vector<Turn>& turns, int head_dim, const double* in,
                     double* out) {
    std::copy_n(in, head_dim, out);
    for (int i = 0; i < rope.dims / 2; ++i) {
      const auto [c, s] = turns[static_cast<size_t>(i)];
      const int a = rope.style == RopeStyle::adjacent ? 2 * i : i;
      const int b = rope.style == RopeStyle::adjacent ? 2 * i + 1 : i + rope.dims / 2;
      out[a] = in[a] * c - in[b] * s;
      out[b] = in[a] * s + in[b] * c;
    }
  }

  void attention(const AttentionArgs& a) override {
    ran("reference.attention");
    const auto blocks = query_blocks(a);
    pool_.parallel_for(static_cast<int64_t>(blocks.size()), 1,
                       [&](int64_t b, int64_t, int) { attend(a, blocks[static_cast<size_t>(b)]); });
  }

  /// A query: one head of one row.
  struct Query {
    int64_t row;
    int head;
    int64_t keys;  ///< that it sees: positions 0 .. keys - 1
  };
  /// Up to kLanes queries of one sequence that read one kv head.
  struct QueryBlock {
    int64_t sequence;
    int kv_head;
    std::vector<Query> queries;
  };

  static std::vector<QueryBlock> query_blocks(const AttentionArgs& a) {
    const int group = a.heads / a.cache.kv_heads;
    std::vector<QueryBlock> blocks;
    for (int kv_head = 0; kv_head < a.cache.kv_heads; ++kv_head) {
      bool open = false;
      for (int64_t r = 0; r < a.batch->rows; ++r) {
        const int64_t sequence = a.batch->sequences[r];
        for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          open = open && blocks.back().sequence == sequence && blocks.back().queries.size() < kLanes;
          if (!open) blocks.push_back({sequence, kv_head, {}});
          open = true;
          blocks.back().queries.push_back({r, h, int64_t{a.batch->positions[r]} + 1});
        }
      }
    }
    return blocks;
  }

  /// Queries are the lanes. A lane without a query is computed on zeros and dropped.
  void attend(const AttentionArgs& a, const QueryBlock& block) const {
    const auto head_dim = static_cast<size_t>(a.cache.head_dim);
    std::vector<double> q(head_dim * kLanes);  // [head_dim, kLanes]
    for (size_t l = 0; l < block.queries.size(); ++l) {
      const double* from = row_of(a.q, block.queries[l].row) + block.queries[l].head * a.cache.head_dim;
      for (size_t d = 0; d < head_dim; ++d) q[d * kLanes + l] = from[d];
    }
    auto p = scores(a, block, q);
    for (size_t l = 0; l < block.queries.size(); ++l) softmax(p.data() + l, block.queries[l].keys, a.scale);
    const auto sums = weighted_values(a, block, p);
    for (size_t l = 0; l < block.queries.size(); ++l) {
      double* out = row_of(a.out, block.queries[l].row) + block.queries[l].head * a.cache.head_dim;
      for (size_t d = 0; d < head_dim; ++d) out[d] = sums[d * kLanes + l];
    }
  }

  /// q . k for every key that a query of the block sees: [keys, kLanes].
  std::vector<double> scores(const AttentionArgs& a, const QueryBlock& block,
                             const std::vector<double>& q) const {
    const int64_t width = int64_t{a.cache.kv_heads} * a.cache.head_dim;
    const int64_t most = most_keys(block);
    std::vector<double> p(static_cast<size_t>(most * kLanes));
    for (int64_t j = 0; j < most; j += kKvPage) {
      const double* k = cache_row(a.cache.k, a.cache, *a.batch, block.sequence, j);
      add_products_({std::min<int64_t>(kKvPage, most - j), k + block.kv_head * a.cache.head_dim, width, 1,
                     a.cache.head_dim, q.data(), p.data() + j * kLanes});
    }
    return p;
  }

  /// The sum of p[j] v[j] over ascending j: [head_dim, kLanes]. The keys that all see go together; the others
  /// lane by lane, for a key that a query does not see may hold anything, and 0 x NaN is NaN.
  std::vector<double> weighted_values(const AttentionArgs& a, const QueryBlock& block,
                                      const std::vector<double>& p) const {
    const int64_t width = int64_t{a.cache.kv_heads} * a.cache.head_dim;
    const int64_t most = most_keys(block);
    const int64_t fewest = fewest_keys(block);
    std::vector<double> sums(static_cast<size_t>(a.cache.head_dim) * kLanes);
    for (int64_t j = 0; j < fewest; j += kKvPage) {
      const double* v = cache_row(a.cache.v, a.cache, *a.batch, block.sequence, j);
      add_products_({a.cache.head_dim, v + block.kv_head * a.cache.head_dim, 1, width,
                     std::min<int64_t>(kKvPage, fewest - j), p.data() + j * kLanes, sums.data()});
    }
    for (int64_t j = fewest; j < most; ++j) {
      const double* v =
          cache_row(a.cache.v, a.cache, *a.batch, block.sequence, j) + block.kv_head * a.cache.head_dim;
      for (size_t l = 0; l < block.queries.size(); ++l)
        for (int d = 0; j < block.queries[l].keys && d < a.cache.head_dim; ++d)
          sums[static_cast<size_t>(d) * kLanes + l] += p[static_cast<size_t>(j) * kLanes + l] * v[d];
    }
    return sums;
  }

  static bool sees_fewer(const Query& a, const Query& b) { return a.keys < b.keys; }
  static int64_t most_keys(const QueryBlock& b) {
    return std::max_element(b.queries.begin(), b.queries.end(), sees_fewer)->keys;
  }
  static int64_t fewest_keys(const QueryBlock& b) {
    return std::min_element(b.queries.begin(), b.queries.end(), sees_fewer)->keys;
  }

  /// One lane of [keys, kLanes], in place.
  static void softmax(double* lane, int64_t keys, double scale) {
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < keys; ++j) {
      double& s = lane[j * kLanes];
      s *= scale;
      largest = s > largest ? s : largest;  // a NaN shows in the exponentials below
    }
    double sum = 0.0;
    for (int64_t j = 0; j < keys; ++j) sum += lane[j * kLanes] = std::exp(lane[j * kLanes] - largest);
    for (int64_t j = 0; j < keys; ++j) lane[j * kLanes] /= sum;
  }

  void add(const AddArgs& a) override {
    ran("reference.add");
    for (int64_t i = 0; i < a.rows * a.a.width; ++i)
      row_of(a.out, 0)[i] = row_of(a.a, 0)[i] + row_of(a.b, 0)[i];
  }

  void glu(const GluArgs& a) override {
    ran("reference.glu");
    pool_.parallel_for(a.rows * a.gate.width, 1024, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        row_of(a.out, 0)[i] = activate(a.activation, row_of(a.gate, 0)[i]) * row_of(a.up, 0)[i];
    });
  }

  void gather(const GatherArgs& a) override {
    ran("reference.gather");
    for (size_t i = 0; i < a.rows.size(); ++i)
      std::copy_n(row_of(a.x, a.rows[i]), a.x.width, row_of(a.out, static_cast<int64_t>(i)));
  }

 private:
  ThreadPool pool_;
  PlainArithmetic arithmetic_{0x1p-53};
  std::vector<WeightTile> tiles_;  ///< [workers]
  const reference::AddProducts add_products_ = reference::add_products_by_width().front();
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace greta
