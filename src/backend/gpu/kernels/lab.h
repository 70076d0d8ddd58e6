#pragma once
// What the kernel lab (bench/kernels) measures beside the engine's own kernels. Nothing of the engine
// includes this: kernels.h has no way here.
#include "backend/gpu/kernels.h"

namespace greta::gpu {

/// A product of F16 weights in a free order of addition, to measure what the one order costs. False: there is
/// none for such a call (no warpgroups, few rows), and nothing was launched.
bool matmul_free(const Launch& how, const MatmulCall& call);

}  // namespace greta::gpu
