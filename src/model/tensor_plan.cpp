#include "model/tensor_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace greta {

namespace {

std::string count_of(int64_t n, std::string_view thing) {
  return fmt::format("{} {}{}", n, thing, n == 1 ? "" : "s");
}

/// "0-3,7" of ascending numbers.
std::string ranges(const std::vector<int64_t>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    if (!text.empty()) text += ',';
    text += end - i == 1 ? fmt::format("{}", layers[i]) : fmt::format("{}-{}", layers[i], layers[end - 1]);
    i = end;
  }
  return text;
}

/// A layer's tensor name in two parts; nothing for other names.
struct LayerName {
  int64_t layer;
  std::string_view suffix;
};
std::optional<LayerName> parse_layer_name(std::string_view name) {
  if (!name.starts_with("blk.")) return std::nullopt;
  const size_t dot = name.find('.', 4);
  if (dot == std::string_view::npos || dot == 4 || dot > 4 + 9) return std::nullopt;
  const auto digits = name.substr(4, dot - 4);
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
  if (error != std::errc() || end != digits.data() + digits.size() || layer < 0) return std::nullopt;
  if (digits.size() > 1 && digits[0] == '0') return std::nullopt;  // the format has no leading zeros
  return LayerName{layer, name.substr(dot + 1)};
}

/// Problems of layers' tensors, joined where only the layer differs. In order of their first mention.
class Findings {
 public:
  void add(int64_t layer, std::string_view suffix, Problem problem) {
    if (layer < 0) {
      found_.push_back({{}, "", std::move(problem)});
      return;
    }
    const auto key = std::make_tuple(std::string(suffix), problem.expected, problem.got, problem.remedy);
    const auto [place, is_new] = index_.emplace(key, found_.size());
    if (is_new) found_.push_back({{}, std::string(suffix), std::move(problem)});
    found_[place->second].layers.push_back(layer);
  }

  void report(std::vector<Problem>& problems) {
    for (auto& [layers, suffix, problem] : found_) {
      if (!layers.empty()) {
        std::sort(layers.begin(), layers.end());
        problem.where = fmt::format("blk.{}.{}", ranges(layers), suffix);
      }
      problems.push_back(std::move(problem));
    }
  }

 private:
  struct Found {
    std::vector<int64_t> layers;
    std::string suffix;
    Problem problem;
  };
  std::vector<Found> found_;
  std::map<std::tuple<std::string, std::string, std::string, std::string>, size_t> index_;
};

class TensorPlanner {
 public:
  TensorPlanner(const gguf::File& file, const Architecture& architecture, const Backend& backend, Plan& plan)
      : file_(file), architecture_(architecture), backend_(backend), plan_(plan) {
    // 0 is a valid number of experts: only the problem beside it tells a broken one.
    const std::string key = fmt::format("{}.expert_count", arch());
    for (const Problem& problem : plan.problems)
      if (plan.hp.experts == 0 && problem.where == key) experts_known_ = false;
  }

  void run() {
    if (file_.tensors().empty()) {
      plan_.problems.push_back({"tensors", "the weights of a model", "a file without tensors",
                                "it holds a vocabulary alone: tokenize and inspect work on it"});
      return;
    }
    // A file's layers one after the other: loading walks the file from front to back.
    for (const auto& rule : architecture_.tensors) {
      if (sought(rule) && !rule.per_layer()) place(rule, -1);
    }
    find_absent_layers();
    for (int64_t layer = 0; layer < plan_.hp.layers; ++layer) {
      for (const auto& rule : architecture_.tensors) {
        if (sought(rule) && rule.per_layer()) place(rule, layer);
      }
    }
    for (const PlannedTensor& planned : plan_.tensors) plan_.hp.roles.set(static_cast<size_t>(planned.role));
    findings_.report(plan_.problems);
    report_unused();
  }

 private:
  std::string_view arch() const { return architecture_.name; }

  /// With an unknown number of experts neither a dense model's tensors are missed nor a mixture's.
  bool sought(const TensorRule& rule) const {
    return rule.in(plan_.hp) && (experts_known_ || rule.when == When::always);
  }

  /// Layers of which nothing is there are one problem, not one a tensor.
  void find_absent_layers() {
    std::set<int64_t> present;
    for (const auto& tensor : file_.tensors()) {
      if (const auto name = parse_layer_name(tensor.name)) present.insert(name->layer);
    }
    std::vector<int64_t> absent;
    for (int64_t layer = 0; layer < plan_.hp.layers; ++layer) {
      if (!present.contains(layer)) absent.push_back(layer);
    }
    if (absent.empty()) return;
    absent_.insert(absent.begin(), absent.end());
    const auto required =
        std::count_if(architecture_.tensors.begin(), architecture_.tensors.end(),
                      [&](const auto& r) { return sought(r) && r.per_layer() && r.need == Need::required; });
    plan_.problems.push_back(
        {fmt::format("blk.{}.*", ranges(absent)),
         fmt::format("{} tensors ({} in each layer), as {}.block_count says {}",
                     absent.size() == 1 ? std::string("1 layer's") : fmt::format("{} layers'", absent.size()),
                     required, arch(), plan_.hp.layers),
         fmt::format("none of them: the file holds {}",
                     present.empty() ? std::string("no layer")
                                     : "layer" + std::string(present.size() == 1 ? " " : "s ") +
                                           ranges({present.begin(), present.end()})),
         "the file is incomplete, or its metadata is another model's"});
  }

