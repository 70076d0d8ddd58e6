#pragma once
// Tokenizer metadata for a synthetic model.
#include <cstdint>
#include <string>

#include "gguf/gguf.h"

namespace greta::synth {

/// The fewest tokens: <unk>, <s>, </s>, 256 bytes and one piece.
constexpr int64_t kMinVocabulary = 260;

/// Writes tokenizer.ggml.* for an SPM vocabulary of `size` tokens: <unk>, <s>, </s>, the 256 byte tokens,
/// then pieces made so that text runs: the space mark, printable ASCII, and words of lower-case letters,
/// short ones first, each with its prefixes before it, so that merging pairs reaches it.
void add_made_up_tokenizer(gguf::Writer& writer, uint64_t size);

/// Copies all tokenizer.* metadata.
void copy_tokenizer(gguf::Writer& writer, const gguf::File& source);

/// Tokens of the file's tokenizer. Errors (greta::Error): none that the engine would use.
uint64_t vocabulary_size(const gguf::File& source);

}  // namespace greta::synth
