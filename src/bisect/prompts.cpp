#include "bisect/prompts.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "bisect/texts.h"

namespace greta {
namespace {

struct BuiltIn {
  std::string_view name;
  size_t tokens;  ///< 0: the text "Hi"
};
constexpr std::array kBuiltIns = {BuiltIn{"p0_short", 0}, BuiltIn{"p6_len_16", 827},
                                  BuiltIn{"p6_len_32", 1653}};

std::vector<TokenId> ids_in_json(const std::string& path, const std::string& text, TokenId most) {
  const auto list = nlohmann::json::parse(text, nullptr, false);
  if (!list.is_array()) fail("{}: expected a JSON array of token ids, like [1, 15043]", path);
  std::vector<TokenId> ids;
  for (const auto& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(most))
      fail("{}: expected token ids from 0 to {}, got {} as number {}", path, most,
           id.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), ids.size());
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

/// Numbers with commas or blanks between them.
std::vector<TokenId> ids_in_text(const std::string& path, const std::string& text, TokenId most) {
  std::vector<TokenId> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    if (std::string_view(", \n\r\t").find(*at) != std::string_view::npos) {
      ++at;
      continue;
    }
    TokenId id = -1;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0 || id > most)
      fail("{}: expected token ids from 0 to {}, got something else at offset {}", path, most,
           at - text.data());
    ids.push_back(id);
    at = next;
  }
  return ids;
}

Prompt prompt_of(const std::string& name, const Tokenizer& tokenizer) {
  for (const BuiltIn& b : kBuiltIns) {
    if (b.name != name) continue;
    if (b.tokens == 0) return {name, "Hi", tokenizer.encode("Hi")};
    auto ids = prompt_of_length(tokenizer, b.tokens);
    return {name, tokenizer.decode(ids, true), std::move(ids)};
  }
  if (!std::filesystem::exists(name)) {
    std::vector<std::string_view> known;
    known.reserve(kBuiltIns.size());
    for (const BuiltIn& b : kBuiltIns) known.push_back(b.name);
    fail("--prompts: '{}' is neither a built-in prompt ({}) nor a file", name, fmt::join(known, ", "));
  }
  const std::string text = read_whole_file(name);
  const std::filesystem::path path(name);
  const auto most = static_cast<TokenId>(tokenizer.vocab_size() - 1);
  const bool ids = path.extension() == ".ids" || path.extension() == ".json";
  Prompt prompt{path.stem().string(), "", {}};
  if (ids) {
    prompt.ids = path.extension() == ".json" ? ids_in_json(name, text, most) : ids_in_text(name, text, most);
  } else {
    require_text(text, "--prompts " + name);
    prompt.text = text;
    prompt.ids = tokenizer.encode(text);
  }
  if (prompt.ids.empty() || (!ids && text.empty()))
    fail("--prompts: {} is empty, 0 tokens; expected at least 1", name);
  if (ids) prompt.text = tokenizer.decode(prompt.ids, true);
  return prompt;
}

}  // namespace

std::vector<Prompt> prompts_of(const std::string& list, const Tokenizer& tokenizer) {
  std::vector<Prompt> prompts;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, end - begin);
    if (name.empty()) fail("--prompts '{}': an empty name", list);
    Prompt prompt = prompt_of(name, tokenizer);
    for (const Prompt& other : prompts)
      if (other.name == prompt.name) fail("--prompts {}: {} is there twice", list, prompt.name);
    prompts.push_back(std::move(prompt));
    begin = end + 1;
  }
  return prompts;
}

}  // namespace greta
