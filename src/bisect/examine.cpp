#include "bisect/examine.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"
#include "bisect/replay.h"
#include "bisect/texts.h"
#include "bisect/wiring.h"
#include "model/tensor_plan.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

using Clock = std::chrono::steady_clock;

/// Neighbours' tokens in a call of a prefill: unlike each other, few.
constexpr int64_t kMostNeighbourRows = 8;
int64_t neighbour_rows(int64_t neighbour, int64_t call) {
  return 1 + (3 * neighbour + call) % kMostNeighbourRows;
}

std::vector<TokenId> neighbour_text(const Tokenizer& tokenizer, int64_t neighbour, size_t length) {
  const auto text = prompt_of_length(tokenizer, length + static_cast<size_t>(neighbour) * 17);
  return {text.begin() + static_cast<std::ptrdiff_t>(neighbour * 17), text.end()};
}

/// A tap that keeps one row, and its hash.
class OneRow : public Tap {
 public:
  explicit OneRow(const Place& place) : place_(place) {}
  void on_stage(int layer, Stage stage, const StageRows& rows) override {
    if (layer != place_.layer || stage != place_.stage) return;
    for (int64_t i = 0; i < rows.rows; ++i) {
      const int64_t r = rows.batch_row(i);
      if (rows.batch->sequences[r] != place_.sequence || rows.batch->positions[r] != place_.token) continue;
      values.resize(static_cast<size_t>(rows.width));
      rows.read(i, values.data());
      hash = row_hash(values, rows.backend->element_bytes() == sizeof(double));
    }
  }
  std::vector<double> values;
  std::optional<uint64_t> hash;

 private:
  Place place_;
};

/// While one lives, a planted fault writes no log.
class Unlogged {
 public:
  explicit Unlogged(const std::optional<Plant>& plant) : log_(plant ? plant->log.get() : nullptr) {
    if (log_ != nullptr) was_ = std::exchange(log_->recording, false);
  }
  ~Unlogged() {
    if (log_ != nullptr) log_->recording = was_;
  }
  Unlogged(const Unlogged&) = delete;
  Unlogged& operator=(const Unlogged&) = delete;

 private:
  FaultLog* log_;
  bool was_ = false;
};

}  // namespace

std::string_view name_of(Finding::Check check) {
  switch (check) {
    case Finding::Check::bound:
      return "bound";
    case Finding::Check::replay:
      return "replay";
    case Finding::Check::wire:
      return "wire";
    case Finding::Check::launched:
      return "launched";
    case Finding::Check::input:
      return "input";
    case Finding::Check::nonfinite:
      return "nonfinite";
    case Finding::Check::sides:
      return "sides";
    case Finding::Check::choice:
      return "choice";
  }
  return "";
}

void Examined::add(const Finding& finding) {
  ++failed;
  const auto [at, fresh] = findings.try_emplace(finding.place, finding);
  if (!fresh && at->second.check == Finding::Check::bound) at->second = finding;  // bits say more than bounds
  if (findings.size() > kMostFindings) findings.erase(std::prev(findings.end()));
}

void Examined::add(const Place& place, const Judgement& j) {
  ++rows_judged;
  values += static_cast<uint64_t>(j.values);
  outputs += static_cast<uint64_t>(j.outputs);
  checksums += static_cast<uint64_t>(j.checksums);
  checksums_failed += static_cast<uint64_t>(j.checksums_failed);
  suspect += j.suspect() ? 1 : 0;
  judged.set(place, {static_cast<float>(std::abs(j.got - j.expected)), static_cast<float>(j.certain),
                     static_cast<float>(j.likely), static_cast<float>(j.ratio), j.suspect()});
  if (j.failed()) add({place, Finding::Check::bound, j.index, j.got, j.expected, j.certain, j.ratio});
}

Sampling sampling_of(const ExamineOptions& options, const Plan& truth, int64_t rows) {
  const int64_t all = options.rows > 0 ? options.rows : rows;
  return {multiply_adds(truth, all) > options.whole_multiply_adds, options.seed};
}

Plan truth_plan(const ModelFile& file, std::optional<int64_t> context) {
  BackendOptions plain;
  plain.kv_type = KvType::f64;
  plain.threads = 1;  // it plans and computes nothing
  EngineOptions options;
  options.context = context;
  options.room = 1;
  return Engine::plan(file, *make_backend("reference", plain), options);
}

