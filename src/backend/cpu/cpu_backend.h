#pragma once
#include <memory>
#include <string>

#include "backend/backend.h"

namespace greta {

/// The fast CPU backend. Errors: `isa` not present on this machine.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

/// "avx512", "avx2" or "portable": the best that this machine has.
Isa best_isa();
std::string_view name_of(Isa isa);

}  // namespace greta
