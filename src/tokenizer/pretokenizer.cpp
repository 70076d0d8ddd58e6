#include "tokenizer/pretokenizer.h"

#include <array>
#include <cstdint>
#include <iterator>
#include <utility>

#include "tokenizer/unicode.h"

namespace greta {
namespace {

using unicode::decode;
using unicode::Decoded;
using unicode::letter;
using unicode::number;
using unicode::space;

/// The classes of the character at `at` and where the next one begins; at the end of the piece: no class,
/// itself.
struct Char {
  char32_t value = 0;
  uint8_t classes = 0;
  size_t end = 0;
  bool is(uint8_t any_of) const { return (classes & any_of) != 0; }
};

Char char_at(std::string_view piece, size_t at) {
  if (at >= piece.size()) return {0, 0, at};
  const Decoded d = decode(piece, at);
  return {d.value, unicode::classes(d.value), at + d.length};
}

/// Where the run of characters for which `wanted` holds ends.
template <class Wanted>
size_t run_end(std::string_view piece, size_t at, const Wanted& wanted) {
  while (at < piece.size()) {
    const Char c = char_at(piece, at);
    if (!wanted(c)) break;
    at = c.end;
  }
  return at;
}

size_t class_run(std::string_view piece, size_t at, uint8_t any_of) {
  return run_end(piece, at, [&](const Char& c) { return c.is(any_of); });
}

/// A run of neither white space, letter nor number.
size_t other_run(std::string_view piece, size_t at) {
  return run_end(piece, at, [](const Char& c) { return !c.is(space | letter | number); });
}

/// Cuts runs of `wanted` out of the piece; what lies between stays whole.
template <class Wanted>
void isolate_runs(std::string_view piece, const WordSink& sink, const Wanted& wanted,
                  size_t longest = SIZE_MAX) {
  size_t kept = 0;
  for (size_t at = 0; at < piece.size();) {
    Char c = char_at(piece, at);
    if (!wanted(c)) {
      at = c.end;
      continue;
    }
    size_t end = c.end;
    for (size_t count = 1; count < longest && end < piece.size(); ++count) {
      c = char_at(piece, end);
      if (!wanted(c)) break;
      end = c.end;
    }
    if (at > kept) sink(piece.substr(kept, at - kept));
    sink(piece.substr(at, end - at));
    kept = at = end;
  }
  if (kept < piece.size()) sink(piece.substr(kept));
}

/// \s?[wanted]+ : the same, with one white space before the run.
template <class Wanted>
void isolate_spaced_runs(std::string_view piece, const WordSink& sink, const Wanted& wanted) {
  size_t kept = 0;
  for (size_t at = 0; at < piece.size();) {
    const Char c = char_at(piece, at);
    size_t from = 0;  // of the run proper
    if (c.is(space) && c.end < piece.size() && wanted(char_at(piece, c.end))) {
      from = c.end;
    } else if (wanted(c)) {
      from = at;
    } else {
      at = c.end;
      continue;
    }
    const size_t end = run_end(piece, from, wanted);
    if (at > kept) sink(piece.substr(kept, at - kept));
    sink(piece.substr(at, end - at));
    kept = at = end;
  }
  if (kept < piece.size()) sink(piece.substr(kept));
}

/// \s+(?!\S)|\s+ at a white space: the run without its last character where something follows, else the run.
size_t white_run(std::string_view piece, size_t at) {
  size_t last = at, end = at;
  while (end < piece.size()) {
    const Char c = char_at(piece, end);
    if (!c.is(space)) break;
    last = end;
    end = c.end;
  }
  return end == piece.size() || last == at ? end : last;
}

/// 's|'t|'re|'ve|'m|'ll|'d at an apostrophe: its length, or 0. With any_case also capitals, and U+017F (the
/// long s, which folds to s).
size_t contraction(std::string_view piece, size_t at, bool any_case) {
  const auto letter_at = [&](size_t i) {
    const char c = i < piece.size() ? piece[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = letter_at(at + 1), b = letter_at(at + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
  if (any_case && piece.substr(at + 1, 2) == "\xC5\xBF") return 3;
  return 0;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void gpt2_words(std::string_view piece, const WordSink& sink) {
  for (size_t at = 0; at < piece.size();) {
    size_t end = at;
    if (piece[at] == '\'') end += contraction(piece, at, false);
    if (end == at) {
      size_t from = at;
      Char c = char_at(piece, at);
      if (c.value == ' ' && c.end < piece.size()) {
        const Char next = char_at(piece, c.end);
        if (!next.is(space)) from = c.end, c = next;
      }
      end = c.is(letter)   ? class_run(piece, from, letter)
            : c.is(number) ? class_run(piece, from, number)
            : c.is(space)  ? white_run(piece, at)
                           : other_run(piece, from);
    }
    sink(piece.substr(at, end - at));
    at = end;
  }
}

bool is_newline(char32_t c) { return c == '\r' || c == '\n'; }

// \s*[\r\n]+ at a white space: up to the last newline of the run; `at` itself where there is none.
size_t newline_run(std::string_view piece, size_t at) {
  size_t found = at;
  for (size_t end = at; end < piece.size();) {
    const Char c = char_at(piece, end);
    if (!c.is(space)) break;
    end = c.end;
    if (is_newline(c.value)) found = end;
  }
  return found;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
template <size_t digits>
void cl100k_words(std::string_view piece, const WordSink& sink) {
  const auto next_word = [&](size_t at) {
    if (piece[at] == '\'') {
      const size_t length = contraction(piece, at, true);
      if (length > 0) return at + length;
    }
    const Char c = char_at(piece, at);
    if (c.is(letter)) return class_run(piece, at, letter);
    if (c.is(number)) {
      size_t end = c.end;
      for (size_t count = 1; count < digits; ++count) {
        const Char more = char_at(piece, end);
        if (!more.is(number)) break;
        end = more.end;
      }
      return end;
    }
    const Char next = char_at(piece, c.end);
    if (!is_newline(c.value) && next.is(letter)) return class_run(piece, c.end, letter);
    const bool spaced = c.value == ' ' && c.end < piece.size() && !next.is(space | letter | number);
    if (!c.is(space) || spaced) {
      const size_t end = other_run(piece, spaced ? c.end : at);
      return run_end(piece, end, [](const Char& x) { return is_newline(x.value); });
    }
    const size_t end = newline_run(piece, at);
    return end > at ? end : white_run(piece, at);
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t end = next_word(at);
    sink(piece.substr(at, end - at));
    at = end;
  }
}

// The `Digits` step, each digit alone.
void single_digits(std::string_view piece, const WordSink& sink) {
  isolate_runs(
      piece, sink, [](const Char& c) { return c.is(unicode::digit_rule); }, 1);
}

// \p{N}+
void number_runs(std::string_view piece, const WordSink& sink) {
  isolate_runs(piece, sink, [](const Char& c) { return c.is(number); });
}

// The `Punctuation` step, runs kept whole.
void punctuation_rule_runs(std::string_view piece, const WordSink& sink) {
  isolate_runs(piece, sink, [](const Char& c) { return c.is(unicode::punct_rule); });
}

// [\p{P}\$\+<=>\^~\|]+
void punctuation_runs(std::string_view piece, const WordSink& sink) {
  isolate_runs(piece, sink, [](const Char& c) {
    return c.is(unicode::punctuation) ||
           (c.value < 0x80 &&
            std::string_view("$+<=>^~|").find(static_cast<char>(c.value)) != std::string_view::npos);
  });
}

// [0-9][0-9][0-9]: groups from the left, a rest of one or two digits stays where it is. Looks at bytes.
void digit_triples(std::string_view piece, const WordSink& sink) {
  const auto digit = [&](size_t i) { return piece[i] >= '0' && piece[i] <= '9'; };
  size_t kept = 0;
  for (size_t at = 0; at + 3 <= piece.size();) {
    if (!(digit(at) && digit(at + 1) && digit(at + 2))) {
      ++at;
      continue;
    }
    if (at > kept) sink(piece.substr(kept, at - kept));
    sink(piece.substr(at, 3));
    kept = at = at + 3;
  }
  if (kept < piece.size()) sink(piece.substr(kept));
}

// Falcon's `Digits` step (runs) comes after its bytes have become letters of the byte alphabet. It therefore
// cuts runs of bytes whose letter counts as a number: the ASCII digits, and the bytes that stand for the
// superscripts and fractions of Latin-1. A cut may fall inside a character.
void falcon_number_bytes(std::string_view piece, const WordSink& sink) {
  const auto numeric = [&](size_t i) {
    const auto b = static_cast<unsigned char>(piece[i]);
    return (b >= '0' && b <= '9') || b == 0xB2 || b == 0xB3 || b == 0xB9 || (b >= 0xBC && b <= 0xBE);
  };
  for (size_t at = 0; at < piece.size();) {
    size_t end = at + 1;
    while (end < piece.size() && numeric(end) == numeric(at)) ++end;
    sink(piece.substr(at, end - at));
    at = end;
  }
}

using Range = std::pair<char32_t, char32_t>;

template <size_t n>
bool in_ranges(const std::array<Range, n>& ranges, char32_t c) {
  size_t low = 0, high = n;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (c > ranges[middle].second) {
      low = middle + 1;
    } else if (c < ranges[middle].first) {
      high = middle;
    } else {
      return true;
    }
  }
  return false;
}

// The letters that DeepSeek LLM's expression lists: the cased scripts.
constexpr auto kDeepseekLetters = std::to_array<Range>({
    {0x41, 0x5A},       {0x61, 0x7A},       {0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},
    {0xF8, 0x1BA},      {0x1BC, 0x1BF},     {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},
    {0x376, 0x377},     {0x37B, 0x37D},     {0x37F, 0x37F},     {0x386, 0x386},     {0x388, 0x38A},
    {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},     {0x3F7, 0x481},     {0x48A, 0x52F},
    {0x531, 0x556},     {0x10A0, 0x10C5},   {0x13A0, 0x13F5},   {0x13F8, 0x13FD},   {0x1C90, 0x1CBA},
    {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},   {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},
    {0x1F18, 0x1F1D},   {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},   {0x1F59, 0x1F59},
    {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},   {0x1FB6, 0x1FBC},
    {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},   {0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},
    {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},   {0x1FF6, 0x1FFC},   {0x2102, 0x2102},   {0x2107, 0x2107},
    {0x210A, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},   {0x213C, 0x213F},
    {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},
    {0x2CEB, 0x2CEE},   {0x2CF2, 0x2CF3},   {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},
    {0xA771, 0xA787},   {0xA78B, 0xA78E},   {0xAB70, 0xABBF},   {0xFB00, 0xFB06},   {0xFB13, 0xFB17},
    {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},   {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB},
    {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2}, {0x118A0, 0x118DF}, {0x1E900, 0x1E943},
});

// Its punctuation: ASCII without digits and letters' neighbours that it leaves out, full-width forms, general
// quotation marks, ideographic space, comma and full stop.
constexpr auto kDeepseekPunctuation = std::to_array<Range>({
    {'!', '/'},
    {':', '~'},
    {0x2018, 0x201F},
    {0x3000, 0x3002},
    {0xFF01, 0xFF0F},
    {0xFF1A, 0xFF5E},
});

// [\r\n]
void single_newlines(std::string_view piece, const WordSink& sink) {
  isolate_runs(
      piece, sink, [](const Char& c) { return is_newline(c.value); }, 1);
}

void deepseek_letters(std::string_view piece, const WordSink& sink) {
  isolate_spaced_runs(piece, sink, [](const Char& c) { return in_ranges(kDeepseekLetters, c.value); });
}

void deepseek_punctuation(std::string_view piece, const WordSink& sink) {
  isolate_spaced_runs(piece, sink, [](const Char& c) { return in_ranges(kDeepseekPunctuation, c.value); });
}

// \s+$
void trailing_white(std::string_view piece, const WordSink& sink) {
  size_t from = piece.size();
  for (size_t at = 0; at < piece.size();) {
    const Char c = char_at(piece, at);
    if (!c.is(space)) {
      from = piece.size();
    } else if (from == piece.size()) {
      from = at;
    }
    at = c.end;
  }
  if (from > 0) sink(piece.substr(0, from));
  if (from < piece.size()) sink(piece.substr(from));
}

// [一-龥ࠀ-一가-퟿]+
void cjk_runs(std::string_view piece, const WordSink& sink) {
  isolate_runs(piece, sink, [](const Char& c) {
    return (c.value >= 0x800 && c.value <= 0x9FA5) || (c.value >= 0xAC00 && c.value <= 0xD7FF);
  });
}

// \s?\p{L}+ and \s?\p{P}+
void spaced_letters(std::string_view piece, const WordSink& sink) {
  isolate_spaced_runs(piece, sink, [](const Char& c) { return c.is(letter); });
}
void spaced_punctuation(std::string_view piece, const WordSink& sink) {
  isolate_spaced_runs(piece, sink, [](const Char& c) { return c.is(unicode::punctuation); });
}

const std::vector<PreTokenizer>& all() {
  static const std::vector<PreTokenizer> table = {
      {"llama-bpe", {cl100k_words<3>}, true, true},
      {"gpt-2", {gpt2_words}, false, false},
      {"smollm", {single_digits, gpt2_words}, false, false},
      {"dbrx", {cl100k_words<3>}, false, false},  // OLMo 2, Phi-4: cl100k itself, with its merges
      {"qwen2", {cl100k_words<1>}, false, false},
      {"falcon", {punctuation_rule_runs, gpt2_words, falcon_number_bytes, digit_triples}, false, false},
      {"starcoder", {single_digits, gpt2_words}, false, false},
      {"deepseek-llm",
       {single_newlines, deepseek_letters, deepseek_punctuation, trailing_white, cjk_runs, single_digits},
       false,
       false},
      {"deepseek-coder",
       {single_newlines, spaced_letters, spaced_punctuation, cjk_runs, single_digits},
       false,
       false},
      {"default", {punctuation_runs, gpt2_words, number_runs, digit_triples}, false, false},
  };
  return table;
}

/// Other names of the same rules.
constexpr std::pair<std::string_view, std::string_view> kAliases[] = {{"llama3", "llama-bpe"},
                                                                      {"llama-v3", "llama-bpe"},
                                                                      {"smaug-bpe", "dbrx"},
                                                                      {"refact", "starcoder"},
                                                                      {"deepseek-r1-qwen", "qwen2"}};

void run_steps(const std::vector<SplitStep>& steps, size_t index, std::string_view piece,
               const WordSink& sink) {
  if (index + 1 == steps.size()) return steps[index](piece, sink);
  steps[index](piece, [&](std::string_view part) { run_steps(steps, index + 1, part, sink); });
}

}  // namespace

void PreTokenizer::split(std::string_view text, const WordSink& sink) const {
  if (!text.empty()) run_steps(steps, 0, text, sink);
}

const PreTokenizer* find_pretokenizer(std::string_view name) {
  for (const auto& [alias, target] : kAliases) {
    if (alias == name) name = target;
  }
  for (const PreTokenizer& p : all()) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

std::string pretokenizer_names() {
  std::string names;
  const auto add = [&](std::string_view name) { names.append(names.empty() ? "" : ", ").append(name); };
  for (const PreTokenizer& p : all()) add(p.name);
  for (const auto& [alias, target] : kAliases) add(alias);
  return names;
}

}  // namespace greta
