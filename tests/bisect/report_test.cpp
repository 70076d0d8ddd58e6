// The reports of bisect hold the facts of their summary. The samples are made by
// tests/bisect/summaries/make.py; what the page shows once it is drawn is for scripts/test-report.sh.
#include "bisect/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>

namespace greta {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;
using testing::Not;

const std::map<std::string, Json>& samples() {
  static const std::map<std::string, Json> all = [] {
    std::map<std::string, Json> found;
    for (const auto& file : std::filesystem::directory_iterator(GRETA_SOURCE_DIR "/tests/bisect/summaries"))
      if (file.path().extension() == ".json")
        found[file.path().stem()] = Json::parse(std::ifstream(file.path()));
    return found;
  }();
  return all;
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string embedded(const std::string& html) {
  const std::string open = R"(<script type="application/json" id="summary">)";
  const size_t begin = html.find(open) + open.size();
  return html.substr(begin, html.find("</script>", begin) - begin);
}

TEST(Report, SamplesCoverEveryKind) {
  std::vector<std::string> names;
  for (const auto& [name, summary] : samples()) names.push_back(name);
  EXPECT_THAT(names, testing::ElementsAre("error", "input", "none", "nonfinite", "operator", "prefill",
                                          "race", "rounding", "wire"));
}

TEST(Report, PageCarriesTheSummaryAndNothingElseIsAScript) {
  for (const auto& [name, summary] : samples()) {
    const std::string html = report_html(summary);
    EXPECT_EQ(Json::parse(embedded(html)), summary) << name;
    EXPECT_EQ(count_of(html, "<script"), 2u) << name;
    EXPECT_EQ(count_of(html, "</script"), 2u) << name;
    EXPECT_EQ(embedded(html).find('<'), std::string::npos) << name;
    EXPECT_EQ(count_of(html, "://"),
              count_of(html, "http://www.w3.org/2000/svg") + count_of(summary.dump(), "://"))
        << name << ": an address of a network";
  }
}

TEST(Report, PageIsWhole) {
  const std::string html = report_html(samples().at("none"));
  for (const char* marker : {"@CSS@", "@SCRIPT@", "@SUMMARY@"}) EXPECT_THAT(html, Not(HasSubstr(marker)));
  for (const char* part : {"<!DOCTYPE html>", "function cellMap(map)", "color-scheme: light dark", "</html>"})
    EXPECT_THAT(html, HasSubstr(part));
}

// scripts/test-report.sh opens these.
TEST(Report, PagesForTheBrowser) {
  const std::filesystem::path folder = std::filesystem::path(GRETA_BINARY).parent_path() / "reports";
  std::filesystem::create_directories(folder);
  for (const auto& [name, summary] : samples()) {
    std::ofstream file(folder / (name + ".html"));
    file << report_html(summary);
    EXPECT_TRUE(file.flush().good()) << name;
  }
}

TEST(Report, TerminalTable) {
  EXPECT_EQ(
      terminal_table(samples().at("operator")),
      R"(prompt     kind      class                tokens  place                        values  calls  suspect  failed
p0_short   NONE      UNKNOWN                   1  -                             53568     93        3       0
p6_len_16  OPERATOR  ATTENTION_MECHANISM      64  token 5, layers.3.attn_out  3428352   5952        3       8
FIRST_FAIL prompt=p6_len_16 token 5, layers.3.attn_out [17]: got 0.1048, expected 0.0731, 812000.0 times the bound
CAUSE OPERATOR: attention (attn_out) of side b
)");
}

TEST(Report, TerminalGivesEachDivergenceItsTwoLines) {
  for (const auto& [name, summary] : samples()) {
    size_t diverging = 0, errors = 0, fails = 0, causes = 0, nonfinite = 0;
    for (const Json& prompt : summary.at("prompts")) {
      errors += !prompt.at("error").is_null();
      nonfinite += prompt.contains("nonfinite") && !prompt.at("nonfinite").is_null();
      diverging += prompt.at("error").is_null() && prompt.at("kind") != "NONE";
    }
    const std::vector<std::string> lines = lines_of(terminal_table(summary));
    for (const std::string& line : lines) {
      fails += line.starts_with("FIRST_FAIL ");
      causes += line.starts_with("CAUSE ");
    }
    EXPECT_EQ(fails, diverging) << name;
    EXPECT_EQ(causes, diverging) << name;
    EXPECT_EQ(lines.size(), 1 + summary.at("prompts").size() + errors + nonfinite + 2 * diverging) << name;
  }
}

TEST(Report, TerminalSaysWhatIsNotFiniteBeforeAnythingElse) {
  const std::string text = terminal_table(samples().at("nonfinite"));
  const size_t at = text.find(": First nan of side b: token 5, layers.2.ffn_act [3]\n");
  ASSERT_NE(at, std::string::npos) << text;
  EXPECT_LT(at, text.find("FIRST_FAIL "));
}

TEST(Report, AnErrorAloneHasNoKind) {
  Json summary = samples().at("error");
  summary["kind"] = nullptr;
  EXPECT_THAT(report_markdown(summary), testing::StartsWith("# greta bisect: ERROR\n"));
}

TEST(Report, APlaceWithoutAValueIsNoWrongValue) {
  Json summary = samples().at("operator");
  for (const char* key : {"index", "got", "expected", "error", "bound", "ratio"})
    summary["prompts"][1]["first"][key] = nullptr;
  EXPECT_THAT(report_markdown(summary), Not(HasSubstr("First wrong value")));
  EXPECT_THAT(report_markdown(summary), HasSubstr("### First place"));
}

TEST(Report, AFirstValueByItsBoundIsTheWorstOfItsRow) {
  Json summary = samples().at("operator");
  for (const char* check : {"bound", "replay"}) {
    summary["prompts"][1]["first"]["check"] = check;
    const bool worst = std::string_view(check) == "bound";
    EXPECT_EQ(count_of(report_markdown(summary), "### First wrong value: the worst of its row\n"),
              worst ? 1u : 0u);
  }
}

TEST(Report, NamesThatAreNotUtf8StillGiveMarkdown) {
  Json summary = samples().at("none");
  summary["options"]["model"] = "m\xff.gguf";
  summary["subjects"]["b"]["model"]["name"] = "\xfe";
  EXPECT_THAT(report_markdown(summary), HasSubstr("m\xef\xbf\xbd.gguf"));
}

TEST(Report, ErrorOfAPromptStandsInEveryReport) {
  const std::string sentence =
      "the prompt has 9000 tokens, the context holds 8192: shorten it or give --context";
  const Json& summary = samples().at("error");
  EXPECT_THAT(terminal_table(summary), HasSubstr("p9_long: " + sentence + "\n"));
  EXPECT_THAT(terminal_table(summary), HasSubstr("p9_long   ERROR"));
  EXPECT_THAT(report_markdown(summary), HasSubstr("    " + sentence + "\n"));
}

/// Every line that holds all parts; a table's row that says the wrong thing beside the right name is found
/// so.
testing::AssertionResult has_row(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& line : lines_of(text)) {
    size_t at = 0;
    for (const std::string& part : parts)
      if (at != std::string::npos) at = line.find("| " + part + " ", at);
    if (at != std::string::npos) return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "no row with " << testing::PrintToString(parts);
}

/// Four digits, for a regular expression.
std::string digits(const Json& value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value.get<double>());
  return std::regex_replace(std::string(text), std::regex("\\+"), "\\+");
}

TEST(Report, MarkdownHoldsTheVerdict) {
  const Json& summary = samples().at("operator");
  const Json& prompt = summary.at("prompts").at(1);
  const std::string text = report_markdown(summary);
  EXPECT_THAT(text, HasSubstr("# greta bisect: OPERATOR\n"));
  EXPECT_THAT(text, HasSubstr("Exit status 1. Build 0.1.0 64536d5c0ffee (dirty), GCC 12.2.0."));
  EXPECT_THAT(text, HasSubstr("    " + prompt.at("first_fail").get<std::string>() + "\n"));
  EXPECT_THAT(text, HasSubstr("    " + prompt.at("cause").get<std::string>() + "\n"));
  EXPECT_THAT(text, HasSubstr(summary.at("subjects").at("b").at("sha256").get<std::string>()));
  EXPECT_THAT(text, HasSubstr("`cpu.avx2.q4_1.matmul.m16`"));
  EXPECT_TRUE(has_row(text, {"token 5, layers.3.attn_out", "b", "attention"}));
  for (const Json& p : summary.at("prompts"))
    for (const auto& [name, value] : p.at("counts").items()) EXPECT_TRUE(has_row(text, {name})) << name;
  EXPECT_THAT(text, HasSubstr(" 3428352 |"));
  EXPECT_THAT(text, HasSubstr(prompt.at("hashes").at("b").at("traced").get<std::string>()));
}

TEST(Report, MarkdownHoldsMapsStagesAndLogits) {
  const Json& prompt = samples().at("operator").at("prompts").at(1);
  std::string text = report_markdown(samples().at("operator"));
  text = text.substr(text.find("## `p6_len_16`"));
  EXPECT_THAT(text,
              testing::ContainsRegex("\\| layer 3 +\\| 8.12e\\+05 \\| attn_out +\\| +5 \\| +64 of 64 \\|"));
  for (const Json& row : prompt.at("stages").at("rows"))
    EXPECT_THAT(text, testing::ContainsRegex("\\| " + row.at("stage").get<std::string>() + " .* " +
                                             digits(row.at("ratio")) + " \\|.* " +
                                             row.at("hash_b").get<std::string>() + " \\|"));
  EXPECT_THAT(text, testing::ContainsRegex("\\| attn_out .*\\| outside \\|"));
  for (const Json& step : prompt.at("logits"))
    for (const Json& top : step.at("b")) EXPECT_THAT(text, HasSubstr("`" + top.at("piece").dump() + "`"));
  EXPECT_THAT(text, HasSubstr("### Values outside their bound: 8 of 8\n"));
}

TEST(Report, MarkdownHoldsRoundingAndInputs) {
  const std::string rounding = report_markdown(samples().at("rounding"));
  EXPECT_THAT(rounding, HasSubstr("The tokens part at step 9 (token 14)"));
  EXPECT_THAT(rounding, HasSubstr("True gap 0.22, difference there 0.25."));
  EXPECT_THAT(rounding, testing::ContainsRegex("\\| attn_proj +\\| +0.17 \\| -0.0425 \\|"));
  const std::string input = report_markdown(samples().at("input"));
  EXPECT_THAT(input, HasSubstr("2 differences."));
  EXPECT_THAT(input, testing::ContainsRegex(
                         "`blk.3.ffn_up.weight` +\\| +17 \\| `read back 0x3c01, the file has 0x3c00`"));
}

TEST(Report, NumbersThatAreNotFiniteAreTheLargest) {
  const std::string text = report_markdown(samples().at("nonfinite"));
  EXPECT_THAT(text, HasSubstr("First nan of side b: token 5, layers.2.ffn_act [3]\n"));
  EXPECT_THAT(text, testing::ContainsRegex("\\| layer 2 +\\| +inf \\| ffn_act +\\| +5 \\|"));
  EXPECT_THAT(text, testing::ContainsRegex("\\| layer 3 +\\| +nan \\| ffn_act +\\| +6 \\|"));
  EXPECT_THAT(text, testing::ContainsRegex("\\| ffn_act +\\| glu +\\| +inf \\| outside \\|"));
}

TEST(Report, HostileTextStaysText) {
  const Json& summary = samples().at("nonfinite");
  for (const std::string& text : {report_markdown(summary), terminal_table(summary)})
    EXPECT_EQ(text.find('\x1b'), std::string::npos) << "a control byte reaches the terminal";
  for (const std::string& line : lines_of(report_markdown(summary)))
    if (line.find("broken out") != std::string::npos)
      EXPECT_TRUE(line.starts_with("    ") || line.find("`` ") != std::string::npos)
          << "outside code: " << line;
  EXPECT_THAT(report_markdown(summary), HasSubstr("second line\\x1b[31m\n"));
}

TEST(Report, BytesThatAreNotUtf8StillGiveAPage) {
  Json summary = samples().at("none");
  summary["prompts"][0]["prompt_text"] = "\xff\xfe</script>";
  EXPECT_EQ(Json::parse(embedded(report_html(summary)))["prompts"][0]["prompt_text"],
            "\xef\xbf\xbd\xef\xbf\xbd</script>");
}

TEST(Report, WithoutPromptsTheInputsRemain) {
  Json summary = samples().at("input");
  summary["prompts"] = Json::array();
  EXPECT_THAT(report_markdown(summary), HasSubstr("`rope.freq_base`"));
  EXPECT_EQ(lines_of(terminal_table(summary)).size(), 1u);
}

}  // namespace
}  // namespace greta
