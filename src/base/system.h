#pragma once
#include <cstdint>
#include <string>

namespace greta {

/// CPUs that this process may use: its affinity mask, limited by the cgroup's CPU quota. At least 1.
int usable_cpus();

/// Bytes of memory that can be had without swapping: the kernel's MemAvailable, limited by what the cgroup's
/// memory limit leaves; cached file pages are given back when they are needed, so they count as available.
/// `root`: where proc and sys are.
uint64_t available_memory(const std::string& root = "");

/// Resident bytes of this process now.
uint64_t resident_memory();

}  // namespace greta
