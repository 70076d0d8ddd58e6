#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>

#include "fake_backend.h"
#include "model/plan.h"
#include "small_file.h"

namespace greta {
namespace {

using testing_model::FakeBackend;
using testing_model::SmallFile;

TEST(Load, EveryRoleHasItsTensor) {
  SmallFile small;
  for (const char* layer : {"0", "1"}) {
    small.tensor(fmt::format("blk.{}.attn_output.bias", layer), {32}, quant::Type::F32);
  }
  const auto file = small.open();
  FakeBackend backend;
  const auto plan = make_plan(file, backend, {});
  std::vector<std::pair<uint64_t, uint64_t>> steps;
  const auto model =
      load_model(file, plan, backend, [&](uint64_t done, uint64_t all) { steps.emplace_back(done, all); });

  EXPECT_EQ(model.hp.dim, 32);
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(model.owned.size(), file.tensors().size());
  EXPECT_EQ(model.at(Role::embedding)->name, "token_embd.weight");
  EXPECT_EQ(model.at(Role::final_norm)->name, "output_norm.weight");
  EXPECT_EQ(model.at(Role::head)->name, "output.weight");
  const std::pair<Role, const char*> parts[] = {
      {Role::attn_norm, "attn_norm.weight"}, {Role::wq, "attn_q.weight"},
      {Role::wk, "attn_k.weight"},           {Role::wv, "attn_v.weight"},
      {Role::wo, "attn_output.weight"},      {Role::ffn_norm, "ffn_norm.weight"},
      {Role::w_gate, "ffn_gate.weight"},     {Role::w_up, "ffn_up.weight"},
      {Role::w_down, "ffn_down.weight"},     {Role::bo, "attn_output.bias"}};
  for (size_t layer = 0; layer < 2; ++layer) {
    for (const auto& [role, name] : parts) {
      ASSERT_NE(model.at(layer, role), nullptr) << name;
      EXPECT_EQ(model.at(layer, role)->name, fmt::format("blk.{}.{}", layer, name));
    }
    for (const Role role : {Role::bq, Role::bk, Role::bv, Role::b_gate, Role::b_up, Role::b_down}) {
      EXPECT_EQ(model.at(layer, role), nullptr);
    }
  }

  // What the backend was given: the file's bytes, rows and columns, and what each is for.
  for (const auto& [source, use] : backend.loaded) {
    const auto* tensor = file.find_tensor(source.name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(source.bytes.data(), tensor->bytes.data());
    EXPECT_EQ(source.bytes.size(), tensor->bytes.size());
    std::vector<std::byte> read(source.bytes.size());
    ASSERT_TRUE(source.read);
    source.read(source.bytes, read.data());
    EXPECT_TRUE(std::ranges::equal(read, tensor->bytes)) << source.name;
    EXPECT_EQ(source.cols, static_cast<int64_t>(tensor->shape[0]));
    EXPECT_EQ(source.rows, tensor->shape.size() > 1 ? static_cast<int64_t>(tensor->shape[1]) : 1);
    const bool vector = source.name.ends_with("norm.weight") || source.name.ends_with(".bias");
    EXPECT_EQ(use, vector                               ? WeightUse::vector
                   : source.name == "token_embd.weight" ? WeightUse::embedding
                                                        : WeightUse::matmul)
        << source.name;
  }

  ASSERT_EQ(steps.size(), model.owned.size());
  uint64_t bytes = 0;
  for (const auto& tensor : file.tensors()) bytes += tensor.bytes.size();
  EXPECT_EQ(steps.back(), std::make_pair(bytes, bytes));
  EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end()));
}

TEST(Load, RopeFactorsAreHyperparameters) {
  SmallFile small;
  const size_t loaded = small.open().tensors().size();
  small.tensor("rope_freqs.weight", {4}, quant::Type::F32, {1.0f, 1.0f, 2.0f, 2.0f});
  const auto file = small.open();
  FakeBackend backend;
  const auto plan = make_plan(file, backend, {});
  EXPECT_EQ(load_model(file, plan, backend).owned.size(), loaded);
  EXPECT_THAT(plan_text(plan, file, backend),
              testing::AllOf(testing::HasSubstr(fmt::format("tensors       {}: ", loaded + 1)),
                             testing::HasSubstr("scaling factors in rope_freqs.weight\n")));
}

TEST(Load, OnlyAPlanThatFits) {
  const auto file = SmallFile().erase_tensor("output_norm.weight").open();
  FakeBackend backend;
  const auto plan = make_plan(file, backend, {});
  EXPECT_THROW(load_model(file, plan, backend), Error);
  EXPECT_TRUE(backend.loaded.empty());
}

/// Resident bytes of this process's mappings of a file.
uint64_t resident_of(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  uint64_t kib = 0;
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < line.find(' ')) inside = line.ends_with(path);  // "begin-end perms ... path"
    if (inside && line.starts_with("Rss:")) kib += std::stoull(line.substr(4));
  }
  return kib * 1024;
}

/// 64 KiB a matrix, so that pages count.
SmallFile large_matrices() {
  SmallFile small;
  small.u32("llama.vocab_size", 4096).u32("llama.feed_forward_length", 4096);
  small.tensor("token_embd.weight", {32, 4096}).tensor("output.weight", {32, 4096});
  for (int layer = 0; layer < 2; ++layer) {
    small.tensor(fmt::format("blk.{}.ffn_gate.weight", layer), {32, 4096});
    small.tensor(fmt::format("blk.{}.ffn_up.weight", layer), {32, 4096});
    small.tensor(fmt::format("blk.{}.ffn_down.weight", layer), {4096, 32});
  }
  return small;
}

uint64_t touch(const gguf::File& file) {
  uint64_t sum = 0;
  for (const auto& tensor : file.tensors()) {
    for (size_t i = 0; i < tensor.bytes.size(); i += 64) sum += static_cast<uint64_t>(tensor.bytes[i]);
  }
  return sum;
}

TEST(Load, PagesOfRepackedTensorsAreLetGo) {
  const uint64_t matrix = 4096 * 32 / 32 * 34;
  const uint64_t slack = 96 * 1024;  // header, small tensors, and pages that two tensors share
  for (const bool tied : {false, true}) {
    auto small = large_matrices();
    if (tied) small.erase_tensor("output.weight");
    const auto file = small.open();
    EXPECT_EQ(touch(file), 0u);
    ASSERT_GT(resident_of(file.path()), (tied ? 7 : 8) * matrix);
    FakeBackend backend;
    const auto plan = make_plan(file, backend, {});
    const auto model = load_model(file, plan, backend);
    // The embedding is used where it lies, as the head's tensor too where that is tied.
    const auto left = resident_of(file.path());
    EXPECT_GE(left, matrix - 8192) << tied;
    EXPECT_LE(left, matrix + slack) << tied;
  }
}

TEST(Load, ATiedTensorIsLetGoWhenNoRoleNeedsIt) {
  const auto file = large_matrices().erase_tensor("output.weight").open();
  EXPECT_EQ(touch(file), 0u);
  FakeBackend backend;
  backend.copies = true;  // nothing stays in the file: the tied tensor goes after its second use
  const auto model = load_model(file, make_plan(file, backend, {}), backend);
  EXPECT_LE(resident_of(file.path()), 96 * 1024u);
}

}  // namespace
}  // namespace greta
