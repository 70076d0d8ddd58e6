#pragma once
// What both algorithms share: special tokens, BOS and EOS, the way back from ids to text.
#include <functional>

#include "tokenizer/vocab.h"

namespace greta {

class BaseTokenizer : public Tokenizer {
 public:
  /// Errors: ids out of range, a BOS or EOS that is to be added but not named.
  /// `cuts_at_user_defined`: user-defined tokens, too, are found before the algorithm sees the text (BPE);
  /// SPM finds them itself.
  BaseTokenizer(const VocabData& data, bool family_adds_bos, bool cuts_at_user_defined);

  int32_t vocab_size() const override { return vocab_.size(); }
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string_view piece(TokenId id) const override { return vocab_.piece(id); }
  TokenType type(TokenId id) const override { return vocab_.type(id); }
  std::string decode(const std::vector<TokenId>& ids, bool with_special) const override;
  std::optional<TokenId> bos() const override { return bos_; }
  std::optional<TokenId> eos() const override { return eos_; }
  bool adds_bos() const override { return adds_bos_; }
  bool adds_eos() const override { return adds_eos_; }
  const std::vector<TokenId>& end_tokens() const override { return end_tokens_; }
  std::optional<TokenId> find(std::string_view piece) const override;

 protected:
  /// Appends the ids of a text without control tokens; `text` is well-formed UTF-8, not empty, below 2^31
  /// bytes.
  virtual void encode_plain(std::string_view text, std::vector<TokenId>& ids) const = 0;
  /// Whether encode_plain puts a space before each text (and decode takes it away).
  virtual bool has_space_prefix() const { return false; }

  Vocabulary vocab_;

 private:
  /// Tokens at which generation stops, in end_tokens_; those that the file calls by another type become
  /// control tokens, with a warning.
  void find_end_tokens(const VocabData& data);
  /// The id of a key, or nothing. Errors: out of range.
  std::optional<TokenId> checked(const VocabData& data, std::string_view key,
                                 const std::optional<int64_t>& id) const;
  /// Where the text goes on behind a token that was read up to `at`.
  size_t after_special(std::string_view text, size_t at, TokenId id) const;

  LiteralMatcher special_;  ///< read where parse_special: control and unknown tokens, and what is always read
  LiteralMatcher always_;   ///< always read
  std::optional<TokenId> bos_, eos_;
  bool adds_bos_ = false, adds_eos_ = false;
  bool strips_after_special_ = false;
  std::vector<TokenId> end_tokens_;
};

}  // namespace greta
