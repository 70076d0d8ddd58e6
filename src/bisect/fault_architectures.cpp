// Faults of what architectures add to the plain layer: windows, norms of heads and norms after, soft caps,
// experts and their router.
#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "bisect/fault_base.h"

namespace greta {
namespace {

/// Kernels that leave something out or add something.
class ArchitectureKernelFault : public KernelFault {
 public:
  using KernelFault::KernelFault;

  /// window-short: the first key of the window is not seen. softcap-dropped.
  void attention(const AttentionArgs& args) override {
    if (!here(args.site, args.batch->rows, Stage::attn_out)) return below().attention(args);
    Scratch right = healthy_call(args, args.batch->rows, &Backend::attention);
    AttentionArgs wrong = args;
    if (is("window-short")) wrong.window = std::max<int64_t>(args.window - 1, args.window == 0 ? 0 : 1);
    if (is("softcap-dropped")) wrong.softcap = 0.0;
    below().attention(wrong);
    finish(args.site, Stage::attn_out, std::move(right), args.out, args.batch->rows);
  }

  void softcap(const SoftcapArgs& args) override {
    if (!here(args.site, args.rows, Stage::logits)) return below().softcap(args);
    Scratch right = healthy_call(args, args.rows, &Backend::softcap);
    for (int64_t i = 0; i < args.rows; ++i) below().write(args.out, i, 1, row_of(args.x, i).data());
    finish(args.site, Stage::logits, std::move(right), args.out, args.rows);
  }

  /// router-precision: the router reads its rows rounded to bf16.
  void matmul(const MatmulArgs& args) override {
    if (!here(args.site, args.rows, Stage::router_logits) || args.outputs[0].stage != Stage::router_logits)
      return below().matmul(args);
    Scratch right = healthy_product(args, args.outputs[0]);
    const Scratch rounded = scratch(args.rows, args.x.width);
    for (int64_t i = 0; i < args.rows; ++i) {
      std::vector<double> row = row_of(args.x, i);
      for (double& x : row) x = double{bf16_to_f32(f32_to_bf16(static_cast<float>(x)))};
      below().write(rounded.view, i, 1, row.data());
    }
    MatmulArgs wrong = args;
    wrong.x = rounded.view;
    below().matmul(wrong);
    finish(args.site, Stage::router_logits, std::move(right), args.outputs[0].out, args.rows);
  }

  /// expert-extra: one more is chosen, and the last of them falls off. expert-unnormalised: the weights are
  /// shares of all experts, or of the chosen ones where the model has them of all.
  void choose_experts(const ChooseExpertsArgs& args) override {
    if (is("router-precision") || !here(args.site, args.rows)) return below().choose_experts(args);
    const int64_t used = args.experts.width;
    const Scratch experts = scratch(args.rows, used);
    const Scratch weights = scratch(args.rows, used);
    ChooseExpertsArgs right = args;
    right.experts = experts.view;
    right.weights = weights.view;
    below().choose_experts(right);
    if (is("expert-extra")) {
      one_too_many(args);
    } else {
      ChooseExpertsArgs wrong = args;
      wrong.normalised = !args.normalised;
      below().choose_experts(wrong);
    }
    for (int64_t i = 0; i < args.rows && logging(); ++i) {
      log_row(args.site, Stage::experts, i, row_of(experts.view, i), row_of(args.experts, i));
      log_row(args.site, Stage::expert_weights, i, row_of(weights.view, i), row_of(args.weights, i));
    }
  }

