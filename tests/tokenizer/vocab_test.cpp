// What is refused, and with which words; special tokens, BOS and EOS, end tokens, streaming.
#include "tokenizer/vocab.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/mapped_file.h"
#include "gguf/gguf.h"
#include "temporary_folder.h"

namespace greta {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// A small byte-level vocabulary; `a` to `d`, control and user-defined tokens.
VocabData bpe_data() {
  VocabData data;
  data.source = "m.gguf";
  data.model = "gpt2";
  data.pre = "gpt-2";
  data.pieces = {"a", "b", "ab", "Ġ", "<s>", "<|im_end|>", "<tool>", "<tool>>", "Ã", "©", "<|end|>", "c"};
  data.types = {1, 1, 1, 1, 3, 3, 4, 4, 1, 1, 1, 1};
  data.merges = {"a b"};
  data.bos = 4;
  data.eos = 4;
  return data;
}

VocabData spm_data() {
  VocabData data;
  data.source = "m.gguf";
  data.model = "llama";
  static std::vector<std::string> bytes;
  if (bytes.empty()) {
    for (int b = 0; b < 256; ++b) bytes.push_back(fmt::format("<0x{:02X}>", b));
  }
  data.pieces = {"<unk>",
                 "<s>",
                 "</s>",
                 "\xE2\x96\x81",
                 "a",
                 "\xE2\x96\x81"
                 "a"};
  data.types = {2, 3, 3, 1, 1, 1};
  data.pieces.insert(data.pieces.end(), bytes.begin(), bytes.end());
  data.types.insert(data.types.end(), 256, 6);
  data.scores.assign(data.pieces.size(), 0.f);
  data.bos = 1;
  data.eos = 2;
  return data;
}

TEST(Vocab, RefusesUnlikeLengthsWithBothNumbers) {
  VocabData data = bpe_data();
  data.types.pop_back();
  EXPECT_THAT(
      message_of([&] { make_tokenizer(data); }),
      AllOf(HasSubstr("tokenizer.ggml.token_type"), HasSubstr("11"), HasSubstr("12"), HasSubstr("m.gguf")));
  data = spm_data();
  data.scores.push_back(0);
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("tokenizer.ggml.scores"), HasSubstr("263"), HasSubstr("262")));
  data.scores.clear();
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("tokenizer.ggml.scores"), HasSubstr("got 0")));
}

TEST(Vocab, RefusesWhatItCannotKnow) {
  VocabData data = bpe_data();
  data.model = "bert";
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("tokenizer.ggml.model"), HasSubstr("\"bert\""), HasSubstr("gpt2"),
                    HasSubstr("--tokenizer FILE")));
  data = bpe_data();
  data.pre = "starcoder3";
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("tokenizer.ggml.pre"), HasSubstr("\"starcoder3\""), HasSubstr("smollm"),
                    HasSubstr("falcon")));
  data.pre = "";
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("tokenizer.ggml.pre"), HasSubstr("no such key")));
  data = bpe_data();
  data.types[3] = 7;
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("token_type[3]"), HasSubstr("got 7")));
  data = bpe_data();
  data.pieces[9] = "ab";
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), AllOf(HasSubstr("tokens[9]"), HasSubstr("token 2")));
  data.pieces.clear();
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("got no tokens"));
  data = bpe_data();
  data.add_space_prefix = true;
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("add_space_prefix"));
}

TEST(Vocab, RefusesBrokenMergesByIndex) {
  VocabData data = bpe_data();
  data.merges = {"a b", "a x"};
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("merges[1] of 2"), HasSubstr("\"ax\""), HasSubstr("12")));
  data.merges = {"a b", "ab"};
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("merges[1]"), HasSubstr("two pieces")));
  data.merges = {"a b", " a"};
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("merges[1]"));
  data.merges = {"a "};
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("merges[0]"));
  data.merges = {};
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), AllOf(HasSubstr("merges"), HasSubstr("got none")));
}

TEST(Vocab, ShowsPiecesShortAndReadable) {
  EXPECT_EQ(shown("Ġthe"), "Ġthe");
  EXPECT_EQ(shown("a\n\x1B[31m"), "a\\x0A\\x1B[31m");
  EXPECT_EQ(shown("\xC3(é"), "\\xC3(\\xC3\\xA9");
  EXPECT_EQ(shown(std::string(47, 'x') + "éé"), std::string(47, 'x') + "...");
}

