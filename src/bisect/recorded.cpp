#include "bisect/recorded.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "backend/cpu/rounding.h"
#include "base/build_info.h"
#include "base/error.h"
#include "base/log.h"
#include "bisect/wiring.h"
#include "trace/row_hash.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

std::string value_of(const std::map<std::string, std::string>& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

bool says(const std::string& options, const std::string& option) {
  return options.find(option) != std::string::npos;
}

/// How the recorded device rounds, from what the trace says of itself.
std::unique_ptr<Arithmetic> arithmetic_of(const std::map<std::string, std::string>& metadata,
                                          const std::string& path) {
  const std::string device = value_of(metadata, "device");
  const std::string stated = value_of(metadata, "arithmetic");
  const std::string options = value_of(metadata, "options");
  if (device == "reference" || stated == "float64") return std::make_unique<PlainArithmetic>(0x1p-53);
  if (stated == "float32") return std::make_unique<PlainArithmetic>(0x1p-24);
  if (device == "cpu")
    return std::make_unique<cpu::CpuArithmetic>(
        says(options, "--weights int8")  ? WeightMode::int8
        : says(options, "--weights f32") ? WeightMode::f32
                                         : WeightMode::stored,
        says(options, "--activations 8") ? Activations::bits8 : Activations::bits16,
        says(options, "--kv-type f32")    ? KvType::f32
        : says(options, "--kv-type bf16") ? KvType::bf16
                                          : KvType::f16);
  fail(
      "{}: the trace does not say how its device '{}' rounds; expected device reference or cpu, or "
      "arithmetic float64 or "
      "float32 in its __metadata__",
      path, device);
}

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
  std::vector<int32_t> integers(const std::string& name) const {
    const auto numbers = file.numbers(name);
    return {numbers.begin(), numbers.end()};
  }
  void read_tokens();
  std::vector<int64_t> rows_of(int32_t wanted) const;
};

void RecordedRun::Impl::read_tokens() {
  const auto ids = integers("token_ids");
  const auto offsets = integers("sequence_offsets");
  sequence = integers("sequence");
  position = integers("positions");
  if (offsets.size() < 2 || offsets.front() != 0 || offsets.back() != static_cast<int32_t>(ids.size()))
    fail("{}: sequence_offsets do not span token_ids: expected 0 to {}", path, ids.size());
  std::vector<std::vector<TokenId>> made;
  if (const auto text = value_of(file.metadata(), "generated_ids"); !text.empty()) {
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_array()) fail("{}: generated_ids is no list: '{}'", path, text);
    if (!json.empty() && json.front().is_array()) {
      made = json.get<std::vector<std::vector<TokenId>>>();
    } else {
      made.push_back(json.get<std::vector<TokenId>>());
    }
  }
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    if (offsets[s + 1] < offsets[s]) fail("{}: sequence_offsets run backwards at {}", path, s + 1);
    tokens.emplace_back(ids.begin() + offsets[s], ids.begin() + offsets[s + 1]);
    generated.push_back(s < made.size() ? made[s] : std::vector<TokenId>());
    auto& all = tokens.back();
    const size_t fed_back = generated.back().empty() ? 0 : generated.back().size() - 1;
    if (fed_back >= all.size())
      fail("{}: sequence {} has {} tokens and {} generated ones", path, s, all.size(), fed_back + 1);
    prompts.push_back({offsets.size() == 2 ? "trace" : fmt::format("trace{}", s),
                       "",
                       {all.begin(), all.end() - static_cast<std::ptrdiff_t>(fed_back)}});
  }
}

std::vector<int64_t> RecordedRun::Impl::rows_of(int32_t wanted) const {
  std::vector<int64_t> rows;
  for (size_t r = 0; r < sequence.size(); ++r)
    if (sequence[r] == wanted) rows.push_back(static_cast<int64_t>(r));
  return rows;
}

