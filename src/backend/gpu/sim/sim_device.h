#pragma once
// The host as a device, for tests: kernels run at once, on this host thread.
#include <cstdint>
#include <memory>

#include "backend/gpu/device.h"

namespace greta::gpu {

/// "sim:32" or "sim:64". Memory is the host's. A graph is the launches, copies and zeros themselves, with the
/// arguments that they had when it was recorded. Errors: greta::Error out of the call that met it: a fault in
/// a kernel, a copy past its memory; release() finds what was written just outside.
std::unique_ptr<Device> make_sim_device(int wave, uint64_t seed);

/// The order in which threads run from now on, on a device that make_sim_device made.
void set_sim_seed(Device& device, uint64_t seed);

}  // namespace greta::gpu
