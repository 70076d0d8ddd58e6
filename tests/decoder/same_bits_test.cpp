// One order of addition on small models of every type and mode.
#include "decoder/same_bits.h"

#include <bit>

namespace greta::same_bits {
namespace {

constexpr int64_t kVocab = 300;

std::vector<Mode> modes() {
  std::vector<Mode> all;
  for (const auto& t : quant::all_types()) all.push_back({std::string(t.name), t.type});
  all.push_back({"int8_of_Q5_1", quant::Type::Q5_1, WeightMode::int8});
  all.push_back({"f32_of_Q6_K", quant::Type::Q6_K, WeightMode::f32});
  all.push_back({"Q4_K_8bit", quant::Type::Q4_K, WeightMode::stored, Activations::bits8});
  all.push_back({"Q8_0_8bit", quant::Type::Q8_0, WeightMode::stored, Activations::bits8});
  return all;
}

class SmallModel : public SameBits {
 protected:
  SmallModel() : SameBits(shape(), {1300, 1, 77, 64, 333}) {}

 private:
  static SynthOptions shape() {
    SynthOptions synth;
    synth.dim = 256;
    synth.layers = 2;
    synth.ffn_dim = 512;
    synth.heads = 4;
    synth.kv_heads = 2;
    synth.vocab = kVocab;
    synth.context = 2048;
    return synth;
  }
};

TEST_P(SmallModel, ChunkPhaseBatchAndThreads) { chunk_phase_batch_and_threads(); }

TEST_P(SmallModel, InstructionSets) { instruction_sets(150); }

INSTANTIATE_TEST_SUITE_P(Types, SmallModel, testing::ValuesIn(modes()),
                         [](const auto& info) { return info.param.name; });

TEST(SameBitsComparison, SeesOneFlippedBit) {
  std::vector<float> row(300, 0.25f);
  const uint64_t before = row_hash(std::span<const float>(row));
  row[131] = std::bit_cast<float>(std::bit_cast<uint32_t>(row[131]) ^ 1u);
  EXPECT_NE(row_hash(std::span<const float>(row)), before);
  EXPECT_NE(positioned(before, 3), positioned(before, 4));
}

}  // namespace
}  // namespace greta::same_bits