 private:
  void one_too_many(const ChooseExpertsArgs& args) {
    const auto used = static_cast<size_t>(args.experts.width);
    const Scratch experts = scratch(args.rows, args.experts.width + 1);
    const Scratch weights = scratch(args.rows, args.experts.width + 1);
    ChooseExpertsArgs more = args;
    more.experts = experts.view;
    more.weights = weights.view;
    below().choose_experts(more);
    for (int64_t i = 0; i < args.rows; ++i) {
      std::vector<double> ids = row_of(experts.view, i), shares = row_of(weights.view, i);
      ids.resize(used);
      shares.resize(used);
      below().write(args.experts, i, 1, ids.data());
      below().write(args.weights, i, 1, shares.data());
    }
  }
};

/// What the engine around the operators gets wrong.
class ArchitectureCallFault : public CallFault {
 public:
  using CallFault::CallFault;

  /// post-norm-skip; head-norm-late: q is left as the product made it, and normed after its rotation.
  void rmsnorm(const RmsnormArgs& args) override {
    if (is("rope-exchange") || is("experts-exchanged") || !here(args.site, args.rows, args.site.stage))
      return below().rmsnorm(args);
    const RmsnormArgs whole = whole_rows(args);
    Scratch right = healthy(whole.rows, whole.out.width, [&](const View& out) {
      RmsnormArgs call = args;
      call.out = {out.data, args.out.width};
      below().rmsnorm(call);
    });
    for (int64_t i = 0; i < whole.rows; ++i) below().write(whole.out, i, 1, row_of(whole.x, i).data());
    finish(whole.site, whole.site.stage, std::move(right), whole.out, whole.rows);
    if (is("head-norm-late")) late_ = args;
  }

  void rope(const RopeArgs& args) override {
    if (is("rope-exchange") && here(args.site, args.batch->rows)) return exchanged(args);
    CallFault::rope(args);
    if (!late_) return;
    RmsnormArgs norm = *late_;
    late_.reset();
    norm.x = norm.out = {args.q_out.data, norm.out.width};
    below().rmsnorm(norm);
  }

  /// experts-exchanged: the first two slots read each other's expert (a lone slot the next one).
  void expert_matmul(const ExpertMatmulArgs& args) override {
    if (!is("experts-exchanged") || !here(args.site, args.rows)) return below().expert_matmul(args);
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
      if (args.outputs[i].stage == plant_.stage) return exchanged(args, args.outputs[i]);
    below().expert_matmul(args);
  }

 private:
  void exchanged(const RopeArgs& args) {
    spoil_rope(args, [&] {
      RopeArgs wrong = args;
      wrong.rope = hp_.is_local(plant_.layer) ? &hp_.rope : &hp_.local_rope;
      below().rope(wrong);
    });
  }

  /// The planted output alone is spoilt: a call of its own.
  void exchanged(const ExpertMatmulArgs& args, const MatmulOutput& output) {
    below().expert_matmul(args);
    Scratch right = healthy(args.rows, output.out.width, [&](const View& copy) {
      for (int64_t i = 0; i < args.rows; ++i) below().write(copy, i, 1, row_of(output.out, i).data());
    });
    const Scratch ids = scratch(args.rows, args.experts.width);
    for (int64_t i = 0; i < args.rows; ++i) {
      std::vector<double> row = row_of(args.experts, i);
      if (row.size() > 1) {
        std::swap(row[0], row[1]);
      } else {
        row[0] = row[0] + 1 < static_cast<double>(hp_.experts) ? row[0] + 1 : 0;
      }
      below().write(ids.view, i, 1, row.data());
    }
    ExpertMatmulArgs wrong = args;
    wrong.experts = ids.view;
    wrong.outputs[0] = output;
    wrong.count = 1;
    below().expert_matmul(wrong);
    finish(args.site, output.stage, std::move(right), output.out, args.rows);
  }

  std::optional<RmsnormArgs> late_;
};

}  // namespace

std::unique_ptr<Backend> make_architecture_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                                 const HParams& hp) {
  if (plant.info->planted == Planted::kernel)
    return std::make_unique<ArchitectureKernelFault>(std::move(backend), plant, hp);
  return std::make_unique<ArchitectureCallFault>(std::move(backend), plant, hp);
}

}  // namespace greta
