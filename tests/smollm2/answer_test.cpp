// The file's own answer (numerics.md section 3) on a real model: the reference against transformers in true
// float64, then every mode of the cpu backend against the reference, and greedy text against transformers'
// own.
#include "answer.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/generator.h"
#include "support.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

constexpr size_t kTokens = 768;

EngineOptions options_for(const std::string& device) {
  EngineOptions options;
  options.device = device;
  options.chunk = 128;
  options.context = 1024;
  options.all_logits = true;
  return options;
}

class SmolLM2 : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const auto path = test::smollm2();
    if (!path) return;
    model_ = std::make_unique<ModelFile>(ModelFile::open(*path));
    prose_ = std::make_unique<SafeTensorsFile>(test::golden("smollm2/prose_top32.safetensors"));
    for (const double id : prose_->numbers("token_ids")) ids_.push_back(static_cast<TokenId>(id));
  }
  static void TearDownTestSuite() {
    model_.reset();
    prose_.reset();
    stages_.reset();
    truth_.clear();
    ids_.clear();
  }
  void SetUp() override {
    if (!model_) GTEST_SKIP() << "the model is not in " << GRETA_MODELS << ": run scripts/models.sh smollm2";
  }

  /// The reference's pass over the prose: computed once, log-probabilities of every row.
  static const std::vector<LogProbabilities>& truth() {
    if (!truth_.empty()) return truth_;
    Engine engine(*model_, options_for("reference"));
    stages_ = std::make_unique<TraceRecorder>(TraceSelection{{}, {}, {17, 767}});
    truth_ = log_probabilities_of(engine, ids_, log_sums_, stages_.get());
    return truth_;
  }

  static std::unique_ptr<ModelFile> model_;
  static std::unique_ptr<SafeTensorsFile> prose_;
  static std::vector<TokenId> ids_;
  static std::vector<LogProbabilities> truth_;
  static std::vector<double> log_sums_;
  static std::unique_ptr<TraceRecorder> stages_;  ///< of the same pass, at the golden positions
};

std::unique_ptr<ModelFile> SmolLM2::model_;
std::unique_ptr<SafeTensorsFile> SmolLM2::prose_;
std::vector<TokenId> SmolLM2::ids_;
std::vector<LogProbabilities> SmolLM2::truth_;
std::vector<double> SmolLM2::log_sums_;
std::unique_ptr<TraceRecorder> SmolLM2::stages_;

