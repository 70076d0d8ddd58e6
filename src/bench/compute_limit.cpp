// Peak rates of the multiply-add instructions: independent chains on registers, nothing from memory.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "bench/limits.h"
#include "bench/team.h"

namespace greta {
namespace {

/// Runs `rounds` rounds of kChains independent instructions.
using Kernel = void (*)(int64_t rounds);
constexpr int kChains =
    10;  // latency 5 at two a cycle; with three operands and two products they fit 16 registers

struct Measured {
  Kernel kernel = nullptr;
  double per_instruction = 0.0;  ///< multiply-adds
};

#if defined(__x86_64__)
// The accumulators are variables of their own: an array of them would live in memory. `step` makes the next
// value of the accumulator c from the operands a and b; the empty asm in between lets no product be computed
// once for all.
#define GRETA_TEN(each) \
  each(c0) each(c1) each(c2) each(c3) each(c4) each(c5) each(c6) each(c7) each(c8) each(c9)
#define GRETA_DECLARE(c) auto c = zero;  // NOLINT(bugprone-macro-parentheses): it declares c
#define GRETA_STEP(c)         \
  asm volatile("" : "+v"(a)); \
  (c) = step(c, a, b);
#define GRETA_USE(c) asm volatile("" : : "v"(c));
#define GRETA_KERNEL(name, isa, start, first, second)      \
  __attribute__((target(isa))) void name(int64_t rounds) { \
    const auto zero = start;                               \
    auto a = first;                                        \
    const auto b = second;                                 \
    GRETA_TEN(GRETA_DECLARE)                               \
    for (int64_t round = 0; round < rounds; ++round) {     \
      GRETA_TEN(GRETA_STEP)                                \
    }                                                      \
    GRETA_TEN(GRETA_USE)                                   \
  }

#define step(c, a, b) _mm512_dpbusd_epi32(c, a, b)
GRETA_KERNEL(vnni_bytes, "avx512f,avx512bw,avx512vnni", _mm512_setzero_si512(), _mm512_set1_epi8(3),
             _mm512_set1_epi8(5))
#undef step
#define step(c, a, b) _mm512_dpwssd_epi32(c, a, b)
GRETA_KERNEL(vnni_words, "avx512f,avx512bw,avx512vnni", _mm512_setzero_si512(), _mm512_set1_epi16(3),
             _mm512_set1_epi16(5))
#undef step
#define step(c, a, b) _mm512_fmadd_ps(c, a, b)
GRETA_KERNEL(fma_512, "avx512f", _mm512_setzero_ps(), _mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f))
#undef step
#define step(c, a, b) _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
GRETA_KERNEL(avx2_bytes, "avx2", _mm256_setzero_si256(), _mm256_set1_epi8(3), _mm256_set1_epi8(5))
#undef step
#define step(c, a, b) _mm256_add_epi32(c, _mm256_madd_epi16(a, b))
GRETA_KERNEL(avx2_words, "avx2", _mm256_setzero_si256(), _mm256_set1_epi16(3), _mm256_set1_epi16(5))
#undef step
#define step(c, a, b) _mm256_fmadd_ps(c, a, b)
GRETA_KERNEL(fma_256, "avx2,fma", _mm256_setzero_ps(), _mm256_set1_ps(0.5f), _mm256_set1_ps(0.25f))
#undef step
#undef GRETA_KERNEL
#undef GRETA_USE
#undef GRETA_STEP
#undef GRETA_DECLARE
#undef GRETA_TEN
#endif

/// Four 32-bit lanes at a time by the compiler's own vectors: what any machine has.
typedef int32_t Words __attribute__((vector_size(16)));
typedef float Reals __attribute__((vector_size(16)));

void portable_words(int64_t rounds) {
  Words acc[kChains] = {};
  Words a = {3, 3, 3, 3};
  for (int64_t round = 0; round < rounds; ++round)
    for (auto& sum : acc) {
      asm volatile("" : "+m"(a));
      sum += a * a;
      asm volatile("" : "+m"(sum));
    }
}
void portable_reals(int64_t rounds) {
  Reals acc[kChains] = {};
  const Reals a = {0.5f, 0.5f, 0.5f, 0.5f};
  for (int64_t round = 0; round < rounds; ++round)
    for (auto& sum : acc) {
      sum = sum * a + a;
      asm volatile("" : "+m"(sum));
    }
}

double measure(const Measured& measured, int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  int64_t rounds = 20000;
  double best = 0.0;
  do {
    const double time = time_together(threads, [&](int) { measured.kernel(rounds); });
    best = std::max(best, static_cast<double>(rounds) * kChains * threads * measured.per_instruction / time);
    if (time < seconds / 8.0) rounds *= 2;
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

}  // namespace

ComputeLimit measure_compute_limit(int threads, double seconds) {
  ComputeLimit limit;
  limit.threads = threads;
#if defined(__x86_64__)
  if (has_isa(Isa::avx512)) {
    limit.instructions = "AVX-512 VNNI";
    limit.int8 = measure({vnni_bytes, 64}, threads, seconds / 3);
    limit.int16 = std::max(limit.int8 / 2, measure({vnni_words, 32}, threads, seconds / 3));
    limit.fp32 =
        std::max(measure({fma_512, 16}, threads, seconds / 6), measure({fma_256, 8}, threads, seconds / 6));
    return limit;
  }
  if (has_isa(Isa::avx2)) {
    limit.instructions = "AVX2";
    limit.int8 = measure({avx2_bytes, 32}, threads, seconds / 3);
    limit.int16 = std::max(limit.int8 / 2, measure({avx2_words, 16}, threads, seconds / 3));
    limit.fp32 = measure({fma_256, 8}, threads, seconds / 3);
    return limit;
  }
#endif
  limit.instructions = "portable";
  limit.int16 = limit.int8 = measure({portable_words, 4}, threads, seconds / 2);
  limit.fp32 = measure({portable_reals, 4}, threads, seconds / 2);
  return limit;
}

}  // namespace greta
