#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_attention.h"
#include "backend/cpu/cpu_matmul.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/rounding.h"
#include "backend/cpu/weights.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"
#include "base/system.h"
#include "base/thread_pool.h"

namespace greta {
namespace cpu {
namespace {

/// Rows of less work than this run on the caller: waking a thread costs more.
constexpr int64_t kAlone = 16384;

/// The operators with one kernel each, and their names in routes, in the same order.
enum Operator : size_t {
  kEmbed,
  kRmsnorm,
  kRope,
  kAttention,
  kAdd,
  kGlu,
  kChooseExperts,
  kCombine,
  kSoftcap,
  kGather
};
constexpr auto kOperators =
    std::to_array<std::string_view>({"embed", "rmsnorm", "rope", "attention", "add", "glu", "choose_experts",
                                     "combine", "softcap", "gather"});
static_assert(kOperators.size() == kGather + 1);

struct OwnedBuffer : Buffer {
  explicit OwnedBuffer(size_t bytes) : memory(bytes) {}
  void* data() override { return memory.data(); }
  size_t bytes() const override { return memory.bytes(); }
  Memory memory;
};

/// The `used` largest, the largest first; ties: the lower index; a NaN is larger than any number.
void choose_largest(const float* x, int64_t n, int64_t used, std::vector<int32_t>& chosen) {
  const auto before = [x](int32_t a, int32_t b) {
    const bool nan_a = std::isnan(x[a]), nan_b = std::isnan(x[b]);
    if (nan_a || nan_b) return nan_a != nan_b ? nan_a : a < b;
    return x[a] > x[b] || (x[a] == x[b] && a < b);
  };
  chosen.resize(static_cast<size_t>(n));
  std::iota(chosen.begin(), chosen.end(), 0);
  std::partial_sort(chosen.begin(), chosen.begin() + used, chosen.end(), before);
  chosen.resize(static_cast<size_t>(used));
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

FloatType element_of(KvType type) {
  switch (type) {
    case KvType::f16:
      return kF16;
    case KvType::bf16:
      return kBF16;
    case KvType::f32:
      return kF32;
    case KvType::f64:
      break;
  }
  fail("the cpu backend's cache is f16, bf16 or f32; f64 is the reference's");
}

const KernelTable& kernels_for(Isa isa) {
  const Isa chosen = isa == Isa::automatic ? best_isa() : isa;
  if (!has_isa(chosen))
    fail("this machine has no {} instructions; expected portable or at most {}", name_of(chosen),
         name_of(best_isa()));
  return kernels_of(chosen);
}

const float* floats(const View& view) { return static_cast<const float*>(view.data); }
float* floats_out(const View& view) { return static_cast<float*>(view.data); }
const CpuWeight& own(const Weight* weight) { return static_cast<const CpuWeight&>(*weight); }
const float* vector_of(const Weight* weight) { return reinterpret_cast<const float*>(own(weight).data); }

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options)
      : options_(options),
        kernels_(kernels_for(options.isa)),
        pool_(options.threads > 0 ? options.threads : usable_cpus()),
        element_(element_of(options.kv_type)),
        element_bytes_(element_ == kF32 ? 4 : 2),
        maker_{kernels_, pool_, options.weights},
        matmul_(kernels_, maker_, options.activations == Activations::bits8),
        attention_(kernels_, pool_, element_, element_bytes_),
        arithmetic_(options.weights, options.activations, options.kv_type) {}

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    static constexpr std::string_view kKv[] = {"f32", "f16", "bf16"};
    static constexpr std::string_view kModes[] = {"as stored", "f32", "int8"};
    return fmt::format("cpu, {}, {} thread{}, weights {}, {}-bit activations, KV cache {}", kernels_.name,
                       pool_.size(), pool_.size() == 1 ? "" : "s",
                       kModes[static_cast<size_t>(options_.weights)],
                       options_.activations == Activations::bits8 ? 8 : 16, kKv[element_]);
  }
  size_t element_bytes() const override { return sizeof(float); }
  const Arithmetic& arithmetic() const override { return arithmetic_; }
  Route route() const override;
  void reset_route() override {
    runs_ = {};
    matmul_.reset_runs();
  }

