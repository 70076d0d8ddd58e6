#include "bisect/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/checked.h"
#include "base/error.h"
#include "base/system.h"
#include "bisect/row_judge.h"
#include "bisect/wiring.h"
#include "model/tensor_plan.h"

namespace greta {
namespace {

constexpr double kNearMatmul = 0.25;  ///< loose bounds from which exact ones are computed
constexpr double kNearAttention = 1.0 / 32.0;
constexpr int64_t kMostRows = 512;
constexpr int64_t kDoubles = 4 << 20;  ///< of one matrix of a block of rows

View view_of(std::vector<double>& matrix, int64_t width) { return {matrix.data(), width}; }

double ratio_of(double got, double expected, double certain) {
  if (same_special(expected, got)) return 0.0;
  const double error = std::abs(got - expected);
  if (error == 0.0) return 0.0;
  const double ratio = error / certain;
  return std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
}

/// Of the file, as the judged arithmetic has it: all outputs, or those at `places`.
class JudgedTensor : public Weight {
 public:
  JudgedTensor(WeightSource from, const WeightForm& how, std::vector<int64_t> places)
      : source(std::move(from)), form(how), places_(std::move(places)) {
    name = source.name;
    rows = places_.empty() ? source.rows : static_cast<int64_t>(places_.size());
    cols = source.cols;
    file_type = source.type;
  }
  int64_t output(int64_t row) const { return places_.empty() ? row : places_[static_cast<size_t>(row)]; }
  void read_back(int64_t first, int64_t count, float* out) const override {
    for (int64_t r = 0; r < count; ++r) judged_row(source, output(first + r), form, out + r * cols);
  }
  WeightSource source;
  WeightForm form;

 private:
  std::vector<int64_t> places_;
};

/// |w_b| of every block of 32: [rows, blocks], rounded up.
OwnMatrix block_norms(const JudgedTensor& tensor, ThreadPool& pool) {
  OwnMatrix norms(tensor.rows, ceil_div(tensor.cols, kNormBlock));
  pool.parallel_for(norms.rows, 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(static_cast<size_t>(tensor.cols)), magnitudes(values.size());
    for (int64_t row = begin; row < end; ++row) {
      tensor.read_back(row, 1, values.data());
      judged_magnitudes(tensor.source, tensor.output(row), tensor.form, values, magnitudes);
      for (int64_t b = 0; b < norms.cols; ++b) {
        double squares = 0.0;
        for (int64_t k = b * kNormBlock; k < std::min(tensor.cols, (b + 1) * kNormBlock); ++k)
          squares += double{magnitudes[static_cast<size_t>(k)]} * double{magnitudes[static_cast<size_t>(k)]};
        norms.row(row)[b] = rounded_up(std::sqrt(squares) * (1 + 0x1p-40));
      }
    }
  });
  return norms;
}

}  // namespace

/// Keeps the worst element of a row.
struct Judge::Worst {
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
  /// A part of the row that begins at element `first`, judged by itself.
  void join(const Worst& part, int64_t first) {
    const Judgement before = at;
    if (before.values == 0 || !(part.at.ratio <= before.ratio)) {
      at = part.at;
      at.index += first;
    }
    at.values = before.values + part.at.values;
    at.checksums = before.checksums + part.at.checksums;
    at.checksums_failed = before.checksums_failed + part.at.checksums_failed;
  }
  /// The row judged again, whole.
  void take(const Worst& whole) {
    const auto [checksums, failed] = std::pair(at.checksums, at.checksums_failed);
    at = whole.at;
    at.checksums = checksums;
    at.checksums_failed = failed;
  }
};

bool Judgement::suspect() const { return !failed() && std::abs(got - expected) > likely; }

void Judge::report(Worst& worst, Stage stage, int64_t row, int64_t outputs, const Sink& sink) {
  worst.at.stage = stage;
  worst.at.row = row;
  worst.at.outputs = outputs;
  sink(worst.at);
}

