#pragma once
// The stages of passes that are launched as recordings, where no tap can stand: an operator that is recorded
// with the rest copies each aside.
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "bisect/interposer.h"
#include "bisect/verdict.h"

namespace greta {

class Snapshots : public Interposer {
 public:
  using Interposer::Interposer;
  using Visit = std::function<void(const Place&, const std::vector<double>&)>;

  /// From here to stop(), passes of few enough rows to be recorded leave every stage's rows. Their recordings
  /// are this run's own: none that was made before is launched, and none outlives it.
  void start() { taking_ = true; }
  void stop();
  /// After a pass: sequence 0's rows of all that it left, in no order. Nothing of a pass of more rows.
  void visit(const Visit& visit) const;

  bool begin_pass(const Pass& pass) override;
  bool recording() const override { return below().recording(); }
  void embed(const EmbedArgs& args) override;
  void rmsnorm(const RmsnormArgs& args) override;
  void matmul(const MatmulArgs& args) override;
  void rope(const RopeArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void add(const AddArgs& args) override;
  void glu(const GluArgs& args) override;
  void softcap(const SoftcapArgs& args) override;

 private:
  struct Key {
    int64_t rows, picked;  ///< of the pass
    int layer;
    Stage stage;
    auto operator<=>(const Key&) const = default;  // NOLINT(modernize-use-nullptr)
  };
  struct Copy {
    std::unique_ptr<Buffer> buffer;
    View view;
    int64_t rows = 0;
  };
  void take(const Site& site, Stage stage, const View& view, int64_t rows);
  template <class Args>
  void once(const Args& args, int64_t rows, void (Backend::*run)(const Args&));
  /// What changes no number when it is added: [count] of -0.
  View nothing(int64_t count);
  void visit_rows(const Visit& visit, const Key& key, const Copy& copy) const;
  void visit_cache(const Visit& visit, int layer) const;

  bool taking_ = false;
  bool in_pass_ = false;  ///< one that is copied
  // The pass that was last.
  std::vector<int32_t> positions_, sequences_, picked_;
  std::vector<KvLayer> layers_;
  std::map<Key, Copy> copies_;
  std::map<int64_t, std::unique_ptr<Buffer>> nothing_;
};

}  // namespace greta
