#pragma once
// Texts made from the options table.
#include <string>
#include <string_view>

#include "cli/options.h"

namespace greta::cli {

/// What `greta COMMAND --help` prints; of Command::top: the list of commands.
std::string help_text(Command command);
/// docs/cli.md.
std::string reference_markdown();
/// Completion script of "bash" or "zsh". Errors: another shell.
std::string completion_script(std::string_view shell);

/// "--max-tokens N", "-o, --output FILE".
std::string signature(const Option& option);

}  // namespace greta::cli