  std::optional<std::string> refuses(WeightUse use, quant::Type type, int64_t rows,
                                     int64_t cols) const override {
    return weight_refusal(use, type, rows, cols);
  }
  uint64_t resident_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols) const override {
    return weight_bytes(use, type, rows, cols, options_.weights);
  }
  uint64_t kv_page_bytes(int kv_heads, int head_dim) const override {
    return static_cast<uint64_t>(kv_heads) * static_cast<uint64_t>(head_dim) * kKvPage *
           static_cast<uint64_t>(element_bytes_);
  }
  uint64_t scratch_bytes(const ScratchShape& shape) const override {
    const auto [rows, widest] = std::pair(shape.rows, shape.widest);
    return matmul_.scratch_bytes(rows, widest) + attention_.scratch_bytes(widest) +
           static_cast<uint64_t>(3 * rows + pool_.size() * 8) * static_cast<uint64_t>(widest) * sizeof(float);
  }
  uint64_t available_bytes() const override { return available_memory(); }

  std::unique_ptr<Buffer> allocate(size_t bytes) override { return std::make_unique<OwnedBuffer>(bytes); }
  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    return load_weight(source, use, maker_);
  }

  const float* in_place(const View& view, int64_t first, int64_t /*count*/) const override {
    return floats(view) + first * view.width;
  }
  void read(const View& view, int64_t first, int64_t count, float* out) const override {
    std::memcpy(out, floats(view) + first * view.width,
                static_cast<size_t>(count * view.width) * sizeof(float));
  }
  void read(const View& view, int64_t first, int64_t count, double* out) const override {
    const float* from = floats(view) + first * view.width;
    std::copy(from, from + count * view.width, out);
  }
  void write(const View& view, int64_t first, int64_t count, const double* in) override {
    float* to = floats_out(view) + first * view.width;
    for (int64_t i = 0; i < count * view.width; ++i) to[i] = static_cast<float>(in[i]);
  }
  void read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
               double* out) const override;
  void write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                const double* in) override;

  void embed(const EmbedArgs& args) override;
  void rmsnorm(const RmsnormArgs& args) override;
  void matmul(const MatmulArgs& args) override;
  void rope(const RopeArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void add(const AddArgs& args) override;
  void glu(const GluArgs& args) override;
  void choose_experts(const ChooseExpertsArgs& args) override;
  void expert_matmul(const ExpertMatmulArgs& args) override;
  void combine(const CombineArgs& args) override;
  void softcap(const SoftcapArgs& args) override;
  void gather(const GatherArgs& args) override;

 private:
  void ran(Operator op) { ++runs_[op]; }
  /// body(row) for every row: on the caller where there is little to do.
  template <class Body>
  void each_row(int64_t rows, int64_t width, const Body& body) {
    if (rows * width <= kAlone) {
      for (int64_t row = 0; row < rows; ++row) body(row);
      return;
    }
    const int64_t grain =
        std::max<int64_t>(1, std::min(rows / (pool_.size() * 4), kAlone / std::max<int64_t>(width, 1)));
    pool_.parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) body(row);
    });
  }
  std::byte* element_at(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row) const;
  void make_rope_table(const RopeSpec& spec, const BatchView& batch);
  void cache_head(const RopeArgs& args, int64_t row, int64_t head, const float* k, const float* v,
                  std::byte* rounded) const;

  BackendOptions options_;
  const KernelTable& kernels_;
  ThreadPool pool_;
  FloatType element_;
  int64_t element_bytes_;
  WeightMaker maker_;
  Matmul matmul_;
  Attention attention_;
  CpuArithmetic arithmetic_;
  std::vector<float> expert_x_;  ///< rows of one expert
  std::array<std::vector<float>, 2> expert_out_;
  /// Cosines and sines of the call before: layers of a kind turn alike.
  struct RopeTable {
    std::vector<double> inv_freq;
    double magnitude = 0.0;
    std::vector<int32_t> positions;
    std::vector<float> values;  ///< [rows][2][dims / 2] cos, sin
  };
  RopeTable rope_table_;
  /// How often each operator ran: two hundred times a token, so by number. route() names them.
  std::array<uint64_t, kOperators.size()> runs_{};
};

Backend::Route CpuBackend::route() const {
  Route route;
  const auto add = [&](uint64_t times, std::string name) {
    if (times > 0) route[std::move(name)] = times;
  };
  for (size_t i = 0; i < kOperators.size(); ++i)
    add(runs_[i], fmt::format("{}.{}", kOperators[i], kernels_.name));
  for (const quant::Traits& t : quant::all_types()) {
    const auto [one, tile] = matmul_.runs(t.type);
    add(one, fmt::format("matmul.{}.{}.t1", lower(t.name), kernels_.name));
    add(tile, fmt::format("matmul.{}.{}.tile", lower(t.name), kernels_.name));
  }
  return route;
}

