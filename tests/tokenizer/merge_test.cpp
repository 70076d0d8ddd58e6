// The merge loop against the naive one, and its time on long runs.
#include "tokenizer/merge.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

namespace greta {
namespace {

/// Again and again the best pair, the leftmost of those, by looking at all of them.
std::vector<TokenId> merge_naively(std::vector<TokenId> ids, const PairIndex& merges) {
  for (;;) {
    PairIndex::Merge best;
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto merge = merges.find(ids[i], ids[i + 1]);
      if (merge.rank < best.rank) best = merge, at = i;
    }
    if (best.rank == UINT32_MAX) return ids;
    ids[at] = best.id;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(at) + 1);
  }
}

std::vector<TokenId> merge_by_heap(const std::vector<TokenId>& ids, const PairIndex& merges) {
  std::vector<Symbol> symbols;
  for (uint32_t i = 0; i < ids.size(); ++i) symbols.push_back({.start = i, .end = i + 1, .id = ids[i]});
  std::vector<uint64_t> heap;
  merge_symbols(
      symbols, [&](const Symbol& a, const Symbol& b) { return merges.find(a.id, b.id); }, heap);
  std::vector<TokenId> out;
  uint32_t end = 0;
  for (uint32_t i = symbols.empty() ? Symbol::kNone : 0; i != Symbol::kNone; i = symbols[i].next) {
    EXPECT_EQ(symbols[i].start, end);  // the spans stay side by side
    end = symbols[i].end;
    out.push_back(symbols[i].id);
  }
  EXPECT_EQ(end, ids.size());
  return out;
}

// Random merges in random order of rank (also such that what a merge makes merges earlier than its parts
// did), with ties of rank between different pairs, as SPM has them.
TEST(Merge, EqualsTheNaiveLoop) {
  std::mt19937 random(7);
  const auto below = [&](uint32_t n) { return static_cast<int32_t>(random() % n); };
  for (int round = 0; round < 3000; ++round) {
    const uint32_t letters = 2 + random() % 3, tokens = letters + 1 + random() % 12;
    PairIndex merges;
    merges.reserve(64);
    for (uint32_t i = 0; i < 4 + random() % 40; ++i) {
      merges.insert(below(tokens), below(tokens), {static_cast<uint32_t>(below(20)), below(tokens)});
    }
    std::vector<TokenId> ids(random() % 120);
    for (TokenId& id : ids) id = below(letters);
    ASSERT_EQ(merge_by_heap(ids, merges), merge_naively(ids, merges)) << "round " << round;
  }
}

VocabData data_of(const std::vector<std::string>& pieces, const std::vector<std::string>& merges) {
  VocabData data;
  data.source = "test";
  data.pieces.assign(pieces.begin(), pieces.end());
  data.merges.assign(merges.begin(), merges.end());
  return data;
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// A megabyte of one character is one word. A quadratic loop would need hours; ten times the text may take at
// most 40 times as long (n log n, and a noisy machine).
TEST(Merge, LongRunsTakeNoLongerThanTheirLength) {
  std::vector<std::string> pieces = {"a", "aa", "aaaa", "aaaaaaaa"};
  const std::vector<std::string> merges = {"a a", "aa aa", "aaaa aaaa"};
  VocabData bpe = data_of(pieces, merges);
  bpe.model = "gpt2";
  bpe.pre = "gpt-2";
  VocabData spm = data_of(pieces, {});
  spm.model = "llama";
  spm.scores = {0, -1, -2, -3};
  spm.types = {1, 1, 1, 1};
  spm.unknown = 0;
  spm.add_space_prefix = false;
  for (const VocabData* data : {&bpe, &spm}) {
    const auto tokenizer = make_tokenizer(*data);
    const std::string small(100000, 'a'), large(1000000, 'a');
    std::vector<TokenId> ids;
    const double one = seconds_of([&] { ids = tokenizer->encode(small); });
    EXPECT_EQ(ids.size(), small.size() / 8);
    const double ten = seconds_of([&] { ids = tokenizer->encode(large); });
    EXPECT_EQ(ids.size(), large.size() / 8);
    EXPECT_LT(ten, 40 * one + 0.5) << data->model;
    EXPECT_LT(ten, 5.0) << data->model;
    EXPECT_EQ(tokenizer->decode(ids), large);
  }
}

}  // namespace
}  // namespace greta
