#include "bisect/recorded.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "backend/cpu/rounding.h"
#include "backend/gpu/gpu_arithmetic.h"
#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "bisect/row_judge.h"
#include "bisect/subject.h"
#include "bisect/wiring.h"
#include "trace/row_hash.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

std::string value_of(const std::map<std::string, std::string>& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

/// How the recorded device rounds, by the trace's own word (arithmetic_text()). A trace without it is taken
/// only where nothing but the precision of its stages can matter: from the reference or another program.
std::string stated_arithmetic(const SafeTensorsFile& file) {
  const std::string device = value_of(file.metadata(), "device");
  std::string stated = value_of(file.metadata(), "arithmetic");
  if (!stated.empty() || (device != "reference" && device != "transformers")) return stated;
  const bool wide = std::any_of(file.tensors().begin(), file.tensors().end(),
                                [](const auto& named) { return named.second.dtype == "F64"; });
  return wide ? "float64" : "float32";
}

std::unique_ptr<Arithmetic> arithmetic_of(const SafeTensorsFile& file, const std::string& path) {
  const std::string stated = stated_arithmetic(file);
  if (stated == "float64") return std::make_unique<PlainArithmetic>(0x1p-53);
  if (stated == "float32") return std::make_unique<PlainArithmetic>(0x1p-24);
  if (stated.starts_with("cpu")) {
    const BackendOptions how = parse_subject(stated, {}).backend;
    return std::make_unique<cpu::CpuArithmetic>(how.weights, how.activations, how.kv_type);
  }
  if (is_gpu(stated)) {
    const BackendOptions how = parse_subject(stated, {}).backend;
    return std::make_unique<gpu::GpuArithmetic>(how.weights, how.kv_type);
  }
  fail(
      "{}: the trace does not say how its device '{}' rounds; expected float64, float32 or "
      "cpu,weights=..,activations=..,kv-type=.. as `arithmetic` in its __metadata__, got '{}'; record it "
      "again with "
      "this build's greta trace",
      path, value_of(file.metadata(), "device"), stated);
}

constexpr const char* kAgain = "record it again with greta trace or tools/trace_hf.py";
constexpr std::string_view kIntegers[] = {"token_ids", "sequence_offsets", "sequence", "positions"};

std::string shape_text(const SafeTensor& t) {
  return fmt::format("{} [{}]", t.dtype, fmt::join(t.shape, ", "));
}

/// 0, 1, 2, 5 as "0-2, 5".
std::string ranges_text(const std::vector<int64_t>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
    if (last > i) text += fmt::format("-{}", numbers[last]);
    i = last + 1;
  }
  return text;
}

/// The bits, so that a NaN is itself.
bool same_bits(double a, double b) { return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b); }

}  // namespace

struct RecordedRun::Impl {
  SafeTensorsFile file;
  std::string path;
  ExamineOptions options;
  Plan truth;
  std::unique_ptr<Arithmetic> arithmetic;
  Sampling sampling;
  std::unique_ptr<Judge> judge;
  std::vector<Prompt> prompts;
  std::vector<std::vector<TokenId>> tokens;  ///< of each sequence, generated ones too
  std::vector<std::vector<TokenId>> generated;
  std::vector<int32_t> sequence, position;  ///< of each row

  explicit Impl(const std::string& p) : file(p), path(p) {}
  std::vector<int32_t> integers(const std::string& name) const;
  std::vector<TokenId> ids_of(const nlohmann::json& list) const;
  void read_tokens();
  void read_generated();
  void read_rows();
  void check_stages() const;
  void check_experts(const std::string& name) const;
  void check_choices(const Examined& result) const;
  std::vector<int64_t> rows_of(int32_t wanted) const;

  /// One sequence of the trace: its rows in the file, and who they are.
  struct Sequence {
    size_t number = 0;
    std::vector<int64_t> rows;
    std::vector<RowName> names;
    bool whole = false;  ///< every position, in order: attention can be judged
  };
  std::vector<size_t> sequences_with(const Prompt& prompt) const;
  Sequence sequence_of(const Prompt& prompt) const;
  std::optional<StoredRows> load(const Sequence& s, int layer, Stage stage) const;
  UnitRows load_unit(const Sequence& s, int unit, const std::optional<StoredRows>& before) const;
  void look_at(const Sequence& s, const UnitRows& data, const std::optional<StoredRows>& before,
               Examined& result) const;
  void take_logits(const Sequence& s, size_t prompt_tokens, const StoredRows& logits, Examined& result) const;
  void note_unjudged(const Sequence& s, Examined& result) const;
};