std::optional<TokenId> greedy(std::span<const double> logits) {
  TokenId best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return std::nullopt;
    if (logits[i] > logits[static_cast<size_t>(best)]) best = static_cast<TokenId>(i);
  }
  return best;
}

SubjectRun::SubjectRun(const Subject& subject, const ModelFile& model, const ModelFile& truth,
                       const ExamineOptions& options, const Prompt& sample)
    : subject_(subject), model_(model), options_(options) {
  truth_ = truth_plan(truth, options.context);
  if (&model != &truth)
    if (const auto other = other_shape(truth_.hp, truth_plan(model, options.context).hp))
      fail("{} cannot be judged by {}: {}; compare files of one shape", model.file.path(), truth.file.path(),
           *other);
  wiring_ = std::make_shared<const Wiring>(truth_.hp);
  sampling_ =
      sampling_of(options, truth_,
                  static_cast<int64_t>(sample.ids.size()) + std::max<int64_t>(options.max_tokens - 1, 0));

  EngineOptions engine;
  engine.device = subject.device;
  engine.backend = subject.backend;
  if (engine.backend.threads == 0) engine.backend.threads = options.threads;
  engine.context = options.context;
  engine.room = options.room;
  engine.sequences = subject.batch;
  for (int64_t i = 1; i < subject.batch; ++i) neighbour_rows_ += kMostNeighbourRows;
  engine.chunk = subject.chunk.value_or(options.chunk) + neighbour_rows_;
  engine.all_logits = true;
  if (subject.fault) {
    const auto prompt = static_cast<int64_t>(sample.ids.size());
    plant_ = draw_plant(*subject.fault, truth_.hp, prompt,
                        prompt + std::max<int64_t>(options.max_tokens - 1, 0), is_gpu(subject.device));
  }
  engine.between = [this](std::unique_ptr<Backend> backend) {
    if (plant_) backend = plant_fault(std::move(backend), *plant_, truth_.hp);
    if (!is_gpu(subject_.device)) return backend;
    auto above = std::make_unique<Snapshots>(std::move(backend));
    snapshots_ = above.get();
    return std::unique_ptr<Backend>(std::move(above));
  };
  engine_ = std::make_unique<Engine>(model, engine);
}
SubjectRun::~SubjectRun() = default;

void SubjectRun::run(const Prompt& prompt, Tap* tap, std::vector<StepLogits>* steps,
                     const std::function<void()>& on_call) {
  std::vector<TokenId> ids = prompt.ids;
  if (plant_) ids = planted_tokens(*plant_, prompt.ids, engine_->hparams().vocab);
  std::vector<std::vector<TokenId>> texts(static_cast<size_t>(subject_.batch));
  for (size_t s = 0; s < texts.size(); ++s) {
    engine_->clear(static_cast<int64_t>(s));
    if (s > 0) texts[s] = neighbour_text(*model_.tokenizer, static_cast<int64_t>(s), ids.size() / 2 + 1 + s);
  }
  const int64_t chunk = subject_.phase == Phase::decode ? 1 : subject_.chunk.value_or(options_.chunk);
  int64_t call = 0;
  const auto feed = [&](std::span<const TokenId> ours) {
    std::vector<Feed> feeds = {{0, ours, Feed::Logits::all}};
    for (int64_t s = 1; s < subject_.batch; ++s) {
      const auto& text = texts[static_cast<size_t>(s)];
      const int64_t done = engine_->length(s);
      const int64_t want = ours.size() == 1 ? 1 : neighbour_rows(s, call);
      const int64_t count = std::min<int64_t>(want, static_cast<int64_t>(text.size()) - done);
      if (count > 0 && done + count <= engine_->context())
        feeds.push_back({s, std::span(text).subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
                         Feed::Logits::last});
    }
    ++call;
    engine_->evaluate(feeds, tap);
    if (on_call) on_call();
    if (options_.after_call) options_.after_call();
  };
  for (size_t done = 0; done < ids.size();) {
    const size_t count = std::min(static_cast<size_t>(chunk), ids.size() - done);
    feed(std::span(ids).subspan(done, count));
    done += count;
  }
  std::vector<double> logits(static_cast<size_t>(engine_->hparams().vocab));
  for (int64_t step = 0; step < options_.max_tokens; ++step) {
    // The last row of sequence 0 in the last call: its feed comes first.
    size_t row = 0;
    while (row + 1 < engine_->logits_rows().size() && engine_->logits_rows()[row + 1].sequence == 0) ++row;
    engine_->logits(row, logits);
    const auto next = greedy(logits);
    if (!next) break;
    if (steps != nullptr) steps->push_back({engine_->length(0) - 1, *next, logits});
    if (step + 1 < options_.max_tokens) {
      const TokenId id = *next;
      feed({&id, 1});
    }
  }
}