TEST(Vocab, RefusesIdsOutOfRange) {
  for (const int64_t id : {int64_t{12}, int64_t{-1}, INT64_MAX}) {
    VocabData data = bpe_data();
    data.bos = id;
    EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
                AllOf(HasSubstr("bos_token_id"), HasSubstr("0 to 11")));
    data = bpe_data();
    data.eot = id;
    EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("eot_token_id"));
    data = spm_data();
    data.unknown = id == 12 ? 262 : id;
    EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("unknown_token_id"));
  }
  VocabData data = bpe_data();
  data.add_eos = true;
  data.eos.reset();
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("add_eos_token"), HasSubstr("eos_token_id")));

  const auto tokenizer = make_tokenizer(bpe_data());
  EXPECT_THAT(message_of([&] { tokenizer->piece(12); }),
              AllOf(HasSubstr("token id 12"), HasSubstr("0 to 11")));
  EXPECT_THAT(message_of([&] { tokenizer->decode({0, -1}); }), HasSubstr("token id -1"));
  EXPECT_THAT(message_of([&] { StreamDecoder(*tokenizer).push(99); }), HasSubstr("token id 99"));
}

TEST(Vocab, RefusesBrokenSpm) {
  VocabData data = spm_data();
  data.scores[4] = std::nanf("");
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), AllOf(HasSubstr("scores[4]"), HasSubstr("NaN")));
  data = spm_data();
  data.pieces[6] = "<0xZZ>";
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), AllOf(HasSubstr("tokens[6]"), HasSubstr("<0xZZ>")));
  data = spm_data();
  data.types[6] = 1;
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }),
              AllOf(HasSubstr("256 byte tokens"), HasSubstr("got 255")));
  data = spm_data();
  data.pieces.resize(6);
  data.types = {1, 3, 3, 1, 1, 1};
  data.scores.resize(6);
  EXPECT_THAT(message_of([&] { make_tokenizer(data); }), HasSubstr("got neither"));
}

TEST(Encode, RefusesWhatIsNotUtf8WithItsOffset) {
  const auto tokenizer = make_tokenizer(bpe_data());
  const std::pair<std::string, size_t> cases[] = {
      {"ab\xFF", 2},       {"a\x80", 1},           {"abababab\xC3", 8},     {"\xC0\x80", 0},
      {"\xE0\x80\x80", 0}, {"a\xED\xA0\x80", 1},   {"\xF4\x90\x80\x80", 0}, {"\xF0\x80\x80\x80", 0},
      {"ab\xE2\x96", 2},   {"\xF5\x80\x80\x80", 0}};
  for (const auto& [text, offset] : cases) {
    EXPECT_THAT(message_of([&, t = text] { tokenizer->encode(t); }),
                HasSubstr(fmt::format("offset {} ", offset)));
  }
}

TEST(Encode, SpecialTokensAreReadOrPlain) {
  const auto tokenizer = make_tokenizer(bpe_data());
  EXPECT_THAT(tokenizer->encode("a<|im_end|>ab<tool>><tool>b"), ElementsAre(0, 5, 2, 7, 6, 1));
  // Read as plain characters, a control token's spelling has no token here and is left out; user-defined ones
  // stay.
  EXPECT_THAT(tokenizer->encode("a<s>b<tool>", {.parse_special = false}), ElementsAre(0, 1, 6));
  EXPECT_EQ(tokenizer->decode({0, 5, 7}), "a<tool>>");
  EXPECT_EQ(tokenizer->decode({0, 5, 7}, true), "a<|im_end|><tool>>");
  EXPECT_EQ(tokenizer->bytes(5), "");
  EXPECT_EQ(tokenizer->bytes(8), "\xC3");
  EXPECT_EQ(tokenizer->piece(3), "Ġ");
  EXPECT_EQ(tokenizer->find("ab"), 2);
  EXPECT_EQ(tokenizer->find("zz"), std::nullopt);
}

TEST(Encode, BosAndEosAsTheFileSays) {
  VocabData data = bpe_data();
  EXPECT_THAT(make_tokenizer(data)->encode("a"), ElementsAre(0));  // the family's default: none
  data.add_bos = true;
  data.add_eos = true;
  data.eos = 5;
  auto tokenizer = make_tokenizer(data);
  EXPECT_TRUE(tokenizer->adds_bos() && tokenizer->adds_eos());
  EXPECT_THAT(tokenizer->encode("a"), ElementsAre(4, 0, 5));
  EXPECT_THAT(tokenizer->encode(""), ElementsAre(4, 5));
  EXPECT_THAT(tokenizer->encode("a", {.add_special = false}), ElementsAre(0));
  data.pre = "llama-bpe";
  data.add_bos.reset();
  EXPECT_TRUE(make_tokenizer(data)->adds_bos());  // this family adds it unless the file says no
  data.add_bos = false;
  EXPECT_FALSE(make_tokenizer(data)->adds_bos());
  EXPECT_THAT(make_tokenizer(spm_data())->encode("a"), ElementsAre(1, 5));
}

