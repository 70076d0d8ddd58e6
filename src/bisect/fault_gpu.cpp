// Faults of engines that copy between memories and launch recordings.
#include "bisect/fault_base.h"

namespace greta {
namespace {

/// What a call leaves is carried to its place row by row, by the device's own copies; one row's copy is lost:
/// its memory is as it was made.
class LostCopy : public CallFault {
 public:
  using CallFault::CallFault;

  void embed(const EmbedArgs& args) override { carry(args, args.batch->rows, &Backend::embed); }
  void attention(const AttentionArgs& args) override { carry(args, args.batch->rows, &Backend::attention); }
  void add(const AddArgs& args) override { carry(args, args.rows, &Backend::add); }
  void glu(const GluArgs& args) override { carry(args, args.rows, &Backend::glu); }
  void combine(const CombineArgs& args) override { carry(args, args.rows, &Backend::combine); }
  void softcap(const SoftcapArgs& args) override { carry(args, args.rows, &Backend::softcap); }
  void rmsnorm(const RmsnormArgs& args) override {
    const RmsnormArgs whole = whole_rows(args);
    carry(whole.site, whole.site.stage, whole.out, whole.rows, [&](const View& out) {
      RmsnormArgs call = args;
      call.out.data = out.data;
      below().rmsnorm(call);
    });
  }
  void choose_experts(const ChooseExpertsArgs& args) override {
    carry(args.site, Stage::expert_weights, args.weights, args.rows, [&](const View& out) {
      ChooseExpertsArgs call = args;
      call.weights = out;
      below().choose_experts(call);
    });
  }
  void matmul(const MatmulArgs& args) override { carry_product(args, &Backend::matmul); }
  void expert_matmul(const ExpertMatmulArgs& args) override { carry_product(args, &Backend::expert_matmul); }
  void rope(const RopeArgs& args) override {
    const bool cached = plant_.stage == Stage::k_post_rope || plant_.stage == Stage::v;
    if (cached && here(args.site, args.batch->rows)) return carry_cached(args);
    carry(args.site, Stage::q_post_rope, args.q_out, args.batch->rows, [&](const View& out) {
      RopeArgs call = args;
      call.q_out = out;
      below().rope(call);
    });
  }

 private:
  template <class Run>
  void carry(const Site& site, Stage stage, const View& to, int64_t rows, const Run& run) {
    if (!here(site, rows, stage)) return run(to);
    const Scratch from = scratch(rows, to.width);
    run(from.view);
    const int64_t lost = *planted_row(site, rows);
    for (int64_t i = 0; i < rows; ++i)
      below().write(to, i, 1, i == lost ? zeros(to.width).data() : row_of(from.view, i).data());
    log_row(site, stage, lost, row_of(from.view, lost), row_of(to, lost));
  }
  template <class Args>
  void carry(const Args& args, int64_t rows, void (Backend::*run)(const Args&)) {
    carry(args.site, args.site.stage, args.out, rows, [&](const View& out) {
      Args call = args;
      call.out = out;
      (below().*run)(call);
    });
  }
  template <class Args>
  void carry_product(const Args& args, void (Backend::*run)(const Args&)) {
    const auto index = planted_output(args);
    if (!index || plant_.stage == Stage::v) return (below().*run)(args);  // v: what the cache holds of it
    carry(args.site, plant_.stage, args.outputs[*index].out, args.rows, [&](const View& out) {
      Args call = args;
      call.outputs[*index].out = out;
      (below().*run)(call);
    });
  }
  void carry_cached(const RopeArgs& args) {
    const BatchView& batch = *args.batch;
    const ScratchCache from(below(), args.cache, batch);
    RopeArgs call = args;
    call.cache = from.layer();
    below().rope(call);
    const int64_t lost = *planted_row(args.site, batch.rows);
    for (const auto& [part, stage] : {std::pair(KvPart::k, Stage::k_post_rope), {KvPart::v, Stage::v}}) {
      for (int64_t i = 0; i < batch.rows; ++i) {
        std::vector<double> row = cached_row(from.layer(), part, batch, i);
        const bool dropped = i == lost && stage == plant_.stage;
        below().write_kv(args.cache, part, batch, i,
                         dropped ? zeros(static_cast<int64_t>(row.size())).data() : row.data());
        if (dropped) log_row(args.site, stage, i, std::move(row), cached_row(args.cache, part, batch, i));
      }
    }
  }
  static std::vector<double> zeros(int64_t count) {
    return std::vector<double>(static_cast<size_t>(count), 0.0);
  }
};

/// Where a one-token pass is recorded, the planted call's result goes where it once went: to memory of the
/// fault's own, so that each launch of the recording finds at the right place what an earlier call or pass
/// left there. Passes whose calls are launched one by one are sound.
class FrozenLaunch : public CallFault {
 public:
  using CallFault::CallFault;

  bool begin_pass(const Pass& pass) override {
    const BatchView& batch = *pass.batch;
    position_ = batch.rows == 1 && batch.sequences[0] == 0 ? batch.positions[0] : -1;
    frozen_ = false;
    if (!below().begin_pass(pass)) return false;
    log_launch();
    return true;
  }
  void end_pass() override {
    below().end_pass();
    if (frozen_) log_launch();
  }

  void embed(const EmbedArgs& args) override { once(args, args.batch->rows, &Backend::embed); }
  void rmsnorm(const RmsnormArgs& args) override { once(args, args.rows, &Backend::rmsnorm); }
  void attention(const AttentionArgs& args) override { once(args, args.batch->rows, &Backend::attention); }
  void add(const AddArgs& args) override { once(args, args.rows, &Backend::add); }
  void glu(const GluArgs& args) override { once(args, args.rows, &Backend::glu); }
  void softcap(const SoftcapArgs& args) override { once(args, args.rows, &Backend::softcap); }
  void matmul(const MatmulArgs& args) override {
    MatmulArgs call = args;
    if (const auto index = planted_output(args))
      call.outputs[*index].out = old_place(args.outputs[*index].out, args.rows);
    below().matmul(call);
  }
  void rope(const RopeArgs& args) override {
    RopeArgs call = args;
    if (here(args.site, args.batch->rows, Stage::q_post_rope))
      call.q_out = old_place(args.q_out, args.batch->rows);
    below().rope(call);
  }

 private:
  template <class Args>
  void once(const Args& args, int64_t rows, void (Backend::*run)(const Args&)) {
    Args call = args;
    if (here(args.site, rows, args.site.stage)) call.out = old_place(args.out, rows);
    (below().*run)(call);
  }
  /// Made in the first such pass, which is never recorded: no memory can be taken while one is.
  View old_place(const View& out, int64_t rows) {
    if (old_.view.data == nullptr) old_ = scratch(1, rows * out.width);
    if (!below().recording()) return out;
    frozen_ = true;
    return {old_.view.data, out.width};
  }
  /// What the pass should have had lies at the old place.
  void log_launch() {
    if (position_ >= 0 && old_.view.data != nullptr)
      plant_.log->add({0, position_, plant_.layer, plant_.stage}, {row_of(old_.view, 0), {}});
  }

  Scratch old_;
  int64_t position_ = -1;
  bool frozen_ = false;
};

}  // namespace

std::unique_ptr<Backend> make_gpu_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                        const HParams& hp) {
  if (plant.info->id == "lost-copy") return std::make_unique<LostCopy>(std::move(backend), plant, hp);
  return std::make_unique<FrozenLaunch>(std::move(backend), plant, hp);
}

}  // namespace greta
