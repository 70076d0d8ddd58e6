#pragma once
// GGUF v2 and v3 files: bytes <-> metadata and tensors. Source: the ggml project's docs/gguf.md.
// Little-endian only. Nothing here knows any architecture.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/mapped_file.h"
#include "quant/types.h"

namespace greta::gguf {

enum class ValueType : uint32_t {
  U8 = 0,
  I8 = 1,
  U16 = 2,
  I16 = 3,
  U32 = 4,
  I32 = 5,
  F32 = 6,
  Bool = 7,
  String = 8,
  Array = 9,
  U64 = 10,
  I64 = 11,
  F64 = 12,
};

/// "u32", "string", "array of f32" ...
std::string_view name_of(ValueType type);

struct Value;

/// An array: all elements of one type. Numbers are kept as the file's little-endian bytes (a span into the
/// mapping, so that a vocabulary of 262,144 scores costs nothing); strings as views into the mapping; nested
/// arrays as values.
struct Array {
  ValueType element = ValueType::U8;
  uint64_t count = 0;
  std::span<const std::byte> raw;         ///< numeric and bool elements
  std::vector<std::string_view> strings;  ///< element == String
  std::vector<Array> arrays;              ///< element == Array
};

/// One metadata value. Strings and arrays point into the file's mapping (or, for writing, into the caller's
/// memory).
struct Value {
  ValueType type = ValueType::U32;
  std::variant<uint64_t, int64_t, double, bool, std::string_view, Array>
      data;  ///< F32 is held in double, exactly
};

struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;  ///< GGUF's order: the first dimension is the fastest (the row length)
  quant::Type type = quant::Type::F32;
  uint64_t offset = 0;  ///< of the first byte, from the start of the part's file
  int part = 0;         ///< which file of a split
  std::span<const std::byte> bytes;

  uint64_t elements() const;
  std::string shape_text() const;  ///< "[576, 49152]"
};

/// A readable GGUF file, or all parts of a split one (`-00001-of-0000N.gguf`: any part may be named).
/// Every count, length, offset, alignment and type is checked against the bytes there before anything is
/// believed; errors are greta::Error and name the field, its offset, the value and what was expected.
class File {
 public:
  /// Errors: unreadable path, not a GGUF, version 1, big-endian, truncated, overlapping or out-of-range
  /// tensors, unknown tensor types, duplicate keys or tensor names, a missing or foreign part of a split.
  static File open(const std::string& path);
  /// The same from memory (tests, fuzzing); the bytes must outlive the File. Not for split files.
  static File from_bytes(std::span<const std::byte> bytes, const std::string& name);

  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  const std::string& path() const { return path_; }  ///< resolved path of the first part
  const std::vector<std::string>& part_paths() const { return part_paths_; }
  uint64_t file_bytes() const;  ///< of all parts
  /// SHA-256 of the file, or of the parts' bytes one after the other.
  std::string sha256() const;

  /// Metadata in file order.
  const std::vector<std::pair<std::string, Value>>& metadata() const { return metadata_; }
  const Value* find(std::string_view key) const;
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find_tensor(std::string_view name) const;

  /// Lets the resident pages of a part of a tensor's bytes go (it was repacked).
  void drop(const Tensor& tensor, std::span<const std::byte> part) const;
  /// Copies a part of a tensor's bytes without making their pages resident (MappedFile::read).
  void read(const Tensor& tensor, std::span<const std::byte> part, std::byte* to) const;

 private:
  friend class Reader;
  std::string path_;
  std::vector<std::string> part_paths_;
  std::vector<std::shared_ptr<MappedFile>> parts_;
  std::vector<std::span<const std::byte>> part_bytes_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  std::vector<std::pair<std::string, Value>> metadata_;
  std::map<std::string, size_t, std::less<>> metadata_index_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_index_;
};

/// Element `i` of a numeric or bool array, converted; the array's own type says what is exact.
/// i < array.count and a numeric element type are the caller's promise.
double array_number(const Array& array, uint64_t i);
int64_t array_integer(const Array& array, uint64_t i);
/// The same as text, exact in every type: array_integer() has no room for u64 from 2^63 on.
std::string element_text(const Array& array, uint64_t i);

/// Writes a GGUF v3 file in constant memory: metadata and tensor table first, then each tensor's bytes are
/// asked for in order. The file appears under its name when it is whole; on any error nothing is left. Data
/// is padded to the alignment, the last tensor's too. Errors (greta::Error): a key or tensor name given
/// twice, a shape that the type cannot hold, a fill of the wrong length, whatever the system says about the
/// path.
class Writer {
 public:
  /// A power of two from 8: the format allows any multiple of 8, other readers do not. `general.alignment` is
  /// written where it is not 32, and may not be added by hand.
  explicit Writer(uint64_t alignment = 32);

  void add_u32(std::string key, uint32_t value);
  void add_u64(std::string key, uint64_t value);
  void add_i32(std::string key, int32_t value);
  void add_f32(std::string key, float value);
  void add_bool(std::string key, bool value);
  void add_string(std::string key, const std::string& value);
  void add_strings(std::string key, const std::vector<std::string>& values);
  void add_f32s(std::string key, const std::vector<float>& values);
  void add_i32s(std::string key, const std::vector<int32_t>& values);
  /// A value as another file holds it, byte for byte.
  void add_value(std::string key, const Value& value);

  /// `fill` writes the tensor's bytes through the sink it is given, in pieces of any size, in order.
  using Sink = std::function<void(std::span<const std::byte>)>;
  using Fill = std::function<void(const Sink& sink)>;
  void add_tensor(std::string name, std::vector<uint64_t> shape, quant::Type type, Fill fill);

  void write(const std::string& path) const;

 private:
  struct Pending {
    std::string name;
    std::vector<uint64_t> shape;
    quant::Type type;
    Fill fill;
  };
  void add_encoded(std::string key, std::vector<std::byte> bytes);

  uint64_t alignment_;
  std::vector<std::pair<std::string, std::vector<std::byte>>> metadata_;  ///< key, type and value as stored
  std::vector<Pending> tensors_;
};

}  // namespace greta::gguf
