#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "bisect/bisect.h"

namespace greta {

/// summary.json (docs/summary.md). `options`: as they were given.
nlohmann::ordered_json summary_of(const BisectResult& result, const BisectOptions& options,
                                  const nlohmann::ordered_json& given);

/// What was kept of side b's run as a trace (cli.md), a sequence a prompt: residual_post_mlp of the chosen
/// layers, or, where none were chosen, the rows of logits that chose a token. Returns false where there is
/// neither (no side was run, no token generated).
bool write_result_trace(const std::string& path, const BisectResult& result, const BisectOptions& options);

/// One line a token: prompt, side, position, id, piece, whether it was generated.
std::string tokens_jsonl(const BisectResult& result);

}  // namespace greta
