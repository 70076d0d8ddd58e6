#pragma once
// Open-addressing hash tables for vocabularies: built once, never erased from, read by many threads.
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace greta {

inline uint64_t mix_bits(uint64_t a, uint64_t b) {
  __extension__ using uint128 = unsigned __int128;
  const uint128 product = static_cast<uint128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash_text(std::string_view text) {
  uint64_t h = 0x9E3779B97F4A7C15u ^ text.size();
  const char* p = text.data();
  size_t n = text.size();
  uint64_t word = 0;
  for (; n >= 8; n -= 8, p += 8) {
    std::memcpy(&word, p, 8);
    h = mix_bits(h ^ word, 0xD6E8FEB86659FD93u);
  }
  word = 0;
  if (n > 0) std::memcpy(&word, p, n);
  return mix_bits(h ^ word, 0xA0761D6478BD642Fu);
}

/// Text -> small number. The texts stay with the caller (ids index into them).
class TextIndex {
 public:
  /// Room for `count` entries.
  void reserve(size_t count) { slots_.assign(std::bit_ceil(count * 2 + 2), Slot{}); }

  /// `texts[id]` under its id; answers the id that already had the same text, if any (the table is then
  /// unchanged).
  std::optional<int32_t> insert(const std::vector<std::string_view>& texts, int32_t id) {
    const std::string_view text = texts[static_cast<size_t>(id)];
    const uint64_t hash = hash_text(text);
    for (size_t at = hash & mask();; at = (at + 1) & mask()) {
      Slot& slot = slots_[at];
      if (slot.id < 0) {
        slot = {static_cast<uint32_t>(hash >> 32), id};
        return std::nullopt;
      }
      if (slot.tag == static_cast<uint32_t>(hash >> 32) && texts[static_cast<size_t>(slot.id)] == text)
        return slot.id;
    }
  }

  /// The id of a text, or -1.
  int32_t find(const std::vector<std::string_view>& texts, std::string_view text) const {
    return find(texts, text, hash_text(text));
  }
  /// The same with the text's hash, which `prefetch` may have announced some time before.
  int32_t find(const std::vector<std::string_view>& texts, std::string_view text, uint64_t hash) const {
    if (slots_.empty()) return -1;
    for (size_t at = hash & mask();; at = (at + 1) & mask()) {
      const Slot& slot = slots_[at];
      if (slot.id < 0) return -1;
      if (slot.tag == static_cast<uint32_t>(hash >> 32) && texts[static_cast<size_t>(slot.id)] == text)
        return slot.id;
    }
  }
  void prefetch(uint64_t hash) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[hash & mask()]);
  }

 private:
  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;
  };
  size_t mask() const { return slots_.size() - 1; }
  std::vector<Slot> slots_;
};

/// A pair of token ids -> what they merge to.
class PairIndex {
 public:
  struct Merge {
    uint32_t rank = UINT32_MAX;  ///< smaller merges first; UINT32_MAX: these two do not merge
    int32_t id = -1;             ///< the token they become
  };

  void reserve(size_t count) { slots_.assign(std::bit_ceil(count + count / 2 + 2), Slot{}); }

  /// A later entry for the same pair replaces the earlier one.
  void insert(int32_t left, int32_t right, Merge merge) {
    const uint64_t key = key_of(left, right);
    for (size_t at = hash(key) & mask();; at = (at + 1) & mask()) {
      if (slots_[at].key == key || slots_[at].key == kEmpty) {
        slots_[at] = {key, merge};
        return;
      }
    }
  }

  void prefetch(int32_t left, int32_t right) const {
    __builtin_prefetch(&slots_[hash(key_of(left, right)) & mask()], 1);
  }

  Merge find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t at = hash(key) & mask();; at = (at + 1) & mask()) {
      if (slots_[at].key == key) return slots_[at].merge;
      if (slots_[at].key == kEmpty) return {};
    }
  }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;  // ids are not negative, so no pair has this key
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge;
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }
  static uint64_t hash(uint64_t key) { return mix_bits(key ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u); }
  size_t mask() const { return slots_.size() - 1; }
  std::vector<Slot> slots_;
};

}  // namespace greta
