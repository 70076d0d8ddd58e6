// A readable model: one file, or the parts of a split one put together.
#include <openssl/evp.h>

#include <algorithm>
#include <cctype>

#include "base/checked.h"
#include "base/error.h"
#include "base/text.h"
#include "gguf/gguf.h"
#include "gguf/reader.h"

namespace greta::gguf {
namespace {

/// "<stem>-00002-of-00005.gguf" taken apart.
struct SplitName {
  std::string stem;
  uint64_t number = 0;  ///< counted from 1
  uint64_t count = 0;

  std::string part(uint64_t n) const { return fmt::format("{}-{:05}-of-{:05}.gguf", stem, n, count); }
};

std::optional<SplitName> split_name(const std::string& path) {
  constexpr std::string_view kShape = "-#####-of-#####.gguf";
  if (path.size() < kShape.size()) return std::nullopt;
  const size_t start = path.size() - kShape.size();
  SplitName name{path.substr(0, start), 0, 0};
  for (size_t i = 0; i < kShape.size(); ++i) {
    const char c = path[start + i];
    if (kShape[i] != '#') {
      if (c != kShape[i]) return std::nullopt;
      continue;
    }
    if (c < '0' || c > '9') return std::nullopt;
    uint64_t& number = i < 6 ? name.number : name.count;
    number = number * 10 + static_cast<uint64_t>(c - '0');
  }
  return name;
}

/// A split key's number, or nothing where the key is missing.
std::optional<uint64_t> split_key(const Parsed& parsed, const std::string& path, std::string_view key) {
  for (size_t i = 0; i < parsed.metadata.size(); ++i) {
    if (parsed.metadata[i].first != key) continue;
    const Value& value = parsed.metadata[i].second;
    if (const auto* u = std::get_if<uint64_t>(&value.data)) return *u;
    if (const auto* s = std::get_if<int64_t>(&value.data); s != nullptr && *s >= 0)
      return static_cast<uint64_t>(*s);
    fail("{}: metadata '{}': value at offset {}: expected an integer from 0, got {}", path, key,
         parsed.value_offsets[i],
         std::holds_alternative<int64_t>(value.data)
             ? fmt::format("{}", std::get<int64_t>(value.data))
             : fmt::format("a value of type {}", name_of(value.type)));
  }
  return std::nullopt;
}

void expect_key(const Parsed& parsed, const std::string& path, std::string_view key, uint64_t expected) {
  const auto got = split_key(parsed, path, key);
  if (!got)
    fail("{}: metadata '{}': expected {}, got no such key: this file is no part of the split model", path,
         key, expected);
  if (*got != expected)
    fail("{}: metadata '{}': expected {}, got {}: this file belongs to another split, or was renamed", path,
         key, expected, *got);
}

std::string text_of(const std::vector<uint64_t>& shape) {
  std::string text = "[";
  for (const uint64_t d : shape) text += fmt::format("{}{}", text.size() > 1 ? ", " : "", d);
  return text + "]";
}

}  // namespace

uint64_t Tensor::elements() const {
  uint64_t n = 1;
  for (const uint64_t d : shape) n *= d;  // the reader has checked that this does not overflow
  return n;
}

std::string Tensor::shape_text() const { return text_of(shape); }

/// Puts parsed parts into a File.
class Reader {
 public:
  static void add_part(File& file, std::shared_ptr<MappedFile> mapping, std::span<const std::byte> bytes,
                       const std::string& path, Parsed parsed) {
    const auto part = static_cast<int>(file.part_bytes_.size());
    if (part == 0) {
      file.path_ = path;
      file.version_ = parsed.version;
      file.alignment_ = parsed.alignment;
      file.metadata_ = std::move(parsed.metadata);
      for (size_t i = 0; i < file.metadata_.size(); ++i)
        file.metadata_index_.emplace(file.metadata_[i].first, i);
    }
    file.part_paths_.push_back(path);
    file.parts_.push_back(std::move(mapping));
    file.part_bytes_.push_back(bytes);
    for (Tensor& tensor : parsed.tensors) {
      const auto [known, fresh] = file.tensor_index_.emplace(tensor.name, file.tensors_.size());
      if (!fresh)
        fail(
            "{}: tensor '{}': name: expected a name that occurs once, got a second occurrence (the first is "
            "in {})",
            path, printable(tensor.name, kShownName),
            file.part_paths_[static_cast<size_t>(file.tensors_[known->second].part)]);
      tensor.part = part;
      file.tensors_.push_back(std::move(tensor));
    }
  }

