// What bisect compares with the file before it runs: weights read back from a device, any rows of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "gpu_devices.h"
#include "kernels/random_inputs.h"

namespace greta {
namespace {

class GpuReadBack : public testing::TestWithParam<std::string> {};

/// 60 of 70 rows of 32 KiB: a piece on its way holds 32. Of a stack the second expert begins at row 35.
TEST_P(GpuReadBack, GivesAnyRowsOfTheFile) {
  constexpr int64_t kAll = 70, kCols = 8192, kFirst = 5, kRows = 60;
  const auto backend = make_backend(GetParam(), {});
  for (const quant::Type type : {quant::Type::F16, quant::Type::Q4_K}) {
    const auto file = gpu::random_matrix(type, kAll, kCols, 3);
    const std::vector<float> expected = file.part(kFirst, kRows).values();
    for (const auto use : {WeightUse::matmul, WeightUse::experts, WeightUse::embedding}) {
      SCOPED_TRACE(gpu::name_of(type) + ", use " + std::to_string(static_cast<int>(use)));
      WeightSource source{"w", type, kAll, kCols, file.bytes};
      if (use == WeightUse::experts) source.experts = 2;
      const auto weight = backend->load(source, use);
      std::vector<float> got(static_cast<size_t>(kRows * kCols), -1.0f);
      weight->read_back(kFirst, kRows, got.data());
      EXPECT_EQ(got, expected);
    }
  }
}

/// A weight is read from where its source comes from, each byte once; what lies at `bytes` is not touched.
TEST_P(GpuReadBack, IsLoadedByTheSourcesReader) {
  constexpr int64_t kRows = 40, kCols = 8192;
  const auto backend = make_backend(GetParam(), {});
  for (const auto use : {WeightUse::matmul, WeightUse::experts, WeightUse::embedding, WeightUse::vector}) {
    SCOPED_TRACE("use " + std::to_string(static_cast<int>(use)));
    const auto file = gpu::random_matrix(quant::Type::Q8_0, kRows, kCols, 3);
    const std::vector<std::byte> elsewhere(file.bytes.size());
    WeightSource source{"w", quant::Type::Q8_0, kRows, kCols, elsewhere};
    if (use == WeightUse::experts) source.experts = 2;
    std::atomic<size_t> read{0};
    source.read = [&](std::span<const std::byte> part, std::byte* to) {
      const auto at = file.bytes.begin() + (part.data() - elsewhere.data());
      std::copy(at, at + static_cast<std::ptrdiff_t>(part.size()), to);
      read += part.size();
    };
    const auto weight = backend->load(source, use);
    std::vector<float> got(static_cast<size_t>(kRows * kCols), -1.0f);
    weight->read_back(0, kRows, got.data());
    EXPECT_EQ(got, file.part(0, kRows).values());
    EXPECT_EQ(read, elsewhere.size());
    source.read = [](std::span<const std::byte>, std::byte*) { fail("the file is gone"); };
    EXPECT_THROW(backend->load(source, use), Error);
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuReadBack);
INSTANTIATE_TEST_SUITE_P(Device, GpuReadBack, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

}  // namespace
}  // namespace greta
