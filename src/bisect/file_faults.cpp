#include "bisect/file_faults.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "bisect/fault_base.h"
#include "bisect/fault_blocks.h"
#include "gguf/gguf.h"

namespace greta {
namespace {

using Bytes = std::vector<std::byte>;
using gguf::ValueType;

constexpr uint64_t kFirst = 32;  // what plant_bits() are drawn for
constexpr uint64_t kSecond = 33;

/// What is unlike the original: bytes of tensors, values of metadata.
struct Edits {
  std::map<std::string, Bytes> tensors;
  std::map<std::string, gguf::Value> values;
};

void write_copy(const gguf::File& file, const Edits& edits, const std::string& out) {
  std::error_code ignored;
  for (const std::string& part : file.part_paths())
    if (std::filesystem::equivalent(part, out, ignored)) fail("{}: the copy would replace its original", out);
  gguf::Writer writer(file.alignment());
  for (const auto& [key, value] : file.metadata()) {
    if (key == "general.alignment" || key.starts_with("split.")) continue;  // the writer's; one file results
    const auto edited = edits.values.find(key);
    writer.add_value(key, edited == edits.values.end() ? value : edited->second);
  }
  for (const gguf::Tensor& tensor : file.tensors()) {
    const auto edited = edits.tensors.find(tensor.name);
    const std::span<const std::byte> bytes =
        edited == edits.tensors.end() ? tensor.bytes : std::span<const std::byte>(edited->second);
    writer.add_tensor(tensor.name, tensor.shape, tensor.type,
                      [bytes](const gguf::Writer::Sink& sink) { sink(bytes); });
  }
  writer.write(out);
}

const gguf::Tensor& tensor_of(const gguf::File& file, const std::string& name) {
  const gguf::Tensor* tensor = file.find_tensor(name);
  if (tensor == nullptr)
    fail("{} has no tensor '{}'; expected one of its {} (greta inspect lists them)", file.path(), name,
         file.tensors().size());
  return *tensor;
}

size_t row_bytes(const gguf::Tensor& tensor) {
  const quant::Traits& t = quant::traits(tensor.type);
  return static_cast<size_t>(tensor.shape[0]) / static_cast<size_t>(t.block) * static_cast<size_t>(t.bytes);
}

Bytes bytes_of(const gguf::Tensor& tensor) { return {tensor.bytes.begin(), tensor.bytes.end()}; }

void expect_index(const gguf::Tensor& tensor, const char* what, int64_t index, size_t count) {
  if (index < 0 || static_cast<size_t>(index) >= count)
    fail("{}: expected {} 0 to {}, got {}", tensor.name, what, count - 1, index);
}

/// The first element of a float tensor's block negated, or made 1 where it is zero.
void change_float(quant::Type type, std::byte* at) {
  float value;
  quant::dequantize(type, at, 1, &value);
  value = value == 0.0F ? 1.0F : -value;
  quant::quantize(type, &value, 1, at);
}

template <class T>
T parsed(const std::string& key, const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end)
    fail("metadata '{}': '{}' is no value of its type", key, text);
  return value;
}

/// `text` as a value of the type that `old` has, or an Error.
gguf::Value value_from(const std::string& key, const gguf::Value& old, const std::string& text) {
  gguf::Value value = old;
  const auto natural = [&](uint64_t most) {
    const auto n = parsed<uint64_t>(key, text);
    if (n > most) fail("metadata '{}': expected at most {}, got {}", key, most, text);
    value.data = n;
  };
  const auto integer = [&](int64_t most) {
    const auto n = parsed<int64_t>(key, text);
    if (n > most || n < -most - 1)
      fail("metadata '{}': expected {} to {}, got {}", key, -most - 1, most, text);
    value.data = n;
  };
  switch (old.type) {
    case ValueType::U8:
      natural(UINT8_MAX);
      break;
    case ValueType::U16:
      natural(UINT16_MAX);
      break;
    case ValueType::U32:
      natural(UINT32_MAX);
      break;
    case ValueType::U64:
      natural(UINT64_MAX);
      break;
    case ValueType::I8:
      integer(INT8_MAX);
      break;
    case ValueType::I16:
      integer(INT16_MAX);
      break;
    case ValueType::I32:
      integer(INT32_MAX);
      break;
    case ValueType::I64:
      integer(INT64_MAX);
      break;
    case ValueType::F32:
      value.data = double{parsed<float>(key, text)};
      break;
    case ValueType::F64:
      value.data = parsed<double>(key, text);
      break;
    case ValueType::Bool:
      if (text != "true" && text != "false") fail("metadata '{}': expected true or false, got {}", key, text);
      value.data = text == "true";
      break;
    case ValueType::String:
      value.data = std::string_view(text);
      break;
    case ValueType::Array:
      fail("metadata '{}' is an array: expected a single value", key);
  }
  return value;
}

std::string text_of(const gguf::Value& value) {
  return std::visit(
      [](const auto& held) -> std::string {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, gguf::Array>) {
          return "an array";
        } else {
          return fmt::format("{}", held);
        }
      },
      value.data);
}

/// The tensor behind the plant's stage: the embedding where a tied model has no head of its own.
std::string planted_tensor(const Plant& plant, const HParams& hp, const gguf::File& file) {
  const std::string name = tensor_name(hp, plant.stage, plant.layer);
  const bool tied = is_picked(plant.stage) && file.find_tensor(name) == nullptr;
  return tied ? "token_embd.weight" : name;
}

