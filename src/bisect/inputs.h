#pragma once
// What differs between two model files before a token is fed (bisect.md, check 1).
#include <vector>

#include "bisect/examine.h"

namespace greta {

/// Hyperparameters and tensors (name, shape, type, bytes) of two files; `tensors`: counts what was compared.
/// A difference names the first stage of a's model that it spoils, where there is one.
std::vector<InputDifference> compare_files(const ModelFile& a, const HParams& ha, const ModelFile& b,
                                           const HParams& hb, uint64_t& tensors);

}  // namespace greta
