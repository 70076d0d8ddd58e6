#include "base/partial_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"

namespace greta {
namespace {

constexpr size_t kBuffer = 1 << 20;

}  // namespace

PartialFile::PartialFile(const std::string& path)
    : path_(path), partial_(fmt::format("{}.partial-{}", path, ::getpid())) {
  struct stat there {};
  if (::stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
    fail("cannot write {}: something that is not a regular file is there", path);
  fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("cannot write {}: {}", path_, std::strerror(errno));
  buffer_.reserve(kBuffer);
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!finished_) ::unlink(partial_.c_str());
}

void PartialFile::reserve(uint64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur)
    fail(
        "cannot write {}: {} bytes are needed, and this process may write files of at most {}; raise the "
        "limit (ulimit -f)",
        path_, bytes, limit.rlim_cur);
  struct statvfs disk {};
  const bool known = ::fstatvfs(fd_, &disk) == 0 && disk.f_blocks > 0;
  const uint64_t free = known ? uint64_t{disk.f_bavail} * disk.f_frsize : 0;
  const auto refuse = [&](int error) {
    fail("cannot write {}: {} bytes are needed, {} are free there: {}; free some, or name another place",
         path_, bytes, known ? fmt::format("{}", free) : "not as many", std::strerror(error));
  };
  if (known && bytes - std::min(bytes, written_) > free) refuse(ENOSPC);
  if (bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) refuse(EFBIG);
  // Not posix_fallocate: where the file system cannot, that writes every block.
  int error = 0;
  do {
    error = ::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == 0)
    reserved_ = bytes;
  else if (error != EOPNOTSUPP && error != ENOSYS && error != EINVAL)
    refuse(error);
}

void PartialFile::write(std::span<const std::byte> bytes) {
  written_ += bytes.size();
  if (buffer_.size() + bytes.size() > kBuffer) flush();
  if (bytes.size() >= kBuffer) return send(bytes);
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

void PartialFile::pad_to(uint64_t alignment) {
  const uint64_t rest = written_ % alignment;
  for (uint64_t left = rest == 0 ? 0 : alignment - rest; left > 0;) {
    const std::byte zeros[64] = {};
    const uint64_t n = std::min<uint64_t>(left, sizeof zeros);
    write({zeros, n});
    left -= n;
  }
}

void PartialFile::finish() {
  flush();
  if (reserved_ > written_ && ::ftruncate(fd_, static_cast<off_t>(written_)) != 0)
    fail("cannot write {}: {}", path_, std::strerror(errno));
  if (::close(std::exchange(fd_, -1)) != 0) fail("cannot write {}: {}", path_, std::strerror(errno));
  if (::rename(partial_.c_str(), path_.c_str()) != 0)
    fail("cannot write {}: {}", path_, std::strerror(errno));
  finished_ = true;
}

void PartialFile::flush() {
  send(buffer_);
  buffer_.clear();
}

void PartialFile::send(std::span<const std::byte> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot write {}: {}", path_, std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

}  // namespace greta
