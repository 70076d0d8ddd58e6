// greta devices and greta --version: which devices there are, in text and as one JSON document.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "backend/gpu/targets.h"
#include "cli/run_binary.h"

namespace greta::test {
namespace {

using Json = nlohmann::json;

class DevicesCommand : public CliTest {};

TEST_F(DevicesCommand, ALineForEachDeviceAndEachTargetWithout) {
  const Outcome outcome = greta_run({"devices"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const std::vector<std::string> lines = lines_of(outcome.out);
  const std::vector<gpu::DeviceInfo> gpus = gpu::list_devices();
  ASSERT_EQ(lines.size(), 2 + gpus.size()) << outcome.out;
  EXPECT_TRUE(lines[0].starts_with("cpu ")) << lines[0];
  EXPECT_TRUE(lines[1].starts_with("reference ")) << lines[1];
  for (size_t i = 0; i < gpus.size(); ++i) {
    EXPECT_TRUE(lines[2 + i].starts_with(gpus[i].device + " ")) << lines[2 + i];
    EXPECT_NE(lines[2 + i].find(gpus[i].unusable), std::string::npos) << lines[2 + i];
    EXPECT_NE(lines[2 + i].find(gpus[i].description), std::string::npos) << lines[2 + i];
  }
}

TEST_F(DevicesCommand, JsonHasWhatTheTextShows) {
  const Outcome outcome = greta_run({"devices", "--json"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  const Json json = Json::parse(outcome.out);
  size_t at = 2;
  for (const gpu::DeviceInfo& info : gpu::list_devices()) {
    if (info.device.find(':') == std::string::npos) {
      EXPECT_EQ(json["unavailable"][info.device], info.unusable);
      continue;
    }
    const Json& device = json["devices"].at(at++);
    EXPECT_EQ(device["device"], info.device);
    EXPECT_EQ(device["name"], info.description);
    EXPECT_EQ(device["total_bytes"], info.total_bytes);
    EXPECT_EQ(device.contains("unusable"), !info.unusable.empty());
  }
  EXPECT_EQ(json["devices"].size(), at);
  const auto not_built = json["not_built"].get<std::vector<std::string>>();
  const auto lacks = [&](const char* target) {
    return std::count(not_built.begin(), not_built.end(), target) == 1;
  };
  EXPECT_EQ(lacks("cuda"), gpu::built_cuda().empty());
  EXPECT_EQ(lacks("hip"), gpu::built_hip().empty());
}

TEST_F(DevicesCommand, VersionNamesTheTargetsOfTheBuild) {
  const Outcome outcome = greta_run({"--version"});
  EXPECT_EQ(outcome.status, 0);
  const size_t at = outcome.out.find("backends");
  ASSERT_NE(at, std::string::npos) << outcome.out;
  const std::string backends = outcome.out.substr(at);
  EXPECT_EQ(backends.find("cuda (" + gpu::built_cuda() + ")") != std::string::npos,
            !gpu::built_cuda().empty());
  EXPECT_EQ(backends.find("hip (" + gpu::built_hip() + ")") != std::string::npos, !gpu::built_hip().empty());
  EXPECT_EQ(backends.find("cuda") != std::string::npos, !gpu::built_cuda().empty());
}

TEST_F(DevicesCommand, AMissingDeviceIsStatus2AndNothingIsLeft) {
  const std::string model = make_model("m.gguf");
  for (const std::string device : {"cuda:1000", "hip:1000"}) {
    const Outcome run = greta_run({"run", model, "--prompt", "a", "--device", device});
    EXPECT_EQ(run.status, 2) << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_NE(run.err.find(device), std::string::npos) << run.err;
    EXPECT_EQ(greta_run({"bench", model, "--device", device}).status, 2);
  }
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

}  // namespace
}  // namespace greta::test
