#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace greta {

/// The offset of the first byte that is not part of well-formed UTF-8 (overlong forms, surrogates, values
/// above U+10FFFF and cut characters included), or nothing.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Text from a file or a user, fit for a terminal: control bytes and bytes that are no UTF-8 as \xNN,
/// everything else as it is. A text longer than `most` bytes is cut there, between two characters, and ends
/// in "...".
std::string printable(std::string_view text, size_t most = std::string_view::npos);

}  // namespace greta
