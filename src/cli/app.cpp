// From main to a command, and from whatever it throws to an exit status.
#include <fcntl.h>
#include <unistd.h>

#include <exception>
#include <new>
#include <string>
#include <vector>

#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/conflicts.h"
#include "cli/help.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"

namespace greta::cli {
namespace {

constexpr int kCannot = 2;

int dispatch(const Values& values) {
  switch (values.command) {
    case Command::run:
      return run(values);
    case Command::check:
      return check(values);
    case Command::inspect:
      return inspect(values);
    case Command::tokenize:
      return tokenize(values);
    case Command::bench:
      return bench(values);
    case Command::synth:
      return synth(values);
    case Command::trace:
      return trace(values);
    case Command::bisect:
      require_pins(values);
      return bisect(values);
    case Command::verify:
      return verify(values);
    case Command::devices:
      return devices(values);
    case Command::completion:
      print(completion_script(values.positionals[0]));
      return 0;
    case Command::top:
      break;
  }
  if (values.flag("version")) {
    print(version_text());
    return 0;
  }
  if (values.flag("help-markdown")) {
    print(reference_markdown());
    return 0;
  }
  fail(
      "a command is missing: run, check, inspect, tokenize, bench, synth, trace, bisect, verify, devices "
      "(greta "
      "--help)");
}

int guarded_main(const std::vector<std::string>& arguments) {
  const Values values = parse(arguments);
  if (values.flag("help")) {
    print(help_text(values.command));
    flush_output();
    return 0;
  }
  refuse_conflicts(values);
  if (find_option(values.command, "quiet") != nullptr) {
    log::set_level(values.flag("quiet")     ? log::Level::quiet
                   : values.flag("verbose") ? log::Level::verbose
                                            : log::Level::normal);
    const BuildInfo& build = build_info();
    log::debug("{}, commit {}{}, {}, {}", build.version, build.commit, build.dirty ? " (dirty)" : "",
               build.compiler, build.type);
  }
  const int status = dispatch(values);
  flush_output();
  return status;
}

/// A standard stream that is closed would be the next file that is opened. What stands in fails to read and
/// to write, as a closed one does.
void fill_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0) (void)::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

}  // namespace

int run_main(int argc, char** argv) {
  fill_standard_streams();
  install_signal_handlers();
  try {
    return guarded_main(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
  } catch (const ClosedPipe&) {
    return 0;
  } catch (const Interrupted&) {
    return kInterruptedStatus;
  } catch (const Error& error) {
    show_error(error.what(), error.details());
  } catch (const std::bad_alloc&) {
    show_error("out of memory: a smaller --context, --chunk or model needs less");
  } catch (const std::exception& error) {
    show_error(std::string("a defect in greta itself: ") + error.what());
  }
  return kCannot;
}

}  // namespace greta::cli