TEST_F(SmolLM2, ProseIsTokenisedAsByTransformers) {
  std::ifstream file(test::golden("smollm2/prose.txt"), std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  auto ids = model_->tokenizer->encode(text);
  ASSERT_GE(ids.size(), kTokens);
  ids.resize(kTokens);
  EXPECT_EQ(ids, ids_);
}

TEST_F(SmolLM2, ReferenceIsTransformersWithinOneBillionth) {
  const auto& log_probabilities = truth();
  const auto top_ids = prose_->numbers("top_ids");
  const auto top_logits = prose_->numbers("top_logits");
  const auto log_sums = prose_->numbers("logsumexp");
  const auto largest = prose_->numbers("logits_absmax");
  double worst = 0.0;
  for (size_t p = 0; p < kTokens; ++p) {
    const auto check = [&](double got, double expected) {
      const double d = std::abs(got - expected) / largest[p];
      if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
    };
    check(log_sums_[p], log_sums[p]);
    for (size_t i = p * 32; i < (p + 1) * 32; ++i)
      check(log_probabilities[p][static_cast<size_t>(top_ids[i])] + log_sums_[p], top_logits[i]);
  }
  for (const int p : {17, 767}) {
    const SafeTensorsFile file(test::golden(fmt::format("smollm2/prose_logits_{:03}.safetensors", p)));
    const auto expected = file.numbers("logits");
    ASSERT_EQ(expected.size(), log_probabilities[static_cast<size_t>(p)].size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto row = static_cast<size_t>(p);
      const double d = std::abs(log_probabilities[row][i] + log_sums_[row] - expected[i]) / largest[row];
      if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
    }
  }
  fmt::print("reference against transformers in float64, {} rows: {:.2e} of a row's largest logit at worst\n",
             kTokens, worst);
  EXPECT_TRUE(worst <= 1e-9) << worst;
}

TEST_F(SmolLM2, StagesAreTransformers) {
  truth();
  size_t rows = 0;
  for (const char* name :
       {"prose_residuals", "prose_layer_00", "prose_layer_01", "prose_layer_15", "prose_layer_29"}) {
    const SafeTensorsFile file(test::golden(std::string("smollm2/") + name + ".safetensors"));
    for (const auto& [key, got] : stages_->rows()) {
      const std::string stage = trace_name(key.first, key.second);
      if (file.find(stage) == nullptr) continue;
      const auto expected = file.numbers(stage);
      for (size_t r = 0; r < got.size(); ++r) {
        const auto& row = got[r].values;
        double difference = 0.0;
        double largest = 0.0;
        for (size_t i = 0; i < row.size(); ++i) {
          const double e = expected[r * row.size() + i];
          largest = std::max(largest, std::abs(e));
          if (!(std::abs(row[i] - e) <= difference)) difference = std::abs(row[i] - e);
        }
        EXPECT_TRUE(difference <= 1e-9 * largest) << stage << " row " << r << ": " << difference / largest;
        ++rows;
      }
    }
  }
  EXPECT_EQ(rows, 2u * (32u + 4u * 16u));
}

TEST_F(SmolLM2, EveryModeAgainstTheTruth) {
  const AnswerMode modes[] = {
      {"default: 16-bit activations, f16 cache", Activations::bits16, WeightMode::stored, KvType::f16, true},
      {"f32 cache", Activations::bits16, WeightMode::stored, KvType::f32, true},
      {"bf16 cache", Activations::bits16, WeightMode::stored, KvType::bf16, false},
      {"8-bit activations", Activations::bits8, WeightMode::stored, KvType::f16, false},
      {"int8 weights", Activations::bits16, WeightMode::int8, KvType::f16, false},
      {"f32 weights", Activations::bits16, WeightMode::f32, KvType::f16, true},
  };
  expect_answers(*model_, options_for("cpu"), modes, ids_, truth());
}

TEST_F(SmolLM2, GreedyTextIsTransformersUntilATrueTie) {
  const auto golden = nlohmann::json::parse(std::ifstream(test::golden("smollm2/prompts.json")));
  auto options = options_for("cpu");
  options.all_logits = false;
  options.sequences = 4;
  Engine engine(*model_, options);
  std::vector<Request> requests;
  for (const auto& prompt : golden.at("prompts")) {
    Request request;
    request.prompt = prompt.at("prompt_ids").get<std::vector<TokenId>>();
    EXPECT_EQ(model_->tokenizer->encode(prompt.at("prompt").get<std::string>()), request.prompt);
    request.sampling.greedy = true;
    request.max_tokens = 128;
    request.ignore_eos = true;
    requests.push_back(request);
  }
  ASSERT_EQ(requests.size(), 20u);
  const auto generated = generate(engine, *model_->tokenizer, requests);
  int parted = 0;
  for (size_t i = 0; i < generated.size(); ++i) {
    const auto expected = golden.at("prompts").at(i).at("ids").get<std::vector<TokenId>>();
    const auto gaps = golden.at("prompts").at(i).at("gaps").get<std::vector<double>>();
    ASSERT_EQ(generated[i].ids.size(), 128u);
    for (size_t step = 0; step < expected.size(); ++step) {
      if (generated[i].ids[step] == expected[step]) continue;
      ++parted;
      EXPECT_TRUE(gaps[step] <= 0.005)
          << "prompt " << i << " parts at step " << step << " with a true gap of " << gaps[step];
      break;
    }
  }
  fmt::print(
      "20 prompts, 128 greedy tokens each: {} part from transformers, each at a true gap of 0.005 or less\n",
      parted);
}

}  // namespace
}  // namespace greta
