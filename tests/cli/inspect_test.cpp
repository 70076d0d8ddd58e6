// inspect: files of many keys, long names, and numbers at the ends of their types.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <span>

#include "cli/run_binary.h"
#include "gguf/gguf.h"

namespace greta::test {
namespace {

class Inspect : public CliTest {
 protected:
  std::string path = folder / "f.gguf";
};

/// A search through all keys for each of them takes longer than the limit.
TEST_F(Inspect, AHundredThousandKeys) {
  constexpr uint32_t kKeys = 100000;
  gguf::Writer writer;
  for (uint32_t i = 0; i < kKeys; ++i) writer.add_u32(fmt::format("key.{}", i * 7919 % kKeys), i);
  writer.write(path);
  RunOptions options;
  options.seconds = 9.0;
  const Outcome outcome = greta_run({"inspect", path, "--metadata", "--json"}, options);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const nlohmann::json json = nlohmann::json::parse(outcome.out);  // sorted: an ordered one is slow to parse
  EXPECT_EQ(json["metadata"].size(), kKeys);
  EXPECT_EQ(json["metadata_keys"], kKeys);
  EXPECT_EQ(json["metadata"]["key.7919"], (nlohmann::json{{"type", "u32"}, {"value", 1}}));
  size_t at = 0;
  for (uint32_t i = 0; i < kKeys && at != std::string::npos; ++i) {
    at = outcome.out.find(fmt::format("\"key.{}\": {{", i * 7919 % kKeys), at);
    EXPECT_NE(at, std::string::npos) << "key " << i << " is out of order";
  }
}

TEST_F(Inspect, AFileWithoutKeysHasNoneInItsMetadata) {
  gguf::Writer().write(path);
  const Outcome outcome = greta_run({"inspect", path, "--metadata", "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["metadata"], nlohmann::json::object());
}

TEST_F(Inspect, ArraysHoldWhatTheFileHolds) {
  const uint64_t wide[] = {~uint64_t{0}, 3};
  const bool flags[] = {true, false};
  gguf::Writer writer;
  const auto add = [&](const char* key, gguf::ValueType element, const auto& values) {
    writer.add_value(key,
                     {gguf::ValueType::Array,
                      gguf::Array{element, std::size(values), std::as_bytes(std::span(values)), {}, {}}});
  };
  add("wide", gguf::ValueType::U64, wide);
  add("flags", gguf::ValueType::Bool, flags);
  writer.write(path);
  EXPECT_EQ(greta_run({"inspect", path, "--metadata"}).out,
            "wide = array of u64 [18446744073709551615, 3]\nflags = array of bool [true, false]\n");
  const auto json = nlohmann::json::parse(greta_run({"inspect", path, "--metadata", "--json"}).out);
  EXPECT_EQ(json["metadata"]["wide"]["value"]["first"], (nlohmann::json{~uint64_t{0}, 3}));
  EXPECT_EQ(json["metadata"]["flags"]["value"]["first"], (nlohmann::json{true, false}));
}

TEST_F(Inspect, OneLongNameDoesNotWidenTheOthers) {
  const std::string longest(5000, 'n');
  gguf::Writer writer;
  for (const std::string& name : {std::string("a"), longest, std::string("b")})
    writer.add_tensor(name, {1}, quant::Type::F32, [](const gguf::Writer::Sink& sink) {
      const float one[] = {1.0F};
      sink(std::as_bytes(std::span(one)));
    });
  writer.write(path);
  const Outcome outcome = greta_run({"inspect", path, "--tensors"});
  const std::vector<std::string> lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 4u) << outcome.err;
  for (const size_t i : {0, 1, 3}) EXPECT_EQ(lines[i].find_first_of("[s", 1), 82u) << lines[i];
  EXPECT_EQ(lines[2].rfind(longest + "  [1]", 0), 0u);
}

}  // namespace
}  // namespace greta::test
