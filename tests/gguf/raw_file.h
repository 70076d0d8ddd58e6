#pragma once
// A GGUF file put together by hand, byte by byte, so that the reader is not judged by the writer beside it.
// It notes where each field lies, for tests that overwrite fields.
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace greta::gguf {

class RawFile {
 public:
  struct Field {
    std::string name;
    size_t offset;
    size_t size;
  };

  RawFile& number32(std::string name, uint32_t v) { return put(std::move(name), &v, 4); }
  RawFile& number64(std::string name, uint64_t v) { return put(std::move(name), &v, 8); }
  RawFile& bytes(std::string name, const void* data, size_t size) { return put(std::move(name), data, size); }
  RawFile& string(const std::string& name, std::string_view text) {
    number64(name + " length", text.size());
    return put(name, text.data(), text.size());
  }

  RawFile& header(uint32_t version, uint64_t tensors, uint64_t metadata) {
    put("magic", "GGUF", 4);
    number32("version", version);
    number64("tensor_count", tensors);
    return number64("metadata_kv_count", metadata);
  }
  RawFile& key(const std::string& name, uint32_t type) {
    string("key", name);
    return number32(name + " type", type);
  }
  RawFile& tensor(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type,
                  uint64_t offset) {
    string("tensor name", name);
    number32(name + " n_dims", static_cast<uint32_t>(shape.size()));
    for (const uint64_t d : shape) number64(name + " dim", d);
    number32(name + " type", type);
    return number64(name + " offset", offset);
  }
  RawFile& pad(size_t alignment) {
    while (data_.size() % alignment != 0) data_.push_back(std::byte{0});
    return *this;
  }
  RawFile& fill(size_t count) {
    for (size_t i = 0; i < count; ++i) data_.push_back(static_cast<std::byte>(i * 37 + 11));
    return *this;
  }

  const std::vector<std::byte>& data() const { return data_; }
  const std::vector<Field>& fields() const { return fields_; }
  size_t offset_of(std::string_view name) const {
    for (const Field& f : fields_)
      if (f.name == name) return f.offset;
    return static_cast<size_t>(-1);
  }
  /// A copy with the field's bytes replaced by the low bytes of `v`.
  std::vector<std::byte> with(std::string_view name, uint64_t v) const {
    std::vector<std::byte> copy = data_;
    for (const Field& f : fields_)
      if (f.name == name) {
        std::memcpy(copy.data() + f.offset, &v, f.size < 8 ? f.size : 8);
        return copy;
      }
    copy.clear();
    return copy;
  }

 private:
  RawFile& put(std::string name, const void* data, size_t size) {
    fields_.push_back({std::move(name), data_.size(), size});
    if (size == 0) return *this;
    const auto* p = static_cast<const std::byte*>(data);
    data_.insert(data_.end(), p, p + size);
    return *this;
  }

  std::vector<std::byte> data_;
  std::vector<Field> fields_;
};

/// Every kind of metadata value, three tensors, the last of which ends the file.
inline RawFile small_file(uint32_t version = 3) {
  RawFile f;
  f.header(version, 3, 9);
  f.key("general.architecture", 8).string("arch value", "llama");
  f.key("general.alignment", 4).number32("alignment", 32);
  f.key("a.u32", 4).number32("u32 value", 7);
  f.key("a.f32", 6).number32("f32 value", 0x3f000000);
  f.key("a.bool", 7).bytes("bool value", "\x01", 1);
  f.key("a.i64", 11).number64("i64 value", static_cast<uint64_t>(-5));
  f.key("a.strings", 9).number32("strings element", 8).number64("strings count", 2);
  f.string("string 0", "<unk>").string("string 1", "\xe2\x96\x81the");
  f.key("a.bools", 9)
      .number32("bools element", 7)
      .number64("bools count", 3)
      .bytes("bools", "\x01\x00\x01", 3);
  f.key("a.nested", 9).number32("nested element", 9).number64("nested count", 2);
  f.number32("inner 0 element", 5)
      .number64("inner 0 count", 2)
      .number32("inner 00", 1)
      .number32("inner 01", 2);
  f.number32("inner 1 element", 8).number64("inner 1 count", 1).string("inner 10", "x");
  f.tensor("first", {8, 2}, 0, 0);     // 64 bytes
  f.tensor("second", {32, 4}, 8, 64);  // 136 bytes of Q8_0, padded to 160
  f.tensor("third", {32}, 1, 224);     // 64 bytes
  f.pad(32).fill(64 + 160 + 64);
  return f;
}

}  // namespace greta::gguf
