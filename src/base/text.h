#pragma once
#include <string>
#include <string_view>

namespace greta {

/// Text from a file or a user, fit for a terminal: control bytes as \xNN, everything else as it is.
std::string printable(std::string_view text);

}  // namespace greta
