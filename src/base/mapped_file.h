#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace greta {

/// A file mapped read-only. The path is resolved through symbolic links and must be a regular file.
/// Errors: greta::Error with the resolved path and the system's reason.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& real_path() const { return real_path_; }

  /// The pages wholly inside `part` are no longer needed: they leave this process's resident set (the page
  /// cache keeps them). Reading them again is permitted and only costs time.
  void drop(std::span<const std::byte> part) const;

  /// The bytes of `part` of the mapping, copied to `to` from the file itself, so that no page of them becomes
  /// resident: for what is read once. From any thread. Errors: the system's reason, or that the file has
  /// become shorter.
  void read(std::span<const std::byte> part, std::byte* to) const;

 private:
  std::string real_path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// `path` with every symbolic link resolved. Errors: the path that was tried and the system's reason.
std::string resolve_path(const std::string& path);

/// Whether errno, as a read or write of `fd` left it, says that it would have had to wait; then it has waited
/// (events: as poll has them).
bool wait_until_ready(int fd, short events);

/// A whole file, byte for byte; "-" is standard input. Errors as above.
std::string read_whole_file(const std::string& path);

/// Writes `bytes` beside `path` and renames: the file is whole or absent. Errors: path and reason; nothing is
/// left.
void write_whole_file(const std::string& path, std::span<const std::byte> bytes);

/// SHA-256 of bytes as 64 lower-case hex digits.
std::string sha256_hex(std::span<const std::byte> bytes);

}  // namespace greta