struct Judge::Tensor {
  JudgedTensor weight;  ///< the judged outputs
  OwnMatrix norms;
  std::unique_ptr<Checksums> checksums;  ///< of all outputs, where some are judged
};

Judge::Judge(const Plan& plan, const Arithmetic& arithmetic, const Sampling& sampling, int threads)
    : plan_(plan), hp_(plan.hp), wiring_(plan.hp), arithmetic_(arithmetic), sampling_(sampling) {
  BackendOptions options;
  options.threads = threads;
  options.kv_type = KvType::f64;
  reference_ = make_backend("reference", options);
  pool_ = std::make_unique<ThreadPool>(threads > 0 ? threads : usable_cpus());
}
Judge::~Judge() = default;

/// `expert`: of a stack.
const Judge::Tensor& Judge::tensor(int unit, Role role, Extent extent, int64_t expert) {
  auto& slot = tensors_[{unit, role, extent, expert}];
  if (slot) return *slot;
  const auto* t = planned_tensor(plan_, layer_of_unit(unit, hp_.layers), role);
  if (t == nullptr) fail("the judge's plan has no tensor for this operator");
  const WeightSource all = source_of(*t);
  const WeightSource source = all.experts > 1 ? all.expert(expert) : all;
  const uint64_t seed = weight_seed(sampling_.seed, unit, role);
  const bool some = extent == Extent::sampled;
  const WeightForm form(arithmetic_.weights, arithmetic_.matmul(source.type, source.cols).weight);
  JudgedTensor weight(source, form, some ? sampled_outputs(source.rows, seed) : std::vector<int64_t>());
  OwnMatrix norms = block_norms(weight, *pool_);
  slot = std::make_unique<Tensor>(Tensor{std::move(weight), std::move(norms), nullptr});
  if (some) slot->checksums = std::make_unique<Checksums>(source, form, seed, *pool_);
  return *slot;
}

void Judge::judge(const UnitRows& data, std::span<const RowName> rows, const LayerHistory& history,
                  const Sink& sink) {
  for (const StageRule& rule : wiring_.rules_of_unit(data.unit)) {
    if (rule.op == Op::wire || !data.stages.contains(rule.stage)) continue;
    if (rule.op == Op::attention) {
      if (data.stages.contains(rule.reads[0]) && !history.empty())
        judge_attention_rows(data, rows, history, sink);
      continue;
    }
    if (!std::all_of(rule.reads.begin(), rule.reads.end(), [&](Stage s) { return data.stages.contains(s); }))
      continue;
    if (rule.op == Op::matmul) {
      judge_matmul(data, rule, sink);
    } else if (rule.op == Op::expert_matmul) {
      judge_experts(data, rule, sink);
    } else {
      judge_by_row(data, rows, rule, sink);
    }
  }
}

/// Some rows of a product: operands [rows, k] as the kernel rounds them, FP64 values and T' [rows, n] of the
/// judged outputs, and the checksums' own [rows, groups].
struct Judge::Product {
  const Tensor& tensor;
  MatmulArithmetic how;
  bool cached;  ///< the stage v: the cache's rounding is in its bound, and fills it; T counts past that alone
  std::vector<float> bias;
  std::vector<double> x, norms, value, magnitude, sum, sum_magnitude;
  int64_t k() const { return tensor.weight.cols; }
  int64_t n() const { return tensor.weight.rows; }  ///< judged
  double lost() const { return operand_underflow(how.operand, k()); }
  int64_t groups() const { return tensor.checksums ? tensor.checksums->groups() : 0; }
  double bias_of(int64_t output) const {
    return bias.empty() ? 0.0 : double{bias[static_cast<size_t>(output)]};
  }
};

Judge::Product Judge::product(int unit, const StageRule& rule, Extent extent, int64_t expert) {
  const Tensor& t = tensor(unit, rule.weight, extent, expert);
  return {t,
          arithmetic_.matmul(t.weight.file_type, t.weight.cols),
          rule.stage == Stage::v,
          planned_vector(plan_, layer_of_unit(unit, hp_.layers), rule.bias),
          {},
          {},
          {},
          {},
          {},
          {}};
}

