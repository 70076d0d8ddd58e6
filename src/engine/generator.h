#pragma once
// Text generation for one or many requests over one engine.
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"

namespace greta {

struct Request {
  std::vector<TokenId> prompt;  ///< at least one token
  SamplerOptions sampling;
  int64_t max_tokens = 128;
  bool ignore_eos = false;        ///< end tokens are text like any other
  std::vector<std::string> stop;  ///< the text ends before the first of these; it may span tokens
  uint64_t sequence = 0;          ///< which stream of random draws: what tells requests of one seed apart
  int logprobs = -1;              ///< -1: none; n: the chosen token's and the n largest
};

enum class Finish { stop, stop_string, length, context, cancelled };
std::string_view name_of(Finish finish);

struct Generation {
  std::vector<TokenId> ids;  ///< without the end token
  std::string text;
  Finish finish = Finish::length;
  std::vector<TokenLogprobs> logprobs;
  uint64_t logits_hash = 0;  ///< over the rows from which a token was chosen (numerics.md section 2)
};

struct GenerateStats {
  int64_t prompt_tokens = 0;
  int64_t decoded_tokens =
      0;  ///< produced by one-token steps: the first token of a sequence belongs to its prefill
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
  int64_t calls = 0;  ///< forward calls
};

struct GenerateHooks {
  std::function<void(size_t request, std::string_view text)>
      on_text;  ///< whole UTF-8 characters, as they are made
  std::function<void(int64_t done, int64_t total)> on_prefill;
  const std::atomic<bool>* cancel = nullptr;  ///< looked at between calls
};

/// Serves all requests together: as many at once as the engine has sequences, new ones as others end; a call
/// carries the decoding sequences' tokens first, then prompts' chunks. Each request's result is what it would
/// be alone, bit for bit. A request's number is the `sequence` of its random draws. Errors: an empty prompt,
/// a prompt longer than the context (both numbers and --context).
std::vector<Generation> generate(Engine& engine, const Tokenizer& tokenizer,
                                 const std::vector<Request>& requests, const GenerateHooks& hooks = {},
                                 GenerateStats* stats = nullptr);

}  // namespace greta
