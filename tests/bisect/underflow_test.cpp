// Values below FP32's normal range in a file: what the cpu rounds away of them is inside the judge's bounds.
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <span>

#include "bisect_fixture.h"

namespace greta {
namespace {

class Underflow : public test::BisectTest {
 protected:
  /// A model of one layer, FP32, with matrices changed in place: [rows, cols] of the file.
  std::string edited(const std::string& arch, size_t dim,
                     const std::function<void(const std::string& name, std::span<float> values)>& change) {
    SynthOptions synth;
    synth.arch = arch;
    synth.dim = dim;
    synth.ffn_dim = 64;
    synth.layers = 1;
    synth.heads = 2;
    synth.vocab = 300;
    synth.context = 64;
    synth.type = quant::Type::F32;
    const std::string path = folder_ / (arch + ".gguf");
    synthesise(synth, path, 2);
    std::vector<std::pair<uint64_t, std::vector<float>>> parts;
    const auto model = ModelFile::open(path);
    for (const auto& t : model.file.tensors()) {
      if (t.type != quant::Type::F32) continue;
      std::vector<float> values(t.bytes.size() / sizeof(float));
      std::memcpy(values.data(), t.bytes.data(), t.bytes.size());
      change(t.name, values);
      parts.emplace_back(t.offset, std::move(values));
    }
    const std::string out = folder_ / (arch + "-edited.gguf");
    std::filesystem::copy_file(path, out, std::filesystem::copy_options::overwrite_existing);
    std::fstream file(out, std::ios::in | std::ios::out | std::ios::binary);
    for (const auto& [offset, values] : parts) {
      file.seekp(static_cast<std::streamoff>(offset));
      file.write(reinterpret_cast<const char*>(values.data()),
                 static_cast<std::streamsize>(values.size() * sizeof(float)));
    }
    file.close();
    EXPECT_TRUE(file) << out;
    return out;
  }
  /// No row of a run of these tokens is past its bound.
  void expect_clean(const std::string& path, const std::string& subject) {
    auto o = options(path, "reference", subject, 0);
    o.prompts = {{"small", "", {1, kToken, 7, 9}}};
    o.examine.max_tokens = 1;
    o.allow_rounding = true;
    const auto result = run(o);
    const PromptVerdict& v = result.prompts.front();
    EXPECT_EQ(v.error, "") << path;
    EXPECT_EQ(v.b.failed, 0u) << path << ": " << v.cause;
    EXPECT_GT(v.b.rows_judged, 0u);
  }
  static constexpr TokenId kToken = 5;
  static std::span<float> token_row(std::span<float> table, size_t dim) {
    return table.subspan(kToken * dim, dim);
  }
};

/// Of either sign, between a quarter and one and a quarter of `size`.
void fill(std::span<float> row, float size) {
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = size * (0.25f + static_cast<float>(i * 37 % 64) / 64.0f) * (i % 3 == 0 ? -1.0f : 1.0f);
}

// The scale is the root of the width: of 64 it would be exact.
TEST_F(Underflow, OfAScaledEmbedding) {
  expect_clean(edited("gemma2", 96,
                      [](const std::string& name, std::span<float> values) {
                        if (name == "token_embd.weight") fill(token_row(values, 96), 1e-40f);
                      }),
               "cpu");
}

TEST_F(Underflow, OfANorm) {
  expect_clean(edited("llama", 64,
                      [](const std::string& name, std::span<float> values) {
                        if (name == "blk.0.attn_norm.weight")
                          for (float& w : values.first(8)) w = 60.0f;
                        if (name != "token_embd.weight") return;
                        fill(token_row(values, 64), 100.0f);
                        fill(token_row(values, 64).first(8), 1e-38f);
                      }),
               "cpu");
}

TEST_F(Underflow, OfBlocksOfInt8Weights) {
  expect_clean(edited("llama", 64,
                      [](const std::string& name, std::span<float> values) {
                        if (name != "blk.0.ffn_up.weight") return;
                        const auto block = values.subspan(3 * 64, 32);
                        std::ranges::fill(block, 0.0f);
                        block[4] = 1e-38f;
                        block[5] = 3.7e-37f;
                      }),
               "cpu,weights=int8");
}

/// olmo2 has no norm before its projections: what they read is the embedding.
TEST_F(Underflow, OfScalesOf8BitActivations) {
  for (const float size : {1e-35f, 3e-36f, 1e-36f})
    expect_clean(edited("olmo2", 64,
                        [&](const std::string& name, std::span<float> values) {
                          if (name == "token_embd.weight") fill(token_row(values, 64), size);
                        }),
                 "cpu,weights=int8,activations=8");
}

}  // namespace
}  // namespace greta
