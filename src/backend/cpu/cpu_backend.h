#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "backend/backend.h"

namespace greta {

/// The fast CPU backend. Errors: `isa` not present on this machine.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

/// The instruction sets that there are kernels for, the best first. avx512 stands for F, BW, DQ, VL and VNNI;
/// avx2 for AVX2, FMA and F16C.
inline constexpr Isa kIsas[] = {Isa::avx512, Isa::avx2, Isa::portable};
/// Whether this machine can run the kernels of an instruction set.
bool has_isa(Isa isa);
/// The best that this machine has.
Isa best_isa();
std::string_view name_of(Isa isa);
/// Of a name, "auto" too. Errors: another name.
Isa isa_named(std::string_view name);

namespace cpu {
struct KernelTable;
/// isa: one of kIsas.
const KernelTable& kernels_of(Isa isa);
}  // namespace cpu

}  // namespace greta
