#include "decoder/kv_cache.h"

#include <algorithm>
#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace greta {

int64_t KvCache::pages_of(int64_t window, int64_t context, int64_t chunk) {
  const int64_t all = ceil_div(context, kKvPage);
  // Rows that begin on the last position of a page touch one page more than they fill.
  return window == 0 ? all : std::min(all, ceil_div(window - 1 + chunk - 1, kKvPage) + 1);
}

KvCache::KvCache(Backend& backend, const HParams& hp, int64_t sequences, int64_t context, int64_t chunk)
    : context_(context),
      page_stride_(ceil_div(context, kKvPage)),
      lengths_(static_cast<size_t>(sequences), 0) {
  const auto pool_for = [&](int64_t window) -> Pool& {
    for (const auto& pool : pools_)
      if (pool->window == window) return *pool;
    auto pool = std::make_unique<Pool>();
    pool->window = window;
    pool->count = sequences * pages_of(window, context, chunk);
    pool->table.assign(static_cast<size_t>(sequences * page_stride_), -1);
    for (int64_t page = pool->count; page-- > 0;) pool->free.push_back(static_cast<int32_t>(page));
    pool->oldest.assign(static_cast<size_t>(sequences), 0);
    return *pools_.emplace_back(std::move(pool));
  };
  const int kv_heads = static_cast<int>(hp.kv_heads);
  const int head_dim = static_cast<int>(hp.head_dim);
  for (int64_t layer = 0; layer < hp.layers; ++layer) {
    const Pool& pool = pool_for(hp.window_of(layer));
    const uint64_t bytes = static_cast<uint64_t>(pool.count) * backend.kv_page_bytes(kv_heads, head_dim);
    buffers_.push_back(backend.allocate(bytes));
    void* k = buffers_.back()->data();
    buffers_.push_back(backend.allocate(bytes));
    layers_.push_back({k, buffers_.back()->data(), kv_heads, head_dim, pool.table.data(), page_stride_});
  }
}

int64_t KvCache::first_page(const Pool& pool, int64_t position) {
  return pool.window == 0 ? 0 : std::max<int64_t>(position - pool.window + 1, 0) / kKvPage;
}

void KvCache::release(Pool& pool, int64_t sequence, int64_t first, int64_t last) {
  for (int64_t page = last; page-- > first;) {
    int32_t& entry = pool.table[static_cast<size_t>(sequence * page_stride_ + page)];
    pool.free.push_back(entry);
    entry = -1;
  }
}

void KvCache::grow(int64_t sequence, int64_t count) {
  int64_t& length = lengths_[static_cast<size_t>(sequence)];
  if (length + count > context_)
    fail("sequence {} would reach {} positions, the context holds {} (raise --context)", sequence,
         length + count, context_);
  for (const auto& pool : pools_) {
    int64_t& oldest = pool->oldest[static_cast<size_t>(sequence)];
    const int64_t first = first_page(*pool, length);
    if (first > oldest) {
      release(*pool, sequence, oldest, first);
      oldest = first;
    }
    for (int64_t page = ceil_div(length, kKvPage); page < ceil_div(length + count, kKvPage); ++page) {
      if (pool->free.empty()) fail("a window of {} has no page left for {} new rows", pool->window, count);
      pool->table[static_cast<size_t>(sequence * page_stride_ + page)] = pool->free.back();
      pool->free.pop_back();
    }
  }
  length += count;
}

void KvCache::clear(int64_t sequence) { truncate(sequence, 0); }

int64_t KvCache::truncate(int64_t sequence, int64_t length) {
  int64_t& now = lengths_[static_cast<size_t>(sequence)];
  length = std::min(length, now);
  for (const auto& pool : pools_)
    if (first_page(*pool, length) < pool->oldest[static_cast<size_t>(sequence)]) length = 0;
  for (const auto& pool : pools_) {
    int64_t& oldest = pool->oldest[static_cast<size_t>(sequence)];
    release(*pool, sequence, std::max(oldest, ceil_div(length, kKvPage)), ceil_div(now, kKvPage));
    if (length == 0) oldest = 0;
  }
  return now = length;
}

}  // namespace greta
