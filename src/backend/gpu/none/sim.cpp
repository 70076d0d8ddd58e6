// A build without the kernels on the host.
#include "backend/gpu/targets.h"
#include "base/error.h"

namespace greta::gpu {

std::unique_ptr<Device> open_sim(int wave) {
  fail("sim:{}: not in this build; cmake -DGRETA_SIM=ON makes one that has it (Boost.Context)", wave);
}

}  // namespace greta::gpu
