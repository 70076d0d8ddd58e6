#include "trace/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/error.h"

namespace greta {
namespace {

constexpr uint64_t kLargestHeader = 100'000'000;  // the format's own limit

int64_t bytes_of(const std::string& dtype) {
  static const std::map<std::string, int64_t> sizes = {
      {"F64", 8},  {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4}, {"F16", 2},
      {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

nlohmann::json parse_header(const std::string& path, std::span<const std::byte> bytes) {
  uint64_t length = 0;
  if (bytes.size() < sizeof length)
    fail("{} is no safetensors file: {} bytes, at least 8 expected", path, bytes.size());
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > kLargestHeader || length > bytes.size() - sizeof length)
    fail("{} is no safetensors file: header length {} at offset 0, the file has {} bytes", path, length,
         bytes.size());
  const char* text = reinterpret_cast<const char*>(bytes.data()) + sizeof length;
  auto header = nlohmann::json::parse(text, text + length, nullptr, false);
  if (!header.is_object())
    fail("{} is no safetensors file: the header at offset 8 is not a JSON object", path);
  return header;
}

SafeTensor parse_tensor(const std::string& path, const std::string& name, const nlohmann::json& entry,
                        std::span<const std::byte> data) {
  try {
    SafeTensor tensor{
        name, entry.at("dtype").get<std::string>(), entry.at("shape").get<std::vector<int64_t>>(), {}};
    const auto offsets = entry.at("data_offsets").get<std::vector<uint64_t>>();
    auto expected = std::optional<uint64_t>(static_cast<uint64_t>(bytes_of(tensor.dtype)));
    if (*expected == 0) fail("{}: tensor {} has the unknown type {}", path, name, tensor.dtype);
    for (const int64_t n : tensor.shape) {
      if (n < 0) fail("{}: tensor {} has the dimension {}", path, name, n);
      if (expected) expected = checked_mul(*expected, static_cast<uint64_t>(n));
    }
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size())
      fail("{}: tensor {} lies outside the file's {} data bytes", path, name, data.size());
    if (!expected || *expected != offsets[1] - offsets[0])
      fail("{}: tensor {} takes {} bytes, its shape and type need {}", path, name, offsets[1] - offsets[0],
           expected.value_or(0));
    tensor.bytes = data.subspan(offsets[0], offsets[1] - offsets[0]);
    return tensor;
  } catch (const nlohmann::json::exception& e) {
    fail("{}: tensor {} is not described as the format asks: {}", path, name, e.what());
  }
}

/// The tensors must cover the data without gaps or overlaps (the format's rule).
void require_dense(const std::string& path, const std::map<std::string, SafeTensor>& tensors,
                   std::span<const std::byte> data) {
  std::vector<const SafeTensor*> order;
  order.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const SafeTensor* a, const SafeTensor* b) {
    return std::pair(a->bytes.data(), a->bytes.size()) < std::pair(b->bytes.data(), b->bytes.size());
  });
  const std::byte* next = data.data();
  for (const SafeTensor* tensor : order) {
    if (tensor->bytes.data() != next)
      fail("{}: tensor {} begins at data offset {}, expected {}", path, tensor->name,
           tensor->bytes.data() - data.data(), next - data.data());
    next += tensor->bytes.size();
  }
  if (next != data.data() + data.size())
    fail("{}: {} bytes after the last tensor", path, data.data() + data.size() - next);
}

template <class T>
void append_numbers(std::span<const std::byte> bytes, std::vector<double>& out) {
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + i, sizeof value);
    out.push_back(static_cast<double>(value));
  }
}

}  // namespace

SafeTensorsFile::SafeTensorsFile(const std::string& path) : file_(path) {
  const auto header = parse_header(path, file_.bytes());
  uint64_t length = 0;
  std::memcpy(&length, file_.bytes().data(), sizeof length);
  const auto data = file_.bytes().subspan(sizeof length + length);
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      tensors_.emplace(name, parse_tensor(path, name, entry, data));
      continue;
    }
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) fail("{}: metadata key {} is not a string", path, key);
      metadata_[key] = value.get<std::string>();
    }
  }
  require_dense(path, tensors_, data);
}

const SafeTensor* SafeTensorsFile::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<double> SafeTensorsFile::numbers(const std::string& name) const {
  const SafeTensor* tensor = find(name);
  if (tensor == nullptr) fail("{} holds no tensor {}", file_.real_path(), name);
  std::vector<double> out;
  if (tensor->dtype == "F32") {
    append_numbers<float>(tensor->bytes, out);
  } else if (tensor->dtype == "F64") {
    append_numbers<double>(tensor->bytes, out);
  } else if (tensor->dtype == "I32") {
    append_numbers<int32_t>(tensor->bytes, out);
  } else if (tensor->dtype == "I64") {
    append_numbers<int64_t>(tensor->bytes, out);
  } else {
    fail("{}: tensor {} is {}, expected F32, F64, I32 or I64", file_.real_path(), name, tensor->dtype);
  }
  return out;
}

void write_safetensors(const std::string& path, const std::vector<SafeTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafeTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  // Metadata name files and models, which need not be UTF-8; a file's header must be.
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data begin at a multiple of 8
  const uint64_t length = text.size();
  std::vector<std::byte> whole(sizeof length + text.size());
  std::memcpy(whole.data(), &length, sizeof length);
  std::memcpy(whole.data() + sizeof length, text.data(), text.size());
  whole.reserve(whole.size() + offset);
  for (const SafeTensor& tensor : tensors)
    whole.insert(whole.end(), tensor.bytes.begin(), tensor.bytes.end());
  write_whole_file(path, whole);
}

}  // namespace greta
