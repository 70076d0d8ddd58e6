#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "base/error.h"

namespace greta::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = 2 * kHugePage;
constexpr size_t kRegion = 16 * kHugePage;

}  // namespace

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  mapped_ = bytes >= kHugeFrom ? bytes + kHugePage : bytes;
  mapping_ = mapped_ < bytes
                 ? MAP_FAILED
                 : ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) fail("cannot allocate {} bytes of memory: {}", bytes, std::strerror(errno));
  data_ = static_cast<std::byte*>(mapping_);
  if (bytes >= kHugeFrom) {
    data_ += (kHugePage - reinterpret_cast<uintptr_t>(data_) % kHugePage) % kHugePage;
    // A wish: fewer TLB misses while weights stream. What is left at the end stays on small pages.
    ::madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
}

Memory::~Memory() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
}

Memory::Memory(Memory&& other) noexcept { *this = std::move(other); }

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Memory::reserve(size_t bytes) {
  if (bytes > bytes_) *this = Memory(bytes);
}

std::shared_ptr<std::byte> Arena::allocate(size_t bytes) {
  if (bytes > kRegion / 4) {
    auto own = std::make_shared<Memory>(bytes);
    return {own, own->data()};
  }
  if (!region_ || used_ + bytes > region_->bytes()) {
    region_ = std::make_shared<Memory>(kRegion);
    used_ = 0;
  }
  std::shared_ptr<std::byte> piece(region_, region_->data() + used_);
  used_ += (bytes + 63) / 64 * 64;
  return piece;
}

}  // namespace greta::cpu
