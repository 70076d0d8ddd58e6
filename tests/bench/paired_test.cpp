// The stopwatch that measures the limit beside the work, on a clock and a limit that the test moves by hand.
#include "bench/paired.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <utility>
#include <vector>

namespace greta {
namespace {

class Pairing : public testing::Test {
 protected:
  /// The next measurements: seconds that the work takes at the limit. Measuring lasts a tenth of a second.
  void limits(std::vector<double> next) {
    limits_ = std::move(next);
    measured_ = 0;
  }
  void pass(double seconds) { now_ += seconds; }

  size_t measured_ = 0;
  PairedClock clock_{[this] {
                       pass(0.1);
                       return limits_.at(measured_++);
                     },
                     [this] { pass(std::exchange(running_, 0.0)); }, [this] { return now_; }};
  double running_ = 0.0;  ///< seconds that work already begun still takes

 private:
  std::vector<double> limits_;
  double now_ = 0.0;
};

TEST_F(Pairing, TheLargerLimitOfTheTwoNeighboursCounts) {
  limits({0.25, 0.5, 0.1});  // the least seconds are the largest limit
  clock_.begin();
  pass(0.5);
  const Paired first = clock_.end();
  EXPECT_DOUBLE_EQ(first.seconds, 0.5);
  EXPECT_DOUBLE_EQ(first.share, 0.25 / 0.5);
  EXPECT_EQ(measured_, 2u);
  clock_.begin();  // what was measured after the first run is what came before the second
  EXPECT_EQ(measured_, 2u);
  pass(0.8);
  const Paired second = clock_.end();
  EXPECT_DOUBLE_EQ(second.seconds, 0.8);
  EXPECT_DOUBLE_EQ(second.share, 0.1 / 0.8);
  EXPECT_EQ(measured_, 3u);
}

/// A device's calls return before they are computed.
TEST_F(Pairing, WorkThatStillRunsIsWaitedForAndCounts) {
  limits({1.0, 1.0, 1.0});
  running_ = 5.0;  // of what came before
  clock_.begin();
  pass(1.0);
  running_ = 2.0;
  clock_.step();
  pass(0.5);
  running_ = 0.25;
  EXPECT_DOUBLE_EQ(clock_.end().seconds, 1.0 + 2.0 + 0.5 + 0.25);
  EXPECT_EQ(measured_, 3u);
}

TEST_F(Pairing, ALongRunIsMeasuredInStretches) {
  limits({1.0, 1.0, 4.0, 4.0});
  clock_.begin();
  for (int i = 0; i < 3; ++i) {
    pass(0.5);
    clock_.step();  // at 0.5 nothing is measured, at 1.0 for the second time; at 1.5 nothing
  }
  EXPECT_EQ(measured_, 2u);
  pass(0.75);
  clock_.step();  // at 2.25 for the third: the stretch began at 1.0
  EXPECT_EQ(measured_, 3u);
  pass(0.75);
  const Paired run = clock_.end();
  EXPECT_DOUBLE_EQ(run.seconds, 3.0) << "the time of measuring is none of the work's";
  // At the limit: 1 run in the first second, 1.25 in the next stretch (its better neighbour), 0.75 / 4 after.
  EXPECT_DOUBLE_EQ(run.share, 1.0 / (1.0 + 1.25 + 0.75 / 4.0));
}

TEST_F(Pairing, TheSteadyClockRuns) {
  PairedClock clock([] { return 1e-3; }, [] {});
  clock.begin();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Paired run = clock.end();
  EXPECT_GE(run.seconds, 0.02);
  EXPECT_DOUBLE_EQ(run.share, 1e-3 / run.seconds);
}

}  // namespace
}  // namespace greta
