#include <cpuid.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernels.h"
#include "base/error.h"

namespace greta {

namespace cpu {

int64_t attention_scratch(int queries, int head_dim) {
  const int64_t padded = (int64_t{head_dim} + 15) / 16 * 16;
  const int64_t page = 2 * 64 * padded;  // as FP32
  const int64_t floats = queries * (2 * padded + kQueryFloats) + page;
  return floats * static_cast<int64_t>(sizeof(float)) + 64;
}

const KernelTable& kernels_of(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return kernels_avx512();
    case Isa::avx2:
      return kernels_avx2();
    case Isa::automatic:
    case Isa::portable:
      break;
  }
  return kernels_portable();
}

}  // namespace cpu

namespace {

/// CPUID leaf 1; clang 14's __builtin_cpu_supports does not know this one.
bool has_f16c() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace

bool has_isa(Isa isa) {
  switch (isa) {
    case Isa::automatic:
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::avx512:
      return has_isa(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

Isa best_isa() { return *std::find_if(std::begin(kIsas), std::end(kIsas), has_isa); }

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::automatic:
      return "auto";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      break;
  }
  return "portable";
}

Isa isa_named(std::string_view name) {
  std::string names = std::string(name_of(Isa::automatic));
  if (name == names) return Isa::automatic;
  for (const Isa isa : kIsas) {
    if (name == name_of(isa)) return isa;
    names += fmt::format(", {}", name_of(isa));
  }
  fail("no instruction set is called {}; expected one of {}", name, names);
}

}  // namespace greta
