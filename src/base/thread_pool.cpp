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

void end(std::vector<std::thread>& workers, std::atomic<bool>& stopping, std::atomic<uint32_t>& generation) {
  stopping.store(true);
  generation.fetch_add(1, std::memory_order_release);
  generation.notify_all();
  for (auto& worker : workers) worker.join();
}

}  // namespace

ThreadPool::ThreadPool(int threads) : seats_(static_cast<size_t>(std::max(threads, 1))) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::exception& error) {
    const size_t got = workers_.size() + 1;
    end(workers_, stopping_, generation_);  // no destructor runs
    fail("--threads {}: expected {} threads, got {}, then the system refused ({}); ask for fewer", threads,
         threads, got, error.what());
  }
}

ThreadPool::~ThreadPool() { end(workers_, stopping_, generation_); }

void ThreadPool::work(int worker) {
  Seat& seat = seats_[static_cast<size_t>(worker)];
  uint32_t seen = 0;
  Memory ahead;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin)
      wait_a_moment(ahead);
    if (generation_.load(std::memory_order_acquire) == seen) {
      asleep_.fetch_add(1);
      generation_.wait(seen);
      asleep_.fetch_sub(1);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    // Busy before it looks whether a loop is open, as the caller closes it before it looks who is busy (both
    // in the one order of seq_cst): either the caller waits for this worker, or this worker stays out.
    seat.busy.store(1);
    if (open_.load()) {
      share(worker);
      if (!ahead_.empty()) ahead = ahead_[static_cast<size_t>(worker)];
    }
    if (seat.busy.exchange(0) == 2) seat.busy.notify_one();
  }
}

void ThreadPool::share(int worker) {
  try {
    walks_ ? walk(worker) : take_items(worker);
  } catch (...) {
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
}

void ThreadPool::loop() {
  open_.store(true, std::memory_order_release);  // a worker late for the loop before may come in by it
  // Nobody is told who does not sleep: whoever lies down later sees the new generation first. (The library
  // knows sleepers by a hash of the address, so any other pool's would cost a system call here.)
  generation_.fetch_add(1);
  if (asleep_.load() != 0) generation_.notify_all();
  share(0);
  open_.store(false);  // a worker that wakes only now is not waited for
  Memory own = ahead_.empty() ? Memory{} : ahead_[0];
  for (size_t i = 1; i < seats_.size(); ++i) {
    for (int spin = 0; spin < kSpins && seats_[i].busy.load() != 0; ++spin) wait_a_moment(own);
    for (int in = 1; seats_[i].busy.compare_exchange_strong(in, 2) || in == 2; in = 1) seats_[i].busy.wait(2);
  }
  if (failed_.load(std::memory_order_acquire)) {
    failed_.store(false);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ThreadPool::take_items(int worker) {
  for (;;) {
    const int64_t begin = next_.fetch_add(step_, std::memory_order_relaxed);
    if (begin >= count_) return;
    body_(begin, std::min(begin + step_, count_), worker);
  }
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, const Body& body) {
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), 0);
    return;
  }
  next_.store(0, std::memory_order_relaxed);
  walks_ = false;
  body_ = body;
  count_ = count;
  step_ = grain;
  ahead_ = {};
  loop();
}

bool ThreadPool::take_front(Seat& seat, int64_t least, int64_t* begin, int64_t* end) {
  uint64_t left = seat.left.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t first = first_of(left), last = last_of(left);
    if (first >= last) return false;
    const uint64_t next = std::min(first + std::max(static_cast<uint64_t>(least), (last - first) / 3), last);
    if (!seat.left.compare_exchange_weak(left, pack(next, last), std::memory_order_relaxed)) continue;
    *begin = static_cast<int64_t>(first);
    *end = static_cast<int64_t>(next);
    return true;
  }
}

/// Moves the second half of the longest stretch that is left to `own`, which has none.
bool ThreadPool::steal_into(Seat& own) {
  for (;;) {
    Seat* longest = nullptr;
    uint64_t most = 0, seen = 0;
    for (Seat& other : seats_) {
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
  if (count <= 0) return;
  const int64_t threads = size();
  for (int64_t i = 0; i < threads; ++i)
    seats_[static_cast<size_t>(i)].left.store(
        pack(static_cast<uint64_t>(count * i / threads), static_cast<uint64_t>(count * (i + 1) / threads)),
        std::memory_order_relaxed);
  walks_ = true;
  body_ = body;
  step_ = std::max<int64_t>(least, 1);
  ahead_ = ahead;
  loop();
}

void ThreadPool::walk(int worker) {
  Seat& own = seats_[static_cast<size_t>(worker)];
  int64_t begin = 0, end = 0;
  do {
    while (take_front(own, step_, &begin, &end)) body_(begin, end, worker);
  } while (steal_into(own));
}

}  // namespace greta
