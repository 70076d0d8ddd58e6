#include "cli/parse.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "base/error.h"

namespace greta::cli {
namespace {

struct Suffix {
  std::string_view text;
  int64_t factor;
};
constexpr Suffix kSuffixes[] = {{"KiB", int64_t{1} << 10},
                                {"MiB", int64_t{1} << 20},
                                {"GiB", int64_t{1} << 30},
                                {"k", 1000},
                                {"M", 1000000},
                                {"G", 1000000000}};

std::string range_text(double least, double most) {
  if (most >= static_cast<double>(std::numeric_limits<int64_t>::max()))
    return fmt::format("of at least {}", least);
  return fmt::format(
      "from {} to {}", least,
      static_cast<int64_t>(most) == most ? fmt::format("{:.0f}", most) : fmt::format("{}", most));
}

std::string spelled(const Option& option) { return fmt::format("--{}", option.name); }

/// A value against its option's kind; the typed accessors parse it again and cannot fail.
void check_value(const Option& option, const std::string& value) {
  const std::string what = spelled(option);
  switch (option.kind) {
    case Kind::number:
      parse_number(value, option.least, option.most, what);
      return;
    case Kind::real:
      parse_real(value, option.least, option.most, what);
      return;
    case Kind::numbers:
      parse_numbers(value, option.least, option.most, what);
      return;
    case Kind::choice:
      if (std::find(option.choices.begin(), option.choices.end(), value) == option.choices.end())
        fail("{} '{}': expected {}", what, value, fmt::join(option.choices, ", "));
      return;
    case Kind::path:
      if (value.empty()) fail("{}: the file's name is empty", what);
      return;
    case Kind::word:
    case Kind::ranges:
      // An unset variable of a script must not mean "as if it had not been given".
      if (value.empty())
        fail("{}: expected {}, got an empty value; leave the option out where none is meant", what,
             option.placeholder);
      return;
    case Kind::flag:
    case Kind::text:
      return;
  }
}

std::string did_you_mean(std::string_view word, const std::vector<std::string_view>& known,
                         std::string_view dashes) {
  const std::string_view near = nearest(word, known);
  return near.empty() ? "" : fmt::format("; did you mean {}{}?", dashes, near);
}

std::string command_name(Command command) {
  return command == Command::top ? "greta" : fmt::format("greta {}", info_of(command).name);
}

[[noreturn]] void unknown_argument(Command command, const std::string& argument) {
  if (argument.starts_with("-") && argument.size() > 1) {
    std::vector<std::string_view> known;
    for (const Option* option : options_of(command)) known.push_back(option->name);
    const std::string name = argument.substr(0, argument.find('='));
    fail("{} has no option {}{} ({} --help lists them)", command_name(command), name,
         did_you_mean(std::string_view(name).substr(std::min(name.find_first_not_of('-'), name.size())),
                      known, "--"),
         command_name(command));
  }
  if (command == Command::top) {
    std::vector<std::string_view> known;
    for (const CommandInfo& info : commands())
      if (!info.name.empty()) known.push_back(info.name);
    fail("there is no command '{}'{} (greta --help lists them)", argument, did_you_mean(argument, known, ""));
  }
  fail("{}: unexpected argument '{}'", command_name(command), argument);
}

/// CLI11 would read the argument after "--name=" as the value.
void refuse_empty_assignments(Command command, const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") return;
    if (!argument.starts_with("--")) continue;
    const std::string_view name = std::string_view(argument).substr(2, argument.find('=') - 2);
    const Option* option = find_option(command, name);
    if (option == nullptr || option->kind == Kind::flag) continue;
    if (argument.size() == name.size() + 2) {
      ++i;  // its value follows, whatever that looks like
    } else if (argument.size() == name.size() + 3) {
      fail("--{}=: no value{}", name,
           option->kind == Kind::text ? fmt::format(" (an empty one is written --{} '')", name) : "");
    }
  }
}

/// One level of CLI11: a command and its options. CLI11 splits the words; every check of values is ours.
class Level {
 public:
  Level(CLI::App& app, Command command) : app_(&app), command_(command) {
    app.set_help_flag();
    app.allow_extras();
    for (const Option* option : options_of(command)) {
      std::string names = fmt::format("--{}", option->name);
      if (option->letter != 0) names += fmt::format(",-{}", option->letter);
      CLI::Option* added = option->kind == Kind::flag
                               ? app.add_flag(names)
                               : app.add_option(names, [](const CLI::results_t&) { return true; });
      added->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
      if (option->kind != Kind::flag) added->type_size(1)->expected(1);
      added_.emplace_back(option, added);
    }
    if (command != Command::top) app.add_option("ARGUMENTS", positionals_)->expected(-1);
  }

