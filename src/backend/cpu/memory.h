#pragma once
#include <cstddef>
#include <cstdint>

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

}  // namespace greta::cpu
