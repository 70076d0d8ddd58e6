#pragma once
// Byte-level BPE cuts a text into words before it merges; how, is the family's rule (`tokenizer.ggml.pre`).
// Each rule is a published sequence of regular expressions; here each expression is a scanner over code
// points, linear in the text.
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace greta {

/// Receives the words in order; together they are the text.
using WordSink = std::function<void(std::string_view word)>;

/// One step of a rule: cuts a piece into smaller ones. Steps but the last see whole characters.
using SplitStep = void (*)(std::string_view piece, const WordSink& sink);

struct PreTokenizer {
  std::string_view name;         ///< the family's name, as `tokenizer.ggml.pre` has it
  std::vector<SplitStep> steps;  ///< each works on every piece of the one before
  bool ignore_merges =
      false;              ///< a whole word that is in the vocabulary is one token, whatever the merges say
  bool adds_bos = false;  ///< the family's default where the file does not say

  /// Cuts well-formed UTF-8 into words.
  void split(std::string_view text, const WordSink& sink) const;
};

/// By `tokenizer.ggml.pre` (aliases included), or nullptr.
const PreTokenizer* find_pretokenizer(std::string_view name);
/// "llama-bpe, gpt-2, ...": for error messages and documentation.
std::string pretokenizer_names();

}  // namespace greta
