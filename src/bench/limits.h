#pragma once
// The machine's limits, measured in the run that is compared with them.
#include <cstddef>
#include <cstdint>
#include <string>

namespace greta {

struct ReadLimit {
  double bytes_per_second = 0.0;
  int threads = 0;      ///< the thread count that gave it
  std::string pattern;  ///< the access pattern that gave it
  uint64_t buffer = 0;  ///< bytes of the buffer
};

/// Measures the read rate of a buffer of `bytes` (at least one cache line a thread; huge pages where the
/// system gives them), filled once. Errors: greta::Error if the buffer cannot be had.
class ReadMeter {
 public:
  ReadMeter(uint64_t bytes, int max_threads);
  ~ReadMeter();
  ReadMeter(const ReadMeter&) = delete;
  ReadMeter& operator=(const ReadMeter&) = delete;

  /// The best of four access patterns and the thread counts up to `max_threads`, each with the median of its
  /// samples: the luckiest 2 ms are no rate that reading keeps up (on a shared machine its own loops
  /// sustained 0.70 to 0.93 of that). Takes about `seconds`: every combination runs at least once as far as
  /// that time goes, the largest thread counts first, and then the promising ones again. A sample reads 64
  /// MiB or more, the next one what follows in the buffer: nothing is read twice before all else was.
  ReadLimit measure(double seconds);

 private:
  const std::byte* next_slice();

  int max_threads_;
  size_t bytes_;
  size_t slices_;  ///< equal parts of the buffer, a sample each
  size_t slice_ = 0;
  std::byte* data_ = nullptr;
};

/// Peak multiply-adds a second of the best instructions that this machine has, on `threads` threads together.
struct ComputeLimit {
  double int8 = 0.0;  ///< 8-bit by 8-bit: VPDPBUSD, or VPMADDUBSW and VPMADDWD
  double int16 =
      0.0;  ///< 16-bit by 8 bits: VPDPBUSD on two planes or VPDPWSSD, whichever is faster; or VPMADDWD
  double fp32 = 0.0;  ///< fused multiply-adds
  int threads = 0;
  std::string instructions;  ///< "AVX-512 VNNI", "AVX2", "portable"
};
/// Takes about `seconds`.
ComputeLimit measure_compute_limit(int threads, double seconds);

/// Size of the largest cache that one core sees, from the system; 32 MiB where the system does not say.
uint64_t last_level_cache_bytes();
/// "AMD EPYC ..." from the system.
std::string cpu_name();

}  // namespace greta
