#pragma once
// Shared by the tests: models made by synth, engines on them, hashes of every row.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "synth/synth.h"
#include "temporary_folder.h"
#include "trace/trace.h"

namespace greta::test {

inline std::string golden(const std::string& name) {
  return std::string(GRETA_SOURCE_DIR) + "/tests/golden/" + name;
}

/// The real model where scripts/models.sh put it, or nothing.
inline std::optional<std::string> smollm2() {
  const std::string path = std::string(GRETA_MODELS) + "/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path;
}

/// Token ids that look like nothing in particular.
inline std::vector<TokenId> random_tokens(size_t count, int64_t vocab, uint64_t seed) {
  std::vector<TokenId> ids;
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<TokenId>((state >> 33) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

}  // namespace greta::test
