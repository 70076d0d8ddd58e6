#pragma once
// Errors: one headline sentence, then one line for each mismatch (docs: cli.md's rule for stderr).
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace greta {

/// What could not be done, why, and what to do. `what()` is the headline; `details()` are the lines below it.
/// A command that ends with an Error exits with status 2 (cli.md).
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& headline, std::vector<std::string> details = {})
      : std::runtime_error(headline), details_(std::move(details)) {}
  const std::vector<std::string>& details() const { return details_; }

 private:
  std::vector<std::string> details_;
};

/// Throws an Error whose headline is formatted.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace greta
