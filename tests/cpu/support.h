#pragma once
// What the tests of the CPU backend share: random weights of every type, backends of every path, and views.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernels.h"
#include "base/half.h"
#include "quant/types.h"

namespace greta::cpu_test {

/// The instruction sets that this machine can run.
inline std::vector<Isa> isas() {
  std::vector<Isa> found;
  for (const Isa isa : kIsas) {
    if (has_isa(isa)) found.push_back(isa);
  }
  return found;
}

inline std::unique_ptr<Backend> backend(Isa isa, int threads = 1,
                                        Activations activations = Activations::bits16,
                                        KvType kv = KvType::f16, WeightMode weights = WeightMode::stored) {
  BackendOptions options;
  options.threads = threads;
  options.isa = isa;
  options.activations = activations;
  options.kv_type = kv;
  options.weights = weights;
  return make_cpu_backend(options);
}

/// Offsets of the f16 fields in a block: scales, then minima (-1: none).
struct Fields {
  int scale = -1;
  int minimum = -1;
};
inline Fields fields(quant::Type type) {
  switch (type) {
    case quant::Type::Q4_0:
    case quant::Type::Q5_0:
    case quant::Type::Q8_0:
      return {0, -1};
    case quant::Type::Q4_1:
    case quant::Type::Q5_1:
    case quant::Type::Q4_K:
    case quant::Type::Q5_K:
      return {0, 2};
    case quant::Type::Q2_K:
      return {80, 82};
    case quant::Type::Q3_K:
      return {108, -1};
    case quant::Type::Q6_K:
      return {208, -1};
    default:
      return {};
  }
}

/// A weight whose every bit is random, but for float fields of a sane size: all codes and all scales occur.
struct Source {
  std::vector<std::byte> bytes;
  WeightSource source;
};
inline Source random_weight(quant::Type type, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  Source s;
  s.bytes.resize(*quant::bytes_for(type, static_cast<uint64_t>(rows * cols)));
  const quant::Traits& t = quant::traits(type);
  if (t.block == 1) {
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float w = normal(random);
      const uint16_t half = type == quant::Type::F16 ? f32_to_f16(w) : f32_to_bf16(w);
      if (type == quant::Type::F32) {
        std::memcpy(s.bytes.data() + 4 * i, &w, 4);
      } else {
        std::memcpy(s.bytes.data() + 2 * i, &half, 2);
      }
    }
  } else {
    for (auto& b : s.bytes) b = static_cast<std::byte>(random());
    const Fields f = fields(type);
    for (size_t block = 0; block < s.bytes.size(); block += static_cast<size_t>(t.bytes)) {
      for (const int at : {f.scale, f.minimum}) {
        if (at < 0) continue;
        const uint16_t half = f32_to_f16(normal(random) / static_cast<float>(t.block == 256 ? 32 : 1));
        std::memcpy(s.bytes.data() + block + static_cast<size_t>(at), &half, 2);
      }
    }
  }
  s.source = {std::string(t.name), type, rows, cols, s.bytes};
  return s;
}

inline std::vector<float> dequantised(const Source& s) {
  std::vector<float> out(static_cast<size_t>(s.source.rows * s.source.cols));
  quant::dequantize(s.source.type, s.bytes.data(), s.source.rows * s.source.cols, out.data());
  return out;
}

/// |scale * q| + |minimum| of every element: what a kernel that adds minima apart adds.
inline std::vector<float> magnitudes(const Source& s) {
  const auto zeroed = [&](int at) {
    Source copy = s;
    for (size_t b = 0; b < copy.bytes.size(); b += static_cast<size_t>(quant::traits(s.source.type).bytes))
      std::memset(copy.bytes.data() + b + static_cast<size_t>(at), 0, 2);
    return dequantised(copy);
  };
  const Fields f = fields(s.source.type);
  std::vector<float> out = f.minimum < 0 ? dequantised(s) : zeroed(f.minimum);
  for (float& v : out) v = std::fabs(v);
  if (f.minimum >= 0) {
    const std::vector<float> minima = zeroed(f.scale);
    for (size_t i = 0; i < out.size(); ++i) out[i] += std::fabs(minima[i]);
  }
  return out;
}

/// Activations as a transformer has them: normal, with outliers forty times as large.
inline std::vector<float> random_rows(int64_t count, uint32_t seed, float size = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = normal(random) * (random() % 64 == 0 ? 40.0f : 1.0f);
  return x;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline std::vector<float> product(Backend& backend, const Weight& weight, const std::vector<float>& x,
                                  int64_t rows, const Weight* bias = nullptr) {
  std::vector<float> out(static_cast<size_t>(rows * weight.rows), -1.0f);
  std::vector<float> in = x;
  MatmulArgs args;
  args.rows = rows;
  args.x = {in.data(), weight.cols};
  args.outputs[0] = {&weight, bias, {out.data(), weight.rows}};
  backend.matmul(args);
  return out;
}

}  // namespace greta::cpu_test
