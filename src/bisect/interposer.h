#pragma once
#include <memory>
#include <utility>

#include "backend/backend.h"

namespace greta {

/// A backend that hands everything to the one below: the base of what stands between the forward pass and a
/// backend.
class Interposer : public Backend {
 public:
  explicit Interposer(std::unique_ptr<Backend> below) : below_(std::move(below)) {}

  std::string name() const override { return below_->name(); }
  std::string description() const override { return below_->description(); }
  size_t element_bytes() const override { return below_->element_bytes(); }
  const Arithmetic& arithmetic() const override { return below_->arithmetic(); }
  std::optional<std::string> refuses(WeightUse use, quant::Type type, int64_t rows,
                                     int64_t cols) const override {
    return below_->refuses(use, type, rows, cols);
  }
  std::vector<ShapeGap> lacks(const ModelShape& shape) const override { return below_->lacks(shape); }
  uint64_t resident_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols) const override {
    return below_->resident_bytes(use, type, rows, cols);
  }
  uint64_t kv_page_bytes(int kv_heads, int head_dim) const override {
    return below_->kv_page_bytes(kv_heads, head_dim);
  }
  uint64_t scratch_bytes(const ScratchShape& shape) const override { return below_->scratch_bytes(shape); }
  uint64_t available_bytes() const override { return below_->available_bytes(); }
  std::unique_ptr<Buffer> allocate(size_t bytes) override { return below_->allocate(bytes); }
  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    return below_->load(source, use);
  }
  void read(const View& view, int64_t first, int64_t count, float* out) const override {
    below_->read(view, first, count, out);
  }
  void read(const View& view, int64_t first, int64_t count, double* out) const override {
    below_->read(view, first, count, out);
  }
  void write(const View& view, int64_t first, int64_t count, const double* in) override {
    below_->write(view, first, count, in);
  }
  void read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
               double* out) const override {
    below_->read_kv(cache, part, batch, row, out);
  }
  void write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                const double* in) override {
    below_->write_kv(cache, part, batch, row, in);
  }
  Backend& operators() override { return below_->operators(); }
  bool begin_pass(const Pass& pass) override {
    Pass observed = pass;  // every call is to come by here: nothing recorded is run
    observed.observed = true;
    return below_->begin_pass(observed);
  }
  void end_pass() override { below_->end_pass(); }
  bool recording() const override { return below_->recording(); }
  void embed(const EmbedArgs& args) override { below_->embed(args); }
  void rmsnorm(const RmsnormArgs& args) override { below_->rmsnorm(args); }
  void matmul(const MatmulArgs& args) override { below_->matmul(args); }
  void rope(const RopeArgs& args) override { below_->rope(args); }
  void attention(const AttentionArgs& args) override { below_->attention(args); }
  void add(const AddArgs& args) override { below_->add(args); }
  void glu(const GluArgs& args) override { below_->glu(args); }
  void choose_experts(const ChooseExpertsArgs& args) override { below_->choose_experts(args); }
  void expert_matmul(const ExpertMatmulArgs& args) override { below_->expert_matmul(args); }
  void combine(const CombineArgs& args) override { below_->combine(args); }
  void softcap(const SoftcapArgs& args) override { below_->softcap(args); }
  void gather(const GatherArgs& args) override { below_->gather(args); }
  Route route() const override { return below_->route(); }
  void reset_route() override { below_->reset_route(); }
  void synchronize() override { below_->synchronize(); }

 protected:
  Backend& below() { return *below_; }
  const Backend& below() const { return *below_; }

 private:
  std::unique_ptr<Backend> below_;
};

}  // namespace greta