  /// The option that CLI11 calls by this name ("--prompt", or "-o,--output" as its errors have it).
  std::string values_missing_for(const std::string& message) const {
    for (const auto& [option, added] : added_)
      if (message.starts_with(added->get_name(false, true) + ":") ||
          message.starts_with(added->get_name() + ":"))
        return spelled(*option);
    return message;
  }

  std::map<std::string, std::vector<std::string>, std::less<>> take() const {
    std::map<std::string, std::vector<std::string>, std::less<>> given;
    for (const auto& [option, added] : added_) {
      if (added->count() == 0) continue;
      const std::vector<std::string> results = added->results();
      if (option->kind == Kind::flag && (results.size() > 1 || results[0] != "true"))
        fail("{}: given once and without a value, or not at all", spelled(*option));
      if (!option->repeatable && results.size() > 1)
        fail("{}: given {} times", spelled(*option), results.size());
      for (const std::string& value : results) check_value(*option, value);
      given[std::string(option->name)] = results;
    }
    return given;
  }

  bool has(std::string_view name) const {
    return std::any_of(added_.begin(), added_.end(), [&](const auto& pair) {
      return pair.first->name == name && pair.second->count() > 0;
    });
  }
  Command command() const { return command_; }
  CLI::App& app() const { return *app_; }
  const std::vector<std::string>& positionals() const { return positionals_; }

 private:
  CLI::App* app_;
  Command command_;
  std::vector<std::pair<const Option*, CLI::Option*>> added_;
  std::vector<std::string> positionals_;
};

void check_positionals(Command command, const std::vector<std::string>& positionals) {
  const std::string_view wanted = info_of(command).positional;
  if (wanted.empty()) {
    if (!positionals.empty()) unknown_argument(command, positionals[0]);
    return;
  }
  if (positionals.empty()) {
    const std::string name = command_name(command);
    fail("{}: {} is missing ({} --help)", name, wanted.substr(0, wanted.find('.')), name);
  }
  if (!wanted.ends_with("...") && positionals.size() > 1) unknown_argument(command, positionals[1]);
  if (std::find(positionals.begin(), positionals.end(), "") != positionals.end())
    fail("{}: expected {}, got an empty name", command_name(command), wanted);
}

const std::vector<std::string>* find_given(
    const std::map<std::string, std::vector<std::string>, std::less<>>& given, std::string_view name) {
  const auto found = given.find(name);
  return found == given.end() ? nullptr : &found->second;
}

const Option& known_option(Command command, std::string_view name) {
  const Option* option = find_option(command, name);
  if (option == nullptr) throw std::logic_error(fmt::format("{} has no --{}", command_name(command), name));
  return *option;
}

}  // namespace

std::string_view nearest(std::string_view word, const std::vector<std::string_view>& known) {
  const auto distance = [](std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= a.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= b.size(); ++j)
        diagonal = std::exchange(
            row[j], std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)}));
    }
    return row[b.size()];
  };
  if (word.size() >= 3)  // a word cut short, before one that merely looks alike
    for (const std::string_view candidate : known)
      if (candidate.starts_with(word)) return candidate;
  std::string_view best;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string_view candidate : known) {
    const size_t d = distance(word, candidate);
    if (d < least) {
      least = d;
      best = candidate;
    }
  }
  return best;
}

int64_t parse_number(std::string_view text, double least, double most, std::string_view what) {
  const auto refuse = [&]() -> int64_t {
    fail("{} '{}': expected a whole number {} (k, M, G, KiB, MiB or GiB may follow)", what, text,
         range_text(least, most));
  };
  std::string_view digits = text;
  int64_t factor = 1;
  for (const Suffix& suffix : kSuffixes)
    if (digits.ends_with(suffix.text)) {
      digits.remove_suffix(suffix.text.size());
      factor = suffix.factor;
      break;
    }
  const size_t point = digits.find('.');
  int64_t whole = 0;
  const std::string_view integer = digits.substr(0, point);
  const auto parsed = std::from_chars(integer.data(), integer.data() + integer.size(), whole);
  if (parsed.ec != std::errc() || parsed.ptr != integer.data() + integer.size()) return refuse();
  int64_t value = 0;
  if (__builtin_mul_overflow(whole, factor, &value)) return refuse();
  if (point != std::string_view::npos) {  // 1.5k: the fraction must come out whole
    int64_t unit = factor;
    if (whole < 0 || digits.size() == point + 1) return refuse();
    for (const char c : digits.substr(point + 1)) {
      if (c < '0' || c > '9' || unit % 10 != 0) return refuse();
      unit /= 10;
      if (__builtin_add_overflow(value, unit * (c - '0'), &value)) return refuse();
    }
  }
  if (static_cast<double>(value) < least || static_cast<double>(value) > most) return refuse();
  return value;
}

