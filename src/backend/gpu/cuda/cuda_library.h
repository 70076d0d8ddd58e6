#pragma once
#include "backend/gpu/device.h"

namespace greta::gpu::cuda {

/// FP16 multiply-adds a second of cuBLASLt: the best of its own proposals for products of 4,096 and of 8,192
/// cubed, on random numbers. The library is opened when asked for, never linked; 0 where it is not there.
/// Errors: it is there and fails.
double library_matrix_rate(Device& device);

}  // namespace greta::gpu::cuda
