#pragma once
// Byte-level BPE: words from the family's pre-tokenizer, bytes spelled in a printable alphabet, merges by
// rank.
#include "tokenizer/base_tokenizer.h"
#include "tokenizer/pretokenizer.h"

namespace greta {

class BpeTokenizer final : public BaseTokenizer {
 public:
  /// Errors: unknown pre-tokenizer, no merges, merges that name no tokens.
  explicit BpeTokenizer(const VocabData& data);

  std::string description() const override { return "bpe/" + std::string(pre_->name); }
  std::string bytes(TokenId id) const override;

 protected:
  void encode_plain(std::string_view text, std::vector<TokenId>& ids) const override;

 private:
  void index_merges(const VocabData& data);

  const PreTokenizer* pre_;
  PairIndex merges_;
  std::array<TokenId, 256> byte_tokens_{};  ///< -1: the vocabulary has no token for this byte
};

/// The alphabet of byte-level BPE: each byte as one printable character. Bytes that are printable in Latin-1
/// stand for themselves, the others for U+0100 and on, in order.
char32_t byte_letter(unsigned char byte);
/// The byte that a character stands for, or nothing.
std::optional<unsigned char> letter_byte(char32_t letter);

}  // namespace greta
