// Pages of the cache with and without windows, against a model of what must be there.
#include "decoder/kv_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/error.h"

namespace greta {
namespace {

constexpr int64_t kWindows[] = {0, 1, 2, 63, 64, 65, 100, 128, 129, 200, 512};
constexpr int64_t kChunks[] = {1, 7, 64, 65, 512};

/// Two layers with the window, one without.
HParams shape(int64_t window) {
  HParams hp;
  hp.layers = 3;
  hp.kv_heads = 1;
  hp.head_dim = 2;
  hp.window = window;
  if (window > 0) hp.local = {true, false, true};
  return hp;
}

TEST(KvCachePages, AsManyAsTheRowsOfACallCanTouchAndNoMore) {
  constexpr int64_t kContext = 1000;
  for (const int64_t window : kWindows)
    for (const int64_t chunk : kChunks) {
      int64_t most = 0;
      for (int64_t start = 0; start < kContext; ++start) {
        const int64_t first = window == 0 ? 0 : std::max<int64_t>(start - window + 1, 0) / kKvPage;
        const int64_t last = (std::min(start + chunk, kContext) - 1) / kKvPage;
        most = std::max(most, last - first + 1);
      }
      EXPECT_EQ(KvCache::pages_of(window, kContext, chunk), most)
          << "window " << window << " chunk " << chunk;
    }
}

/// A cache and what its tables must say.
class Watched {
 public:
  Watched(int64_t window, int64_t sequences, int64_t context, int64_t chunk)
      : hp_(shape(window)),
        chunk_(chunk),
        cache_(*backend_, hp_, sequences, context, chunk),
        kept_(static_cast<size_t>(sequences)),
        lengths_(static_cast<size_t>(sequences), 0) {}

  void grow(int64_t s, int64_t count) {
    cache_.grow(s, count);
    const int64_t start = lengths_[index(s)];
    lengths_[index(s)] += count;
    // The first row of this call decides which page is the oldest that stays.
    oldest(s) =
        std::max(oldest(s), hp_.window == 0 ? 0 : std::max<int64_t>(start - hp_.window + 1, 0) / kKvPage);
    check();
  }

  void truncate(int64_t s, int64_t asked) {
    int64_t length = std::min(asked, lengths_[index(s)]);
    const int64_t sees = hp_.window == 0 ? 0 : std::max<int64_t>(length - hp_.window + 1, 0) / kKvPage;
    if (sees < oldest(s)) length = 0;
    EXPECT_EQ(cache_.truncate(s, asked), length);
    lengths_[index(s)] = length;
    if (length == 0) oldest(s) = 0;
    check();
  }

  /// As truncate, of a length that the caller asks for unadjusted: what is left.
  int64_t left_of(int64_t s, int64_t length) {
    const int64_t left = cache_.truncate(s, length);
    lengths_[index(s)] = left;
    if (left == 0) oldest(s) = 0;
    check();
    return left;
  }

  int64_t length(int64_t s) const { return cache_.length(s); }
  int64_t room(int64_t s) const { return std::min(chunk_, cache_.context() - cache_.length(s)); }

  /// Pages in use of a layer.
  size_t pages(size_t layer) const {
    const KvLayer kv = cache_.layer(layer);
    size_t count = 0;
    for (int64_t i = 0; i < cache_.sequences() * kv.page_stride; ++i) count += kv.pages[i] >= 0 ? 1 : 0;
    return count;
  }

  const HParams hp_;
  const int64_t chunk_;
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {});
  KvCache cache_;

 private:
  static size_t index(int64_t s) { return static_cast<size_t>(s); }
  int64_t& oldest(int64_t s) { return kept_[index(s)].oldest; }

  /// Every page that is to be there is, no two are one, none moved, and nothing else is kept.
  void check() {
    EXPECT_EQ(cache_.layer(0).pages, cache_.layer(hp_.window > 0 ? 2 : 1).pages);
    for (const size_t layer : {0, 1}) {
      const KvLayer kv = cache_.layer(layer);
      const bool local = hp_.window_of(static_cast<int64_t>(layer)) > 0;
      const int64_t pool = cache_.sequences() * KvCache::pages_of(hp_.window_of(static_cast<int64_t>(layer)),
                                                                  cache_.context(), chunk_);
      std::set<int32_t> taken;
      for (int64_t s = 0; s < cache_.sequences(); ++s) {
        ASSERT_EQ(cache_.length(s), lengths_[index(s)]);
        auto& known = kept_[index(s)].pages[layer];
        for (int64_t page = 0; page < kv.page_stride; ++page) {
          const bool there = page * kKvPage < lengths_[index(s)] && (!local || page >= oldest(s));
          const int32_t at = kv.page_of(s, page * kKvPage);
          ASSERT_EQ(at >= 0, there) << "layer " << layer << " sequence " << s << " page " << page;
          if (!there) {
            known.erase(page);
            continue;
          }
          ASSERT_LT(at, pool);
          ASSERT_TRUE(taken.insert(at).second) << "page " << at << " serves two";
          ASSERT_EQ(known.emplace(page, at).first->second, at) << "a page moved with its values";
        }
      }
    }
  }

