// A race: one row that the planted call reads (or where it reads none of its own, the row that it leaves) is
// overwritten in about half of the calls, each time differently. What was read is put back, so that this call
// alone is spoilt.
#include <algorithm>
#include <cmath>
#include <random>

#include "bisect/fault_base.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

class RaceFault : public CallFault {
 public:
  RaceFault(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp)
      : CallFault(std::move(backend), plant, hp), entropy_(std::random_device{}()) {}

  void embed(const EmbedArgs& args) override {
    below().embed(args);
    overwrite_output(args.site, Stage::embed_out, args.out, args.batch->rows);
  }
  void rmsnorm(const RmsnormArgs& args) override {
    const RmsnormArgs whole = whole_rows(args);
    race(whole.site, whole.site.stage, whole.x, whole.out, whole.rows, [&](const View& out) {
      RmsnormArgs call = args;
      call.out.data = out.data;
      below().rmsnorm(call);
    });
  }
  void matmul(const MatmulArgs& args) override {
    const auto run = [&](const View& first) {
      MatmulArgs call = args;
      call.outputs[0].out = first;
      below().matmul(call);
    };
    race(args.site, args.outputs[0].stage, args.x, args.outputs[0].out, args.rows, run);
    for (size_t i = 1; i < static_cast<size_t>(args.count); ++i)
      if (args.outputs[i].stage != Stage::v)  // rope's v: below
        overwrite_output(args.site, args.outputs[i].stage, args.outputs[i].out, args.rows);
  }
  void rope(const RopeArgs& args) override {
    const int64_t rows = args.batch->rows;
    const auto run = [&](const View& out) {
      RopeArgs call = args;
      call.q_out = out;
      below().rope(call);
    };
    const bool cached = plant_.stage == Stage::k_post_rope || plant_.stage == Stage::v;
    if (!cached) return race(args.site, Stage::q_post_rope, args.q, args.q_out, rows, run);
    run(args.q_out);
    if (!here(args.site, rows) || !fires()) return;
    const int64_t row = *planted_row(args.site, rows);
    const KvPart part = plant_.stage == Stage::v ? KvPart::v : KvPart::k;
    std::vector<double> right = cached_row(args.cache, part, *args.batch, row);
    const View& in = part == KvPart::v ? args.v : args.k;
    const std::vector<double> saved = overwrite(in, row);
    run(args.q_out);
    below().write(in, row, 1, saved.data());
    log_row(args.site, plant_.stage, row, std::move(right), cached_row(args.cache, part, *args.batch, row));
  }
  void attention(const AttentionArgs& args) override {
    race(args.site, Stage::attn_out, args.q, args.out, args.batch->rows, [&](const View& out) {
      AttentionArgs call = args;
      call.out = out;
      below().attention(call);
    });
  }
  void add(const AddArgs& args) override {
    race(args.site, args.site.stage, args.b, args.out, args.rows, [&](const View& out) {
      AddArgs call = args;
      call.out = out;
      below().add(call);
    });
  }
  void glu(const GluArgs& args) override {
    race(args.site, args.site.stage, args.up, args.out, args.rows, [&](const View& out) {
      GluArgs call = args;
      call.out = out;
      below().glu(call);
    });
  }

  void choose_experts(const ChooseExpertsArgs& args) override {
    below().choose_experts(args);
    overwrite_output(args.site, Stage::expert_weights, args.weights, args.rows);
  }
  void expert_matmul(const ExpertMatmulArgs& args) override {
    race(args.site, args.outputs[0].stage, args.x, args.outputs[0].out, args.rows, [&](const View& first) {
      ExpertMatmulArgs call = args;
      call.outputs[0].out = first;
      below().expert_matmul(call);
    });
    for (size_t i = 1; i < static_cast<size_t>(args.count); ++i)
      overwrite_output(args.site, args.outputs[i].stage, args.outputs[i].out, args.rows);
  }
  void combine(const CombineArgs& args) override {
    race(args.site, args.site.stage, args.x, args.out, args.rows, [&](const View& out) {
      CombineArgs call = args;
      call.out = out;
      below().combine(call);
    });
  }
  void softcap(const SoftcapArgs& args) override {
    race(args.site, args.site.stage, args.x, args.out, args.rows, [&](const View& out) {
      SoftcapArgs call = args;
      call.out = out;
      below().softcap(call);
    });
  }

 private:
  uint64_t draw() { return mix64(entropy_ + 0x9e3779b97f4a7c15u * ++draws_); }
  bool fires() {
    if (logging()) ++plant_.log->chances;
    return (draw() & 1) != 0;
  }

  /// Random numbers of the row's own size, in a stretch of random length. Returns what was there.
  std::vector<double> overwrite(const View& view, int64_t row) {
    std::vector<double> saved = row_of(view, row);
    std::vector<double> other = saved;
    double largest = 0x1p-10;
    for (const double x : saved) largest = std::isfinite(x) ? std::max(largest, std::abs(x)) : largest;
    const size_t count = other.size() / 2 + draw() % (other.size() - other.size() / 2);
    for (size_t i = 0; i < count; ++i)
      other[i] = largest * (static_cast<double>(draw() >> 11) * 0x1p-52 - 1.0);
    below().write(view, row, 1, other.data());
    return saved;
  }

  void overwrite_output(const Site& site, Stage stage, const View& out, int64_t rows) {
    if (!here(site, rows, stage) || !fires()) return;
    const int64_t row = *planted_row(site, rows);
    std::vector<double> right = overwrite(out, row);
    log_row(site, stage, row, std::move(right), row_of(out, row));
  }

  template <class Run>
  void race(const Site& site, Stage stage, const View& in, const View& out, int64_t rows, const Run& run) {
    if (!here(site, rows, stage) || !fires()) return run(out);
    const Scratch right = healthy(rows, out.width, run);
    const int64_t row = *planted_row(site, rows);
    const std::vector<double> saved = overwrite(in, row);
    run(out);
    if (in.data != out.data) below().write(in, row, 1, saved.data());
    if (right.view.data != nullptr) log_row(site, stage, row, row_of(right.view, row), row_of(out, row));
  }

  uint64_t entropy_;
  uint64_t draws_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_race_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                         const HParams& hp) {
  return std::make_unique<RaceFault>(std::move(backend), plant, hp);
}

}  // namespace greta
