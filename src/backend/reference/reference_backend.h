#pragma once
#include <memory>

#include "backend/backend.h"

namespace greta {

/// The judge: plain loops in FP64 on the file's dequantised weights, FP64 cache. Shares no kernel code with
/// any other backend; a row is still independent of its neighbours. Its one inner loop is products.h.
std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);

}  // namespace greta
