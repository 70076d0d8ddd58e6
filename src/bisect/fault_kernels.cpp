// Kernels that compute the right operator with a wrong constant: eps, activation, rotation, an addend.
#include <cmath>

#include "bisect/fault_base.h"
#include "model/rope.h"

namespace greta {
namespace {

/// base^(-2 i / dims) of another base, every scaling kept: base' = 10 base.
RopeSpec other_base(const RopeSpec& right) {
  RopeSpec spec = right;
  for (size_t i = 0; i < spec.inv_freq.size(); ++i)
    spec.inv_freq[i] *= exact_pow(10.0, -2.0 * static_cast<double>(i) / spec.dims);
  return spec;
}

RopeSpec other_style(const RopeSpec& right) {
  RopeSpec spec = right;
  spec.style = right.style == RopeStyle::adjacent ? RopeStyle::half : RopeStyle::adjacent;
  return spec;
}

RopeSpec unscaled(const RopeSpec& right, double base) {
  RopeSettings settings;
  settings.dims = right.dims;
  settings.base = base;
  return make_rope(right.style, settings);
}

class ArgumentFault : public KernelFault {
 public:
  using KernelFault::KernelFault;

  void embed(const EmbedArgs& args) override {
    if (!here(args.site, args.batch->rows, Stage::embed_out)) return below().embed(args);
    EmbedArgs wrong = args;
    wrong.scale = 1.0;  // embed-scale
    spoil(args, wrong, args.batch->rows, Stage::embed_out, &Backend::embed);
  }
  void rmsnorm(const RmsnormArgs& args) override {
    if (!here(args.site, args.rows, args.site.stage)) return below().rmsnorm(args);
    RmsnormArgs wrong = args;
    wrong.eps = 1e-2F;  // norm-eps
    spoil(args, wrong, args.rows, args.site.stage, &Backend::rmsnorm);
  }
  void glu(const GluArgs& args) override {
    if (!here(args.site, args.rows, args.site.stage)) return below().glu(args);
    GluArgs wrong = args;  // act-kind
    wrong.activation = args.activation == Activation::silu ? Activation::gelu_tanh : Activation::silu;
    spoil(args, wrong, args.rows, args.site.stage, &Backend::glu);
  }
  /// residual-drop: one row of the sum is the branch alone.
  void add(const AddArgs& args) override {
    if (!here(args.site, args.rows, args.site.stage)) return below().add(args);
    const int64_t row = *planted_row(args.site, args.rows);
    const std::vector<double> branch = row_of(args.b, row);
    below().add(args);
    std::vector<double> right = row_of(args.out, row);
    below().write(args.out, row, 1, branch.data());
    log_row(args.site, args.site.stage, row, std::move(right), row_of(args.out, row));
  }
  void rope(const RopeArgs& args) override {
    const int64_t rows = args.batch->rows;
    const bool rotation = plant_.stage == Stage::q_post_rope || plant_.stage == Stage::k_post_rope;
    if (!rotation || !here(args.site, rows)) return below().rope(args);
    spoil_rope(args, [&] { wrong_rope(args); });
  }

 private:
  /// Logs what `wrong` leaves in place of `args`; both write to args.out.
  template <class Args>
  void spoil(const Args& args, const Args& wrong, int64_t rows, Stage stage,
             void (Backend::*run)(const Args&)) {
    Scratch right = healthy_call(args, rows, run);
    (below().*run)(wrong);
    finish(args.site, stage, std::move(right), args.out, rows);
  }

  void wrong_rope(const RopeArgs& args) {
    RopeArgs wrong = args;
    RopeSpec spec;
    if (is("rope-k-skip")) {
      below().rope(args);
      for (int64_t row = 0; row < args.batch->rows; ++row)
        below().write_kv(args.cache, KvPart::k, *args.batch, row, row_of(args.k, row).data());
      return;
    }
    spec = is("rope-half") ? other_style(*args.rope)
           : is("rope-base")
               ? other_base(*args.rope)
               : unscaled(*args.rope, hp_.is_local(plant_.layer) ? hp_.local_rope_base : hp_.rope_base);
    wrong.rope = &spec;
    below().rope(wrong);
  }
};

}  // namespace

std::unique_ptr<Backend> make_argument_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                             const HParams& hp) {
  return std::make_unique<ArgumentFault>(std::move(backend), plant, hp);
}

}  // namespace greta
