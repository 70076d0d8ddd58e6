#pragma once
// The machine's limits, measured in the run that is compared with them (performance.md: how).
#include <cstdint>
#include <string>

namespace greta {

struct ReadLimit {
  double bytes_per_second = 0.0;
  int threads = 0;       ///< the thread count that gave it
  std::string pattern;   ///< the access pattern that gave it
  uint64_t buffer = 0;   ///< bytes of the buffer
};

/// Best read rate over at least three access patterns and all thread counts up to `max_threads`, over a buffer of
/// `bytes`. Takes about `seconds`.
ReadLimit measure_read_limit(uint64_t bytes, int max_threads, double seconds);

/// Peak multiply-adds a second of the instructions that this machine has, on `threads` threads.
struct ComputeLimit {
  double int8 = 0.0;      ///< VPDPBUSD (or the AVX2 sequence)
  double int16 = 0.0;     ///< two-plane VPDPBUSD or VPDPWSSD, whichever is faster
  double fp32 = 0.0;
};
ComputeLimit measure_compute_limit(int threads, double seconds);

/// Size of the last-level cache that one core sees, from the system.
uint64_t last_level_cache_bytes();
/// "AMD EPYC ..." from the system.
std::string cpu_name();

}  // namespace greta
