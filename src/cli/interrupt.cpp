#include "cli/interrupt.h"

#include <fmt/format.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <cstring>

namespace greta::cli {
namespace {

// A signal handler may touch nothing but lock-free atomics and plain memory that was set before.
std::atomic<bool> raised_flag{false};
std::atomic<int> guards{0};
std::atomic<bool> has_partial{false};
char partial_path[PATH_MAX + 64];

static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_signal(int number) {
  if (number == SIGINT && guards.load() > 0 && !raised_flag.exchange(true)) return;
  if (has_partial.load()) ::unlink(partial_path);
  ::_exit(128 + number);
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction inherited = {};
    ::sigaction(number, nullptr, &inherited);
    // A shell's background job does not hear its Ctrl-C, nor a job of nohup the hanging up.
    if (inherited.sa_handler != SIG_IGN) ::sigaction(number, &action, nullptr);
  }
  ::signal(SIGPIPE, SIG_IGN);  // a write says so
  ::signal(SIGXFSZ, SIG_IGN);
}

InterruptGuard::InterruptGuard() { guards.fetch_add(1); }
InterruptGuard::~InterruptGuard() { guards.fetch_sub(1); }
const std::atomic<bool>& InterruptGuard::flag() const { return raised_flag; }
void InterruptGuard::check() const {
  if (raised()) throw Interrupted();
}

PartialFileGuard::PartialFileGuard(const std::string& path) {
  const std::string partial = fmt::format("{}.partial-{}", path, ::getpid());
  if (partial.size() >= sizeof partial_path) return;
  std::memcpy(partial_path, partial.c_str(), partial.size() + 1);
  has_partial.store(true);
}

PartialFileGuard::~PartialFileGuard() { has_partial.store(false); }

}  // namespace greta::cli