  void place(const TensorRule& rule, int64_t layer) {
    const auto name = rule.name(layer);
    const auto* tensor = file_.find_tensor(name);
    if (tensor == nullptr) {
      absent(rule, layer, name);
      return;
    }
    used_.insert(tensor->name);
    take(rule, layer, name, *tensor);
  }

  void absent(const TensorRule& rule, int64_t layer, const std::string& name) {
    if (absent_.contains(layer)) return;
    if (rule.need == Need::else_embedding) {
      const auto* embedding = file_.find_tensor("token_embd.weight");
      if (embedding != nullptr) take(rule, layer, embedding->name + " (as the output head)", *embedding);
      return;  // a missing embedding has its own line
    }
    if (rule.need == Need::optional) {
      if (const auto reason = reason_for(rule))
        findings_.add(layer, rule.suffix(),
                      {name, fmt::format("this tensor, as {}", *reason), "no such tensor",
                       "a part of the model is missing"});
      return;
    }
    const auto shape = expected_shape(rule);
    findings_.add(layer, rule.suffix(),
                  {name, shape ? shape->text : std::string("a tensor of this name"), "no such tensor",
                   "the file is incomplete"});
  }

  /// Why an optional tensor has to be there.
  std::optional<std::string> reason_for(const TensorRule& rule) {
    if (!rule.per_layer()) return std::nullopt;
    if (first_holder(rule)) return "other layers have it";
    for (const TensorRule& other : architecture_.tensors) {
      if (rule.set.empty() || other.set != rule.set) continue;
      if (const auto holder = first_holder(other)) return other.name(*holder) + " is there";
    }
    return std::nullopt;
  }

  /// The first layer that has the rule's tensor.
  std::optional<int64_t> first_holder(const TensorRule& rule) {
    const auto [place, is_new] = holders_.emplace(std::string(rule.suffix()), std::nullopt);
    for (int64_t layer = 0; is_new && !place->second && layer < plan_.hp.layers; ++layer)
      if (file_.find_tensor(rule.name(layer)) != nullptr) place->second = layer;
    return place->second;
  }

  struct Shape {
    std::vector<uint64_t> dims;
    std::string text;
  };
  std::optional<Shape> expected_shape(const TensorRule& rule) const {
    const auto cols = value_of(rule.cols, plan_.hp);
    const auto rows = value_of(rule.rows, plan_.hp);
    if (!cols || !rows) return std::nullopt;
    if (rule.rows == Dim::one) {
      return Shape{{static_cast<uint64_t>(*cols)}, fmt::format("[{}] ({})", *cols, name_of(rule.cols))};
    }
    int64_t all = *rows;
    std::string names(name_of(rule.rows));
    for (const FusedRows& more : rule.fused) {
      const auto count = value_of(more.rows, plan_.hp);
      if (!count) return std::nullopt;
      all += *count;
      names += fmt::format(" + {}", name_of(more.rows));
    }
    const auto c = static_cast<uint64_t>(*cols);
    const auto r = static_cast<uint64_t>(all);
    if (rule.use == WeightUse::experts)
      return Shape{
          {c, r, static_cast<uint64_t>(plan_.hp.experts)},
          fmt::format("[{}, {}, {}] ({}, {}, experts)", c, r, plan_.hp.experts, name_of(rule.cols), names)};
    return Shape{{c, r}, fmt::format("[{}, {}] ({}, {})", c, r, name_of(rule.cols), names)};
  }

  static size_t rank_of(const TensorRule& rule) {
    if (rule.rows == Dim::one) return 1;
    return rule.use == WeightUse::experts ? 3 : 2;
  }