void Judge::judge_matmul(const UnitRows& data, const StageRule& rule, const Sink& sink) {
  const StoredRows& got = data.stages.at(rule.stage);
  std::vector<Worst> worst(static_cast<size_t>(got.rows()));
  judge_all(data.unit, rule, 0, data.stages.at(rule.reads[0]), got, worst);
  for (size_t r = 0; r < worst.size(); ++r)
    report(worst[r], rule.stage, static_cast<int64_t>(r), got.width(), sink);
}

/// Expert by expert: the slots that chose it are the rows of one product. A slot without an expert (the
/// choice has failed then) is as wrong as can be.
void Judge::judge_experts(const UnitRows& data, const StageRule& rule, const Sink& sink) {
  const StoredRows& in = data.stages.at(rule.reads[0]);
  const StoredRows& experts = data.stages.at(rule.reads[1]);
  const StoredRows& got = data.stages.at(rule.stage);
  const int64_t used = experts.width();
  const int64_t width = got.width() / used;
  const int64_t cols =
      source_of(*planned_tensor(plan_, layer_of_unit(data.unit, hp_.layers), rule.weight)).cols;
  std::map<int64_t, std::vector<int64_t>> slots;  // by expert: row * used + slot
  for (int64_t i = 0; i < got.rows() * used; ++i) {
    const double id = experts.at(i / used, i % used);
    slots[id >= 0 && id < static_cast<double>(hp_.experts) ? static_cast<int64_t>(id) : -1].push_back(i);
  }
  std::vector<Worst> rows(static_cast<size_t>(got.rows()));
  for (const auto& [expert, mine] : slots) {
    std::vector<Worst> worst(mine.size());
    if (expert < 0) {
      for (Worst& w : worst) w.see(0, std::numeric_limits<double>::quiet_NaN(), 0.0, 0.0, 0.0);
    } else {
      StoredRows x(cols, in.wide()), y(width, got.wide());
      std::vector<double> values(static_cast<size_t>(std::max(in.width(), got.width())));
      for (const int64_t i : mine) {
        in.get(i / used, values.data());
        x.append(values.data() + (in.width() == cols ? 0 : i % used * cols));
        got.get(i / used, values.data());
        y.append(values.data() + i % used * width);
      }
      judge_all(data.unit, rule, expert, x, y, worst);
    }
    for (size_t i = 0; i < mine.size(); ++i)
      rows[static_cast<size_t>(mine[i] / used)].join(worst[i], mine[i] % used * width);
  }
  for (size_t r = 0; r < rows.size(); ++r)
    report(rows[r], rule.stage, static_cast<int64_t>(r), got.width(), sink);
}

/// Every row of `got`, sampled where this judge samples; rows whose checksum fails are judged whole.
void Judge::judge_all(int unit, const StageRule& rule, int64_t expert, const StoredRows& in,
                      const StoredRows& got, std::span<Worst> worst) {
  Product some = product(unit, rule, sampling_.sampled ? Extent::sampled : Extent::whole, expert);
  std::vector<int64_t> rows(static_cast<size_t>(got.rows()));
  std::iota(rows.begin(), rows.end(), 0);
  judge_rows(some, in, got, rows, worst);

  std::vector<int64_t> failed;
  for (const int64_t r : rows)
    if (worst[static_cast<size_t>(r)].at.checksums_failed > 0) failed.push_back(r);
  if (failed.empty()) return;
  Product all = product(unit, rule, Extent::whole, expert);
  std::vector<Worst> whole(failed.size());
  judge_rows(all, in, got, failed, whole);
  for (size_t i = 0; i < failed.size(); ++i) worst[static_cast<size_t>(failed[i])].take(whole[i]);
}

