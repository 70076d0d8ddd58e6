#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace greta {

/// A fixed set of threads for loops over independent items. Which thread takes which item is not promised and
/// must not matter to a result. The caller works too, so `threads` = 1 starts no thread at all. Idle workers
/// spin for some microseconds (the gap between two operators of a decode step), then sleep in the kernel.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// What a loop calls: a reference, for as long as the loop runs. A worker that wakes reads all of it in one
  /// line; a std::function would be two more that the caller has written.
  class Body {
   public:
    template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, Body>) Body(const F& body)
        : object_(std::addressof(body)),
          call_([](const void* object, int64_t begin, int64_t end, int worker) {
            (*static_cast<const F*>(object))(begin, end, worker);
          }) {}
    void operator()(int64_t begin, int64_t end, int worker) const { call_(object_, begin, end, worker); }

   private:
    friend class ThreadPool;
    Body() = default;
    const void* object_ = nullptr;
    void (*call_)(const void*, int64_t, int64_t, int) = nullptr;
  };

  /// Calls body(begin, end, worker) on disjoint ranges that cover [0, count), each at most `grain` long;
  /// worker is in [0, size()). Returns when all are done. The first exception of a body is thrown here, when
  /// no body runs any more; items that nobody had begun may be left out then. Not reentrant: one loop at a
  /// time, from one thread.
  void parallel_for(int64_t count, int64_t grain, const Body& body);

  /// The same for items that stream through memory: worker i of n walks the i-th n-th of them in ascending
  /// order, a third of what is left at a time but at least `least` items, and when that is done takes the
  /// second half of what another has left. `ahead`: nothing, or for each worker the memory that it will read
  /// first in a later walk; it asks for that while it waits, into its second cache.
  using Memory = std::span<const std::byte>;
  void parallel_walk(int64_t count, int64_t least, const Body& body, std::span<const Memory> ahead = {});

 private:
  /// One thread's, in a line of its own: a line takes 0.1 us each time it changes hands.
  struct alignas(64) Seat {
    /// 1: may be inside a loop; 2: and the caller sleeps until it is out. The caller's own is not used.
    std::atomic<int> busy{0};
    /// Items [first, last) of a walk that nobody has begun, in one word, so that an owner who takes from the
    /// front and a thief who takes from the back cannot both have one.
    std::atomic<uint64_t> left{0};
  };
  static bool take_front(Seat& seat, int64_t least, int64_t* begin, int64_t* end);
  bool steal_into(Seat& own);

  void work(int worker);
  void loop();
  /// What a thread that comes in time does of the loop.
  void share(int worker);
  void take_items(int worker);
  void walk(int worker);

  std::vector<std::thread> workers_;
  std::vector<Seat> seats_;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
  std::atomic<bool> stopping_{false};
  // What a worker needs when it wakes lies in the line that it watches.
  alignas(64) std::atomic<uint32_t> generation_{0};  ///< raised once for each loop: wakes the workers
  std::atomic<int> asleep_{0};                       ///< workers that may be
  std::atomic<bool> open_{false};                    ///< a loop is on: workers may enter
  bool walks_ = false;
  Body body_;
  int64_t count_ = 0;
  int64_t step_ = 0;  ///< the grain; of a walk the least
  std::span<const Memory> ahead_;
  alignas(64) std::atomic<int64_t> next_{0};  ///< the first item that nobody has taken
};

}  // namespace greta
