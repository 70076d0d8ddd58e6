// The options table and what is made from it.
#include "cli/options.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "bisect/verify.h"
#include "cli/conflicts.h"
#include "cli/help.h"
#include "cli/parse.h"
#include "cli/run_binary.h"
#include "refusal.h"

namespace greta::cli {
namespace {

using test::greta_run;

TEST(Options, OneNameAndAtMostOneLetterInACommand) {
  for (const CommandInfo& info : commands()) {
    EXPECT_EQ(&info, &info_of(info.id)) << info.name;
    std::set<std::string> spellings;
    for (const Option* option : options_of(info.id)) {
      EXPECT_TRUE(spellings.insert("--" + std::string(option->name)).second)
          << info.name << " " << option->name;
      if (option->letter != 0) {
        EXPECT_TRUE(spellings.insert(std::string("-") + option->letter).second) << option->name;
      }
      EXPECT_FALSE(option->help.empty()) << option->name;
      EXPECT_FALSE(option->group.empty()) << option->name;
      EXPECT_EQ(option->kind == Kind::flag, option->placeholder.empty()) << option->name;
      EXPECT_EQ(option->kind == Kind::choice, !option->choices.empty()) << option->name;
    }
  }
}

TEST(Options, DefaultsAreValidValues) {
  for (const CommandInfo& info : commands())
    for (const Option* option : options_of(info.id)) {
      if (option->standard.empty()) continue;
      const std::string argument(option->standard);
      std::vector<std::string> line = {std::string(info.name)};
      if (!info.positional.empty()) line.push_back("model");
      line.push_back("--" + std::string(option->name));
      line.push_back(argument);
      EXPECT_NO_THROW(parse(line)) << info.name << " --" << option->name << " " << argument;
    }
}

TEST(Options, HelpCompletionAndReferenceNameEveryOption) {
  const std::string reference = reference_markdown();
  const std::string bash = completion_script("bash");
  const std::string zsh = completion_script("zsh");
  for (const CommandInfo& info : commands()) {
    const std::string help = help_text(info.id);
    for (const Option* option : options_of(info.id)) {
      EXPECT_NE(help.find("  " + signature(*option)), std::string::npos) << info.name << " " << option->name;
      EXPECT_NE(reference.find(signature(*option) + "`"), std::string::npos)
          << info.name << " " << option->name;
      EXPECT_NE(bash.find("--" + std::string(option->name)), std::string::npos) << option->name;
      EXPECT_NE(zsh.find("--" + std::string(option->name)), std::string::npos) << option->name;
    }
  }
}

TEST(Options, HelpOfVerifyNamesEveryRow) {
  for (const VerifyRowInfo& row : verify_rows())
    EXPECT_NE(help_text(Command::verify).find(std::string(row.id) + ": "), std::string::npos) << row.id;
}

TEST(Options, CommittedReferenceIsTheTables) {
  EXPECT_EQ(test::read_file(std::string(GRETA_SOURCE_DIR) + "/docs/cli.md"), reference_markdown())
      << "docs/cli.md is not up to date: greta --help-markdown > docs/cli.md";
}

TEST(Options, BashAcceptsTheCompletion) {
  test::TemporaryFolder folder;
  test::write_file(folder / "completion", completion_script("bash"));
  const std::string script =
      "bash -c 'source \"$1\" && COMP_WORDS=(greta run --max) COMP_CWORD=2 && _greta 2>/dev/null; "
      "[ \"${COMPREPLY[*]}\" = --max-tokens ] && COMP_WORDS=(greta run --isa av) COMP_CWORD=3 && _greta "
      "2>/dev/null; "
      "[ \"${COMPREPLY[*]}\" = \"avx512 avx2\" ] && COMP_WORDS=(greta run --weights = i) COMP_CWORD=4 && "
      "_greta "
      "2>/dev/null; [ \"${COMPREPLY[*]}\" = int8 ] && COMP_WORDS=(greta run --weights =) COMP_CWORD=3 && "
      "_greta "
      "2>/dev/null; [ \"${COMPREPLY[*]}\" = \"stored f32 int8\" ]' bash " +
      folder / "completion";
  EXPECT_EQ(std::system(script.c_str()), 0);
}

TEST(Parse, Numbers) {
  EXPECT_EQ(parse_number("4096", 0, 1e18, "x"), 4096);
  EXPECT_EQ(parse_number("32k", 0, 1e18, "x"), 32000);
  EXPECT_EQ(parse_number("2KiB", 0, 1e18, "x"), 2048);
  EXPECT_EQ(parse_number("1.5M", 0, 1e18, "x"), 1500000);
  EXPECT_EQ(parse_number("1.5k", 0, 1e18, "x"), 1500);
  EXPECT_EQ(parse_number("3GiB", 0, 1e18, "x"), int64_t{3} << 30);
}

TEST(Parse, NumbersThatAreNone) {
  for (const char* text : {"", "k", "1.2345k", "1.k", ".5k", "4x", "4 ", " 4", "1e3", "0x10",
                           "9223372036854775807k", "99999999999999999999", "-1", "1.5", "1kk", "--", "4K"})
    EXPECT_THROW(parse_number(text, 0, 9e18, "--x"), Error) << text;
  EXPECT_THROW(parse_number("5", 6, 10, "--x"), Error);
  EXPECT_THROW(parse_number("11", 6, 10, "--x"), Error);
  for (const char* text : {"", "nan", "inf", "1.0x", "-0.1", "2.1"})
    EXPECT_THROW(parse_real(text, 0, 2, "--x"), Error);
  EXPECT_EQ(parse_numbers("1,5,7", 0, 10, "--x"), (std::vector<int64_t>{1, 5, 7}));
  for (const char* text : {"1,,2", ",1", "1,", "1;2"})
    EXPECT_THROW(parse_numbers(text, 0, 10, "--x"), Error) << text;
}

TEST(Parse, ValuesMayLookLikeAnything) {
  for (const char* text : {"{}", "%%", "[a,b]", "--seed", "-o", "", "a\nb", "'x'", "\"y\"", "run", "--"}) {
    const Values values =
        parse({"run", "m.gguf", "--prompt", text, "--stop", text, "--stop", "z", "--seed", "7"});
    EXPECT_EQ(values.text("prompt"), text);
    EXPECT_EQ(values.all("stop"), (std::vector<std::string>{text, "z"}));
    EXPECT_EQ(values.number("seed"), 7);
    EXPECT_EQ(values.positionals, std::vector<std::string>{"m.gguf"});
  }
  EXPECT_EQ(parse({"run", "m", "--prompt=--x=y"}).text("prompt"), "--x=y");
  EXPECT_EQ(parse({"synth", "-ofile"}).text("output"), "file");
  EXPECT_EQ(parse({"run", "run", "--prompt", "x"}).positionals, std::vector<std::string>{"run"});
  EXPECT_EQ(parse({"bench", "a", "b", "--pp", "1"}).positionals, (std::vector<std::string>{"a", "b"}));
}

TEST(Parse, AnEmptyValueIsNotAnOptionLeftOut) {
  size_t refused = 0;
  for (const CommandInfo& info : commands())
    for (const Option* option : options_of(info.id)) {
      if (option->kind == Kind::flag || option->kind == Kind::text) continue;
      std::vector<std::string> arguments;
      if (!info.positional.empty()) arguments.emplace_back("m");
      if (!info.name.empty()) arguments.insert(arguments.begin(), std::string(info.name));
      arguments.insert(arguments.end(), {fmt::format("--{}", option->name), ""});
      EXPECT_THROW(parse(arguments), Error) << info.name << " --" << option->name;
      ++refused;
    }
  EXPECT_GT(refused, 60u);
}

TEST(Parse, AnOptionOfAnotherCommandIsADefect) {
  const Values values = parse({"devices"});
  EXPECT_THROW(values.text("prompt"), std::logic_error);
}

TEST(Parse, Nearest) {
  EXPECT_EQ(nearest("max-token", {"max-tokens", "threads"}), "max-tokens");
  EXPECT_EQ(nearest("rnu", {"run", "check"}), "run");
  EXPECT_EQ(nearest("temp", {"help", "temperature", "threads"}), "temperature");
  EXPECT_EQ(nearest("zzzzzz", {"run", "check"}), "");
}

/// What `greta` says of options that it takes one by one; "" where it takes them together.
std::string conflict(const std::vector<std::string>& arguments) {
  return test::refusal([&] { refuse_conflicts(parse(arguments)); });
}

TEST(Conflicts, AreOfOptionsThatTheirCommandsTake) {
  for (const Conflict& row : conflicts()) {
    size_t takers = 0;
    for (const CommandInfo& info : commands())
      if ((row.commands & set_of(info.id)) != 0 && find_option(info.id, row.option) != nullptr) ++takers;
    EXPECT_GT(takers, 0u) << row.option;
    EXPECT_NE(
        reference_markdown().find(fmt::format("| `--{}` | {} | {} |", row.option, row.beside, row.advice)),
        std::string::npos)
        << row.option;
  }
}

TEST(Conflicts, WhatWouldBeWithoutEffectIsRefused) {
  const std::vector<std::string> cases[] = {
      {"run", "m", "--temperature", "1.5", "--greedy"},
      {"run", "m", "--top-k", "5", "--greedy"},
      {"run", "m", "--top-p", "0.5", "--greedy"},
      {"run", "m", "--min-p", "0.5", "--greedy"},
      {"run", "m", "--seed", "3", "--greedy"},
      {"run", "m", "--logprobs", "1", "--quiet"},
      {"run", "m", "--isa", "avx2", "--device", "reference"},
      {"check", "m", "--isa", "avx2", "--device", "cuda:0"},
      {"trace", "m", "--isa", "portable", "--device", "hip:0"},
      {"bench", "m", "--isa", "avx2", "--device", "reference"},
      {"verify", "m", "--isa", "avx2", "--device", "reference"},
      {"bisect", "m", "--kv-type", "bf16", "--device", "reference"},
      {"run", "m", "--activations", "8", "--weights", "f32"},
      {"tokenize", "m", "--prompt", "1", "--decode"},
      {"tokenize", "m", "--no-special", "--token-ids", "1"},
      {"bench", "m", "--batch", "2", "--tg", "0"},
      {"bench", "m", "--csv", "--json"},
      {"synth", "--experts", "0", "--arch", "qwen3moe"},
      {"bench", "m", "--threads", "1,2", "--device", "cuda:0"},
      {"verify", "m", "--context", "64", "--rows", "phase,chunk"},
      {"bisect", "m", "--device", "cpu", "--b", "cpu"},
      {"bisect", "m", "--max-tokens", "3", "--a", "trace=t.safetensors"},
      {"bisect", "m", "--a", "cpu", "--self-test"},
      {"bisect", "m", "--prompts", "p0_short", "--self-test"},
      {"bisect", "m", "--output", "x", "--self-test"},
      {"bisect", "m", "--plantings", "3"},
      {"bisect", "m", "--clean", "3"},
      {"devices", "--quiet", "--verbose"},
      {"--version", "--help-markdown"},
  };
  for (const auto& arguments : cases) {
    const std::string said = conflict(arguments);
    const auto option = std::find_if(arguments.begin(), arguments.end(),
                                     [](const std::string& word) { return word.starts_with("--"); });
    EXPECT_EQ(said.rfind(*option, 0), 0u)
        << fmt::format("{}", fmt::join(arguments, " ")) << " gives " << said;
  }
  const auto all = test::greta_run(
      {"run", "m", "--prompt", "a", "--greedy", "--temperature", "1.5", "--top-k", "5", "--seed", "3"});
  EXPECT_EQ(all.status, 2);
  EXPECT_EQ(test::lines_of(all.err).size(), 4u) << all.err;  // a headline and each of the three
}

TEST(Conflicts, WhatIsMeantTogetherPasses) {
  const std::vector<std::string> cases[] = {
      {"run", "m", "--greedy", "--temperature", "0"},
      {"run", "m", "--temperature", "0", "--top-k", "40", "--seed", "1"},  // a row of temperatures
      {"run", "m", "--greedy", "--repeat-penalty", "1.1", "--ignore-eos"},
      {"run", "m", "--logprobs", "1", "--quiet", "--json"},
      {"run", "m", "--isa", "auto", "--device", "cuda:0", "--threads", "4"},
      {"run", "m", "--isa", "avx2", "--device", "cpu"},
      {"run", "m", "--activations", "16", "--weights", "f32"},
      {"run", "m", "--activations", "8", "--weights", "int8"},
      {"tokenize", "m", "--no-special", "--token-ids", "1", "--decode"},
      {"bench", "m", "--batch", "2", "--tg", "0,4"},
      {"bench", "m", "--pp", "0", "--tg", "4", "--threads", "1,2", "--device", "cpu"},
      {"verify", "m", "--context", "64", "--rows", "phase,context"},
      {"verify", "m", "--context", "64"},
      {"synth", "--experts", "0", "--arch", "llama"},
      {"bisect", "m", "--b", "cpu", "--self-test", "--plantings", "3", "--clean", "1", "--seed", "2"},
      {"bisect", "m", "--isa", "avx2", "--b", "reference"},  // the other side has it
  };
  for (const auto& arguments : cases)
    EXPECT_EQ(conflict(arguments), "") << fmt::format("{}", fmt::join(arguments, " "));
}

TEST(Usage, HelpOfEveryCommand) {
  for (const CommandInfo& info : commands()) {
    std::vector<std::string> arguments;
    if (!info.name.empty()) arguments.emplace_back(info.name);
    for (const char* spelling : {"--help", "-h"}) {
      auto asked = arguments;
      asked.emplace_back(spelling);
      const auto outcome = greta_run(asked);
      EXPECT_EQ(outcome.status, 0) << info.name;
      EXPECT_EQ(outcome.out, help_text(info.id));
      EXPECT_EQ(outcome.err, "");
    }
  }
  EXPECT_EQ(greta_run({"--help-markdown"}).out, reference_markdown());
  EXPECT_EQ(greta_run({"completion", "zsh"}).out, completion_script("zsh"));
}

TEST(Usage, Version) {
  const auto outcome = greta_run({"--version"});
  EXPECT_EQ(outcome.status, 0);
  for (const char* part : {"commit", "compiler", "instructions", "portable", "backends", "reference"})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part;
}

TEST(Usage, MistakesAreErrorsWithStatus2) {
  const struct {
    std::vector<std::string> arguments;
    const char* message;
  } cases[] = {
      {{}, "a command is missing"},
      {{"rnu"}, "no command 'rnu'; did you mean run?"},
      {{"--vresion"}, "no option --vresion; did you mean --version?"},
      {{"run"}, "MODEL is missing"},
      {{"run", "m", "n", "--prompt", "x"}, "unexpected argument 'n'"},
      {{"devices", "x"}, "unexpected argument 'x'"},
      {{"run", "m", "--max-token", "4"}, "no option --max-token; did you mean --max-tokens?"},
      {{"run", "m", "--pp", "4"}, "no option --pp"},
      {{"run", "m", "-x"}, "no option -x"},
      {{"run", "m", "--prompt"}, "--prompt needs a value"},
      {{"run", "m", "--prompt="}, "--prompt=: no value"},
      {{"run", "m", "--prompt", "a", "--prompt", "b"}, "--prompt: given 2 times"},
      {{"run", "m", "--greedy=yes", "--prompt", "a"}, "--greedy"},
      {{"run", "m", "--prompt", "a", "--max-tokens", "many"}, "--max-tokens 'many': expected a whole number"},
      {{"run", "m", "--prompt", "a", "--max-tokens", "-1"}, "--max-tokens '-1'"},
      {{"run", "m", "--prompt", "a", "--top-p", "1.5"}, "--top-p '1.5': expected a number from 0 to 1"},
      {{"run", "m", "--prompt", "a", "--isa", "sse9"}, "--isa 'sse9': expected auto, avx512, avx2, portable"},
      {{"run", "m", "--prompt", "a", "--threads", "0"}, "--threads '0'"},
      {{"run", "m"}, "exactly one of --prompt, --prompt-file and --token-ids, got none"},
      {{"run", "m", "--prompt", "a", "--token-ids", "1"}, "got several"},
      {{"run", "m", "--prompt", "a", "--quiet", "--verbose"}, "--quiet with --verbose"},
      {{"run", "", "--prompt", "a"}, "greta run: expected MODEL, got an empty name"},
      {{"run", "m", "--prompt", "a", "--expect="}, "--expect=: no value"},
      {{"synth"}, "--output FILE"},
      {{"synth", "-o", "x", "--type", "q9"}, "--type 'q9'"},
      {{"trace", "m", "--prompt", "a"}, "--output FILE"},
      {{"bench", "m", "--json", "--csv"}, "--csv with --json"},
      {{"bench", "m", "--pp", "0", "--tg", "0"}, "nothing to measure"},
      {{"verify", "m", "--rows", "phases"},
       "no row 'phases': expected phase, chunk, batch, threads, repeats, isa, weights, taps, context"},
      {{"verify", "m", "--rows", "phase,phase"}, "row 'phase' is named twice"},
      {{"verify", "m", "--context", "1"}, "--context '1'"},
      {{"completion", "fish"}, "expected bash or zsh"},
      {{"dissect", "m"}, "no command 'dissect'"},
      {{"--version", "run", "m", "--prompt", "a"}, "--version with the command run"},
      {{"synth", "-o", "x", "--experts", "4", "--experts-used", "0"}, "--experts-used '0'"},
  };
  for (const auto& c : cases) {
    const auto outcome = greta_run(c.arguments);
    EXPECT_EQ(outcome.status, 2) << c.message;
    EXPECT_EQ(outcome.out, "") << c.message;
    EXPECT_NE(outcome.err.find(c.message), std::string::npos) << c.message << " in " << outcome.err;
    EXPECT_EQ(test::lines_of(outcome.err).size(), 1u) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("greta: ", 0), 0u) << outcome.err;
  }
}

}  // namespace
}  // namespace greta::cli
