#pragma once
// Text <-> token ids, entirely from the model file (or from an explicit SentencePiece file).
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf.h"

namespace greta {

using TokenId = int32_t;

enum class TokenType : int32_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

/// How text becomes ids.
struct EncodeOptions {
  bool add_special = true;  ///< BOS / EOS where the metadata says so
  bool parse_special =
      true;  ///< special tokens written in the text are read as such; false: plain characters
};

/// A vocabulary with its algorithm: SPM (SentencePiece's score-driven merges, byte fallback) or byte-level
/// BPE with the file's pre-tokenizer. Immutable and safe to share between threads. Time is linear (up to a
/// log factor) in the text, stack use is bounded.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// From `tokenizer.ggml.*`. Errors (greta::Error): a missing or unknown `tokenizer.ggml.model` or `.pre`,
  /// arrays of unlike lengths, wrong types, merges that name no tokens, ids out of range: key, expected, got.
  static std::unique_ptr<Tokenizer> from_gguf(const gguf::File& file);
  /// From a SentencePiece `tokenizer.model` (its protobuf is read by our own few lines). Errors as above.
  static std::unique_ptr<Tokenizer> from_sentencepiece(const std::string& path);

  /// "spm/llama", "bpe/smollm" ...: algorithm and pre-tokenizer, for logs and reports.
  virtual std::string description() const = 0;
  virtual int32_t vocab_size() const = 0;

  /// Any well-formed UTF-8, NUL included; anything else is an error with the offset. Some byte-level
  /// vocabularies (SmolLM2, Falcon, StarCoder) have no token for a few rare control characters and unassigned
  /// planes: such bytes are left out with a warning, as the library does that those vocabularies were trained
  /// with. A text that begins with the BOS that is added has it twice, and a warning says so.
  virtual std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;

  /// The token's own text in the vocabulary, as shown to people ("<0x0A>", "Ġthe" in its own spelling).
  virtual std::string_view piece(TokenId id) const = 0;
  virtual TokenType type(TokenId id) const = 0;
  /// The bytes that the token adds to a text (a lone byte of a UTF-8 character for a byte token; empty for
  /// control tokens). The first-token rule for a space prefix is decode's, not this function's.
  virtual std::string bytes(TokenId id) const = 0;
  /// decode(encode(text, {add_special = false}), true) == text, byte for byte, and without `with_special`
  /// where the text has no special tokens in it. Control and unknown tokens give nothing unless
  /// `with_special`, then their piece. Where the vocabulary puts a space before a text (SPM), it is taken
  /// away at the start and after each control token, as encode put it there. One exception is SentencePiece's
  /// own: it spells a space as U+2581, so that a U+2581 in the text comes back as a space; an SPM vocabulary
  /// without byte tokens cannot give back what it does not know; and of Phi-3's the white space behind a
  /// special token is gone.
  virtual std::string decode(const std::vector<TokenId>& ids, bool with_special = false) const = 0;

  virtual std::optional<TokenId> bos() const = 0;
  virtual std::optional<TokenId> eos() const = 0;
  virtual bool adds_bos() const = 0;
  virtual bool adds_eos() const = 0;
  /// Every token at which generation stops: eos, eot and eom of the metadata, and the well-known spellings of
  /// an end in the vocabulary. Those become control tokens whatever the file calls them, with a warning.
  virtual const std::vector<TokenId>& end_tokens() const = 0;
  /// The id of a token by its exact vocabulary spelling.
  virtual std::optional<TokenId> find(std::string_view piece) const = 0;
};

/// Streaming detokenisation: what is returned is whole UTF-8 characters; an incomplete tail waits for its
/// rest. All pieces joined, `finish()` included, are tokenizer.decode(ids). Bytes that can never become a
/// character come out as they are, once that is known.
class StreamDecoder {
 public:
  /// `after`: the token that the stream continues (the prompt's last, when the answer alone is decoded): then
  /// the space that begins the first word is the text's own and stays. Without it the stream begins a text.
  explicit StreamDecoder(const Tokenizer& tokenizer, std::optional<TokenId> after = std::nullopt);
  std::string push(TokenId id);
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool first_ = true;
  std::string pending_;
};

}  // namespace greta
