// greta inspect: what a file holds.
#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "gguf/gguf.h"
#include "tokenizer/tokenizer.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kShownElements = 8;  // of an array: a vocabulary is not for reading
constexpr size_t kNameColumn = 80;      // a name that is longer stands out of its column, alone

Json array_json(const gguf::Array& array) {
  Json first = Json::array();
  for (uint64_t i = 0; i < std::min(array.count, kShownElements); ++i) {
    if (array.element == gguf::ValueType::String)
      first.push_back(array.strings[i]);
    else if (array.element == gguf::ValueType::Array)
      first.push_back(array_json(array.arrays[i]));
    else if (array.element == gguf::ValueType::Bool)
      first.push_back(gguf::array_integer(array, i) != 0);
    else if (array.element == gguf::ValueType::F32 || array.element == gguf::ValueType::F64)
      first.push_back(gguf::array_number(array, i));
    else if (array.element == gguf::ValueType::U64)
      first.push_back(static_cast<uint64_t>(gguf::array_integer(array, i)));
    else
      first.push_back(gguf::array_integer(array, i));
  }
  return {{"array_of", gguf::name_of(array.element)}, {"count", array.count}, {"first", first}};
}

Json value_json(const gguf::Value& value) {
  return std::visit(
      [](const auto& data) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(data)>, gguf::Array>)
          return array_json(data);
        else
          return data;
      },
      value.data);
}

std::string array_text(const gguf::Array& array) {
  std::string out = "[";
  for (uint64_t i = 0; i < std::min(array.count, kShownElements); ++i) {
    if (i > 0) out += ", ";
    if (array.element == gguf::ValueType::String)
      out += quoted_text(array.strings[i]);
    else if (array.element == gguf::ValueType::Array)
      out += array_text(array.arrays[i]);
    else
      out += gguf::element_text(array, i);
  }
  return out + (array.count > kShownElements ? fmt::format(", ... {} in all]", array.count) : "]");
}

std::string value_text(const gguf::Value& value) {
  if (const auto* array = std::get_if<gguf::Array>(&value.data))
    return fmt::format("array of {} {}", gguf::name_of(array->element), array_text(*array));
  const std::string type(gguf::name_of(value.type));
  if (const auto* text = std::get_if<std::string_view>(&value.data)) return type + " " + quoted_text(*text);
  if (const auto* flag = std::get_if<bool>(&value.data)) return fmt::format("{} {}", type, *flag);
  if (const auto* number = std::get_if<double>(&value.data))
    return value.type == gguf::ValueType::F32 ? fmt::format("{} {}", type, static_cast<float>(*number))
                                              : fmt::format("{} {}", type, *number);
  if (const auto* number = std::get_if<int64_t>(&value.data)) return fmt::format("{} {}", type, *number);
  return fmt::format("{} {}", type, std::get<uint64_t>(value.data));
}

struct TypeSum {
  uint64_t tensors = 0;
  uint64_t elements = 0;
  uint64_t bytes = 0;
};

std::map<std::string, TypeSum> sums_by_type(const gguf::File& file) {
  std::map<std::string, TypeSum> sums;
  for (const gguf::Tensor& tensor : file.tensors()) {
    TypeSum& sum = sums[std::string(quant::traits(tensor.type).name)];
    ++sum.tensors;
    sum.elements += tensor.elements();
    sum.bytes += tensor.bytes.size();
  }
  return sums;
}

/// The tokenizer; a file without one is fine, one with a broken one is told with a warning.
std::unique_ptr<Tokenizer> tokenizer_of(const gguf::File& file) {
  if (file.find("tokenizer.ggml.model") == nullptr) return nullptr;
  try {
    return Tokenizer::from_gguf(file);
  } catch (const Error& error) {
    log::warning("the tokenizer cannot be used: {}", printable(error.what()));
    for (const std::string& detail : error.details()) log::warning("{}", printable(detail));
    return nullptr;
  }
}

std::string token_text(const Tokenizer& tokenizer, std::optional<TokenId> id) {
  return id ? fmt::format("{} {}", *id, quoted_text(tokenizer.piece(*id))) : "none";
}

void print_tokenizer(const gguf::File& file) {
  const auto tokenizer = tokenizer_of(file);
  if (!tokenizer) {
    print(fmt::format("tokenizer     {}\n",
                      file.find("tokenizer.ggml.model") == nullptr ? "none in this file" : "cannot be used"));
    return;
  }
  std::string ends;
  for (const TokenId id : tokenizer->end_tokens())
    ends += (ends.empty() ? "" : ", ") + token_text(*tokenizer, id);
  print(fmt::format("tokenizer     {}, {} tokens\n", printable(tokenizer->description()),
                    tokenizer->vocab_size()));
  print(fmt::format("begin         {}{}\n", token_text(*tokenizer, tokenizer->bos()),
                    tokenizer->adds_bos() ? ", added to a prompt" : ""));
  print(fmt::format("end           {}{}\n", token_text(*tokenizer, tokenizer->eos()),
                    tokenizer->adds_eos() ? ", added to a prompt" : ""));
  print(fmt::format("stops at      {}\n", ends.empty() ? "nothing" : ends));
}

