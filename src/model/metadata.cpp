#include "model/metadata.h"

#include <fmt/format.h>

#include <utility>

#include "base/text.h"

namespace greta {

namespace {

using gguf::ValueType;

bool is_integer(ValueType type) {
  switch (type) {
    case ValueType::U8:
    case ValueType::I8:
    case ValueType::U16:
    case ValueType::I16:
    case ValueType::U32:
    case ValueType::I32:
    case ValueType::U64:
    case ValueType::I64:
      return true;
    default:
      return false;
  }
}

/// An integer value as int64; nothing for other types and for what int64 cannot hold.
std::optional<int64_t> as_integer(const gguf::Value& value) {
  if (!is_integer(value.type)) return std::nullopt;
  if (const auto* u = std::get_if<uint64_t>(&value.data)) {
    if (*u > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(*u);
  }
  if (const auto* i = std::get_if<int64_t>(&value.data)) return *i;
  return std::nullopt;
}

std::optional<double> as_number(const gguf::Value& value) {
  if (const auto* b = std::get_if<bool>(&value.data)) return *b ? 1.0 : 0.0;
  if (const auto* d = std::get_if<double>(&value.data)) return *d;
  if (const auto* u = std::get_if<uint64_t>(&value.data)) return static_cast<double>(*u);
  if (const auto* i = std::get_if<int64_t>(&value.data)) return static_cast<double>(*i);
  return std::nullopt;
}

constexpr std::string_view kNoKey = "no such key";

}  // namespace

std::string quoted(std::string_view text) { return '"' + printable(text, 60) + '"'; }

std::string show(const gguf::Value& value) {
  const std::string type(gguf::name_of(value.type));
  if (const auto* u = std::get_if<uint64_t>(&value.data)) return fmt::format("{} {}", type, *u);
  if (const auto* i = std::get_if<int64_t>(&value.data)) return fmt::format("{} {}", type, *i);
  if (const auto* d = std::get_if<double>(&value.data)) {
    if (value.type == ValueType::F32) return fmt::format("{} {}", type, static_cast<float>(*d));
    return fmt::format("{} {}", type, *d);
  }
  if (const auto* b = std::get_if<bool>(&value.data)) return fmt::format("{} {}", type, *b);
  if (const auto* s = std::get_if<std::string_view>(&value.data))
    return fmt::format("{} {}", type, quoted(*s));
  const auto& array = std::get<gguf::Array>(value.data);
  return fmt::format("array of {} {}", array.count, gguf::name_of(array.element));
}

std::vector<bool> every_but_nth(int64_t layers, int64_t period) {
  std::vector<bool> set;
  for (int64_t layer = 0; layer < layers; ++layer) set.push_back(period == 0 || (layer + 1) % period != 0);
  return set;
}

MetadataReader::MetadataReader(const gguf::File& file, std::string prefix, std::vector<Problem>& problems)
    : file_(file), prefix_(std::move(prefix)), problems_(problems) {}

const gguf::Value* MetadataReader::take(std::string_view name) {
  read_.emplace(name);
  return file_.find(key(name));
}

void MetadataReader::report(std::string_view name, std::string expected, std::string got,
                            std::string remedy) {
  problems_.push_back({key(name), std::move(expected), std::move(got), std::move(remedy)});
}

std::string MetadataReader::shown(std::string_view name) const {
  const auto* value = file_.find(key(name));
  return value == nullptr ? std::string(kNoKey) : show(*value);
}

std::optional<int64_t> MetadataReader::same_in_all_layers(std::string_view name, const gguf::Array& array,
                                                          const std::string& expected,
                                                          std::optional<int64_t> layers) {
  if (!is_integer(array.element) || array.count == 0) {
    report(name, expected, fmt::format("array of {} {}", array.count, gguf::name_of(array.element)));
    return std::nullopt;
  }
  const int64_t first = gguf::array_integer(array, 0);
  for (uint64_t i = 1; i < array.count; ++i) {
    if (gguf::array_integer(array, i) != first) {
      report(name, "the same number in every layer",
             fmt::format("{} in layer 0, {} in layer {}", gguf::element_text(array, 0),
                         gguf::element_text(array, i), i),
             "layers of unlike shapes are not supported");
      return std::nullopt;
    }
  }
  if (layers && *layers > 0 && array.count != static_cast<uint64_t>(*layers)) {
    report(name, fmt::format("one number for each of {} layers", *layers),
           fmt::format("{} numbers", array.count));
    return std::nullopt;
  }
  return first;
}

Field<int64_t> MetadataReader::integer(std::string_view name, IntRange range, bool required,
                                       std::optional<int64_t> layers) {
  const std::string expected = fmt::format("an integer, {} to {}", range.least, range.most);
  const auto* value = take(name);
  if (value == nullptr) {
    if (required) report(name, expected, std::string(kNoKey), "the file's metadata is incomplete");
    return {std::nullopt, true};
  }
  std::optional<int64_t> number;
  const auto* array = std::get_if<gguf::Array>(&value->data);
  if (array != nullptr && layers) {
    number = same_in_all_layers(name, *array, expected, layers);
    if (!number) return {};
  } else {
    number = as_integer(*value);
  }
  if (!number || *number < range.least || *number > range.most) {
    report(name, expected,
           array != nullptr && number ? gguf::element_text(*array, 0) + " in every layer" : show(*value));
    return {};
  }
  return {number, false};
}

Field<double> MetadataReader::real(std::string_view name, RealRange range, bool required) {
  const std::string expected =
      fmt::format("f32, {}above {:g} and at most {:g}", range.zero ? "0 or " : "", range.above, range.most);
  const auto* value = take(name);
  if (value == nullptr) {
    if (required) report(name, expected, std::string(kNoKey), "the file's metadata is incomplete");
    return {std::nullopt, true};
  }
  const auto* number = std::get_if<double>(&value->data);
  if (value->type != ValueType::F32 || number == nullptr || !range.has(*number)) {
    report(name, expected, show(*value));
    return {};
  }
  return {*number, false};
}

Field<std::string> MetadataReader::string(std::string_view name, bool required) {
  const auto* value = take(name);
  if (value == nullptr) {
    if (required) report(name, "a string", std::string(kNoKey), "the file's metadata is incomplete");
    return {std::nullopt, true};
  }
  const auto* text = std::get_if<std::string_view>(&value->data);
  if (text == nullptr) {
    report(name, "a string", show(*value));
    return {};
  }
  return {std::string(*text), false};
}

Field<bool> MetadataReader::flag(std::string_view name) {
  const auto* value = take(name);
  if (value == nullptr) return {std::nullopt, true};
  if (const auto* set = std::get_if<bool>(&value->data)) return {*set, false};
  report(name, "a bool", show(*value));
  return {};
}

Field<std::vector<bool>> MetadataReader::pattern(std::string_view name, int64_t layers) {
  const auto* value = take(name);
  if (value == nullptr) return {std::nullopt, true};
  if (const auto period = as_integer(*value); period && *period >= 0)
    return {every_but_nth(layers, *period), false};
  const auto* array = std::get_if<gguf::Array>(&value->data);
  if (array == nullptr || array->element != ValueType::Bool ||
      array->count != static_cast<uint64_t>(layers)) {
    report(name, fmt::format("a number of layers, or an array of {} bools", layers), show(*value));
    return {};
  }
  std::vector<bool> set;
  for (const std::byte b : array->raw) set.push_back(b != std::byte{0});
  return {set, false};
}

void MetadataReader::neutral(std::string_view name, double neutral, std::string_view meaning) {
  const auto* value = take(name);
  if (value == nullptr) return;
  const auto number = as_number(*value);
  if (number && *number == neutral) return;
  const bool flag = value->type == ValueType::Bool;
  report(name,
         fmt::format("no such key, or {}",
                     flag ? (neutral != 0 ? "true" : "false") : fmt::format("{}", neutral)),
         show(*value), fmt::format("{}: this engine does not compute it", meaning));
}

void MetadataReader::ignore(std::string_view name) { take(name); }

std::vector<std::string> MetadataReader::unread() const {
  std::vector<std::string> names;
  for (const auto& [full, value] : file_.metadata()) {
    if (!full.starts_with(prefix_)) continue;
    std::string name = full.substr(prefix_.size());
    if (!read_.contains(name)) names.push_back(std::move(name));
  }
  return names;
}

}  // namespace greta
