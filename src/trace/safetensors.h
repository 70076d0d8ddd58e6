#pragma once
// safetensors files (format document: the safetensors project's README): an 8-byte header length, a JSON
// header, raw little-endian data.
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"

namespace greta {

struct SafeTensor {
  std::string name;
  std::string dtype;  ///< "F32", "F64", "I32", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Errors (greta::Error): not a safetensors file, header past the end, offsets that overlap or leave gaps,
/// sizes that do not match shape and type; each with the tensor and the numbers.
class SafeTensorsFile {
 public:
  explicit SafeTensorsFile(const std::string& path);
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, SafeTensor>& tensors() const { return tensors_; }
  const SafeTensor* find(const std::string& name) const;
  /// A tensor's elements converted to double (F32, F64, I32, I64 are known). Errors: absent, another type.
  std::vector<double> numbers(const std::string& name) const;

 private:
  MappedFile file_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, SafeTensor> tensors_;
};

/// Writes the tensors in the order given; the file is whole or absent.
void write_safetensors(const std::string& path, const std::vector<SafeTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace greta