RecordedRun::RecordedRun(const std::string& path, const ModelFile& truth, const ExamineOptions& options)
    : impl_(std::make_unique<Impl>(path)) {
  Impl& i = *impl_;
  i.options = options;
  const auto& metadata = i.file.metadata();
  const std::string sha = value_of(metadata, "model_sha256");
  if (sha.empty())
    fail("{}: the trace does not say which model it is of; expected model_sha256 in its __metadata__", path);
  if (const auto own = truth.file.sha256(); sha != own)
    fail("{}: a trace of another model: expected SHA-256 {}, got {}; give the file that it was recorded from",
         path, own, sha);
  const std::string commit = value_of(metadata, "build_commit");
  if (!commit.empty() && commit != build_info().commit)
    log::warning("{} was recorded by another build: {} there, {} here", path, commit, build_info().commit);
  i.truth = truth_plan(truth);
  i.arithmetic = arithmetic_of(metadata, path);
  i.read_tokens();
  i.sampling = sampling_of(options, i.truth, static_cast<int64_t>(i.position.size()));
  i.judge = std::make_unique<Judge>(i.truth, *i.arithmetic, i.sampling, options.threads);
  bool any = false;
  for (const auto& [name, tensor] : i.file.tensors()) any = any || tensor.shape.size() == 2;
  if (!any) fail("{}: the trace holds no stage", path);
}
RecordedRun::~RecordedRun() = default;

const std::vector<Prompt>& RecordedRun::prompts() const { return impl_->prompts; }

std::string RecordedRun::description() const {
  const auto& m = impl_->file.metadata();
  return fmt::format(
      "trace {}: {} by {}{}", impl_->path, value_of(m, "device"), value_of(m, "producer"),
      value_of(m, "build_commit").empty() ? "" : ", build " + value_of(m, "build_commit").substr(0, 12));
}

size_t RecordedRun::generated_by(const Prompt& prompt) const {
  for (size_t s = 0; s < impl_->prompts.size(); ++s)
    if (impl_->prompts[s].ids == prompt.ids) return impl_->generated[s].size();
  return 0;
}

