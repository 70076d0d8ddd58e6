#include <fmt/format.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "cli/help.h"

namespace greta::cli {
namespace {

std::vector<std::string> command_names() {
  std::vector<std::string> names;
  for (const CommandInfo& info : commands())
    if (info.id != Command::top) names.emplace_back(info.name);
  return names;
}

std::string words_of(Command command) {
  std::vector<std::string> words;
  for (const Option* option : options_of(command)) {
    if (option->letter != 0) words.push_back(fmt::format("-{}", option->letter));
    words.push_back(fmt::format("--{}", option->name));
  }
  return fmt::format("{}", fmt::join(words, " "));
}

/// A case for each option whose value can be completed; the rest take any word.
std::string bash_values() {
  std::string out;
  std::vector<std::string> paths;
  std::vector<std::string> free;
  for (const Option& option : options()) {
    if (option.kind == Kind::flag) continue;
    const std::string name = option.letter != 0 ? fmt::format("-{}|--{}", option.letter, option.name)
                                                : fmt::format("--{}", option.name);
    if (option.kind == Kind::choice) {
      out += fmt::format("    {}) COMPREPLY=($(compgen -W \"{}\" -- \"$word\")); return ;;\n", name,
                         fmt::join(option.choices, " "));
    } else {
      (option.kind == Kind::path ? paths : free).push_back(name);
    }
  }
  out += fmt::format("    {}) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n",
                     fmt::join(paths, "|"));
  return out + fmt::format("    {}) return ;;\n", fmt::join(free, "|"));
}

std::string bash() {
  std::string out =
      "# Completion of greta for bash.\n_greta() {\n"
      "  local word=\"${COMP_WORDS[COMP_CWORD]}\" before=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
      "  if [ \"$word\" = = ]; then word=\"\"; fi\n"  // --option=value is three words to bash
      "  if [ \"$before\" = = ]; then before=\"${COMP_WORDS[COMP_CWORD-2]}\"; fi\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n";
  out += fmt::format("    COMPREPLY=($(compgen -W \"{} {}\" -- \"$word\")); return\n  fi\n",
                     fmt::join(command_names(), " "), words_of(Command::top));
  out += "  case \"$before\" in\n" + bash_values() + "  esac\n";
  out += "  local options=\"\"\n  case \"${COMP_WORDS[1]}\" in\n";
  for (const CommandInfo& info : commands())
    if (info.id != Command::top)
      out += fmt::format("    {}) options=\"{}\" ;;\n", info.name, words_of(info.id));
  out +=
      "  esac\n  if [[ \"$word\" == -* ]]; then\n    COMPREPLY=($(compgen -W \"$options\" -- \"$word\"))\n"
      "  elif [ \"${COMP_WORDS[1]}\" = completion ]; then\n"
      "    COMPREPLY=($(compgen -W \"bash zsh\" -- \"$word\"))\n"
      "  else\n    compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\"))\n  fi\n}\n"
      "complete -F _greta greta\n";
  return out;
}

/// Text inside [...] of a zsh specification in single quotes.
std::string zsh_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
      continue;
    }
    if (c == '[' || c == ']' || c == ':') out += '\\';
    out += c;
  }
  return out;
}

std::string zsh_option(const Option& option) {
  std::string value;
  if (option.kind == Kind::choice)
    value = fmt::format(":{}:({})", option.placeholder, fmt::join(option.choices, " "));
  else if (option.kind == Kind::path)
    value = fmt::format(":{}:_files", option.placeholder);
  else if (option.kind != Kind::flag)
    value = fmt::format(":{}: ", option.placeholder);
  const std::string help = zsh_escaped(option.help);
  const char* repeat = option.repeatable ? "*" : "";
  std::string out = fmt::format("        '{}--{}[{}]{}' \\\n", repeat, option.name, help, value);
  if (option.letter != 0)
    out += fmt::format("        '{}-{}[{}]{}' \\\n", repeat, option.letter, help, value);
  return out;
}

std::string zsh() {
  std::string out =
      "#compdef greta\n# Completion of greta for zsh.\n_greta() {\n"
      "  if (( CURRENT == 2 )); then\n    local -a words_known=(\n";
  for (const CommandInfo& info : commands())
    if (info.id != Command::top) out += fmt::format("      '{}:{}'\n", info.name, zsh_escaped(info.summary));
  for (const Option* option : options_of(Command::top))
    out += fmt::format("      '--{}:{}'\n", option->name, zsh_escaped(option->help));
  out +=
      "    )\n    _describe command words_known\n    return\n  fi\n  local command=$words[2]\n  shift words\n"
      "  (( CURRENT-- ))\n  case $command in\n";
  for (const CommandInfo& info : commands()) {
    if (info.id == Command::top) continue;
    out += fmt::format("    {})\n      _arguments \\\n", info.name);
    for (const Option* option : options_of(info.id)) out += zsh_option(*option);
    out += info.id == Command::completion ? "        '1:shell:(bash zsh)' ;;\n"
           : info.positional.empty()      ? "        ;;\n"
                                          : "        '*:model:_files' ;;\n";
  }
  return out + "  esac\n}\n_greta \"$@\"\n";
}

}  // namespace

std::string completion_script(std::string_view shell) {
  if (shell == "bash") return bash();
  if (shell == "zsh") return zsh();
  fail("greta completion '{}': expected bash or zsh", shell);
}

}  // namespace greta::cli
