#include "model/plan.h"

#include <fcntl.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <limits>

#include "decoder/forward.h"
#include "fake_backend.h"
#include "model/architectures.h"
#include "small_file.h"

namespace greta {
namespace {

using test::TemporaryFolder;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_model::FakeBackend;
using testing_model::SmallFile;
using Lines = std::vector<std::string>;

Lines problems(const gguf::File& file, const Backend& backend, const PlanRequest& request) {
  Lines lines;
  for (const auto& problem : make_plan(file, backend, request).problems) lines.push_back(problem.text());
  return lines;
}

Lines problems(const SmallFile& small, const PlanRequest& request = {}) {
  return problems(small.open(), FakeBackend(), request);
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// ---- what fits
// ---------------------------------------------------------------------------------------------------

TEST(Plan, AWholeFileFits) {
  const auto file = SmallFile().open();
  FakeBackend backend;
  PlanRequest request;
  request.tokenizer_vocab = 48;
  const auto plan = make_plan(file, backend, request);
  EXPECT_TRUE(plan.fits()) << plan.problems[0].text();
  EXPECT_THAT(plan.warnings, IsEmpty());
  EXPECT_EQ(plan.tensors.size(), file.tensors().size());
  EXPECT_EQ(plan.context, 1024);
  EXPECT_NO_THROW(require_fit(plan, file));
}

TEST(Plan, MemoryIsTheSumOfItsParts) {
  const auto file = SmallFile().open();
  FakeBackend backend;
  backend.scratch_per_row = 3;
  PlanRequest request;
  request.context = 100;  // two pages of 64
  request.sequences = 3;
  request.max_logits = 3;
  request.chunk = 7;
  const auto plan = make_plan(file, backend, request);
  EXPECT_TRUE(plan.fits());
  const uint64_t layer = 32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3;
  EXPECT_EQ(plan.memory.weights, 2 * layer + 32 * 48);             // a byte an element; output.weight
  EXPECT_EQ(plan.memory.mapped, 48 * 32 / 32 * 34 + 5 * 32 * 4u);  // the embedding in Q8_0, five norms in F32
  EXPECT_EQ(plan.memory.kv_cache, 2 * 2 * 3 * 2 * (64 * 16 * 2u));  // k and v, layers, sequences, pages
  EXPECT_EQ(plan.memory.activations, Workspace::bytes(plan.hp, 7, 3, 4) + 7 * 3);
  EXPECT_EQ(plan.memory.available, backend.available);
}

TEST(Plan, TiedHeadIsTheEmbeddingTwice) {
  const auto file = SmallFile().erase_tensor("output.weight").open();
  FakeBackend backend;
  const auto plan = make_plan(file, backend, {});
  EXPECT_TRUE(plan.fits());
  int heads = 0;
  for (const auto& planned : plan.tensors) {
    if (planned.role != Role::head) continue;
    ++heads;
    EXPECT_EQ(planned.tensor->name, "token_embd.weight");
    EXPECT_EQ(planned.use, WeightUse::matmul);
  }
  EXPECT_EQ(heads, 1);
  EXPECT_THAT(plan_text(plan, file, backend), HasSubstr("output head   the embedding, Q8_0\n"));
}

TEST(Plan, BiasesAndRopeFactorsAreKnown) {
  SmallFile small;
  for (const char* layer : {"0", "1"}) {
    const auto name = [&](const char* part) { return fmt::format("blk.{}.{}.bias", layer, part); };
    small.tensor(name("attn_q"), {32}, quant::Type::F32).tensor(name("attn_k"), {16}, quant::Type::F32);
    small.tensor(name("attn_v"), {16}, quant::Type::F32).tensor(name("attn_output"), {32}, quant::Type::F32);
    small.tensor(name("ffn_gate"), {64}, quant::Type::F32).tensor(name("ffn_up"), {64}, quant::Type::F32);
    small.tensor(name("ffn_down"), {32}, quant::Type::F32);
  }
  small.tensor("rope_freqs.weight", {4}, quant::Type::F32, {1.0f, 1.0f, 2.0f, 2.0f});
  EXPECT_THAT(problems(small), IsEmpty());
}

TEST(Plan, TextShowsEverything) {
  SmallFile small;
  small.set("general.name", "a\x1b[31mname");
  const auto file = small.open();
  FakeBackend backend;
  PlanRequest request;
  request.context = 128;
  request.tokenizer = "spm/llama";
  request.tokenizer_vocab = 48;
  const auto text = plan_text(make_plan(file, backend, request), file, backend);
  EXPECT_EQ(text.substr(0, text.find('\n')), "file          " + file.path());
  for (const char* line : {
           "name          a\\x1b[31mname\n",
           "architecture  llama\n",
           "layers        2\n",
           "dim           32\n",
           "heads         4 over 2 kv heads, head_dim 8\n",
           "ffn_dim       64, silu\n",
           "vocab         48\n",
           "context       1024\n",
           "norm epsilon  1e-05\n",
           "rope          8 of 8 dimensions, adjacent pairs, base 10000, scaling none\n",
           "tensors       21: 16 Q8_0, 5 F32\n",
           "output head   output.weight, Q8_0\n",
           "tokenizer     spm/llama, 48 tokens\n",
           "device        fake (no arithmetic)\n",
           "memory        weights, allocated        19.5 KiB\n",
           "              KV cache                  16.0 KiB  128 positions\n",
           "of 1024.00 GiB available\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

// ---- tensors
// -----------------------------------------------------------------------------------------------------

TEST(Plan, TwentyTwoLayersInAFileThatSaysThirtyTwo) {
  EXPECT_THAT(
      problems(SmallFile(22, 32)),
      ElementsAre("blk.22-31.*: expected 10 layers' tensors (9 in each layer), as llama.block_count says 32, "
                  "got none of them: the file holds layers 0-21 (the file is incomplete, or its metadata is "
                  "another model's)"));
}

TEST(Plan, LayersMissingInTheMiddle) {
  SmallFile small(4);
  const auto whole = small.open();
  for (const auto& tensor : whole.tensors()) {
    if (tensor.name.starts_with("blk.1.")) small.erase_tensor(tensor.name);
  }
  EXPECT_THAT(problems(small), ElementsAre(HasSubstr("blk.1.*: expected 1 layer's tensors")));
}

TEST(Plan, MoreLayersThanTheMetadataSays) {
  EXPECT_THAT(
      problems(SmallFile(4, 2)),
      ElementsAre("blk.2-3.*: expected 2 layers, as llama.block_count says, got 18 tensors of 2 layers more "
                  "(tensors that the plan does not use: the metadata is another model's)"));
}

TEST(Plan, OneTensorMissingInSomeLayers) {
  SmallFile small(6);
  for (const int layer : {0, 1, 2, 5}) small.erase_tensor(fmt::format("blk.{}.ffn_up.weight", layer));
  small.erase_tensor("output_norm.weight");
  EXPECT_THAT(
      problems(small),
      ElementsAre(
          "output_norm.weight: expected [32] (dim), got no such tensor (the file is incomplete)",
          "blk.0-2,5.ffn_up.weight: expected [32, 64] (dim, ffn_dim), got no such tensor (the file is "
          "incomplete)"));
}

TEST(Plan, NoEmbedding) {
  EXPECT_THAT(
      problems(SmallFile().erase_tensor("token_embd.weight").erase_tensor("output.weight")),
      ElementsAre("token_embd.weight: expected [32, 48] (dim, vocab), got no such tensor (the file is "
                  "incomplete)"));
}

TEST(Plan, WrongShapes) {
  SmallFile small;
  small.tensor("blk.0.attn_k.weight", {16, 32}, quant::Type::F16)
      .tensor("blk.1.attn_k.weight", {16, 32}, quant::Type::F16);
  small.tensor("blk.1.ffn_norm.weight", {64}, quant::Type::F32);
  small.tensor("output.weight", {32, 64}).tensor("blk.0.attn_q.weight", {1024});
  small.tensor("rope_freqs.weight", {8}, quant::Type::F32);
  EXPECT_THAT(problems(small),
              testing::UnorderedElementsAre(
                  "output.weight: expected [32, 48] (dim, vocab), got [32, 64]",
                  "rope_freqs.weight: expected [4] (rotated pairs), got [8]",
                  "blk.0.attn_q.weight: expected [32, 32] (dim, heads x head_dim), got [1024]",
                  "blk.0-1.attn_k.weight: expected [32, 16] (dim, kv_heads x head_dim), got [16, 32]",
                  "blk.1.ffn_norm.weight: expected [32] (dim), got [64]"));
}

TEST(Plan, MetadataOfAnotherModelIsALineForEachKindOfTensor) {
  SmallFile small(5);
  small.u32("llama.feed_forward_length", 96);
  EXPECT_THAT(problems(small),
              ElementsAre("blk.0-4.ffn_gate.weight: expected [32, 96] (dim, ffn_dim), got [32, 64]",
                          "blk.0-4.ffn_up.weight: expected [32, 96] (dim, ffn_dim), got [32, 64]",
                          "blk.0-4.ffn_down.weight: expected [96, 32] (ffn_dim, dim), got [64, 32]"));
}

TEST(Plan, TensorsWithoutARole) {
  SmallFile small(3);
  small.tensor("blk.0.attn_q_norm.weight", {8}, quant::Type::F32);
  small.tensor("blk.1.attn_q_norm.weight", {8}, quant::Type::F32);
  small.tensor("blk.01.attn_q.weight", {32, 32}).tensor("rope_long.weight", {4}, quant::Type::F32);
  EXPECT_THAT(
      problems(small),
      ElementsAre("blk.0-1.attn_q_norm.weight: expected no such tensor in architecture llama, got F32 [8] (a "
                  "tensor that the plan does not use: without it this would be another model)",
                  "blk.01.attn_q.weight: expected no such tensor in architecture llama, got Q8_0 [32, 32] (a "
                  "tensor that the plan does not use: without it this would be another model)",
                  "rope_long.weight: expected no such tensor in architecture llama, got F32 [4] (a tensor "
                  "that the plan does not use: without it this would be another model)"));
}

TEST(Plan, ABiasInSomeLayersOnly) {
  SmallFile small(4);
  small.tensor("blk.2.attn_output.bias", {32}, quant::Type::F32);
  EXPECT_THAT(
      problems(small),
      ElementsAre(
          "blk.0-1,3.attn_output.bias: expected this tensor, as other layers have it, got no such tensor (a "
          "part of the model is missing)"));
}

TEST(Plan, TypesThatTheBackendRefuses) {
  SmallFile small;
  small.tensor("blk.0.attn_q.weight", {32, 32}, quant::Type::BF16);
  small.tensor("blk.1.attn_q.weight", {32, 32}, quant::Type::BF16);
  small.tensor("token_embd.weight", {32, 48}, quant::Type::F16).erase_tensor("output.weight");
  FakeBackend backend;
  backend.refused = {quant::Type::BF16, quant::Type::F16};
  EXPECT_THAT(
      problems(small.open(), backend, {}),
      ElementsAre("token_embd.weight: expected a type that fake can use here, got F16 [32, 48] (convert the "
                  "file, or use --weights int8)",
                  "token_embd.weight (as the output head): expected a type that fake can use here, got F16 "
                  "[32, 48] (convert the file, or use --weights int8)",
                  "blk.0-1.attn_q.weight: expected a type that fake can use here, got BF16 [32, 32] (convert "
                  "the file, or use --weights int8)"));
}

TEST(Plan, ShapesThatTheBackendLacks) {
  FakeBackend backend;
  backend.gaps = {{"head_dim", "at most 4", 8}, {"experts", "none", 2}};
  EXPECT_THAT(problems(SmallFile().open(), backend, {}),
              ElementsAre("head_dim: expected at most 4 on fake, got 8 (--device cpu computes any)",
                          "experts: expected none on fake, got 2 (--device cpu computes any)"));
}

TEST(Plan, AVocabularyAlone) {
  EXPECT_THAT(
      problems(SmallFile().erase_tensors()),
      ElementsAre(
          "tensors: expected the weights of a model, got a file without tensors (it holds a vocabulary "
          "alone: tokenize and inspect work on it)"));
}

TEST(Plan, AnUnknownArchitectureSaysWhatAnEntryWouldNeed) {
  SmallFile small;
  small.set("general.architecture", "granite");
  for (const char* key : {"block_count", "embedding_length", "expert_group_count"})
    small.u32(fmt::format("granite.{}", key), 2);
  small.f32("granite.attention.scale", 0.5f).f32("granite.logit_scale", 16.0f);
  small.f32("granite.residual_scale", 1.0f).u32("granite.attention.novelty", 7).u32("llama.other", 1);
  for (const int layer : {0, 1})
    small.tensor(fmt::format("blk.{}.ssm_in.weight", layer), {32, 64})
        .tensor(fmt::format("blk.{}.attn_q_norm.weight", layer), {8}, quant::Type::F32);
  small.tensor("position_embd.weight", {32, 16}).tensor("blk.x.odd", {32});
  const std::string names = architecture_names();
  EXPECT_THAT(names, testing::StartsWith("llama, qwen2, "));
  EXPECT_THAT(
      problems(small),
      ElementsAre(
          "general.architecture: expected " + names +
              ", got \"granite\" (this build does not know that architecture; "
              "docs/adding-an-architecture.md says how one is added)",
          "granite.*: expected keys that this engine computes with, got granite.attention.novelty = "
          "u32 7, granite.expert_group_count = u32 2, granite.logit_scale = f32 16 (a new entry needs "
          "what these say)",
          "tensors that other architectures have: expected rules of a new entry, got "
          "token_embd.weight (embedding), output_norm.weight (final_norm), output.weight (head), "
          "blk.{}.attn_norm.weight (attn_norm), blk.{}.attn_q.weight (wq), blk.{}.attn_k.weight (wk), "
          "blk.{}.attn_v.weight (wv), blk.{}.attn_output.weight (wo), blk.{}.ffn_norm.weight "
          "(ffn_norm), blk.{}.ffn_gate.weight (w_gate), blk.{}.ffn_up.weight (w_up or w_gate + w_up), "
          "blk.{}.ffn_down.weight (w_down), blk.{}.attn_q_norm.weight (q_norm) (in brackets the role "
          "that each has there)",
          "tensors that no architecture has: expected rules of a new entry, roles and operators, got "
          "blk.{}.ssm_in.weight [32, 64], position_embd.weight [32, 16], blk.x.odd [32] (the forward "
          "pass has no place for them yet)"));
}

TEST(Plan, AnUnknownArchitectureOfAThousandTensorsIsStillReadable) {
  SmallFile small;
  small.set("general.architecture", "mamba").erase_tensors();
  for (int i = 0; i < 1000; ++i) small.tensor(fmt::format("part{}.weight", i), {32});
  const auto lines = problems(small);
  ASSERT_EQ(lines.size(), 2u) << "no keys of its own, no tensor that others have";
  EXPECT_THAT(lines[1], HasSubstr("part39.weight [32] and 960 more"));
  EXPECT_THAT(lines[1], testing::Not(HasSubstr("part40")));
}

TEST(Plan, UnknownDimensionsSkipOnlyWhatNeedsThem) {
  // Without the number of layers: no layer is missed or superfluous, but a tensor without a role is one
  // still.
  SmallFile layers;
  layers.u32("llama.block_count", 0).tensor("blk.1.novelty.weight", {32}, quant::Type::F32);
  EXPECT_THAT(problems(layers), ElementsAre(HasSubstr("llama.block_count: expected"),
                                            HasSubstr("blk.1.novelty.weight: expected no such tensor")));
  // Without the heads: shapes of attention are not judged, those of the MLP are.
  SmallFile heads;
  heads.erase("llama.attention.head_count").tensor("blk.0.ffn_up.weight", {32, 96});
  EXPECT_THAT(problems(heads),
              ElementsAre(HasSubstr("llama.attention.head_count: expected"),
                          "blk.0.ffn_up.weight: expected [32, 64] (dim, ffn_dim), got [32, 96]"));
}

TEST(Plan, ManyMismatchesAreOneReport) {
  SmallFile small(22, 32);
  small.u32("llama.attention.head_count_kv", 3)
      .u32("llama.vocab_size", 50)
      .u32("llama.expert_shared_count", 8);
  small.erase_tensor("blk.3.ffn_down.weight").tensor("blk.7.ffn_gate.weight", {32, 96});
  small.tensor("blk.0.ffn_gate_inp.weight", {32, 8}, quant::Type::F32)
      .tensor("output.weight", {32, 48}, quant::Type::Q6_K);
  small.tensor("output.weight", {32, 48}, quant::Type::BF16);
  FakeBackend backend;
  backend.refused = {quant::Type::BF16};
  PlanRequest request;
  request.context = 2048;
  request.tokenizer_vocab = 47;
  request.expect = "layers=22,dim=32,arch=qwen2";
  const auto file = small.open();
  const auto plan = make_plan(file, backend, request);
  Lines places;
  for (const auto& problem : plan.problems) {
    places.push_back(problem.where);
    EXPECT_FALSE(problem.expected.empty());
    EXPECT_FALSE(problem.got.empty());
  }
  EXPECT_THAT(places, ElementsAre("llama.attention.head_count_kv", "llama.vocab_size",
                                  "llama.expert_shared_count", "--context", "tokenizer", "blk.22-31.*",
                                  "output.weight", "blk.3.ffn_down.weight", "blk.7.ffn_gate.weight",
                                  "blk.0.ffn_gate_inp.weight", "--expect layers", "--expect arch"));
  try {
    require_fit(plan, file);
    FAIL() << "it fits";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), file.path() + ": the model does not fit: 12 mismatches");
    EXPECT_EQ(error.details().size(), 12u);
  }
  EXPECT_TRUE(backend.loaded.empty());
  EXPECT_EQ(backend.allocations, 0);
}

// ---- vocabulary, context, options
// ----------------------------------------------------------------------------------

TEST(Plan, TokenizerOfAnotherSize) {
  PlanRequest request;
  request.tokenizer_vocab = 49;
  EXPECT_THAT(
      problems(SmallFile(), request),
      ElementsAre(
          "tokenizer: expected 48 tokens, the rows of token_embd.weight, got 49 tokens (the vocabulary "
          "belongs to another model)"));
  request.tokenizer_vocab = 47;
  EXPECT_THAT(problems(SmallFile(), request), ElementsAre(HasSubstr("got 47 tokens")));
  request.tokenizer_vocab = 48;
  EXPECT_THAT(problems(SmallFile(), request), IsEmpty());
}

TEST(Plan, ContextPastTheModels) {
  PlanRequest request;
  request.context = 1025;
  EXPECT_THAT(
      problems(SmallFile(), request),
      ElementsAre("--context: expected at most 1024, the model's (llama.context_length), got 1025 (the model "
                  "was not made for longer texts)"));
  request.context = 1024;
  EXPECT_THAT(problems(SmallFile(), request), IsEmpty());
  request.context = 0;
  EXPECT_THAT(problems(SmallFile(), request), ElementsAre("--context: expected at least 1, got 0"));
}

TEST(Plan, OptionsBelowOne) {
  PlanRequest request;
  request.chunk = 0;
  request.sequences = -1;
  EXPECT_THAT(problems(SmallFile(), request),
              ElementsAre("--batch: expected at least 1, got -1", "--chunk: expected at least 1, got 0"));
}

// ---- memory
// ------------------------------------------------------------------------------------------------------

PlanRequest memory_request(int64_t context, int64_t chunk, int64_t sequences = 1) {
  PlanRequest request;
  request.context = context;
  request.chunk = chunk;
  request.sequences = sequences;
  request.max_logits = sequences;
  return request;
}

TEST(PlanMemory, WeightsAloneDoNotFit) {
  FakeBackend backend;
  backend.available = 10000;
  const auto lines = problems(SmallFile().open(), backend, memory_request(64, 1));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("memory: expected at most 9.8 KiB (available on fake), got "));
  EXPECT_THAT(lines[0], HasSubstr("needed: weights 21.7 KiB, KV cache 8.0 KiB for 64 positions"));
  EXPECT_THAT(lines[0],
              HasSubstr("(the weights alone take 21.7 KiB: no option helps, only a smaller file or more "
                        "memory)"));
}

TEST(PlanMemory, ConvertedWeightsAreTooLarge) {
  FakeBackend backend;
  backend.resident_per_weight = 4;  // as --weights f32
  backend.available = 40000;
  EXPECT_THAT(problems(SmallFile().open(), backend, memory_request(64, 1)),
              ElementsAre(HasSubstr("as the file has them (--weights stored) they take about")));
}

/// The number after `option` in a remedy, or -1.
int64_t suggested(const std::string& line, const std::string& option) {
  const auto at = line.find(option + " ");
  return at == std::string::npos ? -1 : std::stoll(line.substr(at + option.size() + 1));
}

TEST(PlanMemory, TheSuggestedContextIsTheLongestThatFits) {
  const auto file = SmallFile().open();
  FakeBackend backend;
  const auto need = [&](int64_t context) {
    return make_plan(file, backend, memory_request(context, 8)).memory.total();
  };
  backend.available = need(704) + 100;
  const auto lines = problems(file, backend, memory_request(1024, 8));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("(it fits with --context 704)"));
  EXPECT_THAT(problems(file, backend, memory_request(704, 8)), IsEmpty());
  EXPECT_THAT(problems(file, backend, memory_request(705, 8)), ElementsAre(HasSubstr("memory: ")));
}

TEST(PlanMemory, ExactlyEnoughIsEnough) {
  const auto file = SmallFile().open();
  FakeBackend backend;
  const auto total = make_plan(file, backend, memory_request(64, 8)).memory.total();
  backend.available = total;
  EXPECT_THAT(problems(file, backend, memory_request(64, 8)), IsEmpty());
  backend.available = total - 1;
  EXPECT_THAT(problems(file, backend, memory_request(64, 8)), ElementsAre(HasSubstr("memory: ")));
}

TEST(PlanMemory, EveryOptionThatHelpsAloneIsNamedAndHelps) {
  const auto file = SmallFile().open();
  FakeBackend backend;
  backend.plain.kv_type = KvType::f32;
  backend.scratch_per_row = 4096;
  const auto request = memory_request(512, 64, 8);
  const auto memory = make_plan(file, backend, request).memory;
  backend.available = memory.total() - memory.kv_cache / 4;
  const auto lines = problems(file, backend, request);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("--kv-type f16"));
  const auto context = suggested(lines[0], "--context");
  const auto batch = suggested(lines[0], "--batch");
  const auto chunk = suggested(lines[0], "--chunk");
  ASSERT_GT(context, 0);
  ASSERT_GT(batch, 0);
  ASSERT_GT(chunk, 0);
  EXPECT_THAT(problems(file, backend, memory_request(context, 64, 8)), IsEmpty());
  EXPECT_THAT(problems(file, backend, memory_request(512, 64, batch)), IsEmpty());
  EXPECT_THAT(problems(file, backend, memory_request(512, chunk, 8)), IsEmpty());
  backend.plain.kv_type = KvType::f16;
  EXPECT_THAT(problems(file, backend, request), IsEmpty());
}

TEST(PlanMemory, SeveralOptionsTogether) {
  const auto file = SmallFile().open();
  FakeBackend backend;
  backend.scratch_per_row = 4096;
  backend.available = make_plan(file, backend, memory_request(64, 16)).memory.total() + 10;
  const auto lines = problems(file, backend, memory_request(1024, 4096, 2));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("(it fits with --context 64 --chunk 16 --batch 1)"));
  EXPECT_THAT(problems(file, backend, memory_request(64, 16, 1)), IsEmpty());
}

