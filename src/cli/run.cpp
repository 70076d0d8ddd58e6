// greta run: a prompt in, text out.
#include <algorithm>
#include <random>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/system.h"
#include "bench/cost.h"
#include "bench/limits.h"
#include "cli/commands.h"
#include "cli/hash_text.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "engine/generator.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kLargestLimitBuffer = uint64_t{128} << 20;
constexpr double kLimitSeconds = 0.05;  // on top of the time to fill the buffer

/// Greedy text needs no seed.
bool draws_seed(const Values& values, const SamplerOptions& sampling) {
  return !values.has("seed") && !sampling.greedy && sampling.temperature > 0.0f;
}

Request request_of(const Values& values, std::vector<TokenId> prompt) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = *values.number("max-tokens");
  request.ignore_eos = values.flag("ignore-eos");
  request.stop = values.all("stop");
  for (const std::string& stop : request.stop)
    if (stop.empty()) fail("--stop: the text is empty; it would end every text at once");
  request.logprobs = static_cast<int>(values.number("logprobs").value_or(-1));
  SamplerOptions& sampling = request.sampling;
  sampling.greedy = values.flag("greedy");
  sampling.temperature = static_cast<float>(*values.real("temperature"));
  sampling.top_k = static_cast<int32_t>(*values.number("top-k"));
  sampling.top_p = static_cast<float>(*values.real("top-p"));
  sampling.min_p = static_cast<float>(*values.real("min-p"));
  sampling.repeat_penalty = static_cast<float>(*values.real("repeat-penalty"));
  sampling.seed = static_cast<uint64_t>(values.number("seed").value_or(0));
  sampling.validate();
  if (draws_seed(values, sampling)) sampling.seed = std::random_device()();
  return request;
}

/// What the statistics need of an engine that may be gone by then.
struct Costs {
  uint64_t weights = 0;  ///< bytes of weights that a decode step reads
  uint64_t model = 0;
  HParams hparams;
  std::string device;
  KvType kv_type = KvType::f16;
};

Costs costs_of(Engine& engine, WeightMode mode) {
  return {weight_bytes_read(engine.plan(), mode, 1), model_bytes(engine.plan(), mode), engine.hparams(),
          engine.backend().description(), engine.backend().kv_type()};
}

struct Speed {
  double prefill = 0.0;  ///< tokens a second
  double decode = 0.0;
  double decode_bytes = 0.0;  ///< bytes a second
  ReadLimit limit;            ///< not measured where nothing was decoded
  double of_limit = 0.0;
};

/// `device`: its limits, null for the host's.
Speed speed_of(const GenerateStats& stats, const Costs& costs, DeviceLimits* device, bool measure) {
  Speed speed;
  if (stats.prefill_seconds > 0)
    speed.prefill = static_cast<double>(stats.prompt_tokens) / stats.prefill_seconds;
  if (stats.decoded_tokens == 0 || stats.decode_seconds <= 0) return speed;
  const auto steps = static_cast<double>(stats.decoded_tokens);
  speed.decode = steps / stats.decode_seconds;
  speed.decode_bytes =
      (steps * static_cast<double>(costs.weights) +
       kv_bytes_read(costs.hparams, costs.kv_type, stats.prompt_tokens, stats.decoded_tokens)) /
      stats.decode_seconds;
  if (!measure) return speed;
  try {
    if (device != nullptr) {
      speed.limit.bytes_per_second = device->read_rate(speed.limit.pattern);
    } else {
      speed.limit =
          ReadMeter(std::min(costs.model, kLargestLimitBuffer), usable_cpus()).measure(kLimitSeconds);
    }
  } catch (const Error& e) {  // the text is there, whatever became of this
    log::warning("the read limit was not measured: {}", e.what());
    return speed;
  }
  speed.of_limit = speed.decode_bytes / speed.limit.bytes_per_second;
  return speed;
}

void log_statistics(const Generation& result, const GenerateStats& stats, const Speed& speed,
                    Activations activations) {
  std::string decode = "nothing decoded";
  if (speed.decode > 0)
    decode = fmt::format("{} decoded at {:.1f} tokens/s", stats.decoded_tokens, speed.decode);
  if (speed.limit.bytes_per_second > 0 && speed.limit.threads == 0) {
    decode += fmt::format(": {:.1f} GB/s, {:.2f} of the {:.1f} GB/s that the device reads",
                          speed.decode_bytes / 1e9, speed.of_limit, speed.limit.bytes_per_second / 1e9);
  } else if (speed.limit.bytes_per_second > 0) {
    decode += fmt::format(
        ": {:.1f} GB/s, {:.2f} of the {:.1f} GB/s that {} thread{} read{} from a buffer of {}",
        speed.decode_bytes / 1e9, speed.of_limit, speed.limit.bytes_per_second / 1e9, speed.limit.threads,
        speed.limit.threads == 1 ? "" : "s", speed.limit.threads == 1 ? "s" : "",
        bytes_shown(static_cast<double>(speed.limit.buffer)));
  }
  log::info("{} prompt token{} at {:.1f} tokens/s; {}; {}{}; logits hash {}", stats.prompt_tokens,
            stats.prompt_tokens == 1 ? "" : "s", speed.prefill, decode, name_of(result.finish),
            activations == Activations::bits8 ? "; activations 8" : "", hash_text(result.logits_hash));
}

