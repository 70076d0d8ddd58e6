#include "cli/help.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace greta::cli {
namespace {

constexpr size_t kWidth = 100;

/// `text` broken at spaces into lines of at most `width`, each but the first indented.
std::string wrapped(std::string_view text, size_t indent, size_t width) {
  std::string out;
  size_t column = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of(" \n", begin), text.size());
    const size_t length = end - begin;
    if (column > 0 && column + 1 + length > width) {
      out += '\n' + std::string(indent, ' ');
      column = 0;
    } else if (column > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, length);
    column += length;
    if (end < text.size() && text[end] == '\n') {
      out += '\n' + std::string(indent, ' ');
      column = 0;
    }
    begin = end + 1;
  }
  return out;
}

std::string with_default(const Option& option) {
  std::string help(option.help);
  if (option.kind == Kind::choice) {
    std::vector<std::string> shown(option.choices.begin(), option.choices.end());
    help += fmt::format(": {}", fmt::join(shown, ", "));
  }
  if (!option.standard.empty()) help += fmt::format(" [{}]", option.standard);
  return help;
}

std::string usage(Command command) {
  const CommandInfo& info = info_of(command);
  if (command == Command::top) return "greta COMMAND [OPTIONS]";
  return fmt::format("greta {}{}{}{}", info.name, info.positional.empty() ? "" : " ", info.positional,
                     options_of(command).size() > 1 ? " [OPTIONS]" : "");
}

std::string top_help() {
  std::string out = "greta runs language models from GGUF files: the same tokens, the same bits.\n\nUsage: " +
                    usage(Command::top) + "\n\nCommands:\n";
  for (const CommandInfo& info : commands())
    if (info.id != Command::top) out += fmt::format("  {:<12}{}\n", info.name, info.summary);
  out += "\nOptions:\n";
  for (const Option* option : options_of(Command::top))
    out += fmt::format("  {:<20}{}\n", signature(*option), option->help);
  return out + "\ngreta COMMAND --help says what a command takes.\n";
}

}  // namespace

std::string signature(const Option& option) {
  return fmt::format("{}--{}{}{}", option.letter != 0 ? fmt::format("-{}, ", option.letter) : "", option.name,
                     option.placeholder.empty() ? "" : " ", option.placeholder);
}

std::string help_text(Command command) {
  if (command == Command::top) return top_help();
  const CommandInfo& info = info_of(command);
  std::string out = fmt::format("Usage: {}\n\n{}\n", usage(command), info.summary);
  if (!info.details.empty()) out += fmt::format("\n{}\n", wrapped(info.details, 0, kWidth));
  const auto taken = options_of(command);
  std::vector<std::string_view> groups;
  for (const Option* option : taken)
    if (std::find(groups.begin(), groups.end(), option->group) == groups.end())
      groups.push_back(option->group);
  constexpr size_t kColumn = 26;
  for (const std::string_view group : groups) {
    out += fmt::format("\n{}:\n", group);
    for (const Option* option : taken)
      if (option->group == group)
        out += fmt::format("  {:<{}}{}\n", signature(*option), kColumn - 2,
                           wrapped(with_default(*option), kColumn, kWidth - kColumn));
  }
  return out;
}

}  // namespace greta::cli
