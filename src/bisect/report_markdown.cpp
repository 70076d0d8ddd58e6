#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "bisect/report.h"
#include "bisect/report_text.h"

namespace greta {
namespace {

using Json = nlohmann::ordered_json;
constexpr TextTable::Align kRight = TextTable::Align::right;
constexpr int kLogitDigits = 6;  // rounding differs late

/// Any text as a code span: a fence longer than its longest run of backticks.
std::string code(const Json& value) {
  const std::string text = value_text(value);
  size_t run = 0, longest = 0;
  for (const char c : text) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  const std::string fence(longest + 1, '`');
  const char* pad = longest > 0 || text.starts_with(' ') || text.ends_with(' ') ? " " : "";
  return fence + pad + text + pad + fence;
}

/// A line or several as a block of code.
std::string block(const Json& value) {
  if (value.is_null()) return "";
  std::string out, line;
  const auto end_line = [&] { out += "    " + printable(line) + "\n", line.clear(); };
  for (const char c : value.get_ref<const std::string&>()) {
    if (c == '\n')
      end_line();
    else
      line += c;
  }
  end_line();
  return out + "\n";
}

std::string ids_text(const Json& ids) {
  std::string text;
  for (const Json& id : ids) text += (text.empty() ? "" : " ") + value_text(id);
  return text.empty() ? "-" : text;
}

/// A number of the summary; a NaN as infinity, null as less than anything.
double magnitude(const Json& value) {
  if (value.is_null()) return -1;
  if (value.is_number()) return value.get<double>();
  return value == "-inf" ? 0 : std::numeric_limits<double>::infinity();
}

/// Column of the largest entry that is not null, or -1.
int largest(const Json& row) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(row.size()); ++i)
    if (!row[i].is_null() && (best < 0 || magnitude(row[i]) > magnitude(row[best]))) best = i;
  return best;
}

std::string head(const Json& summary) {
  const Json &build = summary.at("build"), &machine = summary.at("machine");
  const Json& kind = summary.at("kind");
  std::string text = fmt::format("# greta bisect: {}\n\n", kind.is_null() ? "ERROR" : value_text(kind));
  text += fmt::format("Exit status {}. Build {} {}{}, {}. {}, {} threads. Started {}, {} s.\n\n",
                      value_text(summary.at("status")), value_text(build.at("version")),
                      value_text(build.at("commit")), build.at("dirty") == true ? " (dirty)" : "",
                      value_text(build.at("compiler")), value_text(machine.at("cpu")),
                      value_text(machine.at("threads")), value_text(summary.at("started")),
                      value_text(summary.at("seconds")));
  const Json& subjects = summary.at("subjects");
  TextTable table({{""}, {"a"}, {"b"}});
  for (const char* key : {"text", "description", "file", "sha256", "seconds"})
    table.add({key, code(entry(subjects.at("a"), key)), code(entry(subjects.at("b"), key))});
  text += table.markdown();
  for (const char* side : {"a", "b"}) {
    const Json& model = entry(subjects.at(side), "model");
    if (!model.is_null()) text += fmt::format("Model of {}: {}\n\n", side, code(json_text(model)));
    TextTable route({{fmt::format("route of {}", side)}, {"calls", kRight}});
    for (const auto& [kernel, calls] : entry(subjects.at(side), "route").items())
      route.add({code(kernel), value_text(calls)});
    text += route.markdown();
  }
  return text + fmt::format("Options: {}\n\n", code(json_text(summary.at("options"))));
}

std::string inputs(const Json& input) {
  const Json& differences = input.at("differences");
  std::string text =
      fmt::format("## Inputs\n\n{} tensors, {} values; {} resident rows read back: {} differences.\n\n",
                  value_text(entry(input, "tensors")), value_text(entry(input, "values")),
                  value_text(entry(input, "rows_read_back")), differences.size());
  if (differences.empty()) return text;
  TextTable table({{"side"}, {"what"}, {"name"}, {"row", kRight}, {"detail"}});
  for (const Json& item : differences)
    table.add({value_text(entry(item, "side")), value_text(entry(item, "what")), code(entry(item, "name")),
               value_text(entry(item, "row")), code(entry(item, "detail"))});
  return text + table.markdown();
}

