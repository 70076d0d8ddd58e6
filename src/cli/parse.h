#pragma once
// From a command line to checked values.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/options.h"

namespace greta::cli {

/// What was given, each value already checked against its option's kind and range.
/// Names are the table's; asking for an option that the command does not take is a defect and throws
/// std::logic_error.
class Values {
 public:
  Command command = Command::top;
  std::vector<std::string> positionals;

  /// Given on the command line (a default does not count).
  bool has(std::string_view name) const;
  bool flag(std::string_view name) const { return has(name); }
  /// Given, else the default, else empty.
  std::string text(std::string_view name) const;
  std::vector<std::string> all(std::string_view name) const;
  /// Given, else the default, else nothing.
  std::optional<int64_t> number(std::string_view name) const;
  std::optional<double> real(std::string_view name) const;
  std::vector<int64_t> numbers(std::string_view name) const;

 private:
  friend Values parse(const std::vector<std::string>& arguments);
  std::map<std::string, std::vector<std::string>, std::less<>> given_;
};

/// `arguments` without the program's name. Errors (greta::Error): unknown commands and options (with the
/// nearest known one), a missing, malformed or out-of-range value, an option given twice, a missing or
/// superfluous positional. With --help nothing else is checked.
Values parse(const std::vector<std::string>& arguments);

/// "4096", "32k", "1.5M", "2KiB": k, M, G are powers of 1,000, KiB, MiB, GiB of 1,024. `what` names the
/// option in errors, as it was typed.
int64_t parse_number(std::string_view text, double least, double most, std::string_view what);
double parse_real(std::string_view text, double least, double most, std::string_view what);
std::vector<int64_t> parse_numbers(std::string_view text, double least, double most, std::string_view what);

/// The nearest of `known` to a mistyped word, or empty where none is near.
std::string_view nearest(std::string_view word, const std::vector<std::string_view>& known);

}  // namespace greta::cli
