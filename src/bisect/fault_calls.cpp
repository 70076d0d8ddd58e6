// Faults of the engine around the operators: a call is handed another row, page, position, weight or cache
// than the plan says. Repeated with the right arguments, it is sound.
#include <algorithm>
#include <map>

#include "bisect/fault_base.h"

namespace greta {
namespace {

constexpr uint64_t kVictim = 3;  // what plant_bits() are drawn for
constexpr uint64_t kOther = 4;

/// What the last call at the planted place saw of sequence 0.
struct Remembered {
  int64_t position = -1;
  std::vector<double> row;
};

class NormInput : public CallFault {
 public:
  using CallFault::CallFault;
  void rmsnorm(const RmsnormArgs& args) override {
    const bool planted = here(args.site, args.rows, args.site.stage);
    std::optional<std::vector<double>> other;
    if (planted) other = other_row(args);
    remember(args);
    below().rmsnorm(args);
    if (!other) return;
    const int64_t row = *planted_row(args.site, args.rows);
    const Scratch in = scratch(1, args.x.width);
    const Scratch out = scratch(1, args.out.width);
    below().write(in.view, 0, 1, other->data());
    RmsnormArgs one = args;
    one.rows = 1;
    one.x = in.view;
    one.out = out.view;
    below().rmsnorm(one);
    std::vector<double> right = row_of(args.out, row);
    below().write(args.out, row, 1, row_of(out.view, 0).data());
    log_row(args.site, args.site.stage, row, std::move(right), row_of(args.out, row));
  }

 private:
  /// The token before, in this call or the last; else the token after.
  std::optional<std::vector<double>> other_row(const RmsnormArgs& args) const {
    const BatchView& batch = *args.site.batch;
    const int64_t row = *planted_row(args.site, args.rows);
    const auto beside = [&](int64_t at) {
      return at >= 0 && at < args.rows && batch.sequences[args.site.batch_row(at)] == 0;
    };
    if (beside(row - 1)) return row_of(args.x, row - 1);
    if (last_.position >= 0 && last_.position == plant_.token - 1) return last_.row;
    if (beside(row + 1)) return row_of(args.x, row + 1);
    return std::nullopt;
  }
  void remember(const RmsnormArgs& args) {
    if (args.site.batch == nullptr || args.site.layer != plant_.layer || args.site.stage != plant_.stage)
      return;
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t at = args.site.batch_row(i);
      if (args.site.batch->sequences[at] == 0 && args.site.batch->positions[at] == plant_.token - 1)
        last_ = {plant_.token - 1, row_of(args.x, i)};
    }
  }
  Remembered last_;
};

class RopePosition : public CallFault {
 public:
  using CallFault::CallFault;
  /// Rotated for the next position, but stored where it belongs.
  void rope(const RopeArgs& args) override {
    below().rope(args);
    if (!here(args.site, args.batch->rows)) return;
    const BatchView& batch = *args.batch;
    const std::vector<double> q = row_of(args.q_out, 0);
    const std::vector<double> k = cached_row(args.cache, KvPart::k, batch, 0);
    const OnePosition next(batch, batch.sequences[0], batch.positions[0] + 1);
    const ScratchCache aside(below(), args.cache, next.batch());
    RopeArgs wrong = args;
    wrong.batch = &next.batch();
    wrong.cache = aside.layer();
    below().rope(wrong);
    const std::vector<double> rotated = cached_row(aside.layer(), KvPart::k, next.batch(), 0);
    below().write_kv(args.cache, KvPart::k, batch, 0, rotated.data());
    log_row(args.site, Stage::q_post_rope, 0, q, row_of(args.q_out, 0));
    log_row(args.site, Stage::k_post_rope, 0, k, cached_row(args.cache, KvPart::k, batch, 0));
  }
};

/// The rope operator's row of one token never arrives in the cache: its memory is as it was made.
class KvStale : public CallFault {
 public:
  using CallFault::CallFault;
  void rope(const RopeArgs& args) override {
    below().rope(args);
    const int64_t rows = args.batch->rows;
    if (!here(args.site, rows)) return;
    const int64_t row = *planted_row(args.site, rows);
    const KvPart part = plant_.stage == Stage::v ? KvPart::v : KvPart::k;
    std::vector<double> right = cached_row(args.cache, part, *args.batch, row);
    below().write_kv(args.cache, part, *args.batch, row, std::vector<double>(right.size(), 0.0).data());
    log_row(args.site, plant_.stage, row, std::move(right), cached_row(args.cache, part, *args.batch, row));
  }
};

/// Attention is handed another cache than its own: kv-layer-base, kv-page, kv-chunk.
class CacheFault : public CallFault {
 public:
  using CallFault::CallFault;
  void rope(const RopeArgs& args) override {
    first_layer_.emplace(args.cache.pages, args.cache);
    for (int64_t row = 0; row < args.batch->rows; ++row)
      lengths_[args.batch->sequences[row]] = args.batch->positions[row] + 1;
    below().rope(args);
  }
  void attention(const AttentionArgs& args) override {
    if (!here(args.site, args.batch->rows, Stage::attn_out)) return below().attention(args);
    Scratch right = healthy_call(args, args.batch->rows, &Backend::attention);
    if (is("kv-layer-base")) {
      AttentionArgs wrong = args;
      wrong.cache = first_layer_.at(args.cache.pages);
      below().attention(wrong);
    } else if (is("kv-page")) {
      other_page(args);
    } else {
      own_keys_only(args);
    }
    finish(args.site, Stage::attn_out, std::move(right), args.out, args.batch->rows);
  }

