#include "bisect/summary.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <numeric>
#include <set>

#include "base/build_info.h"
#include "base/error.h"
#include "base/system.h"
#include "base/text.h"
#include "bench/limits.h"
#include "bisect/divergence.h"
#include "bisect/row_judge.h"
#include "bisect/wiring.h"
#include "model/hparams_json.h"
#include "trace/safetensors.h"
#include "trace/trace.h"

namespace greta {
namespace {

using Json = nlohmann::ordered_json;
constexpr int64_t kMostColumns = 256;
constexpr size_t kMostFailures = 50;

Json number(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  return x;
}

double milliseconds(double seconds) { return std::round(seconds * 1e3) / 1e3; }

Json place_json(const Place& p) {
  return {{"sequence", p.sequence},
          {"token", p.token},
          {"layer", p.layer == kNoLayer ? Json(nullptr) : Json(p.layer)},
          {"stage", name_of(p.stage)}};
}

/// By the number that a trace gives the sequence.
Place numbered(Place place, const PromptVerdict& v, char side) {
  if (place.sequence == 0) place.sequence = (side == 'a' ? v.a : v.b).number;
  return place;
}

Json finding_json(const PromptVerdict& v, const Finding& f, char side) {
  const Wiring& wiring = *v.wiring;
  Json json = place_json(numbered(f.place, v, side));
  json["side"] = std::string(1, side);
  json["operator"] = name_of(wiring.rule(f.place.stage).op);
  json["check"] = name_of(f.check);
  const auto measured = [&](Json value) { return f.measured() ? std::move(value) : Json(nullptr); };
  json["index"] = measured(f.index);
  json["got"] = measured(number(f.got));
  json["expected"] = measured(number(f.expected));
  json["error"] = measured(number(std::abs(f.got - f.expected)));
  json["bound"] = measured(number(f.certain));
  json["ratio"] = measured(number(f.ratio));
  return json;
}

Json route_json(const BisectResult& result, char side) {
  Json route = Json::object();
  for (const PromptVerdict& v : result.prompts)
    for (const auto& [kernel, count] : (side == 'a' ? v.a : v.b).route)
      route[kernel] = route.value(kernel, uint64_t{0}) + count;
  return route;
}

Json subject_json(const BisectResult& result, char name) {
  const auto& side = name == 'a' ? result.a : result.b;
  return {{"text", side.subject.text},
          {"description", side.description},
          {"file", side.path},
          {"sha256", side.sha256},
          {"model", hparams_json(side.hp)},
          {"route", route_json(result, name)},
          {"seconds", milliseconds(side.seconds)}};
}

/// Columns of a map over positions: at most kMostColumns, each of `bin` tokens.
struct Bins {
  int64_t bin = 1;
  std::vector<int64_t> starts;
  explicit Bins(int64_t positions) {
    bin = std::max<int64_t>(1, (positions + kMostColumns - 1) / kMostColumns);
    for (int64_t p = 0; p < positions; p += bin) starts.push_back(p);
  }
};

/// Sums of two numbers, and what the cache stores in a narrower type.
bool rounds_once(const Wiring& wiring, Stage stage) {
  return wiring.rule(stage).op == Op::add || stage == Stage::v || stage == Stage::k_post_rope;
}

Json heat_json(const Wiring& wiring, const Examined& run, char side) {
  const int64_t layers = run.judged.layers();
  const Bins bins(run.judged.positions(0));
  if (bins.starts.empty()) return nullptr;
  const size_t rows = static_cast<size_t>(layers) + 2;
  struct Best {
    const Cell* cell = nullptr;
    Place place;
  };
  std::vector<std::vector<Best>> best(rows, std::vector<Best>(bins.starts.size()));
  run.judged.each([&](const Place& place, const Cell& cell) {
    if (place.sequence != 0) return;
    // One rounding reaches its bound by nature: such stages colour a cell only when they are past it.
    if (rounds_once(wiring, place.stage) && cell.ratio <= 1.0f) return;
    Best& b = best[static_cast<size_t>(unit_of(place, layers))][static_cast<size_t>(place.token / bins.bin)];
    if (b.cell == nullptr || !(cell.ratio <= b.cell->ratio)) b = {&cell, place};
  });
  Json names = Json::array({"embed_out"});
  for (int64_t l = 0; l < layers; ++l) names.push_back(fmt::format("layer {}", l));
  names.push_back("head");
  Json ratio = Json::array(), stage = Json::array(), token = Json::array();
  for (const auto& row : best) {
    Json r = Json::array(), s = Json::array(), t = Json::array();
    for (const Best& b : row) {
      r.push_back(b.cell == nullptr ? Json(nullptr) : number(b.cell->ratio));
      s.push_back(b.cell == nullptr ? Json(nullptr) : Json(name_of(b.place.stage)));
      t.push_back(b.cell == nullptr ? Json(nullptr) : Json(b.place.token));
    }
    ratio.push_back(std::move(r));
    stage.push_back(std::move(s));
    token.push_back(std::move(t));
  }
  return {{"side", std::string(1, side)},
          {"bin", bins.bin},
          {"tokens", bins.starts},
          {"rows", names},
          {"ratio", ratio},
          {"stage", stage},
          {"token", token}};
}

/// |y - x| over |x| of one row of each.
double relative_difference(const StoredRows& x, int64_t row_x, const StoredRows& y, int64_t row_y) {
  double difference = 0.0, size = 0.0;
  for (int64_t i = 0; i < x.width(); ++i) {
    const double d = y.at(row_y, i) - x.at(row_x, i);
    difference += d * d;
    size += x.at(row_x, i) * x.at(row_x, i);
  }
  return size == 0.0 ? 0.0 : std::sqrt(difference / size);
}

/// Position and row on each side, where both have one: a trace need not have every position.
struct CommonRow {
  int64_t position = 0, a = 0, b = 0;
};
std::vector<CommonRow> common_rows(const Examined& a, const Examined& b) {
  std::map<int64_t, int64_t> rows;
  for (size_t r = 0; r < b.positions.size(); ++r) rows[b.positions[r]] = static_cast<int64_t>(r);
  std::vector<CommonRow> common;
  for (size_t r = 0; r < a.positions.size(); ++r)
    if (const auto other = rows.find(a.positions[r]); other != rows.end())
      common.push_back({a.positions[r], static_cast<int64_t>(r), other->second});
  return common;
}

Json drift_json(const Examined& a, const Examined& b) {
  const std::vector<CommonRow> common = common_rows(a, b);
  std::vector<int> layers;
  for (const auto& [layer, rows] : a.residuals)
    if (b.residuals.contains(layer)) layers.push_back(layer);
  if (layers.empty() || common.empty()) return nullptr;
  const Bins bins(common.back().position + 1);
  Json relative = Json::array();
  for (const int layer : layers) {
    std::vector<std::optional<double>> worst(bins.starts.size());
    for (const CommonRow& row : common) {
      const double r = relative_difference(a.residuals.at(layer), row.a, b.residuals.at(layer), row.b);
      auto& w = worst[static_cast<size_t>(row.position / bins.bin)];
      if (!w || !(r <= *w)) w = r;
    }
    Json line = Json::array();
    for (const auto& w : worst) line.push_back(w ? number(*w) : Json(nullptr));
    relative.push_back(std::move(line));
  }
  return {{"layers", layers}, {"tokens", bins.starts}, {"bin", bins.bin}, {"relative", relative}};
}

/// The unit that the reader should see: the finding's, or the one with the largest ratio.
Json stages_json(const PromptVerdict& v) {
  const bool from_a = v.side == 'a';
  const Examined& run = from_a ? v.a : v.b;
  const int64_t layers = run.judged.layers();
  if (layers == 0) return nullptr;  // nothing was run
  Place at;
  if (v.first) {
    at = v.first->place;
  } else {
    double worst = -1.0;
    run.judged.each([&](const Place& place, const Cell& cell) {
      if (place.sequence != 0 || cell.ratio <= worst) return;
      worst = cell.ratio;
      at = place;
    });
  }
  Json rows = Json::array();
  const int unit = unit_of(at, layers);
  for (const StageRule& rule : v.wiring->rules_of_unit(unit)) {
    const Stage stage = rule.stage;
    const Place place{at.sequence, at.token, layer_of_unit(unit, layers), stage};
    const Cell* cell = run.judged.find(place);
    const uint64_t* ha = v.a.hashes.find(place);
    const uint64_t* hb = v.b.hashes.find(place);
    const auto hash = [](const uint64_t* h) {
      return h == nullptr ? Json(nullptr) : Json(fmt::format("{:016x}", *h));
    };
    const bool comparable =
        ha != nullptr && hb != nullptr && v.a.description.substr(0, 3) == v.b.description.substr(0, 3);
    rows.push_back({{"stage", name_of(stage)},
                    {"operator", name_of(rule.op)},
                    {"error", cell == nullptr ? Json(nullptr) : number(cell->error)},
                    {"bound", cell == nullptr ? Json(nullptr) : number(cell->certain)},
                    {"likely", cell == nullptr ? Json(nullptr) : number(cell->likely)},
                    {"ratio", cell == nullptr ? Json(nullptr) : number(cell->ratio)},
                    {"suspect", cell != nullptr && cell->suspect},
                    {"hash_a", hash(ha)},
                    {"hash_b", hash(hb)},
                    {"same_bits", comparable ? Json(*ha == *hb) : Json(nullptr)}});
  }
  const int layer = layer_of_unit(unit, layers);
  return {{"token", at.token},
          {"layer", layer == kNoLayer ? Json(nullptr) : Json(layer)},
          {"side", std::string(1, v.side)},
          {"rows", rows}};
}

Json top_json(const std::vector<double>& logits, const Tokenizer& tokenizer) {
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min<size_t>(10, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](TokenId x, TokenId y) {
                      const double a = logits[static_cast<size_t>(x)], b = logits[static_cast<size_t>(y)];
                      return a > b || (a == b && x < y) || (!std::isnan(a) && std::isnan(b));
                    });
  Json top = Json::array();
  for (size_t i = 0; i < count; ++i)
    top.push_back({{"id", order[i]},
                   {"piece", std::string(tokenizer.piece(order[i]))},
                   {"logit", number(logits[static_cast<size_t>(order[i])])}});
  return top;
}

Json logits_json(const PromptVerdict& v, const Tokenizer& tokenizer) {
  Json rows = Json::array();
  for (size_t s = 0; s < std::min(v.a.steps.size(), v.b.steps.size()); ++s) {
    const auto& x = v.a.steps[s];
    const auto& y = v.b.steps[s];
    if (x.token != y.token || x.logits.size() != y.logits.size()) continue;
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < x.logits.size(); ++i) {
      difference += (x.logits[i] - y.logits[i]) * (x.logits[i] - y.logits[i]);
      size += x.logits[i] * x.logits[i];
    }
    rows.push_back({{"token", x.token},
                    {"step", s},
                    {"a", top_json(x.logits, tokenizer)},
                    {"b", top_json(y.logits, tokenizer)},
                    {"relative", number(std::sqrt(difference / size))},
                    {"kl", number(kl_divergence(log_softmax(x.logits), log_softmax(y.logits)))}});
    if (x.chosen != y.chosen) break;  // what follows had other tokens
  }
  return rows;
}

