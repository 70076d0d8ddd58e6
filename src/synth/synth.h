#pragma once
// Random models of any shape, for measuring and testing without anybody's weights (`greta synth`).
// The files open like real ones: metadata, tokenizer and tensor names are those that GGUF readers expect.
#include <cstdint>
#include <optional>
#include <string>

#include "quant/types.h"

namespace greta {

/// The shape and the contents of a synthetic model. Zero means "derived" where the comment says so.
struct SynthOptions {
  /// An entry of the engine's table (model/architectures.h).
  std::string arch = "llama";
  /// Width of the residual stream.
  uint64_t dim = 256;
  uint64_t layers = 2;
  /// Of the feed-forward part, with experts of each one's. 0: 8/3 of dim, rounded up to a multiple of 256.
  uint64_t ffn_dim = 0;
  /// Query heads.
  uint64_t heads = 4;
  /// 0: as many as heads; otherwise it divides heads.
  uint64_t kv_heads = 0;
  /// 0: dim / heads. Even.
  uint64_t head_dim = 0;
  /// At least 260. 0: 1024, or the size of tokenizer_from's vocabulary.
  uint64_t vocab = 0;
  /// {arch}.context_length. Nothing: 2048, or factor times original context of rope_scaling where that is
  /// more.
  std::optional<uint64_t> context;
  /// Of every matrix, embedding and head included; norms, biases and routers are F32.
  quant::Type type = quant::Type::Q8_0;
  /// Same seed and shape, same bytes, at any thread count.
  uint64_t seed = 1;
  /// No output.weight: the embedding serves as the head. gemma2 and gemma3 always are.
  bool tied = false;
  /// Biases on q, k, v and the attention's output. qwen2 always has the first three.
  bool bias = false;
  /// {arch}.rope.freq_base. 0: as published models of that architecture have it, llama 10000.
  float rope_base = 0.0F;
  /// "" or "none", "linear:F", "linear:F:N", "yarn:F:N", "llama3:F:N", "longrope:F:N": F the factor, N the
  /// original context.
  std::string rope_scaling;
  /// Experts a layer. 0: none, of qwen3moe 8.
  uint64_t experts = 0;
  /// Experts that a token chooses. 0: 2 where there are experts, or the one there is.
  uint64_t experts_used = 0;
  /// Sliding window of the local layers, 0: none. Nothing: gemma2 4096, gemma3 512, others none.
  std::optional<uint64_t> window;
  /// A GGUF whose tokenizer metadata is copied; "": a made-up SPM vocabulary.
  std::string tokenizer_from;
};

/// Writes the model to `out_path`, whole or not at all, in constant memory.
/// Errors (greta::Error): shapes that the type or the architecture cannot hold (every one of them, with the
/// way out), an unsupported option, a tokenizer_from without a usable tokenizer, an unwritable path, too
/// small a disk.
void synthesise(const SynthOptions& options, const std::string& out_path, int threads);

}  // namespace greta
