// How fast this machine reads memory. Every pattern XORs all bytes of the buffer, so nothing can be skipped.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "bench/limits.h"
#include "bench/team.h"

namespace greta {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kBlock = 64 << 10;    // what a thread takes at a time in the interleaved pattern
constexpr size_t kAhead = 24 * kLine;  // prefetch distance, in bytes
constexpr size_t kStreams = 4;
constexpr size_t kSample = 64 << 20;  // 2 ms at 32 GB/s: starting the threads is no part of it

/// XOR of `lines` cache lines. `Stream` is the number of places read in turn: 1, or kStreams equal parts.
using Reader = uint64_t (*)(const std::byte* data, size_t lines);

uint64_t read_plain(const std::byte* data, size_t lines) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < lines; ++i) {
    uint64_t line[8];
    std::memcpy(line, data + i * kLine, kLine);
    for (size_t j = 0; j < 8; ++j) sums[j] ^= line[j];
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t read_avx2(const std::byte* data, size_t lines, bool prefetch) {
  __m256i sums[4] = {};
  const auto at = [&](size_t line, size_t half) __attribute__((target("avx2"))) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + line * kLine + half * 32));
  };
  size_t i = 0;
  for (; i + 2 <= lines; i += 2) {
    if (prefetch) {
      _mm_prefetch(reinterpret_cast<const char*>(data + i * kLine + kAhead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(data + i * kLine + kAhead + kLine), _MM_HINT_T0);
    }
    sums[0] = _mm256_xor_si256(sums[0], at(i, 0));
    sums[1] = _mm256_xor_si256(sums[1], at(i, 1));
    sums[2] = _mm256_xor_si256(sums[2], at(i + 1, 0));
    sums[3] = _mm256_xor_si256(sums[3], at(i + 1, 1));
  }
  uint64_t words[16];
  std::memcpy(words, sums, sizeof words);
  uint64_t sum = read_plain(data + i * kLine, lines - i);
  for (const uint64_t word : words) sum ^= word;
  return sum;
}
uint64_t read_avx2_plain(const std::byte* data, size_t lines) { return read_avx2(data, lines, false); }
uint64_t read_avx2_ahead(const std::byte* data, size_t lines) { return read_avx2(data, lines, true); }

/// Four equal parts in turn; what is left over is read plainly.
__attribute__((target("avx2"))) uint64_t read_avx2_streams(const std::byte* data, size_t lines) {
  const size_t part = lines / kStreams;
  __m256i sums[kStreams] = {};
  for (size_t i = 0; i < part; ++i)
    for (size_t s = 0; s < kStreams; ++s) {
      const auto* line = reinterpret_cast<const __m256i*>(data + (s * part + i) * kLine);
      sums[s] =
          _mm256_xor_si256(sums[s], _mm256_xor_si256(_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)));
    }
  uint64_t words[16];
  std::memcpy(words, sums, sizeof words);
  uint64_t sum = read_plain(data + kStreams * part * kLine, lines - kStreams * part);
  for (const uint64_t word : words) sum ^= word;
  return sum;
}
#endif

uint64_t read_streams(const std::byte* data, size_t lines) {
  const size_t part = lines / kStreams;
  uint64_t sum = 0;
  for (size_t i = 0; i < part; ++i)
    for (size_t s = 0; s < kStreams; ++s) sum ^= read_plain(data + (s * part + i) * kLine, 1);
  return sum ^ read_plain(data + kStreams * part * kLine, lines - kStreams * part);
}

struct Pattern {
  const char* name;
  Reader reader;
  bool interleaved;  ///< threads take blocks in turn instead of one part each
};

std::array<Pattern, 4> patterns() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2"))
    return {{{"one part a thread", read_avx2_plain, false},
             {"one part a thread, prefetched", read_avx2_ahead, false},
             {"four streams a thread", read_avx2_streams, false},
             {"blocks in turn, prefetched", read_avx2_ahead, true}}};
