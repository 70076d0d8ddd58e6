// greta tokenize: text to ids and pieces, and back.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "cli/output.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

/// Ids out of a text: numbers with commas, spaces or newlines between them.
std::vector<TokenId> ids_in(std::string text, int64_t vocab, const std::string& option) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == ',' || c == '\n' || c == '\t' || c == '\r'; }, ' ');
  std::vector<TokenId> ids;
  for (size_t begin = text.find_first_not_of(' '); begin < text.size();
       begin = text.find_first_not_of(' ', begin)) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    ids.push_back(static_cast<TokenId>(parse_number(std::string_view(text).substr(begin, end - begin), 0,
                                                    static_cast<double>(vocab - 1), option)));
    begin = end;
  }
  return ids;
}

int decode(const Values& values, const Tokenizer& tokenizer) {
  std::vector<TokenId> ids = values.has("token-ids") ? prompt_ids(values, tokenizer)
                                                     : ids_in(prompt_text(values), tokenizer.vocab_size(),
                                                              "--prompt-file " + values.text("prompt-file"));
  const std::vector<TokenId> given = ids;
  if (!values.flag("no-special")) {  // what encoding adds by itself is no part of the text
    if (tokenizer.adds_bos() && !ids.empty() && ids.front() == tokenizer.bos()) ids.erase(ids.begin());
    if (tokenizer.adds_eos() && !ids.empty() && ids.back() == tokenizer.eos()) ids.pop_back();
  }
  const std::string text = tokenizer.decode(ids, true);
  if (values.flag("json")) {
    print_json({{"ids", given}, {"text", text}});
  } else {
    print(text);
  }
  return 0;
}

}  // namespace

int tokenize(const Values& values) {
  require_one_prompt(values);
  const ModelFile model = ModelFile::open(values.positionals[0], values.text("tokenizer"));
  const Tokenizer& tokenizer = *model.tokenizer;
  if (values.flag("decode")) return decode(values, tokenizer);
  const bool special = !values.flag("no-special");
  const std::vector<TokenId> ids = values.has("token-ids")
                                       ? prompt_ids(values, tokenizer)
                                       : tokenizer.encode(prompt_text(values), {special, special});
  if (values.flag("json")) {
    Json pieces = Json::array();
    for (const TokenId id : ids) pieces.push_back(tokenizer.piece(id));
    print_json({{"ids", ids}, {"pieces", pieces}});
    return 0;
  }
  for (const TokenId id : ids) print(fmt::format("{}\t{}\n", id, quoted_text(tokenizer.piece(id))));
  return 0;
}

}  // namespace greta::cli
