#pragma once
// Random models of any shape, for measuring and testing without anybody's weights (`greta synth`).
// The files open like real ones: metadata, tokenizer and tensor names are those that GGUF readers expect.
#include <cstdint>
#include <string>

#include "quant/types.h"

namespace greta {

/// The shape and the contents of a synthetic model. Zero means "derived" where the comment says so.
struct SynthOptions {
  /// Only `llama`, dense, for now.
  std::string arch = "llama";
  /// Width of the residual stream.
  uint64_t dim = 256;
  uint64_t layers = 2;
  /// 0: 8/3 of dim, rounded up to a multiple of 256.
  uint64_t ffn_dim = 0;
  /// Query heads.
  uint64_t heads = 4;
  /// 0: as many as heads; otherwise it divides heads.
  uint64_t kv_heads = 0;
  /// 0: dim / heads. Even.
  uint64_t head_dim = 0;
  /// At least 260. 0: 1024, or the size of tokenizer_from's vocabulary.
  uint64_t vocab = 0;
  /// llama.context_length.
  uint64_t context = 2048;
  /// Of every matrix, embedding and head included; norms and biases are F32.
  quant::Type type = quant::Type::Q8_0;
  /// Same seed and shape, same bytes, at any thread count.
  uint64_t seed = 1;
  /// No output.weight: the embedding serves as the head.
  bool tied = false;
  /// Biases on q, k, v and the attention's output.
  bool bias = false;
  /// llama.rope.freq_base.
  float rope_base = 10000.0F;
  /// "" or "none", "linear:F", "linear:F:N", "yarn:F:N", "llama3:F:N": F the factor, N the original context.
  std::string rope_scaling;
  /// Mixture of experts: not yet supported, both must be 0.
  uint64_t experts = 0;
  uint64_t experts_used = 0;
  /// Sliding window: not yet supported, must be 0.
  uint64_t window = 0;
  /// A GGUF whose tokenizer metadata is copied; "": a made-up SPM vocabulary.
  std::string tokenizer_from;
};

/// Writes the model to `out_path`, whole or not at all, in constant memory.
/// Errors (greta::Error): shapes that the type or the architecture cannot hold (every one of them, with the
/// way out), an unsupported option, an unreadable tokenizer_from, an unwritable path.
void synthesise(const SynthOptions& options, const std::string& out_path, int threads);

}  // namespace greta