Json rounding_json(const Rounding& r, const PromptVerdict& v, const Tokenizer& tokenizer) {
  const auto one = [&](TokenId id, const Examined& run) {
    double logit = std::numeric_limits<double>::quiet_NaN();
    for (const StepLogits& s : run.steps)
      if (s.token == r.token) logit = s.logits[static_cast<size_t>(id)];
    return Json{{"id", id}, {"piece", std::string(tokenizer.piece(id))}, {"logit", number(logit)}};
  };
  double all = 0.0;
  for (const auto& c : r.contributors) all += std::abs(c.shift);
  Json contributors = Json::array();
  for (const auto& c : r.contributors)
    contributors.push_back(
        {{"what", c.what}, {"share", all == 0.0 ? 0.0 : std::abs(c.shift) / all}, {"shift", c.shift}});
  return {{"step", r.step},
          {"token", r.token},
          {"side", std::string(1, v.side)},
          {"a", one(r.a, v.a)},
          {"b", one(r.b, v.b)},
          {"true_gap", r.true_gap},
          {"difference", r.difference ? number(*r.difference) : Json(nullptr)},
          {"contributors", contributors}};
}

Json counts_json(const PromptVerdict& v) {
  std::set<int64_t> tokens;
  std::set<int> layers;
  std::set<Stage> stages;
  for (const Examined* run : {&v.a, &v.b})
    run->judged.each([&](const Place& place, const Cell&) {
      if (place.sequence == 0) tokens.insert(place.token);
      if (place.layer != kNoLayer) layers.insert(place.layer);
      stages.insert(place.stage);
    });
  return {{"tokens", tokens.size()},
          {"layers", layers.size()},
          {"stages", stages.size()},
          {"values", v.a.values + v.b.values},
          {"outputs", v.a.outputs + v.b.outputs},
          {"checksum_only", v.a.outputs + v.b.outputs - v.a.values - v.b.values},
          {"checksums", v.a.checksums + v.b.checksums},
          {"checksums_failed", v.a.checksums_failed + v.b.checksums_failed},
          {"calls_replayed", v.a.calls_replayed + v.b.calls_replayed},
          {"rows_replayed", v.a.rows_replayed + v.b.rows_replayed},
          {"rows_judged", v.a.rows_judged + v.b.rows_judged},
          {"rows_expected", v.a.rows_expected + v.b.rows_expected},
          {"rows_common", v.rows_common},
          {"rows_compared", v.rows_compared},
          {"suspect", v.a.suspect + v.b.suspect},
          {"failed", v.a.failed + v.b.failed},
          {"bytes_kept", std::max(v.a.most_bytes, v.b.most_bytes)}};
}

