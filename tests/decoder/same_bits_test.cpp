// One order of addition on small models of every type and mode.
#include "decoder/same_bits.h"

#include <bit>

#include "backend/cpu/cpu_backend.h"

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

/// The AVX-512, AVX2 and portable paths give the same bits (those that this machine has).
TEST_P(SmallModel, InstructionSets) {
  const auto ids = test::random_tokens(150, kVocab, 9);
  std::map<std::string, Hashes> seen;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (isa < best_isa()) continue;  // the enumeration goes from the best down
    for (const int64_t chunk : {1, 64}) {
      auto o = options(chunk, 1, 2);
      o.backend.isa = isa;
      Engine engine(model_, o);
      const Hashes hashes = solitary(engine, ids);
      const std::string name = std::string(name_of(isa)) + " chunk " + std::to_string(chunk);
      for (const auto& [kernel, times] : engine.backend().route())
        if (kernel.starts_with("matmul"))
          EXPECT_THAT(kernel, testing::HasSubstr(name_of(isa))) << "another path ran";
      if (!seen.empty()) expect_equal(hashes, seen.begin()->second, name + " against " + seen.begin()->first);
      seen[name] = hashes;
    }
  }
  EXPECT_GE(seen.size(), 4u) << "only one path exists here: nothing was compared";
}

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
