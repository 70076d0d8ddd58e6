#include "bisect/report.h"

#include <string_view>

#include "base/error.h"
#include "bisect/report_text.h"

namespace greta {
namespace {

using Json = nlohmann::ordered_json;

#include "report_page.inc"  // kPage

/// JSON that is safe inside a <script> element: a `<` stands in strings alone, and there \u003c is the same.
std::string script_json(const Json& json) {
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  }
  return out;
}

}  // namespace

std::string report_html(const Json& summary) {
  constexpr std::string_view kMarker = "@SUMMARY@";
  constexpr size_t kAt = kPage.find(kMarker);
  static_assert(kAt != std::string_view::npos, "report.html.in has no @SUMMARY@");
  return std::string(kPage.substr(0, kAt)) + script_json(summary) +
         std::string(kPage.substr(kAt + kMarker.size()));
}

std::string terminal_table(const Json& summary) {
  std::string text = prompts_table(summary).plain();
  for (const Json& prompt : summary.at("prompts")) {
    if (!entry(prompt, "error").is_null())
      text += value_text(entry(prompt, "name")) + ": " + value_text(entry(prompt, "error")) + "\n";
    if (const Json& judging = entry(prompt, "judging");
        entry(prompt, "error").is_null() &&
        (entry(judging, "matmuls") == "sampled" || !entry(judging, "not_judged").is_null()))
      text += value_text(entry(prompt, "name")) + ": " + value_text(entry(judging, "coverage")) + "\n";
    if (const std::string bad = nonfinite_text(prompt); !bad.empty())
      text += value_text(entry(prompt, "name")) + ": " + bad + "\n";
    for (const char* key : {"first_fail", "cause"})
      if (entry(prompt, "kind") != "NONE" && !entry(prompt, key).is_null())
        text += value_text(entry(prompt, key)) + "\n";
  }
  return text;
}

}  // namespace greta
