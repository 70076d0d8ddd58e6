#pragma once
// SPM: SentencePiece's BPE. Spaces are spelled U+2581, characters merge by the scores of the pieces they
// make, what the vocabulary does not know is spelled in bytes.
#include "tokenizer/base_tokenizer.h"
#include "tokenizer/merge.h"

namespace greta {

class SpmTokenizer final : public BaseTokenizer {
 public:
  /// Errors: no scores, a score that is not a number, byte tokens that are not "<0x00>" to "<0xFF>" or not
  /// all there, neither byte tokens nor an unknown token.
  explicit SpmTokenizer(const VocabData& data);

  std::string description() const override { return "spm/llama"; }
  std::string bytes(TokenId id) const override;

 protected:
  void encode_plain(std::string_view text, std::vector<TokenId>& ids) const override;
  bool has_space_prefix() const override { return space_prefix_; }

 private:
  struct Scratch;
  /// The text as its characters are looked up: spaces spelled, prefix added, extra spaces removed if so
  /// asked.
  std::string normalize(std::string_view text) const;
  /// What two neighbours make together, or nothing.
  PairIndex::Merge merge_of(std::string_view joined) const;
  /// Merges `symbols` (of `text`), appends their ids and clears them.
  void encode_group(std::string_view text, std::vector<Symbol>& symbols, Scratch& scratch,
                    std::vector<TokenId>& ids) const;
  /// The ids of one symbol that is left after merging.
  void emit(std::string_view whole, Scratch& scratch, std::vector<TokenId>& ids) const;
  void index_bytes(const VocabData& data);
  void rank_scores(const VocabData& data);

  bool space_prefix_ = true;
  bool remove_extra_spaces_ = false;
  bool has_bytes_ = false;
  bool has_unused_ = false;
  /// Last bytes of characters that some piece has right before a U+2581. Behind any other character a space
  /// begins what merges apart from all before it.
  std::array<bool, 256> joins_space_{};
  LiteralMatcher user_defined_;
  TokenId unknown_ = -1;
  std::array<TokenId, 256> byte_tokens_{};
  std::vector<uint32_t>
      ranks_;  ///< [vocab]: 0 is the best score; equal scores have equal ranks; none: never a merge
};

}  // namespace greta
