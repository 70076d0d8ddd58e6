#include "tokenizer/spm.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "base/error.h"
#include "tokenizer/merge.h"
#include "tokenizer/unicode.h"

namespace greta {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

/// "<0x4F>" -> 0x4F, or -1.
int byte_of(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  int value = 0;
  for (const char c : piece.substr(3, 2)) {
    if (c >= '0' && c <= '9') {
      value = value * 16 + (c - '0');
    } else if (c >= 'A' && c <= 'F') {
      value = value * 16 + (c - 'A' + 10);
    } else {
      return -1;
    }
  }
  return value;
}

}  // namespace

SpmTokenizer::SpmTokenizer(const VocabData& data)
    : BaseTokenizer(data, true, false),
      space_prefix_(data.add_space_prefix.value_or(true)),
      remove_extra_spaces_(data.remove_extra_whitespaces) {
  index_bytes(data);
  rank_scores(data);
  if (data.unknown) {
    if (*data.unknown < 0 || *data.unknown >= vocab_.size()) {
      fail("{}: tokenizer.ggml.unknown_token_id: expected a token from 0 to {}, got {}", data.source,
           vocab_.size() - 1, *data.unknown);
    }
    unknown_ = static_cast<TokenId>(*data.unknown);
  }
  for (TokenId id = 0; id < vocab_.size(); ++id) {
    if (unknown_ < 0 && vocab_.type(id) == TokenType::unknown) unknown_ = id;
    const TokenType type = vocab_.type(id);
    has_unused_ = has_unused_ || type == TokenType::unused;
    if (type == TokenType::user_defined) {
      std::string spelled;  // converters store Gemma's runs of U+2581 as spaces
      for (const char c : vocab_.piece(id)) c == ' ' ? spelled += kSpace : spelled += c;
      user_defined_.add(spelled, id);
    }
    if (ranks_[static_cast<size_t>(id)] == UINT32_MAX) continue;
    const std::string_view piece = vocab_.piece(id);
    for (size_t at = piece.find(kSpace, 1); at != std::string_view::npos; at = piece.find(kSpace, at + 1)) {
      joins_space_[static_cast<unsigned char>(piece[at - 1])] = true;
    }
  }
  if (!has_bytes_ && unknown_ < 0) {
    fail(
        "{}: expected the byte tokens <0x00> to <0xFF> or an unknown token "
        "(tokenizer.ggml.unknown_token_id), got neither: "
        "not every text could be spelled",
        data.source);
  }
}

void SpmTokenizer::index_bytes(const VocabData& data) {
  byte_tokens_.fill(-1);
  int found = 0;
  for (TokenId id = 0; id < vocab_.size(); ++id) {
    if (vocab_.type(id) != TokenType::byte) continue;
    const int byte = byte_of(vocab_.piece(id));
    if (byte < 0) {
      fail("{}: tokenizer.ggml.tokens[{}] is a byte token: expected \"<0x00>\" to \"<0xFF>\", got \"{}\"",
           data.source, id, shown(vocab_.piece(id)));
    }
    byte_tokens_[static_cast<size_t>(byte)] = id;
    ++found;
  }
  if (found != 0 && found != 256) {
    fail("{}: tokenizer.ggml.token_type: expected 256 byte tokens (or none), got {}", data.source, found);
  }
  has_bytes_ = found == 256;
}

void SpmTokenizer::rank_scores(const VocabData& data) {
  const auto count = static_cast<size_t>(vocab_.size());
  if (data.scores.size() != count) {
    fail("{}: tokenizer.ggml.scores: expected {} numbers (one for each token), got {}", data.source, count,
         data.scores.size());
  }
  for (size_t i = 0; i < count; ++i) {
    if (std::isnan(data.scores[i]))
      fail("{}: tokenizer.ggml.scores[{}]: expected a number, got NaN", data.source, i);
  }
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  const auto better = [&](uint32_t a, uint32_t b) { return data.scores[a] > data.scores[b]; };
  if (!std::is_sorted(order.begin(), order.end(), better))
    std::stable_sort(order.begin(), order.end(), better);
  ranks_.assign(count, UINT32_MAX);
  uint32_t rank = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i > 0 && better(order[i - 1], order[i])) ++rank;
    const TokenType type = vocab_.type(static_cast<TokenId>(order[i]));
    if (type == TokenType::normal || type == TokenType::user_defined || type == TokenType::unused)
      ranks_[order[i]] = rank;
  }
}

