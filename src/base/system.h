#pragma once
#include <cstdint>
#include <string>

namespace greta {

/// CPUs that this process may use: its affinity mask, limited by the cgroup's CPU quota. At least 1.
int usable_cpus();

/// Bytes of memory that can be had without swapping: the kernel's MemAvailable, limited by the cgroup's
/// memory limit.
uint64_t available_memory();

/// Resident bytes of this process now.
uint64_t resident_memory();

}  // namespace greta
