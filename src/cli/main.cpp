#include "cli/commands.h"

int main(int argc, char** argv) { return greta::cli::run_main(argc, argv); }
