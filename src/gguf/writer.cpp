#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/partial_file.h"
#include "base/text.h"
#include "gguf/gguf.h"
#include "gguf/reader.h"

namespace greta::gguf {
namespace {

using Bytes = std::vector<std::byte>;

void put(Bytes& out, const void* data, size_t size) {
  if (size == 0) return;  // an empty vector's data() may be null
  const size_t at = out.size();
  out.resize(at + size);
  std::memcpy(out.data() + at, data, size);
}

template <class T>
void put_number(Bytes& out, T value) {
  static_assert(std::is_arithmetic_v<T>);
  put(out, &value, sizeof value);
}

void put_string(Bytes& out, std::string_view text) {
  put_number<uint64_t>(out, text.size());
  put(out, text.data(), text.size());
}

void put_type(Bytes& out, ValueType type) { put_number(out, static_cast<uint32_t>(type)); }

void put_array(Bytes& out, const Array& array) {
  put_type(out, array.element);
  put_number<uint64_t>(out, array.count);
  put(out, array.raw.data(), array.raw.size());
  for (const std::string_view text : array.strings) put_string(out, text);
  for (const Array& inner : array.arrays) put_array(out, inner);
}

void put_value(Bytes& out, const Value& value) {
  const auto natural = [&] { return std::get<uint64_t>(value.data); };
  const auto integer = [&] { return std::get<int64_t>(value.data); };
  switch (value.type) {
    case ValueType::U8:
      return put_number(out, static_cast<uint8_t>(natural()));
    case ValueType::U16:
      return put_number(out, static_cast<uint16_t>(natural()));
    case ValueType::U32:
      return put_number(out, static_cast<uint32_t>(natural()));
    case ValueType::U64:
      return put_number(out, natural());
    case ValueType::I8:
      return put_number(out, static_cast<int8_t>(integer()));
    case ValueType::I16:
      return put_number(out, static_cast<int16_t>(integer()));
    case ValueType::I32:
      return put_number(out, static_cast<int32_t>(integer()));
    case ValueType::I64:
      return put_number(out, integer());
    case ValueType::F32:
      return put_number(out, static_cast<float>(std::get<double>(value.data)));
    case ValueType::F64:
      return put_number(out, std::get<double>(value.data));
    case ValueType::Bool:
      return put_number<uint8_t>(out, std::get<bool>(value.data) ? 1 : 0);
    case ValueType::String:
      return put_string(out, std::get<std::string_view>(value.data));
    case ValueType::Array:
      return put_array(out, std::get<Array>(value.data));
  }
  fail("metadata value of unknown type {}", static_cast<uint32_t>(value.type));
}

template <class T>
Bytes scalar(ValueType type, T value) {
  Bytes out;
  put_type(out, type);
  put_number(out, value);
  return out;
}

template <class T>
Bytes numbers(ValueType element, const std::vector<T>& values) {
  Bytes out;
  put_type(out, ValueType::Array);
  put_type(out, element);
  put_number<uint64_t>(out, values.size());
  put(out, values.data(), values.size() * sizeof(T));
  return out;
}

}  // namespace

Writer::Writer(uint64_t alignment) : alignment_(alignment) {
  if (alignment < 8 || !std::has_single_bit(alignment) || alignment > (1u << 30))
    fail("alignment: expected a power of two from 8 to 2^30, got {}", alignment);
  if (alignment != 32)
    metadata_.emplace_back("general.alignment", scalar(ValueType::U32, static_cast<uint32_t>(alignment)));
}

void Writer::add_encoded(std::string key, std::vector<std::byte> bytes) {
  if (key == "general.alignment")
    fail("metadata 'general.alignment' is the writer's own: give the alignment to its constructor");
  metadata_.emplace_back(std::move(key), std::move(bytes));
}

void Writer::add_u32(std::string key, uint32_t value) {
  add_encoded(std::move(key), scalar(ValueType::U32, value));
}
void Writer::add_u64(std::string key, uint64_t value) {
  add_encoded(std::move(key), scalar(ValueType::U64, value));
}
void Writer::add_i32(std::string key, int32_t value) {
  add_encoded(std::move(key), scalar(ValueType::I32, value));
}
void Writer::add_f32(std::string key, float value) {
  add_encoded(std::move(key), scalar(ValueType::F32, value));
}
void Writer::add_bool(std::string key, bool value) {
  add_encoded(std::move(key), scalar<uint8_t>(ValueType::Bool, value ? 1 : 0));
}

void Writer::add_string(std::string key, const std::string& value) {
  Bytes out;
  put_type(out, ValueType::String);
  put_string(out, value);
  add_encoded(std::move(key), std::move(out));
}

void Writer::add_strings(std::string key, const std::vector<std::string>& values) {
  Bytes out;
  put_type(out, ValueType::Array);
  put_type(out, ValueType::String);
  put_number<uint64_t>(out, values.size());
  for (const std::string& text : values) put_string(out, text);
  add_encoded(std::move(key), std::move(out));
}

void Writer::add_f32s(std::string key, const std::vector<float>& values) {
  add_encoded(std::move(key), numbers(ValueType::F32, values));
}
void Writer::add_i32s(std::string key, const std::vector<int32_t>& values) {
  add_encoded(std::move(key), numbers(ValueType::I32, values));
}

void Writer::add_value(std::string key, const Value& value) {
  Bytes out;
  put_type(out, value.type);
  put_value(out, value);
  add_encoded(std::move(key), std::move(out));
}

void Writer::add_tensor(std::string name, std::vector<uint64_t> shape, quant::Type type, Fill fill) {
  const quant::Traits& t = quant::traits(type);
  if (shape.empty() || shape.size() > 4)
    fail("tensor '{}': 1 to 4 dimensions are possible, got {}", name, shape.size());
  uint64_t elements = 1;
  for (const uint64_t d : shape) {
    const auto product = checked_mul(elements, d);
    if (d == 0 || !product) fail("tensor '{}': dimension {} is zero or too large", name, d);
    elements = *product;
  }
  if (shape[0] % static_cast<uint64_t>(t.block) != 0)
    fail("tensor '{}': a row of {} elements is not a multiple of {}, the block of {}", name, shape[0],
         t.block, t.name);
  if (!quant::bytes_for(type, elements)) fail("tensor '{}': {} elements are too many", name, elements);
  tensors_.push_back({std::move(name), std::move(shape), type, std::move(fill)});
}

void Writer::write(const std::string& path) const {
  std::set<std::string_view> names;
  for (const auto& [key, value] : metadata_)
    if (!names.insert(key).second) fail("metadata '{}' was added twice", printable(key, kShownName));
  names.clear();
  for (const Pending& tensor : tensors_)
    if (!names.insert(tensor.name).second)
      fail("tensor '{}' was added twice", printable(tensor.name, kShownName));

  PartialFile file(path);
  Bytes head;
  put(head, "GGUF", 4);
  put_number<uint32_t>(head, 3);
  put_number<uint64_t>(head, tensors_.size());
  put_number<uint64_t>(head, metadata_.size());
  file.write(head);
  for (const auto& [key, value] : metadata_) {
    Bytes name;
    put_string(name, key);
    file.write(name);
    file.write(value);
  }
  uint64_t offset = 0;
  for (const Pending& tensor : tensors_) {
    Bytes info;
    put_string(info, tensor.name);
    put_number(info, static_cast<uint32_t>(tensor.shape.size()));
    uint64_t elements = 1;
    for (const uint64_t d : tensor.shape) {
      put_number(info, d);
      elements *= d;
    }
    put_number(info, static_cast<uint32_t>(tensor.type));
    put_number(info, offset);
    file.write(info);
    const auto end = checked_add(offset, *quant::bytes_for(tensor.type, elements));
    const auto next = end ? checked_align(*end, alignment_) : std::nullopt;
    if (!next) fail("cannot write {}: the tensors' sizes add up to more than 2^64 bytes", path);
    offset = *next;
  }
  file.pad_to(alignment_);
  const auto size_in_all = checked_add(file.written(), offset);
  if (!size_in_all) fail("cannot write {}: the tensors' sizes add up to more than 2^64 bytes", path);
  file.reserve(*size_in_all);
  for (const Pending& tensor : tensors_) {
    uint64_t elements = 1;
    for (const uint64_t d : tensor.shape) elements *= d;
    const uint64_t size = *quant::bytes_for(tensor.type, elements);
    const uint64_t begin = file.written();
    tensor.fill([&](std::span<const std::byte> bytes) {
      if (bytes.size() > size - (file.written() - begin))
        fail("cannot write {}: tensor '{}' takes {} bytes, more were given", path, tensor.name, size);
      file.write(bytes);
    });
    if (file.written() - begin != size)
      fail("cannot write {}: tensor '{}' takes {} bytes, {} were given", path, tensor.name, size,
           file.written() - begin);
    file.pad_to(alignment_);
  }
  file.finish();
}

}  // namespace greta::gguf
