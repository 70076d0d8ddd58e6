#include "bisect/selftest.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "bisect/file_faults.h"
#include "bisect/inputs.h"
#include "bisect/row_judge.h"
#include "bisect/texts.h"
#include "bisect/wiring.h"
#include "model/tensor_plan.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMostRedraws = 12;
constexpr int kMostRefusals = 4;
/// Fired rows that are looked at, in order, for one past its bound.
constexpr size_t kLookedAt = 8;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The largest error over bound of a row that a fault left, by the slow definition.
double effect_of(const Judged& judged, const std::vector<double>& row) { return worst_ratio(judged, row); }

class SelfTest {
 public:
  explicit SelfTest(const SelfTestOptions& options)
      : o_(options), model_(ModelFile::open(options.model, options.tokenizer)) {
    require_model(model_);
    truth_ = truth_plan(model_);
    wiring_ = std::make_unique<const Wiring>(truth_.hp);
  }

  SelfTestResult run() {
    const auto start = Clock::now();
    const auto catalogue = fault_catalogue();
    const int64_t clean = o_.clean >= 0 ? o_.clean : (o_.plantings + 3) / 4;
    int64_t planted = 0;
    for (uint64_t draw = 0; planted < o_.plantings; ++draw) {
      if (result_.not_planted.size() == catalogue.size())
        fail("none of the {} faults can be planted in this model", catalogue.size());
      const FaultInfo& info = catalogue[draw % catalogue.size()];
      if (result_.not_planted.contains(std::string(info.id))) continue;
      if (plant(info, draw)) ++planted;
      if (o_.progress) o_.progress(planted, o_.plantings + clean);
    }
    for (int64_t i = 0; i < clean; ++i) {
      run_clean(static_cast<uint64_t>(i));
      if (o_.progress) o_.progress(planted + i + 1, o_.plantings + clean);
    }
    result_.seconds = since(start);
    return std::move(result_);
  }

 private:
  /// Long enough for two pages, in chunks of more than 32 rows, several of them; other lengths each time.
  /// A fault that shows only past a window asks for `past` it.
  Prompt prompt_for(uint64_t draw, int64_t past = 0) const {
    const int64_t most = std::max<int64_t>(2, truth_.hp.context - 4);
    const int64_t least = std::max<int64_t>(70, past + 8);
    const auto tokens = static_cast<size_t>(std::min<int64_t>(least + static_cast<int64_t>(draw % 16), most));
    return {"planting", "", prompt_of_length(*model_.tokenizer, tokens)};
  }
  ExamineOptions examine_options(uint64_t draw, const Prompt& prompt) const {
    ExamineOptions e;
    e.max_tokens = 3;
    e.room = static_cast<int64_t>(prompt.ids.size()) + e.max_tokens;
    e.chunk = 34 + static_cast<int64_t>(draw % 12);
    e.trace_budget = o_.trace_budget;
    e.threads = o_.threads;
    e.after_call = o_.after_call;
    return e;
  }

  /// One planting; false where the fault cannot be planted at all.
  bool plant(const FaultInfo& info, uint64_t draw) {
    const auto start = Clock::now();
    int refused = 0;
    for (int again = 0; again < kMostRedraws; ++again) {
      const uint64_t seed = mix64(o_.seed * 0x10001 + draw * 64 + static_cast<uint64_t>(again));
      Planting p;
      p.id = info.id;
      p.meant = info.kind;
      p.seed = seed;
      try {
        if (!try_plant(info, seed, draw, p)) continue;
      } catch (const Error& error) {  // the tensor drawn has no nibbles, say: another may have
        if (++refused < kMostRefusals) continue;
        result_.not_planted.emplace(info.id, error.what());
        return false;
      }
      p.seconds = since(start);
      result_.plantings.push_back(std::move(p));
      return true;
    }
    result_.not_planted.emplace(info.id, fmt::format("{} places drawn, none past its bound", kMostRedraws));
    return false;
  }

  bool try_plant(const FaultInfo& info, uint64_t seed, uint64_t draw, Planting& p) {
    const Prompt prompt = prompt_for(seed, info.id == "window-short" ? truth_.hp.window : 0);
    Subject subject = o_.subject;
    subject.fault = FaultSpec{std::string(info.id), {}, {}, seed};
    if (info.needs.int8) subject.backend.weights = WeightMode::int8;
    if (info.id == "kv-page" && draw % 2 == 0) subject.batch = 3;
    ExamineOptions examine = examine_options(seed, prompt);
    examine.untraced = info.needs.recorded;
    if (info.planted == Planted::file) return plant_file(info, subject, prompt, examine, p);
    SubjectRun run(subject, model_, model_, examine, prompt);
    uint64_t rows = 0;
    const auto resident = run.check_resident(rows);
    PromptVerdict v = verdict_alone(run, prompt, resident);
    const FaultLog& log = *run.plant()->log;
    if (log.fired.empty()) {
      ++(info.kind == FaultKind::race ? result_.not_fired : result_.below_bound);
      return false;
    }
    const bool by_bound = info.kind == FaultKind::operator_ || info.planted == Planted::data;
    if (!by_bound) {
      p.place = log.fired.begin()->first;
    } else if (const auto place = first_past_bound(run, prompt, p)) {
      p.place = *place;
    } else {
      ++result_.below_bound;
      return false;
    }
    take(v, p);
    return true;
  }

