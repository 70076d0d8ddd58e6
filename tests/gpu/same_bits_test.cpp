// One order of addition on the GPU backend, on every GPU that is usable here and by the kernels' sources run
// on the host in both wave sizes: every weight type and every architecture, small.
#include "decoder/same_bits.h"

#include "gpu_devices.h"
#include "model/architectures.h"

namespace greta::same_bits {
namespace {

using quant::Type;

std::string with_device(const std::string& name, const std::string& device) {
  return name + "_" + test::gpu_test_name({device, 0});
}

SynthOptions tiny(std::string_view arch) {
  SynthOptions synth;
  synth.arch = std::string(arch);
  synth.dim = 256;
  synth.layers = 1;
  synth.ffn_dim = 256;
  synth.heads = 4;
  synth.kv_heads = 2;
  synth.vocab = 300;
  synth.context = 512;
  return synth;
}

std::vector<Mode> types() {
  std::vector<Mode> all;
  for (const std::string& device : test::usable_gpus()) {
    const auto add = [&](const std::string& name, Type type, WeightMode weights, KvType kv) {
      Mode mode{with_device(name, device), type, weights};
      mode.shape = tiny("llama");
      mode.device = device;
      mode.kv_type = kv;
      all.push_back(mode);
    };
    for (const auto& t : quant::all_types())
      add(std::string(t.name), t.type, WeightMode::stored, KvType::f16);
    add("int8_of_Q5_1", Type::Q5_1, WeightMode::int8, KvType::f16);
    add("int8_of_Q8_0", Type::Q8_0, WeightMode::int8, KvType::f16);
    add("f32_of_Q6_K", Type::Q6_K, WeightMode::f32, KvType::f16);
    add("bf16_cache", Type::Q8_0, WeightMode::stored, KvType::bf16);
  }
  return all;
}

/// Every architecture, experts too, with windows that end inside the text.
std::vector<Mode> entries() {
  std::vector<Mode> all;
  for (const std::string& device : test::usable_gpus())
    for (const Architecture& entry : architectures()) {
      Mode mode{with_device(std::string(entry.name), device), Type::Q8_0};
      mode.shape = tiny(entry.name);
      mode.device = device;
      if (entry.name == "gemma2" || entry.name == "gemma3" || entry.name == "phi3") mode.shape.window = 40;
      if (entry.name == "gemma2") mode.shape.layers = 2;
      if (entry.name == "gemma3") mode.shape.layers = 6;  // one global layer
      if (entry.name == "phi3") mode.shape.rope_scaling = "longrope:4:128";
      all.push_back(mode);
      if (!entry.mixture) continue;
      mode.name = with_device(std::string(entry.name) + "_mixture", device);
      mode.shape.experts = 6;
      mode.shape.experts_used = 3;
      all.push_back(mode);
    }
  return all;
}

class OnGpus : public SameBits {
 protected:
  OnGpus() : SameBits(GetParam().shape, {70, 1, 20}) {}
};

TEST_P(OnGpus, ChunkPhaseAndBatch) { chunk_phase_batch_and_threads(); }

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OnGpus);
INSTANTIATE_TEST_SUITE_P(Types, OnGpus, testing::ValuesIn(types()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Architectures, OnGpus, testing::ValuesIn(entries()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace greta::same_bits
