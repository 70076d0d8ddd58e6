#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace greta::cpu {

/// Zeroed memory straight from the system, aligned to 64 bytes at least and to 2 MiB from 4 MiB on, where
/// huge pages are asked for. Errors: greta::Error with the size.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  /// At least `bytes` from now on; the content is lost where it must grow.
  void reserve(size_t bytes);

 private:
  void* mapping_ = nullptr;
  size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Room for many weights behind one another in large regions, so that small ones lie on huge pages too. A
/// piece lives as long as its handle; a region goes with its last piece.
class Arena {
 public:
  /// Zeroed, aligned to 64 bytes. Errors: as Memory.
  std::shared_ptr<std::byte> allocate(size_t bytes);

 private:
  std::shared_ptr<Memory> region_;
  size_t used_ = 0;
};

}  // namespace greta::cpu
