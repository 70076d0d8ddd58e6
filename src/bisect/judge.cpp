#include "bisect/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "base/error.h"
#include "base/system.h"
#include "bisect/row_judge.h"
#include "bisect/wiring.h"
#include "model/tensor_plan.h"

namespace greta {
namespace {

constexpr int64_t kBlock = 32;
constexpr double kNearMatmul = 0.25;  ///< loose bounds from which exact ones are computed
constexpr double kNearAttention = 1.0 / 32.0;
/// Higham and Mary: past lambda sqrt(d) u T with probability at most 2 exp(-lambda^2 / 2), 5e-11 each.
constexpr double kLambda = 7.0;
constexpr int64_t kDoubles = 4 << 20;  ///< of one matrix of a block of rows

View view_of(std::vector<double>& matrix, int64_t width) { return {matrix.data(), width}; }

double ratio_of(double got, double expected, double certain) {
  if (same_special(expected, got)) return 0.0;
  const double error = std::abs(got - expected);
  if (error == 0.0) return 0.0;
  const double ratio = error / certain;
  return std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
}

/// Keeps the worst element of a row.
struct Worst {
  Judgement at;
  void see(int64_t index, double got, double expected, double certain, double likely) {
    const double ratio = ratio_of(got, expected, certain);
    if (at.values != 0 && ratio <= at.ratio) return;
    at.values = 1;
    at.index = index;
    at.got = got;
    at.expected = expected;
    at.certain = certain;
    at.likely = likely;
    at.ratio = ratio;
  }
};

class JudgedTensor : public Weight {
 public:
  JudgedTensor(WeightSource from, WeightMode how) : source(std::move(from)), mode(how) {
    name = source.name;
    rows = source.rows;
    cols = source.cols;
    file_type = source.type;
  }
  void read_back(int64_t row, float* out) const override { judged_row(source, row, mode, out); }
  WeightSource source;
  WeightMode mode;
};

/// |w_b| of every block of 32: [rows, blocks], rounded up.
class BlockNorms : public Weight {
 public:
  explicit BlockNorms(const JudgedTensor& tensor) {
    rows = tensor.rows;
    cols = ceil_div(tensor.cols, kBlock);
    norms_.resize(static_cast<size_t>(rows * cols));
    std::vector<float> magnitudes(static_cast<size_t>(tensor.cols));
    for (int64_t row = 0; row < rows; ++row) {
      judged_magnitudes(tensor.source, row, tensor.mode, magnitudes.data());
      for (int64_t b = 0; b < cols; ++b) {
        double squares = 0.0;
        for (int64_t k = b * kBlock; k < std::min(tensor.cols, (b + 1) * kBlock); ++k)
          squares += double{magnitudes[static_cast<size_t>(k)]} * double{magnitudes[static_cast<size_t>(k)]};
        norms_[static_cast<size_t>(row * cols + b)] = static_cast<float>(std::sqrt(squares) * (1 + 0x1p-20));
      }
    }
  }
  void read_back(int64_t row, float* out) const override {
    std::copy_n(norms_.data() + row * cols, cols, out);
  }

