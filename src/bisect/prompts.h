#pragma once
#include <string>
#include <vector>

#include "bisect/examine.h"

namespace greta {

/// The prompts of a comma-separated list. A name is a built-in (p0_short "Hi"; p6_len_16 of 827 tokens,
/// p6_len_32 of 1,653, built to that length under the tokenizer) or else a file: `.ids` holds token ids with
/// commas or blanks between them, `.json` an array of them, any other text. Errors: neither (lists the
/// built-ins), an empty or unreadable file, what is no text or no array, ids outside the vocabulary, a name
/// twice.
std::vector<Prompt> prompts_of(const std::string& list, const Tokenizer& tokenizer);

}  // namespace greta