/// How matmuls were judged, and how far the verdict goes.
Json judging_json(const PromptVerdict& v) {
  const Examined& run = v.b.outputs > 0 ? v.b : v.a;
  Json json = {{"matmuls", run.outputs == 0       ? Json(nullptr)
                           : run.sampling.sampled ? Json("sampled")
                                                  : Json("whole")},
               {"seed", run.sampling.sampled ? Json(run.sampling.seed) : Json(nullptr)},
               {"coverage", coverage_of(v)},
               {"not_judged", v.a.lacks.empty() && v.b.lacks.empty() ? Json(nullptr) : Json(unjudged_of(v))}};
  return json;
}

/// Dashes where the difference of two files names no stage.
std::string first_fail_line(const PromptVerdict& v) {
  if (v.kind == FaultKind::none) return "";
  const Place p = v.first ? numbered(v.first->place, v, v.side) : Place{};
  const auto known = [&](auto value) { return v.first ? fmt::format("{}", value) : std::string("-"); };
  return fmt::format(
      "FIRST_FAIL prompt={} sequence={} token={} layer={} stage={} operator={} kind={} class={} side={}",
      v.prompt.name, known(p.sequence), known(p.token),
      p.layer == kNoLayer ? std::string("-") : std::to_string(p.layer), known(name_of(p.stage)),
      known(name_of(v.wiring->rule(p.stage).op)), name_of(v.kind), audit_class(v.kind, p.stage), v.side);
}