 private:
  std::vector<float> norms_;
};

}  // namespace

bool Judgement::suspect() const { return !failed() && std::abs(got - expected) > likely; }

struct Judge::Tensor {
  explicit Tensor(const WeightSource& source, WeightMode mode) : weight(source, mode), norms(weight) {}
  JudgedTensor weight;
  BlockNorms norms;
};

Judge::Judge(const Plan& plan, const Arithmetic& arithmetic, int threads)
    : plan_(plan), hp_(plan.hp), arithmetic_(arithmetic) {
  BackendOptions options;
  options.threads = threads;
  options.kv_type = KvType::f64;
  reference_ = make_backend("reference", options);
  pool_ = std::make_unique<ThreadPool>(threads > 0 ? threads : usable_cpus());
}
Judge::~Judge() = default;

const Judge::Tensor& Judge::tensor(int unit, Role role) {
  auto& slot = tensors_[{unit, role}];
  if (!slot) {
    const auto* t = planned_tensor(plan_, layer_of_unit(unit, hp_.layers), role);
    if (t == nullptr) fail("the judge's plan has no tensor for this operator");
    slot = std::make_unique<Tensor>(source_of(*t), arithmetic_.weights);
  }
  return *slot;
}

void Judge::judge(const UnitRows& data, std::span<const RowName> rows, const LayerHistory& history,
                  const Sink& sink) {
  for (const Stage stage : stages_of_unit(data.unit, hp_.layers)) {
    const StageRule& rule = rule_of(stage);
    if (rule.op == Op::wire || !data.stages.contains(stage)) continue;
    if (rule.op == Op::attention) {
      if (data.stages.contains(rule.reads[0]) && !history.empty())
        judge_attention_rows(data, rows, history, sink);
      continue;
    }
    if (!std::all_of(rule.reads.begin(), rule.reads.end(), [&](Stage s) { return data.stages.contains(s); }))
      continue;
    if (rule.op == Op::matmul) {
      judge_matmul(data, stage, sink);
    } else {
      judge_by_row(data, rows, stage, sink);
    }
  }
}

void Judge::judge_matmul(const UnitRows& data, Stage stage, const Sink& sink) {
  const StageRule& rule = rule_of(stage);
  const StoredRows& in = data.stages.at(rule.reads[0]);
  const StoredRows& got = data.stages.at(stage);
  const Tensor& t = tensor(data.unit, rule.weight);
  const auto bias = planned_vector(plan_, layer_of_unit(data.unit, hp_.layers), rule.bias);
  const int64_t k = t.weight.cols;
  const int64_t n = t.weight.rows;
  const int64_t blocks = t.norms.cols;
  const MatmulArithmetic how = arithmetic_.matmul(t.weight.file_type, k);
  const double likely_share = std::min(1.0, kLambda / std::sqrt(how.roundings));
  const bool cached = stage == Stage::v;
  const int64_t most = std::clamp<int64_t>(kDoubles / std::max(n, k), 1, 512);
  std::vector<double> x, norms, value, magnitude;
  for (int64_t first = 0; first < got.rows(); first += most) {
    const int64_t count = std::min(most, got.rows() - first);
    x.resize(static_cast<size_t>(count * k));
    norms.assign(static_cast<size_t>(count * blocks), 0.0);
    value.resize(static_cast<size_t>(count * n));
    magnitude.resize(static_cast<size_t>(count * n));
    pool_->parallel_for(count, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const auto operand = rounded_operand(values_of(in, first + r), how.operand);
        std::copy(operand.begin(), operand.end(), x.begin() + r * k);
        for (int64_t i = 0; i < k; ++i)
          norms[static_cast<size_t>(r * blocks + i / kBlock)] +=
              operand[static_cast<size_t>(i)] * operand[static_cast<size_t>(i)];
        for (int64_t b = 0; b < blocks; ++b) {
          double& norm = norms[static_cast<size_t>(r * blocks + b)];
          norm = std::sqrt(norm) * (1 + 0x1p-20);
        }
      }
    });
    reference_->matmul({count, view_of(x, k), {{{&t.weight, nullptr, view_of(value, n), stage}}}, 1, {}});
    reference_->matmul(
        {count, view_of(norms, blocks), {{{&t.norms, nullptr, view_of(magnitude, n), stage}}}, 1, {}});
    std::vector<Worst> worst(static_cast<size_t>(count));
    pool_->parallel_for(count, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        Worst& w = worst[static_cast<size_t>(r)];
        const auto bound = [&](double T, double y) {
          const double certain = product_bound(T, y, how.roundings, arithmetic_.unit);
          return cached ? with_cache_rounding(y, certain, arithmetic_.kv_type) : certain;
        };
        const auto exact_bound = [&](int64_t i, double y, double loose) {
          const JudgedWeight weight = judged_weight(t.weight.source, i, t.weight.mode);
          double T = 0.0;
          for (int64_t j = 0; j < k; ++j)
            T += weight.magnitude[static_cast<size_t>(j)] * std::abs(x[static_cast<size_t>(r * k + j)]);
          return std::max(bound(T, y), kNearMatmul * loose);
        };
        for (int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<size_t>(r * n + i);
          const double y = value[at] + (bias.empty() ? 0.0 : double{bias[static_cast<size_t>(i)]});
          const double g = got.at(first + r, i);
          double certain = bound(magnitude[at], y);
          const double loose = ratio_of(g, y, certain);
          if (!w.at.failed() && loose > kNearMatmul && loose <= 1.0) certain = exact_bound(i, y, certain);
          w.see(i, g, y, certain, cached ? certain : certain * likely_share);
        }
        if (w.at.failed() && std::isfinite(w.at.expected)) {
          w.at.certain = std::max(exact_bound(w.at.index, w.at.expected, w.at.certain), 0.0);
          w.at.ratio = ratio_of(w.at.got, w.at.expected, w.at.certain);
        }
      }
    });
    for (int64_t r = 0; r < count; ++r) {
      Judgement& j = worst[static_cast<size_t>(r)].at;
      j.stage = stage;
      j.row = first + r;
      j.values = n;
      sink(j);
    }
  }
}

