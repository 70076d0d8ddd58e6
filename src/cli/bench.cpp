// greta bench: rows of prefill and decode speed, and the limits that they are held against.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/system.h"
#include "bench/cost.h"
#include "bench/limits.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/output.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr double kReadSeconds =
    0.4;  // a measurement of the read limit, one before each row and one at the end
constexpr double kComputeSeconds = 0.4;
// The buffer is to show the memory, not the last cache; a virtual machine may see less cache than there is.
constexpr uint64_t kCachesInBuffer = 4;
constexpr uint64_t kLeastBuffer = uint64_t{256} << 20;

struct Row {
  bool prefill = false;
  int64_t tokens = 0;
  int64_t depth = 0;
  int64_t batch = 1;
  int threads = 0;
  std::string model;  ///< the file's name
  std::string device;
  std::vector<double> seconds;  ///< of each timed repeat
  double bytes = 0.0;           ///< decode: read by one repeat
  Work work;                    ///< prefill
  Activations activations = Activations::bits16;
  bool model_in_cache = false;  ///< its decode is held against read_model

  std::string test() const { return fmt::format("{}{}", prefill ? "pp" : "tg", tokens); }
};

/// The best of all measurements of the run.
struct Limits {
  std::optional<ReadLimit> read;
  std::map<std::string, ReadLimit>
      read_model;  ///< by model: a buffer of its size, where that fits the last cache
  std::optional<ComputeLimit> compute;
};

void keep_best(std::optional<ReadLimit>& best, const ReadLimit& now) {
  if (!best || now.bytes_per_second > best->bytes_per_second) best = now;
}

void measure_read(Limits& limits, const std::string& model, std::optional<uint64_t> model_buffer) {
  keep_best(limits.read,
            measure_read_limit(std::max(last_level_cache_bytes() * kCachesInBuffer, kLeastBuffer),
                               usable_cpus(), kReadSeconds));
  if (!model_buffer) return;
  std::optional<ReadLimit> best;
  if (const auto found = limits.read_model.find(model); found != limits.read_model.end())
    best = found->second;
  keep_best(best, measure_read_limit(*model_buffer, usable_cpus(), kReadSeconds / 2));
  limits.read_model[model] = *best;
}

