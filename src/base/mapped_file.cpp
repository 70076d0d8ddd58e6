#include "base/mapped_file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "base/error.h"
#include "base/partial_file.h"

namespace greta {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

/// What the path would be once its links are followed, for a message: a dangling link names its target.
std::string describe_target(const std::string& path) {
  char target[PATH_MAX + 1];
  const ssize_t n = ::readlink(path.c_str(), target, PATH_MAX);
  if (n <= 0) return path;
  return fmt::format("{} -> {}", path, std::string(target, static_cast<size_t>(n)));
}

void require_no_nul(const std::string& path) {
  if (path.find('\0') != std::string::npos) fail("the path holds a NUL byte at offset {}", path.find('\0'));
}

}  // namespace

std::string resolve_path(const std::string& path) {
  require_no_nul(path);
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr), &std::free);
  if (!real) fail("cannot open {}: {}", describe_target(path), std::strerror(errno));
  return real.get();
}

MappedFile::MappedFile(const std::string& path) : real_path_(resolve_path(path)) {
  // Nothing is waited for: a pipe without a writer would be.
  Descriptor file{::open(real_path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail("cannot open {}: {}", real_path_, std::strerror(errno));
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) fail("cannot read {}: {}", real_path_, std::strerror(errno));
  if (S_ISDIR(info.st_mode)) fail("cannot read {}: it is a directory, a file was expected", real_path_);
  if (!S_ISREG(info.st_mode)) fail("cannot map {}: it is not a regular file", real_path_);
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapped == MAP_FAILED) fail("cannot map {} ({} bytes): {}", real_path_, size_, std::strerror(errno));
  data_ = static_cast<const std::byte*>(mapped);
  fd_ = std::exchange(file.fd, -1);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) ::close(fd_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : real_path_(std::move(other.real_path_)),
      fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(real_path_, other.real_path_);
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::drop(std::span<const std::byte> part) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (static_cast<size_t>(part.data() - data_) + page - 1) / page * page;
  const size_t end = (static_cast<size_t>(part.data() - data_) + part.size()) / page * page;
  if (end > begin) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

void MappedFile::read(std::span<const std::byte> part, std::byte* to) const {
  const auto first = static_cast<size_t>(part.data() - data_);
  for (size_t done = 0; done < part.size();) {
    const ssize_t n = ::pread(fd_, to + done, part.size() - done, static_cast<off_t>(first + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot read {}: {}", real_path_, std::strerror(errno));
    if (n == 0)
      fail("cannot read {}: it had {} bytes when it was opened and ends at byte {} now", real_path_, size_,
           first + done);
    done += static_cast<size_t>(n);
  }
}

bool wait_until_ready(int fd, short events) {
  if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
  pollfd waited{fd, events, 0};
  return ::poll(&waited, 1, -1) > 0 || errno == EINTR;
}

std::string read_whole_file(const std::string& path) {
  const bool standard_input = path == "-";
  require_no_nul(path);
  // By the path as it is: what a shell's <(command) names, /dev/fd/N, has no other.
  const Descriptor file{standard_input ? ::dup(STDIN_FILENO) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail("cannot open {}: {}", describe_target(path), std::strerror(errno));
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(file.fd, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n < 0 && (errno == EINTR || wait_until_ready(file.fd, POLLIN))) continue;
    if (n < 0) fail("cannot read {}: {}", standard_input ? "standard input" : path, std::strerror(errno));
    text.append(buffer, static_cast<size_t>(n));
  }
}

void write_whole_file(const std::string& path, std::span<const std::byte> bytes) {
  PartialFile file(path);
  file.write(bytes);
  file.finish();
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1 ||
      EVP_DigestUpdate(context.get(), bytes.data(), bytes.size()) != 1 ||
      EVP_DigestFinal_ex(context.get(), digest, &length) != 1)
    fail("SHA-256 could not be computed by libcrypto");
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

}  // namespace greta
