#include "bisect/report_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace greta {

using Json = nlohmann::ordered_json;
using Align = TextTable::Align;

namespace {

/// Characters of UTF-8 text.
size_t display_width(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

/// A pipe ends a cell of Markdown, in a code span too.
std::string escaped_pipes(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string without_trailing_spaces(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

}  // namespace

const Json& entry(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string json_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string value_text(const Json& value, int digits) {
  if (value.is_null()) return "-";
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_number_float()) return fmt::format("{:.{}g}", value.get<double>(), digits);
  return json_text(value);
}

std::string place_text(const Json& place) {
  if (place.is_null()) return "-";
  std::string text;
  if (entry(place, "sequence") != 0)
    text = fmt::format("sequence {}, ", value_text(entry(place, "sequence")));
  text += fmt::format("token {}, ", value_text(entry(place, "token")));
  if (!entry(place, "layer").is_null()) text += fmt::format("layers.{}.", value_text(place["layer"]));
  return text + value_text(entry(place, "stage"));
}

std::string kind_text(const Json& prompt) {
  return entry(prompt, "error").is_null() ? value_text(entry(prompt, "kind")) : "ERROR";
}

std::string nonfinite_text(const Json& prompt) {
  const Json& bad = entry(prompt, "nonfinite");
  if (bad.is_null()) return "";
  return fmt::format("First {} of side {}: {} [{}]", value_text(entry(bad, "value")),
                     value_text(entry(bad, "side")), place_text(bad), value_text(entry(bad, "index")));
}

TextTable prompts_table(const Json& summary) {
  TextTable table({{"prompt"},
                   {"kind"},
                   {"class"},
                   {"tokens", Align::right},
                   {"place"},
                   {"values", Align::right},
                   {"calls", Align::right},
                   {"suspect", Align::right},
                   {"failed", Align::right}});
  for (const Json& prompt : summary.at("prompts")) {
    const Json& counts = entry(prompt, "counts");
    table.add({value_text(entry(prompt, "name")), kind_text(prompt), value_text(entry(prompt, "class")),
               value_text(entry(prompt, "tokens")), place_text(entry(prompt, "first")),
               value_text(entry(counts, "values")), value_text(entry(counts, "calls_replayed")),
               value_text(entry(counts, "suspect")), value_text(entry(counts, "failed"))});
  }
  return table;
}

void TextTable::add(std::vector<std::string> cells) {
  if (cells.size() != columns_.size())
    fail("a row of a report's table has {} cells, expected {}", cells.size(), columns_.size());
  rows_.push_back(std::move(cells));
}

std::vector<size_t> TextTable::widths() const {
  std::vector<size_t> widths;
  for (size_t column = 0; column < columns_.size(); ++column) {
    size_t width = std::max<size_t>(3, display_width(columns_[column].heading));
    for (const auto& row : rows_) width = std::max(width, display_width(row[column]));
    widths.push_back(width);
  }
  return widths;
}

std::string TextTable::padded(const std::string& cell, size_t column, size_t width) const {
  const std::string space(width - display_width(cell), ' ');
  return columns_[column].align == Align::right ? space + cell : cell + space;
}

std::string TextTable::plain() const {
  const std::vector<size_t> width = widths();
  std::string heading, text;
  for (size_t i = 0; i < columns_.size(); ++i) heading += padded(columns_[i].heading, i, width[i]) + "  ";
  text = without_trailing_spaces(heading) + "\n";
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) line += padded(row[i], i, width[i]) + "  ";
    text += without_trailing_spaces(line) + "\n";
  }
  return text;
}

std::string TextTable::markdown() const {
  TextTable cells(columns_);
  for (std::vector<std::string> row : rows_) {
    for (std::string& cell : row) cell = escaped_pipes(cell);
    cells.add(std::move(row));
  }
  const std::vector<size_t> width = cells.widths();
  std::string heading = "|", rule = "|", rows;
  for (size_t i = 0; i < columns_.size(); ++i) {
    heading += " " + padded(columns_[i].heading, i, width[i]) + " |";
    rule += " " + std::string(width[i] - 1, '-') + (columns_[i].align == Align::right ? ": |" : "- |");
  }
  for (const auto& row : cells.rows_) {
    rows += "|";
    for (size_t i = 0; i < row.size(); ++i) rows += " " + padded(row[i], i, width[i]) + " |";
    rows += "\n";
  }
  return heading + "\n" + rule + "\n" + rows + "\n";
}

}  // namespace greta
