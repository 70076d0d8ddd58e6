#pragma once
// Everything that is not a result goes to stderr, through here.
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace greta::log {

enum class Level { quiet, normal, verbose };

/// Errors always show; warnings and info unless quiet; debug only when verbose.
void set_level(Level level);
void write_error(std::string_view text);
void write_warning(std::string_view text);
void write_info(std::string_view text);
void write_debug(std::string_view text);

template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write_warning(fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write_info(fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write_debug(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace greta::log
