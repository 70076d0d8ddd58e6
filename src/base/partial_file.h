#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace greta {

/// A file that is whole or absent: written under a temporary name beside its own (`PATH.partial-PID`),
/// renamed by finish(), removed where finish() did not come to its end. Buffered. Errors (greta::Error): path
/// and the system's reason; something at `path` that is not a regular file is refused.
class PartialFile {
 public:
  explicit PartialFile(const std::string& path);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  /// Room on the disk for a file of `bytes` in all, taken before they are made. Errors: bytes needed and
  /// bytes free, or the process's limit of a file's size. A file system that cannot reserve is only asked how
  /// much is free.
  void reserve(uint64_t bytes);
  void write(std::span<const std::byte> bytes);
  /// Zeros up to a multiple of `alignment`.
  void pad_to(uint64_t alignment);
  void finish();
  uint64_t written() const { return written_; }

 private:
  void flush();
  void send(std::span<const std::byte> bytes);

  std::string path_;
  std::string partial_;
  int fd_ = -1;
  bool finished_ = false;
  uint64_t written_ = 0;
  uint64_t reserved_ = 0;
  std::vector<std::byte> buffer_;
};

}  // namespace greta