  struct Kept {
    int64_t oldest = 0;
    std::map<int64_t, int32_t> pages[2];
  };
  std::vector<Kept> kept_;
  std::vector<int64_t> lengths_;
};

TEST(KvCache, KeepsWhatIsSeenAndNeverRunsOutAtAnyChunk) {
  constexpr int64_t kContext = 1000, kSequences = 3;
  std::mt19937 random(7);
  for (const int64_t window : kWindows)
    for (const int64_t chunk : kChunks) {
      SCOPED_TRACE(fmt::format("window {} chunk {}", window, chunk));
      Watched cache(window, kSequences, kContext, chunk);
      for (int step = 0; step < 400; ++step) {
        const int64_t s = random() % kSequences;
        const int64_t room = cache.room(s);
        const uint32_t what = random() % 16;
        if (room == 0 || what == 0)
          cache.truncate(s, 0);
        else if (what == 1)
          cache.truncate(s, random() % (static_cast<uint32_t>(cache.length(s)) + 1));
        else  // whole chunks often: they need the most pages
          cache.grow(s, what < 9 ? room : 1 + random() % static_cast<uint32_t>(room));
        ASSERT_FALSE(testing::Test::HasFatalFailure());
      }
    }
}

TEST(KvCache, NoPageIsLostOverManyTexts) {
  for (const int64_t window : kWindows) {
    constexpr int64_t kChunk = 50, kContext = 700;
    Watched cache(window, 2, kContext, kChunk);
    for (int round = 0; round < 20; ++round) {
      for (const int64_t s : {0, 1})
        while (cache.room(s) > 0)
          cache.grow(s, std::min<int64_t>(cache.room(s), 1 + (round * 7 + cache.length(s)) % kChunk));
      cache.cache_.clear(0);
      cache.left_of(0, 0);
      EXPECT_LE(cache.pages(0), static_cast<size_t>(KvCache::pages_of(window, kContext, kChunk)));
      cache.left_of(1, 0);
      EXPECT_EQ(cache.pages(0), 0u);
      EXPECT_EQ(cache.pages(1), 0u);
    }
  }
}

TEST(KvCache, TruncateAnswersWithWhatIsLeft) {
  Watched plain(0, 1, 1000, 64);
  for (int i = 0; i < 10; ++i) plain.grow(0, 64);
  EXPECT_EQ(plain.left_of(0, 5000), 640) << "more than there is: all of it";
  EXPECT_EQ(plain.left_of(0, 639), 639);
  EXPECT_EQ(plain.left_of(0, 1), 1);

  Watched cut(100, 1, 1000, 64);
  for (int i = 0; i < 10; ++i) cut.grow(0, 64);
  // The call that began at 576 saw 477 and on, page 7: the pages before it are given back. A row at 547 sees
  // 448 and on, which is page 7; one at 546 sees 447.
  EXPECT_EQ(cut.left_of(0, 600), 600);
  EXPECT_EQ(cut.left_of(0, 547), 547);
  cut.grow(0, 64);
  EXPECT_EQ(cut.left_of(0, 546), 0) << "a row at 546 sees a key that was given back";
  EXPECT_EQ(cut.pages(0), 0u);
  EXPECT_EQ(cut.pages(1), 0u);
  cut.grow(0, 64);
  EXPECT_EQ(cut.left_of(0, 3), 3) << "nothing was given back of the new text";
}

TEST(KvCache, PastTheContextIsAnError) {
  Watched cache(64, 1, 100, 64);
  cache.grow(0, 64);
  EXPECT_THROW(cache.cache_.grow(0, 37), Error);
  EXPECT_EQ(cache.length(0), 64);
  cache.grow(0, 36);
}

}  // namespace
}  // namespace greta
