// The kernel lab's own way to kernels that the engine does not call (lab.h): a translation unit of the
// targets that have warpgroups.
#include "backend/gpu/kernels/lab.h"
#include "backend/gpu/kernels/matmul.h"

namespace greta::gpu {

bool matmul_free(const Launch& how, const MatmulCall& call) {
  if (!how.warpgroups || call.x.tiled_rows == 0 || call.products[0].weight.type != quant::Type::F16)
    return false;
  GRETA_GPU_TARGET::run_matmul_free(how, call);
  return true;
}

}  // namespace greta::gpu
