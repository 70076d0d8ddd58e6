// greta bisect as scripts use it: exit status, the two lines, the report's files.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/run_binary.h"
#include "gpu_devices.h"

namespace greta::test {
namespace {

class BisectCommand : public CliTest {
 protected:
  std::string model = make_model("m.gguf");
  Outcome bisect(std::vector<std::string> more, const std::string& report) {
    std::vector<std::string> arguments = {"bisect", model, "--quiet", "-o", folder / report};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return greta_run(arguments);
  }
  nlohmann::json summary(const std::string& report) {
    std::ifstream in(folder / report + "/summary.json");
    return nlohmann::json::parse(in, nullptr, false);
  }
};

TEST_F(BisectCommand, StatusSaysWhatWasFound) {
  const Outcome clean = bisect({}, "clean");
  EXPECT_EQ(clean.status, 0) << clean.err << clean.out;
  EXPECT_EQ(clean.out.find("FIRST_FAIL"), std::string::npos);
  for (const char* file : {"config.json", "summary.json", "report.md", "report.html", "tokens.jsonl",
                           "run.log", "p0_short.prompt.log", "trace.safetensors"})
    EXPECT_TRUE(std::filesystem::exists(folder / "clean/" + file)) << file;
  EXPECT_EQ(summary("clean")["status"], 0);
  EXPECT_GT(summary("clean")["prompts"][0]["counts"]["rows_judged"], 0);

  const Outcome fault = bisect({"--b", "cpu,fault=row-gain@1,,5", "--layers", "0,1"}, "fault");
  EXPECT_EQ(fault.status, 1) << fault.err;
  EXPECT_NE(fault.out.find("\nFIRST_FAIL "), std::string::npos) << fault.out;
  EXPECT_NE(fault.out.find("\nCAUSE "), std::string::npos) << fault.out;
  EXPECT_EQ(summary("fault")["prompts"][0]["first"]["layer"], 1);
  EXPECT_TRUE(std::filesystem::exists(folder / "fault/trace.safetensors"));
}

TEST_F(BisectCommand, WhatCannotBeDoneLeavesNothing) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--a", "cpu", "--b", "cpu"},      {"--b", "cpu,phase=sideways"},
      {"--prompts", "no_such_prompt"},   {"--layers", "99"},
      {"--b", "trace=nowhere"},          {"--b", "cpu,fault=no-such"},
      {"--prompts", "p0_short,p0_short"}};
  for (const auto& arguments : wrong) {
    const Outcome outcome = bisect(arguments, "wrong");
    EXPECT_EQ(outcome.status, 2) << arguments.back() << outcome.out;
    EXPECT_EQ(outcome.err.rfind("greta: ", 0), 0u) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "wrong")) << arguments.back();
  }
}

/// With a fault or without, what a device cannot do is told by the plan.
TEST_F(BisectCommand, AShapeThatTheDeviceLacksIsToldBeforeItRuns) {
  if (!has_sim()) GTEST_SKIP() << "this build has no emulation";
  model = make_model("wide.gguf", {"--head-dim", "320"});
  for (const std::string subject : {"sim:32", "sim:32,fault=row-gain@1"}) {
    const Outcome outcome = bisect({"--b", subject}, "wide");
    EXPECT_EQ(outcome.status, 2) << outcome.out;
    EXPECT_NE(outcome.err.find("on sim:32, got 320"), std::string::npos) << subject << ": " << outcome.err;
  }
}