  void take(const PromptVerdict& v, Planting& p) {
    p.said = v.kind;
    if (v.first) p.found = v.first->place;
  }

  /// The first row in order that the fault left outside its bound: by the slow definition, in a run of its
  /// own.
  std::optional<Place> first_past_bound(SubjectRun& run, const Prompt& prompt, Planting& p) {
    const FaultLog& log = *run.plant()->log;
    std::map<Place, double> effects;
    const Backend& backend = run.engine().backend();
    const int64_t layers = truth_.hp.layers;
    std::set<Place> wanted;
    for (const auto& [place, fired] : log.fired) {
      if (wanted.size() < kLookedAt) wanted.insert(place);
    }
    RecorderOptions keep;
    keep.budget = size_t{1} << 40;
    RunRecorder tap(truth_.hp, false, keep,
                    [&](const UnitRows& data, std::span<const RowName> names, const LayerHistory& history) {
                      for (const Place& place : wanted) {
                        if (unit_of(place, layers) != data.unit) continue;
                        for (size_t r = 0; r < names.size(); ++r) {
                          if (names[r].sequence != place.sequence || names[r].position != place.token)
                            continue;
                          const Judged judged =
                              judged_stage(truth_, backend.arithmetic(), data, static_cast<int64_t>(r),
                                           names[r], history, wiring_->rule(place.stage));
                          effects[place] = effect_of(judged, log.fired.at(place).faulty);
                        }
                      }
                    });
    run.feed_quietly(prompt, &tap);
    tap.finish();
    for (const auto& [place, effect] : effects) {
      if (effect <= 1.0) continue;
      p.effect = effect;
      note_gain(p, place);
      return place;
    }
    return std::nullopt;
  }

  /// row-gain plants 1 %: at `effect` times the bound, a gain of 1 % / effect would still be past it.
  void note_gain(const Planting& p, const Place& place) {
    if (p.id != "row-gain" || !std::isfinite(p.effect)) return;
    const PlannedTensor* t = planned_tensor(truth_, place.layer, wiring_->rule(place.stage).weight);
    const WeightSource source = source_of(*t);
    const auto key = fmt::format("{}, K = {}", quant::traits(source.type).name, source.cols);
    const double gain = 0.01 / p.effect;
    const auto [at, fresh] = result_.smallest_gain.try_emplace(key, gain);
    if (!fresh) at->second = std::min(at->second, gain);
  }

  bool plant_file(const FaultInfo& info, const Subject& subject, const Prompt& prompt,
                  const ExamineOptions& examine, Planting& p) {
    BisectOptions options;
    options.model = o_.model;
    options.tokenizer = o_.tokenizer;
    options.a = o_.subject;
    options.a.text = "the file";
    options.b = subject;
    options.b.text = std::string(info.id);
    options.prompts = {prompt};
    options.examine = examine;
    options.keep_going = true;
    const BisectResult result = bisect(options);
    const PromptVerdict& v = result.prompts.front();
    if (!v.error.empty()) fail("{}", v.error);
    const Plant drawn = draw_plant(*subject.fault, truth_.hp, static_cast<int64_t>(prompt.ids.size()),
                                   static_cast<int64_t>(prompt.ids.size()) + examine.max_tokens - 1);
    // The first row whose bits the change moves, side a being the same device on the file as it was.
    std::optional<Place> first;
    v.a.hashes.each([&](const Place& place, uint64_t hash) {
      const uint64_t* other = v.b.hashes.find(place);
      if (!first && place.sequence == 0 && other != nullptr && *other != hash) first = place;
    });
    if (!first || result.differences.empty()) {
      ++result_.below_bound;
      return false;
    }
    // Two layers' tensors, or a number of the metadata: the first layer that it spoils.
    const bool other_layer = info.id == "file-metadata" || info.id == "file-tensors";
    p.place = {0, first->token, other_layer ? first->layer : drawn.layer, drawn.stage};
    take(v, p);
    return true;
  }

  void run_clean(uint64_t i) {
    const Prompt prompt = prompt_for(i);
    Subject subject = o_.subject;
    ExamineOptions examine = examine_options(i, prompt);
    std::vector<std::string> schedules = {"",         "chunk=7",      "phase=decode", "batch=3",
                                          "chunk=64", "weights=int8", "weights=f32",  "kv-type=bf16"};
    if (!is_gpu(o_.subject.device))
      schedules.insert(schedules.end(),
                       {"threads=1", "activations=8", "kv-type=f32", "isa=portable,chunk=16"});
    const std::string& keys = schedules[i % schedules.size()];
    if (!keys.empty()) subject = parse_subject(o_.subject.device + "," + keys, o_.subject);
    SubjectRun run(subject, model_, model_, examine, prompt);
    uint64_t rows = 0;
    const auto resident = run.check_resident(rows);
    const PromptVerdict v = verdict_alone(run, prompt, resident);
    ++result_.clean;
    const bool traced = v.b.untraced_hash && *v.b.untraced_hash == v.b.traced_hash;
    if (v.kind == FaultKind::none && traced) return;
    result_.false_alarms.push_back(fmt::format("{} ({} tokens): {}{}", keys.empty() ? "as it comes" : keys,
                                               prompt.ids.size(),
                                               v.kind == FaultKind::none ? "tracing changed bits" : v.cause,
                                               v.first ? ", " + v.first->place.text() : ""));
  }