TEST(PlanMemory, ShapesThatNoMemoryHoldsDoNotOverflow) {
  SmallFile small(1, 4096);
  small.u32("llama.context_length", 1 << 30).u32("llama.attention.head_count", 16384);
  small.u32("llama.attention.head_count_kv", 16384).u32("llama.attention.key_length", 8192);
  FakeBackend backend;
  backend.available = uint64_t{1} << 62;
  PlanRequest request;
  request.sequences = 1 << 20;
  const auto plan = make_plan(small.open(), backend, request);
  EXPECT_GE(plan.memory.kv_cache, uint64_t{1} << 60);
  EXPECT_GE(plan.memory.total(), plan.memory.kv_cache);
}

// ---- pins
// --------------------------------------------------------------------------------------------------------

/// A GGUF with TinyLlama 1.1B's own dimensions: every tensor is there, its bytes a hole in the file.
std::string write_tiny_llama(const TemporaryFolder& folder) {
  std::string head;
  const auto number = [&](auto n) { head.append(reinterpret_cast<const char*>(&n), sizeof n); };
  const auto text = [&](std::string_view s) {
    number(uint64_t{s.size()});
    head += s;
  };
  std::vector<std::pair<std::string, std::vector<uint64_t>>> tensors = {
      {"token_embd.weight", {2048, 32000}}, {"output_norm.weight", {2048}}, {"output.weight", {2048, 32000}}};
  for (int layer = 0; layer < 22; ++layer) {
    const auto add = [&](const char* name, std::vector<uint64_t> shape) {
      tensors.emplace_back(fmt::format("blk.{}.{}.weight", layer, name), std::move(shape));
    };
    add("attn_norm", {2048});
    add("attn_q", {2048, 2048});
    add("attn_k", {2048, 256});
    add("attn_v", {2048, 256});
    add("attn_output", {2048, 2048});
    add("ffn_norm", {2048});
    add("ffn_gate", {2048, 5632});
    add("ffn_up", {2048, 5632});
    add("ffn_down", {5632, 2048});
  }
  const std::pair<const char*, uint32_t> integers[] = {
      {"llama.block_count", 22},          {"llama.context_length", 2048},
      {"llama.embedding_length", 2048},   {"llama.feed_forward_length", 5632},
      {"llama.attention.head_count", 32}, {"llama.attention.head_count_kv", 4},
      {"llama.rope.dimension_count", 64}};
  head = "GGUF";
  number(uint32_t{3});
  number(uint64_t{tensors.size()});
  number(uint64_t{2 + std::size(integers)});
  text("general.architecture");
  number(uint32_t{8});
  text("llama");
  for (const auto& [key, value] : integers) {
    text(key);
    number(uint32_t{4});
    number(value);
  }
  text("llama.attention.layer_norm_rms_epsilon");
  number(uint32_t{6});
  number(1e-5f);
  uint64_t offset = 0;
  for (const auto& [name, shape] : tensors) {
    const auto type = shape.size() == 1 ? quant::Type::F32 : quant::Type::Q4_0;
    text(name);
    number(static_cast<uint32_t>(shape.size()));
    uint64_t elements = 1;
    for (const auto n : shape) {
      number(n);
      elements *= n;
    }
    number(static_cast<uint32_t>(type));
    number(offset);
    offset += (quant::bytes_for(type, elements).value() + 31) / 32 * 32;
  }
  head.resize((head.size() + 31) / 32 * 32);
  const auto path = folder / "tinyllama.gguf";
  const int fd = open(path.c_str(), O_CREAT | O_WRONLY, 0600);
  EXPECT_EQ(write(fd, head.data(), head.size()), static_cast<ssize_t>(head.size()));
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(head.size() + offset)), 0);
  close(fd);
  return path;
}

