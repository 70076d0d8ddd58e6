#pragma once
// How long launches take on a device, without the gaps between the host's calls.
#include <cstdint>
#include <functional>

#include "backend/gpu/device.h"

namespace greta::gpu {

struct Timing {
  double seconds = 0.0;  ///< of one launch; 0: not timed
  int64_t launches = 0;  ///< in a timed stretch
  int repeats = 0;       ///< stretches; `seconds` is their median
};

struct Stretch {
  double seconds = 4e-3;  ///< a timed stretch has as many launches as fill about this
  int64_t least = 1;      ///< launches in one, at least
  int64_t most = 1000;    ///< and at most, where `least` is not more
  int repeats = 5;
};

/// launch(i) puts the i-th launch of a stretch on the device's stream. A few launches first, to warm up and
/// to see how long one takes; then a stretch is recorded as one graph, launched once untimed, and `repeats`
/// times between two synchronisations (about 10 us each, shared by the stretch's launches). Where the target
/// has no graphs the launches follow each other as they are called.
Timing time_launches(Device& device, const Stretch& stretch, const std::function<void(int64_t)>& launch);

/// Bytes that a matrix and its copies must have together so that no cache keeps one until its turn comes
/// again: several times the last cache of any GPU that is run (50 MB).
inline constexpr int64_t kColdBytes = int64_t{256} << 20;

}  // namespace greta::gpu
