#pragma once
// What a synthetic model is, derived from its options: the engine's own hyperparameters, and which of the
// architecture's tensors it has.
#include <cstdint>
#include <optional>
#include <string_view>

#include "model/architectures.h"
#include "synth/synth.h"

namespace greta::synth {

struct Scaling {
  enum class Kind { none, linear, yarn, llama3, longrope } kind = Kind::none;
  double factor = 1.0;
  std::optional<uint64_t> original_context;
};

/// What files of an architecture are like where its entry in the engine's table leaves it open: published
/// models' values, but for the soft caps.
struct Customs {
  std::string_view architecture;
  float rope_base = 10000.0F;
  float norm_eps = 1e-6F;
  std::optional<int64_t> window = {};  ///< of the local layers, 0: none is; nothing: no file of it has one
  bool qkv_bias = false;               ///< every file has biases on q, k and v
  bool tied = false;                   ///< no file has a head of its own
  bool head_length = false;            ///< every file states attention.key_length
  int64_t experts = 0;                 ///< where none are asked for
  float attention_softcap = 0.0F;
  float logits_softcap = 0.0F;
};

/// Everything derived.
struct Shape {
  const Architecture* architecture = nullptr;
  Customs customs;
  HParams hp;  ///< all dimensions, rope.dims and the window
  Scaling scaling;
  float rope_base = 0.0F;
  bool tied = false;
  bool qkv_bias = false;
  bool output_bias = false;

  /// Whether the model has this rule's tensor.
  bool has(const TensorRule& rule) const;
  /// Rows of a tensor: those of all its roles.
  int64_t rows_of(const TensorRule& rule) const;
};

/// The shape with its defaults filled in, or one Error that lists everything that does not fit. `tokens`: the
/// size of a given tokenizer's vocabulary.
Shape derive(const SynthOptions& options, std::optional<uint64_t> tokens);

}  // namespace greta::synth