  void take(const TensorRule& rule, int64_t layer, const std::string& name, const gguf::Tensor& tensor) {
    auto dims = tensor.shape;
    const size_t rank = rank_of(rule);
    while (dims.size() > rank && dims.back() == 1) dims.pop_back();
    const auto shape = expected_shape(rule);
    if (dims.size() != rank || (shape && dims != shape->dims)) {
      findings_.add(layer, rule.suffix(),
                    {name, shape ? shape->text : fmt::format("{} dimension{}", rank, rank == 1 ? "" : "s"),
                     tensor.shape_text(), ""});
      return;
    }
    if (!rule.role) return;
    const auto [rows, cols, experts] = matrix_shape(tensor, rule.use);
    if (const auto reason = backend_.refuses(rule.use, tensor.type, rows / experts, cols)) {
      findings_.add(layer, rule.suffix(),
                    {name, fmt::format("a type that {} can use here", backend_.name()),
                     fmt::format("{} {}", quant::traits(tensor.type).name, tensor.shape_text()), *reason});
      return;
    }
    if (rule.fused.empty()) {
      plan_.tensors.push_back({*rule.role, layer, rule.use, &tensor, 0, rows});
      return;
    }
    if (!shape) return;  // without its dimensions nobody knows where the parts begin
    int64_t first = 0;
    const auto part = [&](Role role, Dim dim) {
      const int64_t count = value_of(dim, plan_.hp).value_or(0);
      plan_.tensors.push_back({role, layer, rule.use, &tensor, first, count});
      first += count;
    };
    part(*rule.role, rule.rows);
    for (const FusedRows& more : rule.fused) part(more.role, more.rows);
  }

  /// A layer's tensor of which nobody can say that it is unused, as the number of layers or experts is
  /// unknown.
  bool left_open(std::string_view suffix) const {
    if (plan_.hp.layers > 0 && experts_known_) return false;
    return std::any_of(architecture_.tensors.begin(), architecture_.tensors.end(), [&](const auto& r) {
      return (r.in(plan_.hp) || !experts_known_) && r.per_layer() && r.suffix() == suffix;
    });
  }

  void report_unused() {
    Findings unused;
    std::map<int64_t, int64_t> beyond;  // layer -> tensors
    for (const auto& tensor : file_.tensors()) {
      if (used_.contains(tensor.name)) continue;
      const auto name = parse_layer_name(tensor.name);
      if (name && plan_.hp.layers > 0 && name->layer >= plan_.hp.layers) {
        ++beyond[name->layer];
        continue;
      }
      if (name && left_open(name->suffix)) continue;
      unused.add(name ? name->layer : -1, name ? name->suffix : "",
                 {tensor.name, fmt::format("no such tensor in architecture {}", arch()),
                  fmt::format("{} {}", quant::traits(tensor.type).name, tensor.shape_text()),
                  "a tensor that the plan does not use: without it this would be another model"});
    }
    if (!beyond.empty()) {
      std::vector<int64_t> layers;
      int64_t tensors = 0;
      for (const auto& [layer, count] : beyond) {
        layers.push_back(layer);
        tensors += count;
      }
      plan_.problems.push_back(
          {fmt::format("blk.{}.*", ranges(layers)),
           fmt::format("{}, as {}.block_count says", count_of(plan_.hp.layers, "layer"), arch()),
           fmt::format("{} of {} more", count_of(tensors, "tensor"),
                       count_of(static_cast<int64_t>(layers.size()), "layer")),
           "tensors that the plan does not use: the metadata is another model's"});
    }
    unused.report(plan_.problems);
  }

  const gguf::File& file_;
  const Architecture& architecture_;
  const Backend& backend_;
  Plan& plan_;
  Findings findings_;
  std::set<std::string, std::less<>> used_;
  std::set<int64_t> absent_;
  std::map<std::string, std::optional<int64_t>> holders_;
  bool experts_known_ = true;
};

}  // namespace

const PlannedTensor* planned_tensor(const Plan& plan, int64_t layer, Role role) {
  for (const PlannedTensor& t : plan.tensors)
    if (t.layer == layer && t.role == role) return &t;
  return nullptr;
}

WeightSource source_of(const PlannedTensor& planned) {
  const gguf::Tensor& tensor = *planned.tensor;
  const auto [rows, cols, experts] = matrix_shape(tensor, planned.use);
  const size_t row_bytes = rows == 0 ? 0 : tensor.bytes.size() / static_cast<size_t>(rows);
  return {tensor.name,
          tensor.type,
          planned.rows,
          cols,
          tensor.bytes.subspan(static_cast<size_t>(planned.first_row) * row_bytes,
                               static_cast<size_t>(planned.rows) * row_bytes),
          experts};
}

MatrixShape matrix_shape(const gguf::Tensor& tensor, WeightUse use) {
  if (use == WeightUse::vector) return {1, static_cast<int64_t>(tensor.elements()), 1};
  const auto cols = static_cast<int64_t>(tensor.shape.at(0));
  const int64_t rows = cols == 0 ? 0 : static_cast<int64_t>(tensor.elements()) / cols;
  return {rows, cols, use == WeightUse::experts ? static_cast<int64_t>(tensor.shape.at(2)) : 1};
}

void plan_tensors(const gguf::File& file, const Architecture& architecture, const Backend& backend,
                  Plan& plan) {
  TensorPlanner(file, architecture, backend, plan).run();
}

}  // namespace greta
