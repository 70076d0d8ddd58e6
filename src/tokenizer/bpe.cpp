#include "tokenizer/bpe.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "tokenizer/merge.h"
#include "tokenizer/unicode.h"

namespace greta {
namespace {

struct Alphabet {
  std::array<char16_t, 256> letters{};
  std::array<int16_t, 512> bytes{};  ///< -1: no byte has this letter

  Alphabet() {
    bytes.fill(-1);
    char16_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      letters[b] = printable ? static_cast<char16_t>(b) : next++;
      bytes[letters[b]] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet a;
  return a;
}

const PreTokenizer* pretokenizer_of(const VocabData& data) {
  const PreTokenizer* pre = find_pretokenizer(data.pre);
  if (pre == nullptr) {
    fail(
        "{}: tokenizer.ggml.pre: expected one of {}, got {}; this file's way of cutting words is not "
        "supported, or its "
        "converter did not name it (then convert it again)",
        data.source, pretokenizer_names(), data.pre.empty() ? "no such key" : "\"" + shown(data.pre) + "\"");
  }
  return pre;
}

}  // namespace

char32_t byte_letter(unsigned char byte) { return alphabet().letters[byte]; }

std::optional<unsigned char> letter_byte(char32_t letter) {
  if (letter >= alphabet().bytes.size() || alphabet().bytes[letter] < 0) return std::nullopt;
  return static_cast<unsigned char>(alphabet().bytes[letter]);
}

BpeTokenizer::BpeTokenizer(const VocabData& data)
    : BaseTokenizer(data, pretokenizer_of(data)->adds_bos, true), pre_(pretokenizer_of(data)) {
  if (data.add_space_prefix.value_or(false)) {
    fail(
        "{}: tokenizer.ggml.add_space_prefix: expected false for byte-level BPE, got true, which is not "
        "supported",
        data.source);
  }
  for (unsigned b = 0; b < 256; ++b) {
    const char32_t letter = byte_letter(static_cast<unsigned char>(b));
    char utf8[2] = {static_cast<char>(letter), 0};
    if (letter >= 0x80) {
      utf8[0] = static_cast<char>(0xC0 | (letter >> 6));
      utf8[1] = static_cast<char>(0x80 | (letter & 0x3F));
    }
    byte_tokens_[b] = vocab_.find({utf8, letter < 0x80 ? 1u : 2u});
  }
  index_merges(data);
}

void BpeTokenizer::index_merges(const VocabData& data) {
  if (data.merges.empty()) {
    fail("{}: tokenizer.ggml.merges: expected the merges of a byte-level BPE vocabulary, got none",
         data.source);
  }
  const size_t count = data.merges.size();
  if (count >= UINT32_MAX) {
    fail("{}: tokenizer.ggml.merges: expected fewer than 2^32, got {}", data.source, count);
  }
  merges_.reserve(count);
  struct Split {
    std::string_view left, right;
    uint64_t left_hash = 0, right_hash = 0;
    TokenId left_id = -1, right_id = -1, made = -1;
  };
  // Looked up a block at a time: the table lines of one are on the way while others are worked on.
  std::array<Split, 64> block;
  std::string joined;
  TokenId made = 0;  // what the merge makes: in trained vocabularies the same as before or the next
  for (size_t begin = 0; begin < count; begin += block.size()) {
    const size_t end = std::min(count, begin + block.size());
    for (size_t rank = begin; rank < end; ++rank) {
      const std::string_view merge = data.merges[rank];
      const size_t gap = merge.find(' ', 1);
      if (gap == std::string_view::npos || gap + 1 == merge.size()) {
        fail("{}: tokenizer.ggml.merges[{}]: expected two pieces with a space between, got \"{}\"",
             data.source, rank, shown(merge));
      }
      Split& split = block[rank - begin];
      split.left = merge.substr(0, gap);
      split.right = merge.substr(gap + 1);
      split.left_hash = hash_text(split.left);
      split.right_hash = hash_text(split.right);
      vocab_.prefetch(split.left_hash);
      vocab_.prefetch(split.right_hash);
    }
    for (size_t rank = begin; rank < end; ++rank) {
      Split& split = block[rank - begin];
      const auto id_of = [&](std::string_view piece, uint64_t hash) {
        const TokenId id = vocab_.find(piece, hash);
        if (id < 0) {
          fail(
              "{}: tokenizer.ggml.merges[{}] of {}: \"{}\" needs the token \"{}\", which none of the {} of "
              "tokenizer.ggml.tokens is; the vocabulary is damaged: convert the model again",
              data.source, rank, count, shown(data.merges[rank]), shown(piece), vocab_.size());
        }
        return id;
      };
      joined.assign(split.left).append(split.right);
      if (made < vocab_.size() && vocab_.piece(made) != joined) ++made;
      if (made >= vocab_.size() || vocab_.piece(made) != joined) made = id_of(joined, hash_text(joined));
      split.left_id = id_of(split.left, split.left_hash);
      split.right_id = id_of(split.right, split.right_hash);
      split.made = made;
      merges_.prefetch(split.left_id, split.right_id);
    }
    for (size_t rank = begin; rank < end; ++rank) {
      const Split& split = block[rank - begin];
      merges_.insert(split.left_id, split.right_id, {static_cast<uint32_t>(rank), split.made});
    }
  }
}

void BpeTokenizer::encode_plain(std::string_view text, std::vector<TokenId>& ids) const {
  std::vector<Symbol> symbols;
  std::vector<uint64_t> heap;
  std::string spelled;
  size_t unknown = 0;
  unsigned first_unknown = 0;
  const auto lookup = [&](const Symbol& left, const Symbol& right) {
    return merges_.find(left.id, right.id);
  };
  pre_->split(text, [&](std::string_view word) {
    if (pre_->ignore_merges && word.size() <= vocab_.longest_piece()) {
      spelled.clear();
      for (const char c : word) {
        const char32_t letter = byte_letter(static_cast<unsigned char>(c));
        if (letter < 0x80) {
          spelled.push_back(static_cast<char>(letter));
        } else {
          spelled.push_back(static_cast<char>(0xC0 | (letter >> 6)));
          spelled.push_back(static_cast<char>(0x80 | (letter & 0x3F)));
        }
      }
      const TokenId whole = vocab_.find(spelled);
      if (whole >= 0) {
        ids.push_back(whole);
        return;
      }
    }
    symbols.clear();
    if (word.size() > symbols.capacity())
      symbols.reserve(word.size());  // exactly: a word may be the whole text
    for (size_t i = 0; i < word.size(); ++i) {
      const auto byte = static_cast<unsigned char>(word[i]);
      if (byte_tokens_[byte] < 0) {  // left out, as the library does that such vocabularies were trained with
        if (unknown++ == 0) first_unknown = byte;
        continue;
      }
      const auto at = static_cast<uint32_t>(i);
      symbols.push_back({.start = at, .end = at + 1, .id = byte_tokens_[byte]});
    }
    merge_symbols(symbols, lookup, heap);
    for (uint32_t i = symbols.empty() ? Symbol::kNone : 0; i != Symbol::kNone; i = symbols[i].next)
      ids.push_back(symbols[i].id);
  });
  if (unknown > 0) {
    log::warning(
        "{} bytes of the text are left out: the vocabulary has no token for them (0x{:02X} is the first)",
        unknown, first_unknown);
  }
}

std::string BpeTokenizer::bytes(TokenId id) const {
  const std::string_view text = piece(id);
  switch (type(id)) {
    case TokenType::control:
    case TokenType::unknown:
      return {};
    case TokenType::user_defined:
      return std::string(text);
    default:
      break;
  }
  if (find_invalid_utf8(text)) return std::string(text);
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const auto c = unicode::decode(text, at);
    if (const auto byte = letter_byte(c.value)) {
      out.push_back(static_cast<char>(*byte));
    } else {
      out.append(text.substr(at, c.length));  // outside the alphabet: an added token in plain letters
    }
    at += c.length;
  }
  return out;
}

}  // namespace greta