Examined SubjectRun::examine(const Prompt& prompt) {
  const auto start = Clock::now();
  Backend& backend = engine_->backend();
  const bool judged = !subject_.is_reference();
  const HParams& hp = engine_->hparams();
  Examined result;
  result.description = backend.description();
  result.judged = Grid<Cell>(hp.layers);
  result.sampling = sampling_;
  if (judged && !judge_)
    judge_ = std::make_unique<Judge>(truth_, backend.arithmetic(), sampling_, options_.threads);
  std::unique_ptr<Replayer> replayer;
  if (judged)
    replayer =
        std::make_unique<Replayer>(backend.operators(), engine_->model(), subject_.batch, engine_->context());

  RunRecorder* recorder = nullptr;
  const auto flush = [&](const UnitRows& data, std::span<const RowName> names, const LayerHistory& history) {
    const Unlogged quiet(plant_);
    const int layer = layer_of_unit(data.unit, hp.layers);
    const auto place = [&](int64_t row, Stage stage) {
      const RowName& name = names[static_cast<size_t>(row)];
      return Place{name.sequence, name.position, layer, stage};
    };
    replayer->replay(data, recorder->calls(), [&](const Mismatch& m) {
      result.add({place(m.row, m.stage), Finding::Check::replay, m.index, m.run, m.replayed, 0.0,
                  std::numeric_limits<double>::infinity()});
    });
    judge_->judge(data, names, history, [&](const Judgement& j) { result.add(place(j.row, j.stage), j); });
  };
  RecorderOptions keep;
  keep.rows = judged;
  keep.layers = options_.layers;
  keep.budget = options_.trace_budget;
  RunRecorder tap(hp, backend.element_bytes() == sizeof(double), keep, flush);
  recorder = &tap;
  backend.reset_route();
  if (plant_) plant_->log->fired.clear();  // of the prompt before
  run(prompt, &tap, &result.steps, {});
  for (const StepLogits& step : result.steps) result.generated.push_back(step.chosen);
  result.route = backend.route();
  tap.finish();
  for (const Place& place : tap.broken_wires())
    result.add({place, Finding::Check::wire, -1, 0.0, 0.0, 0.0, std::numeric_limits<double>::infinity()});
  result.hashes = tap.hashes();
  result.calls = tap.calls();
  result.nonfinite = tap.nonfinite();
  result.traced_hash = tap.logits_hash(0);
  result.residuals = tap.residuals();
  result.most_bytes = tap.most_bytes();
  if (replayer) {
    result.calls_replayed = replayer->counts().calls;
    result.rows_replayed = replayer->counts().rows;
  }
  for (const CallShape& call : result.calls)
    for (size_t r = 0; r < call.tokens.size(); ++r)
      if (call.sequences[r] == 0) result.fed.push_back(call.tokens[r]);
  result.positions.resize(result.fed.size());
  std::iota(result.positions.begin(), result.positions.end(), int64_t{0});

  if (options_.untraced) {
    // Once more without a tap: the hash, the steps' logits, and the route, to which replays have added
    // nothing.
    std::optional<Unlogged> quiet;
    if (!plant_ || !plant_->info->needs.recorded) quiet.emplace(plant_);
    backend.reset_route();
    uint64_t hash = 0;
    run(prompt, nullptr, nullptr, [&] {
      const auto rows = engine_->logits_rows();
      for (size_t i = 0; i < rows.size(); ++i)
        if (rows[i].sequence == 0) hash += positioned(engine_->logits_row_hash(i), rows[i].position);
    });
    result.route = backend.route();
    result.untraced_hash = hash;
    if (snapshots_ != nullptr && hash != result.traced_hash) compare_launched(prompt, result);
  }
  result.planted_fired = plant_ && !plant_->log->fired.empty();
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return result;
}

void SubjectRun::feed_quietly(const Prompt& prompt, Tap* tap) {
  const Unlogged quiet(plant_);
  run(prompt, tap, nullptr, {});
}

