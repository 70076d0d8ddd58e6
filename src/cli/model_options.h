#pragma once
// What the commands that take a model and a prompt have in common.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/parse.h"
#include "engine/engine.h"

namespace greta::cli {

/// --device, or the first GPU that this build can use, else cpu.
std::string device_of(const Values& values);

/// Device and backend options as given; context and chunk too.
EngineOptions engine_options(const Values& values);
BackendOptions backend_options(const Values& values);

/// Exactly one of --prompt, --prompt-file and --token-ids, or an error that names them.
void require_one_prompt(const Values& values);

/// The prompt of --prompt or --prompt-file, checked: errors name the option and, for NUL bytes and invalid
/// UTF-8, the offset.
std::string prompt_text(const Values& values);

/// The prompt as ids, at least one. Errors: an empty prompt, a text that is none of them, ids outside the
/// vocabulary, and those of prompt_text.
std::vector<TokenId> prompt_ids(const Values& values, const Tokenizer& tokenizer);

/// The context length that the metadata states, if it states one.
std::optional<int64_t> stated_context(const gguf::File& file);

/// EngineOptions::room for a prompt of `prompt` tokens and up to `more`: --context, or the smaller of the
/// model's and what is needed. Errors: the prompt is longer (both numbers, and the option).
std::optional<int64_t> room_for(const Values& values, const gguf::File& file, int64_t prompt, int64_t more);

/// The pins of --expect against the model, for a command whose engines do not know them. Errors: one line for
/// each field that differs.
void require_pins(const Values& values);

/// Loads the model with a bar, and logs one line on what was loaded where and how. Ctrl-C throws Interrupted.
std::unique_ptr<Engine> load_engine(const Values& values, const ModelFile& model,
                                    const EngineOptions& options);

}  // namespace greta::cli