void measure_compute(Limits& limits) {
  const ComputeLimit now = measure_compute_limit(usable_cpus(), kComputeSeconds);
  if (!limits.compute) limits.compute = now;
  limits.compute->int8 = std::max(limits.compute->int8, now.int8);
  limits.compute->int16 = std::max(limits.compute->int16, now.int16);
  limits.compute->fp32 = std::max(limits.compute->fp32, now.fp32);
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

  /// Seconds of one repeat.
  double once(const Row& row) {
    // What is below the depth stays from the repeat before.
    for (int64_t sequence = 0; sequence < engine_.cache().sequences(); ++sequence) {
      const int64_t wanted = sequence < row.batch ? row.depth : 0;
      engine_.truncate(sequence, wanted);
      feed(sequence, wanted - engine_.length(sequence), Feed::Logits::none);
    }
    const auto start = Clock::now();
    if (row.prefill) {
      feed(0, row.tokens, Feed::Logits::last);
    } else {
      decode(row);
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  void feed(int64_t sequence, int64_t count, Feed::Logits logits) {
    engine_.feed_all(sequence, some_tokens(count, engine_.hparams().vocab), logits, nullptr,
                     [&] { interrupt_.check(); });
    if (logits != Feed::Logits::none) engine_.logits(0);
  }

  void decode(const Row& row) {
    const auto ids = some_tokens(row.tokens * row.batch, engine_.hparams().vocab);
    for (int64_t step = 0; step < row.tokens; ++step) {
      std::vector<Feed> feeds;
      for (int64_t sequence = 0; sequence < row.batch; ++sequence)
        feeds.push_back(
            {sequence, std::span(ids).subspan(static_cast<size_t>(step * row.batch + sequence), 1)});
      engine_.evaluate(feeds);
      for (size_t i = 0; i < feeds.size(); ++i) engine_.logits(i);
      interrupt_.check();
    }
  }

  Engine& engine_;
  const InterruptGuard& interrupt_;
};

double tokens_of(const Row& row) {
  return static_cast<double>(row.prefill ? row.tokens : row.tokens * row.batch);
}

std::vector<double> rates(const Row& row) {
  std::vector<double> sorted;
  for (const double seconds : row.seconds) sorted.push_back(tokens_of(row) / seconds);
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

double median(const std::vector<double>& sorted) {
  const size_t n = sorted.size();
  return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

double of_limit(const Row& row, const Limits& limits) {
  const double seconds = tokens_of(row) / median(rates(row));
  if (row.prefill) return least_seconds(row.work, *limits.compute, row.activations) / seconds;
  const ReadLimit& read = row.model_in_cache ? limits.read_model.at(row.model) : *limits.read;
  return row.bytes / seconds / read.bytes_per_second;
}

std::string limit_name(const Row& row) {
  return row.prefill ? "compute" : row.model_in_cache ? "read_model" : "read";
}

/// Bytes of a decode row: each step reads the weights and, of every sequence, the keys and values so far.
double decode_bytes(const Row& row, const Engine& engine, KvType kv, WeightMode mode) {
  const auto n = static_cast<double>(row.tokens);
  const double positions = n * static_cast<double>(row.depth) + n * (n + 1) / 2;
  return n * static_cast<double>(weight_bytes_read(engine.plan(), mode, row.batch)) +
         static_cast<double>(row.batch) * positions *
             static_cast<double>(kv_bytes_read(engine.hparams(), kv, 1));
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

/// All rows of one model at one thread count; what is finished is kept if Ctrl-C comes.
void bench_model(const Values& values, const std::string& path, int threads, const Settings& settings,
                 const InterruptGuard& interrupt, Limits& limits, std::vector<Row>& done) {
  EngineOptions options = engine_options(values);
  options.backend.threads = threads;
  options.sequences = settings.most(settings.batch);
  options.context = settings.context();
  options.chunk = std::max(std::min(options.chunk, options.context.value()), options.sequences);
  const ModelFile model = ModelFile::open(path, values.text("tokenizer"));
  const std::unique_ptr<Engine> engine = load_engine(values, model, options);
  const WeightMode mode = options.backend.weights;
  const uint64_t bytes = model_bytes(engine->plan(), mode);
  const bool in_cache = bytes <= last_level_cache_bytes();
  const std::string name = std::filesystem::path(path).filename().string();
  Bench bench(*engine, interrupt);
  for (Row row : rows_of(settings)) {
    row.threads = threads;
    row.model = name;
    row.device = engine->backend().description();
    row.activations = options.backend.activations;
    row.model_in_cache = in_cache;
    if (row.prefill) {
      row.work = prefill_work(engine->plan(), mode, row.depth, row.tokens);
      measure_compute(limits);
    } else {
      row.bytes = decode_bytes(row, *engine, engine->backend().kv_type(), mode);
      measure_read(limits, name, in_cache ? std::optional(bytes) : std::nullopt);
    }
    interrupt.check();
    bench.once(row);  // warm-up
    for (int64_t i = 0; i < settings.repeat; ++i) row.seconds.push_back(bench.once(row));
    log::info("{} {}, depth {}, batch {}, {} threads: {:.2f} tokens/s", name, row.test(), row.depth,
              row.batch, threads, median(rates(row)));
    done.push_back(row);
  }
  for (const Row& row : done)  // the machine may have changed since the first row
    if (row.model == name && row.threads == threads) {
      if (row.prefill) {
        measure_compute(limits);
      } else {
        measure_read(limits, name, in_cache ? std::optional(bytes) : std::nullopt);
      }
      interrupt.check();
      break;
    }
}

Json read_json(const ReadLimit& limit) {
  return {{"bytes_per_s", limit.bytes_per_second},
          {"threads", limit.threads},
          {"pattern", limit.pattern},
          {"buffer_bytes", limit.buffer}};
}

Json limits_json(const Limits& limits) {
  Json json = {{"read", nullptr}, {"read_model", Json::object()}, {"compute", nullptr}};
  if (limits.read) json["read"] = read_json(*limits.read);
  for (const auto& [model, limit] : limits.read_model) json["read_model"][model] = read_json(limit);
  if (limits.compute)
    json["compute"] = {{"int8_per_s", limits.compute->int8},
                       {"int16_per_s", limits.compute->int16},
                       {"fp32_per_s", limits.compute->fp32},
                       {"threads", limits.compute->threads},
                       {"instructions", limits.compute->instructions}};
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
                 {"kv_type", values.text("kv-type")},
                 {"chunk", *values.number("chunk")}}},
               {"files", Json::array()}};
  for (const std::string& path : values.positionals) json["files"].push_back(path);
  for (const Row& row : rows) {
    const auto sorted = rates(row);
    Json samples = Json::array();
    for (const double seconds : row.seconds) samples.push_back(tokens_of(row) / seconds);
    json["rows"].push_back({{"test", row.test()},
                            {"tokens_per_s", median(sorted)},
                            {"of_limit", of_limit(row, limits)},
                            {"limit", limit_name(row)},
                            {"min", sorted.front()},
                            {"max", sorted.back()},
                            {"samples", samples},
                            {"model", row.model},
                            {"depth", row.depth},
                            {"batch", row.batch},
                            {"threads", row.threads},
                            {"device", row.device}});
  }
  return json;
}

void print_csv(const std::vector<Row>& rows, const Limits& limits) {
  print("model,test,depth,batch,threads,tokens_per_s,min,max,of_limit,limit\n");
  for (const Row& row : rows) {
    std::string name = row.model;
    if (name.find_first_of(",\"\n") != std::string::npos) {
      for (size_t at = name.find('"'); at != std::string::npos; at = name.find('"', at + 2))
        name.insert(at, 1, '"');
      name = fmt::format("\"{}\"", name);
    }
    const auto sorted = rates(row);
    print(fmt::format("{},{},{},{},{},{:.4f},{:.4f},{:.4f},{:.4f},{}\n", name, row.test(), row.depth,
                      row.batch, row.threads, median(sorted), sorted.front(), sorted.back(),
                      of_limit(row, limits), limit_name(row)));
  }
}

void print_read(const char* label, const ReadLimit& limit) {
  print(fmt::format("{:<12}{:.1f} GB/s ({} threads, {}, a buffer of {})\n", label,
                    limit.bytes_per_second / 1e9, limit.threads, limit.pattern,
                    bytes_shown(static_cast<double>(limit.buffer))));
}

void print_table(const std::vector<Row>& rows, const Limits& limits) {
  size_t width = 5;
  for (const Row& row : rows) width = std::max(width, row.model.size());
  print(fmt::format("{:<{}}  {:<8} {:>6} {:>5} {:>7} {:>10} {:>21} {:>8}  {}\n", "model", width, "test",
                    "depth", "batch", "threads", "tokens/s", "min .. max", "of limit", "limit"));
  for (const Row& row : rows) {
    const auto sorted = rates(row);
    print(fmt::format("{:<{}}  {:<8} {:>6} {:>5} {:>7} {:>10.2f} {:>21} {:>8.2f}  {}\n", row.model, width,
                      row.test(), row.depth, row.batch, row.threads, median(sorted),
                      fmt::format("{:.2f} .. {:.2f}", sorted.front(), sorted.back()), of_limit(row, limits),
                      limit_name(row)));
  }
  print(fmt::format("\ncpu         {}\n", cpu_name()));
  if (!rows.empty()) print(fmt::format("device      {}\n", rows.front().device));
  if (limits.read) print_read("read", *limits.read);
  for (const auto& [model, limit] : limits.read_model) print_read("read_model", limit);
  if (limits.compute)
    print(
        fmt::format("compute     {:.0f} int8, {:.0f} int16, {:.0f} FP32 G multiply-adds/s ({} threads, {})\n",
                    limits.compute->int8 / 1e9, limits.compute->int16 / 1e9, limits.compute->fp32 / 1e9,
                    limits.compute->threads, limits.compute->instructions));
  const BuildInfo& build = build_info();
  print(fmt::format("build       {}{}, {}\n", build.commit, build.dirty ? " (dirty)" : "", build.compiler));
}

}  // namespace

int bench(const Values& values) {
  if (values.flag("json") && values.flag("csv")) fail("--json and --csv: expected one of them at most");
  const Settings settings = settings_of(values);
  rows_of(settings);  // its errors come before the loading
  Limits limits;
  std::vector<Row> rows;
  bool interrupted = false;
  try {
    const InterruptGuard interrupt;
    for (const std::string& path : values.positionals)
      for (const int64_t threads : settings.threads)
        bench_model(values, path, static_cast<int>(threads), settings, interrupt, limits, rows);
  } catch (const Interrupted&) {
    interrupted = true;
  }
  if (values.flag("json")) {
    print_json(document(values, rows, limits));
  } else if (values.flag("csv")) {
    print_csv(rows, limits);
  } else {
    print_table(rows, limits);
  }
  return interrupted ? kInterruptedStatus : 0;
}

}  // namespace greta::cli
