#pragma once
// Work timed beside a limit that moves while it runs, as on a machine shared with others.
#include <functional>
#include <optional>

namespace greta {

/// One timed run of the work.
struct Paired {
  double seconds = 0.0;  ///< of the work alone
  double share = 0.0;    ///< of what the limit would have done in that time
};

/// A stopwatch that measures the limit right before the work, right after it, and between two of its steps
/// whenever a second has passed; meanwhile it stands still. Work that was begun before a measurement is
/// waited for, and its time counts. A stretch between two measurements is held against the larger limit of
/// the two: the machine could do that much at one end of the stretch. A measurement after one run is also the
/// one before the next.
class PairedClock {
 public:
  using Seconds = std::function<double()>;
  /// `at_limit` measures: seconds (above 0) that one run of the work takes at the limit of this moment.
  /// `finish` returns when nothing of the work still runs.
  PairedClock(Seconds at_limit, std::function<void()> finish, Seconds now = steady_now);

  void begin();
  /// Between two steps of the work.
  void step();
  Paired end();

 private:
  static double steady_now();
  void close_stretch();

  Seconds at_limit_;
  std::function<void()> finish_;
  Seconds now_;
  std::optional<double> before_;  ///< the newest measurement
  double begun_ = 0.0;            ///< when the open stretch began
  double seconds_ = 0.0;          ///< of the closed stretches
  double runs_ = 0.0;  ///< how often the work could have been done in them, had it run at the limit
};

}  // namespace greta