 private:
  /// A page of another sequence, or where there is none another page of sequence 0. Slots never written in
  /// this run are zeros (what memory holds there is another run's), so that every run is spoilt alike.
  struct Page {
    int32_t sequence;
    int64_t first, end;  ///< positions
  };
  Page page_for(const AttentionArgs& args, int64_t victim) const {
    std::vector<Page> pages;
    const auto add_pages = [&](int32_t sequence, int64_t length) {
      for (int64_t first = 0; first < length; first += kKvPage)
        if ((sequence != 0 || first != victim * kKvPage) && args.cache.page_of(sequence, first) >= 0)
          pages.push_back({sequence, first, std::min<int64_t>(first + kKvPage, length)});
    };
    for (const auto& [sequence, length] : lengths_)
      if (sequence > 0 && sequence < args.batch->sequence_count) add_pages(sequence, length);
    if (pages.empty()) add_pages(0, last_positions(*args.batch)[0] + 1);
    return pages[plant_bits(plant_, kOther) % pages.size()];
  }

  /// One full page of sequence 0 is `page_for` it.
  void other_page(const AttentionArgs& args) {
    const BatchView& batch = *args.batch;
    const std::vector<int64_t> last = last_positions(batch);
    if (last[0] < kKvPage) return below().attention(args);
    const auto victim =
        static_cast<int64_t>(plant_bits(plant_, kVictim) % static_cast<uint64_t>(last[0] / kKvPage));
    const Page page = page_for(args, victim);
    const ScratchCache copy(below(), args.cache, batch);
    for (size_t s = 0; s < last.size(); ++s) {
      for (int64_t j = 0; j <= last[s]; ++j) {
        const bool replaced = s == 0 && j / kKvPage == victim;
        const int64_t from = replaced ? page.first + j % kKvPage : j;
        if (replaced && from >= page.end) continue;
        if (args.cache.page_of(replaced ? page.sequence : static_cast<int32_t>(s), from) < 0) continue;
        const OnePosition read(batch, replaced ? page.sequence : static_cast<int32_t>(s), from);
        const OnePosition written(batch, static_cast<int32_t>(s), j);
        for (const KvPart part : {KvPart::k, KvPart::v})
          below().write_kv(copy.layer(), part, written.batch(), 0,
                           cached_row(args.cache, part, read.batch(), 0).data());
      }
    }
    on(copy, args);
  }

  /// Keys of earlier calls are zeros.
  void own_keys_only(const AttentionArgs& args) {
    const ScratchCache fresh(below(), args.cache, *args.batch);
    for (int64_t row = 0; row < args.batch->rows; ++row) {
      for (const KvPart part : {KvPart::k, KvPart::v})
        below().write_kv(fresh.layer(), part, *args.batch, row,
                         cached_row(args.cache, part, *args.batch, row).data());
    }
    on(fresh, args);
  }

  void on(const ScratchCache& cache, const AttentionArgs& args) {
    AttentionArgs wrong = args;
    wrong.cache = cache.layer();
    below().attention(wrong);
  }

