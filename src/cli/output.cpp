#include "cli/output.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/partial_file.h"
#include "base/text.h"

namespace greta::cli {
namespace {

std::string& pending() {
  static std::string text;
  return text;
}

constexpr size_t kFlushAt = 1 << 16;

}  // namespace

void print(std::string_view text) {
  pending() += text;
  if (pending().size() >= kFlushAt) flush_output();
}

void flush_output() {
  const std::string text = std::exchange(pending(), {});
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data() + done, text.size() - done);
    if (n < 0 && (errno == EINTR || wait_until_ready(STDOUT_FILENO, POLLOUT))) continue;
    if (n < 0 && errno == EPIPE) throw ClosedPipe();
    if (n < 0) fail("cannot write to standard output: {}", std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

void print_json(const nlohmann::ordered_json& document) {
  print(document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

std::string quoted_text(std::string_view text) {
  std::string out = "\"";
  for (;;) {
    const size_t plain = text.find_first_of("\"\\\n\t");
    out += printable(text.substr(0, plain));
    if (plain == std::string_view::npos) return out + '"';
    const char c = text[plain];
    out += '\\';
    out += c == '\n' ? 'n' : c == '\t' ? 't' : c;
    text.remove_prefix(plain + 1);
  }
}

std::string bytes_shown(double bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 1000.0 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

void show_error(const std::string& headline, const std::vector<std::string>& details) {
  std::string text = "greta: " + printable(headline) + "\n";
  for (const std::string& detail : details) text += "  " + printable(detail) + "\n";
  if (::write(STDERR_FILENO, text.data(), text.size()) < 0) return;  // nobody is there to be told
}

void require_file_target(const std::string& path, const std::vector<std::string>& inputs) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status) && !fs::is_regular_file(status))
    fail("cannot write {}: it is {}, a file was expected", path,
         fs::is_directory(status) ? "a directory" : "no regular file");
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty() && !fs::is_directory(folder, error))
    fail("cannot write {}: there is no folder {}", path, folder.string());
  for (const std::string& input : inputs)
    if (!input.empty() && fs::equivalent(path, input, error))
      fail("cannot write {}: it is the input {}, which would be lost; -o names another file", path, input);
  const PartialFile attempt(path);  // only the system knows what it lets be written; nothing of it stays
}

}  // namespace greta::cli
