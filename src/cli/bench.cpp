// greta bench: rows of prefill and decode speed, and the limits that they are held against.
#include <algorithm>
#include <exception>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/system.h"
#include "base/text.h"
#include "bench/cost.h"
#include "bench/limits.h"
#include "bench/paired.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLimitSeconds = 0.1;  // a measurement of a limit, one before and after each repeat
// The buffer is to show the memory, not the last cache; a virtual machine may see less cache than there is.
constexpr uint64_t kCachesInBuffer = 4;
constexpr uint64_t kLeastBuffer = uint64_t{256} << 20;

struct Row {
  bool prefill = false;
  int64_t tokens = 0;
  int64_t depth = 0;
  int64_t batch = 1;
  int threads = 0;
  int64_t chunk = 0;  ///< most tokens in one call
  std::string model;  ///< the file's name, or its path where another file has the same name
  std::string device;
  std::vector<Paired> repeats;
  double bytes = 0.0;  ///< decode: read by one repeat
  Work work;           ///< prefill
  Activations activations = Activations::bits16;
  std::optional<uint64_t> model_in_cache;  ///< its bytes: its decode is held against read_model

  std::string test() const { return fmt::format("{}{}", prefill ? "pp" : "tg", tokens); }
};

/// A buffer and all measurements of it.
struct ReadLimits {
  explicit ReadLimits(uint64_t bytes) : meter(bytes, usable_cpus()) {}
  double measure() {
    seen.push_back(meter.measure(kLimitSeconds));
    return seen.back().bytes_per_second;
  }
  ReadMeter meter;
  std::vector<ReadLimit> seen;
};

/// Measurements of a device that is not the host.
struct DeviceRates {
  std::vector<double> read, matrix;
  std::string read_how, matrix_how;
};

/// All measurements of the run.
struct Limits {
  std::optional<ReadLimits> read;
  std::map<std::string, ReadLimits> read_model;  ///< by model: a buffer of its size
  std::vector<ComputeLimit> compute;
  DeviceRates device;
};

double measure_read(Limits& limits) {
  if (!limits.read) limits.read.emplace(std::max(last_level_cache_bytes() * kCachesInBuffer, kLeastBuffer));
  return limits.read->measure();
}

/// Seconds of one repeat at the limit of this moment. `device`: null for the host.
double seconds_at_limit(const Row& row, DeviceLimits* device, Limits& limits) {
  if (device != nullptr) {
    DeviceRates& rates = limits.device;
    if (row.prefill) {
      rates.matrix.push_back(device->matrix_rate(rates.matrix_how));
      return (row.work.integer + row.work.real) / rates.matrix.back();
    }
    rates.read.push_back(device->read_rate(rates.read_how));
    return row.bytes / rates.read.back();
  }
  if (row.prefill) {
    limits.compute.push_back(measure_compute_limit(usable_cpus(), kLimitSeconds));
    return least_seconds(row.work, limits.compute.back(), row.activations);
  }
  if (!row.model_in_cache) return row.bytes / measure_read(limits);
  return row.bytes / limits.read_model.try_emplace(row.model, *row.model_in_cache).first->second.measure();
}

