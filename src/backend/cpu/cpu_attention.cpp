#include "backend/cpu/cpu_attention.h"

#include <algorithm>

#include "base/checked.h"

namespace greta::cpu {
namespace {

/// Queries of an item: a page of keys and values is read, and made FP32, once for all of them. Many, but an
/// item for every thread, and each thread some.
constexpr int64_t kMostQueries = 256, kLeastQueries = 64;
constexpr int64_t kItemsOfThread = 4;
/// A call of fewer multiply-adds in its scores runs on the caller: another thread would have to be waited for
/// (1 us) and to fetch the keys that the caller has just written.
constexpr int64_t kAlone = 32768;

int64_t multiply_adds(const AttentionArgs& args) {
  int64_t keys = 0;
  for (int64_t row = 0; row < args.batch->rows; ++row) {
    const int64_t seen = int64_t{args.batch->positions[row]} + 1;
    keys += args.window == 0 ? seen : std::min<int64_t>(seen, args.window);
  }
  return keys * args.heads * args.cache.head_dim;
}

}  // namespace

void Attention::plan(const AttentionArgs& args) {
  const BatchView& batch = *args.batch;
  const int group = args.heads / args.cache.kv_heads;
  const int64_t queries =
      std::clamp(batch.rows * args.heads / (pool_.size() * kItemsOfThread), kLeastQueries, kMostQueries);
  const int64_t rows_each = std::max<int64_t>(1, queries / group);
  items_.clear();
  for (int64_t row = 0; row < batch.rows;) {
    int64_t end = row + 1;
    while (end < batch.rows && end - row < rows_each && batch.sequences[end] == batch.sequences[row]) ++end;
    for (int head = 0; head < args.heads; head += group)
      items_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(end - row), head, group});
    row = end;
  }
  // Too few to go round (one row, one kv head): the heads of a group part company.
  while (static_cast<int>(items_.size()) < pool_.size() && items_.front().heads > 1) {
    std::vector<Item> halves;
    for (const Item& item : items_) {
      const int32_t first = (item.heads + 1) / 2;
      halves.push_back({item.row, item.rows, item.head, first});
      if (item.heads > first) halves.push_back({item.row, item.rows, item.head + first, item.heads - first});
    }
    items_ = std::move(halves);
  }
}

void Attention::run_item(const AttentionArgs& args, const Item& item, int worker) {
  const BatchView& batch = *args.batch;
  const int head_dim = args.cache.head_dim;
  const int64_t width = int64_t{args.heads} * head_dim;
  Worker& w = workers_[static_cast<size_t>(worker)];
  w.q.clear();
  w.out.clear();
  w.positions.clear();
  for (int row = item.row; row < item.row + item.rows; ++row) {
    for (int head = item.head; head < item.head + item.heads; ++head) {
      const int64_t at = row * width + int64_t{head} * head_dim;
      w.q.push_back(static_cast<const float*>(args.q.data) + at);
      w.out.push_back(static_cast<float*>(args.out.data) + at);
      w.positions.push_back(batch.positions[row]);
    }
  }
  const int64_t head_bytes = int64_t{kKvPage} * head_dim * element_bytes_;
  const int64_t kv_head = item.head / (args.heads / args.cache.kv_heads);
  AttentionJob job;
  job.queries = static_cast<int>(w.q.size());
  job.q = w.q.data();
  job.out = w.out.data();
  job.positions = w.positions.data();
  job.pages = args.cache.pages + batch.sequences[item.row] * args.cache.page_stride;
  job.k = static_cast<const std::byte*>(args.cache.k) + kv_head * head_bytes;
  job.v = static_cast<const std::byte*>(args.cache.v) + kv_head * head_bytes;
  job.page_bytes = args.cache.kv_heads * head_bytes;
  job.head_dim = head_dim;
  job.scale = static_cast<float>(args.scale);
  job.softcap = static_cast<float>(args.softcap);
  job.window = args.window;
  w.scratch.reserve(static_cast<size_t>(attention_scratch(job.queries, head_dim)));
  kernels_.attention[element_](job, w.scratch.data());
}

void Attention::run(const AttentionArgs& args) {
  if (args.batch->rows == 0) return;
  workers_.resize(static_cast<size_t>(pool_.size()));
  plan(args);
  const auto share = [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) run_item(args, items_[static_cast<size_t>(i)], worker);
  };
  const auto items = static_cast<int64_t>(items_.size());
  if (multiply_adds(args) <= kAlone)
    share(0, items, 0);
  else
    pool_.parallel_walk(items, 1, share);
}

uint64_t Attention::scratch_bytes(int64_t widest) const {
  // No head is wider than a row; a head this wide has one query an item for each head of its group.
  const int64_t each = std::min<int64_t>(attention_scratch(kMostQueries, 512),
                                         attention_scratch(1, static_cast<int>(widest)) * 64);
  return static_cast<uint64_t>(each * pool_.size());
}

}  // namespace greta::cpu
