// docs/cli.md, whole.
#include <fmt/format.h>

#include <string>

#include "cli/conflicts.h"
#include "cli/help.h"

namespace greta::cli {
namespace {

constexpr std::string_view kHead = R"(# The command line

This page is made from the options table in src/cli/options.cpp: `greta --help-markdown` prints it.

Results go to standard output, everything else (log, bars, statistics) to standard error. `--json` gives one JSON
document on standard output. Unknown options are errors. Whole numbers take k, M, G (powers of 1,000) and KiB, MiB, GiB
(powers of 1,024) behind them. No option has two names, but some have one letter beside the word.

)";

constexpr std::string_view kTail = R"(
## Exit status

| status | when |
| --- | --- |
| 0 | done; `check`: the model fits; `bisect`: no divergence, and nothing of what would be judged is missing |
| 1 | `check` of a readable GGUF file that does not fit its plan, the pins or the device; `verify` with a row that is not a pass; `bisect` with a divergence (of rounding alone: not with `--allow rounding`); `bisect --self-test` with a fault not found, a false alarm, or fewer than 95 % of the faults placed exactly |
| 2 | it could not be done: usage, a file that cannot be read as GGUF, a missing device, bad input, an output that cannot be written; in every command but `check` also a model that does not fit; `bisect` where it cannot be told: a trace lacks what would be judged (docs/traces.md), or a planted fault changed no bit |
| 130 | after Ctrl-C: the text so far stays and the statistics are printed; a second Ctrl-C ends at once |

When the reader of standard output goes away (`greta run ... | head -1`), the program ends quietly with status 0.
An error is one headline on standard error, then one line for each mismatch. Files appear under their names when they
are whole; after an error nothing unfinished is left behind.

## What scripts may rely on

- The last statistics line of `run` holds `logits hash` and 16 hexadecimal digits; with `--activations 8` it says so.
- `run --json`: `text`, `prompt_ids`, `ids`, `finish_reason` (`stop`, `stop_string`, `length`, `context`, and
  `cancelled` after Ctrl-C), `logprobs` (null, or for each token `id`, `logprob` and `top`, a list of id and
  probability), `stats`, `logits_hash`.
- `tokenize --json`: `ids` and `pieces`; with `--decode`: `ids` and `text`.
- `check --json`: `file`, `sha256`, `fits`, `problems` (each `where`, `expected`, `got`, `remedy`), `warnings`, and of a
  model that fits `hparams`, `context` and `memory`.
- `bench --json`: `limits` and `rows`; a row has `test` (`pp512`, `tg128`), `model` (the file's name; its path
  where files of one name are measured together), `depth`, `batch`, `threads`,
  `tokens_per_s` (the median), `min`, `max`, `samples`, `limit` (`read`, `read_model` or `compute`), `of_limit` (the median
  of the repeats' shares), `of_limit_min`, `of_limit_max` and `of_limit_samples`. In `limits` each rate is the best of all
  measurements; `median_` and `min_` before its name give the others.
- `verify --json`: `schema` (`greta-verify-1`), `build`, `machine`, `model` (`file`, `sha256` and the shape), `device`,
  `options`, `rows`, `seconds`, `status` (the exit status). A row has `row`, `verdict` (`pass`, `fail`, `not_run`, `error`),
  `compared` (`values`, `rows`, `tokens`, `layers`, `stages`, `runs`), `detail`, `first` (null, or the smallest place that
  differs: `sequence`, `token`, `layer`, `stage`; `layer` is null outside the layers), `figures` (numbers by name), `sides`
  (each run's `name`, `device`, `route`: kernels with how often they ran, `calls`: forward calls by their number of rows)
  and `seconds`.
- `inspect --json`, `trace --json`, `synth --json` and `devices --json` give the numbers that their text shows.

## How the share of the limit is counted

A decode step reads every tensor of the file once (in the weight mode's own size: int8 is 34 bytes for 32 weights, f32
is 4 bytes each), of the embedding one row a token unless it is the output head too, of a layer's experts those that its
tokens choose, as if no two chose the same, and the keys and values of every position so far that the layer sees, as
stored. That, times the steps, over the time, is held against the best read rate of this machine:
the best of several access patterns and thread counts, each with the median of its samples of 64 MiB. `run` measures it
on a buffer as large as the model, 128 MiB at most, and says so. `bench` measures it on four times the last cache (256 MiB
at least) or, where the model fits the last cache, on a buffer of the model's size.

A prefill's time is held against the time that its multiply-adds would take at the peak of the instructions that the
mode uses: integer weights at the 16-bit or 8-bit integer rate (`--activations`), other weights and attention at the
FP32 rate.

A machine shared with others changes its rate within seconds, so `bench` measures the limit (a tenth of a second) before
and after each repeat and, with the clock stopped, after each second of a longer one. Each stretch between two
measurements is held against the larger of them: what the machine could do at one end of it. A repeat's share is what it
did over what the limit would have done in its stretches.
)";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

/// The names of the commands in a set, in the table's order.
std::string command_names(CommandSet set) {
  std::string names;
  bool all = true;
  for (const CommandInfo& info : commands()) {
    if (info.id == Command::top) continue;
    if ((set & set_of(info.id)) == 0)
      all = false;
    else
      names += fmt::format("{}`{}`", names.empty() ? "" : ", ", info.name);
  }
  return all ? "all" : names.empty() ? "`greta`" : names;
}

std::string conflicts_section() {
  std::string out =
      "\n## Options that exclude each other\n\nAn option that would be without effect beside another is an "
      "error. A value that says\nnothing new (`--temperature 0` beside `--greedy`, `--isa auto`) passes.\n"
      "\n| command | option | beside | what to do |\n| --- | --- | --- | --- |\n";
  for (const Conflict& conflict : conflicts())
    out += fmt::format("| {} | `--{}` | {} | {} |\n", command_names(conflict.commands), conflict.option,
                       conflict.beside, conflict.advice);
  return out;
}

std::string command_section(const CommandInfo& info) {
  std::string out =
      fmt::format("\n## greta {}{}{}\n\n{}{}.", info.name, info.positional.empty() ? "" : " ",
                  info.positional, static_cast<char>(info.summary[0] - 'a' + 'A'), info.summary.substr(1));
  std::string details(info.details);
  for (size_t at = details.find('\n'); at != std::string::npos; at = details.find('\n', at + 2))
    details.replace(at, 1, "\n\n");
  if (!details.empty()) out += fmt::format("\n\n{}", details);
  out += "\n\n| option | default | meaning |\n| --- | --- | --- |\n";
  for (const Option* option : options_of(info.id)) {
    std::string help = escaped(option->help);
    if (option->kind == Kind::choice) help += fmt::format(": {}", fmt::join(option->choices, ", "));
    out += fmt::format("| `{}` | {} | {} |\n", signature(*option),
                       option->standard.empty() ? "" : fmt::format("`{}`", option->standard), help);
  }
  return out;
}

}  // namespace

std::string reference_markdown() {
  std::string out(kHead);
  out += "| command | does |\n| --- | --- |\n";
  for (const CommandInfo& info : commands())
    if (info.id != Command::top)
      out += fmt::format("| `greta {}{}{}` | {} |\n", info.name, info.positional.empty() ? "" : " ",
                         info.positional, info.summary);
  for (const Option* option : options_of(Command::top))
    out += fmt::format("| `greta {}` | {} |\n", signature(*option), option->help);
  for (const CommandInfo& info : commands())
    if (info.id != Command::top) out += command_section(info);
  out += conflicts_section();
  out += kTail;
  return out;
}

}  // namespace greta::cli
