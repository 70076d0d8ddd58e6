#pragma once
// A bar on standard error, only where that is a terminal.
#include <chrono>
#include <cstdint>
#include <string>

namespace greta::cli {

class ProgressBar {
 public:
  /// `enabled` false (--quiet): never shown.
  ProgressBar(std::string label, bool enabled);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(uint64_t done, uint64_t total);
  /// Wipes the bar from its line; it stays away until the next update.
  void clear();

 private:
  std::string label_;
  bool enabled_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point drawn_;
};

}  // namespace greta::cli
