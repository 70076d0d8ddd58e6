#pragma once
// The answer to "bug or rounding": where two sound runs choose different tokens, how close the choice truly
// was and which operators' rounding moved it.
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bisect/examine.h"

namespace greta {

struct Rounding {
  int64_t step = 0;   ///< of generation
  int64_t token = 0;  ///< position of the row of logits
  TokenId a = 0;
  TokenId b = 0;
  double true_gap = 0.0;  ///< FP64: logit of a minus logit of b; below 0 where side a's choice is overturned
  std::optional<double> difference;  ///< the rounding side's gap minus it, where its logits are there
  struct Contributor {
    std::string what;    ///< a stage, or "layer 3", or "keys and values of earlier tokens"
    double shift = 0.0;  ///< of the gap, when its rounding alone is put into the FP64 run
  };
  std::vector<Contributor> contributors;  ///< largest magnitude first; of a trace: of what it holds
};

/// What a run left at one position, and the keys and values up to it; a trace may lack some.
struct PositionRows {
  std::vector<UnitRows> units;        ///< [layers + 2], of one row each
  std::vector<LayerHistory> history;  ///< [layers], of sequence 0
};
/// Runs the prompt once more.
PositionRows rows_at(SubjectRun& run, const Prompt& prompt, int64_t token);

/// Where the tokens part: `a` and `b` were chosen from the row of logits at position `token`.
struct Parting {
  int64_t step = 0;
  int64_t token = 0;
  TokenId a = 0;
  TokenId b = 0;
  std::span<const TokenId> ids;    ///< the tokens up to and including that position
  std::optional<int64_t> context;  ///< of the run: EngineOptions::context
};
/// `rows_of`: of the side that rounded, which the true gap tells.
Rounding explain_rounding(const ModelFile& truth, const Parting& at, int threads,
                          const std::function<PositionRows(double true_gap)>& rows_of);

}  // namespace greta
