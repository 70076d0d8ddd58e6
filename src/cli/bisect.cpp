// greta bisect: the first wrong value of a run, by token, layer and operator.
#include "bisect/bisect.h"

#include <chrono>
#include <ctime>
#include <filesystem>
#include <span>

#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"
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
using Json = nlohmann::ordered_json;

/// The folder asked for, or artifacts/<date>/<time>-<model>.
fs::path folder_of(const Values& values) {
  fs::path given = values.text("output");
  if (!given.empty()) return given;
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char date[16], time[16];
  std::strftime(date, sizeof date, "%Y-%m-%d", &local);
  std::strftime(time, sizeof time, "%H%M%S", &local);
  const fs::path base = fs::path("artifacts") / date;
  const std::string name = fmt::format("{}-{}", time, fs::path(values.positionals[0]).stem().string());
  fs::path folder = base / name;
  for (int n = 2; fs::exists(folder); ++n) folder = base / fmt::format("{}-{}", name, n);
  return folder;
}

/// The folder of a report: made before any work, new or empty, and gone again with all that this made in and
/// above it unless keep() was reached. Its files are whole or absent.
class ReportFolder {
 public:
  explicit ReportFolder(const Values& values) : folder_(folder_of(values)) {
    try {
      make();
    } catch (...) {
      remove();
      throw;
    }
  }
  ~ReportFolder() {
    if (!kept_) remove();
  }
  ReportFolder(const ReportFolder&) = delete;
  ReportFolder& operator=(const ReportFolder&) = delete;

  /// The path of a file that will be written.
  std::string file(const std::string& name) {
    files_.push_back(folder_ / name);
    return files_.back().string();
  }
  void write(const std::string& name, const std::string& text) {
    write_whole_file(file(name), std::as_bytes(std::span(text)));
  }
  void keep() { kept_ = true; }
  std::string page() const { return (folder_ / "report.html").string(); }

 private:
  void make() {
    std::error_code error;
    for (fs::path part = folder_; !part.empty() && !fs::exists(part, error); part = part.parent_path())
      made_.push_back(part);
    fs::create_directories(folder_, error);
    if (error)
      fail("cannot make the folder {} for the report: {} (-o DIR names another)", folder_.string(),
           error.message());
    const bool empty = fs::is_empty(folder_, error);
    if (error || !fs::is_directory(folder_) || !empty)
      fail("{}: expected a new or empty folder for the report (-o DIR)", folder_.string());
  }
  void remove() {
    std::error_code ignored;
    for (const fs::path& file : files_) fs::remove(file, ignored);
    for (const fs::path& part : made_) fs::remove(part, ignored);  // innermost first, each only if empty
  }

  fs::path folder_;
  std::vector<fs::path> made_;
  std::vector<fs::path> files_;
  bool kept_ = false;
};

Subject defaults_of(const Values& values) {
  Subject s;
  s.device = device_of(values);
  s.backend = backend_options(values);
  return s;
}

Json given_options(const Values& values) {
  Json given = Json::object();
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
  o.examine.context = values.number("context");
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
  const Subject& s = o.subject;
  if (s.is_trace() || s.is_reference() || s.fault || !s.file.empty())
    fail(
        "--self-test of '{}': expected a device to plant faults in (--b cpu, cuda:0), without file and fault",
        s.text);
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

std::string document_text(const Json& document) {
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_report(ReportFolder& folder, const BisectResult& result, const BisectOptions& options,
                  const Json& summary, const std::string& run_log) {
  folder.write("config.json", document_text(summary["options"]));
  folder.write("summary.json", document_text(summary));
  folder.write("report.md", report_markdown(summary));
  folder.write("report.html", report_html(summary));
  folder.write("tokens.jsonl", tokens_jsonl(result));
  folder.write("run.log", run_log);
  Json alone = summary;
  for (const Json& prompt : summary["prompts"]) {
    alone["prompts"] = Json::array({prompt});
    // A prompt may be called "run".
    folder.write(fmt::format("{}.prompt.log", prompt["name"].get<std::string>()), terminal_table(alone));
  }
  write_result_trace(folder.file("trace.safetensors"), result, options);
}

}  // namespace

int bisect(const Values& values) {
  if (values.flag("self-test")) return run_self_test(values);
  BisectOptions options = bisect_options(values);
  options.opened = std::make_shared<ModelFile>(ModelFile::open(options.model, options.tokenizer));
  const bool recorded = options.a.is_trace() || options.b.is_trace();
  if (!recorded || values.has("prompts"))
    options.prompts = prompts_of(values.text("prompts"), *options.opened->tokenizer);
  ReportFolder folder(values);
  std::string run_log;
  const auto begun = std::chrono::steady_clock::now();
  options.log = [&](const std::string& line) {
    run_log +=
        fmt::format("{:9.3f} {}\n",
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(), line);
    log::info("{}", line);
  };
  const InterruptGuard interrupt;
  options.examine.after_call = [&] { interrupt.check(); };
  const BisectResult result = greta::bisect(options);
  const Json summary = summary_of(result, options, given_options(values));
  const std::string table = terminal_table(summary);
  write_report(folder, result, options, summary, run_log + table);
  interrupt.check();
  folder.keep();
  if (values.flag("json")) {
    print_json(summary);
  } else {
    print(table);
    print(fmt::format("report {}\n", printable(folder.page())));
  }
  return result.status;
}

}  // namespace greta::cli
