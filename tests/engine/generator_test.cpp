#include "engine/generator.h"

#include <gmock/gmock.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "support.h"

namespace greta {
namespace {

using testing::HasSubstr;

class Generate : public testing::Test {
 protected:
  Generate() {
    SynthOptions synth;
    synth.dim = 64;
    synth.layers = 2;
    synth.ffn_dim = 96;
    synth.vocab = 300;
    synth.context = 512;
    synthesise(synth, folder_ / "m.gguf", 1);
    model_ = std::make_unique<ModelFile>(ModelFile::open(folder_ / "m.gguf"));
  }
  std::unique_ptr<Engine> engine(int64_t chunk, int64_t sequences, int threads = 2,
                                 int64_t context = 256) const {
    EngineOptions o;
    o.chunk = chunk;
    o.sequences = sequences;
    o.context = context;
    o.backend.threads = threads;
    return std::make_unique<Engine>(*model_, o);
  }
  Request request(size_t length, uint64_t seed) const {
    Request r;
    r.prompt = test::random_tokens(length, 300, seed);
    r.sampling.seed = seed;
    r.max_tokens = 40;
    r.ignore_eos = true;
    return r;
  }
  const Tokenizer& tokenizer() const { return *model_->tokenizer; }

  test::TemporaryFolder folder_;
  std::unique_ptr<ModelFile> model_;
};

TEST_F(Generate, SameTextWhateverTheBatchChunkAndThreads) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 7; ++i) requests.push_back(request(1 + i * 31, i + 1));
  const auto together = generate(*engine(64, 3), tokenizer(), requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    for (const auto& [chunk, threads] : {std::pair{1, 1}, std::pair{256, 2}}) {
      const auto alone = generate(*engine(chunk, 1, threads), tokenizer(), {requests[i]});
      EXPECT_EQ(alone[0].ids, together[i].ids) << i;
      EXPECT_EQ(alone[0].logits_hash, together[i].logits_hash) << i;
      EXPECT_EQ(alone[0].text, together[i].text) << i;
    }
    EXPECT_EQ(together[i].ids.size(), 40u);
    EXPECT_EQ(together[i].finish, Finish::length);
  }
}

TEST_F(Generate, SeedsTellTextsApart) {
  auto a = request(10, 1);
  auto b = a;
  b.sampling.seed = 99;
  auto c = a;
  c.sequence = 5;
  const auto results = generate(*engine(64, 4), tokenizer(), {a, b, c, a});
  EXPECT_NE(results[0].ids, results[1].ids);
  EXPECT_NE(results[0].ids, results[2].ids);
  EXPECT_EQ(results[0].ids, results[3].ids);
}

TEST_F(Generate, HashSeesWhatWasFed) {
  auto a = request(10, 1);
  auto b = a;
  b.prompt[4] ^= 1;
  const auto results = generate(*engine(64, 2), tokenizer(), {a, b});
  EXPECT_NE(results[0].logits_hash, results[1].logits_hash);
}

TEST_F(Generate, TextIsThePiecesAndTheDecodedIds) {
  std::string streamed;
  GenerateHooks hooks;
  hooks.on_text = [&](size_t, std::string_view text) { streamed += text; };
  const auto r = request(20, 3);
  const auto result = generate(*engine(64, 1), tokenizer(), {r}, hooks)[0];
  EXPECT_EQ(streamed, result.text);
  auto whole = r.prompt;
  whole.insert(whole.end(), result.ids.begin(), result.ids.end());
  EXPECT_EQ(tokenizer().decode(whole), tokenizer().decode(r.prompt) + result.text);
}

TEST_F(Generate, StopStringsSpanTokensAndNothingFollows) {
  const auto plain = generate(*engine(64, 1), tokenizer(), {request(20, 3)})[0];
  ASSERT_GT(plain.text.size(), 20u);
  for (const size_t length : {size_t{1}, size_t{3}, size_t{9}}) {
    auto r = request(20, 3);
    const std::string stop = plain.text.substr(7, length);
    r.stop = {"never in the text \x01\x02\x03", stop};
    std::string streamed;
    GenerateHooks hooks;
    hooks.on_text = [&](size_t, std::string_view text) { streamed += text; };
    const auto result = generate(*engine(64, 1), tokenizer(), {r}, hooks)[0];
    EXPECT_EQ(result.finish, Finish::stop_string);
    EXPECT_EQ(result.text, plain.text.substr(0, plain.text.find(stop)));
    EXPECT_EQ(streamed, result.text);
  }
}