TEST(Pins, TheSeedsCase) {
  TemporaryFolder folder;
  const auto path = write_tiny_llama(folder);
  const auto link = folder / "llama-2-7b.gguf";
  std::filesystem::create_symlink(path, link);
  const auto file = gguf::File::open(link);
  FakeBackend backend;
  PlanRequest request;
  request.expect = "dim=4096,layers=32,ffn_dim=11008,heads=32";
  const auto plan = make_plan(file, backend, request);
  Lines lines;
  for (const auto& problem : plan.problems) lines.push_back(problem.text());
  EXPECT_THAT(lines,
              ElementsAre("--expect dim: expected 4096, got 2048 (another model than the one pinned)",
                          "--expect layers: expected 32, got 22 (another model than the one pinned)",
                          "--expect ffn_dim: expected 11008, got 5632 (another model than the one pinned)"));
  EXPECT_THAT(
      error_of([&] { require_fit(plan, file); }),
      HasSubstr(std::filesystem::canonical(path).string() + ": the model does not fit: 3 mismatches"));
  EXPECT_THAT(error_of([&] { load_model(file, plan, backend); }), HasSubstr("3 mismatches"));
  EXPECT_TRUE(backend.loaded.empty());
  EXPECT_EQ(backend.allocations, 0);

  // The same file runs without the pin: every dimension is its own.
  request.expect.clear();
  const auto own = make_plan(file, backend, request);
  EXPECT_TRUE(own.fits()) << own.problems[0].text();
  EXPECT_EQ(own.hp.head_dim, 64);
  EXPECT_EQ(own.hp.kv_dim(), 256);
  EXPECT_EQ(own.hp.vocab, 32000);
  EXPECT_EQ(load_model(file, own, backend).layers.size(), 22u);
  EXPECT_EQ(backend.loaded.size(), 22 * 9 + 3u);
}