double parse_real(std::string_view text, double least, double most, std::string_view what) {
  double value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() ||
      !(value >= least && value <= most))
    fail("{} '{}': expected a number {}", what, text, range_text(least, most));
  return value;
}

std::vector<int64_t> parse_numbers(std::string_view text, double least, double most, std::string_view what) {
  std::vector<int64_t> numbers;
  for (size_t begin = 0;;) {
    const size_t comma = text.find(',', begin);
    numbers.push_back(parse_number(text.substr(begin, comma - begin), least, most, what));
    if (comma == std::string_view::npos) return numbers;
    begin = comma + 1;
  }
}

bool Values::has(std::string_view name) const {
  known_option(command, name);
  return given_.contains(name);
}

std::string Values::text(std::string_view name) const {
  const Option& option = known_option(command, name);
  const auto* given = find_given(given_, name);
  return given != nullptr ? given->front() : std::string(option.standard);
}

std::vector<std::string> Values::all(std::string_view name) const {
  known_option(command, name);
  const auto* given = find_given(given_, name);
  return given != nullptr ? *given : std::vector<std::string>{};
}

std::optional<int64_t> Values::number(std::string_view name) const {
  const Option& option = known_option(command, name);
  const std::string value = text(name);
  if (value.empty()) return std::nullopt;
  return parse_number(value, option.least, option.most, spelled(option));
}

std::optional<double> Values::real(std::string_view name) const {
  const Option& option = known_option(command, name);
  const std::string value = text(name);
  if (value.empty()) return std::nullopt;
  return parse_real(value, option.least, option.most, spelled(option));
}

std::vector<int64_t> Values::numbers(std::string_view name) const {
  const Option& option = known_option(command, name);
  const std::string value = text(name);
  if (value.empty()) return {};
  return parse_numbers(value, option.least, option.most, spelled(option));
}

Values parse(const std::vector<std::string>& arguments) {
  CLI::App top("greta");
  std::vector<std::unique_ptr<Level>> levels;
  for (const CommandInfo& info : commands()) {
    CLI::App& app = info.id == Command::top ? top : *top.add_subcommand(std::string(info.name));
    levels.push_back(std::make_unique<Level>(app, info.id));
  }
  top.require_subcommand(0, 1);

  const Level* chosen = levels.back().get();
  for (const auto& level : levels)
    if (!arguments.empty() && info_of(level->command()).name == arguments[0] && !arguments[0].empty())
      chosen = level.get();
  refuse_empty_assignments(chosen->command(), arguments);
  try {
    top.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ArgumentMismatch& error) {
    fail("{} needs a value", chosen->values_missing_for(error.what()));
  } catch (const CLI::ParseError& error) {
    fail("{}", error.what());
  }
  for (const auto& level : levels)
    if (level->command() != Command::top && level->app().parsed()) chosen = level.get();

  Values values;
  values.command = chosen->command();
  if (chosen->has("help")) {
    values.given_["help"] = {"true"};
    return values;
  }
  for (const CLI::App* app : std::initializer_list<const CLI::App*>{&top, &chosen->app()}) {
    const std::vector<std::string> unknown = app->remaining();
    if (!unknown.empty()) unknown_argument(app == &top ? Command::top : chosen->command(), unknown[0]);
  }
  const auto before = levels.back()->take();
  if (chosen->command() != Command::top && !before.empty())
    fail("--{} with the command {}: expected one of them at most", before.begin()->first,
         info_of(chosen->command()).name);
  values.given_ = chosen->take();
  values.positionals = chosen->positionals();
  if (chosen->command() != Command::top) check_positionals(chosen->command(), values.positionals);
  return values;
}

}  // namespace greta::cli