#endif
  return {{{"one part a thread", read_plain, false},
           {"four streams a thread", read_streams, false},
           {"blocks in turn", read_plain, true},
           {"blocks in turn, four streams", read_streams, true}}};
}

/// Bytes a second of `passes` passes over the buffer. A prefetch past the buffer's end is no access.
double measure_rate(const std::byte* data, size_t bytes, const Pattern& pattern, int threads, int passes) {
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);  // a cache line each
  const size_t lines = bytes / kLine;
  const size_t blocks = (bytes + kBlock - 1) / kBlock;
  const double seconds = time_together(threads, [&](int thread) {
    const auto t = static_cast<size_t>(thread);
    const auto n = static_cast<size_t>(threads);
    uint64_t sum = 0;
    for (int pass = 0; pass < passes; ++pass) {
      if (pattern.interleaved) {
        for (size_t block = t; block < blocks; block += n)
          sum ^=
              pattern.reader(data + block * kBlock, std::min(kBlock, lines * kLine - block * kBlock) / kLine);
      } else {
        const size_t begin = lines * t / n;
        sum ^= pattern.reader(data + begin * kLine, lines * (t + 1) / n - begin);
      }
      asm volatile("" : "+r"(sum) : : "memory");  // a pass may not be folded into the one before
    }
    sums[t * 8] = sum;
  });
  return static_cast<double>(lines * kLine) * passes / seconds;
}

struct Candidate {
  int threads;
  Pattern pattern;
  std::vector<double> rates = {};

  double median() const {
    std::vector<double> sorted = rates;
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    return n == 0 ? 0.0 : (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
  }
};

}  // namespace

ReadMeter::ReadMeter(uint64_t bytes, int max_threads)
    : max_threads_(max_threads),
      bytes_(std::max<size_t>(bytes / kLine, static_cast<size_t>(max_threads)) * kLine),
      slices_(std::max<size_t>(bytes_ / kSample, 1)) {
  void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for a buffer of {} bytes: {}", bytes_, std::strerror(errno));
  data_ = static_cast<std::byte*>(memory);
  ::madvise(memory, bytes_, MADV_HUGEPAGE);  // a wish: without it the rate is that of small pages
  // Every page differs from every other: equal ones could be one and the same to the machine below us.
  time_together(max_threads, [&](int thread) {
    const size_t words = bytes_ / sizeof(uint64_t);
    const size_t begin = words * static_cast<size_t>(thread) / static_cast<size_t>(max_threads);
    const size_t end = words * static_cast<size_t>(thread + 1) / static_cast<size_t>(max_threads);
    auto* data = reinterpret_cast<uint64_t*>(data_);
    for (size_t i = begin; i < end; ++i) data[i] = i * 0x9e3779b97f4a7c15u;
  });
}

ReadMeter::~ReadMeter() { ::munmap(data_, bytes_); }

const std::byte* ReadMeter::next_slice() {
  const std::byte* slice = data_ + bytes_ / kLine * slice_ / slices_ * kLine;
  slice_ = (slice_ + 1) % slices_;
  return slice;
}

ReadLimit ReadMeter::measure(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };

  std::vector<Candidate> candidates;
  for (int threads = max_threads_; threads >= 1; --threads)
    for (const Pattern& pattern : patterns()) candidates.push_back({threads, pattern});
  const size_t sample = bytes_ / kLine / slices_ * kLine;
  const int passes = static_cast<int>(std::clamp<size_t>(kSample / sample, 1, 4096));
  for (bool first = true;; first = false) {
    for (Candidate& candidate : candidates) {
      candidate.rates.push_back(
          measure_rate(next_slice(), sample, candidate.pattern, candidate.threads, passes));
      if (elapsed() >= seconds) break;
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.median() > b.median(); });
    if (first) candidates.resize(std::min<size_t>(candidates.size(), 4));
    if (elapsed() >= seconds) break;
  }
  const Candidate& best = candidates.front();
  return {best.median(), best.threads, best.pattern.name, bytes_};
}

}  // namespace greta
