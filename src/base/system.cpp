#include "base/system.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <string_view>

namespace greta {
namespace {

/// The first number of a small system file, or `otherwise` where it is absent or holds a word ("max").
uint64_t number_in(const std::string& path, uint64_t otherwise) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : otherwise;
}

/// The sum of the numbers behind these words in a file of lines "word number ...".
uint64_t sum_in(const std::string& path, std::initializer_list<std::string_view> words) {
  std::ifstream file(path);
  std::string word, rest;
  uint64_t sum = 0;
  for (uint64_t value = 0; file >> word >> value; std::getline(file, rest))
    if (std::find(words.begin(), words.end(), word) != words.end()) sum += value;
  return sum;
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

uint64_t available_memory(const std::string& root) {
  const uint64_t kib = sum_in(root + "/proc/meminfo", {"MemAvailable:"});
  const uint64_t available = kib == 0 ? kUnlimited : kib * 1024;
  const std::string cgroup = root + "/sys/fs/cgroup/";
  const uint64_t limit = number_in(cgroup + "memory.max", kUnlimited);
  if (limit == kUnlimited) return available;
  const uint64_t current = number_in(cgroup + "memory.current", 0);
  const uint64_t cached = sum_in(cgroup + "memory.stat", {"inactive_file", "active_file"});
  const uint64_t used = current > cached ? current - cached : 0;
  return std::min(available, limit > used ? limit - used : 0);
}

uint64_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  uint64_t pages = 0;
  uint64_t resident = 0;
  file >> pages >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace greta