TEST(Pins, EveryFieldIsCompared) {
  const std::string sha(64, 'a'), other(64, 'b');
  PlanRequest request;
  request.file_sha256 = sha;
  request.tokenizer = "spm/llama";
  request.expect =
      "dim=32,layers=2,heads=4,kv_heads=2,head_dim=8,ffn_dim=64,vocab=48,context=1024,arch=llama,sha256=" +
      std::string(64, 'A') + ",tokenizer=spm/llama";
  EXPECT_THAT(problems(SmallFile(), request), IsEmpty());
  request.expect =
      "dim=33,layers=3,heads=5,kv_heads=3,head_dim=9,ffn_dim=65,vocab=49,context=1025,arch=qwen2,sha256=" +
      other + ",tokenizer=bpe/qwen2";
  const auto lines = problems(SmallFile(), request);
  EXPECT_THAT(
      lines,
      ElementsAre(HasSubstr("dim: expected 33, got 32"), HasSubstr("layers: expected 3, got 2"),
                  HasSubstr("heads: expected 5, got 4"), HasSubstr("kv_heads: expected 3, got 2"),
                  HasSubstr("head_dim: expected 9, got 8"), HasSubstr("ffn_dim: expected 65, got 64"),
                  HasSubstr("vocab: expected 49, got 48"), HasSubstr("context: expected 1025, got 1024"),
                  HasSubstr("arch: expected qwen2, got llama"),
                  HasSubstr("sha256: expected " + other + ", got " + sha),
                  HasSubstr("tokenizer: expected bpe/qwen2, got spm/llama")));
  EXPECT_THAT(lines, Each(HasSubstr("--expect ")));
}

