#include "synth/synth.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "gguf/gguf.h"
#include "model/hparams.h"
#include "synth/random.h"
#include "temporary_folder.h"

namespace greta {
namespace {

namespace fs = std::filesystem;
using quant::Type;

class Synth : public testing::Test {
 protected:
  gguf::File make(const SynthOptions& options, int threads = 2) {
    synthesise(options, path_, threads);
    return gguf::File::open(path_);
  }

  std::string bytes_of(const SynthOptions& options, int threads) {
    synthesise(options, path_, threads);
    return read_whole_file(path_);
  }

  /// Headline and details of what the options are refused with.
  std::string error_of(const SynthOptions& options) {
    try {
      synthesise(options, path_, 1);
    } catch (const Error& error) {
      std::string text = error.what();
      for (const std::string& line : error.details()) text += "\n" + line;
      return text;
    }
    return "no error";
  }

  const test::TemporaryFolder folder_;
  std::string path_ = folder_ / "model.gguf";
};

std::vector<float> values_of(const gguf::File& file, const std::string& name) {
  const gguf::Tensor* t = file.find_tensor(name);
  if (t == nullptr) fail("no tensor {}", name);
  std::vector<float> values(t->elements());
  quant::dequantize(t->type, t->bytes.data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

double spread_of(const std::vector<float>& values) {
  double sum = 0;
  double squares = 0;
  for (const float v : values) {
    sum += v;
    squares += double{v} * v;
  }
  const auto n = static_cast<double>(values.size());
  return std::sqrt(squares / n - sum / n * (sum / n));
}

uint64_t number(const gguf::File& file, const std::string& key) {
  const gguf::Value* value = file.find(key);
  if (value == nullptr) fail("no key {}", key);
  return std::get<uint64_t>(value->data);
}

const gguf::Array& array(const gguf::File& file, const std::string& key) {
  const gguf::Value* value = file.find(key);
  if (value == nullptr) fail("no key {}", key);
  return std::get<gguf::Array>(value->data);
}

TEST_F(Synth, SameSeedSameBytesAtAnyThreadCount) {
  for (const Type type : {Type::Q4_K, Type::Q3_K, Type::Q8_0, Type::F16}) {
    SynthOptions options;
    options.type = type;
    options.dim = 512;
    options.layers = 1;
    options.vocab = 3001;  // the embedding is then no whole number of pieces
    const std::string one = bytes_of(options, 1);
    EXPECT_TRUE(bytes_of(options, 2) == one);
    EXPECT_TRUE(bytes_of(options, 5) == one);
    options.seed = 2;
    EXPECT_FALSE(bytes_of(options, 2) == one);
  }
}

TEST_F(Synth, TheBytesAreThose) {
  // Pinned: a change of the generator, the quantiser or the metadata changes models that others have made and
  // named.
  SynthOptions options;
  options.type = Type::Q4_K;
  EXPECT_EQ(make(options).sha256(), "1d525b3723ed1fa041aa0843c130787d47f80716f1fccfb6c55a3e65c9b18f86");
  SynthOptions more;
  more.tied = more.bias = true;
  more.kv_heads = 2;
  EXPECT_EQ(make(more).sha256(), "62e057db852322c452e01fb1dc7c5d2db0e75eb31a7273ad3f22d2312746c03f");
}

TEST_F(Synth, EveryTypeHasTheSameShape) {
  for (const quant::Traits& t : quant::all_types()) {
    SynthOptions options;
    options.type = t.type;
    options.kv_heads = 2;
    const gguf::File file = make(options);
    ASSERT_EQ(file.tensors().size(), 3u + 2 * 9);
    for (const gguf::Tensor& tensor : file.tensors())
      EXPECT_EQ(tensor.type, tensor.shape.size() == 1 ? Type::F32 : t.type) << tensor.name;
    EXPECT_EQ(file.find_tensor("token_embd.weight")->shape, (std::vector<uint64_t>{256, 1024}));
    EXPECT_EQ(file.find_tensor("blk.1.attn_k.weight")->shape, (std::vector<uint64_t>{256, 128}));
    EXPECT_EQ(file.find_tensor("blk.1.ffn_down.weight")->shape, (std::vector<uint64_t>{768, 256}));
    EXPECT_EQ(file.find_tensor("output.weight")->shape, (std::vector<uint64_t>{256, 1024}));
    EXPECT_EQ(file.find("general.quantization_version") != nullptr, t.block > 1);
  }
}

/// Bytes of a block that are f16 numbers, not codes.
std::set<size_t> halves(Type type) {
  switch (type) {
    case Type::Q4_0:
    case Type::Q5_0:
    case Type::Q8_0:
      return {0, 1};
    case Type::Q4_1:
    case Type::Q5_1:
    case Type::Q4_K:
    case Type::Q5_K:
      return {0, 1, 2, 3};
    case Type::Q2_K:
      return {80, 81, 82, 83};
    case Type::Q3_K:
      return {108, 109};
    case Type::Q6_K:
      return {208, 209};
    default:
      return {};
  }
}

TEST_F(Synth, EveryBitOfEveryCodeIsExercised) {
  for (const quant::Traits& t : quant::all_types()) {
    if (t.block == 1) continue;
    SynthOptions options;
    options.type = t.type;
    options.dim = 512;
    options.layers = 1;
    const gguf::File file = make(options);
    for (const char* name : {"token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"}) {
      const auto bytes = file.find_tensor(name)->bytes;
      const auto size = static_cast<size_t>(t.bytes);
      std::vector<uint8_t> set(size, 0);
      std::vector<uint8_t> clear(size, 0);
      for (size_t i = 0; i < bytes.size(); ++i) {
        set[i % size] |= std::to_integer<uint8_t>(bytes[i]);
        clear[i % size] |= static_cast<uint8_t>(~std::to_integer<uint8_t>(bytes[i]));
      }
      for (size_t i = 0; i < size; ++i)
        if (!halves(t.type).contains(i)) {
          EXPECT_EQ(set[i] & clear[i], 255) << t.name << " " << name << ", byte " << i;
        }
    }
  }
}

TEST_F(Synth, SpreadsAreThoseOfTheComment) {
  SynthOptions options;
  options.dim = 512;
  options.layers = 1;
  options.vocab = 2000;
  const gguf::File file = make(options);
  const auto expect = [&](const char* name, double spread) {
    const double got = spread_of(values_of(file, name));
    EXPECT_FALSE(!(std::fabs(got / spread - 1) <= 0.02)) << name << ": " << got << ", expected " << spread;
  };
  const double k = 1 / std::sqrt(512.0);
  expect("token_embd.weight", 1.0);
  expect("blk.0.attn_q.weight", 1.4 * k);
  expect("blk.0.attn_v.weight", k);
  expect("blk.0.attn_output.weight", 1.5 * k);
  expect("blk.0.ffn_up.weight", k);
  expect("blk.0.ffn_down.weight", 1.5 / std::sqrt(1536.0));
  for (const char* name : {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"}) {
    const std::vector<float> norm = values_of(file, name);
    for (const float v : norm) ASSERT_TRUE(v >= 0.5F && v <= 1.5F && v != 1.0F) << name;
    EXPECT_GT(spread_of(norm), 0.25) << name;
  }
}

TEST_F(Synth, NoRowOccursTwice) {
  SynthOptions options;
  options.layers = 1;
  options.vocab = 20000;  // 5 M elements: made in several rounds of pieces
  const gguf::File file = make(options);
  std::set<std::string_view> rows;
  size_t count = 0;
  for (const gguf::Tensor& t : file.tensors()) {
    if (t.shape.size() == 1) continue;
    const size_t row = t.bytes.size() / t.shape[1];
    for (size_t at = 0; at < t.bytes.size(); at += row, ++count)
      rows.emplace(reinterpret_cast<const char*>(t.bytes.data()) + at, std::min<size_t>(row, 200));
  }
  EXPECT_EQ(rows.size(), count);
}

TEST_F(Synth, LogitsSpreadBetweenOneAndTen) {
  // After the last norm every row is of magnitude 1 times the norm's weights, whatever the layers did: any
  // such row gives the logits' spread.
  for (const bool tied : {false, true})
    for (const Type type : {Type::Q2_K, Type::Q4_K, Type::Q8_0, Type::BF16})
      for (const uint64_t dim : {256, 1024}) {
        SynthOptions options;
        options.type = type;
        options.tied = tied;
        options.dim = dim;
        options.layers = 1;
        const gguf::File file = make(options);
        const std::vector<float> norm = values_of(file, "output_norm.weight");
        const std::vector<float> head = values_of(file, tied ? "token_embd.weight" : "output.weight");
        std::vector<float> logits;
        for (size_t row = 0; row < head.size() / dim; ++row) {
          double sum = 0;
          for (size_t i = 0; i < dim; ++i)
            sum += double{head[row * dim + i]} * norm[i] * synth::normal_of(synth::bits_at(99, i));
          logits.push_back(static_cast<float>(sum));
        }
        const double spread = spread_of(logits);
        EXPECT_TRUE(spread > 2.4 && spread < 3.7) << "spread " << spread << " at dim " << dim;
      }
}

TEST_F(Synth, OptionsShowInTheFile) {
  SynthOptions options;
  options.tied = true;
  options.bias = true;
  options.heads = 3;
  options.kv_heads = 1;
  options.head_dim = 64;  // 192, unlike dim
  options.ffn_dim = 320;
  options.layers = 3;
  options.vocab = 260;
  options.context = 777;
  options.rope_base = 5e5F;
  const gguf::File file = make(options);
  EXPECT_EQ(file.find_tensor("output.weight"), nullptr);
  EXPECT_EQ(file.find_tensor("blk.2.attn_q.bias")->shape, std::vector<uint64_t>{192});
  EXPECT_EQ(file.find_tensor("blk.2.attn_k.bias")->shape, std::vector<uint64_t>{64});
  EXPECT_EQ(file.find_tensor("blk.2.attn_v.bias")->shape, std::vector<uint64_t>{64});
  EXPECT_EQ(file.find_tensor("blk.2.attn_output.bias")->shape, std::vector<uint64_t>{256});
  EXPECT_EQ(file.find_tensor("blk.2.attn_output.weight")->shape, (std::vector<uint64_t>{192, 256}));
  EXPECT_EQ(number(file, "llama.attention.key_length"), 64u);
  EXPECT_EQ(number(file, "llama.attention.value_length"), 64u);
  EXPECT_EQ(number(file, "llama.rope.dimension_count"), 64u);
  EXPECT_EQ(number(file, "llama.attention.head_count"), 3u);
  EXPECT_EQ(number(file, "llama.attention.head_count_kv"), 1u);
  EXPECT_EQ(number(file, "llama.embedding_length"), 256u);
  EXPECT_EQ(number(file, "llama.block_count"), 3u);
  EXPECT_EQ(number(file, "llama.feed_forward_length"), 320u);
  EXPECT_EQ(number(file, "llama.context_length"), 777u);
  EXPECT_EQ(number(file, "llama.vocab_size"), 260u);
  EXPECT_EQ(std::get<double>(file.find("llama.rope.freq_base")->data), 5e5);
  EXPECT_EQ(file.find("llama.rope.scaling.type"), nullptr);
  // An option that adds tensors leaves the others as they were.
  const std::vector<float> with_bias = values_of(file, "blk.1.ffn_up.weight");
  options.bias = false;
  options.tied = false;
  EXPECT_EQ(values_of(make(options), "blk.1.ffn_up.weight"), with_bias);
}

TEST_F(Synth, RopeScaling) {
  SynthOptions options;
  options.rope_scaling = "yarn:4:4096";
  const gguf::File yarn = make(options);
  EXPECT_EQ(std::get<std::string_view>(yarn.find("llama.rope.scaling.type")->data), "yarn");
  EXPECT_EQ(std::get<double>(yarn.find("llama.rope.scaling.factor")->data), 4.0);
  EXPECT_EQ(number(yarn, "llama.rope.scaling.original_context_length"), 4096u);
  options.rope_scaling = "linear:2.5";
  const gguf::File linear = make(options);
  EXPECT_EQ(std::get<std::string_view>(linear.find("llama.rope.scaling.type")->data), "linear");
  EXPECT_EQ(std::get<double>(linear.find("llama.rope.scaling.factor")->data), 2.5);
  EXPECT_EQ(linear.find("llama.rope.scaling.original_context_length"), nullptr);
  options.rope_scaling = "linear:2:4096";  // the context follows from it, and the reader has no word to say
  const gguf::File stretched = make(options);
  EXPECT_EQ(stretched.find("llama.rope.scaling.original_context_length"), nullptr);
  EXPECT_EQ(number(stretched, "llama.context_length"), 8192u);
  EXPECT_EQ(read_hparams(stretched).warnings, std::vector<std::string>());
  options.rope_scaling = "llama3:8:8192";
  options.head_dim = 128;
  options.rope_base = 5e5F;
  const gguf::File llama3 = make(options);
  EXPECT_EQ(llama3.find("llama.rope.scaling.type"), nullptr);
  ASSERT_EQ(llama3.find_tensor("rope_freqs.weight")->shape, std::vector<uint64_t>{64});
  // Llama 3.1's own numbers, head size 128, base 500000.
  const std::vector<float> divisors = values_of(llama3, "rope_freqs.weight");
  for (size_t i = 0; i < 29; ++i) EXPECT_EQ(divisors[i], 1.0F) << i;
  const double wavelength = 2 * M_PI * std::pow(5e5, 2.0 * 30 / 128);
  const double blend = (8192 / wavelength - 1) / 3;
  EXPECT_NEAR(divisors[30], 1 / ((1 - blend) / 8 + blend), 1e-5);
  for (size_t i = 1; i < 64; ++i) EXPECT_GE(divisors[i], divisors[i - 1]);
  for (size_t i = 36; i < 64; ++i) EXPECT_EQ(divisors[i], 8.0F) << i;
}

/// Every shape that is written opens: at the ends of the ranges, and where one number follows from others.
TEST_F(Synth, WhatIsWrittenIsRead) {
  const auto fits = [&](auto change) {
    SynthOptions options;
    options.dim = 64;
    options.layers = 1;
    change(options);
    const gguf::File file = make(options);
    for (const Problem& problem : read_hparams(file).problems) ADD_FAILURE() << problem.text();
    return static_cast<uint64_t>(read_hparams(file).hp.context);
  };
  EXPECT_EQ(fits([](auto&) {}), 2048u);
  EXPECT_EQ(fits([](auto& o) { o.rope_scaling = "yarn:4:4096"; }), 16384u);
  EXPECT_EQ(fits([](auto& o) { o.rope_scaling = "yarn:65536:1073741824"; }), 1u << 30);
  EXPECT_EQ(fits([](auto& o) { o.rope_scaling = "yarn:2:64"; }), 2048u);
  EXPECT_EQ(fits([](auto& o) { o.rope_scaling = "yarn:4:4096", o.context = 4096; }), 4096u);
  EXPECT_EQ(fits([](auto& o) { o.rope_scaling = "llama3:8:8192"; }), 65536u);
  fits([](auto& o) { o.rope_scaling = "linear:65536"; });
  fits([](auto& o) { o.context = 1u << 30; });
  fits([](auto& o) { o.layers = 4096, o.dim = o.ffn_dim = 32; });
  fits([](auto& o) { o.heads = o.kv_heads = 1u << 14, o.head_dim = 2; });
  fits([](auto& o) { o.heads = 1, o.head_dim = 1u << 13; });
  fits([](auto& o) { o.rope_base = 1e15F; });
}

TEST_F(Synth, MadeUpVocabulary) {
  for (const uint64_t size : {260, 300, 1024, 5000, 40000}) {
    SynthOptions options;
    options.vocab = size;
    options.layers = 1;
    const gguf::File file = make(options);
    const gguf::Array& tokens = array(file, "tokenizer.ggml.tokens");
    const gguf::Array& scores = array(file, "tokenizer.ggml.scores");
    const gguf::Array& types = array(file, "tokenizer.ggml.token_type");
    ASSERT_EQ(tokens.strings.size(), size);
    ASSERT_EQ(scores.count, size);
    ASSERT_EQ(types.count, size);
    const std::set<std::string_view> all(tokens.strings.begin(), tokens.strings.end());
    EXPECT_EQ(all.size(), size) << "a piece occurs twice";
    EXPECT_EQ(tokens.strings[1], "<s>");
    EXPECT_EQ(tokens.strings[3 + 0xAB], "<0xAB>");
    EXPECT_EQ(tokens.strings[259], "\xe2\x96\x81");
    for (uint64_t i = 0; i < size; ++i) {
      EXPECT_EQ(gguf::array_integer(types, i), i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1) << i;
      if (i > 259) {
        EXPECT_LT(gguf::array_number(scores, i), gguf::array_number(scores, i - 1));
      }
      if (i < 259 + 1 + 94) continue;
      const std::string_view piece =
          tokens.strings[i];  // merging reaches it: all but its last letter is a piece
      EXPECT_TRUE(all.contains(piece.substr(0, piece.size() - 1))) << piece;
    }
    EXPECT_EQ(number(file, "tokenizer.ggml.bos_token_id"), 1u);
    EXPECT_EQ(number(file, "tokenizer.ggml.eos_token_id"), 2u);
  }
}

TEST_F(Synth, TokenizerFromAnotherFile) {
  const std::string source = folder_ / "source.gguf";
  SynthOptions first;
  first.vocab = 333;
  synthesise(first, source, 1);
  SynthOptions options;
  options.tokenizer_from = source;
  options.layers = 1;
  const gguf::File file = make(options);
  EXPECT_EQ(file.find_tensor("token_embd.weight")->shape[1], 333u);
  EXPECT_EQ(number(file, "llama.vocab_size"), 333u);
  const gguf::File original = gguf::File::open(source);
  size_t keys = 0;
  for (const auto& [key, value] : original.metadata()) keys += key.starts_with("tokenizer.");
  size_t copied = 0;
  for (const auto& [key, value] : file.metadata()) copied += key.starts_with("tokenizer.");
  EXPECT_EQ(copied, keys);
  EXPECT_EQ(array(file, "tokenizer.ggml.tokens").strings, array(original, "tokenizer.ggml.tokens").strings);
  options.vocab = 400;
  EXPECT_NE(error_of(options).find("--vocab: expected 333"), std::string::npos) << error_of(options);
  options.vocab = 0;
  options.tokenizer_from =
      fmt::format("{}/tests/golden/gguf/vocab.gguf", GRETA_SOURCE_DIR);  // no tokenizer in it
  EXPECT_NE(error_of(options).find("tokenizer.ggml.tokens: expected"), std::string::npos)
      << error_of(options);
  options.tokenizer_from = folder_ / "none.gguf";
  EXPECT_NE(error_of(options).find("No such file"), std::string::npos);
}

/// What the engine would refuse as a model's tokenizer is refused before it is copied.
TEST_F(Synth, TokenizersThatNobodyCouldUse) {
  const std::string source = folder_ / "source.gguf";
  const auto refused = [&](auto add, const std::string& part) {
    gguf::Writer writer;
    add(writer);
    writer.write(source);
    SynthOptions options;
    options.layers = 1;
    options.tokenizer_from = source;
    const std::string text = error_of(options);
    EXPECT_EQ(text.rfind("--tokenizer-from ", 0), 0u) << text;
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' not in: " << text;
    EXPECT_EQ(folder_.entries(), 1u);
  };
  const auto add = [](gguf::Writer& w, const char* model, const std::vector<std::string>& tokens) {
    if (model != nullptr) w.add_string("tokenizer.ggml.model", model);
    w.add_string("tokenizer.ggml.pre", "gpt-2");
    w.add_strings("tokenizer.ggml.tokens", tokens);
    w.add_strings("tokenizer.ggml.merges", {});
  };
  refused([&](auto& w) { add(w, "gpt2", {}); }, "tokenizer.ggml.tokens");
  refused([&](auto& w) { add(w, "bert", {"a", "b"}); }, "tokenizer.ggml.model: expected llama");
  refused([&](auto& w) { add(w, nullptr, {"a", "b"}); }, "tokenizer.ggml.model: expected llama");
  refused(
      [&](auto& w) {
        add(w, "gpt2", {"a", "b"}), w.add_i32s("tokenizer.ggml.token_type", {1});
      },
      "tokenizer.ggml.token_type");
  refused(
      [&](auto& w) {
        add(w, "gpt2", {"a", "b"}), w.add_u32("tokenizer.ggml.bos_token_id", 2);
      },
      "tokenizer.ggml.bos_token_id");
}

TEST_F(Synth, RefusesWithTheWayOut) {
  const auto refused = [&](auto change, const std::vector<std::string>& parts) {
    SynthOptions options;
    change(options);
    const std::string text = error_of(options);
    for (const std::string& part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' not in: " << text;
    EXPECT_EQ(folder_.entries(), 0u);
  };
  refused([](auto& o) { o.arch = "gpt2"; }, {"--arch", "expected llama", "got gpt2"});
  refused([](auto& o) { o.window = 512; }, {"--window", "got 512"});
  refused([](auto& o) { o.vocab = 259; }, {"--vocab", "260", "got 259"});
  refused([](auto& o) { o.dim = 0; }, {"--dim", "got 0"});
  refused([](auto& o) { o.layers = 0; }, {"--layers", "got 0"});
  refused([](auto& o) { o.context = 0; }, {"--context", "got 0"});
  // What the reader of files would not take.
  refused([](auto& o) { o.context = 2000000000; }, {"--context: expected 1 to 1073741824, got 2000000000"});
  refused([](auto& o) { o.dim = 1u << 21; }, {"--dim: expected 1 to 1048576, got 2097152"});
  refused([](auto& o) { o.layers = 5000; }, {"--layers: expected 1 to 4096, got 5000"});
  refused([](auto& o) { o.heads = 1u << 15; }, {"--heads: expected 1 to 16384, got 32768"});
  refused([](auto& o) { o.head_dim = 1u << 14; }, {"--head-dim: expected 2 to 8192, got 16384"});
  refused([](auto& o) { o.dim = 1u << 15, o.heads = 1; },
          {"--dim over --heads: expected 2 to 8192, got 32768"});
  refused([](auto& o) { o.ffn_dim = 1u << 25; }, {"--ffn-dim: expected 1 to 16777216, got 33554432"});
  refused([](auto& o) { o.rope_base = 1e16F; }, {"--rope-base", "at most 1e+15"});
  refused([](auto& o) { o.rope_scaling = "linear:100000"; },
          {"--rope-scaling: expected a factor of at most 65536, got 100000"});
  refused([](auto& o) { o.rope_scaling = "linear:2:2000000000"; },
          {"--rope-scaling, the original context: expected 1 to 1073741824, got 2000000000"});
  refused(
      [](auto& o) { o.rope_scaling = "yarn:4:4096", o.context = 2048; },
      {"--rope-scaling: expected an original context of at most --context, 2048, got 4096; leave --context "
       "out, or raise it"});
  refused([](auto& o) { o.kv_heads = 3; }, {"--kv-heads", "divisor of --heads 4", "got 3"});
  refused([](auto& o) { o.heads = 3; }, {"--heads", "divisor of --dim 256", "--head-dim"});
  refused([](auto& o) { o.head_dim = 31; }, {"--head-dim", "even", "got 31"});
  refused([](auto& o) { o.rope_base = std::nanf(""); }, {"--rope-base", "got nan"});
  for (const char* text :
       {"yarn", "yarn:4", "yarn:x:4096", "yarn:4:0", "yarn:0.5:4096", "yarn:nan:4096", "llama3:8",
        "ntk:2:4096", "linear:2:4096:1", "linear:", "longrope:4", "longrope:4:1"})
    refused([&](auto& o) { o.rope_scaling = text; },
            {"--rope-scaling", "yarn:4:4096", fmt::format("got {}", text)});
  refused([](auto& o) { o.dim = 320, o.type = Type::Q4_K; },
          {"--dim 320", "multiple of 256", "Q4_K", "256 or 512", "--type q8_0"});
  refused([](auto& o) { o.ffn_dim = 100; }, {"--ffn-dim 100", "multiple of 32", "96 or 128", "--type f16"});
  refused([](auto& o) { o.heads = 3, o.head_dim = 66; }, {"--heads times --head-dim 198", "multiple of 32"});
  // All of them at once.
  refused([](auto& o) { o.arch = "x", o.vocab = 1, o.kv_heads = 3, o.ffn_dim = 1; },
          {"--arch", "--vocab", "--kv-heads", "--ffn-dim 1"});
  SynthOptions options;
  path_ = folder_ / "no/such/folder.gguf";
  EXPECT_NE(error_of(options).find("No such file"), std::string::npos);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(Synth, MemoryDoesNotGrowWithTheModel) {
  const auto peak_kib = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  SynthOptions options;
  options.layers = 1;
  options.dim = 1024;
  options.type = Type::F16;
  options.vocab = 2048;
  synthesise(options, path_, 2);
  const long before = peak_kib();
  options.vocab = 60000;  // 120 MB each of embedding and head
  synthesise(options, path_, 2);
  EXPECT_GT(fs::file_size(path_), 240u << 20);
  EXPECT_LT(peak_kib() - before, 40 << 10) << "KiB";
}
#endif

}  // namespace
}  // namespace greta
