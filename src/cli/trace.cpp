// greta trace: stages of a prompt's forward pass into a safetensors file.
#include "trace/trace.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/hash_text.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"
#include "cli/progress.h"

namespace greta::cli {
namespace {

TraceSelection selection_of(const Values& values, int64_t layers, int64_t positions) {
  TraceSelection selection;
  if (values.has("layers"))
    for (const int64_t layer : parse_number_list(values.text("layers"), layers, "--layers"))
      selection.layers.insert(static_cast<int>(layer));
  if (values.has("stages")) selection.stages = parse_stage_list(values.text("stages"));
  if (values.has("positions"))
    selection.positions = parse_number_list(values.text("positions"), positions, "--positions");
  return selection;
}

/// The recorder sees everything; the hash needs the logits alone.
class TraceTap : public Tap {
 public:
  explicit TraceTap(TraceSelection selection) : recorder(std::move(selection)) {}
  void on_stage(int layer, Stage stage, const StageRows& rows) override {
    recorder.on_stage(layer, stage, rows);
    if (stage == Stage::logits) hashes.on_stage(layer, stage, rows);
  }
  TraceRecorder recorder;
  HashTap hashes;
};

std::map<std::string, std::string> metadata_of(const Values& values, const ModelFile& model, Engine& engine,
                                               const std::string& arithmetic, const std::string& hash) {
  const BuildInfo& build = build_info();
  std::string options;
  for (const Option* option : options_of(Command::trace)) {
    if (option->kind == Kind::flag || option->group != "model and device" ||
        values.text(option->name).empty())
      continue;
    options += fmt::format("{}--{} {}", options.empty() ? "" : " ", option->name, values.text(option->name));
  }
  return {{"model_file", model.file.path()},
          {"model_sha256", model.file.sha256()},
          {"model_name", engine.hparams().name},
          {"tokenizer", model.tokenizer->description()},
          {"device", engine.backend().name()},
          {"arithmetic", arithmetic},
          {"build_version", build.version},
          {"build_commit", build.commit},
          {"build_dirty", build.dirty ? "true" : "false"},
          {"build_compiler", build.compiler},
          {"options", options},
          {"logits_hash", hash},
          {"producer", "greta trace"}};
}

}  // namespace

int trace(const Values& values) {
  require_one_prompt(values);
  const std::string path = values.text("output");
  if (path.empty()) fail("greta trace: the file to write is missing: --output FILE (-o FILE)");
  require_file_target(path, {values.positionals[0], values.text("tokenizer"), values.text("prompt-file")});
  EngineOptions options = engine_options(values);
  const ModelFile model = ModelFile::open(values.positionals[0], values.text("tokenizer"));
  require_file_target(path, model.file.part_paths());
  const std::vector<TokenId> prompt = prompt_ids(values, *model.tokenizer);
  const auto length = static_cast<int64_t>(prompt.size());
  options.room = room_for(values, model.file, length, 0);
  options.chunk = std::min(options.chunk, length);
  options.all_logits = true;
  // What is wrong with the lists comes before the loading, but for layers, which the plan counts.
  if (values.has("stages")) parse_stage_list(values.text("stages"));
  if (values.has("positions")) parse_number_list(values.text("positions"), length, "--positions");

  const std::unique_ptr<Engine> engine = load_engine(values, model, options);
  TraceTap tap(selection_of(values, engine->hparams().layers, length));
  {
    const InterruptGuard interrupt;
    ProgressBar bar("tracing", !values.flag("quiet"));
    engine->feed_all(0, prompt, Feed::Logits::all, &tap, [&] {
      interrupt.check();
      bar.update(static_cast<uint64_t>(engine->length(0)), static_cast<uint64_t>(length));
    });
  }
  const std::string hash = hash_text(tap.hashes.logits_hash(0));
  const bool wide = engine->backend().element_bytes() == sizeof(double);
  {
    const PartialFileGuard partial(path);
    tap.recorder.write(path, {prompt}, wide,
                       metadata_of(values, model, *engine,
                                   arithmetic_text(engine->backend().name(), options.backend), hash));
  }
  size_t rows = 0;
  for (const auto& [key, recorded] : tap.recorder.rows()) rows = std::max(rows, recorded.size());
  const size_t stages = tap.recorder.rows().size();
  if (values.flag("json")) {
    print_json(
        {{"file", path}, {"tokens", length}, {"rows", rows}, {"stages", stages}, {"logits_hash", hash}});
  } else {
    print(fmt::format("{}: {} token{}, {} row{} of {} stage{}, logits hash {}\n", path, length,
                      length == 1 ? "" : "s", rows, rows == 1 ? "" : "s", stages, stages == 1 ? "" : "s",
                      hash));
  }
  return 0;
}

}  // namespace greta::cli
