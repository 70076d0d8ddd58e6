#pragma once
// The merge loop that byte-level BPE and SPM share: again and again the adjacent pair of the lowest rank, the
// leftmost of those, becomes one symbol, until no adjacent pair has a rank.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "tokenizer/hash_index.h"

namespace greta {

/// One symbol of the text being merged. Symbols are a linked list inside a vector; a merge grows the left
/// one.
struct Symbol {
  uint32_t start = 0;            ///< first byte in the text
  uint32_t end = 0;              ///< one past its last byte
  int32_t id = -1;               ///< token, or -1
  uint32_t previous = kNone;     ///< neighbour, or kNone
  uint32_t next = kNone;         ///< neighbour, or kNone
  PairIndex::Merge with_next{};  ///< what it makes with the next one

  static constexpr uint32_t kNone = UINT32_MAX;
};

/// Links `symbols` in order. `lookup(left, right)` answers a PairIndex::Merge. Afterwards symbols[0] heads
/// the list of what is left. The order is exactly that of the naive loop: a heap is keyed by (rank,
/// position), an entry whose symbol has meanwhile another rank is stale, and a merge can only replace entries
/// of its two neighbours.
template <class Lookup>
void merge_symbols(std::vector<Symbol>& symbols, const Lookup& lookup, std::vector<uint64_t>& heap) {
  const auto count = static_cast<uint32_t>(symbols.size());
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i].previous = i == 0 ? Symbol::kNone : i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : Symbol::kNone;
    symbols[i].with_next = i + 1 < count ? lookup(symbols[i], symbols[i + 1]) : PairIndex::Merge{};
  }
  const auto merge_at = [&](uint32_t i) {
    Symbol& left = symbols[i];
    const Symbol& right = symbols[left.next];
    left.id = left.with_next.id;
    left.end = right.end;
    left.next = right.next;
    left.with_next = {};
    if (left.next != Symbol::kNone) symbols[left.next].previous = i;
  };
  const auto refresh = [&](uint32_t i) {
    Symbol& s = symbols[i];
    s.with_next = s.next == Symbol::kNone ? PairIndex::Merge{} : lookup(s, symbols[s.next]);
    return s.with_next.rank;
  };

  constexpr uint32_t kShort = 32;
  if (count <= kShort) {  // words: scanning beats a heap
    for (;;) {
      uint32_t best = UINT32_MAX, at = Symbol::kNone;
      for (uint32_t i = count == 0 ? Symbol::kNone : 0; i != Symbol::kNone; i = symbols[i].next) {
        if (symbols[i].with_next.rank < best) best = symbols[i].with_next.rank, at = i;
      }
      if (at == Symbol::kNone) return;
      merge_at(at);
      refresh(at);
      if (symbols[at].previous != Symbol::kNone) refresh(symbols[at].previous);
    }
  }

  heap.clear();
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t rank = symbols[i].with_next.rank;
    if (rank != UINT32_MAX) heap.push_back((static_cast<uint64_t>(rank) << 32) | i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](uint32_t i) {
    const uint32_t rank = refresh(i);
    if (rank == UINT32_MAX) return;
    heap.push_back((static_cast<uint64_t>(rank) << 32) | i);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto i = static_cast<uint32_t>(heap.back());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (symbols[i].with_next.rank != rank) continue;  // stale
    const uint32_t gone = symbols[i].next;
    merge_at(i);
    symbols[gone].with_next = {};
    push(i);
    if (symbols[i].previous != Symbol::kNone) push(symbols[i].previous);
  }
}

}  // namespace greta
