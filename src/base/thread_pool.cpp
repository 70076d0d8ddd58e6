#include "base/thread_pool.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace greta {
namespace {

// About 30 microseconds of looking before sleeping: longer than the serial gap between two operators.
constexpr int kSpins = 2000;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

/// A moment of waiting: some of `ahead` is asked for, while there is any.
void wait_a_moment(ThreadPool::Memory& ahead) {
  constexpr size_t kAtOnce = 1024, kLine = 64;
  if (ahead.empty()) return pause_briefly();
  const auto some = ahead.first(std::min(kAtOnce, ahead.size()));
  for (size_t at = 0; at < some.size(); at += kLine) __builtin_prefetch(&some[at], 0, 2);
  ahead = ahead.subspan(some.size());
}

uint64_t pack(uint64_t first, uint64_t last) { return first << 32 | last; }
uint64_t first_of(uint64_t left) { return left >> 32; }
uint64_t last_of(uint64_t left) { return left & 0xffffffffu; }

}  // namespace

ThreadPool::ThreadPool(int threads) : stretches_(static_cast<size_t>(std::max(threads, 1))) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  Memory ahead;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin)
      wait_a_moment(ahead);
    generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    // Raised before looking whether a loop is open, as the caller closes it before looking at `active_` (both
    // in the one order of seq_cst): either the caller waits for this worker, or this worker stays out.
    active_.fetch_add(1);
    if (open_.load()) {
      take_items(worker);
      if (!ahead_.empty()) ahead = ahead_[static_cast<size_t>(worker)];
    }
    if (active_.fetch_sub(1) == 1) active_.notify_one();
  }
}

void ThreadPool::take_items(int worker) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    try {
      (*body_)(begin, std::min(begin + grain_, count_), worker);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, const Body& body) {
  loop(count, grain, body, {});
}

void ThreadPool::loop(int64_t count, int64_t grain, const Body& body, std::span<const Memory> ahead) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), 0);
    return;
  }
  count_ = count;
  grain_ = grain;
  body_ = &body;
  ahead_ = ahead;
  next_.store(0, std::memory_order_relaxed);
  open_.store(true);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  take_items(0);
  open_.store(false);  // a worker that wakes only now is not waited for
  Memory own = ahead.empty() ? Memory{} : ahead[0];
  for (int spin = 0; spin < kSpins && active_.load() != 0; ++spin) wait_a_moment(own);
  for (int left = active_.load(); left != 0; left = active_.load()) active_.wait(left);
  if (failed_.load(std::memory_order_acquire)) {
    failed_.store(false);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

bool ThreadPool::take_front(Stretch& stretch, int64_t least, int64_t* begin, int64_t* end) {
  uint64_t left = stretch.left.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t first = first_of(left), last = last_of(left);
    if (first >= last) return false;
    const uint64_t next = std::min(first + std::max(static_cast<uint64_t>(least), (last - first) / 3), last);
    if (!stretch.left.compare_exchange_weak(left, pack(next, last), std::memory_order_relaxed)) continue;
    *begin = static_cast<int64_t>(first);
    *end = static_cast<int64_t>(next);
    return true;
  }
}

/// Moves the second half of the longest stretch that is left to `own`, which is empty.
bool ThreadPool::steal_into(Stretch& own) {
  for (;;) {
    Stretch* longest = nullptr;
    uint64_t most = 0, seen = 0;
    for (Stretch& other : stretches_) {
      const uint64_t left = other.left.load(std::memory_order_relaxed);
      if (first_of(left) >= last_of(left) || last_of(left) - first_of(left) <= most) continue;
      longest = &other;
      most = last_of(left) - first_of(left);
      seen = left;
    }
    if (longest == nullptr) return false;
    const uint64_t middle = first_of(seen) + most / 2;
    if (!longest->left.compare_exchange_strong(seen, pack(first_of(seen), middle), std::memory_order_relaxed))
      continue;
    own.left.store(pack(middle, last_of(seen)), std::memory_order_relaxed);
    return true;
  }
}

void ThreadPool::parallel_walk(int64_t count, int64_t least, const Body& body,
                               std::span<const Memory> ahead) {
  if (count > int64_t{0xffffffff}) fail("{} items in one loop; expected less than 2^32", count);
  const int64_t threads = size();
  for (int64_t i = 0; i < threads; ++i)
    stretches_[static_cast<size_t>(i)].left.store(
        pack(static_cast<uint64_t>(count * i / threads), static_cast<uint64_t>(count * (i + 1) / threads)),
        std::memory_order_relaxed);
  const Body walk = [&](int64_t, int64_t, int worker) {
    Stretch& own = stretches_[static_cast<size_t>(worker)];
    int64_t begin = 0, end = 0;
    do {
      while (take_front(own, std::max<int64_t>(least, 1), &begin, &end)) body(begin, end, worker);
    } while (steal_into(own));
  };
  loop(threads, 1, walk, ahead);
}

}  // namespace greta