Json logprobs_json(const Generation& result) {
  Json list = Json::array();
  for (const TokenLogprobs& token : result.logprobs) {
    Json top = Json::array();
    for (const auto& [id, logprob] : token.top) top.push_back({{"id", id}, {"logprob", logprob}});
    list.push_back({{"id", token.id}, {"logprob", token.logprob}, {"top", top}});
  }
  return list;
}

void log_logprobs(const Generation& result, const Tokenizer& tokenizer) {
  for (const TokenLogprobs& token : result.logprobs) {
    std::string top;
    for (const auto& [id, logprob] : token.top)
      top += fmt::format("  {} {} {:.4f}", id, quoted_text(tokenizer.piece(id)), logprob);
    log::info("token {} {} {:.4f}{}{}", token.id, quoted_text(tokenizer.piece(token.id)), token.logprob,
              top.empty() ? "" : "  of", top);
  }
}

Json stats_json(const Values& values, const Request& request, const GenerateStats& stats, const Speed& speed,
                const Costs& costs) {
  Json json = {{"prompt_tokens", stats.prompt_tokens},
               {"prefill_seconds", stats.prefill_seconds},
               {"prefill_tokens_per_s", speed.prefill},
               {"decoded_tokens", stats.decoded_tokens},
               {"decode_seconds", stats.decode_seconds},
               {"decode_tokens_per_s", speed.decode},
               {"decode_bytes_per_s", speed.decode_bytes},
               {"of_limit", nullptr},
               {"read_limit", nullptr},
               {"seed", request.sampling.seed},
               {"device", costs.device},
               {"weights", values.text("weights")},
               {"activations", values.text("activations")}};
  if (speed.limit.bytes_per_second > 0) {
    json["of_limit"] = speed.of_limit;
    json["read_limit"] = {{"bytes_per_s", speed.limit.bytes_per_second},
                          {"threads", speed.limit.threads},
                          {"pattern", speed.limit.pattern},
                          {"buffer_bytes", speed.limit.buffer}};
  }
  return json;
}

/// Generates; text goes out as it comes, unless it is to be part of a document.
Generation generate_text(const Values& values, Engine& engine, const Tokenizer& tokenizer,
                         const Request& request, const InterruptGuard& interrupt, GenerateStats& stats) {
  ProgressBar bar("prefill", !values.flag("quiet"));
  bool text_began = false;
  GenerateHooks hooks;
  hooks.cancel = &interrupt.flag();
  hooks.on_prefill = [&](int64_t done, int64_t total) {
    if (!text_began) bar.update(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
  };
  hooks.on_text = [&](size_t, std::string_view text) {
    bar.clear();
    text_began = true;
    if (values.flag("json")) return;
    print(text);
    flush_output();
  };
  return generate(engine, tokenizer, {request}, hooks, &stats).front();
}

}  // namespace

int run(const Values& values) {
  require_one_prompt(values);
  EngineOptions options = engine_options(values);
  const ModelFile model = ModelFile::open(values.positionals[0], values.text("tokenizer"));
  const Request request = request_of(values, prompt_ids(values, *model.tokenizer));
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  options.room = room_for(values, model.file, prompt, request.max_tokens);
  options.chunk = std::min(options.chunk, prompt);  // changes no bit, saves memory

  const InterruptGuard interrupt;  // to the end: what is there is printed
  std::unique_ptr<Engine> engine = load_engine(values, model, options);
  if (draws_seed(values, request.sampling)) log::info("--seed {} (drawn)", request.sampling.seed);
  const Costs costs = costs_of(*engine, options.backend.weights);
  GenerateStats stats;
  const Generation result = generate_text(values, *engine, *model.tokenizer, request, interrupt, stats);
  if (!values.flag("json")) {
    print("\n");
    flush_output();
    log_logprobs(result, *model.tokenizer);
  }
  DeviceLimits* const device = engine->backend().limits();
  if (device == nullptr) engine.reset();  // on the CPU: its memory is free before the limit's buffer is taken
  const bool shown = values.flag("json") || !values.flag("quiet");
  const Speed speed = speed_of(stats, costs, device, shown && !interrupt.raised());
  if (values.flag("json"))
    print_json({{"text", result.text},
                {"prompt_ids", request.prompt},
                {"ids", result.ids},
                {"finish_reason", name_of(result.finish)},
                {"logprobs", request.logprobs >= 0 ? logprobs_json(result) : Json()},
                {"stats", stats_json(values, request, stats, speed, costs)},
                {"logits_hash", hash_text(result.logits_hash)}});
  log_statistics(result, stats, speed, options.backend.activations);
  return result.finish == Finish::cancelled ? kInterruptedStatus : 0;
}

}  // namespace greta::cli
