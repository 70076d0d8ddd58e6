#pragma once
// The judge: every operator of a unit, row by row, in FP64 on the inputs that the run had, against its
// derived bound (bounds.h). The values come from the reference backend's plain loops; nothing of the judged
// backend is called.
//
// A matmul's T = sum |w||x| would cost a second product. It is bounded instead by Cauchy and Schwarz over
// blocks of 32: T <= T' = sum_b |w_b| |x_b|, and attention's sum_j p_j |v_ji| by the largest |v_ji|. Where an
// error comes near a quarter of the bound made of those, the exact one is computed; so the bound in force is
// max(exact, a quarter of the loose one), never less than derived and hardly ever more. (Of attention a 32nd
// of the loose one, and less of many keys, so that a key that is missing is seen.)
//
// Where that takes too long a sample of each matmul's outputs is judged so, and checksums see the others
// (checksum.h): what fails one is judged whole.
#include <functional>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "base/thread_pool.h"
#include "bisect/bounds.h"
#include "bisect/checksum.h"
#include "bisect/rows.h"
#include "bisect/wiring.h"
#include "model/plan.h"

namespace greta {

/// One row of one stage, judged: the element with the largest error over bound.
struct Judgement {
  Stage stage = Stage::embed_out;
  int64_t row = 0;  ///< of the unit
  int64_t index = 0;
  double got = 0.0;
  double expected = 0.0;
  double certain = 0.0;
  double likely = 0.0;
  double ratio = 0.0;   ///< |got - expected| / certain; infinite for what cannot be
  int64_t values = 0;   ///< compared
  int64_t outputs = 0;  ///< of the row; those that were not compared are in checksums that hold
  int64_t checksums = 0;
  int64_t checksums_failed = 0;  ///< the row was judged whole then
  bool failed() const { return !(ratio <= 1.0); }
  bool suspect() const;  ///< past the likely bound, inside the certain one
};

class Judge {
 public:
  using Sink = std::function<void(const Judgement&)>;

  /// The truth: a plan over the file whose weights count, and the hyperparameters. `arithmetic`: of the run
  /// to be judged. All must outlive the judge.
  Judge(const Plan& plan, const Arithmetic& arithmetic, const Sampling& sampling, int threads);
  ~Judge();

  /// Judges every stage of the unit whose inputs are there. `history`: keys and values of the unit's layer,
  /// every position up to the rows'. Wires are compared by bits, not here.
  void judge(const UnitRows& data, std::span<const RowName> rows, const LayerHistory& history,
             const Sink& sink);

 private:
  struct Tensor;
  struct Worst;
  struct Product;
  struct SequenceCache;
  enum class Extent { whole, sampled };
  const Tensor& tensor(int unit, Role role, Extent extent, int64_t expert);

  void judge_matmul(const UnitRows& data, const StageRule& rule, const Sink& sink);
  void judge_experts(const UnitRows& data, const StageRule& rule, const Sink& sink);
  Product product(int unit, const StageRule& rule, Extent extent, int64_t expert);
  void judge_all(int unit, const StageRule& rule, int64_t expert, const StoredRows& in, const StoredRows& got,
                 std::span<Worst> worst);
  void judge_rows(Product& product, const StoredRows& in, const StoredRows& got,
                  std::span<const int64_t> rows, std::span<Worst> worst);
  void multiply(Product& product, const StoredRows& in, std::span<const int64_t> rows);
  double bound(const Product& product, double T, double y) const;
  void judge_products(const Product& product, int64_t r, const StoredRows& got, int64_t row,
                      Worst& worst) const;
  void check_sums(const Product& product, int64_t r, const StoredRows& got, int64_t row, Worst& worst) const;
  void judge_attention_rows(const UnitRows& data, std::span<const RowName> rows, const LayerHistory& history,
                            const Sink& sink);
  void judge_attention_block(const UnitRows& data, std::span<const RowName> rows,
                             std::span<const int64_t> block, const LayerHistory& history,
                             SequenceCache& cache, const Sink& sink);
  void judge_head(const UnitRows& data, std::span<const RowName> rows, int64_t row, int64_t head,
                  const LayerHistory& history, const SequenceCache& cache, const double* q,
                  const double* expected, Worst& worst) const;
  void judge_by_row(const UnitRows& data, std::span<const RowName> rows, const StageRule& rule,
                    const Sink& sink);
  static void report(Worst& worst, Stage stage, int64_t row, int64_t outputs, const Sink& sink);

  const Plan& plan_;
  const HParams& hp_;
  const Wiring wiring_;
  const Arithmetic& arithmetic_;
  Sampling sampling_;
  std::unique_ptr<Backend> reference_;
  std::unique_ptr<ThreadPool> pool_;
  std::map<std::tuple<int, Role, Extent, int64_t>, std::unique_ptr<Tensor>> tensors_;
};

}  // namespace greta
