#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "bisect/bisect.h"

namespace greta {

/// summary.json (docs/summary.md). `options`: as they were given.
nlohmann::ordered_json summary_of(const BisectResult& result, const BisectOptions& options,
                                  const nlohmann::ordered_json& given);

/// The recorded rows of a result as a trace (cli.md): a sequence a prompt, side b's residual_post_mlp of the
/// chosen layers. Returns false where nothing of the kind was kept.
bool write_result_trace(const std::string& path, const BisectResult& result, const BisectOptions& options);

/// One line a token: prompt, side, position, id, piece, whether it was generated.
std::string tokens_jsonl(const BisectResult& result);

}  // namespace greta