/// Token ids that stand for a text: any, the same in each run.
std::vector<TokenId> some_tokens(int64_t count, int64_t vocab) {
  std::vector<TokenId> ids;
  uint64_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<TokenId>((state >> 33) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

/// Runs rows on one engine.
class Bench {
 public:
  Bench(Engine& engine, const InterruptGuard& interrupt) : engine_(engine), interrupt_(interrupt) {}

  Paired once(const Row& row, PairedClock& clock) {
    // What is below the depth stays from the repeat before.
    for (int64_t sequence = 0; sequence < engine_.cache().sequences(); ++sequence) {
      const int64_t wanted = sequence < row.batch ? row.depth : 0;
      engine_.truncate(sequence, wanted);
      engine_.feed_all(sequence, tokens(wanted - engine_.length(sequence)), Feed::Logits::none, nullptr,
                       [&] { interrupt_.check(); });
    }
    clock.begin();
    if (row.prefill) {
      prefill(row, clock);
    } else {
      decode(row, clock);
    }
    return clock.end();
  }

 private:
  std::vector<TokenId> tokens(int64_t count) const { return some_tokens(count, engine_.hparams().vocab); }

  void prefill(const Row& row, PairedClock& clock) {
    engine_.feed_all(0, tokens(row.tokens), Feed::Logits::last, nullptr, [&] {
      interrupt_.check();
      clock.step();
    });
    engine_.logits(0);
  }

  void decode(const Row& row, PairedClock& clock) {
    const auto ids = tokens(row.tokens * row.batch);
    for (int64_t step = 0; step < row.tokens; ++step) {
      std::vector<Feed> feeds;
      for (int64_t sequence = 0; sequence < row.batch; ++sequence)
        feeds.push_back(
            {sequence, std::span(ids).subspan(static_cast<size_t>(step * row.batch + sequence), 1)});
      engine_.evaluate(feeds);
      for (size_t i = 0; i < feeds.size(); ++i) engine_.logits(i);
      interrupt_.check();
      clock.step();
    }
  }

  Engine& engine_;
  const InterruptGuard& interrupt_;
};

double tokens_of(const Row& row) {
  return static_cast<double>(row.prefill ? row.tokens : row.tokens * row.batch);
}

std::vector<double> rates(const Row& row) {
  std::vector<double> all;
  for (const Paired& repeat : row.repeats) all.push_back(tokens_of(row) / repeat.seconds);
  return all;
}

std::vector<double> shares(const Row& row) {
  std::vector<double> all;
  for (const Paired& repeat : row.repeats) all.push_back(repeat.share);
  return all;
}

struct Spread {
  double min, median, max;
};

Spread spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {values.front(), (values[(n - 1) / 2] + values[n / 2]) / 2, values.back()};
}

std::string limit_name(const Row& row) {
  return row.prefill ? "compute" : row.model_in_cache ? "read_model" : "read";
}

/// Bytes of a decode row: each step reads the weights and, of every sequence, the keys and values so far.
double decode_bytes(const Row& row, const Engine& engine, KvType kv, WeightMode mode) {
  return static_cast<double>(row.tokens) *
             static_cast<double>(weight_bytes_read(engine.plan(), mode, row.batch)) +
         static_cast<double>(row.batch) * kv_bytes_read(engine.hparams(), kv, row.depth, row.tokens);
}

struct Settings {
  std::vector<int64_t> pp, tg, depth, batch, threads;
  int64_t repeat = 5;

  int64_t most(const std::vector<int64_t>& list) const { return *std::max_element(list.begin(), list.end()); }
  int64_t context() const { return most(depth) + std::max<int64_t>(1, std::max(most(pp), most(tg))); }
};

Settings settings_of(const Values& values) {
  Settings settings{values.numbers("pp"),    values.numbers("tg"),      values.numbers("depth"),
                    values.numbers("batch"), values.numbers("threads"), *values.number("repeat")};
  if (settings.threads.empty()) settings.threads = {usable_cpus()};
  for (const int64_t batch : settings.batch)
    if (batch < 1 || batch > 4096) fail("--batch {}: expected numbers from 1 to 4096", batch);
  if (values.has("chunk") && settings.most(settings.batch) > *values.number("chunk"))
    fail("--batch {}: expected at most {}, as --chunk allows a call no more tokens: raise --chunk",
         settings.most(settings.batch), *values.number("chunk"));
  for (const auto* list : {&settings.pp, &settings.tg, &settings.depth})
    for (const int64_t n : *list)
      if (n > (int64_t{1} << 30))
        fail("--pp, --tg and --depth: {} is too long; expected at most {}", n, 1 << 30);
  return settings;
}

std::vector<Row> rows_of(const Settings& settings) {
  std::vector<Row> rows;
  for (const int64_t depth : settings.depth) {
    for (const int64_t tokens : settings.pp) {
      if (tokens == 0) continue;
      Row row;
      row.prefill = true;
      row.tokens = tokens;
      row.depth = depth;
      rows.push_back(row);
    }
    for (const int64_t tokens : settings.tg)
      for (const int64_t batch : settings.batch) {
        if (tokens == 0) continue;
        Row row;
        row.tokens = tokens;
        row.depth = depth;
        row.batch = batch;
        rows.push_back(row);
      }
  }
  if (rows.empty()) fail("greta bench: nothing to measure: --pp and --tg are both 0");
  return rows;
}

/// How a model is called in the rows: its file's name, where that tells it from the others.
std::string label_of(const std::string& path, const std::vector<std::string>& all) {
  const auto name = [](const std::string& of) { return std::filesystem::path(of).filename().string(); };
  const bool shared = std::any_of(all.begin(), all.end(), [&](const std::string& other) {
    return other != path && name(other) == name(path);
  });
  return shared ? path : name(path);
}

EngineOptions options_of(const Values& values, int64_t threads, const Settings& settings) {
  EngineOptions options = engine_options(values);
  options.backend.threads = static_cast<int>(threads);
  options.sequences = settings.most(settings.batch);
  options.room = settings.context();
  options.chunk = std::max(std::min(options.chunk, settings.context()), options.sequences);
  return options;
}

/// So that a model which cannot be run costs no measurement of another. Errors: it cannot be read, does not
/// fit, or its context is too short.
void require_runs(const Values& values, const std::string& path, const Settings& settings) {
  const ModelFile model = ModelFile::open(path, values.text("tokenizer"));
  const auto stated = stated_context(model.file);
  if (stated && settings.context() > *stated)
    fail("{}: --depth and --pp or --tg come to {} positions; expected at most {}, the model's context", path,
         settings.context(), *stated);
  const EngineOptions options = options_of(values, settings.most(settings.threads), settings);
  require_fit(Engine::plan(model, *make_backend(options.device, options.backend), options), model.file);
}

/// All rows of one model at one thread count; what is finished is kept if Ctrl-C comes.
void bench_model(const Values& values, const std::string& path, int threads, const Settings& settings,
                 const InterruptGuard& interrupt, Limits& limits, std::vector<Row>& done) {
  const EngineOptions options = options_of(values, threads, settings);
  const ModelFile model = ModelFile::open(path, values.text("tokenizer"));
  const std::unique_ptr<Engine> engine = load_engine(values, model, options);
  for (const auto& weight : engine->model().owned) weight->settle();
  const WeightMode mode = options.backend.weights;
  const uint64_t bytes = model_bytes(engine->plan(), mode);
  const std::string name = label_of(path, values.positionals);
  Bench bench(*engine, interrupt);
  for (Row row : rows_of(settings)) {
    row.threads = threads;
    row.chunk = engine->chunk();
    row.model = name;
    row.device = engine->backend().description();
    row.activations = options.backend.activations;
    if (row.prefill) {
      row.work = prefill_work(engine->plan(), mode, row.depth, row.tokens);
    } else {
      row.bytes = decode_bytes(row, *engine, engine->backend().kv_type(), mode);
      if (engine->backend().limits() == nullptr && bytes <= last_level_cache_bytes()) {
        row.model_in_cache = bytes;
        measure_read(limits);  // shown beside read_model
      }
    }
    PairedClock clock(
        [&] {
          interrupt.check();
          return seconds_at_limit(row, engine->backend().limits(), limits);
        },
        [&] { engine->backend().synchronize(); });
    bench.once(row, clock);  // warm-up
    for (int64_t i = 0; i < settings.repeat; ++i) row.repeats.push_back(bench.once(row, clock));
    log::info("{} {}, depth {}, batch {}, {} threads: {:.2f} tokens/s, {:.2f} of the limit", printable(name),
              row.test(), row.depth, row.batch, threads, spread(rates(row)).median,
              spread(shares(row)).median);
    done.push_back(row);
  }
}

/// Of all measurements: the best under `key`, the median and the least beside it.
void add_limit(Json& json, const std::string& key, const Spread& seen) {
  json[key] = seen.max;
  json["median_" + key] = seen.median;
  json["min_" + key] = seen.min;
}

template <class Limit>
Spread spread_of(const std::vector<Limit>& seen, double Limit::*rate) {
  std::vector<double> all;
  all.reserve(seen.size());
  for (const Limit& limit : seen) all.push_back(limit.*rate);
  return spread(all);
}

const ReadLimit& best_of(const ReadLimits& limits) {
  return *std::max_element(
      limits.seen.begin(), limits.seen.end(),
      [](const ReadLimit& a, const ReadLimit& b) { return a.bytes_per_second < b.bytes_per_second; });
}

Json read_json(const ReadLimits& limits) {
  const ReadLimit& best = best_of(limits);
  Json json;
  add_limit(json, "bytes_per_s", spread_of(limits.seen, &ReadLimit::bytes_per_second));
  json.update(Json{{"measurements", limits.seen.size()},
                   {"threads", best.threads},
                   {"pattern", best.pattern},
                   {"buffer_bytes", best.buffer}});
  return json;
}

Json compute_json(const std::vector<ComputeLimit>& seen) {
  Json json;
  add_limit(json, "int8_per_s", spread_of(seen, &ComputeLimit::int8));
  add_limit(json, "int16_per_s", spread_of(seen, &ComputeLimit::int16));
  add_limit(json, "fp32_per_s", spread_of(seen, &ComputeLimit::fp32));
  json.update(Json{{"measurements", seen.size()},
                   {"threads", seen.front().threads},
                   {"instructions", seen.front().instructions}});
  return json;
}

Json limits_json(const Limits& limits) {
  Json json = {{"read", nullptr}, {"read_model", Json::object()}, {"compute", nullptr}};
  if (limits.read) json["read"] = read_json(*limits.read);
  for (const auto& [model, limit] : limits.read_model) json["read_model"][model] = read_json(limit);
  if (!limits.compute.empty()) json["compute"] = compute_json(limits.compute);
  const auto device_json = [](const std::vector<double>& seen, const std::string& how) {
    Json one;
    add_limit(one, "per_s", spread(seen));
    one.update(Json{{"measurements", seen.size()}, {"how", how}});
    return one;
  };
  const DeviceRates& device = limits.device;
  if (!device.read.empty()) json["device_read"] = device_json(device.read, device.read_how);
  if (!device.matrix.empty()) json["device_matrix"] = device_json(device.matrix, device.matrix_how);
  return json;
}

Json document(const Values& values, const std::vector<Row>& rows, const Limits& limits) {
  const BuildInfo& build = build_info();
  Json json = {{"limits", limits_json(limits)},
               {"rows", Json::array()},
               {"cpu", cpu_name()},
               {"usable_cpus", usable_cpus()},
               {"last_cache_bytes", last_level_cache_bytes()},
               {"build",
                {{"version", build.version},
                 {"commit", build.commit},
                 {"dirty", build.dirty},
                 {"compiler", build.compiler}}},
               {"options",
                {{"weights", values.text("weights")},
                 {"activations", values.text("activations")},
                 {"kv_type", values.text("kv-type")}}},
               {"files", Json::array()}};
  for (const std::string& path : values.positionals) json["files"].push_back(path);
  for (const Row& row : rows) {
    const Spread speed = spread(rates(row));
    const Spread share = spread(shares(row));
    json["rows"].push_back({{"test", row.test()},
                            {"tokens_per_s", speed.median},
                            {"of_limit", share.median},
                            {"limit", limit_name(row)},
                            {"min", speed.min},
                            {"max", speed.max},
                            {"samples", rates(row)},
                            {"of_limit_min", share.min},
                            {"of_limit_max", share.max},
                            {"of_limit_samples", shares(row)},
                            {"model", row.model},
                            {"depth", row.depth},
                            {"batch", row.batch},
                            {"threads", row.threads},
                            {"chunk", row.chunk},
                            {"device", row.device}});
  }
  return json;
}

void print_csv(const std::vector<Row>& rows) {
  print("model,test,depth,batch,threads,tokens_per_s,min,max,of_limit,of_limit_min,of_limit_max,limit\n");
  for (const Row& row : rows) {
    std::string name = row.model;
    if (name.find_first_of(",\"\n") != std::string::npos) {
      for (size_t at = name.find('"'); at != std::string::npos; at = name.find('"', at + 2))
        name.insert(at, 1, '"');
      name = fmt::format("\"{}\"", name);
    }
    const Spread speed = spread(rates(row));
    const Spread share = spread(shares(row));
    print(fmt::format("{},{},{},{},{},{:.4f},{:.4f},{:.4f},{:.4f},{:.4f},{:.4f},{}\n", name, row.test(),
                      row.depth, row.batch, row.threads, speed.median, speed.min, speed.max, share.median,
                      share.min, share.max, limit_name(row)));
  }
}

void print_read(const char* label, const ReadLimits& limits) {
  const ReadLimit& best = best_of(limits);
  print(fmt::format("{:<12}{:.1f} GB/s at best, {:.1f} in the median ({} threads, {}, a buffer of {})\n",
                    label, best.bytes_per_second / 1e9,
                    spread_of(limits.seen, &ReadLimit::bytes_per_second).median / 1e9, best.threads,
                    best.pattern, bytes_shown(static_cast<double>(best.buffer))));
}

void print_table(const std::vector<Row>& rows, const Limits& limits) {
  size_t width = 5;
  for (const Row& row : rows) width = std::max(width, printable(row.model).size());
  print(fmt::format("{:<{}}  {:<8} {:>6} {:>5} {:>7} {:>10} {:>21} {:>8} {:>14}  {}\n", "model", width,
                    "test", "depth", "batch", "threads", "tokens/s", "min .. max", "of limit", "min .. max",
                    "limit"));
  for (const Row& row : rows) {
    const Spread speed = spread(rates(row));
    const Spread share = spread(shares(row));
    print(fmt::format("{:<{}}  {:<8} {:>6} {:>5} {:>7} {:>10.2f} {:>21} {:>8.2f} {:>14}  {}\n",
                      printable(row.model), width, row.test(), row.depth, row.batch, row.threads,
                      speed.median, fmt::format("{:.2f} .. {:.2f}", speed.min, speed.max), share.median,
                      fmt::format("{:.2f} .. {:.2f}", share.min, share.max), limit_name(row)));
  }
  print(fmt::format("\ncpu         {}\n", cpu_name()));
  if (!rows.empty()) print(fmt::format("device      {}\n", rows.front().device));
  if (limits.read) print_read("read", *limits.read);
  for (const auto& [model, limit] : limits.read_model) print_read("read_model", limit);
  if (!limits.compute.empty())
    print(fmt::format(
        "compute     {:.0f} int8, {:.0f} int16, {:.0f} FP32 G multiply-adds/s at best ({} threads, {})\n",
        spread_of(limits.compute, &ComputeLimit::int8).max / 1e9,
        spread_of(limits.compute, &ComputeLimit::int16).max / 1e9,
        spread_of(limits.compute, &ComputeLimit::fp32).max / 1e9, limits.compute.front().threads,
        limits.compute.front().instructions));
  const DeviceRates& device = limits.device;
  if (!device.read.empty())
    print(fmt::format("read        {:.0f} GB/s at best, {:.0f} in the median ({})\n",
                      spread(device.read).max / 1e9, spread(device.read).median / 1e9, device.read_how));
  if (!device.matrix.empty())
    print(fmt::format("matrix      {:.1f} T multiply-adds/s in 16 bits at best, {:.1f} in the median ({})\n",
                      spread(device.matrix).max / 1e12, spread(device.matrix).median / 1e12,
                      device.matrix_how));
  const BuildInfo& build = build_info();
  print(fmt::format("build       {}{}, {}\n", build.commit, build.dirty ? " (dirty)" : "", build.compiler));
}

}  // namespace

int bench(const Values& values) {
  const Settings settings = settings_of(values);
  rows_of(settings);  // its errors come before the loading
  for (const std::string& path : values.positionals) require_runs(values, path, settings);
  Limits limits;
  std::vector<Row> rows;
  bool interrupted = false;
  std::exception_ptr failed;
  try {
    const InterruptGuard interrupt;
    for (const std::string& path : values.positionals)
      for (const int64_t threads : settings.threads)
        bench_model(values, path, static_cast<int>(threads), settings, interrupt, limits, rows);
  } catch (const Interrupted&) {
    interrupted = true;
  } catch (const Error&) {
    if (rows.empty()) throw;
    failed = std::current_exception();  // behind what was measured
  }
  if (values.flag("json")) {
    print_json(document(values, rows, limits));
  } else if (values.flag("csv")) {
    print_csv(rows);
  } else {
    print_table(rows, limits);
  }
  flush_output();
  if (failed) std::rethrow_exception(failed);
  return interrupted ? kInterruptedStatus : 0;
}

}  // namespace greta::cli
