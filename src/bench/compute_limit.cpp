// Peak rates of the multiply-add instructions: independent chains on registers, nothing from memory.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "bench/limits.h"
#include "bench/team.h"

namespace greta {
namespace {

/// Runs `rounds` rounds of kChains independent instructions. The empty asm keeps each accumulator's chain as
/// written.
using Kernel = void (*)(int64_t rounds);
constexpr int kChains = 12;  // latency 4 to 5 at two a cycle leaves room

struct Measured {
  Kernel kernel = nullptr;
  double per_instruction = 0.0;  ///< multiply-adds
};

#if defined(__x86_64__)
// GCC's vector types in asm operands: "v" takes any vector register.
#define GRETA_CHAINS(vector, zero, step)                         \
  vector acc[kChains];                                           \
  for (auto& sum : acc) sum = zero;                              \
  for (int64_t round = 0; round < rounds; ++round) {             \
    _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) { \
      step;                                                      \
      asm volatile("" : "+v"(acc[i]));                           \
    }                                                            \
  }

__attribute__((target("avx512f,avx512bw,avx512vnni"))) void vnni_bytes(int64_t rounds) {
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(5);
  GRETA_CHAINS(__m512i, _mm512_setzero_si512(), acc[i] = _mm512_dpbusd_epi32(acc[i], a, b))
}
__attribute__((target("avx512f,avx512bw,avx512vnni"))) void vnni_words(int64_t rounds) {
  const __m512i a = _mm512_set1_epi16(3);
  const __m512i b = _mm512_set1_epi16(5);
  GRETA_CHAINS(__m512i, _mm512_setzero_si512(), acc[i] = _mm512_dpwssd_epi32(acc[i], a, b))
}
__attribute__((target("avx512f"))) void fma_512(int64_t rounds) {
  const __m512 a = _mm512_set1_ps(0.5f);
  const __m512 b = _mm512_set1_ps(0.25f);
  GRETA_CHAINS(__m512, _mm512_setzero_ps(), acc[i] = _mm512_fmadd_ps(acc[i], a, b))
}
__attribute__((target("avx2"))) void avx2_bytes(int64_t rounds) {
  __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  GRETA_CHAINS(__m256i, _mm256_setzero_si256(), {
    asm volatile("" : "+v"(a));  // else the product would be computed once
    acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
  })
}
__attribute__((target("avx2"))) void avx2_words(int64_t rounds) {
  __m256i a = _mm256_set1_epi16(3);
  const __m256i b = _mm256_set1_epi16(5);
  GRETA_CHAINS(__m256i, _mm256_setzero_si256(), {
    asm volatile("" : "+v"(a));
    acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(a, b));
  })
}
__attribute__((target("avx2,fma"))) void fma_256(int64_t rounds) {
  const __m256 a = _mm256_set1_ps(0.5f);
  const __m256 b = _mm256_set1_ps(0.25f);
  GRETA_CHAINS(__m256, _mm256_setzero_ps(), acc[i] = _mm256_fmadd_ps(acc[i], a, b))
}
#undef GRETA_CHAINS
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
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
    limit.instructions = "AVX-512 VNNI";
    limit.int8 = measure({vnni_bytes, 64}, threads, seconds / 3);
    limit.int16 = std::max(limit.int8 / 2, measure({vnni_words, 32}, threads, seconds / 3));
    limit.fp32 =
        std::max(measure({fma_512, 16}, threads, seconds / 6), measure({fma_256, 8}, threads, seconds / 6));
    return limit;
  }
  if (avx2) {
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
