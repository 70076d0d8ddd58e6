// greta synth: a random model of any shape.
#include "synth/synth.h"

#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/system.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/output.h"

namespace greta::cli {
namespace {

std::string type_names() {
  std::string names;
  for (const auto& traits : quant::all_types())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", traits.name);
  return names;
}

}  // namespace

int synth(const Values& values) {
  const std::string path = values.text("output");
  if (path.empty()) fail("greta synth: the file to write is missing: --output FILE (-o FILE)");
  require_file_target(path, {values.text("tokenizer-from")});
  const auto type = quant::from_name(values.text("type"));
  if (!type) fail("--type '{}': expected one of {}", values.text("type"), type_names());
  const auto number = [&](const char* name) {
    return static_cast<uint64_t>(values.number(name).value_or(0));
  };
  SynthOptions options;
  options.arch = values.text("arch");
  options.dim = number("dim");
  options.layers = number("layers");
  options.ffn_dim = number("ffn-dim");
  options.heads = number("heads");
  options.kv_heads = number("kv-heads");
  options.head_dim = number("head-dim");
  options.vocab = number("vocab");
  if (const auto context = values.number("context")) options.context = static_cast<uint64_t>(*context);
  options.type = *type;
  options.seed = number("seed");
  options.tied = values.flag("tied");
  options.bias = values.flag("bias");
  options.rope_base = static_cast<float>(values.real("rope-base").value_or(0.0));
  options.rope_scaling = values.text("rope-scaling");
  options.experts = number("experts");
  options.experts_used = number("experts-used");
  if (const auto window = values.number("window")) options.window = static_cast<uint64_t>(*window);
  options.tokenizer_from = values.text("tokenizer-from");
  const int64_t threads = values.number("threads").value_or(usable_cpus());
  {
    const PartialFileGuard partial(path);
    synthesise(options, path, static_cast<int>(threads));
  }
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) fail("{} was written and cannot be found: {}", path, error.message());
  log::info("{}: {}", path, bytes_shown(static_cast<double>(bytes)));
  if (values.flag("json")) print_json({{"file", path}, {"bytes", bytes}, {"seed", options.seed}});
  return 0;
}

}  // namespace greta::cli
