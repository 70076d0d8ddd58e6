#include "synth/vocabulary.h"

#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace greta::synth {
namespace {

constexpr const char* kSpace = "\xe2\x96\x81";  // U+2581 stands for a space

// The kinds of token that tokenizer.ggml.token_type knows.
constexpr int32_t kNormal = 1;
constexpr int32_t kUnknown = 2;
constexpr int32_t kControl = 3;
constexpr int32_t kByte = 6;

/// All words of `length` letters in order: aa, ab, .. zz; `mark` stands before each.
void add_words(std::vector<std::string>& pieces, uint64_t size, const std::string& mark, int length) {
  std::string word(static_cast<size_t>(length), 'a');
  while (pieces.size() < size) {
    pieces.push_back(mark + word);
    size_t at = word.size();
    while (at > 0 && word[at - 1] == 'z') word[--at] = 'a';
    if (at == 0) return;
    ++word[at - 1];
  }
}

}  // namespace

void add_made_up_tokenizer(gguf::Writer& writer, uint64_t size) {
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) pieces.push_back(fmt::format("<0x{:02X}>", byte));
  const size_t first_piece = pieces.size();
  pieces.emplace_back(kSpace);
  for (char c = '!'; c <= '~' && pieces.size() < size; ++c) pieces.emplace_back(1, c);
  for (int length = 2; pieces.size() < size; ++length) {
    add_words(pieces, size, kSpace, length - 1);
    add_words(pieces, size, "", length);
  }
  // Scores as SentencePiece's BPE has them: minus the rank, so that earlier pieces merge first.
  std::vector<float> scores(pieces.size(), 0.0F);
  std::vector<int32_t> types(pieces.size(), kNormal);
  for (size_t i = first_piece; i < pieces.size(); ++i) scores[i] = -static_cast<float>(i - first_piece);
  for (size_t i = 0; i < first_piece; ++i) types[i] = i == 0 ? kUnknown : i < 3 ? kControl : kByte;
  writer.add_string("tokenizer.ggml.model", "llama");
  writer.add_string("tokenizer.ggml.pre", "default");
  writer.add_strings("tokenizer.ggml.tokens", pieces);
  writer.add_f32s("tokenizer.ggml.scores", scores);
  writer.add_i32s("tokenizer.ggml.token_type", types);
  writer.add_u32("tokenizer.ggml.unknown_token_id", 0);
  writer.add_u32("tokenizer.ggml.bos_token_id", 1);
  writer.add_u32("tokenizer.ggml.eos_token_id", 2);
  writer.add_bool("tokenizer.ggml.add_bos_token", true);
  writer.add_bool("tokenizer.ggml.add_eos_token", false);
  writer.add_bool("tokenizer.ggml.add_space_prefix", true);
}

void copy_tokenizer(gguf::Writer& writer, const gguf::File& source) {
  for (const auto& [key, value] : source.metadata())
    if (key.starts_with("tokenizer.")) writer.add_value(key, value);
}

uint64_t vocabulary_size(const gguf::File& source) {
  try {
    return static_cast<uint64_t>(Tokenizer::from_gguf(source)->vocab_size());
  } catch (const Error& error) {
    std::vector<std::string> why = {error.what()};
    why.insert(why.end(), error.details().begin(), error.details().end());
    throw Error(
        fmt::format("--tokenizer-from {}: expected a model or a vocabulary file with a tokenizer that "
                    "greta can use, got one that it refuses; name another, or leave the option out",
                    source.path()),
        std::move(why));
  }
}

}  // namespace greta::synth
