// The CPU backend's matmul alone: decode (one token, weights streamed from memory) as a share of the read
// bandwidth measured between the rows, and prefill (512 tokens) in multiply-adds a second. TinyLlama's
// shapes.
//   g++ or the build's flags, linked with greta_core; arguments: [threads] [isa] [types, comma-separated] [8:
//   8 bits]
#include <fmt/format.h>
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/memory.h"
#include "base/thread_pool.h"
#include "quant/types.h"

using namespace greta;

namespace {

/// Wall seconds; or, with one thread, this thread's own processor time: a busy machine disturbs that less.
bool processor_time = false;
double now() {
  timespec t;
  clock_gettime(processor_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// 8-bit multiply-adds a second of one thread's VPDPBUSD, nothing from memory.
__attribute__((target("avx512f,avx512vnni"))) double peak_of_one() {
  __m512i z = _mm512_setzero_si512();
  __m512i c0 = z, c1 = z, c2 = z, c3 = z, c4 = z, c5 = z, c6 = z, c7 = z;
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  const double start = now();
  for (int round = 0; round < 450000; ++round) {
    c0 = _mm512_dpbusd_epi32(c0, a, b);
    c1 = _mm512_dpbusd_epi32(c1, a, b);
    c2 = _mm512_dpbusd_epi32(c2, a, b);
    c3 = _mm512_dpbusd_epi32(c3, a, b);
    c4 = _mm512_dpbusd_epi32(c4, a, b);
    c5 = _mm512_dpbusd_epi32(c5, a, b);
    c6 = _mm512_dpbusd_epi32(c6, a, b);
    c7 = _mm512_dpbusd_epi32(c7, a, b);
    asm volatile("" : "+v"(c0), "+v"(c1), "+v"(c2), "+v"(c3), "+v"(c4), "+v"(c5), "+v"(c6), "+v"(c7));
  }
  return 450000.0 * 8 * 64 / (now() - start);
}

/// Bytes a second of the best of several reads of `bytes` with all threads.
double read_bandwidth(ThreadPool& pool, const std::byte* data, int64_t bytes) {
  double best = 0.0;
  alignas(64) static __m128i sums[256];
  for (int round = 0; round < 4; ++round) {
    const double start = now();
    const int64_t chunk = 1 << 18;
    pool.parallel_for(bytes / chunk, 1, [&](int64_t begin, int64_t end, int worker) {
      __m128i a = _mm_setzero_si128(), b = a;
      const auto* p = reinterpret_cast<const __m128i*>(data + begin * chunk);
      const auto* stop = reinterpret_cast<const __m128i*>(data + end * chunk);
      for (; p < stop; p += 4) {
        a = _mm_xor_si128(a, _mm_xor_si128(_mm_load_si128(p), _mm_load_si128(p + 1)));
        b = _mm_xor_si128(b, _mm_xor_si128(_mm_load_si128(p + 2), _mm_load_si128(p + 3)));
      }
      auto& sum = sums[static_cast<size_t>(worker) * 4];
      sum = _mm_xor_si128(sum, _mm_xor_si128(a, b));
    });
    best = std::max(best, static_cast<double>(bytes) / (now() - start));
  }
  volatile int64_t sink = _mm_cvtsi128_si64(sums[0]);
  (void)sink;
  return best;
}

struct Loaded {
  std::vector<std::byte> bytes;
  std::unique_ptr<Weight> weight;
};

Loaded random_weight(Backend& backend, quant::Type type, int64_t rows, int64_t cols) {
  static std::mt19937_64 random(1);
  Loaded loaded;
  loaded.bytes.resize(*quant::bytes_for(type, static_cast<uint64_t>(rows * cols)));
  std::vector<float> some(16384);  // one piece quantised, repeated
  for (float& w : some) w = std::normal_distribution<float>(0.0f, 0.02f)(random);
  std::vector<std::byte> piece(*quant::bytes_for(type, some.size()));
  quant::quantize(type, some.data(), static_cast<int64_t>(some.size()), piece.data());
  for (size_t i = 0; i < loaded.bytes.size(); i += piece.size())
    std::memcpy(loaded.bytes.data() + i, piece.data(), std::min(piece.size(), loaded.bytes.size() - i));
  loaded.weight = backend.load({"w", type, rows, cols, loaded.bytes}, WeightUse::matmul);
  return loaded;
}

double seconds_of(Backend& backend, const Weight& weight, std::vector<float>& x, std::vector<float>& out,
                  int64_t rows) {
  MatmulArgs args;
  args.rows = rows;
  args.x = {x.data(), weight.cols};
  args.outputs[0] = {&weight, nullptr, {out.data(), weight.rows}};
  const double start = now();
  backend.matmul(args);
  return now() - start;
}

}  // namespace

int main(int argc, char** argv) {
  BackendOptions options;
  options.threads = argc > 1 ? std::stoi(argv[1]) : 2;
  processor_time = options.threads == 1;
  const std::string isa = argc > 2 ? argv[2] : "auto";
  for (const Isa i : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (isa == name_of(i)) options.isa = i;
  }
  const std::string wanted = argc > 3 ? argv[3] : "q8_0,q4_k,q6_k,q4_1,f16";
  if (argc > 4) options.activations = Activations::bits8;
  const auto backend = make_cpu_backend(options);
  ThreadPool pool(options.threads);
  cpu::Memory buffer(size_t{256} << 20);
  std::memset(buffer.data(), 1, buffer.bytes());
  fmt::print("{}\n", backend->description());
  for (size_t at = 0; at < wanted.size();) {
    const size_t end = std::min(wanted.find(',', at), wanted.size());
    const auto type = quant::from_name(wanted.substr(at, end - at));
    at = end + 1;
    if (!type) continue;
    // Enough copies of (gate, up, down, q, o) that nothing stays in a cache.
    std::vector<Loaded> weights;
    double bytes = 0.0;
    while (bytes < 160e6) {
      for (const auto& [rows, cols] :
           {std::pair{5632, 2048}, {5632, 2048}, {2048, 5632}, {2048, 2048}, {256, 2048}}) {
        weights.push_back(random_weight(*backend, *type, rows, cols));
        bytes += static_cast<double>(weights.back().bytes.size());
      }
    }
    std::vector<float> x(512 * 5632), out(512 * 5632);
    std::mt19937 random(2);
    for (float& v : x) v = std::normal_distribution<float>(0.0f, 1.0f)(random);
    double peak = 0.0, read = 0.0, decode = 1e9, prefill_wide = 1e9, prefill_tall = 1e9;
    for (int round = 0; round < 6; ++round) {
      read = std::max(read, read_bandwidth(pool, buffer.data(), static_cast<int64_t>(buffer.bytes())));
      double total = 0.0;
      for (const Loaded& w : weights) total += seconds_of(*backend, *w.weight, x, out, 1);
      decode = std::min(decode, total);
      peak = std::max(peak, peak_of_one() * options.threads);
      if (round % 2 == 0) {
        prefill_wide = std::min(prefill_wide, seconds_of(*backend, *weights[0].weight, x, out, 512));
        prefill_tall = std::min(prefill_tall, seconds_of(*backend, *weights[2].weight, x, out, 512));
      }
    }
    const double macs = 512.0 * 5632.0 * 2048.0;
    fmt::print(
        "{:5} decode {:5.1f} GB/s of {:5.1f} read ({:.2f})   prefill 512: {:5.1f} (5632 x 2048) {:5.1f} "
        "(2048 x 5632) of {:5.1f} G/s 8-bit peak\n",
        quant::traits(*type).name, bytes / decode / 1e9, read / 1e9, bytes / decode / read,
        macs / prefill_wide / 1e9, macs / prefill_tall / 1e9, peak / 1e9);
  }
}
