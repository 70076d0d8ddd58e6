#include "backend/gpu/sim/sim_device.h"
#include "backend/gpu/targets.h"

namespace greta::gpu {

std::unique_ptr<Device> open_sim(int wave) { return make_sim_device(wave, /*seed=*/1); }

}  // namespace greta::gpu
