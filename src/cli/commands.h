#pragma once
// One function a command, each in its own file: the checked command line in, the exit status out.
#include <string>

#include "cli/parse.h"

namespace greta::cli {

int run(const Values& values);
int check(const Values& values);
int inspect(const Values& values);
int tokenize(const Values& values);
int bench(const Values& values);
int synth(const Values& values);
int trace(const Values& values);
int bisect(const Values& values);
int verify(const Values& values);
int devices(const Values& values);

/// What `greta --version` prints.
std::string version_text();

/// The whole program. Returns the exit status (docs/cli.md).
int run_main(int argc, char** argv);

}  // namespace greta::cli