Json prompt_json(const PromptVerdict& v, const BisectResult& result, bool allow_rounding) {
  const Tokenizer& tokenizer = *result.model->tokenizer;
  const bool fine = v.kind == FaultKind::none || (v.kind == FaultKind::rounding && allow_rounding);
  Json json = {
      {"name", v.prompt.name},
      {"tokens", v.prompt.ids.size()},
      {"prompt_text", v.prompt.text},
      {"ids", v.prompt.ids},
      {"generated",
       {{"a", v.a.generated},
        {"b", v.b.generated},
        {"a_text", tokenizer.decode(v.a.generated, true)},
        {"b_text", tokenizer.decode(v.b.generated, true)}}},
      {"kind", v.error.empty() ? Json(name_of(v.kind)) : Json(nullptr)},
      {"class", v.error.empty() ? Json(audit_class(v.kind, v.first ? v.first->place.stage : Stage::embed_out))
                                : Json("NONE")},
      {"status", !v.error.empty() ? 2
                 : fine           ? 0
                                  : 1},
      {"error", v.error.empty() ? Json(nullptr) : Json(v.error)}};
  if (!v.error.empty() && !v.undecided) return json;
  const auto failed_side = [&](const Examined& run, char side) {
    Json list = Json::array();
    for (const auto& [place, finding] : run.findings) {
      if (list.size() >= kMostFailures) break;
      list.push_back(finding_json(v, finding, side));
    }
    return list;
  };
  json["first"] = v.first ? finding_json(v, *v.first, v.side) : Json(nullptr);
  json["first_fail"] = v.undecided ? Json(nullptr) : Json(first_fail_line(v));
  json["cause"] = v.undecided                 ? Json(nullptr)
                  : v.kind == FaultKind::none ? Json("")
                                              : Json("CAUSE " + v.cause);
  json["counts"] = counts_json(v);
  json["judging"] = judging_json(v);
  json["nonfinite"] = nullptr;
  if (const auto [side, n] = first_nonfinite(v); n != nullptr) {
    json["nonfinite"] = place_json(numbered(n->place, v, side));
    json["nonfinite"]["side"] = std::string(1, side);
    json["nonfinite"]["index"] = n->index;
    json["nonfinite"]["value"] = number(n->value);
  }
  const auto hashes = [](const Examined& run) {
    const bool ran = !run.fed.empty();
    return Json{
        {"traced", ran ? Json(fmt::format("{:016x}", run.traced_hash)) : Json(nullptr)},
        {"untraced", run.untraced_hash ? Json(fmt::format("{:016x}", *run.untraced_hash)) : Json(nullptr)}};
  };
  json["hashes"] = {{"a", hashes(v.a)}, {"b", hashes(v.b)}};
  const bool a_shown = v.side == 'a' || v.b.rows_judged == 0;
  json["heat"] = heat_json(*v.wiring, a_shown ? v.a : v.b, a_shown ? 'a' : 'b');
  json["drift"] = drift_json(v.a, v.b);
  json["stages"] = stages_json(v);
  json["logits"] = logits_json(v, tokenizer);
  json["rounding"] = v.rounding ? rounding_json(*v.rounding, v, tokenizer) : Json(nullptr);
  json["failures"] = failed_side(v.side == 'a' ? v.a : v.b, v.side);
  json["failures_total"] = v.a.failed + v.b.failed;
  return json;
}

