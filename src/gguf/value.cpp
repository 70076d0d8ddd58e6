// Values of metadata: names of types, elements of arrays.
#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "gguf/gguf.h"

namespace greta::gguf {
namespace {

template <class T>
T element(const Array& array, uint64_t i) {
  T value;
  std::memcpy(&value, array.raw.data() + i * sizeof(T), sizeof value);
  return value;
}

template <class Out>
Out convert(const Array& array, uint64_t i) {
  switch (array.element) {
    case ValueType::U8:
      return static_cast<Out>(element<uint8_t>(array, i));
    case ValueType::Bool:
      return static_cast<Out>(element<uint8_t>(array, i) != 0);
    case ValueType::I8:
      return static_cast<Out>(element<int8_t>(array, i));
    case ValueType::U16:
      return static_cast<Out>(element<uint16_t>(array, i));
    case ValueType::I16:
      return static_cast<Out>(element<int16_t>(array, i));
    case ValueType::U32:
      return static_cast<Out>(element<uint32_t>(array, i));
    case ValueType::I32:
      return static_cast<Out>(element<int32_t>(array, i));
    case ValueType::U64:
      return static_cast<Out>(element<uint64_t>(array, i));
    case ValueType::I64:
      return static_cast<Out>(element<int64_t>(array, i));
    case ValueType::F32:
      return static_cast<Out>(element<float>(array, i));
    case ValueType::F64:
      return static_cast<Out>(element<double>(array, i));
    case ValueType::String:
    case ValueType::Array:
      break;
  }
  fail("an array of {} holds no numbers", name_of(array.element));
}

}  // namespace

std::string_view name_of(ValueType type) {
  switch (type) {
    case ValueType::U8:
      return "u8";
    case ValueType::I8:
      return "i8";
    case ValueType::U16:
      return "u16";
    case ValueType::I16:
      return "i16";
    case ValueType::U32:
      return "u32";
    case ValueType::I32:
      return "i32";
    case ValueType::F32:
      return "f32";
    case ValueType::Bool:
      return "bool";
    case ValueType::String:
      return "string";
    case ValueType::Array:
      return "array";
    case ValueType::U64:
      return "u64";
    case ValueType::I64:
      return "i64";
    case ValueType::F64:
      return "f64";
  }
  return "an unknown type";
}

double array_number(const Array& array, uint64_t i) { return convert<double>(array, i); }

int64_t array_integer(const Array& array, uint64_t i) {
  if (array.element == ValueType::F32 || array.element == ValueType::F64)
    fail("an array of {} holds no integers", name_of(array.element));
  return convert<int64_t>(array, i);
}

std::string element_text(const Array& array, uint64_t i) {
  switch (array.element) {
    case ValueType::Bool:
      return array_integer(array, i) != 0 ? "true" : "false";
    case ValueType::U64:
      return fmt::format("{}", element<uint64_t>(array, i));
    case ValueType::F32:
      return fmt::format("{}", element<float>(array, i));
    case ValueType::F64:
      return fmt::format("{}", element<double>(array, i));
    default:
      return fmt::format("{}", array_integer(array, i));
  }
}

}  // namespace greta::gguf
