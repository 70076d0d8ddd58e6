// Every family against its oracle, on the committed strings. With --cases=FILE --vocabulary=FILE
// --family=NAME, or with
// --splits=FILE --family=NAME, the same comparison on any number of strings (tools/fuzz_tokenizer.py).
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "gguf/gguf.h"
#include "tokenizer/golden_cases.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/vocab.h"

namespace greta::testing {

std::vector<GoldenCase> read_golden_cases(const std::string& path) {
  const std::string file = read_whole_file(path);
  size_t at = 0;
  const auto take = [&](size_t size) {
    if (file.size() - at < size) fail("{}: {} bytes at {} expected, the file ends", path, size, at);
    const std::string_view part = std::string_view(file).substr(at, size);
    at += size;
    return part;
  };
  const auto number = [&] {
    uint32_t n = 0;
    std::memcpy(&n, take(4).data(), 4);
    return n;
  };
  if (take(4) != "GTOK") fail("{}: not a file of golden cases", path);
  std::vector<GoldenCase> cases(number());
  for (GoldenCase& c : cases) {
    const char flags = take(1)[0];
    c.reads_special = (flags & 1) != 0;
    c.has_u2581 = (flags & 2) != 0;
    c.leaves_out = (flags & 4) != 0;
    c.text = take(number());
    c.ids.resize(number());
    for (TokenId& id : c.ids) id = static_cast<TokenId>(number());
  }
  if (at != file.size()) fail("{}: {} bytes too many", path, file.size() - at);
  return cases;
}

std::string check_golden_case(const Tokenizer& tokenizer, const GoldenCase& expected) {
  const auto ids =
      tokenizer.encode(expected.text, {.add_special = false, .parse_special = expected.reads_special});
  if (ids != expected.ids) {
    return fmt::format("\"{}\": expected {}, got {}", shown(expected.text), expected.ids, ids);
  }
  std::string back = expected.text;
  for (size_t at = 0; expected.has_u2581 && (at = back.find("\xE2\x96\x81", at)) != std::string::npos;) {
    back.replace(at, 3, " ");
  }
  const std::string decoded = tokenizer.decode(ids, true);
  if (decoded != back && !expected.leaves_out)
    return fmt::format("\"{}\" came back as \"{}\"", shown(back), shown(decoded));

  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const TokenId id : ids) {
    const std::string part = stream.push(id);
    if (find_invalid_utf8(part) && !expected.leaves_out)
      return fmt::format("\"{}\": a character was cut while streaming", shown(back));
    streamed += part;
  }
  streamed += stream.finish();
  if (streamed != tokenizer.decode(ids)) {
    return fmt::format("\"{}\" was streamed as \"{}\"", shown(back), shown(streamed));
  }
  return {};
}

