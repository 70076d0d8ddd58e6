#pragma once
// The text that checks run on when nobody gives one, and prompts of exact lengths made from it.
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace greta {

/// English prose, about 900 words, paragraphs with an empty line between them.
std::string_view built_in_text();

/// Exactly `tokens` ids: `text` again and again, cut where it is long enough. Each reading has a number and
/// begins one paragraph later than the one before, so that nothing repeats literally. The same ids for the
/// same tokenizer and text; a shorter prompt is the beginning of a longer one.
/// Errors: no tokens asked for, a text that gives none.
std::vector<TokenId> prompt_of_length(const Tokenizer& tokenizer, size_t tokens,
                                      std::string_view text = built_in_text());

}  // namespace greta