/// So many rows together that a matrix of them stays within kDoubles.
void Judge::judge_rows(Product& p, const StoredRows& in, const StoredRows& got, std::span<const int64_t> rows,
                       std::span<Worst> worst) {
  const auto most =
      static_cast<size_t>(std::clamp<int64_t>(kDoubles / std::max({p.n(), p.k(), p.groups()}), 1, kMostRows));
  for (size_t first = 0; first < rows.size(); first += most) {
    const auto block = rows.subspan(first, std::min(most, rows.size() - first));
    multiply(p, in, block);
    pool_->parallel_for(static_cast<int64_t>(block.size()), 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        Worst& mine = worst[first + static_cast<size_t>(r)];
        judge_products(p, r, got, block[static_cast<size_t>(r)], mine);
        if (p.tensor.checksums) check_sums(p, r, got, block[static_cast<size_t>(r)], mine);
      }
    });
  }
}

/// Operands and everything that is computed of them.
void Judge::multiply(Product& p, const StoredRows& in, std::span<const int64_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t k = p.k();
  const int64_t blocks = p.tensor.norms.cols;
  p.x.resize(static_cast<size_t>(count * k));
  p.norms.assign(static_cast<size_t>(count * blocks), 0.0);
  pool_->parallel_for(count, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const auto operand = rounded_operand(values_of(in, rows[static_cast<size_t>(r)]), p.how.operand);
      std::copy(operand.begin(), operand.end(), p.x.begin() + r * k);
      double* norm = p.norms.data() + r * blocks;
      for (int64_t i = 0; i < k; ++i)
        norm[i / kNormBlock] += operand[static_cast<size_t>(i)] * operand[static_cast<size_t>(i)];
      for (int64_t b = 0; b < blocks; ++b) norm[b] = std::sqrt(norm[b]) * (1 + 0x1p-20);
    }
  });
  const auto product = [&](std::vector<double>& from, const Weight& weight, std::vector<double>& to) {
    to.resize(static_cast<size_t>(count * weight.rows));
    reference_->matmul({count,
                        view_of(from, weight.cols),
                        {{{&weight, nullptr, view_of(to, weight.rows), Stage::logits}}},
                        1,
                        {}});
  };
  product(p.x, p.tensor.weight, p.value);
  product(p.norms, p.tensor.norms, p.magnitude);
  if (!p.tensor.checksums) return;
  product(p.x, p.tensor.checksums->sums(), p.sum);
  product(p.norms, p.tensor.checksums->norms(), p.sum_magnitude);
}

/// Of an output with this T and this value.
double Judge::bound(const Product& p, double T, double y) const {
  const double certain = product_bound(T, y, p.how.roundings, arithmetic_.sum_unit, p.lost());
  return p.cached ? with_cache_rounding(y, certain, arithmetic_.kv_type) : certain;
}

/// Row r of the block against the run's row, output by output.
void Judge::judge_products(const Product& p, int64_t r, const StoredRows& got, int64_t row,
                           Worst& worst) const {
  const double likely_share =
      p.cached || arithmetic_.sums_truncate ? 1.0 : std::min(1.0, kLambda / std::sqrt(p.how.roundings));
  const auto exact_bound = [&](int64_t output, double y, double loose) {
    const JudgedWeight weight = judged_weight(p.tensor.weight.source, output, p.tensor.weight.form);
    double T = 0.0;
    for (int64_t j = 0; j < p.k(); ++j)
      T += weight.magnitude[static_cast<size_t>(j)] * std::abs(p.x[static_cast<size_t>(r * p.k() + j)]);
    return std::max(bound(p, T, y), kNearMatmul * loose);
  };
  for (int64_t i = 0; i < p.n(); ++i) {
    const auto at = static_cast<size_t>(r * p.n() + i);
    const int64_t output = p.tensor.weight.output(i);
    const double y = p.value[at] + p.bias_of(output);
    const double g = got.at(row, output);
    double certain = bound(p, p.magnitude[at], y);
    const double loose = ratio_of(g, y, certain);
    const bool near = p.cached ? std::abs(g - y) > bound(p, 0.0, y) : loose > kNearMatmul;
    if (near && !worst.at.failed() && loose <= 1.0) certain = exact_bound(output, y, certain);
    worst.see(output, g, y, certain, certain * likely_share);
  }
  worst.at.values = p.n();
  Judgement& j = worst.at;
  if (!j.failed() || !std::isfinite(j.expected)) return;
  j.certain = exact_bound(j.index, j.expected, j.certain);
  j.ratio = ratio_of(j.got, j.expected, j.certain);
}

