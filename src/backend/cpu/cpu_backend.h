#pragma once
#include <memory>
#include <string>

#include "backend/backend.h"

namespace greta {

/// The fast CPU backend. Errors: `isa` not present on this machine.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

/// Whether this machine can run the kernels of an instruction set. avx512 stands for F, BW, DQ, VL and VNNI;
/// avx2 for AVX2, FMA and F16C.
bool has_isa(Isa isa);
/// avx512, avx2 or portable: the best that this machine has.
Isa best_isa();
std::string_view name_of(Isa isa);

}  // namespace greta
