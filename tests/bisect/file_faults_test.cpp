// Edited copies of a model file: exactly the change that was asked for, and the original untouched.
#include "bisect/file_faults.h"

#include <gmock/gmock.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "support.h"

namespace greta {
namespace {

std::string whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// How many values of a tensor, by row, differ between two files.
std::map<size_t, size_t> changed_values(const gguf::Tensor& a, const gguf::Tensor& b) {
  std::vector<float> x(a.elements()), y(a.elements());
  quant::dequantize(a.type, a.bytes.data(), static_cast<int64_t>(x.size()), x.data());
  quant::dequantize(b.type, b.bytes.data(), static_cast<int64_t>(y.size()), y.data());
  std::map<size_t, size_t> rows;
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] != y[i]) ++rows[i / a.shape[0]];
  return rows;
}

class FileFaults : public testing::Test {
 protected:
  FileFaults() : in_(make(quant::Type::Q4_K, "in.gguf")), before_(whole(in_)) {}
  ~FileFaults() override { EXPECT_EQ(whole(in_), before_) << "the original was changed"; }

  std::string make(quant::Type type, const std::string& name) {
    SynthOptions synth;
    synth.layers = 3;
    synth.ffn_dim = 256;
    synth.kv_heads = 2;
    synth.vocab = 300;
    synth.type = type;
    synthesise(synth, folder_ / name, 2);
    return folder_ / name;
  }
  /// The names of tensors whose bytes differ; metadata but for `key` must be the same.
  std::vector<std::string> changed(const std::string& key = "") {
    const auto a = gguf::File::open(in_);
    const auto b = gguf::File::open(out_);
    EXPECT_EQ(a.metadata().size(), b.metadata().size());
    std::vector<std::string> names;
    for (const auto& [name, value] : a.metadata()) {
      const gguf::Value* other = b.find(name);
      if (other == nullptr || other->type != value.type) {
        ADD_FAILURE() << name;
      } else if (const auto* number = std::get_if<double>(&value.data); number != nullptr && name != key) {
        EXPECT_EQ(*number, std::get<double>(other->data)) << name;
      }
    }
    EXPECT_GT(a.tensors().size(), 20u);
    for (const auto& tensor : a.tensors()) {
      const auto* other = b.find_tensor(tensor.name);
      if (other == nullptr || !std::ranges::equal(tensor.bytes, other->bytes)) names.push_back(tensor.name);
    }
    return names;
  }
  template <class Edit>
  std::string error_of(const Edit& edit) {
    try {
      edit();
    } catch (const Error& error) {
      EXPECT_FALSE(std::filesystem::exists(out_)) << "a copy was left";
      return error.what();
    }
    return "none";
  }

  test::TemporaryFolder folder_;
  std::string in_;
  std::string before_;
  std::string out_ = folder_ / "out.gguf";
};

TEST_F(FileFaults, SwapsTwoRows) {
  const auto what = swap_rows_in_file(in_, out_, "blk.1.attn_k.weight", 3, 100);
  EXPECT_EQ(what, "rows 3 and 100 of tensor blk.1.attn_k.weight ([256, 128], Q4_K) were exchanged");
  EXPECT_THAT(changed(), testing::ElementsAre("blk.1.attn_k.weight"));
  const auto a = gguf::File::open(in_);
  const auto b = gguf::File::open(out_);
  const auto& old = *a.find_tensor("blk.1.attn_k.weight");
  const auto& now = *b.find_tensor("blk.1.attn_k.weight");
  EXPECT_THAT(changed_values(old, now), testing::SizeIs(2));
  EXPECT_TRUE(std::ranges::equal(old.bytes.subspan(3 * 144, 144), now.bytes.subspan(100 * 144, 144)));
  EXPECT_TRUE(std::ranges::equal(old.bytes.subspan(100 * 144, 144), now.bytes.subspan(3 * 144, 144)));
}