/// The checksums of row r. A NaN among the operands makes every output NaN: then they must all be.
void Judge::check_sums(const Product& p, int64_t r, const StoredRows& got, int64_t row, Worst& worst) const {
  const Checksums& sums = *p.tensor.checksums;
  const double* x = p.x.data() + r * p.k();
  const bool all_nan = std::any_of(x, x + p.k(), [](double value) { return std::isnan(value); });
  // Of any value of that size: what a value's own place between two numbers of the cache spares it is not
  // known of others.
  const auto widest = [&](double y) {
    const double certain = product_bound(0.0, y, p.how.roundings, arithmetic_.sum_unit, p.lost());
    return p.cached ? with_widest_cache_rounding(y, certain, arithmetic_.kv_type) : certain;
  };
  const double constant = widest(0.0);
  const double relative = widest(1.0) - constant;
  for (int64_t group = 0; group < sums.groups(); ++group) {
    double sum = 0.0, values = 0.0, coefficients = 0.0;
    bool nan = true;
    for (int64_t i = sums.first(group); i < sums.end(group); ++i) {
      const double c = sums.coefficient(i);
      const double g = got.at(row, i);
      sum += c * (g - p.bias_of(i));
      values += c * c * g * g;
      coefficients += c * c;
      nan = nan && std::isnan(g);
    }
    const auto at = static_cast<size_t>(r * sums.groups() + group);
    const ChecksumSizes sizes{p.sum_magnitude[at], std::sqrt(values), std::sqrt(coefficients) * constant};
    const double limit = checksum_limit(sizes, relative, p.how.roundings, arithmetic_, p.k());
    const bool holds = all_nan ? nan : std::isfinite(sum) && std::abs(sum - p.sum[at]) <= limit;
    ++worst.at.checksums;
    worst.at.checksums_failed += holds ? 0 : 1;
  }
}

void Judge::judge_by_row(const UnitRows& data, std::span<const RowName> rows, const StageRule& rule,
                         const Sink& sink) {
  const StoredRows& got = data.stages.at(rule.stage);
  std::vector<Worst> worst(static_cast<size_t>(got.rows()));
  pool_->parallel_for(got.rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const Judged judged = judged_stage(plan_, arithmetic_, data, r, rows[static_cast<size_t>(r)], {}, rule);
      for (int64_t i = 0; i < got.width(); ++i) {
        const auto at = static_cast<size_t>(i);
        worst[static_cast<size_t>(r)].see(i, got.at(r, i), judged.value[at], judged.certain[at],
                                          judged.certain[at]);
      }
      worst[static_cast<size_t>(r)].at.values = got.width();
    }
  });
  for (int64_t r = 0; r < got.rows(); ++r)
    report(worst[static_cast<size_t>(r)], rule.stage, r, got.width(), sink);
}

/// What one sequence's cache holds, in FP64, as the reference's cache lies: [position, kv_dim] in each page,
/// so that with pages in order it is one matrix. And for the loose bounds the largest magnitudes up to each
/// position.
struct Judge::SequenceCache {
  SequenceCache(const KvHistory& kv, const HParams& hp);
  int64_t keys, pages;
  std::vector<double> k, v;
  std::vector<double> largest_k;  ///< norm of a head's key: [keys, kv_heads]
  std::vector<double> largest_v;  ///< [keys, kv_dim]
  std::vector<int32_t> page_table;
};

