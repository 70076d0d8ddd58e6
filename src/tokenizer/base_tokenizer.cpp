#include "tokenizer/base_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace greta {
namespace {

/// Spellings of tokens that end a turn or a text, as well-known model families have them. They count only
/// where the vocabulary has them as control tokens.
constexpr std::string_view kEndSpellings[] = {
    "<|eot_id|>",      "<|eom_id|>", "<|im_end|>", "<|end|>",         "<|endoftext|>", "<end_of_turn>",
    "<|end_of_text|>", "<EOT>",      "<|return|>", "<|end_of_turn|>", "<|endofturn|>", "<end_of_utterance>",
};

}  // namespace

BaseTokenizer::BaseTokenizer(const VocabData& data, bool family_adds_bos, bool cuts_at_user_defined)
    : vocab_(data) {
  const auto checked = [&](std::string_view key, const std::optional<int64_t>& id) -> std::optional<TokenId> {
    if (!id) return std::nullopt;
    if (*id < 0 || *id >= vocab_.size()) {
      fail("{}: tokenizer.ggml.{}: expected a token from 0 to {}, got {}", data.source, key,
           vocab_.size() - 1, *id);
    }
    return static_cast<TokenId>(*id);
  };
  bos_ = checked("bos_token_id", data.bos);
  eos_ = checked("eos_token_id", data.eos);
  const auto needs = [&](std::string_view word, bool add, const std::optional<TokenId>& id) {
    if (add && !id) {
      fail("{}: tokenizer.ggml.add_{}_token is true, but there is no tokenizer.ggml.{}_token_id to add",
           data.source, word, word);
    }
    return add;
  };
  adds_bos_ = needs("bos", data.add_bos.value_or(family_adds_bos && bos_.has_value()), bos_);
  adds_eos_ = needs("eos", data.add_eos.value_or(false), eos_);

  const auto ends = [&](const std::optional<TokenId>& id) {
    if (id && std::find(end_tokens_.begin(), end_tokens_.end(), *id) == end_tokens_.end())
      end_tokens_.push_back(*id);
  };
  ends(eos_);
  ends(checked("eot_token_id", data.eot));
  ends(checked("eom_token_id", data.eom));
  for (const auto spelling : kEndSpellings) {
    const TokenId id = vocab_.find(spelling);
    if (id >= 0 && vocab_.type(id) == TokenType::control) ends(id);
  }
  for (TokenId id = 0; id < vocab_.size(); ++id) {
    const TokenType type = vocab_.type(id);
    const bool user = type == TokenType::user_defined && cuts_at_user_defined;
    if (user) always_.add(vocab_.piece(id), id);
    if (user || type == TokenType::control || type == TokenType::unknown) special_.add(vocab_.piece(id), id);
  }
}

std::optional<TokenId> BaseTokenizer::find(std::string_view piece) const {
  const TokenId id = vocab_.find(piece);
  return id < 0 ? std::nullopt : std::optional(id);
}

std::vector<TokenId> BaseTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  if (const auto bad = find_invalid_utf8(text)) {
    fail(
        "the text is not UTF-8 at byte offset {} (byte 0x{:02X}): expected well-formed UTF-8; convert it, or "
        "give ids "
        "with --token-ids",
        *bad, static_cast<unsigned char>(text[*bad]));
  }
  if (text.size() > INT32_MAX / 3)
    fail("the text has {} bytes: expected at most {}", text.size(), INT32_MAX / 3);
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 4 + 8);
  if (options.add_special && adds_bos_) ids.push_back(*bos_);
  const LiteralMatcher& matcher = options.parse_special ? special_ : always_;
  for (size_t at = 0; at < text.size();) {
    const auto match = matcher.empty() ? LiteralMatcher::Match{} : matcher.find(text, at);
    const size_t end = match.length > 0 ? match.begin : text.size();
    if (end > at) encode_plain(text.substr(at, end - at), ids);
    if (match.length > 0) ids.push_back(match.id);
    at = end + match.length;
  }
  if (options.add_special && adds_eos_) ids.push_back(*eos_);
  return ids;
}

std::string BaseTokenizer::decode(const std::vector<TokenId>& ids, bool with_special) const {
  std::string text;
  bool first = has_space_prefix();  // the next text began with a space that encode_plain added
  for (const TokenId id : ids) {
    const TokenType kind = type(id);
    if (kind == TokenType::control || kind == TokenType::unknown) {
      if (with_special) text.append(piece(id));
      first = has_space_prefix();
      continue;
    }
    const std::string part = bytes(id);
    const bool strip = first && kind != TokenType::byte && part.starts_with(' ');
    text.append(part, strip ? 1 : 0);
    first = first && part.empty();
  }
  return text;
}

}  // namespace greta
