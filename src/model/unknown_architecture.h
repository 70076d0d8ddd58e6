#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf.h"
#include "model/plan.h"

namespace greta {

/// What an entry for the file's architecture would need (docs/adding-an-architecture.md): a line about its
/// keys, unless the reader computes with all of them, and one about its tensors. `keys`: those that it does
/// not compute with, under the architecture's prefix, with their values.
std::vector<Problem> what_an_entry_needs(const gguf::File& file, std::string_view architecture,
                                         const std::vector<std::string>& keys);

}  // namespace greta
