#include "base/system.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>

namespace greta {
namespace {

/// The first number of a small system file, or `otherwise` where it is absent or holds a word ("max").
uint64_t number_in(const char* path, uint64_t otherwise) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : otherwise;
}

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

}  // namespace

int usable_cpus() {
  cpu_set_t mask;
  int cpus = 1;
  if (::sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = CPU_COUNT(&mask);
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");  // "quota period", or "max period"
  uint64_t quota = 0;
  uint64_t period = 0;
  if (quota_file >> quota >> period && period > 0)
    cpus = std::min(cpus, static_cast<int>(std::max<uint64_t>(1, (quota + period - 1) / period)));
  return std::max(cpus, 1);
}

uint64_t available_memory() {
  uint64_t available = kUnlimited;
  std::ifstream info("/proc/meminfo");
  std::string key;
  std::string unit;
  for (uint64_t kib = 0; info >> key >> kib; std::getline(info, unit))
    if (key == "MemAvailable:") available = kib * 1024;
  const uint64_t limit = number_in("/sys/fs/cgroup/memory.max", kUnlimited);
  const uint64_t used = number_in("/sys/fs/cgroup/memory.current", 0);
  if (limit != kUnlimited) available = std::min(available, limit > used ? limit - used : 0);
  return available;
}

uint64_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  uint64_t pages = 0;
  uint64_t resident = 0;
  file >> pages >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace greta
