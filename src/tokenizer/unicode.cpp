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

}  // namespace greta::unicode
