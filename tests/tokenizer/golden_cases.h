#pragma once
// Strings and their ids by an oracle (the format: tools/golden_tokenizer.py), and how they are compared.
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace greta::testing {

struct GoldenCase {
  bool reads_special = true;
  bool has_u2581 = false;   ///< SPM gives U+2581 back as a space
  bool leaves_out = false;  ///< the vocabulary lacks tokens for some bytes of the text: it does not come back
  std::string text;
  std::vector<TokenId> ids;
};

std::vector<GoldenCase> read_golden_cases(const std::string& path);

/// Empty where encoding, decoding and streaming are all right; else what is wrong.
std::string check_golden_case(const Tokenizer& tokenizer, const GoldenCase& expected);

}  // namespace greta::testing
