#pragma once
// A vocabulary as its file states it, and the checked, indexed form that the algorithms use.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/hash_index.h"
#include "tokenizer/tokenizer.h"

namespace greta {

/// What a file says, whatever its format: from_gguf and from_sentencepiece fill it, make_tokenizer reads it.
/// Views need to live only until the tokenizer is made.
struct VocabData {
  std::string source;                    ///< file, for messages
  std::string model;                     ///< "llama" (SPM) or "gpt2" (byte-level BPE)
  std::string pre;                       ///< BPE: the family's pre-tokenizer
  std::vector<std::string_view> pieces;  ///< [vocab]
  std::vector<float> scores;             ///< [vocab], SPM
  std::vector<int32_t> types;            ///< [vocab], TokenType; empty: all normal
  std::vector<std::string_view> merges;  ///< "left right", by rank, BPE
  std::optional<int64_t> bos, eos, eot, eom, unknown;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
  bool remove_extra_whitespaces = false;
  /// White space behind a special token belongs to it (Phi-3). No format has a key for it.
  bool strips_after_special = false;
};

/// Checks `data` and builds its tokenizer. Errors as Tokenizer::from_gguf.
std::unique_ptr<Tokenizer> make_tokenizer(const VocabData& data);

/// "normal", "control", ...: for messages.
std::string_view name_of(TokenType type);

/// A piece for an error message: at most 48 bytes of it, control characters spelled \xNN.
std::string shown(std::string_view piece);

/// Pieces, types and the index of pieces. Owns its bytes.
class Vocabulary {
 public:
  /// Errors: no tokens, more than 2^31 - 1, arrays of unlike lengths, unknown types, the same piece twice.
  explicit Vocabulary(const VocabData& data);

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  std::string_view piece(TokenId id) const { return pieces_[index(id)]; }
  TokenType type(TokenId id) const { return types_[index(id)]; }
  void take_as_control(TokenId id) { types_[index(id)] = TokenType::control; }
  /// -1 where there is none.
  TokenId find(std::string_view piece) const { return index_.find(pieces_, piece); }
  /// The same with hash_text(piece); `prefetch` some time before hides the wait for memory.
  TokenId find(std::string_view piece, uint64_t hash) const { return index_.find(pieces_, piece, hash); }
  void prefetch(uint64_t hash) const { index_.prefetch(hash); }
  size_t longest_piece() const { return longest_; }

 private:
  size_t index(TokenId id) const;  ///< errors: out of range
  std::string bytes_;
  std::vector<std::string_view> pieces_;
  std::vector<TokenType> types_;
  TextIndex index_;
  size_t longest_ = 0;
};

/// Finds tokens that are written out in a text: at each place the longest, the leftmost first.
class LiteralMatcher {
 public:
  void add(std::string_view piece, TokenId id);

  struct Match {
    size_t begin = 0;
    size_t length = 0;
    TokenId id = -1;
  };
  /// The longest that begins exactly at `at` (length 0: none).
  Match match_at(std::string_view text, size_t at) const;
  /// The first at or after `from` (length 0: none).
  Match find(std::string_view text, size_t from) const;
  bool empty() const { return nodes_.size() == 1; }

 private:
  struct Node {
    TokenId id = -1;
    uint32_t child = 0;  ///< 0: none (0 is the root)
    uint32_t sibling = 0;
    unsigned char byte = 0;
  };
  uint32_t child_of(uint32_t node, unsigned char byte) const;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<uint32_t, 256> first_{};  ///< children of the root, by byte
};

}  // namespace greta
