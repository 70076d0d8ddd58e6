#include "cli/model_options.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <string>

#include "backend/cpu/cpu_backend.h"
#include "backend/gpu/targets.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "model/expect.h"
#include "model/hparams.h"

namespace greta::cli {

std::string device_of(const Values& values) {
  if (values.has("device")) return values.text("device");
  for (const gpu::DeviceInfo& gpu : gpu::list_devices())
    if (gpu.unusable.empty()) return gpu.device;
  return "cpu";
}

BackendOptions backend_options(const Values& values) {
  BackendOptions options;
  options.isa = isa_named(values.text("isa"));
  const std::string weights = values.text("weights");
  options.weights = weights == "f32"    ? WeightMode::f32
                    : weights == "int8" ? WeightMode::int8
                                        : WeightMode::stored;
  options.activations = values.text("activations") == "8" ? Activations::bits8 : Activations::bits16;
  const std::string kv = values.text("kv-type");
  options.kv_type = kv == "bf16" ? KvType::bf16 : kv == "f32" ? KvType::f32 : KvType::f16;
  if (device_of(values) == "reference") options.kv_type = KvType::f64;
  if (values.command != Command::bench)
    options.threads = static_cast<int>(values.number("threads").value_or(0));
  return options;
}

EngineOptions engine_options(const Values& values) {
  EngineOptions options;
  options.device = device_of(values);
  options.backend = backend_options(values);
  if (values.command != Command::bench) options.context = values.number("context");
  options.chunk = *values.number("chunk");
  options.expect = values.text("expect");
  return options;
}

void require_one_prompt(const Values& values) {
  const int given = static_cast<int>(values.has("prompt")) + static_cast<int>(values.has("prompt-file")) +
                    static_cast<int>(values.has("token-ids"));
  if (given != 1)
    fail("expected exactly one of --prompt, --prompt-file and --token-ids, got {}",
         given == 0 ? "none" : "several");
}

std::string prompt_text(const Values& values) {
  const bool from_file = values.has("prompt-file");
  const std::string option = from_file ? "--prompt-file " + values.text("prompt-file") : "--prompt";
  std::string text = from_file ? read_whole_file(values.text("prompt-file")) : values.text("prompt");
  require_text(text, option);
  return text;
}

std::vector<TokenId> prompt_ids(const Values& values, const Tokenizer& tokenizer) {
  require_one_prompt(values);
  if (values.has("token-ids")) {
    const int64_t size = tokenizer.vocab_size();
    std::vector<TokenId> ids;
    for (const int64_t id : values.numbers("token-ids")) {
      if (id >= size) fail("--token-ids: id {} is outside the vocabulary; expected 0 to {}", id, size - 1);
      ids.push_back(static_cast<TokenId>(id));
    }
    if (ids.empty()) fail("--token-ids: the prompt is empty, 0 tokens; expected at least 1");
    return ids;
  }
  const std::string text = prompt_text(values);
  const std::string option =
      values.has("prompt-file") ? "--prompt-file " + values.text("prompt-file") : "--prompt";
  if (text.empty()) fail("{}: the prompt is empty, 0 bytes; expected at least 1", option);
  std::vector<TokenId> ids = tokenizer.encode(text);
  if (ids.empty())
    fail(
        "{}: the prompt is empty, 0 tokens of {} bytes; expected at least 1, and the vocabulary has none for "
        "this "
        "text",
        option, text.size());
  return ids;
}

std::optional<int64_t> stated_context(const gguf::File& file) {
  const gguf::Value* architecture = file.find("general.architecture");
  if (architecture == nullptr || !std::holds_alternative<std::string_view>(architecture->data))
    return std::nullopt;
  const auto key = fmt::format("{}.context_length", std::get<std::string_view>(architecture->data));
  const gguf::Value* value = file.find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* number = std::get_if<uint64_t>(&value->data);
      number != nullptr && *number < (uint64_t{1} << 31))
    return static_cast<int64_t>(*number);
  if (const auto* number = std::get_if<int64_t>(&value->data); number != nullptr && *number > 0)
    return *number;
  return std::nullopt;
}

std::optional<int64_t> room_for(const Values& values, const gguf::File& file, int64_t prompt, int64_t more) {
  const auto given = values.number("context");
  const auto stated = stated_context(file);
  const auto limit = given ? given : stated;
  if (limit && prompt > *limit)
    fail("the prompt has {} tokens, the context holds {}{}: shorten the prompt{}", prompt, *limit,
         given ? " (--context)" : ", which is the model's",
         given && stated && *given < *stated
             ? fmt::format(", or raise --context (the model's is {})", *stated)
             : " (--prompt, --prompt-file, --token-ids)");
  if (given) return given;
  int64_t needed = 0;
  if (__builtin_add_overflow(prompt, more, &needed)) needed = std::numeric_limits<int64_t>::max();
  return stated ? std::optional(std::min(*stated, needed))
                : std::nullopt;  // without it, the plan reports the key
}

void require_pins(const Values& values) {
  if (!values.has("expect")) return;
  const auto pins = parse_pins(values.text("expect"));  // its spelling, before anything is read
  const ModelFile model = ModelFile::open(values.positionals[0], values.text("tokenizer"));
  PlanRequest request;
  if (pins_sha256(values.text("expect"))) request.file_sha256 = model.file.sha256();
  request.tokenizer = model.tokenizer->description();
  Plan plan;
  plan.hp = read_hparams(model.file).hp;
  check_pins(pins, request, plan);
  require_fit(plan, model.file);
}

std::unique_ptr<Engine> load_engine(const Values& values, const ModelFile& model,
                                    const EngineOptions& options) {
  uint64_t bytes = 0;
  std::unique_ptr<Engine> engine;
  {
    const InterruptGuard interrupt;
    ProgressBar bar("loading", !values.flag("quiet"));
    engine = std::make_unique<Engine>(model, options, [&](uint64_t done, uint64_t total) {
      interrupt.check();
      bar.update(done, total);
      bytes = total;
    });
  }
  for (const std::string& warning : engine->plan().warnings) log::warning("{}", printable(warning));
  const double seconds = engine->load_seconds();
  const double gigabytes = static_cast<double>(bytes) / 1e9;
  std::string loaded = fmt::format("{:.2f} GB in {:.2f} s", gigabytes, seconds);
  if (is_gpu(options.device)) loaded += fmt::format(" ({:.1f} GB/s)", gigabytes / seconds);
  std::string device = engine->backend().description();
  if (device.find("weights") == std::string::npos) device += ", weights as stored";
  log::info("{} ({}): {}; context {}, loaded {}", printable(engine->hparams().name),
            printable(model.file.path()), device, engine->context(), loaded);
  std::istringstream plan(plan_text(engine->plan(), model.file, engine->backend()));
  for (std::string line; std::getline(plan, line);) log::debug("{}", printable(line));
  return engine;
}

}  // namespace greta::cli
