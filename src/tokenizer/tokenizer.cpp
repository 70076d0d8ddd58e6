#include "tokenizer/tokenizer.h"

#include <utility>

#include "base/text.h"
#include "tokenizer/unicode.h"

namespace greta {
namespace {

bool gives_no_text(TokenType type) { return type == TokenType::control || type == TokenType::unknown; }

/// How many bytes at the end of `text` may still become a character when more bytes follow (0 to 3).
size_t unfinished(std::string_view text) {
  for (size_t tail = 1; tail <= 3 && tail <= text.size(); ++tail) {
    const auto first = static_cast<unsigned char>(text[text.size() - tail]);
    if ((first & 0xC0) == 0x80) continue;
    if (unicode::length(first) <= tail) return 0;
    // The smallest and the largest continuation decide whether any does.
    for (const char fill : {'\x80', '\xBF'}) {
      std::string whole(text.substr(text.size() - tail));
      whole.resize(unicode::length(first), fill);
      if (!find_invalid_utf8(whole)) return tail;
    }
    return 0;
  }
  return 0;
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::optional<TokenId> after)
    : tokenizer_(&tokenizer), first_(!after || gives_no_text(tokenizer.type(*after))) {}

std::string StreamDecoder::push(TokenId id) {
  if (gives_no_text(tokenizer_->type(id))) {
    first_ = true;
    return {};
  }
  const std::string bytes = tokenizer_->bytes(id);
  pending_ += first_ ? tokenizer_->decode({id}) : bytes;
  first_ = first_ && bytes.empty();
  const size_t whole = pending_.size() - unfinished(pending_);
  std::string out = pending_.substr(0, whole);
  pending_.erase(0, whole);
  return out;
}

std::string StreamDecoder::finish() {
  first_ = true;
  return std::exchange(pending_, {});
}

}  // namespace greta
