#pragma once
// Random models of any shape, for measuring and testing without anybody's weights (`greta synth`).
// The files open like real ones: metadata, tokenizer and tensor names are those that GGUF readers expect.
#include <cstdint>
#include <string>

#include "quant/types.h"

namespace greta {

/// The shape and the contents of a synthetic model. Zero means "derived" where the comment says so.
struct SynthOptions {
  std::string arch = "llama";  ///< only `llama`, dense, for now
  uint64_t dim = 256;          ///< width of the residual stream
  uint64_t layers = 2;         ///<
  uint64_t ffn_dim = 0;        ///< 0: 8/3 dim, rounded up to a multiple of 256
  uint64_t heads = 4;          ///< query heads
  uint64_t kv_heads = 0;       ///< 0: as many as heads; otherwise it divides heads
  uint64_t head_dim = 0;       ///< 0: dim / heads; even
  uint64_t vocab = 0;          ///< at least 260; 0: 1024, or that of tokenizer_from
  uint64_t context = 2048;     ///< llama.context_length
  quant::Type type =
      quant::Type::Q8_0;       ///< of every matrix, embedding and head included; norms and biases are F32
  uint64_t seed = 1;           ///< same seed and shape, same bytes, at any thread count
  bool tied = false;           ///< no output.weight: the embedding serves as the head
  bool bias = false;           ///< biases on q, k, v and the attention's output
  float rope_base = 10000.0F;  ///< llama.rope.freq_base
  std::string
      rope_scaling;      ///< "", "none", "linear:F:N", "yarn:F:N" or "llama3:F:N" (factor, original context)
  uint64_t experts = 0;  ///< mixture of experts: not yet supported, must be 0
  uint64_t experts_used = 0;   ///< as above
  uint64_t window = 0;         ///< sliding window: not yet supported, must be 0
  std::string tokenizer_from;  ///< a GGUF whose tokenizer.* metadata is copied, or "" for a made-up one
};

/// Writes the model to `out_path`, whole or not at all, in constant memory.
/// Errors (greta::Error): shapes that the type or the architecture cannot hold (every one of them, with the
/// way out), an unsupported option, an unreadable tokenizer_from, an unwritable path.
void synthesise(const SynthOptions& options, const std::string& out_path, int threads);

}  // namespace greta
