#include "cli/conflicts.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/model_options.h"

namespace greta::cli {
namespace {

constexpr CommandSet kRun = set_of(Command::run);
constexpr CommandSet kTokenize = set_of(Command::tokenize);
constexpr CommandSet kBench = set_of(Command::bench);
constexpr CommandSet kSynth = set_of(Command::synth);
constexpr CommandSet kBisect = set_of(Command::bisect);
constexpr CommandSet kVerify = set_of(Command::verify);
/// Commands with one device and one mode; bisect's options are defaults of two subjects, which may differ.
constexpr CommandSet kOneDevice = kRun | set_of(Command::check) | kBench | set_of(Command::trace) | kVerify;

/// A temperature of 0 says the same as --greedy. Beside it the other options of sampling are let pass: who
/// goes through temperatures leaves them standing.
bool greedy(const Values& values) { return values.flag("greedy"); }
bool self_test(const Values& values) { return values.flag("self-test"); }
bool no_self_test(const Values& values) { return !values.flag("self-test"); }
bool on_the_reference(const Values& values) { return device_of(values) == "reference"; }

constexpr std::string_view kGreedy = "the most probable token is taken, nothing is drawn: leave one out";
constexpr std::string_view kSelfTest = "the self-test draws its own runs: leave one out";
constexpr std::string_view kNoSelfTest = "it belongs to the self-test: add --self-test";
constexpr std::string_view kOfTheCpu =
    "instruction sets are the cpu device's: --device cpu, or leave --isa out";

constexpr Conflict kConflicts[] = {
    {kRun, "temperature", "--greedy", kGreedy,
     [](const Values& values) { return greedy(values) && *values.real("temperature") != 0; }},
    {kRun, "top-k", "--greedy", kGreedy, greedy},
    {kRun, "top-p", "--greedy", kGreedy, greedy},
    {kRun, "min-p", "--greedy", kGreedy, greedy},
    {kRun, "seed", "--greedy", kGreedy, greedy},
    {kRun, "logprobs", "--quiet", "they are part of the log: leave --quiet out, or add --json",
     [](const Values& values) { return values.flag("quiet") && !values.flag("json"); }},
    {kTokenize, "prompt", "--decode", "expected the ids in --token-ids, or in the file of --prompt-file",
     [](const Values& values) { return values.flag("decode"); }},
    {kTokenize, "no-special", "--token-ids",
     "ids are taken as they are: leave --no-special out, or add --decode",
     [](const Values& values) { return values.has("token-ids") && !values.flag("decode"); }},
    {kBench, "batch", "--tg 0", "a batch is of tg rows: leave --batch out, or name --tg",
     [](const Values& values) {
       const auto lengths = values.numbers("tg");
       return std::all_of(lengths.begin(), lengths.end(), [](int64_t n) { return n == 0; });
     }},
    {kBench, "csv", "--json", "expected one of them at most",
     [](const Values& values) { return values.flag("json"); }},
    {kBench, "threads", "a GPU", "a list of threads makes rows of the cpu device alone: --device cpu",
     [](const Values& values) { return values.numbers("threads").size() > 1 && is_gpu(device_of(values)); }},
    {kSynth, "experts", "--arch qwen3moe", "its files have experts: name 1 or more, or leave it out",
     [](const Values& values) {
       return *values.number("experts") == 0 && values.text("arch") == "qwen3moe";
     }},
    {kVerify, "context", "--rows without context",
     "it is the length of that row: add the row, or leave it out",
     [](const Values& values) {
       return values.has("rows") && values.text("rows").find("context") == std::string::npos;
     }},
    {kBisect, "device", "--b", "a subject names its own device: leave one out",
     [](const Values& values) { return values.has("b"); }},
    {kBisect, "max-tokens", "a trace", "it says how many tokens were generated: leave --max-tokens out",
     [](const Values& values) {
       return values.text("a").starts_with("trace=") || values.text("b").starts_with("trace=");
     }},
    {kBisect, "a", "--self-test", kSelfTest, self_test},
    {kBisect, "prompts", "--self-test", kSelfTest, self_test},
    {kBisect, "layers", "--self-test", kSelfTest, self_test},
    {kBisect, "max-tokens", "--self-test", kSelfTest, self_test},
    {kBisect, "repeat-run", "--self-test", kSelfTest, self_test},
    {kBisect, "keep-going", "--self-test", kSelfTest, self_test},
    {kBisect, "allow", "--self-test", kSelfTest, self_test},
    {kBisect, "output", "--self-test", kSelfTest, self_test},
    {kBisect, "context", "--self-test", kSelfTest, self_test},
    {kBisect, "chunk", "--self-test", kSelfTest, self_test},
    {kBisect, "plantings", "no --self-test", kNoSelfTest, no_self_test},
    {kBisect, "clean", "no --self-test", kNoSelfTest, no_self_test},
    {kOneDevice, "isa", "--device reference", kOfTheCpu,
     [](const Values& values) { return values.text("isa") != "auto" && on_the_reference(values); }},
    {kOneDevice, "isa", "a GPU", kOfTheCpu,
     [](const Values& values) { return values.text("isa") != "auto" && is_gpu(device_of(values)); }},
    {kOneDevice | kBisect, "kv-type", "--device reference",
     "the reference keeps float64: leave --kv-type out", on_the_reference},
    {kOneDevice & ~kVerify, "activations", "--weights f32",
     "bits of activations are of integer weights: leave one out",
     [](const Values& values) {
       return values.text("activations") == "8" && values.text("weights") == "f32";
     }},
    {~CommandSet{0}, "quiet", "--verbose", "expected one of them at most",
     [](const Values& values) { return values.flag("verbose"); }},
    {set_of(Command::top), "version", "--help-markdown", "expected one of them at most",
     [](const Values& values) { return values.flag("help-markdown"); }},
};

}  // namespace

std::span<const Conflict> conflicts() { return kConflicts; }

void refuse_conflicts(const Values& values) {
  std::vector<std::string> found;
  for (const Conflict& conflict : kConflicts) {
    if ((conflict.commands & set_of(values.command)) == 0) continue;
    const Option* option = find_option(values.command, conflict.option);
    if (option == nullptr || !values.has(conflict.option) || !conflict.holds(values)) continue;
    found.push_back(fmt::format(
        "--{}{}{} with {}: {}", conflict.option, option->kind == Kind::flag ? "" : " ",
        option->kind == Kind::flag ? "" : values.text(conflict.option), conflict.beside, conflict.advice));
  }
  if (found.size() == 1) fail("{}", found[0]);
  if (!found.empty())
    throw Error(fmt::format("{} options would be without effect beside others", found.size()), found);
}

}  // namespace greta::cli
