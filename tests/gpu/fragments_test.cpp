// Where the matrix unit has each element of its operands, lane by lane: what a target's a_row, a_k, b_n, b_k,
// c_row and c_n name is what the chip does. (On sim: what the emulation does, which is made from those maps.)
#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

#include "gpu/rows_support.h"
#include "gpu/test_kernels.h"

namespace greta::gpu {

#if GRETA_TEST_SIM
namespace sim32 {
const TestKernels& test_kernel_table();
}
namespace sim64 {
const TestKernels& test_kernel_table();
}
#endif
#if GRETA_TEST_CUDA
namespace cuda {
const TestKernels& test_kernel_table();
}
#endif

const TestKernels* test_kernels(const std::string& device) {
#if GRETA_TEST_SIM
  if (device == "sim:32") return &sim32::test_kernel_table();
  if (device == "sim:64") return &sim64::test_kernel_table();
#endif
#if GRETA_TEST_CUDA
  if (device.starts_with("cuda:")) return &cuda::test_kernel_table();
#endif
  return nullptr;
}

namespace {

using rows_test::Array;
using rows_test::Machine;

class GpuFragments : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    kernels_ = test_kernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "no test kernels are built for " << GetParam();
  }
  /// Places [0, rows) x [0, cols), each exactly once.
  static void expect_each_place_once(int wave, int count, int (*row)(int, int), int (*col)(int, int),
                                     int rows, int cols) {
    std::set<std::pair<int, int>> places;
    for (int lane = 0; lane < wave; ++lane)
      for (int e = 0; e < count; ++e) {
        EXPECT_TRUE(row(lane, e) >= 0 && row(lane, e) < rows && col(lane, e) >= 0 && col(lane, e) < cols);
        places.emplace(row(lane, e), col(lane, e));
      }
    EXPECT_EQ(places.size(), static_cast<size_t>(rows * cols));
    EXPECT_EQ(wave * count, rows * cols);
  }
  /// How many numbers of all products are not what the maps say; `hits`: how many products are not all zero.
  int64_t wrong(const std::vector<float>& c, const TestKernels& maps, int64_t& hits) const {
    int64_t bad = 0;
    hits = 0;
    size_t at = 0;
    for (int a = 0; a < maps.wave * maps.count_a; ++a)
      for (int b = 0; b < maps.wave * maps.count_b; ++b)
        for (int i = 0; i < maps.wave * maps.count_c; ++i, ++at) {
          const auto of = [](int (*map)(int, int), int element, int count) {
            return map(element / count, element % count);
          };
          const bool hit = of(maps.a_k, a, maps.count_a) == of(maps.b_k, b, maps.count_b) &&
                           of(maps.a_row, a, maps.count_a) == of(maps.c_row, i, maps.count_c) &&
                           of(maps.b_n, b, maps.count_b) == of(maps.c_n, i, maps.count_c);
          hits += hit ? 1 : 0;
          bad += c[at] == static_cast<float>(i + (hit ? 1 : 0)) ? 0 : 1;
        }
    return bad;
  }
  const TestKernels* kernels_ = nullptr;
};

TEST_P(GpuFragments, MapsNameEachPlaceOnce) {
  const TestKernels& t = *kernels_;
  expect_each_place_once(t.wave, t.count_a, t.a_row, t.a_k, 16, 16);
  expect_each_place_once(t.wave, t.count_b, t.b_k, t.b_n, 16, t.tile_n);
  expect_each_place_once(t.wave, t.count_c, t.c_row, t.c_n, 16, t.tile_n);
}

TEST_P(GpuFragments, EveryElementIsWhereTheMapsSay) {
  const Machine machine(GetParam());
  const TestKernels& t = *kernels_;
  std::vector<float> start(static_cast<size_t>(t.wave * t.count_c));
  for (size_t i = 0; i < start.size(); ++i) start[i] = static_cast<float>(i);
  const Array<float> from(machine, start);
  const auto all = int64_t{t.wave * t.count_a} * (t.wave * t.count_b) * (t.wave * t.count_c);
  for (const bool bf16 : {false, true}) {
    const Array<float> c(machine, all, -1.0f);
    t.one_hot(machine, bf16, from.data(), c.data());
    const std::vector<float> got = c.read();
    int64_t hits = 0;
    EXPECT_EQ(wrong(got, t, hits), 0) << (bf16 ? "bf16" : "f16");
    EXPECT_EQ(hits, int64_t{16} * 16 * t.tile_n);
    // Any other map is seen.
    for (auto TestKernels::*map : {&TestKernels::a_row, &TestKernels::a_k, &TestKernels::b_n,
                                   &TestKernels::b_k, &TestKernels::c_row, &TestKernels::c_n}) {
      TestKernels other = t;
      other.*map = [](int lane, int e) { return (lane + e) % 8; };
      EXPECT_GT(wrong(got, other, hits), 0);
    }
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuFragments);
INSTANTIATE_TEST_SUITE_P(Devices, GpuFragments, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

/// A write of one element behind 1,000: for compute-sanitizer, which must tell of it (scripts/test-gpu.sh).
/// The emulation tells of it itself.
void write_past_the_end(const std::string& device) {
  const Machine machine(device);
  void* x = machine.device().allocate(1000 * sizeof(float));
  test_kernels(device)->write_past(machine, static_cast<float*>(x), 1000);
  machine.device().release(x);
  machine.device().synchronize();
}

TEST(GpuSanitizer, DISABLED_WritesPastItsMemory) {
  try {
    write_past_the_end("cuda:0");
  } catch (
      const Error&) {  // the tool ended the kernel: its word counts, and its status only where we succeed
  }
}

TEST(GpuSanitizer, TheEmulationTellsOfAWritePastTheEnd) {
  if (!test::has_sim()) GTEST_SKIP() << "this build has no emulation";
  for (const std::string device : {"sim:32", "sim:64"}) try {
      write_past_the_end(device);
      ADD_FAILURE() << device;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("just outside of 4000 bytes"), std::string::npos)
          << error.what();
    }
}

}  // namespace
}  // namespace greta::gpu