std::string plant_metadata(const Plant& plant, const HParams& hp, const std::string& in,
                           const std::string& out) {
  const auto key = [&](const char* name) { return hp.architecture + "." + name; };
  if (plant.stage == Stage::attn_norm)
    return set_metadata_in_file(in, out, key("attention.layer_norm_rms_epsilon"),
                                fmt::format("{}", hp.norm_eps * 100.0F));
  return set_metadata_in_file(in, out, key("rope.freq_base"), fmt::format("{}", hp.rope_base * 2.0));
}

}  // namespace

std::string swap_rows_in_file(const std::string& in, const std::string& out, const std::string& tensor,
                              int64_t i, int64_t j) {
  const gguf::File file = gguf::File::open(in);
  const gguf::Tensor& t = tensor_of(file, tensor);
  const size_t size = row_bytes(t);
  expect_index(t, "row", i, t.bytes.size() / size);
  expect_index(t, "row", j, t.bytes.size() / size);
  Bytes bytes = bytes_of(t);
  const auto row = [&](int64_t r) { return bytes.begin() + r * static_cast<std::ptrdiff_t>(size); };
  if (i == j || std::equal(row(i), row(i + 1), row(j)))
    fail("{}: rows {} and {} are the same; nothing would change", tensor, i, j);
  std::swap_ranges(row(i), row(i) + static_cast<std::ptrdiff_t>(size), row(j));
  write_copy(file, {{{tensor, std::move(bytes)}}, {}}, out);
  return fmt::format("rows {} and {} of tensor {} ({}, {}) were exchanged", i, j, tensor, t.shape_text(),
                     quant::traits(t.type).name);
}

std::string swap_tensors_in_file(const std::string& in, const std::string& out, const std::string& a,
                                 const std::string& b) {
  const gguf::File file = gguf::File::open(in);
  const gguf::Tensor& first = tensor_of(file, a);
  const gguf::Tensor& second = tensor_of(file, b);
  if (first.shape != second.shape || first.type != second.type)
    fail("{} and {}: expected one shape and type, got {} {} and {} {}", a, b, first.shape_text(),
         quant::traits(first.type).name, second.shape_text(), quant::traits(second.type).name);
  if (std::equal(first.bytes.begin(), first.bytes.end(), second.bytes.begin()))
    fail("{} and {} hold the same bytes; nothing would change", a, b);
  write_copy(file, {{{a, bytes_of(second)}, {b, bytes_of(first)}}, {}}, out);
  return fmt::format("tensors {} and {} ({}, {}) were exchanged", a, b, first.shape_text(),
                     quant::traits(first.type).name);
}

std::string change_block_in_file(const std::string& in, const std::string& out, const std::string& tensor,
                                 int64_t block) {
  const gguf::File file = gguf::File::open(in);
  const gguf::Tensor& t = tensor_of(file, tensor);
  const quant::Traits& traits = quant::traits(t.type);
  const auto size = static_cast<size_t>(traits.bytes);
  expect_index(t, "block", block, t.bytes.size() / size);
  Bytes bytes = bytes_of(t);
  if (traits.block == 1) {
    change_float(t.type, bytes.data() + static_cast<size_t>(block) * size);
  } else {
    change_scale(t.type, bytes, block);
  }
  write_copy(file, {{{tensor, std::move(bytes)}}, {}}, out);
  const int64_t element = block * traits.block;
  const auto cols = static_cast<int64_t>(t.shape[0]);
  return fmt::format("block {} of tensor {} ({}, {}): row {}, elements {} to {}, {}", block, tensor,
                     t.shape_text(), traits.name, element / cols, element % cols,
                     element % cols + traits.block - 1,
                     traits.block == 1 ? "was negated" : "has another scale");
}

std::string set_metadata_in_file(const std::string& in, const std::string& out, const std::string& key,
                                 const std::string& value) {
  const gguf::File file = gguf::File::open(in);
  const gguf::Value* old = file.find(key);
  if (old == nullptr) fail("{} has no metadata '{}' (greta inspect lists it)", in, key);
  const gguf::Value changed = value_from(key, *old, value);
  if (changed.data.index() == old->data.index() && text_of(changed) == text_of(*old))
    fail("metadata '{}' is {} already; nothing would change", key, value);
  write_copy(file, {{}, {{key, changed}}}, out);
  return fmt::format("metadata {} was {}, is {}", key, text_of(*old), text_of(changed));
}

std::string plant_in_file(const Plant& plant, const HParams& hp, const std::string& in,
                          const std::string& out) {
  const std::string_view id = plant.info->id;
  if (plant.info->planted != Planted::file) fail("{} is no fault of a file", id);
  if (id == "file-metadata") return plant_metadata(plant, hp, in, out);
  const gguf::File file = gguf::File::open(in);
  const std::string name = planted_tensor(plant, hp, file);
  const gguf::Tensor& tensor = tensor_of(file, name);
  const auto draw = [&](uint64_t what, size_t count) {
    return static_cast<int64_t>(plant_bits(plant, what) % static_cast<uint64_t>(count));
  };
  if (id == "file-block")
    return change_block_in_file(
        in, out, name,
        draw(kFirst, tensor.bytes.size() / static_cast<size_t>(quant::traits(tensor.type).bytes)));
  if (id == "file-rows") {
    const size_t rows = tensor.bytes.size() / row_bytes(tensor);
    const int64_t i = draw(kFirst, rows);
    const int64_t j = (i + 1 + draw(kSecond, rows - 1)) % static_cast<int64_t>(rows);
    return swap_rows_in_file(in, out, name, i, j);
  }
  const auto other =
      static_cast<int>((plant.layer + 1 + draw(kFirst, static_cast<size_t>(hp.layers - 1))) % hp.layers);
  return swap_tensors_in_file(in, out, name, tensor_name(hp, plant.stage, other));
}

}  // namespace greta