namespace {

class Family : public ::testing::TestWithParam<std::string> {};

TEST_P(Family, AgreesWithItsOracle) {
  const std::string folder = std::string(GRETA_SOURCE_DIR) + "/tests/golden/tokenizer/";
  const auto file = gguf::File::open(folder + GetParam() + ".gguf");
  const auto tokenizer = Tokenizer::from_gguf(file);
  const auto cases = read_golden_cases(folder + GetParam() + ".bin");
  ASSERT_GT(cases.size(), 200u);
  for (const GoldenCase& c : cases) EXPECT_EQ(check_golden_case(*tokenizer, c), "");
}

std::string check_split(const PreTokenizer& rule, const GoldenCase& expected) {
  std::vector<TokenId> lengths;
  std::string joined;
  rule.split(expected.text, [&](std::string_view word) {
    lengths.push_back(static_cast<TokenId>(word.size()));
    joined += word;
  });
  if (lengths == expected.ids && joined == expected.text) return {};
  return fmt::format("\"{}\": expected words of {} bytes, got {}", shown(expected.text), expected.ids,
                     lengths);
}

class Split : public ::testing::TestWithParam<std::string> {};

TEST_P(Split, AgreesWithThePublishedRule) {
  const PreTokenizer* rule = find_pretokenizer(GetParam());
  ASSERT_NE(rule, nullptr);
  const auto cases = read_golden_cases(std::string(GRETA_SOURCE_DIR) + "/tests/golden/tokenizer/split-" +
                                       GetParam() + ".bin");
  ASSERT_GT(cases.size(), 300u);
  for (const GoldenCase& c : cases) EXPECT_EQ(check_split(*rule, c), "");
}

std::string name_of_family(const ::testing::TestParamInfo<std::string>& given) {
  std::string name = given.param;
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

INSTANTIATE_TEST_SUITE_P(Golden, Split,
                         ::testing::Values("smollm", "llama-bpe", "gpt-2", "qwen2", "falcon", "starcoder",
                                           "deepseek-llm", "deepseek-coder", "default", "dbrx"),
                         name_of_family);

class SentencePieceFile : public ::testing::TestWithParam<std::string> {};

TEST_P(SentencePieceFile, AgreesWithSentencePiece) {
  const std::string folder = std::string(GRETA_SOURCE_DIR) + "/tests/golden/tokenizer/";
  const auto tokenizer = Tokenizer::from_sentencepiece(folder + GetParam() + ".model");
  const auto cases = read_golden_cases(folder + GetParam() + ".bin");
  ASSERT_GT(cases.size(), 100u);
  for (const GoldenCase& c : cases) EXPECT_EQ(check_golden_case(*tokenizer, c), "");
}

INSTANTIATE_TEST_SUITE_P(Golden, SentencePieceFile, ::testing::Values("spm", "spm-noprefix", "spm-odd"),
                         [](const auto& given) {
                           return given.param == "spm" ? std::string("spm") : given.param.substr(4);
                         });

INSTANTIATE_TEST_SUITE_P(Golden, Family,
                         ::testing::Values("spm", "spm-gemma", "smollm", "llama-bpe", "gpt-2", "qwen2",
                                           "falcon", "starcoder", "deepseek-llm", "deepseek-coder", "default",
                                           "dbrx"),
                         name_of_family);

/// The rule alone, on strings from elsewhere.
int compare_splits(const std::string& family, const std::string& cases_file) {
  const PreTokenizer* rule = find_pretokenizer(family);
  if (rule == nullptr) fail("no rule {}: expected one of {}", family, pretokenizer_names());
  size_t wrong = 0;
  const auto cases = read_golden_cases(cases_file);
  for (const GoldenCase& c : cases) {
    const std::string problem = check_split(*rule, c);
    if (!problem.empty() && ++wrong <= 20) fmt::print("{}\n", problem);
  }
  fmt::print("{} strings, {} mismatches\n", cases.size(), wrong);
  return wrong == 0 ? 0 : 1;
}

/// The same on strings from elsewhere; prints the first mismatches and a last line with the counts.
int compare(const std::string& vocabulary, const std::string& family, const std::string& cases_file) {
  const auto file = gguf::File::open(vocabulary);
  const auto tokenizer = Tokenizer::from_gguf(file);
  const bool right = family.starts_with("spm") ? tokenizer->description().starts_with("spm/")
                                               : tokenizer->description() == "bpe/" + family;
  if (!right)
    fail("{}: expected a tokenizer of the family {}, got {}", vocabulary, family, tokenizer->description());
  log::set_level(log::Level::quiet);  // what is left out is counted here
  size_t wrong = 0, exempt = 0, left_out = 0;
  const auto cases = read_golden_cases(cases_file);
  for (const GoldenCase& c : cases) {
    const std::string problem = check_golden_case(*tokenizer, c);
    exempt += c.has_u2581 ? 1 : 0;
    left_out += c.leaves_out ? 1 : 0;
    if (!problem.empty() && ++wrong <= 20) fmt::print("{}\n", problem);
  }
  fmt::print("{} strings, {} mismatches", cases.size(), wrong);
  if (exempt > 0) fmt::print(" ({} strings hold U+2581, which SentencePiece gives back as a space)", exempt);
  if (left_out > 0) fmt::print(" ({} strings hold bytes that the vocabulary lacks)", left_out);
  fmt::print("\n");
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace greta::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string vocabulary, family, cases, splits;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&](const std::string& name, std::string& into) {
      if (argument.starts_with(name + "=")) into = argument.substr(name.size() + 1);
    };
    value("--vocabulary", vocabulary);
    value("--family", family);
    value("--cases", cases);
    value("--splits", splits);
  }
  try {
    if (!splits.empty()) return greta::testing::compare_splits(family, splits);
    return cases.empty() ? RUN_ALL_TESTS() : greta::testing::compare(vocabulary, family, cases);
  } catch (const greta::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
