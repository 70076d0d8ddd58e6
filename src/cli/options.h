#pragma once
// The one table of commands and options. Parsing (parse.cpp), --help (help.cpp), shell completion
// (completion.cpp) and docs/cli.md (reference.cpp) are all made from it.
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

namespace greta::cli {

/// `top` is the program without a command.
enum class Command {
  run,
  check,
  inspect,
  tokenize,
  bench,
  synth,
  trace,
  bisect,
  verify,
  devices,
  completion,
  top
};

using CommandSet = uint32_t;
constexpr CommandSet set_of(Command command) { return CommandSet{1} << static_cast<int>(command); }

struct CommandInfo {
  Command id;
  std::string_view name;
  std::string_view positional;  ///< "MODEL", "MODEL...", or nothing
  std::string_view summary;     ///< one line, for lists
  std::string_view details;     ///< a paragraph or more for --help and the reference; may be empty
};

/// What an option's value is.
enum class Kind {
  flag,     ///< none: it is given or not
  text,     ///< any bytes, none at all too
  word,     ///< any bytes, at least one
  path,     ///< a file; completed as one
  choice,   ///< one of `choices`
  number,   ///< a whole number in [least, most]; a size suffix may follow
  real,     ///< a decimal number in [least, most]
  numbers,  ///< whole numbers with commas between them
  ranges,   ///< the same with ranges: 0,5-9
};

struct Option {
  std::string_view name;  ///< long spelling without the dashes; the option's only name but for `letter`
  char letter;            ///< one-letter spelling, or 0
  Kind kind;
  std::string_view placeholder;  ///< of the value in help: "N", "FILE"
  std::string_view standard;  ///< the default as it would be typed; empty: none, or `help` says what happens
  CommandSet commands;        ///< which commands take it
  std::string_view group;     ///< heading in help
  std::string_view help;
  double least = 0;
  double most = static_cast<double>(std::numeric_limits<int64_t>::max());
  bool repeatable = false;
  std::vector<std::string_view> choices = {};
};

std::span<const CommandInfo> commands();
const CommandInfo& info_of(Command command);

std::span<const Option> options();
/// The options of a command, in the table's order.
std::vector<const Option*> options_of(Command command);
/// The option of this name that `command` takes, or null.
const Option* find_option(Command command, std::string_view name);

}  // namespace greta::cli
