// One order of addition at TinyLlama's dimensions: many K-blocks a row, several row groups a thread.
#include "decoder/same_bits.h"

namespace greta::same_bits {
namespace {

class TinyLlama : public SameBits {
 protected:
  TinyLlama() : SameBits(shape(), {1300, 1, 77, 64, 333}) {}

 private:
  static SynthOptions shape() {
    SynthOptions synth;
    synth.dim = 2048;
    synth.layers = 2;
    synth.ffn_dim = 5632;
    synth.heads = 32;
    synth.kv_heads = 4;
    synth.vocab = 32000;
    synth.context = 2048;
    return synth;
  }
};

TEST_P(TinyLlama, ChunkPhaseBatchAndThreads) { chunk_phase_batch_and_threads(); }

const std::vector<Mode> kModes = {
    {"F16", quant::Type::F16},   {"BF16", quant::Type::BF16},
    {"F32", quant::Type::F32},   {"Q8_0", quant::Type::Q8_0},
    {"Q4_K", quant::Type::Q4_K}, {"Q6_K", quant::Type::Q6_K},
    {"Q4_1", quant::Type::Q4_1}, {"int8_of_F16", quant::Type::F16, WeightMode::int8}};

INSTANTIATE_TEST_SUITE_P(Types, TinyLlama, testing::ValuesIn(kModes),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace greta::same_bits
