#include "tokenizer/base_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "tokenizer/unicode.h"

namespace greta {
namespace {

/// Spellings of tokens that end a turn or a text, as well-known model families have them. They count whatever
/// type the vocabulary gives them: converters write what a tokenizer.json calls an added token as
/// user-defined or normal, and a model that said <|end|> would go on talking to itself.
constexpr std::string_view kEndSpellings[] = {
    "<|eot_id|>",      "<|eom_id|>", "<|im_end|>", "<|end|>",         "<|endoftext|>", "<end_of_turn>",
    "<|end_of_text|>", "<EOT>",      "<|return|>", "<|end_of_turn|>", "<|endofturn|>", "<end_of_utterance>",
};

/// Phi-3's special tokens that keep the white space behind them.
constexpr std::string_view kKeepSpace[] = {"<unk>", "<s>", "<|endoftext|>"};

}  // namespace

BaseTokenizer::BaseTokenizer(const VocabData& data, bool family_adds_bos, bool cuts_at_user_defined)
    : vocab_(data), strips_after_special_(data.strips_after_special) {
  bos_ = checked(data, "bos_token_id", data.bos);
  eos_ = checked(data, "eos_token_id", data.eos);
  const auto needs = [&](std::string_view word, bool add, const std::optional<TokenId>& id) {
    if (add && !id) {
      fail("{}: tokenizer.ggml.add_{}_token is true, but there is no tokenizer.ggml.{}_token_id to add",
           data.source, word, word);
    }
    return add;
  };
  adds_bos_ = needs("bos", data.add_bos.value_or(family_adds_bos && bos_.has_value()), bos_);
  adds_eos_ = needs("eos", data.add_eos.value_or(false), eos_);
  find_end_tokens(data);
  for (TokenId id = 0; id < vocab_.size(); ++id) {
    const TokenType type = vocab_.type(id);
    const bool user = type == TokenType::user_defined && cuts_at_user_defined;
    if (user) always_.add(vocab_.piece(id), id);
    if (user || type == TokenType::control || type == TokenType::unknown) special_.add(vocab_.piece(id), id);
  }
}

std::optional<TokenId> BaseTokenizer::checked(const VocabData& data, std::string_view key,
                                              const std::optional<int64_t>& id) const {
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= vocab_.size()) {
    fail("{}: tokenizer.ggml.{}: expected a token from 0 to {}, got {}", data.source, key, vocab_.size() - 1,
         *id);
  }
  return static_cast<TokenId>(*id);
}

void BaseTokenizer::find_end_tokens(const VocabData& data) {
  const auto ends = [&](const std::optional<TokenId>& id) {
    if (id && std::find(end_tokens_.begin(), end_tokens_.end(), *id) == end_tokens_.end())
      end_tokens_.push_back(*id);
  };
  ends(eos_);
  ends(checked(data, "eot_token_id", data.eot));
  ends(checked(data, "eom_token_id", data.eom));
  const auto spelled = [&](std::string_view spelling) {
    const TokenId id = vocab_.find(spelling);
    if (id < 0) return;
    ends(id);
    if (vocab_.type(id) == TokenType::control) return;
    log::warning(
        "{}: token {} \"{}\" ends a turn, but its type is {}: it is taken as a control token and generation "
        "stops at it",
        data.source, id, spelling, name_of(vocab_.type(id)));
    vocab_.take_as_control(id);
  };
  for (const auto spelling : kEndSpellings) spelled(spelling);
  // Gemma's vocabularies have an HTML tag of this name.
  if (data.strips_after_special) spelled("</s>");
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
    at = end + match.length;
    if (match.length == 0) continue;
    ids.push_back(match.id);
    at = after_special(text, at, match.id);
  }
  if (options.add_special && adds_bos_ && ids.size() > 1 && ids[1] == bos_)
    log::warning("the text begins with \"{}\", which is put before every text: it is there twice",
                 piece(*bos_));
  if (options.add_special && adds_eos_) ids.push_back(*eos_);
  return ids;
}

size_t BaseTokenizer::after_special(std::string_view text, size_t at, TokenId id) const {
  if (!strips_after_special_ || std::ranges::find(kKeepSpace, piece(id)) != std::end(kKeepSpace)) return at;
  while (at < text.size()) {
    const unicode::Decoded next = unicode::decode(text, at);
    if (!unicode::is(next.value, unicode::space)) break;
    at += next.length;
  }
  return at;
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