TEST(Pins, WhatTheFileDoesNotState) {
  PlanRequest request;
  request.expect = "layers=2,tokenizer=spm/llama";
  EXPECT_THAT(
      problems(SmallFile().erase("llama.block_count"), request),
      ElementsAre(HasSubstr("llama.block_count"),
                  "--expect layers: expected 2, got nothing that the file states validly (another model than "
                  "the one pinned)",
                  "--expect tokenizer: expected spm/llama, got no tokenizer (another model than the one "
                  "pinned)"));
}

TEST(Pins, Spelling) {
  const auto said = [](const std::string& expect) { return error_of([&] { pins_sha256(expect); }); };
  const std::string fields =
      "the fields are dim, layers, heads, kv_heads, head_dim, ffn_dim, vocab, context, arch, sha256, "
      "tokenizer";
  EXPECT_EQ(said("dims=4096"), "--expect: unknown field \"dims\"; " + fields);
  EXPECT_EQ(said("dim=32,=4"), "--expect: unknown field \"\"; " + fields);
  EXPECT_EQ(said(",dim=32"), "--expect: unknown field \"\"; " + fields);
  EXPECT_EQ(said("dim"), "--expect: dim needs a value, as in dim=4096,layers=32");
  EXPECT_EQ(said("dim="), "--expect: dim needs a whole number above 0, got \"\"");
  EXPECT_EQ(said("dim=4k"), "--expect: dim needs a whole number above 0, got \"4k\"");
  EXPECT_EQ(said("dim=-1"), "--expect: dim needs a whole number above 0, got \"-1\"");
  EXPECT_EQ(said("layers=99999999999999999999"),
            "--expect: layers needs a whole number above 0, got \"99999999999999999999\"");
  EXPECT_EQ(said("dim=32,dim=32"), "--expect: dim is given twice");
  EXPECT_EQ(said("dim=32,"), "--expect: a field is missing after the last comma");
  EXPECT_EQ(said("arch="), "--expect: arch needs a value");
  EXPECT_EQ(said("sha256=12"), "--expect: sha256 needs 64 hexadecimal digits, got \"12\"");
  EXPECT_FALSE(pins_sha256(""));
  EXPECT_FALSE(pins_sha256("dim=32"));
  EXPECT_TRUE(pins_sha256("dim=32,sha256=" + std::string(64, '0')));
}

