#pragma once
// Code points: reading UTF-8 and the character classes of the pre-tokenizers.
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace greta::unicode {

/// Classes of a code point, as a set of bits. The first six are the general categories and white space as
/// regular expressions spell them; the last two are the rules of two pre-tokenizer steps that models name in
/// their files and that know other versions of Unicode (unicode_tables.cpp says which).
enum Class : uint8_t {
  letter = 1,        ///< \p{L}
  number = 2,        ///< \p{N}
  mark = 4,          ///< \p{M}
  punctuation = 8,   ///< \p{P}
  symbol = 16,       ///< \p{S}
  space = 32,        ///< \s
  digit_rule = 64,   ///< the `Digits` step
  punct_rule = 128,  ///< the `Punctuation` step
};

/// Runs of equal classes: (first code point << 8) | classes, ascending. Generated.
extern const uint32_t kRuns[];
extern const size_t kRunCount;

/// The classes of a code point (any value; above U+10FFFF none).
uint8_t classes(char32_t c);

inline bool is(char32_t c, uint8_t any_of) { return (classes(c) & any_of) != 0; }

/// How many bytes a character has, by its first byte; 1 for bytes that begin none.
inline size_t length(unsigned char first) {
  return first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF8 ? 4 : 1;
}

/// The character at `at` of well-formed UTF-8 (the caller has checked), and its length.
struct Decoded {
  char32_t value;
  size_t length;
};
inline Decoded decode(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
  const char32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  if (first < 0xE0) return {((first & 0x1F) << 6) | (byte(1) & 0x3F), 2};
  if (first < 0xF0) return {((first & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F), 3};
  return {((first & 7) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) | (byte(3) & 0x3F), 4};
}

}  // namespace greta::unicode
