// guard-rail: what bad paths and prompts get, and the case that the guard rail began with.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "cli/run_binary.h"
#include "gguf/gguf.h"
#include "quant/types.h"

namespace greta::test {
namespace {

class Guard : public CliTest {
 protected:
  std::string model = make_model("m.gguf");

  /// Status 2, one headline with all of these parts, nothing on standard output.
  void expect_refusal(const std::vector<std::string>& arguments, const std::vector<std::string>& parts,
                      const RunOptions& options = {}) {
    const Outcome outcome = greta_run(arguments, options);
    EXPECT_EQ(outcome.status, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.err.rfind("greta: ", 0), 0u) << outcome.err;
    for (const std::string& part : parts)
      EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " in " << outcome.err;
  }
};

TEST_F(Guard, Paths) {
  std::filesystem::create_symlink("nowhere.gguf", folder / "dangling.gguf");
  std::filesystem::create_directory(folder / "sub");
  std::filesystem::create_symlink("sub", folder / "to-sub");
  for (const char* command : {"check", "inspect", "run", "tokenize", "trace", "bench"}) {
    const auto line = [&](const std::string& path) {
      std::vector<std::string> arguments = {command, path};
      if (command == std::string("run") || command == std::string("tokenize") ||
          command == std::string("trace"))
        arguments.insert(arguments.end(), {"--prompt", "a"});
      if (command == std::string("trace")) arguments.insert(arguments.end(), {"-o", folder / "t"});
      return arguments;
    };
    expect_refusal(line(folder / "none.gguf"), {folder / "none.gguf", "No such file or directory"});
    expect_refusal(line(folder / "dangling.gguf"), {"nowhere.gguf", "No such file or directory"});
    expect_refusal(line(folder / "to-sub"), {"/sub", "directory"});
  }
  EXPECT_EQ(files(), (std::vector<std::string>{"dangling.gguf", "m.gguf", "sub", "to-sub"}));
}

TEST_F(Guard, WhatIsNotAGguf) {
  const std::string good = read_file(model);
  write_file(folder / "text", "This is a text.");
  write_file(folder / "empty", "");
  std::string v1 = good;
  v1[4] = 1;
  write_file(folder / "v1", v1);
  std::string big = good;
  std::swap(big[4], big[7]);
  write_file(folder / "big", big);
  write_file(folder / "cut", good.substr(0, good.size() - 100));
  expect_refusal({"check", folder / "text"}, {"offset 0", "GGUF"});
  expect_refusal({"check", folder / "empty"}, {"empty"});
  expect_refusal({"check", folder / "v1"}, {"version", "1", "2"});
  expect_refusal({"check", folder / "big"}, {"big-endian"});
  expect_refusal({"check", folder / "cut"}, {std::to_string(good.size() - 100)});
}

TEST_F(Guard, Prompts) {
  const std::string nul = folder / "nul";
  const std::string bad = folder / "bad";
  const std::string empty = folder / "empty";
  write_file(nul, std::string("ab\0c", 4));
  write_file(bad, "abc\xe2\x28\xa1");
  write_file(empty, "");
  for (const char* command : {"run", "trace"}) {
    const auto line = [&](std::vector<std::string> prompt) {
      prompt.insert(prompt.begin(), {command, model});
      if (command == std::string("trace")) prompt.insert(prompt.end(), {"-o", folder / "t"});
      return prompt;
    };
    expect_refusal(line({"--prompt", ""}), {"--prompt", "empty"});
    expect_refusal(line({"--prompt-file", empty}), {"--prompt-file", "empty"});
    expect_refusal(line({"--prompt-file", "-"}), {"--prompt-file -", "empty"});
    expect_refusal(line({"--prompt", "ab\xff"}), {"--prompt", "invalid UTF-8", "offset 2"});
    expect_refusal(line({"--prompt-file", bad}), {"--prompt-file", "invalid UTF-8", "offset 3"});
    expect_refusal(line({"--prompt-file", nul}), {"--prompt-file", "NUL", "offset 2"});
    expect_refusal(line({"--prompt-file", "-"}), {"--prompt-file", "NUL", "offset 1"},
                   with_input(std::string("a\0", 2)));
    expect_refusal(line({"--prompt-file", folder / "none"}), {folder / "none", "No such file"});
    expect_refusal(line({"--token-ids", ""}), {"--token-ids"});
    expect_refusal(line({"--token-ids", "1,300"}), {"--token-ids", "300", "299"});
    expect_refusal(line({"--prompt", "Hello there", "--context", "5"}),
                   {"13 tokens", "holds 5", "--context"});
    expect_refusal(line({"--prompt", std::string(3000, 'x')}), {"2048"});  // the model's own
    expect_refusal(line({"--prompt", "a", "--context", "4096"}), {"4096", "2048"});
  }
  expect_refusal({"tokenize", model, "--prompt-file", bad}, {"--prompt-file", "offset 3"});
  const std::string ids = folder / "ids";
  write_file(ids, "[1,[[2");
  expect_refusal({"tokenize", model, "--decode", "--prompt-file", ids}, {"--prompt-file " + ids, "'[1'"});
  EXPECT_EQ(files(), (std::vector<std::string>{"bad", "empty", "ids", "m.gguf", "nul"}));
}

/// Byte-level vocabularies may lack bytes: those are left out of a text, and here nothing is left.
TEST_F(Guard, PromptsOfNoToken) {
  gguf::Writer writer;
  writer.add_string("tokenizer.ggml.model", "gpt2");
  writer.add_string("tokenizer.ggml.pre", "gpt-2");
  writer.add_strings("tokenizer.ggml.tokens", {"a", "b", "ab"});
  writer.add_strings("tokenizer.ggml.merges", {"a b"});
  writer.write(folder / "few.gguf");
  const Outcome made = greta_run({"synth", "-o", folder / "m.gguf", "--dim", "64", "--layers", "1",
                                  "--tokenizer-from", folder / "few.gguf"});
  ASSERT_EQ(made.status, 0) << made.err;
  const std::string file = folder / "text";
  write_file(file, "\x04\x04");
  const std::string why = "expected at least 1, and the vocabulary has none for this text";
  for (const char* command : {"run", "trace"}) {
    std::vector<std::string> line = {command, model, "--prompt", "\x04"};
    if (command == std::string("trace")) line.insert(line.end(), {"-o", folder / "t"});
    expect_refusal(line, {"--prompt: the prompt is empty, 0 tokens of 1 bytes", why});
    line[2] = "--prompt-file", line[3] = file;
    expect_refusal(line, {"--prompt-file " + file + ": the prompt is empty, 0 tokens of 2 bytes", why});
  }
  EXPECT_EQ(files(), (std::vector<std::string>{"few.gguf", "m.gguf", "text"}));
}

TEST_F(Guard, DevicesAndPins) {
  expect_refusal({"run", model, "--prompt", "a", "--device", "cuda:0"}, {"cuda:0"});
  expect_refusal({"check", model, "--device", "tpu"}, {"tpu"});
  expect_refusal({"check", model, "--expect", "colour=red"}, {"colour"});
  expect_refusal({"run", model, "--prompt", "a", "--device", "reference", "--kv-type", "bf16"},
                 {"--kv-type bf16"});
  expect_refusal({"run", model, "--prompt", "a", "--expect", "dim=1,layers=9"}, {"dim", "64", "layers", "9"});
  expect_refusal({"run", model, "--prompt", "a", "--tokenizer", folder / "none"}, {folder / "none"});
}

TEST_F(Guard, PinsThatAreEmptyAreNoPins) {
  for (const char* command : {"run", "check", "bench", "trace", "bisect", "verify"}) {
    std::vector<std::string> arguments = {command, model, "--expect", ""};
    if (command == std::string("run")) arguments.insert(arguments.end(), {"--prompt", "a"});
    if (command == std::string("trace"))
      arguments.insert(arguments.end(), {"--prompt", "a", "-o", folder / "t"});
    expect_refusal(arguments, {"--expect", "expected PINS", "empty", "leave the option out"});
  }
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

TEST_F(Guard, BisectHoldsToThePins) {
  expect_refusal({"bisect", model, "-o", folder / "report", "--expect", "dim=1,layers=2,vocab=9"},
                 {"2 mismatches", "--expect dim: expected 1, got 64", "--expect vocab: expected 9, got 300"});
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

TEST_F(Guard, AnOutputThatIsAnInput) {
  const std::string vocabulary = folder / "v.gguf";
  std::filesystem::copy_file(model, vocabulary);
  std::filesystem::create_symlink("m.gguf", folder / "link.gguf");
  std::filesystem::create_hard_link(model, folder / "hard.gguf");
  write_file(folder / "prompt", "Hi");
  const std::string before = read_file(model);
  for (const char* other : {"m.gguf", "./m.gguf", "link.gguf", "hard.gguf"})
    expect_refusal({"trace", model, "--prompt", "Hi", "-o", folder / other},
                   {folder / other, "it is the input", "-o names another file"});
  expect_refusal({"trace", folder / "link.gguf", "--prompt", "Hi", "-o", model}, {"it is the input"});
  expect_refusal({"trace", model, "--prompt-file", folder / "prompt", "-o", folder / "prompt"},
                 {"it is the input"});
  expect_refusal({"trace", model, "--prompt", "Hi", "--tokenizer", vocabulary, "-o", vocabulary},
                 {"it is the input"});
  expect_refusal({"synth", "--tokenizer-from", vocabulary, "-o", vocabulary}, {"it is the input"});
  EXPECT_EQ(read_file(model), before);
  EXPECT_EQ(read_file(vocabulary), before);
  EXPECT_EQ(read_file(folder / "prompt"), "Hi");
  EXPECT_EQ(files(), (std::vector<std::string>{"hard.gguf", "link.gguf", "m.gguf", "prompt", "v.gguf"}));
}

TEST_F(Guard, WhatIsWrongIsSaidBeforeTheWork) {
  expect_refusal({"trace", model, "--prompt", "Hi", "-o", "/proc/t"}, {"cannot write /proc/t"});
  for (const auto& arguments :
       {std::vector<std::string>{"trace", model, "--prompt", "Hi", "--positions", "9", "-o", folder / "t"},
        {"trace", model, "--prompt", "Hi", "-o", "/proc/t"},
        {"bench", model, folder / "none.gguf", "--pp", "1", "--tg", "0"}}) {
    const Outcome outcome = greta_run(arguments);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;  // no model was loaded
  }
}

/// Here by the limit of a file's size, so that no disk has to be full.
TEST_F(Guard, AModelThatTheDiskCannotHold) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 1 << 20;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_refusal({"synth", "-o", folder / "big.gguf"}, {folder / "big.gguf", " bytes are needed", "1048576"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

TEST_F(Guard, StringsOfTheFileDoNotSpeakToTheTerminal) {
  const std::string evil = "\x1b]0;title\x07\x1b[31m\r\nred";
  const gguf::File file = gguf::File::open(model);
  gguf::Writer writer;
  for (const auto& [key, value] : file.metadata())
    if (key != "general.name") writer.add_value(key, value);
  writer.add_string("general.name", evil);
  writer.add_string("general.description", evil + "\xff");
  for (const gguf::Tensor& tensor : file.tensors())
    writer.add_tensor(tensor.name, tensor.shape, tensor.type,
                      [bytes = tensor.bytes](const gguf::Writer::Sink& sink) { sink(bytes); });
  const std::string path = folder / "evil.gguf";
  writer.write(path);
  const std::vector<std::vector<std::string>> lines = {
      {"check", path},
      {"check", path, "--expect", "dim=1"},
      {"inspect", path},
      {"inspect", path, "--metadata", "--tensors"},
      {"run", path, "--token-ids", "1", "--max-tokens", "0", "--verbose"},
      {"trace", path, "--prompt", "a", "-o", folder / "t"},
      {"bench", path, "--pp", "1", "--tg", "0", "--repeat", "1"},
      {"verify", path, "--rows", "phase"},
      {"bisect", path, "--max-tokens", "1", "-o", folder / "report"}};
  for (const auto& arguments : lines) {
    const Outcome outcome = greta_run(arguments);
    EXPECT_LT(outcome.status, 2) << outcome.err;
    for (const char c : {'\x1b', '\x07', '\r', '\xff'})
      EXPECT_EQ((outcome.out + outcome.err).find(c), std::string::npos)
          << arguments[0] << ": " << static_cast<int>(c) << " in " << outcome.out << outcome.err;
  }
}

/// TinyLlama-1.1B by its metadata and its tensors' shapes; the weights are one block over and over.
std::string write_tinyllama(const std::string& path) {
  const uint64_t kDim = 2048, kFfn = 5632, kKv = 256, kVocab = 32000, kLayers = 22;
  gguf::Writer writer;
  writer.add_string("general.architecture", "llama");
  writer.add_string("general.name", "TinyLlama shapes");
  writer.add_u32("llama.context_length", 2048);
  writer.add_u32("llama.embedding_length", kDim);
  writer.add_u32("llama.block_count", kLayers);
  writer.add_u32("llama.feed_forward_length", kFfn);
  writer.add_u32("llama.rope.dimension_count", 64);
  writer.add_u32("llama.attention.head_count", 32);
  writer.add_u32("llama.attention.head_count_kv", 4);
  writer.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(fmt::format("<0x{:02X}>", byte));
    types.push_back(6);
  }
  while (tokens.size() < kVocab) {
    tokens.push_back(fmt::format("word{}", tokens.size()));
    types.push_back(1);
  }
  writer.add_string("tokenizer.ggml.model", "llama");
  writer.add_strings("tokenizer.ggml.tokens", tokens);
  writer.add_f32s("tokenizer.ggml.scores", std::vector<float>(kVocab, -1.0F));
  writer.add_i32s("tokenizer.ggml.token_type", types);
  writer.add_u32("tokenizer.ggml.bos_token_id", 1);
  writer.add_u32("tokenizer.ggml.eos_token_id", 2);

  std::vector<float> row(256);
  for (size_t i = 0; i < row.size(); ++i) row[i] = 0.02F * static_cast<float>((i * 37) % 21) - 0.2F;
  std::vector<std::byte> block(*quant::bytes_for(quant::Type::Q2_K, 256));
  quant::quantize(quant::Type::Q2_K, row.data(), 256, block.data());
  const auto matrix = [&](const std::string& name, uint64_t cols, uint64_t rows) {
    writer.add_tensor(name, {cols, rows}, quant::Type::Q2_K,
                      [block, cols, rows](const gguf::Writer::Sink& sink) {
                        std::vector<std::byte> bytes;
                        for (uint64_t i = 0; i < cols / 256; ++i)
                          bytes.insert(bytes.end(), block.begin(), block.end());
                        for (uint64_t i = 0; i < rows; ++i) sink(bytes);
                      });
  };
  const auto norm = [&](const std::string& name) {
    writer.add_tensor(name, {kDim}, quant::Type::F32, [kDim](const gguf::Writer::Sink& sink) {
      const std::vector<float> ones(kDim, 1.0F);
      sink(std::as_bytes(std::span(ones)));
    });
  };
  matrix("token_embd.weight", kDim, kVocab);
  for (uint64_t layer = 0; layer < kLayers; ++layer) {
    const std::string blk = fmt::format("blk.{}.", layer);
    norm(blk + "attn_norm.weight");
    matrix(blk + "attn_q.weight", kDim, kDim);
    matrix(blk + "attn_k.weight", kDim, kKv);
    matrix(blk + "attn_v.weight", kDim, kKv);
    matrix(blk + "attn_output.weight", kDim, kDim);
    norm(blk + "ffn_norm.weight");
    matrix(blk + "ffn_gate.weight", kDim, kFfn);
    matrix(blk + "ffn_up.weight", kDim, kFfn);
    matrix(blk + "ffn_down.weight", kFfn, kDim);
  }
  norm("output_norm.weight");
  matrix("output.weight", kDim, kVocab);
  writer.write(path);
  return path;
}

TEST(TheFirstCase, ATinyLlamaIsNoLlama7B) {
  const TemporaryFolder folder;
  const std::string file = write_tinyllama(folder / "tiny.gguf");
  const std::string real = std::filesystem::canonical(file).string();
  const std::string link = folder / "llama-2-7b.gguf";
  std::filesystem::create_symlink("tiny.gguf", link);
  const std::string pins = "dim=4096,layers=32,ffn_dim=11008,heads=32";

  for (const auto& [arguments, status] :
       {std::pair(std::vector<std::string>{"check", link, "--expect", pins}, 1),
        std::pair(std::vector<std::string>{"run", link, "--expect", pins, "--prompt", "a"}, 2)}) {
    const Outcome outcome = greta_run(arguments);
    EXPECT_EQ(outcome.status, status);
    EXPECT_EQ(outcome.out, "");
    const auto lines = lines_of(outcome.err);
    ASSERT_GE(lines.size(), 4u) << outcome.err;
    EXPECT_NE(lines[0].find(real), std::string::npos) << lines[0];
    EXPECT_NE(lines[0].find("3 mismatches"), std::string::npos) << lines[0];
    const auto names = [&](const char* field, const char* expected, const char* got) {
      for (const std::string& line : lines)
        if (line.find(field) != std::string::npos && line.find(expected) != std::string::npos &&
            line.find(got) != std::string::npos)
          return true;
      return false;
    };
    EXPECT_TRUE(names("dim:", "4096", "2048")) << outcome.err;
    EXPECT_TRUE(names("layers:", "32", "22")) << outcome.err;
    EXPECT_TRUE(names("ffn_dim:", "11008", "5632")) << outcome.err;
    EXPECT_FALSE(names("heads:", "32", "32")) << outcome.err;
    EXPECT_EQ(outcome.err.find("loaded"), std::string::npos);
  }

  EXPECT_EQ(
      greta_run({"check", link, "--expect", "dim=2048,layers=22,ffn_dim=5632,heads=32,kv_heads=4"}).status,
      0);
  const Outcome ran =
      greta_run({"run", link, "--prompt", "a", "--max-tokens", "2", "--greedy", "--ignore-eos"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(hash_in(ran.err).size(), 16u);
}

}  // namespace
}  // namespace greta::test
