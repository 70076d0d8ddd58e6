#pragma once
// Runs the built program as a user would: arguments, standard streams, signals, exit status.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "support.h"

namespace greta::test {

struct Outcome {
  int status = -1;  ///< exit status, or 128 + the signal that ended it, or -1 for a time-out
  std::string out;
  std::string err;
};

struct RunOptions {
  std::string input;                   ///< standard input
  std::string stdout_path = {};        ///< instead of a pipe: this file ("/dev/full")
  bool terminal_error = false;         ///< standard error is a terminal
  bool close_stdout = false;           ///< start it without a standard output
  size_t close_pipe_after = SIZE_MAX;  ///< bytes of standard output after which the reader goes away
  /// Told all output so far whenever some came; may send signals to the process.
  std::function<void(pid_t process, const std::string& out, const std::string& err)> watch = {};
  std::function<void()> prepare = {};  ///< called in the new process: limits, signals, descriptors
  double seconds = 120.0;              ///< then it is killed
};

/// A process with pipes on its standard streams.
class Process {
 public:
  Process(const std::vector<std::string>& arguments, const RunOptions& options) {
    int in[2], out[2], err[2];
    if (options.terminal_error) {
      err[0] = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
      if (err[0] < 0 || ::grantpt(err[0]) != 0 || ::unlockpt(err[0]) != 0) return;
      err[1] = ::open(::ptsname(err[0]), O_RDWR | O_NOCTTY | O_CLOEXEC);
    } else if (::pipe2(err, O_CLOEXEC) != 0) {
      return;
    }
    if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) return;
    pid = ::fork();
    if (pid == 0) {
      ::dup2(in[0], 0);
      ::dup2(options.stdout_path.empty() ? out[1] : ::open(options.stdout_path.c_str(), O_WRONLY), 1);
      ::dup2(err[1], 2);
      if (options.close_stdout) ::close(1);
      ::signal(SIGPIPE, SIG_DFL);
      if (options.prepare) options.prepare();
      std::vector<char*> argv = {const_cast<char*>(GRETA_BINARY)};
      for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
      argv.push_back(nullptr);
      ::execv(GRETA_BINARY, argv.data());
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    ::close(err[1]);
    input = in[1];
    output = out[0];
    error = err[0];
  }
  ~Process() {
    for (const int fd : {input, output, error})
      if (fd >= 0) ::close(fd);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid = -1;
  int input = -1;
  int output = -1;
  int error = -1;
};

inline RunOptions with_input(std::string text) {
  RunOptions options;
  options.input = std::move(text);
  return options;
}

inline void close_once(int& fd) {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

/// Reads what is there; false at the end of the stream.
inline bool read_some(int fd, std::string& text) {
  char buffer[4096];
  const ssize_t n = ::read(fd, buffer, sizeof buffer);
  if (n > 0) text.append(buffer, static_cast<size_t>(n));
  return n > 0;
}

inline Outcome greta_run(const std::vector<std::string>& arguments, const RunOptions& options = {}) {
  ::signal(SIGPIPE, SIG_IGN);
  Process process(arguments, options);
  Outcome outcome;
  if (process.pid < 0) return outcome;
  const auto start = std::chrono::steady_clock::now();
  size_t fed = 0;
  if (options.input.empty()) close_once(process.input);
  if (options.close_pipe_after == 0) close_once(process.output);
  bool timed_out = false;
  while (process.output >= 0 || process.error >= 0) {
    pollfd fds[3] = {{process.output, POLLIN, 0}, {process.error, POLLIN, 0}, {process.input, POLLOUT, 0}};
    ::poll(fds, 3, 100);
    if (process.output >= 0 && fds[0].revents != 0 && !read_some(process.output, outcome.out))
      close_once(process.output);
    if (process.error >= 0 && fds[1].revents != 0 && !read_some(process.error, outcome.err))
      close_once(process.error);
    if (process.input >= 0 && fds[2].revents != 0) {
      const ssize_t n = ::write(process.input, options.input.data() + fed,
                                std::min<size_t>(options.input.size() - fed, 4096));
      fed += n > 0 ? static_cast<size_t>(n) : 0;
      if (n <= 0 || fed == options.input.size()) close_once(process.input);
    }
    if (outcome.out.size() >= options.close_pipe_after) close_once(process.output);
    if (options.watch) options.watch(process.pid, outcome.out, outcome.err);
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > options.seconds &&
        !timed_out) {
      timed_out = true;
      ::kill(process.pid, SIGKILL);
    }
  }
  int status = 0;
  ::waitpid(process.pid, &status, 0);
  outcome.status = timed_out             ? -1
                   : WIFEXITED(status)   ? WEXITSTATUS(status)
                   : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                         : -1;
  return outcome;
}

/// Lines that begin with "greta: " or, below a headline, with two spaces.
inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The 16 digits behind "logits hash" in a log, or nothing.
inline std::string hash_in(const std::string& text) {
  const size_t at = text.rfind("logits hash ");
  return at == std::string::npos ? "" : text.substr(at + 12, 16);
}

/// A small model made by `greta synth`, in a folder of its own.
class CliTest : public testing::Test {
 protected:
  /// Extra options override nothing: they are added.
  std::string make_model(const std::string& name, const std::vector<std::string>& extra = {}) {
    std::vector<std::string> arguments = {"synth",    "-o",      folder / name, "--dim",  "64",
                                          "--layers", "2",       "--heads",     "4",      "--kv-heads",
                                          "2",        "--vocab", "300",         "--quiet"};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const Outcome made = greta_run(arguments);
    EXPECT_EQ(made.status, 0) << made.err;
    return folder / name;
  }
  /// What lies in the folder, to see that nothing was left behind.
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  TemporaryFolder folder;
};

}  // namespace greta::test