/// The worst of the prompts'; null where a prompt that could not be compared is worse.
Json kind_json(const BisectResult& result) {
  FaultKind worst = FaultKind::none;
  bool errors = false;
  for (const PromptVerdict& v : result.prompts) {
    errors = errors || !v.error.empty();
    if (v.error.empty()) worst = std::max(worst, v.kind);
  }
  return errors && worst == FaultKind::none ? Json(nullptr) : Json(name_of(worst));
}

/// Tensors of a trace that is being put together: rows of every prompt, stage by stage.
class TraceRows {
 public:
  void add(const PromptVerdict& v, const std::vector<int64_t>& rows) {
    const auto number = static_cast<int32_t>(offsets_.size()) - 1;
    tokens_.insert(tokens_.end(), v.b.fed.begin(), v.b.fed.end());
    offsets_.push_back(static_cast<int32_t>(tokens_.size()));
    generated_.push_back(v.b.generated);
    for (const int64_t p : rows) {
      sequence_.push_back(number);
      positions_.push_back(static_cast<int32_t>(p));
    }
  }
  void add(const std::string& stage, std::span<const double> row, bool wide) {
    Values& values = stages_[stage];
    values.wide = wide;
    values.width = static_cast<int64_t>(row.size());
    for (const double x : row) {
      const auto narrow = static_cast<float>(x);
      const auto* raw =
          wide ? reinterpret_cast<const std::byte*>(&x) : reinterpret_cast<const std::byte*>(&narrow);
      values.bytes.insert(values.bytes.end(), raw, raw + (wide ? sizeof x : sizeof narrow));
    }
  }
  bool empty() const { return stages_.empty(); }

  void write(const std::string& path, std::map<std::string, std::string> metadata) const {
    std::vector<SafeTensor> tensors;
    const auto integers = [&](const char* name, const std::vector<int32_t>& values) {
      tensors.push_back(
          {name, "I32", {static_cast<int64_t>(values.size())}, std::as_bytes(std::span(values))});
    };
    integers("token_ids", tokens_);
    integers("sequence_offsets", offsets_);
    integers("sequence", sequence_);
    integers("positions", positions_);
    for (const auto& [name, values] : stages_)
      tensors.push_back({name,
                         values.wide ? "F64" : "F32",
                         {static_cast<int64_t>(positions_.size()), values.width},
                         values.bytes});
    metadata["generated_ids"] = Json(generated_).dump();
    write_safetensors(path, tensors, metadata);
  }

 private:
  struct Values {
    bool wide = false;
    int64_t width = 0;
    std::vector<std::byte> bytes;
  };
  std::vector<int32_t> tokens_, offsets_ = {0}, sequence_, positions_;
  std::vector<std::vector<TokenId>> generated_;
  std::map<std::string, Values> stages_;
};

