#include "trace/trace.h"

#include <gmock/gmock.h>

#include <bit>
#include <fstream>

#include "base/error.h"
#include "support.h"
#include "trace/row_hash.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

using testing::HasSubstr;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(RowHash, IsTheDocumentedSum) {
  // SplitMix64's finaliser on known inputs, worked out apart from this code.
  EXPECT_EQ(mix64(0), 0u);
  EXPECT_EQ(mix64(1), 0x5692161d100b05e5u);
  const std::vector<float> row = {1.0f, -2.5f};
  EXPECT_EQ(row_hash(std::span<const float>(row)), mix64(0x3f800000u) + mix64((1ull << 32) + 0xc0200000u));
  const std::vector<double> wide = {1.0};
  EXPECT_EQ(row_hash(std::span<const double>(wide)), mix64(0) + mix64((1ull << 32) + 0x3ff00000u));
}

TEST(RowHash, TellsZeroesAndPlacesApart) {
  const std::vector<float> a = {0.0f, 1.0f}, b = {-0.0f, 1.0f}, c = {1.0f, 0.0f};
  EXPECT_NE(row_hash(std::span<const float>(a)), row_hash(std::span<const float>(b)));
  EXPECT_NE(row_hash(std::span<const float>(a)), row_hash(std::span<const float>(c)));
}

TEST(Lists, NumbersAndRanges) {
  EXPECT_THAT(parse_number_list("0,5-7,6", 8, "--positions"), testing::ElementsAre(0, 5, 6, 7));
  EXPECT_THAT(message_of([] { parse_number_list("0,8", 8, "--layers"); }),
              HasSubstr("--layers 0,8: 8 is past the last, 7"));
  for (const char* bad : {"", "1,", "-1", "3-1", "1-", "x", "1.5", " 1"})
    EXPECT_THAT(message_of([&] { parse_number_list(bad, 9, "--layers"); }), HasSubstr("--layers")) << bad;
}

TEST(Lists, Stages) {
  EXPECT_THAT(parse_stage_list("attn_out,logits"), testing::ElementsAre(Stage::attn_out, Stage::logits));
  EXPECT_THAT(message_of([] { parse_stage_list("attn_out,logit"); }), HasSubstr("no stage 'logit'"));
  for (int i = 0; i < kStages; ++i) {
    const auto stage = static_cast<Stage>(i);
    EXPECT_EQ(stage_from_name(name_of(stage)), stage);
  }
}

TEST(SafeTensors, RoundTrip) {
  const test::TemporaryFolder folder;
  const std::vector<double> wide = {1.5, -2.25, 1e300};
  const std::vector<int32_t> ids = {7, -1};
  write_safetensors(folder / "t.safetensors",
                    {{"wide", "F64", {3, 1}, std::as_bytes(std::span(wide))},
                     {"ids", "I32", {2}, std::as_bytes(std::span(ids))}},
                    {{"device", "cpu"}});
  const SafeTensorsFile file(folder / "t.safetensors");
  EXPECT_EQ(file.metadata().at("device"), "cpu");
  EXPECT_EQ(file.numbers("wide"), wide);
  EXPECT_THAT(file.numbers("ids"), testing::ElementsAre(7.0, -1.0));
  EXPECT_THAT(message_of([&] { file.numbers("absent"); }), HasSubstr("holds no tensor absent"));
}

TEST(SafeTensors, MetadataThatIsNoUtf8) {
  test::TemporaryFolder folder;
  write_safetensors(folder / "a", {},
                    {{"model_file",
                      "a\xff"
                      "b"}});
  EXPECT_EQ(SafeTensorsFile(folder / "a").metadata().at("model_file"),
            "a\xef\xbf\xbd"
            "b");
}

