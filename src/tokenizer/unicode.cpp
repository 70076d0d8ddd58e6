#include "tokenizer/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

namespace greta::unicode {
namespace {

constexpr char32_t kDirect = 0x10000;  // the basic plane is looked up directly, the rest by bisection

std::unique_ptr<uint8_t[]> expand() {
  auto table = std::make_unique<uint8_t[]>(kDirect);
  for (size_t i = 0; i < kRunCount; ++i) {
    const size_t begin = kRuns[i] >> 8;
    const size_t end = i + 1 < kRunCount ? kRuns[i + 1] >> 8 : 0x110000;
    if (begin >= kDirect) break;
    std::memset(table.get() + begin, static_cast<int>(kRuns[i] & 0xFF),
                std::min<size_t>(end, kDirect) - begin);
  }
  return table;
}

}  // namespace

uint8_t classes(char32_t c) {
  static const std::unique_ptr<uint8_t[]> table = expand();
  if (c < kDirect) return table[c];
  if (c > 0x10FFFF) return 0;
  const uint32_t* after = std::upper_bound(kRuns, kRuns + kRunCount, (static_cast<uint32_t>(c) << 8) | 0xFF);
  return static_cast<uint8_t>(*(after - 1) & 0xFF);
}

std::optional<size_t> find_invalid(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  size_t i = 0;
  while (i < n) {
    uint64_t eight = 0;
    if (n - i >= 8 && (std::memcpy(&eight, p + i, 8), (eight & 0x8080808080808080u) == 0)) {
      i += 8;
      continue;
    }
    const unsigned char a = p[i];
    if (a < 0x80) {
      ++i;
      continue;
    }
    const size_t size = a < 0xC2 ? 0 : a < 0xE0 ? 2 : a < 0xF0 ? 3 : a < 0xF5 ? 4 : 0;
    if (size == 0 || n - i < size) return i;
    // The second byte carries the limits of overlong forms, surrogates and U+10FFFF.
    const unsigned char low = a == 0xE0 ? 0xA0 : a == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = a == 0xED ? 0x9F : a == 0xF4 ? 0x8F : 0xBF;
    if (p[i + 1] < low || p[i + 1] > high) return i;
    for (size_t k = 2; k < size; ++k) {
      if ((p[i + k] & 0xC0) != 0x80) return i;
    }
    i += size;
  }
  return std::nullopt;
}

}  // namespace greta::unicode
