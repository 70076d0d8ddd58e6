#pragma once
// Inside the fault catalogue: what all planted faults share. They find their call by its Site, compute the
// wrong rows from the right operator (other arguments, or an edit on the host), and log what they did.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bisect/faults.h"
#include "bisect/interposer.h"

namespace greta {

/// Rows in a buffer of our own; null data where nothing is logged.
struct Scratch {
  std::unique_ptr<Buffer> buffer;
  View view;
};

/// One layer's keys and values in pages of our own, with room for positions 0 .. the last of every sequence
/// in `like`.
class ScratchCache {
 public:
  ScratchCache(Backend& backend, const KvLayer& shape, const BatchView& like);  ///< zeros
  const KvLayer& layer() const { return layer_; }

 private:
  std::vector<int32_t> pages_;
  std::unique_ptr<Buffer> k_, v_;
  KvLayer layer_;
};

/// One position of a sequence, as a batch of its own.
class OnePosition {
 public:
  OnePosition(const BatchView& batch, int32_t sequence, int64_t position);
  OnePosition(const OnePosition&) = delete;
  OnePosition& operator=(const OnePosition&) = delete;
  const BatchView& batch() const { return batch_; }

 private:
  int32_t token_, position_, sequence_;
  BatchView batch_;
};

/// Last position of each sequence in a call, -1 where it has no row: [sequence_count].
std::vector<int64_t> last_positions(const BatchView& batch);

/// The planted call and the log, for kernel, call and data faults alike.
class FaultyBackend : public Interposer {
 public:
  FaultyBackend(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp)
      : Interposer(std::move(backend)), plant_(plant), hp_(hp) {}
  /// Where the planted stage is v: logs the cache's values that follow from the two v rows (finish()).
  void rope(const RopeArgs& args) override;

 protected:
  /// The planted layer, in the planted phase, and (one_token) with the planted position in it.
  bool here(const Site& site, int64_t rows) const;
  bool here(const Site& site, int64_t rows, Stage stage) const {
    return stage == plant_.stage && here(site, rows);
  }
  /// Which output of a matmul call is the planted one.
  template <class Args>
  std::optional<size_t> planted_output(const Args& args) const {
    if (!here(args.site, args.rows)) return std::nullopt;
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
      if (args.outputs[i].stage == plant_.stage) return i;
    return std::nullopt;
  }
  /// The call's row of the planted position of sequence 0.
  std::optional<int64_t> planted_row(const Site& site, int64_t rows) const;

  Scratch scratch(int64_t rows, int64_t width);
  /// What run(view) leaves in a scratch buffer, if anything is logged.
  template <class Run>
  Scratch healthy(int64_t rows, int64_t width, const Run& run) {
    if (!logging()) return {};
    Scratch out = scratch(rows, width);
    run(out.view);
    return out;
  }
  /// What the right call leaves in place of args.out.
  template <class Args>
  Scratch healthy_call(const Args& args, int64_t rows, void (Backend::*run)(const Args&)) {
    return healthy(rows, args.out.width, [&](const View& out) {
      Args call = args;
      call.out = out;
      (below().*run)(call);
    });
  }
  /// Runs `wrong` in place of a rope call and logs the queries and keys that it spoils.
  void spoil_rope(const RopeArgs& args, const std::function<void()>& wrong);
  /// A matmul's planted output alone.
  Scratch healthy_product(const MatmulArgs& args, const MatmulOutput& output) {
    return healthy_product(args, output, &Backend::matmul);
  }
  Scratch healthy_product(const ExpertMatmulArgs& args, const MatmulOutput& output) {
    return healthy_product(args, output, &Backend::expert_matmul);
  }
  template <class Args>
  Scratch healthy_product(const Args& args, const MatmulOutput& output, void (Backend::*run)(const Args&)) {
    return healthy(args.rows, output.out.width, [&](const View& out) {
      Args alone = args;
      alone.outputs[0] = output;
      alone.outputs[0].out = out;
      alone.count = 1;
      (below().*run)(alone);
    });
  }
  /// The same call seen by whole rows: a norm of each head apart has several of its own in each. For looking
  /// on, not for calling.
  static RmsnormArgs whole_rows(const RmsnormArgs& args) {
    RmsnormArgs whole = args;
    whole.rows = args.rows / args.site.parts;
    whole.x.width = args.x.width * args.site.parts;
    whole.out.width = args.out.width * args.site.parts;
    whole.site.parts = 1;
    return whole;
  }
  std::vector<double> row_of(const View& view, int64_t row) const;
  std::vector<double> cached_row(const KvLayer& cache, KvPart part, const BatchView& batch,
                                 int64_t row) const;

  /// Logs the rows that differ. A product that leaves v is kept until rope has rounded it into the cache.
  void finish(const Site& site, Stage stage, Scratch right, const View& wrong, int64_t rows);
  void log_cached(const Site& site, Stage stage, const ScratchCache& right, const KvLayer& wrong);
  void log_row(const Site& site, Stage stage, int64_t row, std::vector<double> right,
               std::vector<double> wrong);

  bool logging() const { return plant_.log->recording; }
  bool is(std::string_view id) const { return plant_.info->id == id; }

  const Plant plant_;
  const HParams hp_;

 private:
  Scratch healthy_v_;
};

/// A fault in an operator: whoever repeats the call meets it again.
class KernelFault : public FaultyBackend {
 public:
  using FaultyBackend::FaultyBackend;
  Backend& operators() override { return *this; }
};

/// A fault in what an operator is handed: a repeated call has the right arguments.
class CallFault : public FaultyBackend {
 public:
  using FaultyBackend::FaultyBackend;
};

/// Random bits of a plant: a function of its seed and `what`.
uint64_t plant_bits(const Plant& plant, uint64_t what);

using FaultMaker = std::unique_ptr<Backend> (*)(std::unique_ptr<Backend> backend, const Plant& plant,
                                                const HParams& hp);
/// Of a fault of the catalogue; null where it stands in no backend.
FaultMaker maker_of(const FaultInfo& info);

std::unique_ptr<Backend> make_edit_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                         const HParams& hp);
std::unique_ptr<Backend> make_weight_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                           const HParams& hp);
std::unique_ptr<Backend> make_attention_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                              const HParams& hp);
std::unique_ptr<Backend> make_argument_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                             const HParams& hp);
std::unique_ptr<Backend> make_call_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                         const HParams& hp);
std::unique_ptr<Backend> make_architecture_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                                 const HParams& hp);
std::unique_ptr<Backend> make_gpu_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                        const HParams& hp);
std::unique_ptr<Backend> make_race_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                         const HParams& hp);

}  // namespace greta