TEST_F(FileFaults, SwapsTwoTensors) {
  swap_tensors_in_file(in_, out_, "blk.0.ffn_up.weight", "blk.2.ffn_gate.weight");
  EXPECT_THAT(changed(), testing::UnorderedElementsAre("blk.0.ffn_up.weight", "blk.2.ffn_gate.weight"));
  const auto a = gguf::File::open(in_);
  const auto b = gguf::File::open(out_);
  EXPECT_TRUE(std::ranges::equal(a.find_tensor("blk.0.ffn_up.weight")->bytes,
                                 b.find_tensor("blk.2.ffn_gate.weight")->bytes));
  EXPECT_TRUE(std::ranges::equal(b.find_tensor("blk.0.ffn_up.weight")->bytes,
                                 a.find_tensor("blk.2.ffn_gate.weight")->bytes));
}

TEST_F(FileFaults, ChangesOneBlockOfEveryType) {
  for (const auto& t : quant::all_types()) {
    const auto in = make(t.type, "typed.gguf");
    const auto what = change_block_in_file(in, out_, "blk.1.attn_q.weight", 5);
    SCOPED_TRACE(what);
    const auto a = gguf::File::open(in);
    const auto b = gguf::File::open(out_);
    const auto rows =
        changed_values(*a.find_tensor("blk.1.attn_q.weight"), *b.find_tensor("blk.1.attn_q.weight"));
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows.begin()->first, static_cast<size_t>(5 * t.block / 256));
    EXPECT_LE(rows.begin()->second, static_cast<size_t>(t.block));
    EXPECT_GE(rows.begin()->second, static_cast<size_t>(t.block / 2 + t.block % 2));
  }
}

TEST_F(FileFaults, SetsAValue) {
  const std::string key = "llama.attention.layer_norm_rms_epsilon";
  EXPECT_THAT(set_metadata_in_file(in_, out_, key, "0.25"), testing::HasSubstr("is 0.25"));
  EXPECT_THAT(changed(key), testing::IsEmpty());
  EXPECT_EQ(std::get<double>(gguf::File::open(out_).find(key)->data), 0.25);
  set_metadata_in_file(in_, out_, "llama.attention.head_count_kv", "4");
  EXPECT_EQ(std::get<uint64_t>(gguf::File::open(out_).find("llama.attention.head_count_kv")->data), 4u);
  set_metadata_in_file(in_, out_, "general.name", "another");
  EXPECT_EQ(std::get<std::string_view>(gguf::File::open(out_).find("general.name")->data), "another");
}

TEST_F(FileFaults, SaysWhatItCannotDo) {
  using testing::HasSubstr;
  const std::string q = "blk.0.attn_q.weight";
  EXPECT_THAT(error_of([&] { swap_rows_in_file(in_, out_, "nothing", 0, 1); }), HasSubstr("no tensor"));
  EXPECT_THAT(error_of([&] { swap_rows_in_file(in_, out_, q, 0, 256); }), HasSubstr("0 to 255"));
  EXPECT_THAT(error_of([&] { swap_rows_in_file(in_, out_, q, 7, 7); }), HasSubstr("nothing would change"));
  EXPECT_THAT(error_of([&] { swap_tensors_in_file(in_, out_, q, "blk.0.attn_k.weight"); }),
              HasSubstr("one shape and type"));
  EXPECT_THAT(error_of([&] { swap_tensors_in_file(in_, out_, q, q); }), HasSubstr("nothing would change"));
  EXPECT_THAT(error_of([&] { change_block_in_file(in_, out_, q, 256); }), HasSubstr("0 to 255"));
  EXPECT_THAT(error_of([&] { change_block_in_file(in_, out_, q, -1); }), HasSubstr("0 to 255"));
  EXPECT_THAT(error_of([&] { set_metadata_in_file(in_, out_, "llama.block_count", "3"); }),
              HasSubstr("nothing would change"));
  EXPECT_THAT(error_of([&] { set_metadata_in_file(in_, out_, "llama.block_count", "3x"); }),
              HasSubstr("no value of its type"));
  EXPECT_THAT(error_of([&] { set_metadata_in_file(in_, out_, "llama.block_count", "4294967296"); }),
              HasSubstr("at most"));
  EXPECT_THAT(error_of([&] { set_metadata_in_file(in_, out_, "tokenizer.ggml.tokens", "x"); }),
              HasSubstr("array"));
  EXPECT_THAT(error_of([&] { set_metadata_in_file(in_, out_, "no.key", "1"); }), HasSubstr("no metadata"));
  EXPECT_THAT(error_of([&] { swap_rows_in_file(in_, in_, q, 0, 1); }), HasSubstr("replace its original"));
}

