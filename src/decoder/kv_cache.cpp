#include "decoder/kv_cache.h"

#include "base/checked.h"
#include "base/error.h"

namespace greta {

KvCache::KvCache(Backend& backend, const HParams& hp, int64_t sequences, int64_t context)
    : context_(context),
      page_stride_(ceil_div(context, kKvPage)),
      lengths_(static_cast<size_t>(sequences), 0),
      pages_(static_cast<size_t>(sequences * page_stride_), -1) {
  const int64_t page_count = sequences * page_stride_;
  for (int64_t page = page_count; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
  const auto pool = static_cast<uint64_t>(page_count) *
                    backend.kv_page_bytes(static_cast<int>(hp.kv_heads), static_cast<int>(hp.head_dim));
  for (int64_t layer = 0; layer < hp.layers; ++layer) {
    buffers_.push_back(backend.allocate(pool));
    void* k = buffers_.back()->data();
    buffers_.push_back(backend.allocate(pool));
    layers_.push_back(
        {k, buffers_.back()->data(), static_cast<int>(hp.kv_heads), static_cast<int>(hp.head_dim)});
  }
}

void KvCache::grow(int64_t sequence, int64_t count) {
  int64_t& length = lengths_[static_cast<size_t>(sequence)];
  if (length + count > context_)
    fail("sequence {} would reach {} positions, the context holds {} (raise --context)", sequence,
         length + count, context_);
  for (int64_t page = ceil_div(length, kKvPage); page < ceil_div(length + count, kKvPage); ++page) {
    pages_[static_cast<size_t>(sequence * page_stride_ + page)] = free_.back();
    free_.pop_back();
  }
  length += count;
}

void KvCache::clear(int64_t sequence) { truncate(sequence, 0); }

void KvCache::truncate(int64_t sequence, int64_t length) {
  int64_t& now = lengths_[static_cast<size_t>(sequence)];
  for (int64_t page = ceil_div(now, kKvPage); page-- > ceil_div(length, kKvPage);) {
    int32_t& entry = pages_[static_cast<size_t>(sequence * page_stride_ + page)];
    free_.push_back(entry);
    entry = -1;
  }
  if (length < now) now = length;
}

}  // namespace greta
