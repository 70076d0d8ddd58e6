#pragma once
// A backend that answers the plan's questions as it is told and loads without computing.
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"

namespace greta::testing_model {

class FakeWeight : public Weight {
 public:
  void read_back(int64_t, int64_t, float*) const override { fail("the fake has no numbers"); }
};

/// Matrices are copied (at `resident_per_weight` bytes an element), embeddings and vectors stay in the file.
class FakeBackend : public Backend {
 public:
  FakeBackend() { plain.kv_type = KvType::f16; }
  uint64_t available = uint64_t{1} << 40;
  PlainArithmetic plain{0x1p-24};
  uint64_t resident_per_weight = 1;
  bool copies = false;  ///< embeddings and vectors, too
  uint64_t scratch_per_row = 0;
  std::set<quant::Type> refused;
  std::vector<ShapeGap> gaps;
  std::vector<std::pair<WeightSource, WeightUse>> loaded;
  int allocations = 0;

  std::string name() const override { return "fake"; }
  std::string description() const override { return "fake (no arithmetic)"; }
  size_t element_bytes() const override { return 4; }
  const Arithmetic& arithmetic() const override { return plain; }
  std::optional<std::string> refuses(WeightUse use, quant::Type type, int64_t, int64_t) const override {
    if (use == WeightUse::vector || !refused.contains(type)) return std::nullopt;
    return "convert the file, or use --weights int8";
  }
  std::vector<ShapeGap> lacks(const ModelShape&) const override { return gaps; }
  uint64_t resident_bytes(WeightUse use, quant::Type, int64_t rows, int64_t cols) const override {
    return use == WeightUse::matmul ? static_cast<uint64_t>(rows * cols) * resident_per_weight : 0;
  }
  uint64_t kv_page_bytes(int kv_heads, int head_dim) const override {
    return uint64_t{kKvPage} * static_cast<uint64_t>(kv_heads * head_dim) *
           (plain.kv_type == KvType::f32 ? 4 : 2);
  }
  uint64_t scratch_bytes(const ScratchShape& shape) const override {
    return static_cast<uint64_t>(shape.rows) * scratch_per_row;
  }
  uint64_t available_bytes() const override { return available; }

  std::unique_ptr<Buffer> allocate(size_t) override {
    ++allocations;
    fail("the fake has no memory");
  }
  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    loaded.emplace_back(source, use);
    auto weight = std::make_unique<FakeWeight>();
    weight->name = source.name;
    weight->use = use;
    weight->rows = source.rows;
    weight->cols = source.cols;
    if (copies || use == WeightUse::matmul) source.let_go();
    return weight;
  }

  void read(const View&, int64_t, int64_t, float*) const override { unused(); }
  void read(const View&, int64_t, int64_t, double*) const override { unused(); }
  void write(const View&, int64_t, int64_t, const double*) override { unused(); }
  void read_kv(const KvLayer&, KvPart, const BatchView&, int64_t, double*) const override { unused(); }
  void write_kv(const KvLayer&, KvPart, const BatchView&, int64_t, const double*) override { unused(); }
  void embed(const EmbedArgs&) override { unused(); }
  void rmsnorm(const RmsnormArgs&) override { unused(); }
  void matmul(const MatmulArgs&) override { unused(); }
  void rope(const RopeArgs&) override { unused(); }
  void attention(const AttentionArgs&) override { unused(); }
  void add(const AddArgs&) override { unused(); }
  void glu(const GluArgs&) override { unused(); }
  void choose_experts(const ChooseExpertsArgs&) override { unused(); }
  void expert_matmul(const ExpertMatmulArgs&) override { unused(); }
  void combine(const CombineArgs&) override { unused(); }
  void softcap(const SoftcapArgs&) override { unused(); }
  void gather(const GatherArgs&) override { unused(); }

 private:
  [[noreturn]] static void unused() { fail("the fake computes nothing"); }
};

}  // namespace greta::testing_model
