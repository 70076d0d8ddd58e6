// One order of addition in every architecture of the table, with windows shorter and longer than the text.
#include "model/architectures.h"

#include "decoder/same_bits.h"

namespace greta::same_bits {
namespace {

using quant::Type;

SynthOptions small(std::string_view arch) {
  SynthOptions synth;
  synth.arch = std::string(arch);
  synth.dim = 256;
  synth.layers = 2;
  synth.ffn_dim = 256;
  synth.heads = 4;
  synth.kv_heads = 2;
  synth.vocab = 300;
  synth.context = 2048;
  return synth;
}

/// Each architecture once, of unlike types; those with windows at 100, mixtures beside the dense models.
std::vector<Mode> entries() {
  constexpr Type kTypes[] = {Type::Q4_K, Type::Q8_0, Type::Q6_K, Type::Q4_0};
  std::vector<Mode> all;
  for (const Architecture& entry : architectures()) {
    Mode mode{std::string(entry.name), kTypes[all.size() % std::size(kTypes)]};
    mode.shape = small(entry.name);
    if (entry.name == "gemma2" || entry.name == "gemma3" || entry.name == "phi3") mode.shape.window = 100;
    if (entry.name == "gemma3") mode.shape.layers = 6;  // one global layer
    if (entry.name == "phi3") mode.shape.rope_scaling = "longrope:4:256";
    all.push_back(mode);
    if (!entry.mixture) continue;
    mode.name += "_6_experts_3_used";
    mode.shape.experts = 6;
    mode.shape.experts_used = 3;
    mode.type = Type::Q5_K;
    all.push_back(mode);
  }
  return all;
}

class Entry : public SameBits {
 protected:
  Entry() : SameBits(GetParam().shape, {700, 1, 77, 64, 333}) {}
};

TEST_P(Entry, ChunkPhaseBatchAndThreads) { chunk_phase_batch_and_threads(); }
TEST_P(Entry, InstructionSets) { instruction_sets(130); }

INSTANTIATE_TEST_SUITE_P(Architectures, Entry, testing::ValuesIn(entries()),
                         [](const auto& info) { return info.param.name; });

/// Windows of one key, at a page's edge, of a whole chunk, and longer than the text: in every layer (phi3),
/// and beside layers without (gemma2).
std::vector<Mode> windows() {
  std::vector<Mode> all;
  for (const char* arch : {"phi3", "gemma2"})
    for (const uint64_t window : {1, 2, 63, 64, 65, 128, 512, 2000}) {
      if (arch == std::string("gemma2") && window % 64 == 0 && window != 64) continue;
      Mode mode{fmt::format("{}_{}", arch, window), Type::Q8_0};
      mode.shape = small(arch);
      mode.shape.window = window;
      // Heads with a kv head of their own: one query alone in decode, as many as rows in prefill.
      if (arch == std::string("gemma2")) mode.shape.kv_heads = mode.shape.heads;
      all.push_back(mode);
    }
  return all;
}

class Window : public SameBits {
 protected:
  Window() : SameBits(GetParam().shape, {GetParam().shape.window == 512u ? 1100u : 330u, 1, 77, 64, 200}) {}
};

TEST_P(Window, ChunkPhaseBatchAndThreads) { chunk_phase_batch_and_threads(); }

INSTANTIATE_TEST_SUITE_P(Edges, Window, testing::ValuesIn(windows()),
                         [](const auto& info) { return info.param.name; });

/// A sequence that is cleared, fed anew and cut back where its window still allows it ends in the same bits,
/// wherever its pages lie by then.
TEST(WindowedEngine, TruncatedAndFedAgain) {
  const test::TemporaryFolder folder;
  SynthOptions synth = small("gemma2");
  synth.window = 100;
  synthesise(synth, folder / "m.gguf", 2);
  const ModelFile model = ModelFile::open(folder / "m.gguf");
  EngineOptions o;
  o.chunk = 50;
  o.context = 512;
  o.sequences = 2;
  o.all_logits = true;
  o.backend.threads = 2;
  Engine engine(model, o);
  const auto ids = test::random_tokens(400, 300, 5);
  const Hashes expected = solitary(engine, ids);
  engine.feed_all(1, ids, Feed::Logits::none);  // takes pages of its own between the rounds
  for (const int64_t back : {399, 390, 380, 200, 1}) {
    const int64_t left = engine.truncate(0, back);
    EXPECT_EQ(left, back > 350 ? back : 0) << "the last calls began at 350 and later";
    HashTap tap;
    engine.feed_all(0, std::span(ids).subspan(static_cast<size_t>(left)), Feed::Logits::all, &tap);
    for (const auto& [key, hash] : tap.hashes())
      ASSERT_EQ(hash, expected.at(key)) << "cut back to " << back << ", position " << key.position;
    engine.clear(1);
    engine.feed_all(1, ids, Feed::Logits::none);
  }
}

}  // namespace
}  // namespace greta::same_bits