Judge::SequenceCache::SequenceCache(const KvHistory& kv, const HParams& hp)
    : keys(kv.keys.rows()), pages(ceil_div(keys, kKvPage)) {
  const int64_t kv_dim = hp.kv_dim();
  k.assign(static_cast<size_t>(pages * kKvPage * kv_dim), 0.0);
  v.assign(k.size(), 0.0);
  largest_k.assign(static_cast<size_t>(keys * hp.kv_heads), 0.0);
  largest_v.assign(static_cast<size_t>(keys * kv_dim), 0.0);
  for (int64_t page = 0; page < pages; ++page) page_table.push_back(static_cast<int32_t>(page));
  const auto running = [](std::vector<double>& largest, int64_t row, int64_t width, int64_t i, double x) {
    const double before = row == 0 ? 0.0 : largest[static_cast<size_t>((row - 1) * width + i)];
    largest[static_cast<size_t>(row * width + i)] = std::max(before, x);
  };
  for (int64_t j = 0; j < keys; ++j) {
    kv.keys.get(j, k.data() + j * kv_dim);
    kv.values.get(j, v.data() + j * kv_dim);
    for (int64_t h = 0; h < hp.kv_heads; ++h) {
      double squares = 0.0;
      for (int64_t d = 0; d < hp.head_dim; ++d) {
        const double x = k[static_cast<size_t>(j * kv_dim + h * hp.head_dim + d)];
        squares += x * x;
      }
      running(largest_k, j, hp.kv_heads, h, std::sqrt(squares));
    }
    for (int64_t i = 0; i < kv_dim; ++i)
      running(largest_v, j, kv_dim, i, std::abs(v[static_cast<size_t>(j * kv_dim + i)]));
  }
}

void Judge::judge_attention_rows(const UnitRows& data, std::span<const RowName> rows,
                                 const LayerHistory& history, const Sink& sink) {
  std::map<int32_t, std::vector<int64_t>> by_sequence;
  for (int64_t r = 0; r < data.stages.at(Stage::attn_out).rows(); ++r)
    by_sequence[rows[static_cast<size_t>(r)].sequence].push_back(r);
  for (const auto& [sequence, mine] : by_sequence) {
    SequenceCache cache(history.at(sequence), hp_);
    for (size_t first = 0; first < mine.size(); first += kMostRows)
      judge_attention_block(data, rows,
                            std::span(mine).subspan(first, std::min<size_t>(kMostRows, mine.size() - first)),
                            history, cache, sink);
  }
}

void Judge::judge_attention_block(const UnitRows& data, std::span<const RowName> rows,
                                  std::span<const int64_t> block, const LayerHistory& history,
                                  SequenceCache& cache, const Sink& sink) {
  const auto count = static_cast<int64_t>(block.size());
  const int64_t q_dim = hp_.q_dim();
  std::vector<double> q(static_cast<size_t>(count * q_dim)), out(q.size());
  std::vector<int32_t> positions;
  const std::vector<int32_t> zeros(block.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    data.stages.at(Stage::q_post_rope).get(block[static_cast<size_t>(i)], q.data() + i * q_dim);
    for (int64_t h = 0; h < hp_.heads; ++h) {
      const std::span<double> head(q.data() + i * q_dim + h * hp_.head_dim,
                                   static_cast<size_t>(hp_.head_dim));
      std::ranges::copy(rounded_operand(head, arithmetic_.query), head.begin());
    }
    positions.push_back(rows[static_cast<size_t>(block[static_cast<size_t>(i)])].position);
  }
  const BatchView batch{count, zeros.data(), positions.data(), zeros.data(), 1};
  const KvLayer kv{
      cache.k.data(),          cache.v.data(), static_cast<int>(hp_.kv_heads), static_cast<int>(hp_.head_dim),
      cache.page_table.data(), cache.pages};
  reference_->attention({&batch,
                         static_cast<int>(hp_.heads),
                         hp_.attention_scale,
                         view_of(q, q_dim),
                         kv,
                         view_of(out, q_dim),
                         hp_.attention_softcap,
                         hp_.window_of(layer_of_unit(data.unit, hp_.layers)),
                         {}});
  std::vector<Worst> worst(block.size());
  pool_->parallel_for(count, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t h = 0; h < hp_.heads; ++h)
        judge_head(data, rows, block[static_cast<size_t>(i)], h, history, cache, q.data() + i * q_dim,
                   out.data() + i * q_dim, worst[static_cast<size_t>(i)]);
  });
  for (Worst& row : worst) row.at.values = q_dim;
  for (int64_t i = 0; i < count; ++i)
    report(worst[static_cast<size_t>(i)], Stage::attn_out, block[static_cast<size_t>(i)], q_dim, sink);
}

