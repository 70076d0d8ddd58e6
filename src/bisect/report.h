#pragma once
// The reports of `greta bisect`, made of its summary (docs/summary.md) alone.
#include <nlohmann/json.hpp>
#include <string>

namespace greta {

/// report.md: every fact of the summary for a terminal or a code review; of the maps, the largest cell of
/// each row.
std::string report_markdown(const nlohmann::ordered_json& summary);

/// report.html: one page that needs nothing else (report.html.in, report.css, report.js); it carries the
/// summary.
std::string report_html(const nlohmann::ordered_json& summary);

/// One line a prompt, then of each what is not finite and, where it diverges, its FIRST_FAIL and CAUSE lines.
std::string terminal_table(const nlohmann::ordered_json& summary);

}  // namespace greta