Examined RecordedRun::examine(const Prompt& prompt) {
  Impl& i = *impl_;
  const auto start = std::chrono::steady_clock::now();
  const HParams& hp = i.truth.hp;
  size_t s = 0;
  while (s < i.prompts.size() && i.prompts[s].ids != prompt.ids) ++s;
  if (s == i.prompts.size()) {
    const auto& ids = i.prompts.front().ids;
    const auto [x, y] = std::mismatch(ids.begin(), ids.end(), prompt.ids.begin(), prompt.ids.end());
    fail(
        "{}: a trace of other tokens: its prompts have {} and more tokens, the prompt {} has {}; the first "
        "id that differs "
        "is at position {}",
        i.path, ids.size(), prompt.name, prompt.ids.size(), x - ids.begin());
  }
  Examined result;
  result.description = description();
  result.sampling = i.sampling;
  result.judged = Grid<Cell>(hp.layers);
  result.hashes = Grid<uint64_t>(hp.layers);
  result.fed = i.tokens[s];
  result.generated = i.generated[s];
  const auto rows = i.rows_of(static_cast<int32_t>(s));
  std::vector<RowName> names;
  for (const int64_t r : rows) {
    const int32_t p = i.position[static_cast<size_t>(r)];
    if (p < 0 || p >= static_cast<int32_t>(result.fed.size()))
      fail("{}: position {} of a sequence of {} tokens", i.path, p, result.fed.size());
    names.push_back({0, p, result.fed[static_cast<size_t>(p)]});
  }
  bool whole = names.size() == result.fed.size();  // every position, in order: attention can be judged
  for (size_t r = 0; whole && r < names.size(); ++r) whole = names[r].position == static_cast<int32_t>(r);
  const auto load = [&](int layer, Stage stage) -> std::optional<StoredRows> {
    const SafeTensor* t = i.file.find(trace_name(layer, stage));
    if (t == nullptr) return std::nullopt;
    const bool wide = t->dtype == "F64";
    const auto width = t->shape[1];
    StoredRows out(width, wide);
    std::vector<double> row(static_cast<size_t>(width));
    for (const int64_t r : rows) {
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
  };
  std::optional<StoredRows> before = load(kNoLayer, Stage::embed_out);
  const Wiring wiring(hp);
  for (int unit = 0; unit <= hp.layers + 1; ++unit) {
    const int layer = layer_of_unit(unit, hp.layers);
    UnitRows data;
    data.unit = unit;
    for (const StageRule& rule : wiring.rules_of_unit(unit))
      if (auto loaded = load(layer, rule.stage)) data.stages.emplace(rule.stage, std::move(*loaded));
    if (unit > hp.layers && before) data.stages.insert_or_assign(Stage::residual_post_mlp, *before);
    LayerHistory history;
    if (data.stages.contains(Stage::k_post_rope) && data.stages.contains(Stage::v) && whole)
      history[0] = {data.stages.at(Stage::k_post_rope), data.stages.at(Stage::v)};
    // Hashes, wires, and what is not finite.
    for (const auto& [stage, stored] : data.stages) {
      if (unit > hp.layers && stage == Stage::residual_post_mlp) continue;
      for (size_t r = 0; r < names.size(); ++r) {
        std::vector<double> row(static_cast<size_t>(stored.width()));
        stored.get(static_cast<int64_t>(r), row.data());
        const Place at{0, names[r].position, layer, stage};
        const std::vector<float> narrow(row.begin(), row.end());
        result.hashes.set(at, stored.wide() ? row_hash(std::span<const double>(row))
                                            : row_hash(std::span<const float>(narrow)));
        for (size_t k = 0; k < row.size(); ++k) {
          if (!std::isfinite(row[k]) && (!result.nonfinite || at < result.nonfinite->place))
            result.nonfinite = RunRecorder::NonFinite{at, static_cast<int64_t>(k), row[k]};
          if (stage == Stage::residual_pre_attn && before &&
              row[k] != before->at(static_cast<int64_t>(r), static_cast<int64_t>(k))) {
            result.add({at, Finding::Check::wire, static_cast<int64_t>(k), row[k],
                        before->at(static_cast<int64_t>(r), static_cast<int64_t>(k)), 0.0,
                        std::numeric_limits<double>::infinity()});
            break;
          }
        }
      }
    }
    i.judge->judge(data, names, history, [&](const Judgement& j) {
      result.add(Place{0, names[static_cast<size_t>(j.row)].position, layer, j.stage}, j);
    });
    if (data.stages.contains(Stage::residual_post_mlp) && unit <= hp.layers) {
      before = data.stages.at(Stage::residual_post_mlp);
      if (i.options.layers.contains(layer)) result.residuals.emplace(layer, *before);
    } else if (unit >= 1) {
      before.reset();
    }
    if (unit > hp.layers && data.stages.contains(Stage::logits)) {
      const StoredRows& logits = data.stages.at(Stage::logits);
      uint64_t hash = 0;
      for (size_t r = 0; r < names.size(); ++r)
        hash += positioned(*result.hashes.find({0, names[r].position, kNoLayer, Stage::logits}),
                           names[r].position);
      result.traced_hash = hash;
      for (size_t step = 0; step < result.generated.size(); ++step) {
        const auto at = static_cast<int64_t>(prompt.ids.size() + step) - 1;
        const auto found =
            std::find_if(names.begin(), names.end(), [&](const RowName& n) { return n.position == at; });
        if (found == names.end()) continue;
        std::vector<double> row(static_cast<size_t>(logits.width()));
        logits.get(found - names.begin(), row.data());
        result.steps.push_back({at, result.generated[step], std::move(row)});
      }
    }
  }
  if (result.rows_judged == 0)
    fail("{}: nothing in the trace can be judged: expected stages together with what they read", i.path);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace greta