/// Every file fault of the catalogue opens as a model and changes its logits.
TEST_F(FileFaults, OfTheCatalogue) {
  const auto ids = test::random_tokens(12, 300, 1);
  EngineOptions options;
  options.context = 64;
  const auto logits_of = [&](const std::string& path) {
    const auto model = ModelFile::open(path);
    Engine engine(model, options);
    engine.feed_all(0, ids, Feed::Logits::last);
    const auto row = engine.logits(0);
    return std::vector<float>(row.begin(), row.end());
  };
  const auto clean = logits_of(in_);
  const auto model = ModelFile::open(in_);
  const HParams hp = Engine(model, options).hparams();
  size_t planted = 0;
  for (const FaultInfo& info : fault_catalogue()) {
    if (info.planted != Planted::file) continue;
    for (const uint64_t seed : {1, 2, 3}) {
      const Plant plant = draw_plant({std::string(info.id), {}, {}, seed}, hp, 12, 12);
      SCOPED_TRACE(plant_in_file(plant, hp, in_, out_));
      EXPECT_THAT(changed(plant.stage == Stage::attn_norm ? "llama.attention.layer_norm_rms_epsilon"
                                                          : "llama.rope.freq_base"),
                  testing::SizeIs(info.id == "file-metadata"  ? 0
                                  : info.id == "file-tensors" ? 2
                                                              : 1));
      EXPECT_NE(logits_of(out_), clean);
      ++planted;
    }
  }
  EXPECT_EQ(planted, 12u);
}

/// The program: its sentence, its exit status, and a file that opens.
TEST_F(FileFaults, Program) {
  const auto run = [&](const std::string& arguments) {
    const std::string command =
        std::string(GRETA_GGUF_EDIT) + " " + in_ + " " + out_ + " " + arguments + " 2>&1";
    std::FILE* pipe = ::popen(command.c_str(), "r");
    std::string text;
    std::array<char, 512> buffer{};
    while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) text += buffer.data();
    return std::pair(::pclose(pipe), text);
  };
  const auto rows = run("swap-rows blk.0.attn_q.weight 1 2");
  EXPECT_EQ(rows.first, 0);
  EXPECT_THAT(rows.second, testing::StartsWith("rows 1 and 2 of tensor blk.0.attn_q.weight"));
  EXPECT_THAT(changed(), testing::ElementsAre("blk.0.attn_q.weight"));
  EXPECT_EQ(run("swap-tensors blk.0.attn_q.weight blk.1.attn_q.weight").first, 0);
  EXPECT_THAT(changed(), testing::SizeIs(2));
  EXPECT_EQ(run("change-block output.weight 17").first, 0);
  EXPECT_THAT(changed(), testing::ElementsAre("output.weight"));
  EXPECT_EQ(run("set llama.attention.layer_norm_rms_epsilon 0.5").first, 0);
  EXPECT_THAT(changed("llama.attention.layer_norm_rms_epsilon"), testing::IsEmpty());
  const auto bad = run("change-block output.weight 100000");
  EXPECT_NE(bad.first, 0);
  EXPECT_THAT(bad.second, testing::StartsWith("gguf_edit: output.weight: expected block 0 to"));
  EXPECT_NE(run("").first, 0);
  out_ = in_;
  const auto itself = run("change-block output.weight 17");
  EXPECT_NE(itself.first, 0);
  EXPECT_THAT(itself.second, testing::HasSubstr("got the input itself"));
}

}  // namespace
}  // namespace greta
