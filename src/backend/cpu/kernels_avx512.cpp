// The kernels compiled for avx512. Everything is in an unnamed namespace: this file is built with its own -m
// flags, so no name of it may be shared with another translation unit, and it includes no header with inline
// functions of ours.

// GCC 12 takes the deliberately undefined operands inside its own intrinsics for mistakes of ours.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace greta::cpu {
namespace {

// Each file builds on those before it.
// clang-format off
#include "backend/cpu/simd_common.inl"
#include "backend/cpu/simd_avx512.inl"
#include "backend/cpu/math.inl"
#include "backend/cpu/rows.inl"
#include "backend/cpu/floats.inl"
#include "backend/cpu/formats.inl"
#include "backend/cpu/pack.inl"
#include "backend/cpu/integers.inl"
#include "backend/cpu/attention.inl"
#include "backend/cpu/table.inl"
// clang-format on

}  // namespace

const KernelTable& kernels_avx512() { return kTable; }

}  // namespace greta::cpu