  const SelfTestOptions& o_;
  ModelFile model_;
  Plan truth_;
  std::unique_ptr<const Wiring> wiring_;
  SelfTestResult result_;
};

template <class Want>
uint64_t count(const std::vector<Planting>& plantings, const Want& want) {
  return static_cast<uint64_t>(std::count_if(plantings.begin(), plantings.end(), want));
}

}  // namespace

uint64_t SelfTestResult::detected() const {
  return count(plantings, [](const Planting& p) { return p.detected(); });
}
uint64_t SelfTestResult::exact() const {
  return count(plantings, [](const Planting& p) { return p.exact() && p.kind_right(); });
}
uint64_t SelfTestResult::kind_right() const {
  return count(plantings, [](const Planting& p) { return p.kind_right(); });
}

SelfTestResult self_test(const SelfTestOptions& options) { return SelfTest(options).run(); }

nlohmann::ordered_json self_test_json(const SelfTestResult& r) {
  using Json = nlohmann::ordered_json;
  Json missed = Json::array();
  std::map<std::string, std::array<int, 3>> by_id;
  double slowest = 0.0;
  for (const Planting& p : r.plantings) {
    auto& counts = by_id[p.id];
    ++counts[0];
    counts[1] += p.detected() ? 1 : 0;
    counts[2] += p.exact() && p.kind_right() ? 1 : 0;
    slowest = std::max(slowest, p.seconds);
    if (p.exact() && p.kind_right()) continue;
    missed.push_back({{"id", p.id},
                      {"seed", p.seed},
                      {"meant", name_of(p.meant)},
                      {"place", p.place.text()},
                      {"said", name_of(p.said)},
                      {"found", p.found ? Json(p.found->text()) : Json(nullptr)}});
  }
  Json faults = Json::object();
  for (const auto& [id, c] : by_id) faults[id] = {{"planted", c[0]}, {"detected", c[1]}, {"exact", c[2]}};
  return {{"self_test",
           {{"planted", r.plantings.size()},
            {"detected", r.detected()},
            {"exact", r.exact()},
            {"kind_right", r.kind_right()},
            {"below_bound", r.below_bound},
            {"not_fired", r.not_fired},
            {"not_planted", r.not_planted.size()},
            {"clean", r.clean},
            {"false_alarms", r.false_alarms.size()},
            {"seconds", r.seconds},
            {"slowest_seconds", slowest},
            {"faults", faults},
            {"missed", missed},
            {"why_not_planted", r.not_planted},
            {"alarms", r.false_alarms},
            {"smallest_row_gain", r.smallest_gain}}}};
}

std::string self_test_text(const SelfTestResult& r) {
  const auto json = self_test_json(r)["self_test"];
  std::string text = fmt::format("{:<22} {:>7} {:>8} {:>6}\n", "fault", "planted", "detected", "exact");
  for (const auto& [id, c] : json["faults"].items())
    text += fmt::format("{:<22} {:>7} {:>8} {:>6}\n", id, c["planted"].get<int>(), c["detected"].get<int>(),
                        c["exact"].get<int>());
  for (const auto& m : json["missed"])
    text += fmt::format("not placed: {} (seed {}): {} at {}, said {} at {}\n", m["id"].get<std::string>(),
                        m["seed"].get<uint64_t>(), m["meant"].get<std::string>(),
                        m["place"].get<std::string>(), m["said"].get<std::string>(),
                        m["found"].is_null() ? "nowhere" : m["found"].get<std::string>());
  for (const auto& [id, why] : r.not_planted) text += fmt::format("not planted: {}: {}\n", id, why);
  for (const auto& alarm : r.false_alarms) text += fmt::format("false alarm: {}\n", alarm);
  for (const auto& [what, gain] : r.smallest_gain)
    text += fmt::format("smallest gain of one row past its bound: {}: {:.2e}\n", what, gain);
  text += fmt::format(
      "planted {}, detected {}, placed exactly with the right kind {}, kind right {}, below the bound and "
      "drawn again {}, races "
      "not fired {}, faults not plantable here {}, clean runs {}, false alarms {}; {:.1f} s\n",
      r.plantings.size(), r.detected(), r.exact(), r.kind_right(), r.below_bound, r.not_fired,
      r.not_planted.size(), r.clean, r.false_alarms.size(), r.seconds);
  return text;
}

}  // namespace greta
