#pragma once
// A small model in a folder of its own, and bisects of it.
#include <gtest/gtest.h>

#include "bisect/bisect.h"
#include "support.h"

namespace greta::test {

class BisectTest : public testing::Test {
 protected:
  std::string model(quant::Type type = quant::Type::Q4_1, bool bias = false) {
    SynthOptions synth;
    synth.dim = 128;
    synth.ffn_dim = 256;
    synth.layers = 3;
    synth.kv_heads = 2;
    synth.vocab = 300;
    synth.context = 256;
    synth.type = type;
    synth.bias = bias;
    if (quant::traits(type).block == 256) synth.dim = synth.ffn_dim = 256;
    const std::string path = folder_ / (std::string(quant::traits(type).name) + (bias ? "b" : "") + ".gguf");
    synthesise(synth, path, 2);
    return path;
  }
  BisectOptions options(const std::string& path, const std::string& a, const std::string& b,
                        size_t tokens = 90) {
    BisectOptions o;
    o.model = path;
    const Subject defaults;
    o.a = parse_subject(a, defaults);
    o.b = parse_subject(b, defaults);
    if (tokens > 0) o.prompts = {{"test", "", random_tokens(tokens, 300, 7)}};
    o.examine.chunk = 40;
    o.examine.max_tokens = 4;
    o.examine.layers = {0};
    return o;
  }
  /// Runs, and holds what every bisect must: hashes of traced and untraced runs are one, something was
  /// compared.
  BisectResult run(const BisectOptions& o) {
    auto result = bisect(o);
    for (const PromptVerdict& v : result.prompts) {
      if (!v.error.empty()) continue;
      for (const Examined* side : {&v.a, &v.b})
        if (side->untraced_hash && v.kind != FaultKind::race) {
          EXPECT_EQ(*side->untraced_hash, side->traced_hash) << v.prompt.name;
        }
      EXPECT_GT(v.rows_compared + v.a.rows_judged + v.b.rows_judged, 0u);
    }
    return result;
  }
  TemporaryFolder folder_;
};

}  // namespace greta::test
