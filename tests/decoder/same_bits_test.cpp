// One order of addition (numerics.md section 2): chunk, phase, batch and threads change no bit of any stage's
// row.
#include <gmock/gmock.h>

#include <bit>

#include "backend/cpu/cpu_backend.h"
#include "bisect/runs.h"
#include "support.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

constexpr int64_t kVocab = 300;
constexpr size_t kLong = 1300;  // 2.5 times the largest chunk

using Hashes = std::map<HashTap::Key, uint64_t>;

EngineOptions options(int64_t chunk, int64_t sequences, int threads) {
  EngineOptions o;
  o.chunk = chunk;
  o.sequences = sequences;
  o.context = static_cast<int64_t>(kLong) + 8;
  o.all_logits = true;
  o.backend.threads = threads;
  return o;
}

Hashes solitary(Engine& engine, const std::vector<TokenId>& ids) { return run_alone(engine, ids, 0).hashes; }

Hashes of_sequence(const Hashes& all, int32_t sequence) {
  Hashes chosen;
  for (const auto& [key, hash] : all)
    if (key.sequence == sequence) chosen[{0, key.position, key.layer, key.stage}] = hash;
  return chosen;
}

void expect_equal(const Hashes& got, const Hashes& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (const auto& [key, hash] : expected) {
    const auto found = got.find(key);
    ASSERT_TRUE(found != got.end()) << what;
    ASSERT_EQ(found->second, hash) << what << ": " << trace_name(key.layer, key.stage) << " at position "
                                   << key.position;
  }
}

struct Mode {
  std::string name;
  quant::Type type;
  WeightMode weights = WeightMode::stored;
  Activations activations = Activations::bits16;
};

std::vector<Mode> modes() {
  std::vector<Mode> all;
  for (const auto& t : quant::all_types()) all.push_back({std::string(t.name), t.type});
  all.push_back({"int8_of_Q5_1", quant::Type::Q5_1, WeightMode::int8});
  all.push_back({"f32_of_Q6_K", quant::Type::Q6_K, WeightMode::f32});
  all.push_back({"Q4_K_8bit", quant::Type::Q4_K, WeightMode::stored, Activations::bits8});
  all.push_back({"Q8_0_8bit", quant::Type::Q8_0, WeightMode::stored, Activations::bits8});
  return all;
}

/// A small model of the mode's type, and engine options with the mode in them.
class SameBits : public testing::TestWithParam<Mode> {
 protected:
  SameBits() : model_(make_model()) {}
  EngineOptions with(EngineOptions o) const {
    o.backend.weights = GetParam().weights;
    o.backend.activations = GetParam().activations;
    return o;
  }

  const test::TemporaryFolder folder_;
  const ModelFile model_;

 private:
  ModelFile make_model() const {
    SynthOptions synth;
    synth.dim = 256;
    synth.layers = 2;
    synth.ffn_dim = 512;
    synth.heads = 4;
    synth.kv_heads = 2;
    synth.vocab = kVocab;
    synth.context = 2048;
    synth.type = GetParam().type;
    synthesise(synth, folder_ / "m.gguf", 2);
    return ModelFile::open(folder_ / "m.gguf");
  }
};

TEST_P(SameBits, ChunkPhaseBatchAndThreads) {
  std::vector<std::vector<TokenId>> texts;
  for (const size_t length : {kLong, size_t{1}, size_t{77}, size_t{64}, size_t{333}})
    texts.push_back(test::random_tokens(length, kVocab, length));

  Engine whole(model_, with(options(512, 1, 2)));
  const Hashes expected = solitary(whole, texts[0]);
  EXPECT_EQ(expected.size(), kLong * (2 * 16 + 3));
  const auto prefill_route = whole.backend().route();

  for (const int64_t chunk : {7, 64}) {
    Engine engine(model_, with(options(chunk, 1, 1)));
    expect_equal(solitary(engine, texts[0]), expected, "chunk " + std::to_string(chunk) + ", 1 thread");
  }
  Engine one(model_, with(options(1, 1, 2)));
  expect_equal(solitary(one, texts[0]), expected, "decode: one token a call");
  EXPECT_NE(one.backend().route(), prefill_route) << "both sides ran the same kernels: nothing was compared";
  for (const auto& [kernel, times] : one.backend().route())
    if (kernel.starts_with("matmul")) EXPECT_FALSE(prefill_route.contains(kernel)) << kernel;

  Engine five(model_, with(options(512, 5, 2)));
  const HashedRun batch = run_together(five, texts, 40);
  EXPECT_GT(batch.shared_calls, 40u) << "the texts were not fed together";
  const Hashes& together = batch.hashes;
  for (size_t s = 0; s < texts.size(); ++s)
    expect_equal(of_sequence(together, static_cast<int32_t>(s)), solitary(whole, texts[s]),
                 "batch of 5, text " + std::to_string(s));
}

/// The AVX-512, AVX2 and portable paths give the same bits (those that this machine has).
TEST_P(SameBits, InstructionSets) {
  const auto ids = test::random_tokens(150, kVocab, 9);
  std::map<std::string, Hashes> seen;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (isa < best_isa()) continue;  // the enumeration goes from the best down
    for (const int64_t chunk : {1, 64}) {
      auto o = with(options(chunk, 1, 2));
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

INSTANTIATE_TEST_SUITE_P(Types, SameBits, testing::ValuesIn(modes()),
                         [](const auto& info) { return info.param.name; });

TEST(SameBitsComparison, SeesOneFlippedBit) {
  std::vector<float> row(300, 0.25f);
  const uint64_t before = row_hash(std::span<const float>(row));
  row[131] = std::bit_cast<float>(std::bit_cast<uint32_t>(row[131]) ^ 1u);
  EXPECT_NE(row_hash(std::span<const float>(row)), before);
  EXPECT_NE(positioned(before, 3), positioned(before, 4));
}

}  // namespace
}  // namespace greta
