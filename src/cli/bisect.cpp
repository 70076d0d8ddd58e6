// greta bisect: the first wrong value of a run, by token, layer and operator.
#include "bisect/bisect.h"

#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "bisect/prompts.h"
#include "bisect/report.h"
#include "bisect/selftest.h"
#include "bisect/summary.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "trace/trace.h"

namespace greta::cli {
namespace {

namespace fs = std::filesystem;

/// artifacts/<date>/<time>-<model>, or the folder asked for. It is made before any work, and must be new or
/// empty.
fs::path report_folder(const Values& values) {
  fs::path folder = values.text("output");
  if (folder.empty()) {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char date[16], time[16];
    std::strftime(date, sizeof date, "%Y-%m-%d", &local);
    std::strftime(time, sizeof time, "%H%M%S", &local);
    const fs::path base = fs::path("artifacts") / date;
    const std::string name = fmt::format("{}-{}", time, fs::path(values.positionals[0]).stem().string());
    folder = base / name;
    for (int n = 2; fs::exists(folder); ++n) folder = base / fmt::format("{}-{}", name, n);
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    fail("cannot make the folder {} for the report: {} (-o DIR names another)", folder.string(),
         error.message());
  if (!fs::is_empty(folder, error) || error)
    fail("{}: expected a new or empty folder for the report (-o DIR)", folder.string());
  return folder;
}

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.flush();
  if (!out) fail("{}: cannot be written", path.string());
}

Subject defaults_of(const Values& values) {
  Subject s;
  s.device = device_of(values);
  s.backend = backend_options(values);
  return s;
}

nlohmann::ordered_json given_options(const Values& values) {
  nlohmann::ordered_json given = nlohmann::ordered_json::object();
  given["model"] = values.positionals[0];
  for (const Option* option : options_of(Command::bisect)) {
    if (option->kind == Kind::flag) {
      if (values.flag(option->name)) given[std::string(option->name)] = true;
    } else if (!values.text(option->name).empty()) {
      given[std::string(option->name)] = values.text(option->name);
    }
  }
  return given;
}

BisectOptions bisect_options(const Values& values) {
  BisectOptions o;
  o.model = values.positionals[0];
  o.tokenizer = values.text("tokenizer");
  const Subject defaults = defaults_of(values);
  o.a = parse_subject(values.has("a") ? values.text("a") : "reference", defaults);
  o.b = parse_subject(values.has("b") ? values.text("b") : device_of(values), defaults);
  o.repeat_run = values.flag("repeat-run");
  o.keep_going = values.flag("keep-going");
  o.allow_rounding = values.has("allow");
  o.examine.context = values.number("context").value_or(0);
  o.examine.chunk = *values.number("chunk");
  o.examine.max_tokens = *values.number("max-tokens");
  o.examine.trace_budget = static_cast<size_t>(*values.number("trace-budget"));
  o.examine.seed = static_cast<uint64_t>(*values.number("seed"));
  o.examine.threads = static_cast<int>(values.number("threads").value_or(0));
  if (values.has("layers"))
    for (const int64_t layer : parse_number_list(values.text("layers"), int64_t{1} << 31, "--layers"))
      o.examine.layers.insert(static_cast<int>(layer));
  return o;
}

int run_self_test(const Values& values) {
  SelfTestOptions o;
  o.model = values.positionals[0];
  o.tokenizer = values.text("tokenizer");
  o.subject = parse_subject(values.has("b") ? values.text("b") : device_of(values), defaults_of(values));
  o.plantings = *values.number("plantings");
  o.clean = values.number("clean").value_or(-1);
  o.seed = static_cast<uint64_t>(*values.number("seed"));
  o.trace_budget = static_cast<size_t>(*values.number("trace-budget"));
  o.threads = static_cast<int>(values.number("threads").value_or(0));
  const InterruptGuard interrupt;
  ProgressBar bar("planting", !values.flag("quiet"));
  o.after_call = [&] { interrupt.check(); };
  o.progress = [&](int64_t done, int64_t all) {
    bar.update(static_cast<uint64_t>(done), static_cast<uint64_t>(all));
  };
  const SelfTestResult result = self_test(o);
  if (values.flag("json")) {
    print_json(self_test_json(result));
  } else {
    print(self_test_text(result));
  }
  const bool all = result.detected() == result.plantings.size() && result.false_alarms.empty();
  return all && result.exact() * 100 >= result.plantings.size() * 95 ? 0 : 1;
}

}  // namespace

int bisect(const Values& values) {
  if (values.flag("self-test")) return run_self_test(values);
  BisectOptions options = bisect_options(values);
  const bool recorded = options.a.is_trace() || options.b.is_trace();
  if (!recorded || values.has("prompts")) {
    options.opened = std::make_shared<ModelFile>(ModelFile::open(options.model, options.tokenizer));
    options.prompts = prompts_of(values.text("prompts"), *options.opened->tokenizer);
  }
  const fs::path folder = report_folder(values);
  std::string run_log;
  const auto begun = std::chrono::steady_clock::now();
  options.log = [&](const std::string& line) {
    run_log +=
        fmt::format("{:9.3f} {}\n",
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(), line);
    log::info("{}", line);
  };
  BisectResult result;
  nlohmann::ordered_json summary;
  try {
    const InterruptGuard interrupt;
    options.examine.after_call = [&] { interrupt.check(); };
    result = greta::bisect(options);
    summary = summary_of(result, options, given_options(values));
  } catch (...) {
    std::error_code ignored;
    fs::remove(folder, ignored);  // it is empty: nothing is left behind
    throw;
  }
  const std::string table = terminal_table(summary);
  run_log += table;
  write_file(folder / "config.json", summary["options"].dump(2) + "\n");
  write_file(folder / "summary.json",
             summary.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  write_file(folder / "report.md", report_markdown(summary));
  write_file(folder / "report.html", report_html(summary));
  write_file(folder / "tokens.jsonl", tokens_jsonl(result));
  write_file(folder / "run.log", run_log);
  for (const auto& v : result.prompts) {
    nlohmann::ordered_json alone = summary;
    for (const auto& p : summary["prompts"])
      if (p["name"] == v.prompt.name) alone["prompts"] = nlohmann::ordered_json::array({p});
    write_file(folder / fmt::format("{}.log", v.prompt.name), terminal_table(alone));
  }
  write_result_trace((folder / "trace.safetensors").string(), result, options);
  if (values.flag("json")) {
    print_json(summary);
  } else {
    print(table);
    print(fmt::format("report {}\n", (folder / "report.html").string()));
  }
  return result.status;
}

}  // namespace greta::cli
