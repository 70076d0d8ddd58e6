#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace greta {

/// How the next token is chosen. The steps, in this order: repetition penalty, temperature, top-k, top-p,
/// min-p, draw.
struct SamplerOptions {
  bool greedy = false;          ///< the largest logit (after the penalty); ties to the lower id
  float temperature = 0.8f;     ///< 0 is greedy
  int32_t top_k = 40;           ///< 0: all
  float top_p = 0.95f;          ///< 1: all
  float min_p = 0.05f;          ///< 0: all; relative to the most probable token
  float repeat_penalty = 1.0f;  ///< divides positive and multiplies negative logits of tokens seen before
  uint64_t seed = 0;

  /// Errors: a value outside its range, with the range.
  void validate() const;
};

/// The next token. `logits` is [vocab]; `history` are the sequence's tokens so far. The draw depends on
/// (seed, sequence, position) alone. Errors: a NaN among the logits (its index); no finite logit.
TokenId sample(std::span<const float> logits, const SamplerOptions& options, std::span<const TokenId> history,
               uint64_t sequence, int64_t position);

/// Natural-log probabilities: the chosen token's and the `count` largest, ties to the lower id.
struct TokenLogprobs {
  TokenId id = 0;
  double logprob = 0.0;
  std::vector<std::pair<TokenId, double>> top;
};
TokenLogprobs logprobs_of(std::span<const float> logits, TokenId chosen, int count);

}  // namespace greta