void Judge::judge_by_row(const UnitRows& data, std::span<const RowName> rows, Stage stage, const Sink& sink) {
  const StoredRows& got = data.stages.at(stage);
  std::vector<Worst> worst(static_cast<size_t>(got.rows()));
  pool_->parallel_for(got.rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const Judged judged =
          judged_stage(plan_, arithmetic_, data, r, rows[static_cast<size_t>(r)], {}, stage);
      for (int64_t i = 0; i < got.width(); ++i) {
        const auto at = static_cast<size_t>(i);
        worst[static_cast<size_t>(r)].see(i, got.at(r, i), judged.value[at], judged.certain[at],
                                          judged.certain[at]);
      }
    }
  });
  for (int64_t r = 0; r < got.rows(); ++r) {
    Judgement& j = worst[static_cast<size_t>(r)].at;
    j.stage = stage;
    j.row = r;
    j.values = got.width();
    sink(j);
  }
}

void Judge::judge_attention_rows(const UnitRows& data, std::span<const RowName> rows,
                                 const LayerHistory& history, const Sink& sink) {
  const StoredRows& got = data.stages.at(Stage::attn_out);
  const StoredRows& queries = data.stages.at(Stage::q_post_rope);
  const int64_t head_dim = hp_.head_dim;
  const int64_t kv_dim = hp_.kv_dim();
  const int64_t group = hp_.heads / hp_.kv_heads;
  std::map<int32_t, std::vector<int64_t>> by_sequence;
  for (int64_t r = 0; r < got.rows(); ++r) by_sequence[rows[static_cast<size_t>(r)].sequence].push_back(r);
  for (const auto& [sequence, mine] : by_sequence) {
    const KvHistory& kv = history.at(sequence);
    const int64_t keys = kv.keys.rows();
    const int64_t pages = ceil_div(keys, kKvPage);
    // The reference's cache is [position, kv_dim] in each page: with pages in order, one matrix.
    std::vector<double> k(static_cast<size_t>(pages * kKvPage * kv_dim), 0.0), v(k.size(), 0.0);
    std::vector<double> largest_k(static_cast<size_t>(keys * hp_.kv_heads), 0.0),
        largest_v(static_cast<size_t>(keys * kv_dim));
    for (int64_t j = 0; j < keys; ++j) {
      kv.keys.get(j, k.data() + j * kv_dim);
      kv.values.get(j, v.data() + j * kv_dim);
      for (int64_t h = 0; h < hp_.kv_heads; ++h) {
        double squares = 0.0;
        for (int64_t d = 0; d < head_dim; ++d) {
          const double x = k[static_cast<size_t>(j * kv_dim + h * head_dim + d)];
          squares += x * x;
        }
        const double before = j == 0 ? 0.0 : largest_k[static_cast<size_t>((j - 1) * hp_.kv_heads + h)];
        largest_k[static_cast<size_t>(j * hp_.kv_heads + h)] = std::max(before, std::sqrt(squares));
      }
      for (int64_t i = 0; i < kv_dim; ++i)
        largest_v[static_cast<size_t>(j * kv_dim + i)] =
            std::max(j == 0 ? 0.0 : largest_v[static_cast<size_t>((j - 1) * kv_dim + i)],
                     std::abs(v[static_cast<size_t>(j * kv_dim + i)]));
    }
    std::vector<int32_t> page_table(static_cast<size_t>(pages));
    for (size_t i = 0; i < page_table.size(); ++i) page_table[i] = static_cast<int32_t>(i);
    const KvLayer cache{k.data(), v.data(), static_cast<int>(hp_.kv_heads), static_cast<int>(head_dim)};
    for (size_t first = 0; first < mine.size(); first += 512) {
      const auto part = std::span(mine).subspan(first, std::min<size_t>(512, mine.size() - first));
      const auto count = static_cast<int64_t>(part.size());
      std::vector<double> q(static_cast<size_t>(count * hp_.q_dim())), out(q.size());
      std::vector<int32_t> positions, zeros(part.size(), 0);
      for (int64_t i = 0; i < count; ++i) {
        queries.get(part[static_cast<size_t>(i)], q.data() + i * hp_.q_dim());
        positions.push_back(rows[static_cast<size_t>(part[static_cast<size_t>(i)])].position);
      }
      const BatchView batch{count, zeros.data(), positions.data(), zeros.data(), page_table.data(), pages, 1};
      reference_->attention({&batch,
                             static_cast<int>(hp_.heads),
                             hp_.attention_scale,
                             view_of(q, hp_.q_dim()),
                             cache,
                             view_of(out, hp_.q_dim()),
                             {}});
      std::vector<Worst> worst(part.size());
      pool_->parallel_for(count, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          Worst& w = worst[static_cast<size_t>(i)];
          const int64_t row = part[static_cast<size_t>(i)];
          const int64_t last = positions[static_cast<size_t>(i)];
          const int roundings = arithmetic_.value_roundings(last + 1, last / kKvPage + 1);
          for (int64_t h = 0; h < hp_.heads; ++h) {
            const double* query = q.data() + i * hp_.q_dim() + h * head_dim;
            double squares = 0.0;
            for (int64_t d = 0; d < head_dim; ++d) squares += query[d] * query[d];
            const double u = arithmetic_.unit;
            const double delta = (gamma(arithmetic_.score_roundings(head_dim), u) + 2 * u) * (1 + 0x1p-20) *
                                 std::abs(hp_.attention_scale) * std::sqrt(squares) *
                                 largest_k[static_cast<size_t>(last * hp_.kv_heads + h / group)];
            const double relative = attention_relative(delta, roundings, arithmetic_.exp_ulps, u);
            std::vector<double> exact;
            for (int64_t d = 0; d < head_dim; ++d) {
              const int64_t at = h * head_dim + d;
              const double expected = out[static_cast<size_t>(i * hp_.q_dim() + at)];
              const double g = got.at(row, at);
              double certain =
                  relative * largest_v[static_cast<size_t>(last * kv_dim + h / group * head_dim + d)] +
                  0x1p-126 * static_cast<double>(last + 1);
              const double loose = ratio_of(g, expected, certain);
              if (loose > kNearAttention && std::isfinite(expected)) {
                if (exact.empty())
                  exact = judged_head(hp_, arithmetic_, data, row, rows[static_cast<size_t>(row)], history, h)
                              .certain;
                certain = std::max(exact[static_cast<size_t>(d)], kNearAttention * certain);
              }
              w.see(at, g, expected, certain, certain);
            }
          }
        }
      });
      for (int64_t i = 0; i < count; ++i) {
        Judgement& j = worst[static_cast<size_t>(i)].at;
        j.stage = Stage::attn_out;
        j.row = part[static_cast<size_t>(i)];
        j.values = hp_.q_dim();
        sink(j);
      }
    }
  }
}

}  // namespace greta
