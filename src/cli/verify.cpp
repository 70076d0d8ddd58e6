// greta verify: the audit as a table of verdicts.
#include "bisect/verify.h"

#include <chrono>
#include <cmath>
#include <memory>
#include <string>

#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/system.h"
#include "base/text.h"
#include "bench/limits.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "model/hparams_json.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kNotAPass = 1;

Json place_json(const std::optional<Place>& place) {
  if (!place) return nullptr;
  return {{"sequence", place->sequence},
          {"token", place->token},
          {"layer", place->layer == kNoLayer ? Json(nullptr) : Json(place->layer)},
          {"stage", name_of(place->stage)}};
}

/// JSON has no number for what is not finite.
Json number_json(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

Json row_json(const VerifyRow& row) {
  const Compared& c = row.compared;
  Json json = {{"row", row.id},
               {"verdict", name_of(row.verdict)},
               {"compared",
                {{"values", c.values},
                 {"rows", c.rows},
                 {"tokens", c.tokens},
                 {"layers", c.layers},
                 {"stages", c.stages},
                 {"runs", c.runs}}},
               {"detail", row.detail},
               {"first", place_json(row.first)},
               {"figures", Json::object()},
               {"sides", Json::array()},
               {"seconds", row.seconds}};
  for (const auto& [name, value] : row.figures) json["figures"][name] = number_json(value);
  for (const VerifySide& side : row.sides) {
    Json calls = Json::object();
    for (const auto& [rows, times] : side.calls) calls[std::to_string(rows)] = times;
    json["sides"].push_back(
        {{"name", side.name}, {"device", side.device}, {"route", side.route}, {"calls", calls}});
  }
  return json;
}

Json options_json(const Values& values) {
  Json json = Json::object();
  for (const Option* option : options_of(Command::verify))
    if (option->kind != Kind::flag && !values.text(option->name).empty())
      json[std::string(option->name)] = values.text(option->name);
  return json;
}

Json document(const Values& values, const ModelFile& model, const VerifyResult& result, double seconds) {
  const BuildInfo& build = build_info();
  Json described = {{"file", model.file.path()}, {"sha256", model.file.sha256()}};
  described.update(hparams_json(result.hp));
  described["tokenizer"] = model.tokenizer->description();
  Json json = {{"schema", "greta-verify-1"},
               {"build",
                {{"version", build.version},
                 {"commit", build.commit},
                 {"dirty", build.dirty},
                 {"compiler", build.compiler}}},
               {"machine", {{"cpu", cpu_name()}, {"usable_cpus", usable_cpus()}}},
               {"model", described},
               {"device", result.device},
               {"options", options_json(values)},
               {"rows", Json::array()}};
  for (const VerifyRow& row : result.rows) json["rows"].push_back(row_json(row));
  json["seconds"] = seconds;
  json["status"] = result.passed() ? 0 : kNotAPass;
  return json;
}

void print_table(const ModelFile& model, const VerifyResult& result) {
  print(fmt::format("{} ({}, sha256 {})\n{}\n\n", printable(result.hp.name), printable(model.file.path()),
                    model.file.sha256(), result.device));
  print(fmt::format("{:<8} {:<8} {:>8} {:>5} {:>10} {:>15}  {}\n", "row", "verdict", "seconds", "runs",
                    "rows", "values", "what was compared"));
  for (const VerifyRow& row : result.rows) {
    print(fmt::format("{:<8} {:<8} {:>8.1f} {:>5} {:>10} {:>15}  {}\n", row.id, name_of(row.verdict),
                      row.seconds, row.compared.runs, row.compared.rows, row.compared.values, row.detail));
    if (row.first) print(fmt::format("{:<17}first at {}\n", "", row.first->text()));
  }
  const BuildInfo& build = build_info();
  print(fmt::format("\nbuild {}{}, {}\n", build.commit, build.dirty ? " (dirty)" : "", build.compiler));
}

VerifyOptions options_of_run(const Values& values) {
  VerifyOptions options;
  options.engine = engine_options(values);
  if (values.has("rows")) options.rows = parse_verify_rows(values.text("rows"));
  return options;
}

}  // namespace

int verify(const Values& values) {
  const auto start = std::chrono::steady_clock::now();
  VerifyOptions options = options_of_run(values);
  const ModelFile model = ModelFile::open(values.positionals[0], values.text("tokenizer"));
  VerifyResult result;
  {
    const InterruptGuard interrupt;
    std::unique_ptr<ProgressBar> bar;
    std::string shown;
    options.progress = [&](std::string_view row, size_t done, size_t total) {
      interrupt.check();
      if (!bar || shown != row) {
        shown = row;
        bar = std::make_unique<ProgressBar>(shown, !values.flag("quiet"));
      }
      bar->update(done, total);
    };
    options.finished = [&](const VerifyRow& row) {
      bar.reset();
      log::info("{}: {} in {:.1f} s", row.id, name_of(row.verdict), row.seconds);
    };
    result = greta::verify(model, options);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (values.flag("json")) {
    print_json(document(values, model, result, seconds));
  } else {
    print_table(model, result);
  }
  return result.passed() ? 0 : kNotAPass;
}

}  // namespace greta::cli
