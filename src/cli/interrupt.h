#pragma once
// Ctrl-C. Work that can end in good order says so for as long as it lasts; any other work ends at once.
#include <atomic>
#include <string>

namespace greta::cli {

inline constexpr int kInterruptedStatus = 130;

/// Thrown where work looks at the flag and there is nothing to keep.
struct Interrupted {};

/// SIGINT, SIGTERM and SIGHUP are handled from here on, but those that the parent has ignored; a write into a
/// closed pipe or past a size limit fails, and ends nothing.
void install_signal_handlers();

/// While one lives, the first Ctrl-C only raises the flag; the second ends the program.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  const std::atomic<bool>& flag() const;
  bool raised() const { return flag().load(); }
  /// Throws Interrupted if the flag is up.
  void check() const;
};

/// While one lives, a signal that ends the program removes the half-written file of `path` (its writers put
/// ".partial-<pid>" behind the name until it is whole).
class PartialFileGuard {
 public:
  explicit PartialFileGuard(const std::string& path);
  ~PartialFileGuard();
  PartialFileGuard(const PartialFileGuard&) = delete;
  PartialFileGuard& operator=(const PartialFileGuard&) = delete;
};

}  // namespace greta::cli
