// The file's own answer on the second real model (numerics.md section 3): Gemma 3 270M, Q4_K_M, 768 tokens of
// prose, half as many again as its window of 512. Its reference is held to transformers by
// scripts/test-gemma3.sh, on the same file.
#include <fmt/format.h>

#include <fstream>

#include "answer.h"

namespace greta {
namespace {

constexpr size_t kTokens = 768;

TEST(Gemma3, EveryModeAgainstTheTruth) {
  const std::string path = std::string(GRETA_MODELS) + "/gemma-3-270m-q4_k_m.gguf";
  if (!std::filesystem::exists(path))
    GTEST_SKIP() << path << " is not there: run scripts/models.sh gemma3-270m";
  const auto model = ModelFile::open(path);
  std::ifstream file(test::golden("smollm2/prose.txt"), std::ios::binary);
  auto ids = model.tokenizer->encode(std::string((std::istreambuf_iterator<char>(file)), {}));
  ASSERT_GE(ids.size(), kTokens);
  ids.resize(kTokens);

  EngineOptions options;
  options.context = 1024;
  options.chunk = 128;
  options.all_logits = true;
  options.device = "reference";
  std::vector<LogProbabilities> truth;
  {
    Engine reference(model, options);
    std::vector<double> log_sums;
    truth = log_probabilities_of(reference, ids, log_sums, nullptr);
  }
  options.device = "cpu";
  const AnswerMode modes[] = {
      {"default: 16-bit activations, f16 cache", Activations::bits16, WeightMode::stored, KvType::f16, true},
      {"f32 cache", Activations::bits16, WeightMode::stored, KvType::f32, true},
      {"bf16 cache", Activations::bits16, WeightMode::stored, KvType::bf16, false},
      {"8-bit activations", Activations::bits8, WeightMode::stored, KvType::f16, false},
      {"int8 weights", Activations::bits16, WeightMode::int8, KvType::f16, false},
  };
  expect_answers(model, options, modes, ids, truth);
}

}  // namespace
}  // namespace greta
