#include "quant/types.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"
#include "quant/blocks.h"

namespace greta::quant {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is read in place: little-endian only");

constexpr std::array<Traits, 13> kTraits = {{
    {Type::F32, "F32", 1, 4},
    {Type::F16, "F16", 1, 2},
    {Type::Q4_0, "Q4_0", 32, 18},
    {Type::Q4_1, "Q4_1", 32, 20},
    {Type::Q5_0, "Q5_0", 32, 22},
    {Type::Q5_1, "Q5_1", 32, 24},
    {Type::Q8_0, "Q8_0", 32, 34},
    {Type::Q2_K, "Q2_K", 256, 84},
    {Type::Q3_K, "Q3_K", 256, 110},
    {Type::Q4_K, "Q4_K", 256, 144},
    {Type::Q5_K, "Q5_K", 256, 176},
    {Type::Q6_K, "Q6_K", 256, 210},
    {Type::BF16, "BF16", 1, 2},
}};

struct Named {
  uint32_t number;
  std::string_view name;
};

// Types that exist in GGUF files and that this engine does not read: only for messages.
constexpr Named kOthers[] = {
    {4, "Q4_2 (removed)"},
    {5, "Q4_3 (removed)"},
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {20, "IQ4_NL"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {23, "IQ4_XS"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {31, "Q4_0_4_4 (removed)"},
    {32, "Q4_0_4_8 (removed)"},
    {33, "Q4_0_8_8 (removed)"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
    {39, "MXFP4"},
    {40, "NVFP4"},
    {41, "Q1_0"},
};

bool same_letters(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) == std::tolower(static_cast<unsigned char>(y));
  });
}

}  // namespace

std::span<const Traits> all_types() { return kTraits; }

const Traits& traits(Type type) {
  for (const Traits& t : kTraits)
    if (t.type == type) return t;
  fail("tensor type {} is not supported", name_of_number(static_cast<uint32_t>(type)));
}

std::optional<Type> from_number(uint32_t number) {
  for (const Traits& t : kTraits)
    if (static_cast<uint32_t>(t.type) == number) return t.type;
  return std::nullopt;
}

std::optional<Type> from_name(std::string_view name) {
  for (const Traits& t : kTraits)
    if (same_letters(t.name, name)) return t.type;
  return std::nullopt;
}

std::string name_of_number(uint32_t number) {
  for (const Traits& t : kTraits)
    if (static_cast<uint32_t>(t.type) == number) return std::string(t.name);
  for (const Named& other : kOthers)
    if (other.number == number) return std::string(other.name);
  return fmt::format("type {}", number);
}

std::optional<uint64_t> bytes_for(Type type, uint64_t elements) {
  const Traits& t = traits(type);
  const auto block = static_cast<uint64_t>(t.block);
  if (elements % block != 0) return std::nullopt;
  return checked_mul(elements / block, static_cast<uint64_t>(t.bytes));
}

void dequantize(Type type, const std::byte* source, int64_t elements, float* out) {
  const Traits& t = traits(type);
  if (elements < 0 || elements % t.block != 0)
    fail("{} elements are not a whole number of {} blocks of {}", elements, t.name, t.block);
  if (elements == 0) return;
  const auto* bytes = reinterpret_cast<const uint8_t*>(source);
  const int64_t blocks = elements / t.block;
  switch (type) {
    case Type::F32:
      std::memcpy(out, bytes, static_cast<size_t>(elements) * 4);
      return;
    case Type::F16:
      return dequantize_f16(bytes, blocks, out);
    case Type::BF16:
      return dequantize_bf16(bytes, blocks, out);
    case Type::Q4_0:
      return dequantize_q4_0(bytes, blocks, out);
    case Type::Q4_1:
      return dequantize_q4_1(bytes, blocks, out);
    case Type::Q5_0:
      return dequantize_q5_0(bytes, blocks, out);
    case Type::Q5_1:
      return dequantize_q5_1(bytes, blocks, out);
    case Type::Q8_0:
      return dequantize_q8_0(bytes, blocks, out);
    case Type::Q2_K:
      return dequantize_q2_k(bytes, blocks, out);
    case Type::Q3_K:
      return dequantize_q3_k(bytes, blocks, out);
    case Type::Q4_K:
      return dequantize_q4_k(bytes, blocks, out);
    case Type::Q5_K:
      return dequantize_q5_k(bytes, blocks, out);
    case Type::Q6_K:
      return dequantize_q6_k(bytes, blocks, out);
  }
}

void quantize(Type type, const float* source, int64_t elements, std::byte* out) {
  const Traits& t = traits(type);
  if (elements < 0 || elements % t.block != 0)
    fail("{} elements are not a whole number of {} blocks of {}", elements, t.name, t.block);
  if (elements == 0) return;
  int32_t largest = 0;  // of the magnitudes' bits, which order as the magnitudes do
  for (int64_t i = 0; i < elements; ++i)
    largest = std::max(largest, std::bit_cast<int32_t>(source[i]) & 0x7fffffff);
  if (largest >= 0x7f800000)
    for (int64_t i = 0; i < elements; ++i)
      if ((std::bit_cast<int32_t>(source[i]) & 0x7fffffff) >= 0x7f800000)
        fail("cannot quantise to {}: element {} is {}, a finite number was expected", t.name, i, source[i]);
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  const int64_t blocks = elements / t.block;
  switch (type) {
    case Type::F32:
      std::memcpy(bytes, source, static_cast<size_t>(elements) * 4);
      return;
    case Type::F16:
      return quantize_f16(source, blocks, bytes);
    case Type::BF16:
      return quantize_bf16(source, blocks, bytes);
    case Type::Q4_0:
      return quantize_q4_0(source, blocks, bytes);
    case Type::Q4_1:
      return quantize_q4_1(source, blocks, bytes);
    case Type::Q5_0:
      return quantize_q5_0(source, blocks, bytes);
    case Type::Q5_1:
      return quantize_q5_1(source, blocks, bytes);
    case Type::Q8_0:
      return quantize_q8_0(source, blocks, bytes);
    case Type::Q2_K:
      return quantize_q2_k(source, blocks, bytes);
    case Type::Q3_K:
      return quantize_q3_k(source, blocks, bytes);
    case Type::Q4_K:
      return quantize_q4_k(source, blocks, bytes);
    case Type::Q5_K:
      return quantize_q5_k(source, blocks, bytes);
    case Type::Q6_K:
      return quantize_q6_k(source, blocks, bytes);
  }
}

}  // namespace greta::quant
