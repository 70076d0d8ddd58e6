// Each command's results, as text and as one JSON document.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench/cost.h"
#include "cli/run_binary.h"
#include "engine/engine.h"
#include "gguf/gguf.h"
#include "trace/safetensors.h"

namespace greta::test {
namespace {

using Json = nlohmann::json;

Json json_of(const Outcome& outcome) {
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return Json::parse(outcome.out);  // one document and nothing else, or it throws
}

class Commands : public CliTest {
 protected:
  std::string model = make_model("m.gguf");
};

TEST_F(Commands, CheckPrintsThePlan) {
  std::filesystem::create_symlink("m.gguf", folder / "link.gguf");
  const Outcome outcome = greta_run({"check", folder / "link.gguf"});
  EXPECT_EQ(outcome.status, 0);
  const std::string sha = gguf::File::open(model).sha256();
  const std::string real = std::filesystem::canonical(model).string();
  for (const std::string& part : {real, sha, std::string("layers        2"), std::string("dim           64")})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << " in " << outcome.out;
  const Json json = json_of(greta_run({"check", folder / "link.gguf", "--json", "--context", "100"}));
  EXPECT_EQ(json["file"], real);
  EXPECT_EQ(json["sha256"], sha);
  EXPECT_EQ(json["fits"], true);
  EXPECT_EQ(json["hparams"]["kv_heads"], 2);
  EXPECT_EQ(json["context"], 100);
}

TEST_F(Commands, CheckListsEveryMismatchWithStatus1) {
  const std::vector<std::string> arguments = {"check", model, "--expect",
                                              "dim=65,layers=3,heads=4,sha256=" + std::string(64, '0')};
  const Outcome outcome = greta_run(arguments);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_NE(outcome.err.find("3 mismatches"), std::string::npos) << outcome.err;
  auto with_json = arguments;
  with_json.emplace_back("--json");
  const Outcome document = greta_run(with_json);
  EXPECT_EQ(document.status, 1);
  const Json json = Json::parse(document.out);
  EXPECT_EQ(json["fits"], false);
  EXPECT_EQ(json["problems"].size(), 3u);
  EXPECT_EQ(json["problems"][0]["expected"], "65");
  EXPECT_EQ(json["problems"][0]["got"], "64");
}

TEST_F(Commands, CheckOfABrokenTokenizerIsAMisfitAmongOthers) {
  const gguf::File file = gguf::File::open(model);
  gguf::Writer writer;
  for (const auto& [key, value] : file.metadata())
    if (key != "tokenizer.ggml.model" && key != "llama.block_count") writer.add_value(key, value);
  writer.add_string("tokenizer.ggml.model", "crystal-ball");
  writer.write(folder / "broken.gguf");
  const Outcome outcome = greta_run({"check", folder / "broken.gguf"});
  EXPECT_EQ(outcome.status, 1) << outcome.err;
  EXPECT_NE(outcome.err.find("crystal-ball"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("llama.block_count"), std::string::npos) << outcome.err;
  EXPECT_EQ(greta_run({"run", folder / "broken.gguf", "--prompt", "a"}).status, 2);
  EXPECT_EQ(greta_run({"inspect", folder / "broken.gguf"}).status, 0);
}

TEST_F(Commands, InspectShowsWhatTheFileHolds) {
  const Outcome summary = greta_run({"inspect", model});
  EXPECT_EQ(summary.status, 0);
  for (const char* part : {"architecture  llama", "Q8_0", "tokenizer     spm", "300 tokens"})
    EXPECT_NE(summary.out.find(part), std::string::npos) << part << " in " << summary.out;
  const Outcome tensors = greta_run({"inspect", model, "--tensors"});
  EXPECT_EQ(lines_of(tensors.out).size(), gguf::File::open(model).tensors().size() + 1);
  EXPECT_NE(tensors.out.find("blk.1.ffn_down.weight"), std::string::npos);
  const Outcome metadata = greta_run({"inspect", model, "--metadata"});
  EXPECT_EQ(lines_of(metadata.out).size(), gguf::File::open(model).metadata().size());
  EXPECT_NE(metadata.out.find("llama.block_count = u32 2"), std::string::npos) << metadata.out;

  const Json json = json_of(greta_run({"inspect", model, "--json", "--tensors", "--metadata"}));
  EXPECT_EQ(json["metadata"]["llama.attention.head_count_kv"]["value"], 2);
  EXPECT_EQ(json["metadata"]["tokenizer.ggml.tokens"]["value"]["count"], 300);
  EXPECT_EQ(json["tensors"].size(), json["tensor_count"]);
  EXPECT_EQ(json["tokenizer"]["vocab"], 300);
}

TEST_F(Commands, VocabularyOnlyFiles) {
  const gguf::File file = gguf::File::open(model);
  gguf::Writer writer;
  for (const auto& [key, value] : file.metadata()) writer.add_value(key, value);
  const std::string path = folder / "vocab.gguf";
  writer.write(path);
  EXPECT_NE(greta_run({"inspect", path}).out.find("300 tokens"), std::string::npos);
  const Json json = json_of(greta_run({"tokenize", path, "--prompt", "abc", "--json"}));
  EXPECT_EQ(json["ids"].size(), json["pieces"].size());
  EXPECT_GE(json["ids"].size(), 3u);
  EXPECT_EQ(greta_run({"check", path}).status, 1);
  EXPECT_EQ(greta_run({"run", path, "--prompt", "a"}).status, 2);
}

TEST_F(Commands, TokenizeAndBack) {
  const std::string texts[] = {"Hello, world", " two  spaces ", "Grüße\n\tπ 漢字 🙂", "</s> and <s>",
                               ""};
  for (const std::string& text : texts)
    for (const bool special : {true, false}) {
      write_file(folder / "text", text);
      std::vector<std::string> arguments = {"tokenize", model, "--prompt-file", folder / "text", "--json"};
      if (!special) arguments.emplace_back("--no-special");
      const Json json = json_of(greta_run(arguments));
      const std::string ids = fmt::format("{}", fmt::join(json["ids"].get<std::vector<int>>(), ","));
      if (ids.empty()) continue;
      std::vector<std::string> back = {"tokenize", model, "--decode", "--token-ids", ids};
      if (!special) back.emplace_back("--no-special");
      EXPECT_EQ(greta_run(back).out, text) << ids;
      write_file(folder / "ids", ids + "\n");
      back = {"tokenize", model, "--decode", "--prompt-file", folder / "ids"};
      if (!special) back.emplace_back("--no-special");
      EXPECT_EQ(greta_run(back).out, text) << ids;
    }
  const Json plain = json_of(greta_run({"tokenize", model, "--prompt", "</s>", "--no-special", "--json"}));
  const Json read = json_of(greta_run({"tokenize", model, "--prompt", "</s>", "--json"}));
  EXPECT_GT(plain["ids"].size(), 2u);
  EXPECT_EQ(read["ids"].size(), 2u);  // the begin token and the one that the text names
  EXPECT_EQ(lines_of(greta_run({"tokenize", model, "--prompt", "a\nb"}).out).size(),
            json_of(greta_run({"tokenize", model, "--prompt", "a\nb", "--json"}))["ids"].size());
  // Bytes come in as they are: the newline at a file's end is a token too.
  const Outcome piped = greta_run({"tokenize", model, "--prompt-file", "-", "--json"}, with_input("a\n"));
  EXPECT_EQ(json_of(piped)["ids"],
            json_of(greta_run({"tokenize", model, "--prompt", "a\n", "--json"}))["ids"]);
}

TEST_F(Commands, TraceWritesWhatWasChosen) {
  const std::string path = folder / "t.safetensors";
  const Json json = json_of(greta_run({"trace", model, "--prompt", "Hello there", "-o", path, "--layers", "1",
                                       "--stages", "attn_out,logits", "--positions", "0,2-3", "--json"}));
  EXPECT_EQ(json["rows"], 3);
  EXPECT_EQ(json["stages"], 2);
  const SafeTensorsFile file(path);
  EXPECT_EQ(file.numbers("positions"), (std::vector<double>{0, 2, 3}));
  ASSERT_NE(file.find("layers.1.attn_out"), nullptr);
  EXPECT_EQ(file.find("layers.0.attn_out"), nullptr);
  EXPECT_EQ(file.find("layers.1.attn_out")->dtype, "F32");
  ASSERT_NE(file.find("logits"), nullptr);
  EXPECT_EQ(file.find("logits")->shape, (std::vector<int64_t>{3, 300}));
  EXPECT_EQ(file.metadata().at("model_sha256"), gguf::File::open(model).sha256());
  EXPECT_EQ(file.metadata().at("logits_hash"), json["logits_hash"]);
  for (const char* key : {"device", "build_commit", "build_dirty", "options", "schema"})
    EXPECT_FALSE(file.metadata().at(key).empty()) << key;
}

TEST_F(Commands, TraceHashCoversAllRowsWhateverIsRecorded) {
  const auto hash = [&](std::vector<std::string> extra, const std::string& prompt) {
    std::vector<std::string> arguments = {"trace", model, "--prompt", prompt, "-o", folder / "t.safetensors"};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const Outcome outcome = greta_run(arguments);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return hash_in(outcome.out);
  };
  const std::string whole = hash({}, "Hello there");
  EXPECT_EQ(whole.size(), 16u);
  EXPECT_EQ(hash({"--stages", "embed_out", "--positions", "0"}, "Hello there"), whole);
  EXPECT_EQ(hash({"--chunk", "3", "--threads", "1"}, "Hello there"), whole);
  EXPECT_NE(hash({}, "Jello there"), whole);  // an early token alone
  EXPECT_EQ(hash({"--device", "reference"}, "Hello there").size(), 16u);
  EXPECT_EQ(SafeTensorsFile(folder / "t.safetensors").find("final_norm")->dtype, "F64");
}

TEST_F(Commands, TraceOfAModelWhosePathIsNoUtf8) {
  const std::string path = folder / "m\xff.gguf";
  std::filesystem::rename(model, path);
  const Outcome outcome = greta_run({"trace", path, "--prompt", "a", "-o", folder / "t.safetensors"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(SafeTensorsFile(folder / "t.safetensors").metadata().at("model_file").find("m\xef\xbf\xbd.gguf"),
            std::string::npos);
}

TEST_F(Commands, TraceRefusesBadLists) {
  const struct {
    std::vector<std::string> extra;
    const char* message;
  } cases[] = {{{"--stages", "atn_out"}, "atn_out"},
               {{"--layers", "2"}, "--layers"},
               {{"--positions", "90"}, "--positions"}};
  for (const auto& c : cases) {
    std::vector<std::string> arguments = {"trace", model, "--prompt", "a", "-o", folder / "t.safetensors"};
    arguments.insert(arguments.end(), c.extra.begin(), c.extra.end());
    const Outcome outcome = greta_run(arguments);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_NE(outcome.err.find(c.message), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

/// The read rate that a row's share of a repeat stands for.
double implied_read_rate(const Json& row, size_t repeat, const Plan& plan) {
  const double n = 4, batch = row["batch"];
  const double bytes = n * static_cast<double>(weight_bytes_read(plan, WeightMode::stored, row["batch"])) +
                       batch * kv_bytes_read(plan.hp, KvType::f16, row["depth"], 4);
  const double seconds = n * batch / row["samples"][repeat].get<double>();
  return bytes / seconds / row["of_limit_samples"][repeat].get<double>();
}

void expect_spread(const std::vector<double>& two, double min, double median, double max) {
  ASSERT_EQ(two.size(), 2u);
  EXPECT_GT(min, 0.0);
  EXPECT_EQ(min, std::min(two[0], two[1]));
  EXPECT_DOUBLE_EQ(median, (two[0] + two[1]) / 2);
  EXPECT_EQ(max, std::max(two[0], two[1]));
}

TEST_F(Commands, BenchRowsAreHeldAgainstLimitsThatWereMeasured) {
  const Json json = json_of(greta_run({"bench", model, "--pp", "16", "--tg", "4", "--depth", "0,8", "--batch",
                                       "1,2", "--repeat", "2", "--threads", "1", "--json"}));
  EngineOptions options;
  options.backend.threads = 1;
  const ModelFile opened = ModelFile::open(model);
  const Plan plan = Engine::plan(opened, *make_backend("cpu", options.backend), options);
  const Json& read = json["limits"]["read_model"]["m.gguf"];
  const Json& compute = json["limits"]["compute"];
  const auto compute_limit = [&](const std::string& which) {
    ComputeLimit limit;
    limit.int16 = compute[which + "int16_per_s"];
    limit.fp32 = compute[which + "fp32_per_s"];
    return limit;
  };
  ASSERT_EQ(json["rows"].size(), 6u);  // pp at two depths, tg at two depths and two batches
  EXPECT_EQ(json["rows"][0]["test"], "pp16");
  EXPECT_EQ(json["rows"][1]["test"], "tg4");
  for (const Json& row : json["rows"]) {
    expect_spread(row["samples"], row["min"], row["tokens_per_s"], row["max"]);
    expect_spread(row["of_limit_samples"], row["of_limit_min"], row["of_limit"], row["of_limit_max"]);
    EXPECT_LT(row["of_limit"].get<double>(), 1.0);
    EXPECT_EQ(row["limit"], row["test"] == "pp16" ? "compute" : "read_model");
    for (size_t i = 0; i < 2; ++i) {
      if (row["test"] == "tg4") {
        const double rate = implied_read_rate(row, i, plan);
        EXPECT_GE(rate, read["min_bytes_per_s"].get<double>() * 0.999);
        EXPECT_LE(rate, read["bytes_per_s"].get<double>() * 1.001);
      } else {
        const Work work = prefill_work(plan, WeightMode::stored, row["depth"], 16);
        const double least = row["of_limit_samples"][i].get<double>() * 16 / row["samples"][i].get<double>();
        EXPECT_GE(least, least_seconds(work, compute_limit(""), Activations::bits16) * 0.999);
        EXPECT_LE(least, least_seconds(work, compute_limit("min_"), Activations::bits16) * 1.001);
      }
    }
  }
  // One measurement before the warm-up and one after each run; four rows read, two compute.
  EXPECT_EQ(read["measurements"], 4 * 4);
  EXPECT_EQ(compute["measurements"], 2 * 4);
  EXPECT_GE(read["bytes_per_s"], read["median_bytes_per_s"]);
  EXPECT_GE(read["median_bytes_per_s"], read["min_bytes_per_s"]);
  EXPECT_GT(json["limits"]["read"]["bytes_per_s"].get<double>(), 1e8);
  for (const char* key : {"cpu", "build", "files", "options"}) EXPECT_TRUE(json.contains(key)) << key;
}

TEST_F(Commands, BenchTellsModelsOfOneNameApart) {
  for (const char* sub : {"a", "b"}) std::filesystem::create_directory(folder / sub);
  const std::string a = make_model("a/m.gguf"), b = make_model("b/m.gguf", {"--ffn-dim", "1024"});
  const Json json =
      json_of(greta_run({"bench", a, b, model, "--pp", "0", "--tg", "1", "--repeat", "1", "--json"}));
  ASSERT_EQ(json["rows"].size(), 3u);
  EXPECT_EQ(json["rows"][0]["model"], a);
  EXPECT_EQ(json["rows"][1]["model"], b);
  const Json& read = json["limits"]["read_model"];
  ASSERT_EQ(read.size(), 3u) << read;
  EXPECT_LT(read[a]["buffer_bytes"], read[b]["buffer_bytes"]);
}

TEST_F(Commands, BenchMeasuresNothingForAModelThatCannotRun) {
  const std::string shorter = make_model("short.gguf", {"--context", "64"});
  const Outcome outcome =
      greta_run({"bench", model, shorter, "--pp", "0", "--tg", "60", "--depth", "5", "--repeat", "1"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_NE(
      outcome.err.find("short.gguf: --depth and --pp or --tg come to 65 positions; expected at most 64"),
      std::string::npos)
      << outcome.err;
  EXPECT_EQ(outcome.err.find("tokens/s"), std::string::npos) << outcome.err;
}

TEST_F(Commands, BenchSaysTheChunkInForce) {
  const Outcome outcome = greta_run({"bench", model, "--tg", "1", "--batch", "8", "--chunk", "4"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("--batch 8: expected at most 4"), std::string::npos) << outcome.err;
  const Json json = json_of(greta_run(
      {"bench", model, "--pp", "0", "--tg", "1", "--batch", "8", "--chunk", "8", "--repeat", "1", "--json"}));
  EXPECT_EQ(json["rows"][0]["chunk"], 8);
}

TEST_F(Commands, BenchWritesCsv) {
  const auto csv = lines_of(greta_run({"bench", model, "--pp", "0", "--tg", "2", "--batch", "1,2", "--repeat",
                                       "1", "--threads", "1", "--csv"})
                                .out);
  ASSERT_EQ(csv.size(), 3u);
  EXPECT_EQ(csv[0],
            "model,test,depth,batch,threads,tokens_per_s,min,max,of_limit,of_limit_min,of_limit_max,limit");
  EXPECT_TRUE(csv[2].starts_with("m.gguf,tg2,0,2,1,")) << csv[2];
  EXPECT_EQ(std::count(csv[2].begin(), csv[2].end(), ','), std::count(csv[0].begin(), csv[0].end(), ','));
}

TEST_F(Commands, SynthAndDevicesSpeakJson) {
  const Json made =
      json_of(greta_run({"synth", "-o", folder / "s.gguf", "--dim", "64", "--vocab", "300", "--json"}));
  EXPECT_EQ(made["bytes"], std::filesystem::file_size(folder / "s.gguf"));
  const Json devices = json_of(greta_run({"devices", "--json"}));
  EXPECT_EQ(devices["devices"][0]["device"], "cpu");
  EXPECT_EQ(devices["devices"][1]["device"], "reference");
  EXPECT_NE(greta_run({"devices"}).out.find("not in this build"), std::string::npos);
}

TEST_F(Commands, SynthIsReproducible) {
  make_model("a.gguf", {"--seed", "5", "--threads", "1"});
  make_model("b.gguf", {"--seed", "5", "--threads", "2"});
  make_model("c.gguf", {"--seed", "6"});
  EXPECT_EQ(read_file(folder / "a.gguf"), read_file(folder / "b.gguf"));
  EXPECT_NE(read_file(folder / "a.gguf"), read_file(folder / "c.gguf"));
}

}  // namespace
}  // namespace greta::test
