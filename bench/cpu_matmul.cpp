// The CPU backend's matmul alone: decode (one token, weights streamed from memory) as a share of the read
// bandwidth measured between the rows, and prefill (512 tokens) in multiply-adds a second beside the peak of
// the instructions that the type and mode use. TinyLlama's shapes.
//   arguments: [threads] [isa] [types, comma-separated] [8: 8 bits]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "bench/limits.h"
#include "quant/types.h"

using namespace greta;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
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
  loaded.weight->settle();
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
  const std::string isa = argc > 2 ? argv[2] : "auto";
  for (const Isa i : kIsas) {
    if (isa == name_of(i)) options.isa = i;
  }
  const std::string wanted = argc > 3 ? argv[3] : "q8_0,q4_k,q6_k,q4_1,f16";
  const bool eight = argc > 4;
  if (eight) options.activations = Activations::bits8;
  const auto backend = make_cpu_backend(options);
  ReadMeter meter(uint64_t{256} << 20, options.threads);
  const ComputeLimit limit = measure_compute_limit(options.threads, 1.0);
  fmt::print("{}; {}: {:.0f} int8, {:.0f} int16, {:.0f} FP32 G multiply-adds/s\n", backend->description(),
             limit.instructions, limit.int8 / 1e9, limit.int16 / 1e9, limit.fp32 / 1e9);
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
    double read = 0.0, decode = 1e9, prefill_wide = 1e9, prefill_tall = 1e9;
    for (int round = 0; round < 12; ++round) {
      read = std::max(read, meter.measure(0.2).bytes_per_second);
      double total = 0.0;
      for (const Loaded& w : weights) total += seconds_of(*backend, *w.weight, x, out, 1);
      decode = std::min(decode, total);
      if (round % 2 == 0) {
        prefill_wide = std::min(prefill_wide, seconds_of(*backend, *weights[0].weight, x, out, 512));
        prefill_tall = std::min(prefill_tall, seconds_of(*backend, *weights[2].weight, x, out, 512));
      }
    }
    const double macs = 512.0 * 5632.0 * 2048.0;
    const double peak = quant::traits(*type).block == 1 ? limit.fp32 : eight ? limit.int8 : limit.int16;
    fmt::print(
        "{:5} decode {:5.1f} GB/s of {:5.1f} read ({:.2f})   prefill 512: {:5.1f} (5632 x 2048, {:.2f} of "
        "the peak) {:5.1f} (2048 x 5632, {:.2f})\n",
        quant::traits(*type).name, bytes / decode / 1e9, read / 1e9, bytes / decode / read,
        macs / prefill_wide / 1e9, macs / prefill_wide / peak, macs / prefill_tall / 1e9,
        macs / prefill_tall / peak);
  }
}
