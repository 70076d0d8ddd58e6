#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace greta {

/// The offset of the first byte that is not part of well-formed UTF-8 (overlong forms, surrogates, values
/// above U+10FFFF and cut characters included), or nothing.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Throws greta::Error where `text` holds a NUL byte or is no UTF-8: its offset, after `name`.
void require_text(std::string_view text, std::string_view name);

/// Text from a file or a user, fit for a terminal: control characters and bytes that are no UTF-8 as \xNN,
/// everything else as it is. A text longer than `most` bytes is cut there, between two characters, and ends
/// in "...".
std::string printable(std::string_view text, size_t most = std::string_view::npos);

}  // namespace greta