std::string string_of(const gguf::File& file, std::string_view key) {
  const gguf::Value* value = file.find(key);
  if (value == nullptr) return "not stated";
  const auto* text = std::get_if<std::string_view>(&value->data);
  return text != nullptr ? printable(*text) : value_text(*value);
}

void print_summary(const gguf::File& file) {
  print(fmt::format("file          {}\n", printable(file.path())));
  for (size_t i = 1; i < file.part_paths().size(); ++i)
    print(fmt::format("              {}\n", printable(file.part_paths()[i])));
  print(fmt::format("              {}, GGUF version {}, alignment {}\n",
                    bytes_shown(static_cast<double>(file.file_bytes())), file.version(), file.alignment()));
  print(fmt::format("name          {}\n", string_of(file, "general.name")));
  print(fmt::format("architecture  {}\n", string_of(file, "general.architecture")));
  print(fmt::format("metadata      {} keys\n", file.metadata().size()));
  const auto sums = sums_by_type(file);
  uint64_t elements = 0;
  for (const auto& [type, sum] : sums) elements += sum.elements;
  print(fmt::format("tensors       {}, {} elements\n", file.tensors().size(), elements));
  for (const auto& [type, sum] : sums)
    print(fmt::format("  {:<12}{:>6} tensors {:>14} elements {:>10}\n", type, sum.tensors, sum.elements,
                      bytes_shown(static_cast<double>(sum.bytes))));
  print_tokenizer(file);
}

void print_tensors(const gguf::File& file) {
  size_t width = 4;
  for (const gguf::Tensor& tensor : file.tensors()) width = std::max(width, printable(tensor.name).size());
  width = std::min(width, kNameColumn);
  print(fmt::format("{:<{}}  {:<20} {:<5} {:>14} {:>14}{}\n", "name", width, "shape", "type", "bytes",
                    "offset", file.part_paths().size() > 1 ? "  part" : ""));
  for (const gguf::Tensor& tensor : file.tensors())
    print(fmt::format("{:<{}}  {:<20} {:<5} {:>14} {:>14}{}\n", printable(tensor.name), width,
                      tensor.shape_text(), quant::traits(tensor.type).name, tensor.bytes.size(),
                      tensor.offset,
                      file.part_paths().size() > 1 ? fmt::format("  {}", tensor.part + 1) : ""));
}

Json tokenizer_json(const gguf::File& file) {
  const auto tokenizer = tokenizer_of(file);
  if (!tokenizer) return nullptr;
  const auto optional = [](std::optional<TokenId> id) { return id ? Json(*id) : Json(); };
  return {{"description", tokenizer->description()}, {"vocab", tokenizer->vocab_size()},
          {"bos", optional(tokenizer->bos())},       {"eos", optional(tokenizer->eos())},
          {"adds_bos", tokenizer->adds_bos()},       {"adds_eos", tokenizer->adds_eos()},
          {"end_tokens", tokenizer->end_tokens()}};
}

Json document(const gguf::File& file, bool metadata, bool tensors) {
  Json json = {{"file", file.path()},
               {"parts", file.part_paths()},
               {"bytes", file.file_bytes()},
               {"version", file.version()},
               {"alignment", file.alignment()},
               {"metadata_keys", file.metadata().size()},
               {"tensor_count", file.tensors().size()},
               {"types", Json::object()},
               {"tokenizer", tokenizer_json(file)}};
  for (const auto& [type, sum] : sums_by_type(file))
    json["types"][type] = {{"tensors", sum.tensors}, {"elements", sum.elements}, {"bytes", sum.bytes}};
  if (metadata) {
    // As a vector of pairs: an ordered object's own ways in look through all keys, and these are unique.
    Json::object_t keys;
    keys.reserve(file.metadata().size());
    for (const auto& [key, value] : file.metadata())
      keys.emplace_back(key, Json{{"type", gguf::name_of(value.type)}, {"value", value_json(value)}});
    json["metadata"] = std::move(keys);
  }
  if (tensors) {
    json["tensors"] = Json::array();
    for (const gguf::Tensor& tensor : file.tensors())
      json["tensors"].push_back({{"name", tensor.name},
                                 {"shape", tensor.shape},
                                 {"type", quant::traits(tensor.type).name},
                                 {"bytes", tensor.bytes.size()},
                                 {"offset", tensor.offset},
                                 {"part", tensor.part}});
  }
  return json;
}

}  // namespace

int inspect(const Values& values) {
  const gguf::File file = gguf::File::open(values.positionals[0]);
  const bool metadata = values.flag("metadata");
  const bool tensors = values.flag("tensors");
  if (values.flag("json")) {
    print_json(document(file, metadata, tensors));
    return 0;
  }
  if (!metadata && !tensors) print_summary(file);
  if (metadata)
    for (const auto& [key, value] : file.metadata())
      print(fmt::format("{} = {}\n", printable(key), value_text(value)));
  if (tensors) print_tensors(file);
  return 0;
}

}  // namespace greta::cli
