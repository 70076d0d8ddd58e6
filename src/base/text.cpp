#include "base/text.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"

namespace greta {

std::optional<size_t> find_invalid_utf8(std::string_view text) {
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

void require_text(std::string_view text, std::string_view name) {
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    fail("{}: a NUL byte at offset {} of {}; expected text", name, nul, text.size());
  if (const auto bad = find_invalid_utf8(text))
    fail("{}: invalid UTF-8 at offset {} of {} (byte 0x{:02x}); expected UTF-8 text", name, *bad, text.size(),
         static_cast<unsigned char>(text[*bad]));
}

std::string printable(std::string_view text, size_t most) {
  const bool cut = text.size() > most;
  if (cut) {
    size_t end = most;
    for (int i = 0; i < 3 && end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80; ++i) --end;
    text = text.substr(0, end);
  }
  std::string out;
  while (!text.empty()) {
    const size_t valid = find_invalid_utf8(text).value_or(text.size());
    for (size_t i = 0; i < valid; ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      // U+0080 to U+009F, some of which terminals obey, are C2 and a byte below A0.
      const bool second = byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0;
      if (byte < 0x20 || byte == 0x7f) {
        out += fmt::format("\\x{:02x}", byte);
      } else if (second) {
        out += fmt::format("\\xc2\\x{:02x}", static_cast<unsigned char>(text[++i]));
      } else {
        out += text[i];
      }
    }
    if (valid == text.size()) break;
    out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[valid]));
    text.remove_prefix(valid + 1);
  }
  return cut ? out + "..." : out;
}

}  // namespace greta