/// What `work` logs.
std::string logged(const std::function<void()>& work) {
  ::testing::internal::CaptureStderr();
  work();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Encode, EndTokensAreWhatTheFileNamesAndKnownSpellings) {
  VocabData data = bpe_data();
  data.eot = 11;
  data.eom = 4;
  data.types[10] = 3;
  EXPECT_EQ(logged([&] { EXPECT_THAT(make_tokenizer(data)->end_tokens(), ElementsAre(4, 11, 5, 10)); }), "");
}

TEST(Encode, ASpellingOfAnEndIsAControlTokenWhateverItsType) {
  for (const int32_t type : {1, 4}) {
    VocabData data = bpe_data();
    data.types[10] = type;
    std::unique_ptr<Tokenizer> tokenizer;
    EXPECT_THAT(logged([&] { tokenizer = make_tokenizer(data); }),
                HasSubstr(fmt::format(
                    "warning: m.gguf: token 10 \"<|end|>\" ends a turn, but its type is {}: it is taken as a "
                    "control token and generation stops at it",
                    type == 1 ? "normal" : "user-defined")));
    EXPECT_THAT(tokenizer->end_tokens(), ElementsAre(4, 5, 10));
    EXPECT_THAT(tokenizer->encode("a<|end|>b"), ElementsAre(0, 10, 1));
    EXPECT_EQ(tokenizer->decode({0, 10, 1}), "ab");
  }
  // As a Gemma's SentencePiece file may have it: found before the algorithm sees the text, not by it.
  VocabData data = spm_data();
  data.pieces.emplace_back("<end_of_turn>");
  data.types.push_back(4);
  data.scores.push_back(0);
  const auto tokenizer = make_tokenizer(data);
  EXPECT_THAT(tokenizer->end_tokens(), ElementsAre(2, 262));
  EXPECT_THAT(tokenizer->encode("a<end_of_turn>a"), ElementsAre(1, 5, 262, 5));
  EXPECT_EQ(tokenizer->decode({5, 262, 5}), "aa");
}

TEST(Encode, ABosThatTheTextHasAlreadyIsSaid) {
  const auto tokenizer = make_tokenizer(spm_data());
  EXPECT_EQ(
      logged([&] { EXPECT_THAT(tokenizer->encode("<s>a"), ElementsAre(1, 1, 5)); }),
      "greta: warning: the text begins with \"<s>\", which is put before every text: it is there twice\n");
  EXPECT_EQ(logged([&] {
              tokenizer->encode("a<s>");
              tokenizer->encode("<s>a", {.add_special = false});
              tokenizer->encode("<s>a", {.add_special = true, .parse_special = false});
              tokenizer->encode("");
            }),
            "");
}

/// Phi-3's special tokens take the white space behind them, but for three.
TEST(Encode, WhiteSpaceBehindASpecialTokenOfPhi3IsGone) {
  const VocabData data = spm_data();
  std::vector<std::string> pieces(data.pieces.begin(), data.pieces.end());
  std::vector<int32_t> types = data.types;
  for (const char* piece : {"<|user|>", "<|end|>", "<|endoftext|>"}) {  // 262, 263, 264
    pieces.emplace_back(piece);
    types.push_back(3);
  }
  types[2] = 4;  // </s>, as its converter has it
  const test::TemporaryFolder folder;
  const auto of = [&](const std::string& architecture) {
    gguf::Writer writer;
    writer.add_string("general.architecture", architecture);
    writer.add_string("tokenizer.ggml.model", "llama");
    writer.add_strings("tokenizer.ggml.tokens", pieces);
    writer.add_f32s("tokenizer.ggml.scores", std::vector<float>(pieces.size()));
    writer.add_i32s("tokenizer.ggml.token_type", types);
    writer.add_u32("tokenizer.ggml.unknown_token_id", 0);
    const std::string path = folder / "m.gguf";
    writer.write(path);
    return Tokenizer::from_gguf(gguf::File::open(path));
  };
  const auto phi = of("phi3");
  EXPECT_THAT(phi->encode("<|user|>\na<|end|>\n"), ElementsAre(262, 5, 263));
  EXPECT_THAT(phi->encode("<|user|> \t\xC2\xA0\n a<|end|>\n<|user|>\n"), ElementsAre(262, 5, 263, 262));
  EXPECT_THAT(phi->encode("</s> a"), ElementsAre(2, 5));
  EXPECT_THAT(phi->end_tokens(), ElementsAre(263, 264, 2));
  const TokenId newline = 6 + '\n';
  for (const auto& [text, id] :
       {std::pair{"<s>\na", 1}, std::pair{"<unk>\na", 0}, std::pair{"<|endoftext|>\na", 264}})
    EXPECT_THAT(phi->encode(text), ElementsAre(id, 3, newline, 4));
  const auto plain = phi->encode("<|user|>\na", {.parse_special = false});
  EXPECT_NE(std::find(plain.begin(), plain.end(), newline), plain.end());
  EXPECT_THAT(of("llama")->encode("<|user|>\na"), ElementsAre(262, 3, newline, 4));
}

