// greta verify: table, JSON, exit status.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/run_binary.h"

namespace greta::test {
namespace {

using Json = nlohmann::json;

class VerifyCommand : public CliTest {
 protected:
  std::string model = make_model("m.gguf", {"--type", "q4_1", "--context", "600"});
  Outcome verify(const std::vector<std::string>& extra) const {
    std::vector<std::string> arguments = {"verify", model};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    return greta_run(arguments);
  }
};

TEST_F(VerifyCommand, EveryRowOnAHealthyModel) {
  const Outcome outcome = verify({"--json"});
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  const Json document = Json::parse(outcome.out);
  EXPECT_EQ(document["schema"], "greta-verify-1");
  EXPECT_EQ(document["status"], 0);
  EXPECT_EQ(document["model"]["sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(document["model"]["layers"], 2);
  EXPECT_FALSE(document["build"]["commit"].get<std::string>().empty());
  EXPECT_FALSE(document["machine"]["cpu"].get<std::string>().empty());
  EXPECT_EQ(document["options"]["weights"], "stored");
  ASSERT_EQ(document["rows"].size(), 9u);
  for (const Json& row : document["rows"]) {
    EXPECT_EQ(row["verdict"], "pass") << row;
    EXPECT_TRUE(row["first"].is_null());
    EXPECT_FALSE(row["detail"].get<std::string>().empty());
    EXPECT_EQ(row["compared"].size(), 6u);
    for (const auto& [name, count] : row["compared"].items())
      EXPECT_GT(count, 0) << row["row"] << " " << name;
    EXPECT_GE(row["sides"].size(), 2u);
    for (const Json& side : row["sides"]) EXPECT_FALSE(side["route"].empty()) << row["row"];
    EXPECT_NE(outcome.err.find(row["row"].get<std::string>() + ": pass in "), std::string::npos);
  }
}

TEST_F(VerifyCommand, TheTableAndTheRowsThatWereAskedFor) {
  const Outcome outcome = verify({"--rows", "context,phase", "--context", "90", "--quiet"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const size_t context = outcome.out.find("\ncontext  pass");
  const size_t phase = outcome.out.find("\nphase    pass");
  ASSERT_NE(context, std::string::npos) << outcome.out;
  ASSERT_NE(phase, std::string::npos) << outcome.out;
  EXPECT_LT(context, phase);
  EXPECT_EQ(outcome.out.find("\nchunk"), std::string::npos);
  EXPECT_NE(outcome.out.find("90 tokens (the model's limit is 600), the last 16 "), std::string::npos);
  EXPECT_NE(outcome.out.find("sha256 "), std::string::npos);
}

TEST_F(VerifyCommand, ARowThatIsNoPassIsStatusOne) {
  const Outcome outside = verify({"--rows", "weights", "--activations", "8", "--json"});
  EXPECT_EQ(outside.status, 1) << outside.err;
  const Json row = Json::parse(outside.out)["rows"][0];
  EXPECT_EQ(row["verdict"], "fail");
  EXPECT_GT(row["figures"]["stored.mean_kl"], 1e-5);
  EXPECT_EQ(Json::parse(outside.out)["status"], 1);
  const Outcome same = verify({"--rows", "phase", "--chunk", "1"});
  EXPECT_EQ(same.status, 1);
  EXPECT_NE(same.out.find("\nphase    error"), std::string::npos) << same.out;
}

TEST_F(VerifyCommand, WhatCannotBeDoneIsStatusTwo) {
  for (const std::vector<std::string>& extra : {std::vector<std::string>{"--context", "601"},
                                                {"--device", "reference"},
                                                {"--expect", "layers=3"},
                                                {"--isa", "avx2", "--threads", "0"}}) {
    const Outcome outcome = verify(extra);
    EXPECT_EQ(outcome.status, 2) << extra[0];
    EXPECT_EQ(outcome.out, "") << extra[0];
    EXPECT_NE(outcome.err, "") << extra[0];
  }
  EXPECT_EQ(greta_run({"verify", folder / "none.gguf"}).status, 2);
}

TEST_F(VerifyCommand, CtrlCEndsItBetweenCalls) {
  bool sent = false;
  RunOptions options;
  options.watch = [&](pid_t process, const std::string&, const std::string& err) {
    if (sent || err.find("phase: pass") == std::string::npos) return;
    sent = true;
    ::kill(process, SIGINT);
  };
  const Outcome outcome = greta_run({"verify", model}, options);
  ASSERT_TRUE(sent) << outcome.err;
  EXPECT_EQ(outcome.status, 130);
  EXPECT_EQ(outcome.out, "");
}

}  // namespace
}  // namespace greta::test
