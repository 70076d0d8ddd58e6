#pragma once
// Tensor element types of GGUF (ggml), their block shapes, and both directions of conversion.
// Source: the GGUF specification (ggml project, docs/gguf.md) for the type numbers; the block layouts are
// those that the `gguf` Python package reads and writes, and the tests hold this code to that package bit for
// bit.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace greta::quant {

/// The values are GGUF's own numbers.
enum class Type : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  BF16 = 30,
};

struct Traits {
  Type type;
  std::string_view name;  ///< "Q4_K"
  int block;              ///< elements in a block; a row is a whole number of blocks
  int bytes;              ///< bytes of a block
};

/// Every supported type, in the order of the GGUF numbers.
std::span<const Traits> all_types();

/// The traits of a supported type.
const Traits& traits(Type type);

/// The supported type with this GGUF number, or nothing.
std::optional<Type> from_number(uint32_t number);

/// The supported type of this name in any letter case ("q4_k"), or nothing.
std::optional<Type> from_name(std::string_view name);

/// The name of any GGUF type number, supported or not ("IQ2_XXS", or "type 99"), for messages.
std::string name_of_number(uint32_t number);

/// Bytes of `elements` elements (a multiple of the block), or nothing on overflow or a broken block.
std::optional<uint64_t> bytes_for(Type type, uint64_t elements);

/// Block bytes to FP32, `elements` a multiple of the block. Bit-exact with gguf.quants.dequantize. The source
/// needs no alignment.
void dequantize(Type type, const std::byte* source, int64_t elements, float* out);

/// FP32 to block bytes. Deterministic plain rounding to nearest (no search for better scales beyond each
/// format's published formula), for `greta synth`, tests and tools; non-finite input is refused (greta::Error
/// with the index).
void quantize(Type type, const float* source, int64_t elements, std::byte* out);

}  // namespace greta::quant
