#pragma once
// Weights as the kernels read them. Integer weights: groups of 16 rows (a last group is filled up with zero
// rows), one row a SIMD lane; same bits, other order. A group is steps of 256 elements of K (the last may be
// shorter); a step is the quants of its 32-element units, then its scales (kernels.h: FormatShape; pack.inl
// writes it, formats.inl reads it; packed.cpp reads it, too, row by row). Lossless: Q8_0's quants are stored
// + 128, everything else in its own bits. Float weights: groups of 16 rows as well, cut into strips of
// KernelTable::float_rows rows: [strip][k / 16][row of the strip][16] elements as the file has them; K is
// filled up with zeros. A strip is one stream for the memory and holds all that a register tile needs of 16
// of K.
#include <cstddef>
#include <cstdint>
#include <optional>

#include "backend/cpu/kernels.h"
#include "quant/types.h"

namespace greta::cpu {

/// The kernels' index of an integer type, or nothing for a float type.
std::optional<int> integer_type(quant::Type type);

/// The longest row that is packed: 15 times its bytes stay below 2^31 (kernels.h: pack_group).
inline constexpr int64_t kMostColumns = int64_t{1} << 26;

/// Bytes of one packed group of rows with `units` units: 16 rows of the file, rounded up to 64.
int64_t group_bytes(int type, int64_t units);

/// The same of float elements of `element` bytes (2 or 4), whatever the strips.
int64_t float_group_bytes(int64_t element, int64_t cols);

/// Packs up to 16 rows, `row_bytes` apart, in strips of `strip` rows; rows past `count` become zeros.
void pack_float_group(int64_t element, int strip, const std::byte* first_row, int64_t row_bytes,
                      int64_t count, int64_t cols, std::byte* to);

/// Row `lane` of a group that pack_float_group() made, in the file's type: [cols].
void unpack_float_row(int64_t element, int strip, const std::byte* group, int lane, int64_t cols,
                      std::byte* to);

/// Row `lane` of a packed group as FP32, [cols], bit for bit what dequantize() makes of the file's row.
void unpack_row(int type, const std::byte* group, int lane, int64_t units, int64_t cols, float* out);

}  // namespace greta::cpu