TEST_F(BisectCommand, APromptsFileIsWhatItsNameSays) {
  const auto prompt = [&](const std::string& name, const std::string& content) {
    write_file(folder / name, content);
    return greta_run({"bisect", model, "--quiet", "--max-tokens", "1", "--prompts", folder / name, "-o",
                      folder / ("of " + name)});
  };
  const std::pair<std::string, std::string> wrong[] = {
      {"nul.txt", std::string("a\0b", 3)}, {"bytes.txt", "a\xff"},     {"cut.json", "[1,[[2"},
      {"nested.json", "[[1, 2]]"},         {"real.json", "[1.5]"},     {"far.json", "[1, 99999999999]"},
      {"object.json", "{\"ids\": [1]}"},   {"brackets.ids", "[1, 2]"}, {"far.ids", "1 99999999"}};
  for (const auto& [name, content] : wrong) {
    const Outcome outcome = prompt(name, content);
    EXPECT_EQ(outcome.status, 2) << name << outcome.out;
    EXPECT_NE(outcome.err.find(name), std::string::npos) << name << ": " << outcome.err;
    EXPECT_EQ(outcome.err.find("--token-ids"), std::string::npos) << name << ": " << outcome.err;
  }
  EXPECT_EQ(prompt("good.json", "[1, 5,\n7]").status, 0);
  EXPECT_EQ(prompt("good.ids", "1, 5\n7\n").status, 0);
}

TEST_F(BisectCommand, PinsAreHeld) {
  const Outcome other = bisect({"--expect", "dim=1,layers=9"}, "pinned");
  EXPECT_EQ(other.status, 2) << other.out;
  EXPECT_NE(other.err.find("--expect dim: expected 1, got 64"), std::string::npos) << other.err;
  EXPECT_NE(other.err.find("--expect layers: expected 9, got 2"), std::string::npos) << other.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "pinned"));
  EXPECT_EQ(bisect({"--expect", "no_such_field=1"}, "pinned").status, 2);
  EXPECT_EQ(bisect({"--expect", "dim=64,layers=2,arch=llama"}, "held").status, 0);
  const Outcome self = greta_run({"bisect", model, "--self-test", "--expect", "dim=1", "--quiet"});
  EXPECT_EQ(self.status, 2);
  EXPECT_NE(self.err.find("--expect dim"), std::string::npos) << self.err;
}

