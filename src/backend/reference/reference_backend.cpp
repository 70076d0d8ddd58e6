#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <span>

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
    experts = source.experts;
  }
  void read_back(int64_t first, int64_t count, float* out) const override {
    const auto& t = quant::traits(file_type);
    quant::dequantize(file_type, bytes_.data() + first * (cols / t.block) * t.bytes, count * cols, out);
  }

 private:
  std::span<const std::byte> bytes_;
};

std::vector<float> whole_vector(const Weight& weight) {
  std::vector<float> values(static_cast<size_t>(weight.cols));
  weight.read_back(0, 1, values.data());
  return values;
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu_tanh:
      // 0.5 x (1 + tanh(y / 2)) without its cancellation where x is negative.
      return x / (1.0 + std::exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// Cache layout: a page is [kKvPage, kv_heads * head_dim] doubles, keys and values alike.
double* cache_row(void* pool, const KvLayer& cache, int64_t sequence, int64_t position) {
  const int64_t width = int64_t{cache.kv_heads} * cache.head_dim;
  const int64_t page = cache.page_of(sequence, position);
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
  uint64_t scratch_bytes(const ScratchShape& shape) const override {
    return static_cast<uint64_t>(pool_.size() * kLanes * shape.widest) * (sizeof(float) + sizeof(double));
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
    const double* from =
        cache_row(part == KvPart::k ? cache.k : cache.v, cache, batch.sequences[row], batch.positions[row]);
    std::copy_n(from, int64_t{cache.kv_heads} * cache.head_dim, out);
  }

  void write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                const double* in) override {
    std::copy_n(
        in, int64_t{cache.kv_heads} * cache.head_dim,
        cache_row(part == KvPart::k ? cache.k : cache.v, cache, batch.sequences[row], batch.positions[row]));
  }

  void embed(const EmbedArgs& a) override {
    ran("reference.embed");
    std::vector<float> values(static_cast<size_t>(a.table->cols));
    for (int64_t r = 0; r < a.batch->rows; ++r) {
      a.table->read_back(a.batch->tokens[r], 1, values.data());
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
    for (int i = 0; i < a.count; ++i) {
      const MatmulOutput& output = a.outputs[static_cast<size_t>(i)];
      product(a.x, a.rows, output, 0, output.weight->rows);
    }
  }

  /// With the weight's rows first_row .. first_row + outputs. The lanes are kLanes outputs, the rows are
  /// tokens.
  void product(const View& x, int64_t rows, const MatmulOutput& o, int64_t first_row, int64_t outputs) {
    const auto bias = o.bias == nullptr ? std::vector<float>() : whole_vector(*o.bias);
    const int64_t width = o.weight->cols;
    pool_.parallel_for((outputs + kLanes - 1) / kLanes, 1, [&](int64_t tile, int64_t, int worker) {
      const int64_t first = tile * kLanes;
      const int64_t count = std::min<int64_t>(kLanes, outputs - first);
      WeightTile& weights = tiles_[static_cast<size_t>(worker)];
      weights.read(*o.weight, first_row + first, count);
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
      weight.read_back(first, count, rows.data());
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
      double* k_row = cache_row(a.cache.k, a.cache, sequence, position);
      for (int h = 0; h < a.cache.kv_heads; ++h)
        rotate(*a.rope, turns, head_dim, row_of(a.k, r) + h * head_dim, k_row + h * head_dim);
      std::copy_n(row_of(a.v, r), int64_t{a.cache.kv_heads} * head_dim,
                  cache_row(a.cache.v, a.cache, sequence, position));
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

  /// A query: one head of one row. It sees the keys begin .. end - 1.
  struct Query {
    int64_t row;
    int head;
    int64_t begin;
    int64_t end;
    bool sees(int64_t key) const { return begin <= key && key < end; }
  };
  /// Up to kLanes queries of one sequence that read one kv head.
  struct QueryBlock {
    int64_t sequence;
    int kv_head;
    std::vector<Query> queries;
    // Keys that some query sees, and those that all see (none: common_begin = common_end).
    int64_t begin, end, common_begin, common_end;

    /// The page with `begin` is the first that is touched.
    int64_t first_key() const { return begin / kKvPage * kKvPage; }
    void count_keys() {
      begin = common_end = std::numeric_limits<int64_t>::max();
      end = common_begin = 0;
      for (const Query& q : queries) {
        begin = std::min(begin, q.begin);
        end = std::max(end, q.end);
        common_begin = std::max(common_begin, q.begin);
        common_end = std::min(common_end, q.end);
      }
      common_end = std::max(common_begin, common_end);
    }
  };

  static std::vector<QueryBlock> query_blocks(const AttentionArgs& a) {
    const int group = a.heads / a.cache.kv_heads;
    std::vector<QueryBlock> blocks;
    for (int kv_head = 0; kv_head < a.cache.kv_heads; ++kv_head) {
      bool open = false;
      for (int64_t r = 0; r < a.batch->rows; ++r) {
        const int64_t sequence = a.batch->sequences[r];
        const int64_t end = int64_t{a.batch->positions[r]} + 1;
        const int64_t begin = a.window == 0 ? 0 : std::max<int64_t>(end - a.window, 0);
        for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          open = open && blocks.back().sequence == sequence && blocks.back().queries.size() < kLanes;
          if (!open) blocks.push_back({sequence, kv_head, {}, 0, 0, 0, 0});
          open = true;
          blocks.back().queries.push_back({r, h, begin, end});
        }
      }
    }
    for (QueryBlock& block : blocks) block.count_keys();
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
    for (size_t l = 0; l < block.queries.size(); ++l) {
      const Query& query = block.queries[l];
      softmax(p.data() + (query.begin - block.first_key()) * kLanes + static_cast<int64_t>(l),
              query.end - query.begin, a);
    }
    const auto sums = weighted_values(a, block, p);
    for (size_t l = 0; l < block.queries.size(); ++l) {
      double* out = row_of(a.out, block.queries[l].row) + block.queries[l].head * a.cache.head_dim;
      for (size_t d = 0; d < head_dim; ++d) out[d] = sums[d * kLanes + l];
    }
  }

  /// q . k from the block's first page on: [keys, kLanes]. What a query does not see is computed and dropped.
  std::vector<double> scores(const AttentionArgs& a, const QueryBlock& block,
                             const std::vector<double>& q) const {
    const int64_t width = int64_t{a.cache.kv_heads} * a.cache.head_dim;
    const int64_t first = block.first_key();
    std::vector<double> p(static_cast<size_t>((block.end - first) * kLanes));
    for (int64_t j = first; j < block.end; j += kKvPage) {
      const double* k = cache_row(a.cache.k, a.cache, block.sequence, j);
      add_products_({std::min<int64_t>(kKvPage, block.end - j), k + block.kv_head * a.cache.head_dim, width,
                     1, a.cache.head_dim, q.data(), p.data() + (j - first) * kLanes});
    }
    return p;
  }

  /// The sum of p[j] v[j] over ascending j: [head_dim, kLanes]. The keys that all see go together; the others
  /// lane by lane, for a key that a query does not see may hold anything, and 0 x NaN is NaN.
  std::vector<double> weighted_values(const AttentionArgs& a, const QueryBlock& block,
                                      const std::vector<double>& p) const {
    const int64_t width = int64_t{a.cache.kv_heads} * a.cache.head_dim;
    std::vector<double> sums(static_cast<size_t>(a.cache.head_dim) * kLanes);
    const auto weights = [&](int64_t j) { return p.data() + (j - block.first_key()) * kLanes; };
    const auto values = [&](int64_t j) {
      return cache_row(a.cache.v, a.cache, block.sequence, j) + block.kv_head * a.cache.head_dim;
    };
    const auto one_by_one = [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j)
        for (size_t l = 0; l < block.queries.size(); ++l)
          for (int d = 0; block.queries[l].sees(j) && d < a.cache.head_dim; ++d)
            sums[static_cast<size_t>(d) * kLanes + l] += weights(j)[l] * values(j)[d];
    };
    one_by_one(block.begin, block.common_begin);
    for (int64_t j = block.common_begin; j < block.common_end;) {
      const int64_t stop = std::min(block.common_end, (j / kKvPage + 1) * kKvPage);
      add_products_({a.cache.head_dim, values(j), 1, width, stop - j, weights(j), sums.data()});
      j = stop;
    }
    one_by_one(block.common_end, block.end);
    return sums;
  }

  static double capped(double x, double cap) { return cap * std::tanh(x / cap); }

  /// One lane of [keys, kLanes], in place.
  static void softmax(double* lane, int64_t keys, const AttentionArgs& a) {
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < keys; ++j) {
      double& s = lane[j * kLanes];
      s *= a.scale;
      if (a.softcap > 0) s = capped(s, a.softcap);
      largest = s > largest ? s : largest;  // a NaN shows in the exponentials below
    }
    double sum = 0.0;
    for (int64_t j = 0; j < keys; ++j) sum += lane[j * kLanes] = std::exp(lane[j * kLanes] - largest);
    for (int64_t j = 0; j < keys; ++j) lane[j * kLanes] /= sum;
  }

  void choose_experts(const ChooseExpertsArgs& a) override {
    ran("reference.choose_experts");
    for (int64_t r = 0; r < a.rows; ++r) {
      const std::span<const double> logits(row_of(a.logits, r), static_cast<size_t>(a.logits.width));
      std::vector<int64_t> order(logits.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
        const double lx = logits[static_cast<size_t>(x)];
        const double ly = logits[static_cast<size_t>(y)];
        return std::isnan(ly) ? false : std::isnan(lx) || lx > ly;
      });
      const double largest = logits[static_cast<size_t>(order.front())];
      const auto chosen = std::span(order).first(static_cast<size_t>(a.experts.width));
      double sum = 0.0;
      for (const int64_t e : a.normalised ? chosen : std::span(order))
        sum += std::exp(logits[static_cast<size_t>(e)] - largest);
      std::sort(chosen.begin(), chosen.end());
      for (size_t s = 0; s < chosen.size(); ++s) {
        row_of(a.experts, r)[s] = static_cast<double>(chosen[s]);
        row_of(a.weights, r)[s] = std::exp(logits[static_cast<size_t>(chosen[s])] - largest) / sum * a.scale;
      }
    }
  }

  /// Expert by expert, the rows that chose it together. A row without its own part reads the token's.
  void expert_matmul(const ExpertMatmulArgs& a) override {
    ran("reference.expert_matmul");
    const int64_t used = a.experts.width;
    const int64_t in = a.outputs[0].weight->cols;
    const bool shared = a.x.width == in;
    for (int64_t e = 0; e < a.outputs[0].weight->experts; ++e) {
      std::vector<int64_t> slots;  // row * used + slot
      for (int64_t i = 0; i < a.rows * used; ++i)
        if (static_cast<int64_t>(row_of(a.experts, 0)[i]) == e) slots.push_back(i);
      if (slots.empty()) continue;
      const auto count = static_cast<int64_t>(slots.size());
      std::vector<double> x(static_cast<size_t>(count * in));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t slot = slots[static_cast<size_t>(i)];
        std::copy_n(row_of(a.x, 0) + (shared ? slot / used : slot) * in, in, x.data() + i * in);
      }
      for (int o = 0; o < a.count; ++o) {
        const MatmulOutput& output = a.outputs[static_cast<size_t>(o)];
        const int64_t width = output.weight->rows_each();
        std::vector<double> y(static_cast<size_t>(count * width));
        product({x.data(), in}, count, {output.weight, nullptr, {y.data(), width}, output.stage}, e * width,
                width);
        for (int64_t i = 0; i < count; ++i)
          std::copy_n(y.data() + i * width, width,
                      row_of(output.out, 0) + slots[static_cast<size_t>(i)] * width);
      }
    }
  }

  void combine(const CombineArgs& a) override {
    ran("reference.combine");
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t i = 0; i < a.out.width; ++i) {
        double sum = 0.0;
        for (int64_t s = 0; s < a.weights.width; ++s)
          sum += row_of(a.weights, r)[s] * row_of(a.x, r)[s * a.out.width + i];
        row_of(a.out, r)[i] = sum;
      }
  }

  void softcap(const SoftcapArgs& a) override {
    ran("reference.softcap");
    for (int64_t i = 0; i < a.rows * a.x.width; ++i) row_of(a.out, 0)[i] = capped(row_of(a.x, 0)[i], a.cap);
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
