// Ten thousand damaged files: whatever the reader does with them, it does in bounds (the sanitizer builds see
// to that), in time, and with a message that says where.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <random>

#include "base/error.h"
#include "base/text.h"
#include "gguf/gguf.h"
#include "raw_file.h"

namespace greta::gguf {
namespace {

uint64_t touch(const Array& array) {
  uint64_t sum = array.count;
  for (const std::byte b : array.raw) sum += std::to_integer<uint64_t>(b);
  for (const std::string_view s : array.strings)
    for (const char c : s) sum += static_cast<unsigned char>(c);
  for (const Array& inner : array.arrays) sum += touch(inner);
  if (!array.raw.empty() && array.count > 0 && array.element != ValueType::F32 &&
      array.element != ValueType::F64)
    sum += static_cast<uint64_t>(array_integer(array, array.count - 1));
  return sum;
}

/// Reads every byte that the File points to.
uint64_t touch(const File& file) {
  uint64_t sum = 0;
  for (const auto& [key, value] : file.metadata()) {
    if (const auto* text = std::get_if<std::string_view>(&value.data))
      for (const char c : *text) sum += static_cast<unsigned char>(c);
    if (const auto* array = std::get_if<Array>(&value.data)) sum += touch(*array);
  }
  for (const Tensor& t : file.tensors()) {
    EXPECT_EQ(t.bytes.size(), quant::bytes_for(t.type, t.elements()));
    for (const std::byte b : t.bytes) sum += std::to_integer<uint64_t>(b);
  }
  return sum;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::vector<std::byte> damage(const RawFile& raw, size_t header) {
    std::vector<std::byte> bytes = raw.data();
    for (uint64_t i = 0, n = 1 + below(3); i < n; ++i) {
      switch (below(4)) {
        case 0:
          for (uint64_t k = 0, flips = 1 + below(8); k < flips; ++k)
            bytes[below(std::min<uint64_t>(header, bytes.size()))] ^= static_cast<std::byte>(1u << below(8));
          break;
        case 1: {
          const RawFile::Field& field = raw.fields()[below(raw.fields().size())];
          const uint64_t v = extreme(bytes.size());
          const size_t size = std::min<size_t>(field.size, 8);
          if (field.offset + size <= bytes.size()) std::memcpy(bytes.data() + field.offset, &v, size);
          break;
        }
        case 2: {  // a wrong number anywhere, aligned to nothing
          const uint64_t v = extreme(bytes.size());
          const size_t size = below(2) == 0 ? 4 : 8;
          const size_t where = below(header);
          if (where + size <= bytes.size()) std::memcpy(bytes.data() + where, &v, size);
          break;
        }
        default:
          bytes.resize(1 + below(bytes.size()));
          break;
      }
    }
    return bytes;
  }

 private:
  uint64_t below(uint64_t n) { return random_() % n; }
  uint64_t extreme(uint64_t size) {
    const uint64_t values[] = {0,          1,          2,          3,          7,
                               8,          13,         31,         33,         size - 1,
                               size,       size + 1,   0x7f,       0xff,       0x7fff,
                               0xffff,     0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32,
                               1ull << 40, 1ull << 60, 1ull << 61, 1ull << 62, (1ull << 62) + 1,
                               ~0ull >> 1, 1ull << 63, ~0ull - 31, ~0ull - 7,  ~0ull};
    return values[below(std::size(values))];
  }

  std::mt19937_64 random_;
};

TEST(Mutations, TenThousandDamagedHeaders) {
  const RawFile raw = small_file();
  const size_t header = raw.offset_of("third offset") + 8;
  int refused = 0;
  int accepted = 0;
  uint64_t sum = 0;
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    const std::vector<std::byte> damaged = Mutator(seed).damage(raw, header);
    // Its own allocation of exactly this size, so that a read past the end is seen.
    const std::unique_ptr<std::byte[]> exact(new std::byte[damaged.size()]);
    std::memcpy(exact.get(), damaged.data(), damaged.size());
    const auto start = std::chrono::steady_clock::now();
    try {
      sum += touch(File::from_bytes({exact.get(), damaged.size()}, "model"));
      ++accepted;
    } catch (const Error& error) {
      ++refused;
      std::string text = error.what();
      for (const std::string& line : error.details()) text += "\n" + line;
      const bool placed = text.find("at offset ") != std::string::npos ||
                          text.find("metadata '") != std::string::npos ||
                          text.find("tensor '") != std::string::npos;
      EXPECT_TRUE(placed) << "seed " << seed << ": " << text;
      EXPECT_LT(text.size(), 5000u) << "seed " << seed;
      EXPECT_EQ(printable(error.what()), error.what()) << "seed " << seed;
      for (const std::string& line : error.details()) EXPECT_EQ(printable(line), line) << "seed " << seed;
    }  // anything else that is thrown (bad_alloc, length_error) fails the test
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ASSERT_LT(seconds, 1.0) << "seed " << seed;
  }
  EXPECT_GT(refused, 5000);
  EXPECT_GT(accepted, 100) << "damage that the reader cannot see should occur too";
  EXPECT_NE(sum, 0u);
}

}  // namespace
}  // namespace greta::gguf
