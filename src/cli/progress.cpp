#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace greta::cli {
namespace {

constexpr int kCells = 30;
constexpr auto kPatience = std::chrono::milliseconds(200);  // what is done sooner shows no bar
constexpr auto kInterval = std::chrono::milliseconds(50);

void write_all(const std::string& text) {
  // A bar is decoration: what cannot be written is let go.
  if (::write(STDERR_FILENO, text.data(), text.size()) < 0) return;
}

}  // namespace

ProgressBar::ProgressBar(std::string label, bool enabled)
    : label_(std::move(label)),
      enabled_(enabled && ::isatty(STDERR_FILENO) == 1),
      started_(std::chrono::steady_clock::now()) {}

void ProgressBar::update(uint64_t done, uint64_t total) {
  if (!enabled_ || total == 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - started_ < kPatience || now - drawn_ < kInterval) return;
  drawn_ = now;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const int full = static_cast<int>(share * kCells);
  write_all(fmt::format("\r{} [{:<{}}] {:3.0f} %", label_, std::string(static_cast<size_t>(full), '#'),
                        kCells, share * 100.0));
  shown_ = true;
}

void ProgressBar::clear() {
  if (!std::exchange(shown_, false)) return;
  write_all("\r\x1b[K");
}

}  // namespace greta::cli