/// Elements from one of a key to its next.
constexpr int64_t kKeyStride = 16;

/// Where batch row `row`'s position lies in its page: K is [kv_head][4][head_dim][16], V is
/// [kv_head][64][head_dim].
std::byte* CpuBackend::element_at(const KvLayer& cache, KvPart part, const BatchView& batch,
                                  int64_t row) const {
  const int32_t position = batch.positions[row];
  const int64_t page = cache.page_of(batch.sequences[row], position);
  const int64_t slot = position % kKvPage;
  auto* base = static_cast<std::byte*>(part == KvPart::k ? cache.k : cache.v);
  base += page * static_cast<int64_t>(kv_page_bytes(cache.kv_heads, cache.head_dim));
  const int64_t at = part == KvPart::k ? slot / kKeyStride * kKeyStride * cache.head_dim + slot % kKeyStride
                                       : slot * cache.head_dim;
  return base + at * element_bytes_;
}

void CpuBackend::read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                         double* out) const {
  const std::byte* at = element_at(cache, part, batch, row);
  const int64_t stride = part == KvPart::k ? kKeyStride : 1;
  for (int head = 0; head < cache.kv_heads; ++head) {
    for (int d = 0; d < cache.head_dim; ++d) {
      const std::byte* p = at + (int64_t{head} * kKvPage * cache.head_dim + d * stride) * element_bytes_;
      if (element_ == kF32) {
        float value;
        std::memcpy(&value, p, 4);
        *out++ = value;
      } else {
        uint16_t bits;
        std::memcpy(&bits, p, 2);
        *out++ = element_ == kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
      }
    }
  }
}

void CpuBackend::write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                          const double* in) {
  std::byte* at = element_at(cache, part, batch, row);
  const int64_t stride = part == KvPart::k ? kKeyStride : 1;
  for (int head = 0; head < cache.kv_heads; ++head) {
    for (int d = 0; d < cache.head_dim; ++d) {
      std::byte* p = at + (int64_t{head} * kKvPage * cache.head_dim + d * stride) * element_bytes_;
      const auto value = static_cast<float>(*in++);
      if (element_ == kF32) {
        std::memcpy(p, &value, 4);
      } else {
        const uint16_t bits = element_ == kF16 ? f32_to_f16(value) : f32_to_bf16(value);
        std::memcpy(p, &bits, 2);
      }
    }
  }
}

void CpuBackend::embed(const EmbedArgs& args) {
  ran(kEmbed);
  const CpuWeight& table = own(args.table);
  each_row(args.batch->rows, args.out.width, [&](int64_t row) {
    float* out = floats_out(args.out) + row * args.out.width;
    const int32_t token = args.batch->tokens[row];
    if (token < 0 || token >= table.rows) fail("token {} of a vocabulary of {}", token, table.rows);
    table.read_back(token, 1, out);
    kernels_.scale(out, args.scale, args.out.width, out);
  });
}

void CpuBackend::rmsnorm(const RmsnormArgs& args) {
  ran(kRmsnorm);
  const int64_t n = args.x.width;
  const float* weight = vector_of(args.weight);
  each_row(args.rows, n, [&](int64_t row) {
    kernels_.rmsnorm(floats(args.x) + row * n, weight, args.eps, n, floats_out(args.out) + row * n);
  });
}

void CpuBackend::matmul(const MatmulArgs& args) { matmul_.run(args); }

template <class Element>
void write_key(const std::byte* key, int64_t head_dim, std::byte* to) {
  for (int64_t d = 0; d < head_dim; ++d)
    std::memcpy(to + d * kKeyStride * int64_t{sizeof(Element)}, key + d * int64_t{sizeof(Element)},
                sizeof(Element));
}

/// K and V of one row and kv head into the cache: `k` rotated, `v` as it is, [head_dim]; rounded: room for
/// as many elements.
void CpuBackend::cache_head(const RopeArgs& args, int64_t row, int64_t head, const float* k, const float* v,
                            std::byte* rounded) const {
  const int64_t head_dim = args.cache.head_dim;
  const int64_t at = head * kKvPage * head_dim * element_bytes_;
  kernels_.round_to[element_](k, head_dim, rounded);
  std::byte* to = element_at(args.cache, KvPart::k, *args.batch, row) + at;
  if (element_bytes_ == 4)
    write_key<uint32_t>(rounded, head_dim, to);
  else
    write_key<uint16_t>(rounded, head_dim, to);
  kernels_.round_to[element_](v, head_dim, element_at(args.cache, KvPart::v, *args.batch, row) + at);
}