/// Whole numbers from 0 to 2^31 - 1.
std::vector<int32_t> RecordedRun::Impl::integers(const std::string& name) const {
  const SafeTensor* t = file.find(name);
  if (t == nullptr) fail("{}: expected a tensor {}, got none; {}", path, name, kAgain);
  if ((t->dtype != "I32" && t->dtype != "I64") || t->shape.size() != 1)
    fail("{}: tensor {}: expected I32 or I64 of one dimension, got {}; {}", path, name, shape_text(*t),
         kAgain);
  std::vector<int32_t> out;
  for (const double value : file.numbers(name)) {
    if (value < 0 || value > double{std::numeric_limits<int32_t>::max()})
      fail("{}: tensor {}: expected numbers from 0 to {}, got {} at {}; {}", path, name,
           std::numeric_limits<int32_t>::max(), value, out.size(), kAgain);
    out.push_back(static_cast<int32_t>(value));
  }
  return out;
}

void RecordedRun::Impl::read_tokens() {
  const auto ids = integers("token_ids");
  const auto offsets = integers("sequence_offsets");
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] >= truth.hp.vocab)
      fail("{}: tensor token_ids: expected ids from 0 to {}, the model's vocabulary, got {} at {}; {}", path,
           truth.hp.vocab - 1, ids[i], i, kAgain);
  const bool spans =
      offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == static_cast<int32_t>(ids.size()) &&
      std::adjacent_find(offsets.begin(), offsets.end(), std::greater_equal()) == offsets.end();
  if (!spans)
    fail(
        "{}: tensor sequence_offsets: expected ascending numbers from 0 to {}, the length of token_ids, got "
        "[{}]; {}",
        path, ids.size(), fmt::join(offsets, ", "), kAgain);
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    tokens.emplace_back(ids.begin() + offsets[s], ids.begin() + offsets[s + 1]);
}

