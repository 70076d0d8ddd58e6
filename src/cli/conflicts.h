#pragma once
// Options that a command takes, but not together: each of them is refused by name, so that none is ignored.
#include <span>
#include <string_view>

#include "cli/parse.h"

namespace greta::cli {

/// One row of the one table of such pairs. docs/cli.md shows it.
struct Conflict {
  CommandSet commands;
  std::string_view option;              ///< given, it would be without effect
  std::string_view beside;              ///< the other side, as it is shown
  std::string_view advice;              ///< why, and what to do
  bool (*holds)(const Values& values);  ///< where `option` is given: is the other side there, too?
};
std::span<const Conflict> conflicts();

/// Throws greta::Error with a line for each pair that was given together.
void refuse_conflicts(const Values& values);

}  // namespace greta::cli
