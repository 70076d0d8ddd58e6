#pragma once
// What the text reports share: how they read the summary, numbers, and padded tables.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace greta {

/// object[key]; null where the key is absent or `object` is null (a prompt with an error lacks most keys).
const nlohmann::ordered_json& entry(const nlohmann::ordered_json& object, const char* key);

/// On one line; bytes that are not UTF-8 become U+FFFD.
std::string json_text(const nlohmann::ordered_json& value);

/// Null as "-", whole numbers and booleans whole, others in so many digits, strings ("nan" too) fit for a
/// terminal.
std::string value_text(const nlohmann::ordered_json& value, int digits = 4);

/// "token 5, layers.3.attn_out", with the sequence where it is not 0; "-" for null.
std::string place_text(const nlohmann::ordered_json& place);

/// "ERROR" for a prompt that could not be run.
std::string kind_text(const nlohmann::ordered_json& prompt);

/// "First nan of side b: token 5, layers.2.ffn_act [3]"; empty where everything is finite.
std::string nonfinite_text(const nlohmann::ordered_json& prompt);

/// Cells padded to the widest of their column.
class TextTable {
 public:
  enum class Align { left, right };
  struct Column {
    std::string heading;
    Align align = Align::left;
  };
  explicit TextTable(std::vector<Column> columns) : columns_(std::move(columns)) {}

  void add(std::vector<std::string> cells);
  std::string plain() const;     ///< two spaces between columns
  std::string markdown() const;  ///< pipes in cells are escaped

 private:
  std::vector<size_t> widths() const;
  std::string padded(const std::string& cell, size_t column, size_t width) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// One line a prompt: kind, class, tokens, place, counts.
TextTable prompts_table(const nlohmann::ordered_json& summary);

}  // namespace greta
