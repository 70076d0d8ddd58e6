// greta bisect as scripts use it: exit status, the two lines, the report's files.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/run_binary.h"

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
  for (const char* file :
       {"config.json", "summary.json", "report.md", "report.html", "tokens.jsonl", "run.log", "p0_short.log"})
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
