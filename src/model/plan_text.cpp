// What `greta check` prints of a plan.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "base/text.h"
#include "model/memory.h"
#include "model/metadata.h"
#include "model/plan.h"

namespace greta {

namespace {

class Lines {
 public:
  template <class... Args>
  void add(std::string_view label, fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), "{:<14}{}\n", label,
                   fmt::format(format, std::forward<Args>(args)...));
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

/// "272: 210 Q4_1, 61 F32, 1 Q8_0", most frequent first.
std::string tensor_types(const gguf::File& file) {
  std::map<std::string_view, size_t> counts;
  for (const auto& tensor : file.tensors()) ++counts[quant::traits(tensor.type).name];
  std::vector<std::pair<std::string_view, size_t>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text = fmt::format("{}", file.tensors().size());
  for (size_t i = 0; i < sorted.size(); ++i) {
    text += fmt::format("{} {} {}", i == 0 ? ":" : ",", sorted[i].second, sorted[i].first);
  }
  return text;
}

void add_model(const Plan& plan, const gguf::File& file, Lines& lines) {
  const auto& hp = plan.hp;
  const auto& parts = file.part_paths();
  lines.add("file", "{}", file.path());
  for (size_t i = 1; i < parts.size(); ++i) lines.add("", "{}", parts[i]);
  lines.add("", "{}, GGUF version {}{}", bytes_text(file.file_bytes()), file.version(),
            parts.size() > 1 ? fmt::format(", {} parts", parts.size()) : "");
  lines.add("name", "{}", printable(hp.name));
  lines.add("architecture", "{}", hp.architecture);
  lines.add("layers", "{}", hp.layers);
  lines.add("dim", "{}", hp.dim);
  lines.add("heads", "{} over {} kv head{}, head_dim {}", hp.heads, hp.kv_heads, hp.kv_heads == 1 ? "" : "s",
            hp.head_dim);
  const std::string_view activation = hp.activation == Activation::silu ? "silu" : "gelu (tanh)";
  if (hp.experts > 0) {
    lines.add("experts", "{} of {} for each token, ffn_dim {} each, {}; weights {}", hp.experts_used,
              hp.experts, hp.expert_ffn_dim, activation, hp.normalise_experts ? "of the chosen" : "of all");
  } else {
    lines.add("ffn_dim", "{}, {}", hp.ffn_dim, activation);
  }
  lines.add("vocab", "{}", hp.vocab);
  lines.add("context", "{}", hp.context);
  lines.add("norm epsilon", "{}", hp.norm_eps);
  lines.add("rope", "{} of {} dimensions, {} pairs, base {}, scaling {}", hp.rope.dims, hp.head_dim,
            hp.rope.style == RopeStyle::adjacent ? "adjacent" : "half-split", hp.rope_base,
            hp.rope_scaling.empty() ? "unknown" : hp.rope_scaling);
  if (!hp.local.empty())
    lines.add("window", "{} positions in {} of {} layers{}", hp.window,
              std::count(hp.local.begin(), hp.local.end(), true), hp.layers,
              hp.local_rope.dims == 0
                  ? ""
                  : fmt::format(", there with rope base {}, unscaled", hp.local_rope_base));
  if (hp.attention_softcap > 0) lines.add("soft cap", "{} on attention scores", hp.attention_softcap);
  if (hp.logits_softcap > 0) lines.add("soft cap", "{} on logits", hp.logits_softcap);
  lines.add("tensors", "{}", tensor_types(file));
  for (const auto& planned : plan.tensors) {
    if (planned.role != Role::head) continue;
    const bool tied = planned.tensor->name == "token_embd.weight";
    lines.add("output head", "{}, {}", tied ? "the embedding" : planned.tensor->name,
              quant::traits(planned.tensor->type).name);
  }
  if (!plan.tokenizer.empty()) {
    lines.add("tokenizer", "{}{}", plan.tokenizer,
              plan.tokenizer_vocab ? fmt::format(", {} tokens", *plan.tokenizer_vocab) : "");
  }
}

void add_memory(const Plan& plan, Lines& lines) {
  const auto& m = plan.memory;
  const auto row = [&](std::string_view label, std::string_view what, uint64_t bytes,
                       const std::string& note) {
    lines.add(label, "{:<22}{:>12}{}", what, bytes_text(bytes), note.empty() ? "" : "  " + note);
  };
  row("memory", "weights, allocated", m.weights, "");
  row("", "weights, in the file", m.mapped, "");
  row("", "KV cache", m.kv_cache,
      plan.sequences == 1 ? fmt::format("{} positions", plan.context)
                          : fmt::format("{} sequences of {} positions", plan.sequences, plan.context));
  row("", "activations", m.activations, fmt::format("chunks of {}", plan.chunk));
  row("", "total", m.total(), fmt::format("of {} available", bytes_text(m.available)));
}

}  // namespace

std::string plan_text(const Plan& plan, const gguf::File& file, const Backend& backend) {
  Lines lines;
  add_model(plan, file, lines);
  lines.add("device", "{}", backend.description());
  add_memory(plan, lines);
  return lines.take();
}

}  // namespace greta