std::string failures(const Json& list, const std::string& title) {
  TextTable table({{"place"},
                   {"side"},
                   {"operator"},
                   {"index", kRight},
                   {"got", kRight},
                   {"expected", kRight},
                   {"error", kRight},
                   {"bound", kRight},
                   {"ratio", kRight}});
  for (const Json& item : list)
    table.add({place_text(item), value_text(entry(item, "side")), value_text(entry(item, "operator")),
               value_text(entry(item, "index")), value_text(entry(item, "got")),
               value_text(entry(item, "expected")), value_text(entry(item, "error")),
               value_text(entry(item, "bound")), value_text(entry(item, "ratio"))});
  return title + "\n\n" + table.markdown();
}

/// A bound is judged row by row, and the row's worst element speaks for it.
std::string first_title(const Json& first) {
  if (entry(first, "index").is_null()) return "### First place";
  return entry(first, "check") == "bound" ? "### First wrong value: the worst of its row"
                                          : "### First wrong value";
}

std::string verdict(const Json& prompt) {
  std::string text = fmt::format("## {}: {}\n\n", code(entry(prompt, "name")), kind_text(prompt));
  text += fmt::format("Class {}, {} tokens.\n\n", value_text(entry(prompt, "class")),
                      value_text(entry(prompt, "tokens")));
  text += block(entry(prompt, "error")) + block(entry(prompt, "first_fail")) + block(entry(prompt, "cause"));
  if (const Json& coverage = entry(entry(prompt, "judging"), "coverage"); !coverage.is_null())
    text += fmt::format("Judged in FP64: {}.\n\n", value_text(coverage));
  if (const std::string bad = nonfinite_text(prompt); !bad.empty()) text += bad + "\n\n";
  if (const Json& first = entry(prompt, "first"); !first.is_null())
    text += failures(Json::array({first}), first_title(first));
  if (const Json& counts = entry(prompt, "counts"); !counts.is_null()) {
    TextTable table({{"compared and replayed"}, {"", kRight}});
    for (const auto& [name, value] : counts.items()) table.add({name, value_text(value)});
    text += table.markdown();
  }
  return text;
}

std::string heat_rows(const Json& heat) {
  if (heat.is_null()) return "";
  TextTable table({{"layer"}, {"largest", kRight}, {"stage"}, {"token", kRight}, {"cells judged", kRight}});
  for (size_t row = 0; row < heat.at("rows").size(); ++row) {
    const Json& ratio = heat.at("ratio")[row];
    const int column = largest(ratio);
    const auto judged = std::count_if(ratio.begin(), ratio.end(), [](const Json& r) { return !r.is_null(); });
    const auto at = [&](const char* key) {
      return column < 0 ? Json() : heat.at(key)[row][static_cast<size_t>(column)];
    };
    table.add({value_text(heat.at("rows")[row]), value_text(at("ratio")), value_text(at("stage")),
               value_text(at("token")), fmt::format("{} of {}", judged, ratio.size())});
  }
  return fmt::format("### Error over bound\n\nSide {}; the largest of each layer. Up to 1 is rounding.\n\n",
                     value_text(heat.at("side"))) +
         table.markdown();
}

std::string stages(const Json& stages) {
  if (stages.is_null()) return "";
  TextTable table({{"stage"},
                   {"operator"},
                   {"ratio", kRight},
                   {""},
                   {"error", kRight},
                   {"likely", kRight},
                   {"bound", kRight},
                   {"bits"},
                   {"hash a"},
                   {"hash b"}});
  for (const Json& row : stages.at("rows")) {
    const Json& bits = entry(row, "same_bits");
    const char* note = magnitude(entry(row, "ratio")) > 1 ? "outside"
                       : entry(row, "suspect") == true    ? "suspect"
                                                          : "";
    table.add({value_text(entry(row, "stage")), value_text(entry(row, "operator")),
               value_text(entry(row, "ratio")), note, value_text(entry(row, "error")),
               value_text(entry(row, "likely")), value_text(entry(row, "bound")),
               bits.is_null() ? "-"
               : bits == true ? "same"
                              : "differ",
               value_text(entry(row, "hash_a")), value_text(entry(row, "hash_b"))});
  }
  const Json& layer = entry(stages, "layer");
  return fmt::format("### Stages {}, token {}, side {}\n\n",
                     layer.is_null() ? "outside the layers" : "of layer " + value_text(layer),
                     value_text(entry(stages, "token")), value_text(entry(stages, "side"))) +
         table.markdown();
}

