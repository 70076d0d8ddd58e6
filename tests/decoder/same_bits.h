#pragma once
// One order of addition (numerics.md section 2): chunk, phase, batch and threads change no bit of any stage's
// row. What the tests on small and on real dimensions share.
#include <gmock/gmock.h>

#include "backend/cpu/cpu_backend.h"
#include "support.h"
#include "trace/row_hash.h"

namespace greta::same_bits {

using Hashes = std::map<HashTap::Key, uint64_t>;

inline Hashes solitary(Engine& engine, const std::vector<TokenId>& ids) {
  HashTap tap;
  engine.clear(0);
  engine.feed_all(0, ids, Feed::Logits::all, &tap);
  return tap.hashes();
}

/// All texts at once, each chunk of a call shared out unevenly, so that rows have unlike neighbours.
inline Hashes batched(Engine& engine, const std::vector<std::vector<TokenId>>& texts) {
  HashTap tap;
  std::vector<size_t> fed(texts.size(), 0);
  for (size_t turn = 0;; ++turn) {
    std::vector<Feed> feeds;
    auto room = static_cast<size_t>(engine.chunk());
    for (size_t i = 0; i < texts.size() && room > 0; ++i) {
      const size_t s = (i + turn) % texts.size();
      const size_t want = 1 + (turn * 13 + s * 29) % 97;
      const size_t count = std::min({want, room, texts[s].size() - fed[s]});
      if (count == 0) continue;
      feeds.push_back(
          {static_cast<int64_t>(s), std::span(texts[s]).subspan(fed[s], count), Feed::Logits::all});
      fed[s] += count;
      room -= count;
    }
    if (feeds.empty()) return tap.hashes();
    engine.evaluate(feeds, &tap);
  }
}

inline Hashes of_sequence(const Hashes& all, int32_t sequence) {
  Hashes chosen;
  for (const auto& [key, hash] : all)
    if (key.sequence == sequence) chosen[{0, key.position, key.layer, key.stage}] = hash;
  return chosen;
}

inline void expect_equal(const Hashes& got, const Hashes& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (const auto& [key, hash] : expected) {
    const auto found = got.find(key);
    ASSERT_TRUE(found != got.end()) << what;
    ASSERT_EQ(found->second, hash) << what << ": " << trace_name(key.layer, key.stage) << " at position "
                                   << key.position;
  }
}

/// Stages that a pass leaves of one row, by the model's own tensors.
inline size_t stages_of_a_row(const Model& model) {
  const auto layer_has = [&](Role role) { return model.at(0, role) != nullptr ? size_t{1} : size_t{0}; };
  size_t each = 11;  // three residuals, q and k twice, v, attn_out, attn_proj, mlp_out
  for (const Role norm : {Role::attn_norm, Role::q_norm, Role::k_norm, Role::attn_post_norm, Role::ffn_norm,
                          Role::mlp_post_norm})
    each += layer_has(norm);
  each += model.hp.experts > 0 ? 7 : 3;
  const size_t ends = model.hp.logits_softcap > 0 ? 4 : 3;
  return model.layers.size() * each + ends;
}

struct Mode {
  std::string name;
  quant::Type type;
  WeightMode weights = WeightMode::stored;
  Activations activations = Activations::bits16;
  SynthOptions shape = {};  ///< but for the type
  std::string device = "cpu";
  KvType kv_type = KvType::f16;
};

/// A model of the mode's type in a folder of its own.
class SameBits : public testing::TestWithParam<Mode> {
 protected:
  /// `synth` without its type. `lengths`: tokens of the texts, the first longer than the largest chunk, 512,
  /// but for windows that are to end inside one.
  SameBits(SynthOptions synth, std::vector<size_t> lengths)
      : model_(make_model(std::move(synth))), lengths_(std::move(lengths)) {}

  EngineOptions options(int64_t chunk, int64_t sequences, int threads) const {
    EngineOptions o;
    o.chunk = chunk;
    o.sequences = sequences;
    o.context = static_cast<int64_t>(lengths_[0]) + 8;
    o.all_logits = true;
    o.device = GetParam().device;
    o.backend.kv_type = GetParam().kv_type;
    o.backend.threads = threads;
    o.backend.weights = GetParam().weights;
    o.backend.activations = GetParam().activations;
    return o;
  }

  void chunk_phase_batch_and_threads() const;
  /// The AVX-512, AVX2 and portable paths give the same bits (those that this machine has).
  void instruction_sets(size_t tokens) const;

  const test::TemporaryFolder folder_;
  const ModelFile model_;
  const std::vector<size_t> lengths_;

 private:
  ModelFile make_model(SynthOptions synth) const {
    synth.type = GetParam().type;
    synthesise(synth, folder_ / "m.gguf", 2);
    return ModelFile::open(folder_ / "m.gguf");
  }
};

inline void SameBits::chunk_phase_batch_and_threads() const {
  Engine whole(model_, options(512, 1, 2));
  const HParams& hp = whole.hparams();
  std::vector<std::vector<TokenId>> texts;
  for (const size_t length : lengths_) texts.push_back(test::random_tokens(length, hp.vocab, length));
  const Hashes expected = solitary(whole, texts[0]);
  EXPECT_EQ(expected.size(), texts[0].size() * stages_of_a_row(whole.model()));
  const auto prefill_route = whole.backend().route();

  for (const int64_t chunk : {7, 64}) {
    Engine engine(model_, options(chunk, 1, 1));
    expect_equal(solitary(engine, texts[0]), expected, "chunk " + std::to_string(chunk) + ", 1 thread");
  }
  {
    Engine one(model_, options(1, 1, 2));
    expect_equal(solitary(one, texts[0]), expected, "decode: one token a call");
    EXPECT_NE(one.backend().route(), prefill_route)
        << "both sides ran the same kernels: nothing was compared";
    // An expert's rows are few in a prefill, too.
    for (const auto& [kernel, times] : one.backend().route())
      if (kernel.starts_with("matmul") && hp.experts == 0)
        EXPECT_FALSE(prefill_route.contains(kernel)) << kernel;
  }
  Engine five(model_, options(512, 5, 2));
  const Hashes together = batched(five, texts);
  for (size_t s = 0; s < texts.size(); ++s)
    expect_equal(of_sequence(together, static_cast<int32_t>(s)), solitary(whole, texts[s]),
                 "batch of 5, text " + std::to_string(s));
}

inline void SameBits::instruction_sets(size_t tokens) const {
  std::vector<TokenId> ids;
  std::map<std::string, Hashes> seen;
  for (const Isa isa : kIsas) {
    if (!has_isa(isa)) continue;
    for (const int64_t chunk : {1, 64}) {
      auto o = options(chunk, 1, 2);
      o.backend.isa = isa;
      Engine engine(model_, o);
      if (ids.empty()) ids = test::random_tokens(tokens, engine.hparams().vocab, 9);
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

}  // namespace greta::same_bits
