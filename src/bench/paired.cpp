#include "bench/paired.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace greta {
namespace {

constexpr double kLongestStretch = 1.0;  // seconds

}  // namespace

PairedClock::PairedClock(Seconds at_limit, std::function<void()> finish, Seconds now)
    : at_limit_(std::move(at_limit)), finish_(std::move(finish)), now_(std::move(now)) {}

void PairedClock::begin() {
  seconds_ = runs_ = 0.0;
  finish_();
  if (!before_) before_ = at_limit_();
  begun_ = now_();
}

void PairedClock::step() {
  if (now_() - begun_ < kLongestStretch) return;
  close_stretch();
  begun_ = now_();
}

Paired PairedClock::end() {
  close_stretch();
  return {seconds_, 1.0 / runs_};
}

void PairedClock::close_stretch() {
  finish_();
  const double seconds = now_() - begun_;
  const double after = at_limit_();
  seconds_ += seconds;
  runs_ += seconds / std::min(*before_, after);
  before_ = after;
}

double PairedClock::steady_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace greta
