#include "model/unknown_architecture.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/text.h"
#include "model/architectures.h"

namespace greta {

namespace {

std::string_view name_of(Role role) {
  static constexpr std::string_view kNames[] = {
      "embedding",   "final_norm",   "head",   "attn_norm",   "wq",
      "wk",          "wv",           "wo",     "bq",          "bk",
      "bv",          "bo",           "q_norm", "k_norm",      "attn_post_norm",
      "ffn_norm",    "w_gate",       "w_up",   "w_down",      "b_gate",
      "b_up",        "b_down",       "router", "expert_gate", "expert_up",
      "expert_down", "mlp_post_norm"};
  static_assert(std::size(kNames) == kRoles);
  return kNames[static_cast<size_t>(role)];
}

/// A file may hold thousands of names: as many are shown as a person reads.
constexpr size_t kShown = 40;

std::string list_of(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kShown);
  std::string text =
      fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

/// "blk.{}.attn_q.weight" of any layer's tensor: the pattern that a rule would have; other names as they are.
std::string pattern_of(std::string_view name) {
  const size_t digits =
      name.starts_with("blk.") ? name.find_first_not_of("0123456789", 4) : std::string::npos;
  if (digits == std::string::npos || digits == 4 || name[digits] != '.') return std::string(name);
  return fmt::format("blk.{{}}{}", name.substr(digits));
}

/// The roles that rules of this pattern have, in whatever architecture: "w_gate + w_up of phi3, w_up"
/// (the first that says so is enough); nothing where no rule has it.
std::optional<std::string> roles_of(std::string_view pattern) {
  std::vector<std::string> all;
  for (const Architecture& entry : architectures())
    for (const TensorRule& rule : entry.tensors) {
      if (rule.pattern != pattern) continue;
      std::string roles(rule.role ? name_of(*rule.role) : "rotary factors");
      for (const FusedRows& more : rule.fused) roles += fmt::format(" + {}", name_of(more.role));
      if (std::find(all.begin(), all.end(), roles) == all.end()) all.push_back(std::move(roles));
    }
  if (all.empty()) return std::nullopt;
  return fmt::format("{}", fmt::join(all, " or "));
}

}  // namespace

std::vector<Problem> what_an_entry_needs(const gguf::File& file, std::string_view architecture,
                                         const std::vector<std::string>& keys) {
  std::vector<Problem> problems;
  if (!keys.empty())
    problems.push_back({fmt::format("{}.*", printable(architecture, 60)),
                        "keys that this engine computes with", list_of(keys),
                        "a new entry needs what these say"});
  std::vector<std::string> known, unknown;
  std::set<std::string> seen;
  for (const gguf::Tensor& tensor : file.tensors()) {
    const std::string pattern = pattern_of(tensor.name);
    if (!seen.insert(pattern).second) continue;
    const std::string shown = printable(pattern, 60);
    if (const auto roles = roles_of(pattern))
      known.push_back(fmt::format("{} ({})", shown, *roles));
    else
      unknown.push_back(fmt::format("{} {}", shown, tensor.shape_text()));
  }
  if (!known.empty())
    problems.push_back({"tensors that other architectures have", "rules of a new entry", list_of(known),
                        "in brackets the role that each has there"});
  if (!unknown.empty())
    problems.push_back({"tensors that no architecture has", "rules of a new entry, roles and operators",
                        list_of(unknown), "the forward pass has no place for them yet"});
  return problems;
}

}  // namespace greta