TEST(SafeTensors, BrokenFilesAreNamed) {
  const test::TemporaryFolder folder;
  const auto read = [&](const std::string& bytes) {
    std::ofstream(folder / "b", std::ios::binary) << bytes;
    return message_of([&] { SafeTensorsFile(folder / "b"); });
  };
  const auto with = [](std::string json, const std::string& data) {
    const uint64_t n = json.size();
    return std::string(reinterpret_cast<const char*>(&n), 8) + json + data;
  };
  EXPECT_THAT(read("abc"), HasSubstr("3 bytes"));
  EXPECT_THAT(read(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f") + "{}"), HasSubstr("header length"));
  EXPECT_THAT(read(with("[1]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(read(with(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "1234")),
              HasSubstr("need 8"));
  EXPECT_THAT(read(with(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", "1234")),
              HasSubstr("outside"));
  EXPECT_THAT(read(with(R"({"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}})", "1234")),
              HasSubstr("unknown type"));
  EXPECT_THAT(read(with(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "12345678")),
              HasSubstr("expected 0"));
  EXPECT_THAT(read(with(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "12345678")),
              HasSubstr("4 bytes after"));
  EXPECT_THAT(read(with(R"({"a":{"shape":[1]}})", "")), HasSubstr("tensor a"));
}

class TracedRun : public testing::Test {
 protected:
  TracedRun() {
    SynthOptions synth;
    synth.dim = 64;
    synth.layers = 3;
    synth.ffn_dim = 96;
    synth.vocab = 300;
    synthesise(synth, folder_ / "m.gguf", 1);
  }
  EngineOptions options(const std::string& device, int64_t chunk = 16) const {
    EngineOptions o;
    o.device = device;
    o.chunk = chunk;
    o.context = 64;
    o.all_logits = true;
    o.backend.threads = 1;
    return o;
  }
  test::TemporaryFolder folder_;
};

TEST_F(TracedRun, HoldsTheChosenRowsAndNothingElse) {
  const auto model = ModelFile::open(folder_ / "m.gguf");
  const auto ids = test::random_tokens(40, 300, 1);
  for (const std::string device : {"cpu", "reference"}) {
    Engine engine(model, options(device));
    TraceRecorder recorder({{0, 2}, {Stage::attn_out, Stage::v, Stage::logits}, {0, 17, 39}});
    engine.feed_all(0, ids, Feed::Logits::all, &recorder);
    recorder.write(folder_ / "t", {ids}, device == "reference", {{"device", device}});
    const SafeTensorsFile file(folder_ / "t");
    std::vector<std::string> names;
    for (const auto& [name, tensor] : file.tensors()) {
      names.push_back(name);
      if (name.find('.') != std::string::npos) EXPECT_EQ(tensor.dtype, device == "cpu" ? "F32" : "F64");
    }
    EXPECT_THAT(names, testing::UnorderedElementsAre("token_ids", "sequence_offsets", "sequence", "positions",
                                                     "logits", "layers.0.attn_out", "layers.0.v",
                                                     "layers.2.attn_out", "layers.2.v"));
    EXPECT_THAT(file.numbers("positions"), testing::ElementsAre(0, 17, 39));
    EXPECT_EQ(file.tensors().at("logits").shape, (std::vector<int64_t>{3, 300}));
    EXPECT_EQ(file.metadata().at("device"), device);
    EXPECT_EQ(std::vector<double>(ids.begin(), ids.end()), file.numbers("token_ids"));
  }
}

TEST_F(TracedRun, ChangesNoBit) {
  const auto model = ModelFile::open(folder_ / "m.gguf");
  const auto ids = test::random_tokens(40, 300, 2);
  for (const std::string device : {"cpu", "reference"}) {
    const auto hash = [&](Tap* tap) {
      Engine engine(model, options(device));
      uint64_t sum = 0;
      engine.feed_all(0, ids, Feed::Logits::all, tap, [&] {
        for (size_t i = 0; i < engine.logits_rows().size(); ++i)
          sum += positioned(row_hash(engine.logits(i)), engine.logits_rows()[i].position);
      });
      return sum;
    };
    TraceRecorder recorder({});
    HashTap hashes;
    const uint64_t untraced = hash(nullptr);
    EXPECT_EQ(hash(&recorder), untraced);
    EXPECT_EQ(hash(&hashes), untraced);
    if (device == "cpu") EXPECT_EQ(hashes.logits_hash(0), untraced);
    EXPECT_EQ(recorder.rows().size(), 3u * 16u + 3u);
  }
}

TEST_F(TracedRun, NothingRecordedIsAnError) {
  TraceRecorder recorder({});
  EXPECT_THAT(message_of([&] { recorder.write(folder_ / "t", {}, false, {}); }),
              HasSubstr("nothing was recorded"));
}

}  // namespace
}  // namespace greta