// ---- what depends on what else is there
// ---------------------------------------------------------------------------------------------------

TEST(Plan, BiasesComeInSets) {
  const auto with = [](std::vector<std::pair<std::string, uint64_t>> biases) {
    SmallFile small;
    for (const char* layer : {"0", "1"})
      for (const auto& [name, size] : biases)
        small.tensor(fmt::format("blk.{}.{}.bias", layer, name), {size}, quant::Type::F32);
    return problems(small);
  };
  const auto missing = [](const std::string& name, const std::string& there) {
    return "blk.0-1." + name + ".bias: expected this tensor, as blk.0." + there +
           ".bias is there, got no such tensor (a part of the model is missing)";
  };
  EXPECT_THAT(with({{"attn_q", 32}}), ElementsAre(missing("attn_k", "attn_q"), missing("attn_v", "attn_q")));
  EXPECT_THAT(with({{"attn_v", 16}}), ElementsAre(missing("attn_q", "attn_v"), missing("attn_k", "attn_v")));
  EXPECT_THAT(with({{"attn_q", 32}, {"attn_v", 16}}), ElementsAre(missing("attn_k", "attn_q")));
  EXPECT_THAT(with({{"ffn_down", 32}}),
              ElementsAre(missing("ffn_gate", "ffn_down"), missing("ffn_up", "ffn_down")));
  EXPECT_THAT(with({{"ffn_gate", 64}, {"ffn_up", 64}}), ElementsAre(missing("ffn_down", "ffn_gate")));
  EXPECT_THAT(with({{"attn_output", 32}}), IsEmpty());
  EXPECT_THAT(with({{"attn_q", 32}, {"attn_k", 16}, {"attn_v", 16}}), IsEmpty());

  SmallFile one_layer;
  one_layer.tensor("blk.1.attn_q.bias", {32}, quant::Type::F32);
  EXPECT_THAT(problems(one_layer),
              ElementsAre("blk.0.attn_q.bias: expected this tensor, as other layers have it, got no such "
                          "tensor (a part of the model is missing)",
                          "blk.0-1.attn_k.bias: expected this tensor, as blk.1.attn_q.bias is there, got no "
                          "such tensor (a part of the model is missing)",
                          "blk.0-1.attn_v.bias: expected this tensor, as blk.1.attn_q.bias is there, got no "
                          "such tensor (a part of the model is missing)"));
}