std::vector<TokenId> RecordedRun::Impl::ids_of(const nlohmann::json& list) const {
  std::vector<TokenId> ids;
  for (const auto& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(truth.hp.vocab))
      fail(
          "{}: generated_ids of its __metadata__: expected ids from 0 to {}, the model's vocabulary, got {}; "
          "{}",
          path, truth.hp.vocab - 1, id.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
          kAgain);
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

/// The prompts are what is left of the fed tokens without those that were generated and fed back.
void RecordedRun::Impl::read_generated() {
  generated.resize(tokens.size());
  if (const auto text = value_of(file.metadata(), "generated_ids"); !text.empty()) {
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const bool nested = json.is_array() && !json.empty() && json.front().is_array();
    const bool lists = json.is_array() && std::all_of(json.begin(), json.end(),
                                                      [&](const auto& x) { return x.is_array() == nested; });
    const bool none = lists && json.empty();
    if (!none && (!lists || (nested ? json.size() : size_t{1}) != tokens.size()))
      fail(
          "{}: generated_ids of its __metadata__: expected a list of ids for each of {} sequences, got '{}'; "
          "{}",
          path, tokens.size(), printable(text, 80), kAgain);
    for (size_t s = 0; s < tokens.size() && !none; ++s) generated[s] = ids_of(nested ? json[s] : json);
  }
  for (size_t s = 0; s < tokens.size(); ++s) {
    const auto& all = tokens[s];
    const size_t fed_back = generated[s].empty() ? 0 : generated[s].size() - 1;
    if (fed_back >= all.size() ||
        !std::equal(generated[s].begin(), generated[s].begin() + static_cast<std::ptrdiff_t>(fed_back),
                    all.end() - static_cast<std::ptrdiff_t>(fed_back)))
      fail(
          "{}: sequence {} has {} tokens: expected a prompt and then the {} generated ones that were fed "
          "back; {}",
          path, s, all.size(), fed_back, kAgain);
    prompts.push_back({tokens.size() == 1 ? "trace" : fmt::format("trace{}", s),
                       "",
                       {all.begin(), all.end() - static_cast<std::ptrdiff_t>(fed_back)},
                       static_cast<int32_t>(s)});
  }
}

void RecordedRun::Impl::read_rows() {
  sequence = integers("sequence");
  position = integers("positions");
  if (sequence.size() != position.size())
    fail("{}: tensors sequence and positions: expected as many numbers in both, got {} and {}; {}", path,
         sequence.size(), position.size(), kAgain);
  for (size_t r = 0; r < sequence.size(); ++r) {
    const auto s = static_cast<size_t>(sequence[r]);
    if (s >= tokens.size() || static_cast<size_t>(position[r]) >= tokens[s].size())
      fail("{}: row {}: expected a position of one of {} sequences, got position {} of sequence {}{}; {}",
           path, r, tokens.size(), position[r], s,
           s < tokens.size() ? fmt::format(" of {} tokens", tokens[s].size()) : "", kAgain);
    if (r > 0 && std::pair(sequence[r - 1], position[r - 1]) >= std::pair(sequence[r], position[r]))
      fail(
          "{}: tensors sequence and positions: expected rows sorted by (sequence, position), each once, got "
          "({}, {}) before ({}, {}) at {}; {}",
          path, sequence[r - 1], position[r - 1], sequence[r], position[r], r, kAgain);
  }
}

/// Chosen experts are numbers of matrices.
void RecordedRun::Impl::check_experts(const std::string& name) const {
  for (const double x : file.numbers(name))
    if (!(x >= 0.0 && x < static_cast<double>(truth.hp.experts) && x == std::floor(x)))
      fail("{}: tensor {}: expected whole numbers from 0 to {}, the model's experts, got {}; {}", path, name,
           truth.hp.experts - 1, x, kAgain);
}

/// Every other tensor is a stage of this model, in numbers that are read, of the rows named above.
void RecordedRun::Impl::check_stages() const {
  std::map<std::string, Stage> stages;
  const Wiring wiring(truth.hp);
  for (int unit = 0; unit <= truth.hp.layers + 1; ++unit)
    for (const StageRule& rule : wiring.rules_of_unit(unit))
      stages.emplace(trace_name(layer_of_unit(unit, truth.hp.layers), rule.stage), rule.stage);
  bool any = false;
  for (const auto& [name, t] : file.tensors()) {
    if (std::find(std::begin(kIntegers), std::end(kIntegers), name) != std::end(kIntegers)) continue;
    const auto stage = stages.find(name);
    if (stage == stages.end())
      fail(
          "{}: tensor {}: expected the stages of this model of {} layers alone (docs/stages.md), got "
          "another; "
          "leave it out",
          path, name, truth.hp.layers);
    const std::vector<int64_t> shape = {static_cast<int64_t>(sequence.size()),
                                        width_of(truth.hp, stage->second)};
    if ((t.dtype != "F32" && t.dtype != "F64") || t.shape != shape)
      fail("{}: tensor {}: expected F32 or F64 [{}], rows and the stage's width, got {}; {}", path, name,
           fmt::join(shape, ", "), shape_text(t), kAgain);
    if (stage->second == Stage::experts) check_experts(name);
    any = true;
  }
  if (!any || sequence.empty())
    fail(
        "{}: the trace holds no stage: expected tensors such as layers.0.attn_out with a row for each of "
        "positions; {}",
        path, kAgain);
}

std::vector<int64_t> RecordedRun::Impl::rows_of(int32_t wanted) const {
  std::vector<int64_t> rows;
  for (size_t r = 0; r < sequence.size(); ++r)
    if (sequence[r] == wanted) rows.push_back(static_cast<int64_t>(r));
  return rows;
}

RecordedRun::RecordedRun(const std::string& path, const ModelFile& truth, const std::string& sha256,
                         const ExamineOptions& options)
    : impl_(std::make_unique<Impl>(path)) {
  Impl& i = *impl_;
  i.options = options;
  const auto& metadata = i.file.metadata();
  const std::string sha = value_of(metadata, "model_sha256");
  if (sha.empty())
    fail("{}: the trace does not say which model it is of; expected model_sha256 in its __metadata__", path);
  if (sha != sha256)
    fail("{}: a trace of another model: expected SHA-256 {}, got {}; give the file that it was recorded from",
         path, sha256, sha);
  const std::string commit = value_of(metadata, "build_commit");
  if (!commit.empty() && commit != build_info().commit)
    log::warning("{} was recorded by another build: {} there, {} here", path, commit, build_info().commit);
  i.truth = truth_plan(truth, options.context);
  i.arithmetic = arithmetic_of(i.file, path);
  i.read_tokens();
  i.read_generated();
  i.read_rows();
  i.check_stages();
  i.sampling = sampling_of(options, i.truth, static_cast<int64_t>(i.position.size()));
  i.judge = std::make_unique<Judge>(i.truth, *i.arithmetic, i.sampling, options.threads);
}
RecordedRun::~RecordedRun() = default;

std::string RecordedRun::description() const {
  const auto& m = impl_->file.metadata();
  return fmt::format(
      "trace {}: {} by {}{}", impl_->path, value_of(m, "device"), value_of(m, "producer"),
      value_of(m, "build_commit").empty() ? "" : ", build " + value_of(m, "build_commit").substr(0, 12));
}

std::vector<Prompt> RecordedRun::prompts_besides(const std::vector<Prompt>& prompts) const {
  std::vector<Prompt> besides;
  for (size_t s = 0; s < impl_->prompts.size(); ++s) {
    const bool found = std::any_of(prompts.begin(), prompts.end(), [&](const Prompt& p) {
      return impl_->sequences_with(p) == std::vector<size_t>{s};
    });
    if (!found) besides.push_back(impl_->prompts[s]);
  }
  return besides;
}

size_t RecordedRun::generated_by(const Prompt& prompt) const {
  size_t most = 0;
  for (const size_t s : impl_->sequences_with(prompt)) most = std::max(most, impl_->generated[s].size());
  return most;
}

/// By their ids; the one of the prompt's own number alone where it is among them.
std::vector<size_t> RecordedRun::Impl::sequences_with(const Prompt& prompt) const {
  std::vector<size_t> found;
  for (size_t s = 0; s < prompts.size(); ++s) {
    if (prompts[s].ids != prompt.ids) continue;
    if (prompt.sequence && static_cast<size_t>(*prompt.sequence) == s) return {s};
    found.push_back(s);
  }
  return found;
}

RecordedRun::Impl::Sequence RecordedRun::Impl::sequence_of(const Prompt& prompt) const {
  const std::vector<size_t> found = sequences_with(prompt);
  if (found.size() > 1)
    fail(
        "{}: sequences {} of the trace all have the prompt {}: expected one, since each is a run of its own; "
        "leave --prompts out and every sequence of the trace is judged",
        path, fmt::join(found, ", "), prompt.name);
  if (found.empty()) {
    const auto& ids = prompts.front().ids;
    const auto [x, y] = std::mismatch(ids.begin(), ids.end(), prompt.ids.begin(), prompt.ids.end());
    fail(
        "{}: a trace of other tokens: its prompts have {} and more tokens, the prompt {} has {}; the first "
        "id that differs is at position {}",
        path, ids.size(), prompt.name, prompt.ids.size(), x - ids.begin());
  }
  Sequence s;
  s.number = found.front();
  const auto& fed = tokens[s.number];
  s.rows = rows_of(static_cast<int32_t>(s.number));
  s.whole = s.rows.size() == fed.size();
  for (const int64_t r : s.rows) {
    const int32_t p = position[static_cast<size_t>(r)];
    s.whole = s.whole && p == static_cast<int32_t>(s.names.size());
    s.names.push_back({0, p, fed[static_cast<size_t>(p)]});
  }
  return s;
}

std::optional<StoredRows> RecordedRun::Impl::load(const Sequence& s, int layer, Stage stage) const {
  const SafeTensor* t = file.find(trace_name(layer, stage));
  if (t == nullptr) return std::nullopt;
  const bool wide = t->dtype == "F64";
  const auto width = t->shape[1];
  StoredRows out(width, wide);
  std::vector<double> row(static_cast<size_t>(width));
  for (const int64_t r : s.rows) {
    for (int64_t k = 0; k < width; ++k) {
      const size_t at = static_cast<size_t>(r * width + k);
      if (wide) {
        std::memcpy(&row[static_cast<size_t>(k)], t->bytes.data() + at * 8, 8);
      } else {
        float value;
        std::memcpy(&value, t->bytes.data() + at * 4, 4);
        row[static_cast<size_t>(k)] = value;
      }
    }
    out.append(row.data());
  }
  return out;
}

/// `before`: residual_post_mlp of the unit before, which the head reads.
UnitRows RecordedRun::Impl::load_unit(const Sequence& s, int unit,
                                      const std::optional<StoredRows>& before) const {
  UnitRows data;
  data.unit = unit;
  const Wiring wiring(truth.hp);
  for (const StageRule& rule : wiring.rules_of_unit(unit))
    if (auto loaded = load(s, layer_of_unit(unit, truth.hp.layers), rule.stage))
      data.stages.emplace(rule.stage, std::move(*loaded));
  if (unit > truth.hp.layers && before) data.stages.insert_or_assign(Stage::residual_post_mlp, *before);
  return data;
}

/// Hashes, wires, and what is not finite.
void RecordedRun::Impl::look_at(const Sequence& s, const UnitRows& data,
                                const std::optional<StoredRows>& before, Examined& result) const {
  const int layer = layer_of_unit(data.unit, truth.hp.layers);
  for (const auto& [stage, stored] : data.stages) {
    if (data.unit > truth.hp.layers && stage == Stage::residual_post_mlp) continue;
    for (size_t r = 0; r < s.names.size(); ++r) {
      const auto index = static_cast<int64_t>(r);
      const std::vector<double> row = values_of(stored, index);
      const Place at{0, s.names[r].position, layer, stage};
      result.hashes.set(at, row_hash(row, stored.wide()));
      const auto bad = std::find_if(row.begin(), row.end(), [](double x) { return !std::isfinite(x); });
      if (bad != row.end() && (!result.nonfinite || at < result.nonfinite->place))
        result.nonfinite = RunRecorder::NonFinite{at, bad - row.begin(), *bad};
      if (stage != Stage::residual_pre_attn || !before) continue;
      const std::vector<double> from = values_of(*before, index);
      const auto other = std::mismatch(row.begin(), row.end(), from.begin(), same_bits);
      if (other.first != row.end())
        result.add({at, Finding::Check::wire, other.first - row.begin(), *other.first, *other.second, 0.0,
                    std::numeric_limits<double>::infinity()});
    }
  }
}

/// The logits hash, and the rows that chose a token.
void RecordedRun::Impl::take_logits(const Sequence& s, size_t prompt_tokens, const StoredRows& logits,
                                    Examined& result) const {
  for (const RowName& name : s.names)
    result.traced_hash +=
        positioned(*result.hashes.find({0, name.position, kNoLayer, Stage::logits}), name.position);
  for (size_t step = 0; step < result.generated.size(); ++step) {
    const auto at = static_cast<int64_t>(prompt_tokens + step) - 1;
    const auto found =
        std::find_if(s.names.begin(), s.names.end(), [&](const RowName& n) { return n.position == at; });
    if (found == s.names.end()) continue;
    result.steps.push_back({at, result.generated[step], values_of(logits, found - s.names.begin())});
  }
}

/// Rows of operators that nobody has judged: positions without rows, then stages that some row lacks, or that
/// stand there without what they were made from, by the layers where that is so.
void RecordedRun::Impl::note_unjudged(const Sequence& s, Examined& result) const {
  const Wiring wiring(truth.hp);
  std::map<Stage, std::vector<int64_t>> lacking;
  for (int unit = 0; unit <= truth.hp.layers + 1; ++unit)
    for (const StageRule& rule : wiring.rules_of_unit(unit)) {
      if (rule.op == Op::wire) continue;  // its ends are operators' or are read by one
      const int layer = layer_of_unit(unit, truth.hp.layers);
      result.rows_expected += result.fed.size();
      const bool all = std::all_of(s.names.begin(), s.names.end(), [&](const RowName& name) {
        return result.judged.find({0, name.position, layer, rule.stage}) != nullptr;
      });
      if (!all) lacking[rule.stage].push_back(layer);
    }
  std::vector<int64_t> absent;
  for (int64_t p = 0; p < static_cast<int64_t>(result.fed.size()); ++p)
    if (!std::binary_search(result.positions.begin(), result.positions.end(), p)) absent.push_back(p);
  std::map<std::vector<int64_t>, std::vector<std::string_view>> by_layers;
  for (const auto& [stage, layers] : lacking) by_layers[layers].push_back(name_of(stage));
  std::vector<std::string> parts;
  if (!absent.empty()) parts.push_back("every stage of positions " + ranges_text(absent));
  for (const auto& [layers, stages] : by_layers) {
    const bool every = static_cast<int64_t>(layers.size()) == truth.hp.layers;
    std::string where;
    if (layers.front() != kNoLayer)
      where = every ? " of every layer"
                    : fmt::format(" of layer{} {}", layers.size() == 1 ? "" : "s", ranges_text(layers));
    parts.push_back(fmt::format("{}{}", fmt::join(stages, ", "), where));
  }
  result.lacks = fmt::format("{}", fmt::join(parts, "; "));
}

void RecordedRun::Impl::check_choices(const Examined& result) const {
  for (size_t step = 0; step < result.steps.size(); ++step) {
    const StepLogits& row = result.steps[step];
    const auto best = greedy(row.logits);  // of rows with a NaN the verdict speaks
    if (!best || row.logits[static_cast<size_t>(row.chosen)] == row.logits[static_cast<size_t>(*best)])
      continue;
    fail(
        "{}: generated_ids has {} after position {}, whose row of logits is largest at {} ({} there, {} at "
        "{}): expected greedy tokens of this run; record it again without sampling",
        path, row.chosen, row.token, *best, row.logits[static_cast<size_t>(*best)],
        row.logits[static_cast<size_t>(row.chosen)], row.chosen);
  }
}

Examined RecordedRun::examine(const Prompt& prompt) {
  Impl& i = *impl_;
  const auto start = std::chrono::steady_clock::now();
  const HParams& hp = i.truth.hp;
  const Impl::Sequence s = i.sequence_of(prompt);
  Examined result;
  result.description = description();
  result.sampling = i.sampling;
  result.judged = Grid<Cell>(hp.layers);
  result.hashes = Grid<uint64_t>(hp.layers);
  result.fed = i.tokens[s.number];
  result.number = static_cast<int32_t>(s.number);
  result.generated = i.generated[s.number];
  for (const RowName& name : s.names) result.positions.push_back(name.position);
  std::optional<StoredRows> before = i.load(s, kNoLayer, Stage::embed_out);
  for (int unit = 0; unit <= hp.layers + 1; ++unit) {
    const int layer = layer_of_unit(unit, hp.layers);
    const UnitRows data = i.load_unit(s, unit, before);
    LayerHistory history;
    if (data.stages.contains(Stage::k_post_rope) && data.stages.contains(Stage::v) && s.whole)
      history[0] = {data.stages.at(Stage::k_post_rope), data.stages.at(Stage::v)};
    i.look_at(s, data, before, result);
    i.judge->judge(data, s.names, history, [&](const Judgement& j) {
      result.add(Place{0, s.names[static_cast<size_t>(j.row)].position, layer, j.stage}, j);
    });
    if (data.stages.contains(Stage::residual_post_mlp) && unit <= hp.layers) {
      before = data.stages.at(Stage::residual_post_mlp);
      if (i.options.layers.contains(layer)) result.residuals.emplace(layer, *before);
    } else if (unit >= 1) {
      before.reset();
    }
    if (unit > hp.layers && data.stages.contains(Stage::logits))
      i.take_logits(s, prompt.ids.size(), data.stages.at(Stage::logits), result);
  }
  if (result.findings.empty()) i.check_choices(result);  // else a wrong value may have moved the choice
  if (result.rows_judged == 0)
    fail("{}: nothing in the trace can be judged: expected stages together with what they read", i.path);
  i.note_unjudged(s, result);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

std::optional<PositionRows> RecordedRun::rows_at(const Prompt& prompt, int64_t token) const {
  const Impl& i = *impl_;
  const int64_t layers = i.truth.hp.layers;
  const Impl::Sequence s = i.sequence_of(prompt);
  const auto row =
      std::find_if(s.names.begin(), s.names.end(), [&](const RowName& n) { return n.position == token; });
  if (row == s.names.end()) return std::nullopt;
  PositionRows out;
  out.history.resize(static_cast<size_t>(layers));
  std::optional<StoredRows> before;
  for (int unit = 0; unit <= layers + 1; ++unit) {
    const UnitRows all = i.load_unit(s, unit, before);
    UnitRows& one = out.units.emplace_back();
    one.unit = unit;
    for (const auto& [stage, rows] : all.stages) {
      StoredRows& kept = one.stages.emplace(stage, StoredRows(rows.width(), rows.wide())).first->second;
      kept.append(values_of(rows, row - s.names.begin()).data());
    }
    const auto stored = [&](Stage stage) { return all.stages.find(stage); };
    if (s.whole && stored(Stage::k_post_rope) != all.stages.end() && stored(Stage::v) != all.stages.end())
      out.history[static_cast<size_t>(unit - 1)][0] = {stored(Stage::k_post_rope)->second,
                                                       stored(Stage::v)->second};
    if (unit >= 1) before.reset();
    if (const auto last = stored(Stage::residual_post_mlp); unit <= layers && last != all.stages.end())
      before = last->second;
  }
  return out;
}

std::string RecordedRun::device() const { return value_of(impl_->file.metadata(), "device"); }
std::string RecordedRun::arithmetic() const { return stated_arithmetic(impl_->file); }

}  // namespace greta
