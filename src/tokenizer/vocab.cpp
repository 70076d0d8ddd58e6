#include "tokenizer/vocab.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace greta {

std::string shown(std::string_view piece) {
  size_t most = std::min<size_t>(piece.size(), 48);
  while (most > 0 && most < piece.size() && (static_cast<unsigned char>(piece[most]) & 0xC0) == 0x80) --most;
  const std::string_view kept = piece.substr(0, most);
  const bool readable = !find_invalid_utf8(kept);
  std::string out;
  for (const char c : kept) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = byte >= 0x20 && byte != 0x7F && (byte < 0x80 || readable);
    out += plain ? std::string(1, c) : fmt::format("\\x{:02X}", byte);
  }
  return most < piece.size() ? out + "..." : out;
}

std::string_view name_of(TokenType type) {
  constexpr std::string_view kNames[] = {"normal", "unknown", "control", "user-defined", "unused", "byte"};
  return kNames[static_cast<size_t>(type) - 1];
}

Vocabulary::Vocabulary(const VocabData& data) {
  const size_t count = data.pieces.size();
  if (count == 0) fail("{}: tokenizer.ggml.tokens: expected a vocabulary, got no tokens", data.source);
  if (count > INT32_MAX)
    fail("{}: tokenizer.ggml.tokens: expected at most 2147483647 tokens, got {}", data.source, count);
  const auto same_length = [&](std::string_view key, size_t got) {
    if (got != count) {
      fail(
          "{}: {} has {} entries, expected {} (one for each of tokenizer.ggml.tokens); the file is damaged "
          "or was "
          "converted wrongly: convert it again",
          data.source, key, got, count);
    }
  };
  if (!data.types.empty()) same_length("tokenizer.ggml.token_type", data.types.size());
  if (!data.scores.empty()) same_length("tokenizer.ggml.scores", data.scores.size());

  size_t bytes = 0;
  for (const auto piece : data.pieces) {
    bytes += piece.size();
    longest_ = std::max(longest_, piece.size());
  }
  bytes_.reserve(bytes);
  pieces_.reserve(count);
  types_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const int32_t type = data.types.empty() ? 1 : data.types[i];
    if (type < 1 || type > 6) {
      fail(
          "{}: tokenizer.ggml.token_type[{}]: expected 1 to 6 (normal, unknown, control, user-defined, "
          "unused, byte), "
          "got {}",
          data.source, i, type);
    }
    types_.push_back(static_cast<TokenType>(type));
    pieces_.emplace_back(bytes_.data() + bytes_.size(), data.pieces[i].size());
    bytes_.append(data.pieces[i]);
  }
  index_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const auto first = index_.insert(pieces_, static_cast<int32_t>(i));
    if (first) {
      fail("{}: tokenizer.ggml.tokens[{}]: expected pieces that differ, got \"{}\" again, which is token {}",
           data.source, i, shown(pieces_[i]), *first);
    }
  }
}

size_t Vocabulary::index(TokenId id) const {
  if (id < 0 || id >= size()) fail("token id {}: expected 0 to {}, the vocabulary's last", id, size() - 1);
  return static_cast<size_t>(id);
}

uint32_t LiteralMatcher::child_of(uint32_t node, unsigned char byte) const {
  if (node == 0) return first_[byte];
  uint32_t child = nodes_[node].child;
  while (child != 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
  return child;
}

void LiteralMatcher::add(std::string_view piece, TokenId id) {
  if (piece.empty()) return;
  uint32_t node = 0;
  for (const char c : piece) {
    const auto byte = static_cast<unsigned char>(c);
    uint32_t child = child_of(node, byte);
    if (child == 0) {
      child = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({-1, 0, node == 0 ? 0 : nodes_[node].child, byte});
      (node == 0 ? first_[byte] : nodes_[node].child) = child;
    }
    node = child;
  }
  nodes_[node].id = id;
}

LiteralMatcher::Match LiteralMatcher::match_at(std::string_view text, size_t at) const {
  Match best;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = child_of(node, static_cast<unsigned char>(text[i]));
    if (node == 0) break;
    if (nodes_[node].id >= 0) best = {at, i + 1 - at, nodes_[node].id};
  }
  return best;
}

LiteralMatcher::Match LiteralMatcher::find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (first_[static_cast<unsigned char>(text[at])] == 0) continue;
    const Match match = match_at(text, at);
    if (match.length > 0) return match;
  }
  return {};
}

}  // namespace greta