void CpuBackend::make_rope_table(const RopeSpec& spec, const BatchView& batch) {
  RopeTable& table = rope_table_;
  const std::span<const int32_t> positions(batch.positions, static_cast<size_t>(batch.rows));
  if (table.inv_freq == spec.inv_freq && table.magnitude == spec.magnitude &&
      std::ranges::equal(table.positions, positions))
    return;
  table.inv_freq = spec.inv_freq;
  table.magnitude = spec.magnitude;
  table.positions.assign(positions.begin(), positions.end());
  const int64_t pairs = spec.dims / 2;
  table.values.resize(static_cast<size_t>(batch.rows * 2 * pairs));
  constexpr int64_t kWork = 32;  // a sine and a cosine take as long as so many elements of other operators
  each_row(batch.rows, pairs * kWork, [&](int64_t row) {
    float* to = table.values.data() + row * 2 * pairs;
    kernels_.rope_table(positions[static_cast<size_t>(row)], spec.inv_freq.data(), pairs, spec.magnitude, to,
                        to + pairs);
  });
}

/// By row and kv head, with the heads of q that read it: one row can be work for several threads, too, and
/// each writes what it will read (Attention::run shares the heads out alike).
void CpuBackend::rope(const RopeArgs& args) {
  ran(kRope);
  const BatchView& batch = *args.batch;
  const RopeSpec& spec = *args.rope;
  const int64_t pairs = spec.dims / 2, head_dim = args.cache.head_dim, kv_heads = args.cache.kv_heads;
  const int64_t group = args.heads / kv_heads;
  const auto rotate = spec.style == RopeStyle::adjacent ? kernels_.rotate_adjacent : kernels_.rotate_half;
  make_rope_table(spec, batch);
  const auto turn = [&](int64_t row, const float* x, float* out) {
    const float* table = rope_table_.values.data() + row * 2 * pairs;
    rotate(x, table, table + pairs, static_cast<int>(pairs), out);
    std::memcpy(out + spec.dims, x + spec.dims, static_cast<size_t>(head_dim - spec.dims) * sizeof(float));
  };
  const auto share = [&](int64_t begin, int64_t end, int) {
    thread_local std::vector<float> k;
    thread_local std::vector<std::byte> rounded;
    k.resize(static_cast<size_t>(head_dim));
    rounded.resize(static_cast<size_t>(head_dim * element_bytes_));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / kv_heads;
      for (int64_t head = i * group; head < (i + 1) * group; ++head)
        turn(row, floats(args.q) + head * head_dim, floats_out(args.q_out) + head * head_dim);
      turn(row, floats(args.k) + i * head_dim, k.data());
      cache_head(args, row, i % kv_heads, k.data(), floats(args.v) + i * head_dim, rounded.data());
    }
  };
  constexpr int64_t kWork = 4;  // elements of other operators that one takes as long as
  if (batch.rows * (args.heads + kv_heads) * head_dim * kWork <= kAlone)
    share(0, batch.rows * kv_heads, 0);
  else
    pool_.parallel_walk(batch.rows * kv_heads, 1, share);
}

void CpuBackend::attention(const AttentionArgs& args) {
  ran(kAttention);
  attention_.run(args);
}

void CpuBackend::add(const AddArgs& args) {
  ran(kAdd);
  const int64_t n = args.a.width;
  each_row(args.rows, n, [&](int64_t row) {
    kernels_.add(floats(args.a) + row * n, floats(args.b) + row * n, n, floats_out(args.out) + row * n);
  });
}

void CpuBackend::glu(const GluArgs& args) {
  ran(kGlu);
  const int64_t n = args.gate.width;
  const auto kernel = args.activation == greta::Activation::silu ? kernels_.silu_mul : kernels_.gelu_mul;
  each_row(args.rows, n * 4, [&](int64_t row) {
    kernel(floats(args.gate) + row * n, floats(args.up) + row * n, n, floats_out(args.out) + row * n);
  });
}