  static void add_split(File& file, const std::string& path, uint64_t count) {
    auto name = split_name(path);
    if (!name) name = split_name(resolve_path(path));  // a link with a plain name
    if (!name)
      fail(
          "{}: metadata 'split.count' says {} parts: expected a file name like model-00001-of-{:05}.gguf, "
          "got another; "
          "give the parts their names back",
          path, count, count);
    if (name->number == 0 || name->number > count)
      fail("{}: metadata 'split.count': expected at least {}, the part's number in the file's name, got {}",
           path, name->number, count);
    if (name->count != count)
      fail("{}: metadata 'split.count': expected {} as in the file's name, got {}", path, name->count, count);
    std::optional<uint64_t> total;
    for (uint64_t n = 1; n <= count; ++n) {
      const std::string part_path = name->part(n);
      std::shared_ptr<MappedFile> mapping;
      try {
        mapping = std::make_shared<MappedFile>(part_path);
      } catch (const Error& error) {
        fail("part {} of {} of the split model is missing (metadata 'split.count' of {}): {}", n, count, path,
             error.what());
      }
      Parsed parsed = parse(mapping->bytes(), mapping->real_path());
      expect_key(parsed, part_path, "split.count", count);
      expect_key(parsed, part_path, "split.no", n - 1);
      if (n == 1) total = split_key(parsed, part_path, "split.tensors.count");
      if (total) expect_key(parsed, part_path, "split.tensors.count", *total);
      const auto bytes = mapping->bytes();
      const std::string real = mapping->real_path();
      add_part(file, std::move(mapping), bytes, real, std::move(parsed));
    }
    if (total && *total != file.tensors_.size())
      fail("{}: metadata 'split.tensors.count': expected {}, the tensors of all {} parts, got {}", file.path_,
           file.tensors_.size(), count, *total);
  }
};

File File::open(const std::string& path) {
  auto mapping = std::make_shared<MappedFile>(path);
  const auto bytes = mapping->bytes();
  const std::string real = mapping->real_path();
  Parsed parsed = parse(bytes, real);
  File file;
  const auto count = split_key(parsed, real, "split.count");
  if (count && *count > 1)
    Reader::add_split(file, path, *count);
  else
    Reader::add_part(file, std::move(mapping), bytes, real, std::move(parsed));
  return file;
}

File File::from_bytes(std::span<const std::byte> bytes, const std::string& name) {
  Parsed parsed = parse(bytes, name);
  const auto count = split_key(parsed, name, "split.count");
  if (count && *count > 1)
    fail("{}: metadata 'split.count': expected 1 for a model in memory, got {}: open split models by path",
         name, *count);
  File file;
  Reader::add_part(file, nullptr, bytes, name, std::move(parsed));
  return file;
}

uint64_t File::file_bytes() const {
  uint64_t sum = 0;
  for (const auto& part : part_bytes_) sum += part.size();
  return sum;
}

std::string File::sha256() const {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  bool good = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  for (const auto& part : part_bytes_)
    good = good && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  good = good && EVP_DigestFinal_ex(context.get(), digest, &length) == 1;
  if (!good) fail("SHA-256 could not be computed by libcrypto");
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

const Value* File::find(std::string_view key) const {
  const auto found = metadata_index_.find(key);
  return found == metadata_index_.end() ? nullptr : &metadata_[found->second].second;
}

const Tensor* File::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

void File::drop(const Tensor& tensor, std::span<const std::byte> part) const {
  const auto& mapping = parts_.at(static_cast<size_t>(tensor.part));
  if (mapping) mapping->drop(part);
}

void File::read(const Tensor& tensor, std::span<const std::byte> part, std::byte* to) const {
  const auto& mapping = parts_.at(static_cast<size_t>(tensor.part));
  if (mapping)
    mapping->read(part, to);
  else
    std::copy(part.begin(), part.end(), to);
}

}  // namespace greta::gguf
