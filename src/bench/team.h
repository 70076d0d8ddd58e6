#pragma once
// Threads that begin together, timed from the first begin to the last end.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace greta {

/// Runs body(thread) on `threads` threads (the caller is thread 0) and returns the seconds between the first
/// begin and the last end. The body must not throw. Errors: the system refuses a thread.
template <class Body>
double time_together(int threads, const Body& body) {
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> begin(static_cast<size_t>(threads));
  std::vector<Clock::time_point> end(static_cast<size_t>(threads));
  std::atomic<int> waiting{0};
  std::atomic<bool> given_up{false};
  const auto work = [&](int thread) {
    waiting.fetch_add(1);
    while (waiting.load() < threads) {
      if (given_up.load()) return;
      std::this_thread::yield();
    }
    begin[static_cast<size_t>(thread)] = Clock::now();
    body(thread);
    end[static_cast<size_t>(thread)] = Clock::now();
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads));
  std::string refused;
  try {
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  } catch (const std::system_error& e) {
    given_up.store(true);
    refused = e.what();
  }
  if (refused.empty()) work(0);
  for (auto& other : others) other.join();
  if (!refused.empty()) fail("cannot start thread {} of {}: {}", others.size() + 2, threads, refused);
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

}  // namespace greta