/// The choice is scalar code for every instruction set; e^x is the table's.
void CpuBackend::choose_experts(const ChooseExpertsArgs& args) {
  ran(kChooseExperts);
  const int64_t experts = args.logits.width;
  const int64_t used = args.experts.width;
  each_row(args.rows, experts * 8, [&](int64_t row) {
    const float* logits = floats(args.logits) + row * experts;
    thread_local std::vector<int32_t> chosen;
    thread_local std::vector<float> powers;
    choose_largest(logits, experts, used, chosen);
    const float largest = logits[chosen.front()];
    std::sort(chosen.begin(), chosen.end());
    powers.resize(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) powers[static_cast<size_t>(e)] = logits[e] - largest;
    kernels_.exp(powers.data(), experts, powers.data());
    float sum = 0.0f;
    if (args.normalised) {
      for (const int32_t e : chosen) sum += powers[static_cast<size_t>(e)];
    } else {
      for (const float p : powers) sum += p;
    }
    for (int64_t s = 0; s < used; ++s) {
      const int32_t e = chosen[static_cast<size_t>(s)];
      floats_out(args.experts)[row * used + s] = static_cast<float>(e);
      floats_out(args.weights)[row * used + s] =
          powers[static_cast<size_t>(e)] / sum * static_cast<float>(args.scale);
    }
  });
}

/// Expert by expert in ascending order, the rows that chose it as one product. One row needs no gathering:
/// its slots lie where a product writes them.
void CpuBackend::expert_matmul(const ExpertMatmulArgs& args) {
  const int64_t used = args.experts.width;
  const auto stack = [&](int output) -> const CpuWeight& {
    return own(args.outputs[static_cast<size_t>(output)].weight);
  };
  const int64_t in = stack(0).cols;
  const int64_t experts = stack(0).experts;
  const bool shared = args.x.width == in;
  const float* ids = floats(args.experts);
  std::vector<std::vector<int64_t>> slots(static_cast<size_t>(experts));  // row * used + slot
  for (int64_t i = 0; i < args.rows * used; ++i) slots.at(static_cast<size_t>(ids[i])).push_back(i);
  for (int64_t e = 0; e < experts; ++e) {
    const auto& of = slots[static_cast<size_t>(e)];
    if (of.empty()) continue;
    const auto count = static_cast<int64_t>(of.size());
    const auto source = [&](int64_t slot) { return floats(args.x) + (shared ? slot / used : slot) * in; };
    expert_x_.resize(static_cast<size_t>(count * in));
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(source(of[static_cast<size_t>(i)]), in, expert_x_.data() + i * in);
    MatmulArgs product{count, {expert_x_.data(), in}, {}, args.count, args.site};
    for (int o = 0; o < args.count; ++o) {
      auto& y = expert_out_[static_cast<size_t>(o)];
      const int64_t width = stack(o).rows_each();
      y.resize(static_cast<size_t>(count * width));
      product.outputs[static_cast<size_t>(o)] = {stack(o).each[static_cast<size_t>(e)].get(),
                                                 nullptr,
                                                 {y.data(), width},
                                                 args.outputs[static_cast<size_t>(o)].stage};
    }
    matmul(product);
    for (int o = 0; o < args.count; ++o) {
      const int64_t width = stack(o).rows_each();
      float* out = floats_out(args.outputs[static_cast<size_t>(o)].out);
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(expert_out_[static_cast<size_t>(o)].data() + i * width, width,
                    out + of[static_cast<size_t>(i)] * width);
    }
  }
}

void CpuBackend::combine(const CombineArgs& args) {
  ran(kCombine);
  const int64_t used = args.weights.width;
  const int64_t n = args.out.width;
  each_row(args.rows, n * used, [&](int64_t row) {
    kernels_.combine(floats(args.x) + row * used * n, floats(args.weights) + row * used, used, n,
                     floats_out(args.out) + row * n);
  });
}

void CpuBackend::softcap(const SoftcapArgs& args) {
  ran(kSoftcap);
  const int64_t n = args.x.width;
  each_row(args.rows, n * 4, [&](int64_t row) {
    kernels_.softcap(floats(args.x) + row * n, static_cast<float>(args.cap), n,
                     floats_out(args.out) + row * n);
  });
}

void CpuBackend::gather(const GatherArgs& args) {
  ran(kGather);
  const auto bytes = static_cast<size_t>(args.x.width) * sizeof(float);
  for (size_t i = 0; i < args.rows.size(); ++i) {
    std::memcpy(floats_out(args.out) + static_cast<int64_t>(i) * args.out.width,
                floats(args.x) + args.rows[i] * args.x.width, bytes);
  }
}

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

}  // namespace greta