TEST_F(Generate, EndsAtTheContextAndOnCancel) {
  auto r = request(20, 4);
  r.max_tokens = 1000;
  const auto full = generate(*engine(64, 1, 2, 48), tokenizer(), {r})[0];
  EXPECT_EQ(full.finish, Finish::context);
  EXPECT_EQ(full.ids.size(), 29u);  // 20 prompt positions, 28 more, and the token after the last
  std::atomic<bool> cancel{false};
  GenerateHooks hooks;
  hooks.cancel = &cancel;
  int pieces = 0;
  hooks.on_text = [&](size_t, std::string_view) {
    if (++pieces == 3) cancel = true;
  };
  const auto cut = generate(*engine(64, 1), tokenizer(), {r}, hooks)[0];
  EXPECT_EQ(cut.finish, Finish::cancelled);
  EXPECT_LT(cut.ids.size(), 236u);
  pieces = 0;
  cancel = false;
  for (const auto& result : generate(*engine(64, 2), tokenizer(), {r, r, r, r}, hooks))  // two never begin
    EXPECT_EQ(result.finish, Finish::cancelled);
}

TEST_F(Generate, LogprobsFollowTheTokens) {
  auto r = request(20, 5);
  r.logprobs = 2;
  r.sampling.greedy = true;
  const auto result = generate(*engine(64, 1), tokenizer(), {r})[0];
  ASSERT_EQ(result.logprobs.size(), result.ids.size());
  for (size_t i = 0; i < result.ids.size(); ++i) {
    EXPECT_EQ(result.logprobs[i].id, result.ids[i]);
    ASSERT_EQ(result.logprobs[i].top.size(), 2u);
    EXPECT_EQ(result.logprobs[i].top[0].first, result.ids[i]);
  }
}

TEST_F(Generate, RefusesEmptyAndLongPrompts) {
  const auto message = [&](const Request& r) {
    try {
      generate(*engine(64, 1, 1, 48), tokenizer(), {r});
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(message(Request{}), HasSubstr("the prompt is empty"));
  EXPECT_THAT(message(request(49, 1)), HasSubstr("49 tokens, the context holds 48"));
  auto bad = request(3, 1);
  bad.prompt[1] = 300;
  EXPECT_THAT(message(bad), HasSubstr("token id 300: the vocabulary has ids 0 to 299"));
}

/// Who takes the text may be slow: what is timed is the engine's own work.
TEST_F(Generate, TheTimeOfWhoReadsIsNotTimed) {
  Request r = request(20, 3);
  r.max_tokens = 5;
  int taken = 0;
  GenerateHooks hooks;
  hooks.on_text = [&](size_t, std::string_view) {
    ++taken;
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  };
  GenerateStats stats;
  generate(*engine(64, 1), tokenizer(), {r}, hooks, &stats);
  ASSERT_GT(taken, 2);
  EXPECT_EQ(stats.decoded_tokens, 4);
  EXPECT_LT(stats.decode_seconds + stats.prefill_seconds, 0.3);
}

TEST_F(Generate, ZeroTokensAndManyRequests) {
  auto none = request(5, 1);
  none.max_tokens = 0;
  std::vector<Request> requests(9, none);
  requests.push_back(request(5, 2));
  GenerateStats stats;
  const auto results = generate(*engine(64, 2), tokenizer(), requests, {}, &stats);
  EXPECT_TRUE(results[0].ids.empty());
  EXPECT_EQ(results[9].ids.size(), 40u);
  EXPECT_EQ(stats.prompt_tokens, 5);
  EXPECT_EQ(stats.decoded_tokens, 39);
}

}  // namespace
}  // namespace greta