std::string drift(const Json& drift) {
  if (drift.is_null()) return "";
  TextTable table({{"layer", kRight}, {"largest", kRight}, {"from token", kRight}});
  for (size_t row = 0; row < drift.at("layers").size(); ++row) {
    const int column = largest(drift.at("relative")[row]);
    const auto at = [&](const Json& list) { return column < 0 ? Json() : list[static_cast<size_t>(column)]; };
    table.add({value_text(drift.at("layers")[row]), value_text(at(drift.at("relative")[row])),
               value_text(at(drift.at("tokens")))});
  }
  return "### Drift\n\n|b - a| over |a| of residual_post_mlp, the largest of each layer: accumulated, "
         "without a bound.\n\n" +
         table.markdown();
}

std::string rounding(const Json& rounding) {
  if (rounding.is_null()) return "";
  const auto token = [](const Json& t) {
    return fmt::format("{} ({}, {})", code(json_text(entry(t, "piece"))), value_text(entry(t, "id")),
                       value_text(entry(t, "logit"), kLogitDigits));
  };
  std::string text = fmt::format(
      "### Rounding\n\nThe tokens part at step {} (token {}): a {}, b {}. True gap {}, difference there "
      "{}. Gaps are a's logit minus b's.\n\n",
      value_text(entry(rounding, "step")), value_text(entry(rounding, "token")), token(entry(rounding, "a")),
      token(entry(rounding, "b")), value_text(entry(rounding, "true_gap")),
      value_text(entry(rounding, "difference")));
  TextTable table({{"operator"}, {"share", kRight}, {"shift", kRight}});
  for (const Json& item : entry(rounding, "contributors"))
    table.add({value_text(entry(item, "what")), value_text(entry(item, "share")),
               value_text(entry(item, "shift"))});
  return text + table.markdown();
}

/// Both sides' largest of every step.
std::string logits(const Json& steps) {
  if (steps.empty()) return "";
  TextTable table({{"step", kRight},
                   {"token", kRight},
                   {"rank", kRight},
                   {"a: id", kRight},
                   {"piece"},
                   {"logit", kRight},
                   {"b: id", kRight},
                   {"piece"},
                   {"logit", kRight},
                   {"relative", kRight},
                   {"KL", kRight}});
  for (const Json& step : steps) {
    const Json &a = step.at("a"), &b = step.at("b");
    for (size_t rank = 0; rank < std::max(a.size(), b.size()); ++rank) {
      const auto at = [&](const Json& side, const char* key) {
        return rank < side.size() ? entry(side[rank], key) : Json();
      };
      const auto once = [&](const char* key) {
        return rank == 0 ? value_text(entry(step, key)) : std::string();
      };
      table.add({once("step"), once("token"), std::to_string(rank + 1), value_text(at(a, "id")),
                 code(json_text(at(a, "piece"))), value_text(at(a, "logit"), kLogitDigits),
                 value_text(at(b, "id")), code(json_text(at(b, "piece"))),
                 value_text(at(b, "logit"), kLogitDigits), once("relative"), once("kl")});
    }
  }
  return "### Logits\n\n" + table.markdown();
}

std::string texts(const Json& prompt) {
  const Json &generated = entry(prompt, "generated"), &hashes = entry(prompt, "hashes");
  TextTable table({{""}, {"answer"}, {"ids"}, {"logits hash, traced"}, {"untraced"}});
  for (const char* side : {"a", "b"}) {
    const Json& hash = entry(hashes, side);
    table.add({side, code(entry(generated, (std::string(side) + "_text").c_str())),
               ids_text(entry(generated, side)), value_text(entry(hash, "traced")),
               value_text(entry(hash, "untraced"))});
  }
  return "### Prompt and answer\n\n" + table.markdown() + block(entry(prompt, "prompt_text")) +
         fmt::format("Ids: {}\n\n", ids_text(entry(prompt, "ids")));
}

}  // namespace

std::string report_markdown(const Json& summary) {
  std::string text =
      head(summary) + inputs(summary.at("input")) + "## Prompts\n\n" + prompts_table(summary).markdown();
  for (const Json& prompt : summary.at("prompts")) {
    text += verdict(prompt) + heat_rows(entry(prompt, "heat")) + stages(entry(prompt, "stages")) +
            drift(entry(prompt, "drift")) + rounding(entry(prompt, "rounding")) +
            logits(entry(prompt, "logits"));
    if (const Json& list = entry(prompt, "failures"); !list.empty())
      text += failures(list, fmt::format("### Values outside their bound: {} of {}", list.size(),
                                         value_text(entry(prompt, "failures_total"))));
    text += texts(prompt);
  }
  return text;
}

}  // namespace greta