TEST_F(BisectCommand, OptionsWithoutEffectAreRefused) {
  const std::vector<std::vector<std::string>> wrong = {{"--self-test", "--a", "cpu"},
                                                       {"--self-test", "--prompts", "p0_short"},
                                                       {"--self-test", "--layers", "0"},
                                                       {"--self-test", "--max-tokens", "3"},
                                                       {"--self-test", "--allow", "rounding"},
                                                       {"--self-test", "--repeat-run"},
                                                       {"--self-test", "--keep-going"},
                                                       {"--self-test", "--context", "100"},
                                                       {"--self-test", "--chunk", "7"},
                                                       {"--self-test", "-o", folder / "never"},
                                                       {"--plantings", "5"},
                                                       {"--clean", "5"},
                                                       {"--b", "trace=t.safetensors", "--max-tokens", "3"},
                                                       {"--a", "trace=t.safetensors", "--max-tokens", "3"},
                                                       {"--b", "cpu", "--device", "cpu"}};
  for (const auto& arguments : wrong) {
    std::vector<std::string> all = {"bisect", model, "--quiet"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Outcome outcome = greta_run(all);
    EXPECT_EQ(outcome.status, 2) << arguments[0] << ' ' << arguments.back();
    EXPECT_NE(outcome.err.find(" with "), std::string::npos) << arguments.back() << ": " << outcome.err;
  }
  for (const std::string subject :
       {"trace=t.safetensors", "reference", "cpu,fault=row-gain", "cpu,file=other.gguf"}) {
    const Outcome outcome = greta_run({"bisect", model, "--quiet", "--self-test", "--b", subject});
    EXPECT_EQ(outcome.status, 2) << subject;
    EXPECT_NE(outcome.err.find("expected a device"), std::string::npos) << subject << ": " << outcome.err;
  }
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

/// The folder that a process is started in, for as long as one lives.
class WorkingFolder {
 public:
  explicit WorkingFolder(const std::string& path) { std::filesystem::current_path(path); }
  ~WorkingFolder() { std::filesystem::current_path(was_); }

 private:
  std::filesystem::path was_ = std::filesystem::current_path();
};

TEST_F(BisectCommand, AFailureLeavesTheFoldersAsTheyWere) {
  // A prompt whose log's name is longer than a file's name can be: the report fails at its end.
  const std::string prompt = folder / (std::string(250, 'n') + ".txt");
  write_file(prompt, "Hi");
  const std::vector<std::string> before = files();
  const Outcome fresh = bisect({"--prompts", prompt}, "a/b/c");
  EXPECT_EQ(fresh.status, 2);
  EXPECT_NE(fresh.err.find("File name too long"), std::string::npos) << fresh.err;
  EXPECT_EQ(files(), before);

  std::filesystem::create_directory(folder / "mine");
  EXPECT_EQ(bisect({"--prompts", prompt}, "mine").status, 2);
  EXPECT_EQ(bisect({"--layers", "99"}, "mine").status, 2);
  EXPECT_TRUE(std::filesystem::is_directory(folder / "mine")) << "the user's own folder is gone";
  EXPECT_TRUE(std::filesystem::is_empty(folder / "mine"));
  std::filesystem::remove(folder / "mine");

  const WorkingFolder here(folder.path());
  EXPECT_EQ(greta_run({"bisect", model, "--layers", "99", "--quiet"}).status, 2);
  EXPECT_EQ(files(), before) << "artifacts/<date> is left";
  EXPECT_EQ(greta_run({"bisect", model, "--quiet"}).status, 0);
  EXPECT_TRUE(std::filesystem::exists(folder / "artifacts"));
}

TEST_F(BisectCommand, APromptMayBeCalledRun) {
  write_file(folder / "run.txt", "Hi");
  EXPECT_EQ(bisect({"--prompts", folder / "run.txt"}, "report").status, 0);
  EXPECT_NE(read_file(folder / "report/run.log").find("side b: run ("), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(folder / "report/run.prompt.log"));
}

TEST_F(BisectCommand, AModelsNameNeedNotBeUtf8) {
  const std::string odd = folder / "m\xff.gguf";
  std::filesystem::copy_file(model, odd);
  const Outcome outcome =
      greta_run({"bisect", odd, "--b", "cpu,file=" + odd, "--quiet", "-o", folder / "report"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(summary("report")["kind"], "NONE");
  EXPECT_FALSE(read_file(folder / "report/config.json").empty());
  EXPECT_TRUE(std::filesystem::exists(folder / "report/trace.safetensors"));
}

TEST_F(BisectCommand, AnotherFileIsInputAndNeverACrash) {
  for (const std::vector<std::string>& shape :
       std::vector<std::vector<std::string>>{{"--layers", "1"}, {"--ffn-dim", "96"}, {"--experts", "4"}}) {
    std::vector<std::string> arguments = {"synth", "-o",     folder / "o.gguf", "--heads", "4",
                                          "--dim", "64",     "--kv-heads",      "2",       "--vocab",
                                          "300",   "--quiet"};
    if (shape[0] != "--layers") arguments.insert(arguments.end(), {"--layers", "2"});
    arguments.insert(arguments.end(), shape.begin(), shape.end());
    ASSERT_EQ(greta_run(arguments).status, 0);
    const std::vector<std::string> subjects = {"--a", "cpu", "--b", "cpu,file=" + (folder / "o.gguf")};
    const Outcome found = bisect(subjects, shape[0]);
    EXPECT_EQ(found.status, 1) << shape[0] << found.err;
    EXPECT_NE(found.out.find("kind=INPUT"), std::string::npos) << shape[0] << found.out;
    std::vector<std::string> going = subjects;
    going.push_back("--keep-going");
    const Outcome refused = bisect(going, shape[0] + "k");
    EXPECT_EQ(refused.status, 2) << shape[0];
    EXPECT_NE(refused.err.find("expected "), std::string::npos) << refused.err;
  }
}

TEST_F(BisectCommand, SelfTestCounts) {
  const Outcome outcome =
      greta_run({"bisect", model, "--self-test", "--plantings", "6", "--clean", "2", "--json", "--quiet"});
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out, nullptr, false)["self_test"];
  EXPECT_EQ(json["planted"], 6);
  EXPECT_EQ(json["detected"], 6);
  EXPECT_EQ(json["clean"], 2);
  EXPECT_EQ(json["false_alarms"], 0);
}

}  // namespace
}  // namespace greta::test
