// Prompts of exact lengths: the same ids for everyone who asks, and no text that repeats itself.
#include "bisect/texts.h"

#include <algorithm>

#include "base/error.h"
#include "support.h"

namespace greta {
namespace {

void expect_exact_lengths(const Tokenizer& tokenizer) {
  const auto longest = prompt_of_length(tokenizer, 8192);
  ASSERT_EQ(longest.size(), 8192u);
  for (const size_t tokens : {1, 2, 64, 827, 1653, 4000}) {
    const auto ids = prompt_of_length(tokenizer, tokens);
    ASSERT_EQ(ids.size(), tokens);
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), longest.begin())) << tokens;
  }
  // The second reading has its number and begins with the second paragraph.
  const std::string text = tokenizer.decode(longest);
  EXPECT_EQ(text.rfind("Reading 1.\n\nThe workshop of the two Albrecht sisters", 0), 0u)
      << text.substr(0, 80);
  const size_t second = text.find("\n\nReading 2.");
  ASSERT_NE(second, std::string::npos);
  EXPECT_EQ(text.substr(second + 12, 8), "\n\nMarta,") << text.substr(second, 40);
}

TEST(Texts, AboutNineHundredWords) {
  const std::string_view text = built_in_text();
  const auto words = std::count_if(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\n'; });
  EXPECT_GT(words, 800);
  EXPECT_LT(words, 1100);
  EXPECT_TRUE(
      std::all_of(text.begin(), text.end(), [](char c) { return c == '\n' || (c >= ' ' && c < 0x7f); }));
}

TEST(Texts, ExactLengthsUnderASentencePieceVocabulary) {
  const test::TemporaryFolder folder;
  synthesise({}, folder / "m.gguf", 1);
  const ModelFile model = ModelFile::open(folder / "m.gguf");
  ASSERT_EQ(model.tokenizer->description().substr(0, 3), "spm");
  expect_exact_lengths(*model.tokenizer);
}

TEST(Texts, ExactLengthsUnderSmolLM2) {
  const auto path = test::smollm2();
  if (!path) GTEST_SKIP() << "the model is not in " << GRETA_MODELS << ": run scripts/models.sh smollm2";
  expect_exact_lengths(*ModelFile::open(*path).tokenizer);
}

TEST(Texts, AnotherTextAndNone) {
  const test::TemporaryFolder folder;
  synthesise({}, folder / "m.gguf", 1);
  const ModelFile model = ModelFile::open(folder / "m.gguf");
  const auto ids = prompt_of_length(*model.tokenizer, 100, "One.\n\nTwo.\n\n\n\nThree.");
  EXPECT_EQ(ids.size(), 100u);
  EXPECT_EQ(
      model.tokenizer->decode(ids).rfind("Reading 1.\n\nOne.\n\nTwo.\n\nThree.\n\nReading 2.\n\nTwo.", 0), 0u)
      << model.tokenizer->decode(ids);
  EXPECT_THROW(prompt_of_length(*model.tokenizer, 0), Error);
  EXPECT_THROW(prompt_of_length(*model.tokenizer, 5, ""), Error);
  EXPECT_THROW(prompt_of_length(*model.tokenizer, 5, "\n\n"), Error);
}

}  // namespace
}  // namespace greta
