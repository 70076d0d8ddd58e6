#include "trace/row_hash.h"

#include <bit>
#include <vector>

namespace greta {

uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t row_hash(std::span<const float> row) {
  uint64_t sum = 0;
  for (size_t i = 0; i < row.size(); ++i) sum += mix64((uint64_t{i} << 32) + std::bit_cast<uint32_t>(row[i]));
  return sum;
}

uint64_t row_hash(std::span<const double> row) {
  uint64_t sum = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const auto bits = std::bit_cast<uint64_t>(row[i]);
    sum += mix64((uint64_t{2 * i} << 32) + (bits & 0xffffffffu));
    sum += mix64((uint64_t{2 * i + 1} << 32) + (bits >> 32));
  }
  return sum;
}

uint64_t row_hash(std::span<const double> row, bool wide) {
  if (wide) return row_hash(row);
  const std::vector<float> narrow(row.begin(), row.end());
  return row_hash(std::span<const float>(narrow));
}

uint64_t positioned(uint64_t hash, int64_t position) {
  return mix64(hash ^ mix64(static_cast<uint64_t>(position)));
}

}  // namespace greta
