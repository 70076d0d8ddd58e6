#pragma once
#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace greta::cli {

/// 16 hexadecimal digits, as every logits hash is printed.
inline std::string hash_text(uint64_t hash) { return fmt::format("{:016x}", hash); }

}  // namespace greta::cli