/// Whether the file is a mixture's nobody can say, and nothing is said of either kind's tensors.
TEST(Plan, ABrokenNumberOfExpertsIsOneMismatch) {
  const std::string line = "llama.expert_count: expected an integer, 0 to 4096, got u32 5000";
  SmallFile mixture;
  mixture.u32("llama.expert_count", 5000).u32("llama.expert_used_count", 2);
  for (const char* layer : {"0", "1"}) {
    const auto name = [&](const char* part) { return fmt::format("blk.{}.{}.weight", layer, part); };
    for (const char* part : {"ffn_gate", "ffn_up", "ffn_down"}) mixture.erase_tensor(name(part));
    mixture.tensor(name("ffn_gate_inp"), {32, 8}, quant::Type::F32);
    mixture.tensor(name("ffn_gate_exps"), {32, 64, 8}).tensor(name("ffn_up_exps"), {32, 64, 8});
    mixture.tensor(name("ffn_down_exps"), {64, 32, 8});
  }
  EXPECT_THAT(problems(mixture), ElementsAre(line));
  EXPECT_THAT(problems(SmallFile().u32("llama.expert_count", 5000)), ElementsAre(line));
  // What is wrong in either is still told.
  mixture.tensor("blk.1.novelty.weight", {32}).erase_tensor("blk.0.attn_q.weight");
  EXPECT_EQ(problems(mixture).size(), 3u);
  EXPECT_THAT(problems(mixture.u32("llama.expert_count", 8)), testing::SizeIs(2));
}

}  // namespace
}  // namespace greta
