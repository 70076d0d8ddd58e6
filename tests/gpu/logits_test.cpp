// Logits as whoever samples sees them, in the host's memory, beside the same rows read by themselves.
#include <gtest/gtest.h>

#include <vector>

#include "engine/engine.h"
#include "gpu_devices.h"
#include "support.h"
#include "synth/synth.h"
#include "temporary_folder.h"

namespace greta {
namespace {

class GpuLogits : public testing::TestWithParam<std::string> {
 protected:
  GpuLogits() {
    SynthOptions synth;
    synth.dim = 64;
    synth.layers = 1;
    synth.ffn_dim = 64;
    synth.heads = 2;
    synth.kv_heads = 1;
    synth.vocab = 300;  // the emulation lends three rows together
    synth.context = 64;
    synth.type = quant::Type::Q8_0;
    synthesise(synth, folder_ / "m.gguf", 2);
  }
  const test::TemporaryFolder folder_;
};

/// Row i in place, which is the row itself.
std::vector<float> row_of(Engine& engine, size_t i) {
  const auto seen = engine.logits(i);
  const std::vector<float> row(seen.begin(), seen.end());
  std::vector<double> exact(row.size());
  engine.logits(i, exact);
  EXPECT_EQ(std::vector<double>(row.begin(), row.end()), exact) << "row " << i;
  return row;
}

TEST_P(GpuLogits, AreThoseOfTheLastCallInAnyOrder) {
  EngineOptions options;
  options.device = GetParam();
  options.chunk = 17;
  options.context = 64;
  options.all_logits = true;
  const ModelFile model = ModelFile::open(folder_ / "m.gguf");
  Engine engine(model, options);
  const auto ids = test::random_tokens(21, 300, 1);
  std::vector<std::vector<float>> rows;
  // One token a call is decode: the third is a recorded pass. Then 17 together.
  for (int64_t done = 0; done < 21;) {
    const int64_t count = done < 4 ? 1 : 17;
    const Feed feed{0, std::span(ids).subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
                    Feed::Logits::all};
    engine.evaluate({&feed, 1});
    for (int64_t i = 0; i < count; ++i) rows.push_back(row_of(engine, static_cast<size_t>(i)));
    EXPECT_EQ(row_of(engine, 0), rows[static_cast<size_t>(done)]);
    done += count;
  }
  for (size_t a = 0; a < rows.size(); ++a)
    for (size_t b = 0; b < a; ++b) EXPECT_NE(rows[a], rows[b]) << a << " and " << b;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuLogits);
INSTANTIATE_TEST_SUITE_P(Device, GpuLogits, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

}  // namespace
}  // namespace greta
