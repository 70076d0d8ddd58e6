#include "gguf/reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "base/text.h"

namespace greta::gguf {
namespace {

constexpr int kMaxArrayDepth = 8;
constexpr uint32_t kMaxDimensions = 4;  // the format's own limit today
constexpr uint32_t kMaxType = static_cast<uint32_t>(ValueType::F64);
// The fewest bytes that one entry takes: what a count is held against before it is believed.
constexpr uint64_t kMinMetadata = 8 + 4 + 1;        // empty key, type, a one-byte value
constexpr uint64_t kMinTensor = 8 + 4 + 8 + 4 + 8;  // empty name, one dimension
constexpr uint64_t kMinString = 8;
constexpr uint64_t kMinArray = 4 + 8;
constexpr size_t kMaxDetails = 20;

/// What is being read, put into words only when something is wrong with it.
struct Field {
  const char* what;            ///< "length of the key"
  const char* owner = "";      ///< "metadata", "tensor", or nothing
  uint64_t index = 0;          ///< which of them
  std::string_view name = {};  ///< its name, once known

  std::string text() const {
    if (owner[0] == '\0') return what;
    if (name.data() == nullptr) return fmt::format("{} {}: {}", owner, index, what);
    return fmt::format("{} '{}': {}", owner, printable(name, kShownName), what);
  }
};

/// Bytes of a scalar of this type; 0 for strings and arrays.
uint64_t scalar_bytes(ValueType type) {
  switch (type) {
    case ValueType::U8:
    case ValueType::I8:
    case ValueType::Bool:
      return 1;
    case ValueType::U16:
    case ValueType::I16:
      return 2;
    case ValueType::U32:
    case ValueType::I32:
    case ValueType::F32:
      return 4;
    case ValueType::U64:
    case ValueType::I64:
    case ValueType::F64:
      return 8;
    case ValueType::String:
    case ValueType::Array:
      return 0;
  }
  return 0;
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  Parsed run() {
    read_header();
    read_metadata();
    read_alignment();
    read_tensor_table();
    place_tensors();
    refuse_overlaps();
    return std::move(parsed_);
  }

 private:
  [[noreturn]] void mismatch(const Field& field, uint64_t offset, const std::string& expected,
                             const std::string& got) const {
    fail("{}: {} at offset {}: expected {}, got {}", name_, field.text(), offset, expected, got);
  }

  uint64_t left() const { return bytes_.size() - at_; }

  void need(uint64_t count, const Field& field) const {
    if (count > left())
      mismatch(field, at_, fmt::format("{} bytes", count),
               fmt::format("{} (the file ends at offset {}: it is truncated, or the number is wrong)", left(),
                           bytes_.size()));
  }

  template <class T>
  T read(const Field& field) {
    need(sizeof(T), field);
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  /// A count of entries that take at least `smallest` bytes each.
  uint64_t read_count(const Field& field, uint64_t smallest) {
    const uint64_t offset = at_;
    const auto count = read<uint64_t>(field);
    refuse_count(field, offset, count, smallest);
    return count;
  }

  void refuse_count(const Field& field, uint64_t offset, uint64_t count, uint64_t smallest) const {
    if (count > left() / smallest)
      mismatch(
          field, offset,
          fmt::format("at most {} (what the {} bytes that follow could hold)", left() / smallest, left()),
          fmt::format("{}", count));
  }

  std::string_view read_string(const Field& length_field) {
    const uint64_t offset = at_;
    const auto length = read<uint64_t>(length_field);
    if (length > left())
      mismatch(length_field, offset, fmt::format("at most the {} bytes that follow", left()),
               fmt::format("{}", length));
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    at_ += length;
    return text;
  }

  ValueType read_type(const Field& field) {
    const uint64_t offset = at_;
    const auto number = read<uint32_t>(field);
    if (number > kMaxType)
      mismatch(field, offset, fmt::format("0 to {}", kMaxType), fmt::format("{}", number));
    return static_cast<ValueType>(number);
  }

  void read_header();
  void read_metadata();
  Value read_value(ValueType type, const Field& field);
  Array read_array(const Field& field, int depth);
  void read_alignment();
  void read_tensor_table();
  void read_shape(Tensor& tensor, const Field& field);
  void place_tensors();
  void refuse_overlaps() const;

  std::span<const std::byte> bytes_;
  const std::string& name_;
  uint64_t at_ = 0;
  uint64_t metadata_count_ = 0;
  uint64_t tensor_count_ = 0;
  std::vector<uint64_t> offset_fields_;  ///< where each tensor's offset stands
  Parsed parsed_;
};

/// What a file that is not a GGUF seems to be, from its first bytes.
std::string describe_magic(std::span<const std::byte> bytes) {
  const auto* p = reinterpret_cast<const unsigned char*>(bytes.data());
  const std::string_view start(reinterpret_cast<const char*>(p), std::min<size_t>(bytes.size(), 9));
  std::string what;
  if (start.starts_with("lmgg") || start.starts_with("fmgg") || start.starts_with("tjgg") ||
      start.starts_with("algg"))
    what = ", a GGML file from before GGUF: convert the original model again";
  else if (start.starts_with("FUGG"))
    what = ", GGUF in the other byte order: only little-endian files are supported";
  else if (start.starts_with("PK\x03\x04"))
    what = ", a zip archive (a PyTorch model?): convert it to GGUF";
  else if (start.size() == 9 && start[8] == '{')
    what = ", perhaps safetensors: convert it to GGUF";
  else if (start.starts_with("version "))
    what = ", a text file: a Git LFS pointer in place of the model? fetch the file itself";
  else if (start.starts_with("<") || start.starts_with("{"))
    what = ", a text file: a failed download?";
  return fmt::format("'{}' ({:02x} {:02x} {:02x} {:02x}){}", printable(start.substr(0, 4)), p[0], p[1], p[2],
                     p[3], what);
}

void Parser::read_header() {
  const Field magic{"magic"};
  need(4, magic);
  if (std::memcmp(bytes_.data(), "GGUF", 4) != 0)
    mismatch(magic, 0, "'GGUF' (47 47 55 46)", describe_magic(bytes_));
  at_ = 4;
  const Field version{"version"};
  const auto number = read<uint32_t>(version);
  if ((number & 0xffffu) == 0 && number != 0)
    mismatch(version, 4, "2 or 3, little-endian",
             fmt::format("{} in big-endian order: convert the model to a little-endian file",
                         __builtin_bswap32(number)));
  if (number == 1) mismatch(version, 4, "2 or 3", "1, which is no longer supported: convert the model again");
  if (number != 2 && number != 3) mismatch(version, 4, "2 or 3", fmt::format("{}", number));
  parsed_.version = number;
  const Field tensors{"tensor_count"};
  const Field metadata{"metadata_kv_count"};
  tensor_count_ = read_count(tensors, kMinTensor);
  metadata_count_ = read_count(metadata, kMinMetadata);
  refuse_count(tensors, 8, tensor_count_, kMinTensor);
}

void Parser::read_metadata() {
  std::set<std::string_view> keys;
  for (uint64_t i = 0; i < metadata_count_; ++i) {
    const uint64_t offset = at_;
    const std::string_view key = read_string({"length of the key", "metadata", i});
    if (!keys.insert(key).second)
      mismatch({"key", "metadata", i, key}, offset, "a key that occurs once", "a second occurrence");
    const ValueType type = read_type({"type", "metadata", i, key});
    parsed_.value_offsets.push_back(at_);
    parsed_.metadata.emplace_back(std::string(key), read_value(type, {"value", "metadata", i, key}));
  }
}

Value Parser::read_value(ValueType type, const Field& field) {
  Value value;
  value.type = type;
  switch (type) {
    case ValueType::U8:
      value.data = uint64_t{read<uint8_t>(field)};
      break;
    case ValueType::U16:
      value.data = uint64_t{read<uint16_t>(field)};
      break;
    case ValueType::U32:
      value.data = uint64_t{read<uint32_t>(field)};
      break;
    case ValueType::U64:
      value.data = read<uint64_t>(field);
      break;
    case ValueType::I8:
      value.data = int64_t{read<int8_t>(field)};
      break;
    case ValueType::I16:
      value.data = int64_t{read<int16_t>(field)};
      break;
    case ValueType::I32:
      value.data = int64_t{read<int32_t>(field)};
      break;
    case ValueType::I64:
      value.data = read<int64_t>(field);
      break;
    case ValueType::F32:
      value.data = double{read<float>(field)};
      break;
    case ValueType::F64:
      value.data = read<double>(field);
      break;
    case ValueType::Bool: {
      const uint64_t offset = at_;
      const auto byte = read<uint8_t>(field);
      if (byte > 1) mismatch(field, offset, "a bool, 0 or 1", fmt::format("{}", byte));
      value.data = byte == 1;
      break;
    }
    case ValueType::String: {
      Field length = field;
      length.what = "length of the string";
      value.data = read_string(length);
      break;
    }
    case ValueType::Array:
      value.data = read_array(field, 1);
      break;
  }
  return value;
}

Array Parser::read_array(const Field& field, int depth) {
  Field part = field;
  part.what = "nesting of arrays";
  if (depth > kMaxArrayDepth)
    mismatch(part, at_, fmt::format("at most {} levels", kMaxArrayDepth), fmt::format("{} or more", depth));
  Array array;
  part.what = "type of the array's elements";
  array.element = read_type(part);
  part.what = "array's count";
  const uint64_t scalar = scalar_bytes(array.element);
  const uint64_t smallest = scalar != 0                          ? scalar
                            : array.element == ValueType::String ? kMinString
                                                                 : kMinArray;
  array.count = read_count(part, smallest);
  if (array.element == ValueType::String) {
    part.what = "length of a string of the array";
    array.strings.reserve(array.count);
    for (uint64_t i = 0; i < array.count; ++i) array.strings.push_back(read_string(part));
  } else if (array.element == ValueType::Array) {
    for (uint64_t i = 0; i < array.count; ++i) array.arrays.push_back(read_array(field, depth + 1));
  } else {
    array.raw = bytes_.subspan(at_, array.count * scalar);  // count <= left / scalar: no overflow
    part.what = "element of the array";
    if (array.element == ValueType::Bool)
      for (uint64_t i = 0; i < array.count; ++i)
        if (std::to_integer<uint8_t>(array.raw[i]) > 1)
          mismatch(part, at_ + i, "a bool, 0 or 1", fmt::format("{}", std::to_integer<int>(array.raw[i])));
    at_ += array.raw.size();
  }
  return array;
}

void Parser::read_alignment() {
  for (size_t i = 0; i < parsed_.metadata.size(); ++i) {
    const auto& [key, value] = parsed_.metadata[i];
    if (key != "general.alignment") continue;
    const Field field{"value", "metadata", i, key};
    if (value.type != ValueType::U32)
      mismatch(field, parsed_.value_offsets[i], "a u32",
               fmt::format("a value of type {}", name_of(value.type)));
    parsed_.alignment = std::get<uint64_t>(value.data);
    if (parsed_.alignment == 0 || parsed_.alignment % 8 != 0)
      mismatch(field, parsed_.value_offsets[i], "a multiple of 8 above 0",
               fmt::format("{}", parsed_.alignment));
  }
}

void Parser::read_shape(Tensor& tensor, const Field& field) {
  Field part = field;
  part.what = "number of dimensions";
  const uint64_t count_offset = at_;
  const auto dimensions = read<uint32_t>(part);
  if (dimensions == 0 || dimensions > kMaxDimensions)
    mismatch(part, count_offset, fmt::format("1 to {}", kMaxDimensions), fmt::format("{}", dimensions));
  part.what = "dimension";
  uint64_t elements = 1;
  const uint64_t shape_offset = at_;
  for (uint32_t d = 0; d < dimensions; ++d) {
    const uint64_t offset = at_;
    const auto size = read<uint64_t>(part);
    if (size == 0) mismatch(part, offset, "1 or more", "0");
    tensor.shape.push_back(size);
    const auto product = checked_mul(elements, size);
    if (!product || *product > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      part.what = "shape";
      mismatch(part, shape_offset, "fewer than 2^63 elements",
               fmt::format("{}, which overflows", tensor.shape_text()));
    }
    elements = *product;
  }
}

void Parser::read_tensor_table() {
  std::set<std::string, std::less<>> names;
  std::vector<std::string> unsupported;
  uint64_t unsupported_count = 0;
  for (uint64_t i = 0; i < tensor_count_; ++i) {
    const uint64_t name_offset = at_;
    Tensor tensor;
    tensor.name = read_string({"length of the name", "tensor", i});
    Field field{"name", "tensor", i, tensor.name};
    if (!names.insert(tensor.name).second)
      mismatch(field, name_offset, "a name that occurs once", "a second occurrence");
    read_shape(tensor, field);
    field.what = "type";
    const uint64_t type_offset = at_;
    const auto number = read<uint32_t>(field);
    const auto type = quant::from_number(number);
    if (type) {
      tensor.type = *type;
      const auto block = static_cast<uint64_t>(quant::traits(*type).block);
      field.what = "row length";
      if (tensor.shape[0] % block != 0)
        mismatch(field, type_offset - 8 * tensor.shape.size(),
                 fmt::format("a multiple of {}, the block of {}", block, quant::traits(*type).name),
                 fmt::format("{}", tensor.shape[0]));
    } else {
      ++unsupported_count;
      if (unsupported.size() < kMaxDetails)
        unsupported.push_back(fmt::format("{} at offset {}: got {} (number {})", field.text(), type_offset,
                                          quant::name_of_number(number), number));
    }
    field.what = "offset";
    offset_fields_.push_back(at_);
    tensor.offset = read<uint64_t>(field);  // from the data section's start, until place_tensors()
    parsed_.tensors.push_back(std::move(tensor));
  }
  if (unsupported_count == 0) return;
  std::string known;
  for (const quant::Traits& t : quant::all_types())
    known += fmt::format("{}{}", known.empty() ? "" : ", ", t.name);
  if (unsupported_count > unsupported.size())
    unsupported.push_back(fmt::format("and {} more tensors", unsupported_count - unsupported.size()));
  throw Error(fmt::format("{}: {} of {} tensors have a type that is not supported; supported are {}", name_,
                          unsupported_count, tensor_count_, known),
              std::move(unsupported));
}

void Parser::place_tensors() {
  if (parsed_.tensors.empty()) return;
  const auto start = checked_align(at_, parsed_.alignment);  // of the data section
  if (!start) mismatch({"start of the tensor data"}, at_, "an offset below 2^64", "an overflow");
  for (size_t i = 0; i < parsed_.tensors.size(); ++i) {
    Tensor& tensor = parsed_.tensors[i];
    const Field field{"offset", "tensor", i, tensor.name};
    if (tensor.offset % parsed_.alignment != 0)
      mismatch(field, offset_fields_[i], fmt::format("a multiple of the alignment {}", parsed_.alignment),
               fmt::format("{}", tensor.offset));
    const auto size = quant::bytes_for(tensor.type, tensor.elements());
    const auto begin = checked_add(*start, tensor.offset);
    const auto end = begin && size ? checked_add(*begin, *size) : std::nullopt;
    if (!end)
      mismatch(field, offset_fields_[i], "data that ends below 2^64",
               fmt::format("offset {} and {} elements of {}", tensor.offset, tensor.elements(),
                           quant::traits(tensor.type).name));
    if (*end > bytes_.size())
      mismatch({"data", "tensor", i, tensor.name}, *begin,
               fmt::format("{} bytes, up to offset {}", *size, *end),
               fmt::format("a file of {} bytes: it is truncated, or its offset field (at {}) is wrong",
                           bytes_.size(), offset_fields_[i]));
    tensor.offset = *begin;
    tensor.bytes = bytes_.subspan(*begin, *size);
  }
}

void Parser::refuse_overlaps() const {
  std::vector<size_t> order(parsed_.tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto offset = [&](size_t i) { return parsed_.tensors[i].offset; };
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return offset(a) != offset(b) ? offset(a) < offset(b) : a < b; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Tensor& before = parsed_.tensors[order[i - 1]];
    const Tensor& tensor = parsed_.tensors[order[i]];
    const uint64_t end = before.offset + before.bytes.size();
    if (tensor.offset < end)
      mismatch({"data", "tensor", order[i], tensor.name}, tensor.offset,
               fmt::format("a start at or after {}, where tensor '{}' ends", end,
                           printable(before.name, kShownName)),
               fmt::format("an overlap of {} bytes (its offset field is at {})", end - tensor.offset,
                           offset_fields_[order[i]]));
  }
}

}  // namespace

Parsed parse(std::span<const std::byte> bytes, const std::string& name) { return Parser(bytes, name).run(); }

}  // namespace greta::gguf
