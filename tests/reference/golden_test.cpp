// The reference backend against Hugging Face transformers in true float64 (numerics.md section 4), and the
// cpu backend with an FP32 cache behind it, on every committed shape.
#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "support.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

/// An entry of tests/golden/models/manifest.json.
struct Golden {
  std::string name, gguf, stages, logits;
  std::optional<int64_t> context;  ///< that the run must ask for
};

std::vector<Golden> goldens() {
  std::vector<Golden> all;
  std::ifstream in(test::golden("models/manifest.json"));
  for (const auto& entry : nlohmann::json::parse(in)) {
    const auto path = [&](const char* key) {
      return test::golden("models/" + entry.at(key).get<std::string>());
    };
    all.push_back({entry.at("name"), path("gguf"), path("golden"), path("golden_logits"), std::nullopt});
    if (entry.contains("context")) all.back().context = entry["context"].get<int64_t>();
  }
  return all;
}

std::vector<TokenId> tokens_of(const SafeTensorsFile& file) {
  std::vector<TokenId> ids;
  for (const double id : file.numbers("token_ids")) ids.push_back(static_cast<TokenId>(id));
  return ids;
}

TraceRecorder record(Engine& engine, const std::vector<TokenId>& ids) {
  TraceRecorder recorder({});
  engine.feed_all(0, ids, Feed::Logits::all, &recorder);
  return recorder;
}

EngineOptions options_for(const Golden& golden, const std::string& device) {
  EngineOptions options;
  options.device = device;
  options.context = golden.context;
  options.chunk = 64;
  options.all_logits = true;
  options.backend.threads = 2;
  options.backend.kv_type = KvType::f32;
  return options;
}

/// Largest difference over the row's largest magnitude; infinity where a NaN is on one side alone.
double distance(const std::vector<double>& got, const double* expected) {
  double largest = 0.0;
  double difference = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double d = std::abs(got[i] - expected[i]);
    if (!(d <= difference)) difference = std::isnan(d) ? INFINITY : d;
  }
  return difference / largest;
}

/// Row distance in the Euclidean norm.
double norm_distance(const std::vector<double>& got, const double* expected) {
  double square = 0.0;
  double difference = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    square += expected[i] * expected[i];
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
  }
  return std::sqrt(difference / square);
}

/// The worst row of every stage in a golden file, and how many rows were compared.
struct Worst {
  double value = 0.0;
  std::string where = "nowhere";
  size_t rows = 0;
};

template <class Distance>
Worst worst_row(const TraceRecorder& trace, const SafeTensorsFile& expected, Distance measure) {
  Worst worst;
  const auto positions = expected.numbers("positions");
  for (const auto& [key, rows] : trace.rows()) {
    const std::string name = trace_name(key.first, key.second);
    if (expected.find(name) == nullptr) continue;
    const auto numbers = expected.numbers(name);
    const size_t width = numbers.size() / positions.size();
    for (const auto& row : rows)
      for (size_t i = 0; i < positions.size(); ++i) {
        if (static_cast<double>(row.position) != positions[i]) continue;
        EXPECT_EQ(row.values.size(), width) << name;
        if (row.values.size() != width) continue;
        ++worst.rows;
        const double d = measure(row.values, numbers.data() + i * width);
        if (!(d <= worst.value))
          worst = {d, name + " at position " + std::to_string(row.position), worst.rows};
      }
  }
  return worst;
}

/// Tensors of a golden that are stages.
std::set<std::string> stages_in(const SafeTensorsFile& file) {
  std::set<std::string> names;
  for (const auto& [name, tensor] : file.tensors())
    if (stage_from_name(name.substr(name.rfind('.') + 1))) names.insert(name);
  return names;
}

class GoldenModel : public testing::TestWithParam<Golden> {};

TEST_P(GoldenModel, ReferenceWithinOneBillionthOfTransformers) {
  const auto model = ModelFile::open(GetParam().gguf);
  const SafeTensorsFile logits(GetParam().logits);
  const SafeTensorsFile stages(GetParam().stages);
  Engine engine(model, options_for(GetParam(), "reference"));
  const auto trace = record(engine, tokens_of(logits));

  const Worst of_logits = worst_row(trace, logits, distance);
  const Worst of_stages = worst_row(trace, stages, distance);
  EXPECT_EQ(of_logits.rows, logits.numbers("positions").size());
  EXPECT_EQ(of_stages.rows, stages.numbers("positions").size() * stages_in(stages).size());
  EXPECT_TRUE(of_logits.value <= 1e-9) << of_logits.value << " in " << of_logits.where;
  EXPECT_TRUE(of_stages.value <= 1e-9) << of_stages.value << " in " << of_stages.where;
  RecordProperty("worst", fmt::format("{:.2e}", std::max(of_logits.value, of_stages.value)));

  std::set<std::string> traced;  // and there is no stage that the oracle does not have
  for (const auto& [key, rows] : trace.rows()) traced.insert(trace_name(key.first, key.second));
  std::set<std::string> expected = stages_in(stages);
  expected.insert("logits");
  EXPECT_EQ(traced, expected);
}

TEST_P(GoldenModel, CpuLogitsWithinOneTenThousandth) {
  const auto model = ModelFile::open(GetParam().gguf);
  const SafeTensorsFile logits(GetParam().logits);
  Engine engine(model, options_for(GetParam(), "cpu"));
  const auto trace = record(engine, tokens_of(logits));
  const Worst worst = worst_row(trace, logits, norm_distance);
  EXPECT_EQ(worst.rows, logits.numbers("positions").size());
  EXPECT_TRUE(worst.value <= 1e-4) << worst.value << " in " << worst.where;
}

INSTANTIATE_TEST_SUITE_P(Shapes, GoldenModel, testing::ValuesIn(goldens()),
                         [](const auto& info) { return info.param.name; });

TEST(GoldenComparison, SeesOneChangedValueAndANaN) {
  std::vector<double> row = {1.0, -2.0, 3.0};
  const std::vector<double> expected = row;
  EXPECT_EQ(distance(row, expected.data()), 0.0);
  row[1] += 1e-8;
  EXPECT_GT(distance(row, expected.data()), 1e-9);
  row[1] = NAN;
  EXPECT_EQ(distance(row, expected.data()), INFINITY);
}

}  // namespace
}  // namespace greta
