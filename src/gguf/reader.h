#pragma once
// Inside src/gguf: one file's bytes, parsed and checked on their own. A split model is several of these
// (file.cpp).
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/gguf.h"

namespace greta::gguf {

struct Parsed {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::vector<std::pair<std::string, Value>> metadata;
  std::vector<uint64_t> value_offsets;  ///< of each metadata value, for messages
  std::vector<Tensor> tensors;          ///< `part` left at 0
};

/// Errors (greta::Error) name `name`, the field, its offset, what was expected and what is there. Nothing is
/// allocated on the word of a count that the remaining bytes could not hold.
Parsed parse(std::span<const std::byte> bytes, const std::string& name);

/// A longer name is cut in messages.
inline constexpr size_t kShownName = 80;  // bytes

}  // namespace greta::gguf
