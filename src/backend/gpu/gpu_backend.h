#pragma once
#include <memory>

#include "backend/backend.h"
#include "backend/gpu/device.h"

namespace greta {

/// The engine's operators on a GPU: plain C++ above a Device and its table of kernels (gpu/kernels.h).
/// Errors: an option that the device does not have (8-bit activations, an FP32 cache): each says what there
/// is instead.
std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<gpu::Device> device, const BackendOptions& options);

}  // namespace greta