TEST(Encode, SpmSpacePrefixGoesAsItCame) {
  const auto tokenizer = make_tokenizer(spm_data());
  EXPECT_EQ(tokenizer->description(), "spm/llama");
  for (const std::string text : {"a", " a", "  a ", "<s>a", "a</s> a<s>  a", " ", "", "é<unk>a"}) {
    const auto ids = tokenizer->encode(text, {.add_special = false});
    EXPECT_EQ(tokenizer->decode(ids, true), text);
  }
  EXPECT_THAT(tokenizer->encode("a</s>a"), ElementsAre(1, 5, 2, 5));
  const std::string nul("a\0b", 3);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(nul)), nul);
  // What continues a text keeps its space.
  StreamDecoder start(*tokenizer), more(*tokenizer, TokenId{4}), after_control(*tokenizer, TokenId{1});
  EXPECT_EQ(start.push(5), "a");
  EXPECT_EQ(start.push(5), " a");
  EXPECT_EQ(more.push(5), " a");
  EXPECT_EQ(after_control.push(5), "a");
}

TEST(Stream, NeverCutsACharacterAndLosesNone) {
  const auto tokenizer = make_tokenizer(spm_data());
  const auto byte = [](unsigned b) { return static_cast<TokenId>(6 + b); };
  StreamDecoder stream(*tokenizer, TokenId{4});
  EXPECT_EQ(stream.push(byte(0xF0)), "");
  EXPECT_EQ(stream.push(byte(0x9F)), "");
  EXPECT_EQ(stream.push(byte(0x98)), "");
  EXPECT_EQ(stream.push(byte(0x80)), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.push(byte(0xE2)), "");
  EXPECT_EQ(stream.push(4),
            "\xE2"
            "a");  // can never become a character: out as it is
  EXPECT_EQ(stream.push(byte(0xFF)), "\xFF");
  EXPECT_EQ(stream.push(byte(0xED)), "");
  EXPECT_EQ(stream.push(byte(0xA0)), "\xED\xA0");  // a surrogate
  EXPECT_EQ(stream.push(byte(0xE0)), "");
  EXPECT_EQ(stream.push(byte(0x80)), "\xE0\x80");  // overlong
  EXPECT_EQ(stream.push(byte(0xC3)), "");
  EXPECT_EQ(stream.push(2), "");  // a control token in between
  EXPECT_EQ(stream.push(byte(0xA9)), "\xC3\xA9");
  EXPECT_EQ(stream.push(byte(0xE2)), "");
  EXPECT_EQ(stream.finish(), "\xE2");
  EXPECT_EQ(stream.finish(), "");
}

class SentencePieceBytes : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/greta_sentencepiece_test.model";
    model_ = read_whole_file(std::string(GRETA_SOURCE_DIR) + "/tests/golden/tokenizer/spm.model");
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string load(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    return message_of([&] { Tokenizer::from_sentencepiece(path_); });
  }
  std::string path_, model_;
};

TEST_F(SentencePieceBytes, RefusesOtherFilesAndSettings) {
  EXPECT_EQ(load(model_), "no error");
  EXPECT_THAT(load(""), HasSubstr("expected pieces, got none"));
  EXPECT_THAT(load("GGUF is another format"), AllOf(HasSubstr("SentencePiece"), HasSubstr("byte 0")));
  // Fields that come later in a message win: these are appended to the model.
  EXPECT_THAT(load(model_ + std::string("\x12\x02\x18\x01", 4)),
              AllOf(HasSubstr("model_type"), HasSubstr("unigram")));
  EXPECT_THAT(load(model_ + std::string("\x12\x03\xC0\x01\x01", 5)), HasSubstr("treat_whitespace_as_suffix"));
  EXPECT_THAT(load(model_ + std::string("\x1A\x02\x28\x00", 4)), HasSubstr("escape_whitespaces"));
  EXPECT_THAT(load(model_ + std::string("\x1A\x05\x12\x03"
                                        "abc",
                                        7)),
              AllOf(HasSubstr("precompiled_charsmap"), HasSubstr("3 bytes")));
  EXPECT_THAT(load(model_ + std::string("\x2A\x05\x12\x03"
                                        "abc",
                                        7)),
              HasSubstr("denormalizer"));
  EXPECT_THAT(message_of([] { Tokenizer::from_sentencepiece("/no/such/tokenizer.model"); }),
              HasSubstr("/no/such"));
}

