// tokenizer.ggml.* of a GGUF file -> VocabData.
#include <variant>

#include "base/error.h"
#include "gguf/gguf.h"
#include "tokenizer/bpe.h"
#include "tokenizer/spm.h"
#include "tokenizer/vocab.h"

namespace greta {
namespace {

constexpr std::string_view kWayOut =
    "the file has no usable tokenizer: convert the model again with one, or give a SentencePiece model with "
    "--tokenizer FILE";

/// Typed access to the keys of one file; every error names key, expected and got.
class Keys {
 public:
  explicit Keys(const gguf::File& file) : file_(file) {}

  std::optional<std::string_view> text(std::string_view key) const {
    const gguf::Value* value = file_.find(key);
    if (value == nullptr) return std::nullopt;
    const auto* text = std::get_if<std::string_view>(&value->data);
    if (text == nullptr) wrong_type(key, "string", value->type);
    return *text;
  }

  std::optional<bool> flag(std::string_view key) const {
    const gguf::Value* value = file_.find(key);
    if (value == nullptr) return std::nullopt;
    const bool* flag = std::get_if<bool>(&value->data);
    if (flag == nullptr) wrong_type(key, "bool", value->type);
    return *flag;
  }

  std::optional<int64_t> number(std::string_view key) const {
    const gguf::Value* value = file_.find(key);
    if (value == nullptr) return std::nullopt;
    if (const auto* n = std::get_if<int64_t>(&value->data)) return *n;
    const auto* n = std::get_if<uint64_t>(&value->data);
    if (n == nullptr) wrong_type(key, "an integer", value->type);
    return *n > INT64_MAX ? INT64_MAX : static_cast<int64_t>(*n);
  }

  /// nullptr where the key is missing.
  const gguf::Array* array(std::string_view key, std::string_view expected,
                           bool (*fits)(gguf::ValueType)) const {
    const gguf::Value* value = file_.find(key);
    if (value == nullptr) return nullptr;
    const auto* array = std::get_if<gguf::Array>(&value->data);
    if (array == nullptr) wrong_type(key, expected, value->type);
    if (array->count > 0 && !fits(array->element)) {
      fail("{}: {}: expected {}, got an array of {}", file_.path(), key, expected,
           gguf::name_of(array->element));
    }
    return array;
  }

 private:
  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected, gguf::ValueType got) const {
    fail("{}: {}: expected {}, got {}", file_.path(), key, expected, gguf::name_of(got));
  }
  const gguf::File& file_;
};

bool is_string(gguf::ValueType type) { return type == gguf::ValueType::String; }
bool is_integer(gguf::ValueType type) {
  using enum gguf::ValueType;
  return type == U8 || type == I8 || type == U16 || type == I16 || type == U32 || type == I32 ||
         type == U64 || type == I64;
}
bool is_float(gguf::ValueType type) { return type == gguf::ValueType::F32 || type == gguf::ValueType::F64; }

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const VocabData& data) {
  if (data.model == "llama") return std::make_unique<SpmTokenizer>(data);
  if (data.model == "gpt2") return std::make_unique<BpeTokenizer>(data);
  fail("{}: tokenizer.ggml.model: expected llama (SPM) or gpt2 (byte-level BPE), got {}; {}", data.source,
       data.model.empty() ? "no such key" : "\"" + shown(data.model) + "\"", kWayOut);
}

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const gguf::File& file) {
  const Keys keys(file);
  VocabData data;
  data.source = file.path();
  data.model = keys.text("tokenizer.ggml.model").value_or("");
  data.pre = keys.text("tokenizer.ggml.pre").value_or("");

  const auto* tokens = keys.array("tokenizer.ggml.tokens", "an array of string", is_string);
  if (tokens == nullptr)
    fail("{}: tokenizer.ggml.tokens: expected an array of string, got no such key; {}", data.source, kWayOut);
  data.pieces = tokens->strings;
  if (const auto* merges = keys.array("tokenizer.ggml.merges", "an array of string", is_string)) {
    data.merges = merges->strings;
  }
  if (const auto* scores = keys.array("tokenizer.ggml.scores", "an array of f32", is_float)) {
    data.scores.resize(scores->count);
    for (uint64_t i = 0; i < scores->count; ++i)
      data.scores[i] = static_cast<float>(gguf::array_number(*scores, i));
  }
  if (const auto* types = keys.array("tokenizer.ggml.token_type", "an array of i32", is_integer)) {
    data.types.resize(types->count);
    for (uint64_t i = 0; i < types->count; ++i) {
      const int64_t type = gguf::array_integer(*types, i);
      data.types[i] = type >= 0 && type <= 6 ? static_cast<int32_t>(type) : 0;  // 0 is refused with its index
    }
  }
  if (keys.array("tokenizer.ggml.precompiled_charsmap", "an array of u8", is_integer) != nullptr) {
    fail(
        "{}: tokenizer.ggml.precompiled_charsmap: expected no such key, got a table of normalisation rules, "
        "which is not "
        "supported",
        data.source);
  }
  data.bos = keys.number("tokenizer.ggml.bos_token_id");
  data.eos = keys.number("tokenizer.ggml.eos_token_id");
  data.eot = keys.number("tokenizer.ggml.eot_token_id");
  data.eom = keys.number("tokenizer.ggml.eom_token_id");
  data.unknown = keys.number("tokenizer.ggml.unknown_token_id");
  data.add_bos = keys.flag("tokenizer.ggml.add_bos_token");
  data.add_eos = keys.flag("tokenizer.ggml.add_eos_token");
  data.add_space_prefix = keys.flag("tokenizer.ggml.add_space_prefix");
  data.remove_extra_whitespaces = keys.flag("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
  // Phi-3's tokenizer.json says of each special token that it takes the white space behind it; the format has
  // no place for that. Phi-4's files are byte-level BPE.
  data.strips_after_special = data.model == "llama" && keys.text("general.architecture") == "phi3";
  return make_tokenizer(data);
}

}  // namespace greta
