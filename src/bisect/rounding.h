#pragma once
// The answer to "bug or rounding": where two sound runs choose different tokens, how close the choice truly
// was and which operators' rounding moved it.
#include <string>
#include <vector>

#include "bisect/examine.h"

namespace greta {

struct Rounding {
  int64_t step = 0;   ///< of generation
  int64_t token = 0;  ///< position of the row of logits
  TokenId a = 0;
  TokenId b = 0;
  double true_gap = 0.0;    ///< FP64: logit of a minus logit of b
  double difference = 0.0;  ///< how far the judged side's gap is from it
  struct Contributor {
    std::string what;    ///< a stage, or "layer 3", or "keys and values of earlier tokens"
    double shift = 0.0;  ///< of the gap, when its rounding alone is put into the FP64 run
  };
  std::vector<Contributor> contributors;  ///< largest magnitude first
};

/// `ids`: the tokens up to and including position `token`. `run`: the side that rounds.
Rounding explain_rounding(const ModelFile& truth, SubjectRun& run, const Prompt& prompt, int64_t step,
                          int64_t token, TokenId a, TokenId b, std::span<const TokenId> ids, int threads);

}  // namespace greta
