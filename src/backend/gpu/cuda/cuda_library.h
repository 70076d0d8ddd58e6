#pragma once
#include "backend/gpu/device.h"

namespace greta::gpu::cuda {

/// Seconds of one such product by cuBLASLt: the best of all that it proposes (any split of K), on random
/// numbers. The matrix is read from memory: as many copies as the caches cannot hold are taken in turn, where
/// there is room for them. The library is opened when asked for, never linked; 0 where it is not there.
/// Errors: it is there and fails, or has no proposal; no memory.
double library_product_seconds(Device& device, const ProductShape& product);

}  // namespace greta::gpu::cuda