/// One head of one row: `q` and `expected` are the row's, [heads * head_dim].
void Judge::judge_head(const UnitRows& data, std::span<const RowName> rows, int64_t row, int64_t head,
                       const LayerHistory& history, const SequenceCache& cache, const double* q,
                       const double* expected, Worst& worst) const {
  const RowName& name = rows[static_cast<size_t>(row)];
  const int64_t head_dim = hp_.head_dim;
  const int64_t kv_head = head / (hp_.heads / hp_.kv_heads);
  const int64_t last = name.position;
  const int64_t window = hp_.window_of(layer_of_unit(data.unit, hp_.layers));
  const int64_t begin = window == 0 ? 0 : std::max<int64_t>(last + 1 - window, 0);
  const double u = arithmetic_.unit;
  double squares = 0.0;
  for (int64_t d = 0; d < head_dim; ++d) squares += q[head * head_dim + d] * q[head * head_dim + d];
  const double score = (1 + 0x1p-20) * std::abs(hp_.attention_scale) * std::sqrt(squares) *
                       cache.largest_k[static_cast<size_t>(last * hp_.kv_heads + kv_head)];
  double delta =
      (gamma(arithmetic_.score_roundings(head_dim), arithmetic_.sum_unit) + kArgumentRoundings * u) * score;
  if (hp_.attention_softcap > 0)
    delta += softcap_error(score, hp_.attention_softcap, arithmetic_.tanh_ulps, u);
  const int roundings = arithmetic_.value_roundings(last + 1 - begin, last / kKvPage - begin / kKvPage + 1);
  const double relative = attention_relative(delta, roundings, arithmetic_);
  // A walk's own bound is far below the loose one of many keys, near its root.
  const double near = arithmetic_.page_sum_roundings > 0
                          ? std::min(kNearAttention, 0.5 / std::sqrt(static_cast<double>(roundings)))
                          : kNearAttention;
  Judged exact;
  for (int64_t d = 0; d < head_dim; ++d) {
    const int64_t at = head * head_dim + d;
    const double got = data.stages.at(Stage::attn_out).at(row, at);
    double certain =
        relative * cache.largest_v[static_cast<size_t>(last * hp_.kv_dim() + kv_head * head_dim + d)] +
        (0x1p-126 + arithmetic_.probability_absolute) * static_cast<double>(last + 1) *
            std::max(1.0, cache.largest_v[static_cast<size_t>(last * hp_.kv_dim() + kv_head * head_dim + d)]);
    double likely = certain;
    if (ratio_of(got, expected[at], certain) > near && std::isfinite(expected[at])) {
      if (exact.certain.empty()) exact = judged_head(hp_, arithmetic_, data, row, name, history, head);
      const double least = near * certain;
      certain = std::max(exact.certain[static_cast<size_t>(d)], least);
      likely = exact.likely.empty() ? certain : std::max(exact.likely[static_cast<size_t>(d)], least);
    }
    worst.see(at, got, expected[at], certain, likely);
  }
}

}  // namespace greta
