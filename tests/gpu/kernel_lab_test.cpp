// The kernel lab in emulation: every check passes as the kernels are; of a kernel whose input is another on
// the device than in the judge's hands a check fails, and of no other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "backend/gpu/targets.h"
#include "backend/gpu/timing.h"
#include "base/error.h"
#include "gpu_devices.h"
#include "kernels/lab.h"

namespace greta::gpu::lab {
namespace {

using testing::HasSubstr;

Report quick(const std::string& device, const std::vector<std::string>& kernels,
             const std::string& planted = "") {
  Options options;
  options.device = device;
  options.kernels = kernels;
  options.price = planted.empty() || planted == "price";
  options.quick = true;
  options.planted = planted;
  return run(options);
}

/// Kernels that have a row whose check failed.
std::set<std::string> failed(const Report& report) {
  std::set<std::string> names;
  for (const Row& row : report.rows)
    if (!row.check.passed()) names.insert(row.kernel.substr(0, row.kernel.find(' ')));
  for (const PriceRow& row : report.price)
    if (!row.check.passed()) names.insert("price");
  return names;
}

TEST(KernelLab, EveryCheckPasses) {
  if (!test::has_sim()) GTEST_SKIP() << "this build has no emulation";
  for (const std::string device : {"sim:32", "sim:64"}) {
    const Report report = quick(device, kernel_names());
    EXPECT_TRUE(report.passed()) << device << ": " << testing::PrintToString(failed(report));
    std::set<std::string> seen;
    for (const Row& row : report.rows) {
      seen.insert(row.kernel.substr(0, row.kernel.find(' ')));
      EXPECT_GT(row.check.values, 0) << row.kernel;
      EXPECT_GT(row.work.bytes, 0.0) << row.kernel;
    }
    EXPECT_EQ(seen.size(), kernel_names().size());
    EXPECT_FALSE(report.price.empty());
    for (const auto& type : quant::all_types())
      EXPECT_TRUE(std::ranges::any_of(report.rows, [&](const Row& row) {
        return row.kernel == "matmul " + name_of(type.type);
      })) << type.name;
  }
}

TEST(KernelLab, APlantedFaultFailsItsOwnChecksAlone) {
  if (!test::has_sim()) GTEST_SKIP() << "this build has no emulation";
  std::vector<std::string> names = kernel_names();
  names.emplace_back("price");
  for (const std::string& kernel : names) {
    std::vector<std::string> kernels{kernel == "round" ? "embed" : "round"};
    if (kernel != "price") kernels.push_back(kernel);
    const Report report = quick("sim:32", kernels, kernel);
    EXPECT_EQ(failed(report), std::set{kernel});
    EXPECT_FALSE(report.passed());
    EXPECT_EQ(json_of(report)["passed"], false);
  }
  // One weight of each type.
  for (const Row& row : quick("sim:64", {"matmul"}, "matmul").rows)
    EXPECT_FALSE(row.check.passed()) << row.kernel << " " << row.shape;
}

TEST(KernelLab, RefusesWhatItDoesNotHave) {
  Options options;
  options.device = "sim:32";
  options.kernels = {"sort"};
  try {
    run(options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("sort"), HasSubstr("matmul, attention")));
  }
  for (const auto& [device, why] : {std::pair{"sim", "a number after the colon"}, {"cpu:0", "no such GPU"}}) {
    options.device = device;
    options.kernels = {};
    try {
      run(options);
      FAIL() << device;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(why));
    }
  }
}

TEST(KernelLab, NothingCheckedIsNotPassed) {
  EXPECT_FALSE(Check().passed());
  Check check;
  check.add({{1.0}, {0.5}}, std::vector<double>{1.25});
  EXPECT_EQ(check.worst, 0.5);
  EXPECT_TRUE(check.passed());
  check.add({{1.0}, {0.5}}, std::vector<double>{std::nan("")});
  EXPECT_FALSE(check.passed());
}

TEST(KernelLab, AFloorIsTheLargerOfTheTwo) {
  const Rates rates{10.0, 100.0, "", ""};
  EXPECT_EQ(floor_of({20.0, 100.0}, rates).seconds, 2.0);
  EXPECT_STREQ(floor_of({20.0, 100.0}, rates).bound_by, "bytes");
  EXPECT_EQ(floor_of({20.0, 300.0}, rates).seconds, 3.0);
  EXPECT_STREQ(floor_of({20.0, 300.0}, rates).bound_by, "operations");
  EXPECT_EQ(floor_of({20.0, 0.0}, {10.0, 0.0, "", ""}).seconds, 2.0);
  EXPECT_EQ(floor_of({20.0, 300.0}, {10.0, 0.0, "", ""}).seconds, 0.0);
}

TEST(KernelLab, ThePriceIsAgainstTheFastestOther) {
  PriceRow row;
  row.tokens = 16;
  row.ours = 1.1e-6;
  EXPECT_EQ(best_other(row), 0.0);
  EXPECT_EQ(layer_totals({&row, 1}), "");
  row.library_f32 = 3e-6;
  row.free_order = 1e-6;
  EXPECT_EQ(best_other(row), 1e-6);
  EXPECT_THAT(text_of(row), HasSubstr("+10.0 %"));
  EXPECT_THAT(layer_totals({&row, 1}), testing::AllOf(HasSubstr("16 tokens"), HasSubstr("+10.0 %")));
  row.in_layer = false;
  EXPECT_EQ(layer_totals({&row, 1}), "");
}

TEST(KernelLab, TimesAsManyLaunchesAsAreAskedFor) {
  if (!test::has_sim()) GTEST_SKIP() << "this build has no emulation";
  const auto device = open_sim(32);
  int64_t calls = 0, most = 0;
  Stretch stretch;
  stretch.seconds = 0.0;
  stretch.least = 3;
  stretch.repeats = 2;
  const Timing timing = time_launches(*device, stretch, [&](int64_t i) {
    ++calls;
    most = std::max(most, i);
  });
  EXPECT_EQ(timing.launches, 3);
  EXPECT_EQ(timing.repeats, 2);
  EXPECT_GE(timing.seconds, 0.0);
  EXPECT_GE(calls, 3);  // recorded once, replayed for each repeat
  EXPECT_LE(most, 3);
}

}  // namespace
}  // namespace greta::gpu::lab