  std::map<const int32_t*, KvLayer> first_layer_;  ///< of those on the same pages
  std::map<int32_t, int64_t> lengths_;             ///< of each sequence, as last seen
};

class ResidualStale : public CallFault {
 public:
  using CallFault::CallFault;
  void add(const AddArgs& args) override {
    if (args.site.batch == nullptr || args.site.layer != plant_.layer || args.site.stage != plant_.stage)
      return below().add(args);
    const Remembered before = last_;
    for (int64_t i = 0; i < args.rows; ++i)
      if (args.site.batch->sequences[i] == 0) last_ = {args.site.batch->positions[i], row_of(args.a, i)};
    const bool follows = before.position >= 0 && before.position == last_.position - 1;
    if (!here(args.site, args.rows) || !follows) return below().add(args);
    Scratch right = healthy(1, args.out.width, [&](const View& out) {
      AddArgs call = args;
      call.out = out;
      below().add(call);
    });
    const Scratch stale = scratch(1, args.a.width);
    below().write(stale.view, 0, 1, before.row.data());
    AddArgs wrong = args;
    wrong.a = stale.view;
    below().add(wrong);
    finish(args.site, args.site.stage, std::move(right), args.out, 1);
  }

 private:
  Remembered last_;
};

class GateUpSwap : public CallFault {
 public:
  using CallFault::CallFault;
  void glu(const GluArgs& args) override {
    if (!here(args.site, args.rows, args.site.stage)) return below().glu(args);
    const Scratch right = scratch(args.rows, args.out.width);  // both aside: out may be gate
    const Scratch wrong = scratch(args.rows, args.out.width);
    below().glu({args.rows, args.activation, args.gate, args.up, right.view, args.site});
    below().glu({args.rows, args.activation, args.up, args.gate, wrong.view, args.site});
    for (int64_t i = 0; i < args.rows; ++i) {
      below().write(args.out, i, 1, row_of(wrong.view, i).data());
      log_row(args.site, args.site.stage, i, row_of(right.view, i), row_of(args.out, i));
    }
  }
};

/// A product is handed another operand: final-norm-skip (x), weight-layer (w of the layer before).
class ProductFault : public CallFault {
 public:
  using CallFault::CallFault;
  void rmsnorm(const RmsnormArgs& args) override {
    if (args.site.stage == Stage::final_norm) before_final_norm_ = args.x;
    below().rmsnorm(args);
  }
  void matmul(const MatmulArgs& args) override {
    remember(args);
    const auto index = planted_output(args);
    if (!index) return below().matmul(args);
    const MatmulOutput& output = args.outputs[*index];
    MatmulArgs wrong = args;
    if (is("final-norm-skip")) {
      wrong.x = before_final_norm_;
    } else {
      wrong.outputs[*index].weight = layer_before_;
    }
    Scratch right = healthy_product(args, output);
    below().matmul(wrong);
    finish(args.site, output.stage, std::move(right), output.out, args.rows);
  }
  void expert_matmul(const ExpertMatmulArgs& args) override {  // weight-layer
    remember(args);
    const auto index = planted_output(args);
    if (!index) return below().expert_matmul(args);
    const MatmulOutput& output = args.outputs[*index];
    ExpertMatmulArgs wrong = args;
    wrong.outputs[*index].weight = layer_before_;
    Scratch right = healthy_product(args, output);
    below().expert_matmul(wrong);
    finish(args.site, output.stage, std::move(right), output.out, args.rows);
  }

 private:
  template <class Args>
  void remember(const Args& args) {
    if (args.site.layer + 1 != plant_.layer) return;
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
      if (args.outputs[i].stage == plant_.stage) layer_before_ = args.outputs[i].weight;
  }
  View before_final_norm_;
  const Weight* layer_before_ = nullptr;
};

template <class Fault>
std::unique_ptr<Backend> make(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp) {
  return std::make_unique<Fault>(std::move(backend), plant, hp);
}

}  // namespace

std::unique_ptr<Backend> make_call_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                         const HParams& hp) {
  const std::string_view id = plant.info->id;
  const auto maker = id == "norm-input"       ? &make<NormInput>
                     : id == "rope-pos"       ? &make<RopePosition>
                     : id == "kv-stale"       ? &make<KvStale>
                     : id == "residual-stale" ? &make<ResidualStale>
                     : id == "gate-up-swap"   ? &make<GateUpSwap>
                     : id.starts_with("kv-")  ? &make<CacheFault>
                                              : &make<ProductFault>;
  return maker(std::move(backend), plant, hp);
}

}  // namespace greta