bool SubjectRun::varies(const Prompt& prompt, const Place& place, uint64_t hash) {
  const Unlogged quiet(plant_);
  for (int i = 0; i < 5; ++i) {
    OneRow tap(place);
    run(prompt, &tap, nullptr, {});
    if (tap.hash != hash) return true;
  }
  return false;
}

bool SubjectRun::varies_launched(const Prompt& prompt, const Place& place, uint64_t hash) {
  for (int i = 0; i < 5; ++i) {
    std::optional<uint64_t> again;
    visit_launched(prompt, [&](const Place& at, const std::vector<double>& values) {
      if (at == place) again = row_hash(values, false);
    });
    if (again != hash) return true;
  }
  return false;
}

void SubjectRun::visit_launched(const Prompt& prompt, const Snapshots::Visit& visit) {
  const Unlogged quiet(plant_);
  snapshots_->start();
  run(prompt, nullptr, nullptr, [&] { snapshots_->visit(visit); });
  snapshots_->stop();
}

void SubjectRun::compare_launched(const Prompt& prompt, Examined& examined) {
  std::optional<Place> first;
  std::vector<double> launched;
  visit_launched(prompt, [&](const Place& place, const std::vector<double>& values) {
    const uint64_t* traced = examined.hashes.find(place);
    if (traced == nullptr || *traced == row_hash(values, false) || (first && *first < place)) return;
    first = place;
    launched = values;
  });
  if (!first) return;
  const Unlogged quiet(plant_);
  OneRow traced(*first);
  run(prompt, &traced, nullptr, {});
  const auto other = std::mismatch(
      launched.begin(), launched.end(), traced.values.begin(),
      [](double a, double b) { return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b); });
  if (other.first == launched.end()) return;  // a tap's run has these bits, too: they vary
  examined.launched_hash = row_hash(launched, false);
  examined.add({*first, Finding::Check::launched, other.first - launched.begin(), *other.first, *other.second,
                0.0, std::numeric_limits<double>::infinity()});
}

std::vector<InputDifference> SubjectRun::check_resident(uint64_t& rows) {
  std::vector<InputDifference> differences;
  const WeightMode mode = subject_.backend.weights;
  const Arithmetic& arithmetic = engine_->backend().arithmetic();
  const Model& model = engine_->model();
  ThreadPool pool(options_.threads > 0 ? options_.threads : usable_cpus());
  for (const PlannedTensor& planned : truth_.tensors) {
    const Weight* weight = planned.layer < 0 ? model.at(planned.role)
                                             : model.at(static_cast<size_t>(planned.layer), planned.role);
    if (weight == nullptr) continue;  // told by the comparison of tensors
    const WeightSource source = source_of(planned);
    if (weight->rows != source.rows || weight->cols != source.cols) continue;
    const bool product = planned.use == WeightUse::matmul || planned.use == WeightUse::experts;
    const WeightForm held =
        product ? WeightForm(mode, arithmetic.matmul(source.type, source.cols).resident) : WeightForm();
    std::atomic<int64_t> first{source.rows};
    pool.parallel_for(source.rows, 64, [&](int64_t begin, int64_t end, int) {
      std::vector<float> expected(static_cast<size_t>(source.cols));
      std::vector<float> held_rows(static_cast<size_t>((end - begin) * source.cols));
      weight->read_back(begin, end - begin, held_rows.data());
      for (int64_t row = begin; row < end; ++row) {
        judged_row(source, row, held, expected.data());
        const float* got = held_rows.data() + (row - begin) * source.cols;
        const bool same = std::equal(expected.begin(), expected.end(), got, [](float a, float b) {
          return (a == b) || (std::isnan(a) && std::isnan(b));
        });
        if (same) continue;
        int64_t seen = first.load();
        while (row < seen && !first.compare_exchange_weak(seen, row)) {
        }
      }
    });
    rows += static_cast<uint64_t>(source.rows);
    if (first.load() == source.rows) continue;
    std::optional<Place> place;
    if (const auto stage = wiring_->first_made_with(planned.role))
      place = Place{0, 0, planned.layer < 0 ? kNoLayer : static_cast<int>(planned.layer), *stage};
    differences.push_back({"resident weights", source.name,
                           fmt::format("row {} read back through its layout ({}) is not the file's",
                                       first.load(), weight->resident),
                           place, first.load()});
  }
  return differences;
}

}  // namespace greta