std::string SpmTokenizer::normalize(std::string_view text) const {
  std::string out;
  out.reserve(text.size() + text.size() / 2 + kSpace.size());
  if (remove_extra_spaces_) {
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
    if (text.empty()) return out;
  }
  if (space_prefix_) out.append(kSpace);
  bool after_space = remove_extra_spaces_;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == ' ') {
      if (!(remove_extra_spaces_ && after_space)) out.append(kSpace);
      after_space = true;
    } else {
      out.push_back(c);
      after_space = false;
    }
    ++at;
  }
  while (remove_extra_spaces_ && out.ends_with(kSpace)) out.resize(out.size() - kSpace.size());
  return out;
}

PairIndex::Merge SpmTokenizer::merge_of(std::string_view joined) const {
  if (joined.size() > vocab_.longest_piece()) return {};
  const TokenId id = vocab_.find(joined);
  if (id < 0) return {};
  return {ranks_[static_cast<size_t>(id)], id};
}

struct SpmTokenizer::Scratch {
  std::vector<uint64_t> heap;
  std::vector<std::string_view> parts;  ///< a stack, the leftmost on top
  /// Pieces marked unused may appear on the way; at the end they fall apart into what they were made of:
  /// here, the length of the left half.
  std::unordered_map<std::string_view, size_t> made_of;
  bool after_unknown = false;
};

void SpmTokenizer::encode_plain(std::string_view original, std::vector<TokenId>& ids) const {
  const std::string normalized = normalize(original);
  const std::string_view text = normalized;
  std::vector<Symbol> symbols;
  Scratch scratch;
  // No merge crosses a user-defined token, or a place before a space that no piece spans: what lies between
  // is merged alone, with the same result and better use of the cache.
  for (size_t at = 0; at < text.size();) {
    const auto match = user_defined_.empty() ? LiteralMatcher::Match{} : user_defined_.match_at(text, at);
    const bool apart = at > 0 && text.substr(at).starts_with(kSpace) &&
                       !joins_space_[static_cast<unsigned char>(text[at - 1])];
    if (match.length > 0 || apart) encode_group(text, symbols, scratch, ids);
    if (match.length > 0) {
      ids.push_back(match.id);
      scratch.after_unknown = false;
      at += match.length;
      continue;
    }
    const size_t end = at + unicode::length(static_cast<unsigned char>(text[at]));
    symbols.push_back({.start = static_cast<uint32_t>(at), .end = static_cast<uint32_t>(end)});
    at = end;
  }
  encode_group(text, symbols, scratch, ids);
}

void SpmTokenizer::encode_group(std::string_view text, std::vector<Symbol>& symbols, Scratch& scratch,
                                std::vector<TokenId>& ids) const {
  if (symbols.empty()) return;
  const auto lookup = [&](const Symbol& left, const Symbol& right) {
    const std::string_view joined = text.substr(left.start, right.end - left.start);
    const auto merge = merge_of(joined);
    if (has_unused_ && merge.rank != UINT32_MAX && vocab_.type(merge.id) == TokenType::unused) {
      scratch.made_of[joined] = left.end - left.start;
    }
    return merge;
  };
  merge_symbols(symbols, lookup, scratch.heap);
  for (uint32_t i = 0; i != Symbol::kNone; i = symbols[i].next) {
    if (symbols[i].id >= 0 && !has_unused_) {
      ids.push_back(symbols[i].id);
      scratch.after_unknown = false;
    } else {
      emit(text.substr(symbols[i].start, symbols[i].end - symbols[i].start), scratch, ids);
    }
  }
  symbols.clear();
}

void SpmTokenizer::emit(std::string_view whole, Scratch& scratch, std::vector<TokenId>& ids) const {
  scratch.parts.assign(1, whole);
  while (!scratch.parts.empty()) {
    const std::string_view part = scratch.parts.back();
    scratch.parts.pop_back();
    const TokenId id = vocab_.find(part);
    if (id >= 0 && has_unused_ && vocab_.type(id) == TokenType::unused) {
      const auto found = scratch.made_of.find(part);
      if (found != scratch.made_of.end()) {
        scratch.parts.push_back(part.substr(found->second));
        scratch.parts.push_back(part.substr(0, found->second));
        continue;
      }
    }
    if (id >= 0) {
      ids.push_back(id);
    } else if (has_bytes_) {
      for (const char c : part) ids.push_back(byte_tokens_[static_cast<unsigned char>(c)]);
    } else if (!scratch.after_unknown) {
      ids.push_back(unknown_);
    }
    scratch.after_unknown = id < 0;
  }
}

std::string SpmTokenizer::bytes(TokenId id) const {
  const std::string_view text = piece(id);
  switch (type(id)) {
    case TokenType::control:
    case TokenType::unknown:
      return {};
    case TokenType::byte:
      return std::string(1, static_cast<char>(byte_of(text)));
    default:
      break;
  }
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (text.substr(at).starts_with(kSpace)) {
      out.push_back(' ');
      at += kSpace.size();
    } else {
      out.push_back(text[at++]);
    }
  }
  return out;
}

}  // namespace greta
