#pragma once
#include <string>
#include <vector>

#include "gguf/gguf.h"
#include "model/architectures.h"
#include "model/plan.h"

namespace greta {

/// What the metadata says. A number of `hp` that is missing or broken is 0 (no valid one is), its Problem is
/// listed, and everything else is there: the plan derives what it can.
struct ReadHParams {
  HParams hp;
  const Architecture* architecture = nullptr;  ///< null: missing or unknown, and nothing else was read
  std::vector<Problem> problems;
  std::vector<std::string> warnings;
};

/// Reads `general.*`, `{architecture}.*` and, for two facts that only tensors state, the number of rows of
/// the embedding and the rotary factors.
ReadHParams read_hparams(const gguf::File& file);

}  // namespace greta
