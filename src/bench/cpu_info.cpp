#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "bench/limits.h"

namespace greta {

uint64_t last_level_cache_bytes() {
  uint64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/size", index));
    uint64_t size = 0;
    std::string unit;  // "32768K"
    if (!(file >> size)) break;
    file >> unit;
    largest = std::max(largest, size << (unit == "K" ? 10 : unit == "M" ? 20 : 0));
  }
  return largest != 0 ? largest : uint64_t{32} << 20;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  return "unknown CPU";
}

}  // namespace greta