/// The residual stream of the chosen layers, else the rows of logits that chose a token: what is kept anyway.
void add_rows(TraceRows& trace, const PromptVerdict& v, bool residuals, bool wide) {
  if (residuals) {
    trace.add(v, v.b.positions);
    for (const auto& [layer, rows] : v.b.residuals)
      for (int64_t r = 0; r < rows.rows(); ++r)
        trace.add(trace_name(layer, Stage::residual_post_mlp), values_of(rows, r), rows.wide());
    return;
  }
  std::vector<int64_t> positions;
  for (const StepLogits& step : v.b.steps) positions.push_back(step.token);
  trace.add(v, positions);
  for (const StepLogits& step : v.b.steps) trace.add(trace_name(kNoLayer, Stage::logits), step.logits, wide);
}

}  // namespace

Json summary_of(const BisectResult& result, const BisectOptions& options, const Json& given) {
  const BuildInfo& build = build_info();
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::string started(32, '\0');
  started.resize(std::strftime(started.data(), started.size(), "%Y-%m-%dT%H:%M:%SZ", &utc));
  Json differences = Json::array();
  for (const auto& [side, d] : result.differences)
    differences.push_back({{"side", std::string(1, side)},
                           {"what", d.what},
                           {"name", d.name},
                           {"row", d.row ? Json(*d.row) : Json(nullptr)},
                           {"detail", d.detail}});
  uint64_t values = 0;
  for (const gguf::Tensor& t : result.model->file.tensors()) values += t.elements();
  Json json = {{"schema", "greta-bisect-1"},
               {"build",
                {{"version", build.version},
                 {"commit", build.commit},
                 {"dirty", build.dirty},
                 {"compiler", build.compiler}}},
               {"machine", {{"cpu", cpu_name()}, {"threads", usable_cpus()}}},
               {"options", given},
               {"started", started},
               {"seconds", milliseconds(result.seconds)},
               {"status", result.status},
               {"kind", kind_json(result)},
               {"subjects", {{"a", subject_json(result, 'a')}, {"b", subject_json(result, 'b')}}},
               {"input",
                {{"tensors", result.tensors_compared},
                 {"values", values},
                 {"rows_read_back", result.rows_read_back},
                 {"differences", differences}}}};
  json["prompts"] = Json::array();
  for (const auto& v : result.prompts)
    json["prompts"].push_back(prompt_json(v, result, options.allow_rounding));
  return json;
}

bool write_result_trace(const std::string& path, const BisectResult& result, const BisectOptions& options) {
  // Every stage of a trace has the same rows, so a trace has one of the two.
  const bool residuals = std::any_of(result.prompts.begin(), result.prompts.end(),
                                     [](const auto& v) { return !v.b.residuals.empty(); });
  const bool wide = result.b.arithmetic == "float64";
  TraceRows trace;
  for (const auto& v : result.prompts) {
    if ((!v.error.empty() && !v.undecided) || (residuals ? v.b.residuals.empty() : v.b.steps.empty()))
      continue;
    add_rows(trace, v, residuals, wide);
  }
  if (trace.empty()) return false;
  const BuildInfo& build = build_info();
  trace.write(path, {{"schema", "greta-trace-1"},
                     {"producer", "greta bisect"},
                     {"model_sha256", result.b.sha256},
                     {"device", result.b.device},
                     {"arithmetic", result.b.arithmetic},
                     {"subject", printable(options.b.text)},
                     {"build_commit", build.commit},
                     {"build_dirty", build.dirty ? "true" : "false"}});
  return true;
}

std::string tokens_jsonl(const BisectResult& result) {
  std::string out;
  for (const auto& v : result.prompts)
    for (const char side : {'a', 'b'}) {
      const Examined& run = side == 'a' ? v.a : v.b;
      std::vector<TokenId> all = run.fed;
      if (!run.generated.empty()) all.push_back(run.generated.back());
      for (size_t p = 0; p < all.size(); ++p)
        out += Json{{"prompt", v.prompt.name},
                    {"side", std::string(1, side)},
                    {"position", p},
                    {"id", all[p]},
                    {"piece", std::string(result.model->tokenizer->piece(all[p]))},
                    {"generated", p >= v.prompt.ids.size()}}
                   .dump(-1, ' ', false, Json::error_handler_t::replace) +
               "\n";
    }
  return out;
}

}  // namespace greta