TEST_F(SentencePieceBytes, TruncatedAndMutatedFilesAreErrorsOrLoad) {
  for (size_t size = 0; size < model_.size(); size += 1 + size / 20) load(model_.substr(0, size));
  uint32_t state = 1;
  for (int i = 0; i < 200; ++i) {
    std::string bytes = model_;
    for (int k = 0; k < 3; ++k) {
      state = state * 1664525u + 1013904223u;
      bytes[state % bytes.size()] = static_cast<char>(state >> 24);
    }
    load(bytes);
  }
}

/// The committed vocabulary with one key changed, through the file format.
TEST(FromGguf, NamesKeyExpectedAndGot) {
  const std::string golden = std::string(GRETA_SOURCE_DIR) + "/tests/golden/tokenizer/smollm.gguf";
  const auto original = gguf::File::open(golden);
  const std::string path = ::testing::TempDir() + "/greta_vocab_test.gguf";
  const auto with = [&](const std::string& key, const std::function<void(gguf::Writer&)>& add) {
    gguf::Writer writer;
    for (const auto& [name, value] : original.metadata()) {
      if (name != key) writer.add_value(name, value);
    }
    add(writer);
    writer.write(path);
    return message_of([&] { Tokenizer::from_gguf(gguf::File::open(path)); });
  };
  EXPECT_EQ(with("", [](gguf::Writer&) {}), "no error");
  const auto nothing = [](gguf::Writer&) {};
  EXPECT_THAT(with("tokenizer.ggml.model", nothing),
              AllOf(HasSubstr("tokenizer.ggml.model"), HasSubstr("no such key")));
  EXPECT_THAT(with("tokenizer.ggml.tokens", nothing),
              AllOf(HasSubstr("tokenizer.ggml.tokens"), HasSubstr("--tokenizer FILE")));
  EXPECT_THAT(with("tokenizer.ggml.merges", nothing), HasSubstr("tokenizer.ggml.merges"));
  const auto changed = [&](const std::string& key, const auto& add) {
    return with(key, [&](gguf::Writer& writer) { add(writer, key); });
  };
  EXPECT_THAT(changed("tokenizer.ggml.tokens",
                      [](auto& w, auto& k) {
                        w.add_i32s(k, {1, 2});
                      }),
              AllOf(HasSubstr("tokenizer.ggml.tokens"), HasSubstr("array of string"), HasSubstr("i32")));
  EXPECT_THAT(changed("tokenizer.ggml.model", [](auto& w, auto& k) { w.add_u32(k, 1); }),
              AllOf(HasSubstr("tokenizer.ggml.model"), HasSubstr("string"), HasSubstr("u32")));
  EXPECT_THAT(changed("tokenizer.ggml.token_type",
                      [](auto& w, auto& k) {
                        w.add_i32s(k, {1, 2});
                      }),
              AllOf(HasSubstr("token_type has 2 entries"), HasSubstr("1504")));
  EXPECT_THAT(changed("tokenizer.ggml.token_type",
                      [](auto& w, auto& k) {
                        w.add_f32s(k, {1, 2});
                      }),
              AllOf(HasSubstr("token_type"), HasSubstr("f32")));
  EXPECT_THAT(changed("tokenizer.ggml.bos_token_id", [](auto& w, auto& k) { w.add_u32(k, 1504); }),
              AllOf(HasSubstr("bos_token_id"), HasSubstr("1503"), HasSubstr("1504")));
  EXPECT_THAT(changed("tokenizer.ggml.bos_token_id", [](auto& w, auto& k) { w.add_string(k, "1"); }),
              AllOf(HasSubstr("bos_token_id"), HasSubstr("string")));
  EXPECT_THAT(changed("tokenizer.ggml.add_bos_token", [](auto& w, auto& k) { w.add_u32(k, 1); }),
              AllOf(HasSubstr("add_bos_token"), HasSubstr("bool"), HasSubstr("u32")));
  EXPECT_THAT(changed("tokenizer.ggml.precompiled_charsmap", [](auto& w, auto& k) { w.add_i32s(k, {1}); }),
              HasSubstr("precompiled_charsmap"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace greta
