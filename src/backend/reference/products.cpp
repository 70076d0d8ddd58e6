#include "backend/reference/products.h"

#include <cstring>

namespace greta::reference {
namespace {

/// `Rows` rows from `first` on. Inlined into its caller, so compiled for that one's instruction set; `Bytes`
/// is the width of its vectors. Vectors are copied one by one: GCC keeps an array that is copied whole in
/// memory.
template <int Bytes, int Rows>
[[gnu::always_inline]] inline void add_rows(const Products& p, int64_t first) {
  using Vector [[gnu::vector_size(Bytes)]] = double;
  constexpr int kWidth = Bytes / static_cast<int>(sizeof(double));
  constexpr int kVectors = kLanes / kWidth;
  const double* a = p.a + first * p.row_stride;
  double* sums = p.sums + first * kLanes;
  Vector s[Rows][kVectors];
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < kVectors; ++v) std::memcpy(&s[i][v], sums + i * kLanes + v * kWidth, Bytes);
  for (int64_t k = 0; k < p.count; ++k) {
    Vector lanes[kVectors];
    for (int v = 0; v < kVectors; ++v) std::memcpy(&lanes[v], p.lanes + k * kLanes + v * kWidth, Bytes);
    for (int i = 0; i < Rows; ++i)
      for (int v = 0; v < kVectors; ++v) s[i][v] += a[i * p.row_stride + k * p.step] * lanes[v];
  }
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < kVectors; ++v) std::memcpy(sums + i * kLanes + v * kWidth, &s[i][v], Bytes);
}

/// As many rows together as the registers hold sums for: with fewer the time is the chain of additions.
template <int Bytes, int Rows>
[[gnu::always_inline]] inline void add_from(const Products& p, int64_t first) {
  for (; first + Rows <= p.rows; first += Rows) add_rows<Bytes, Rows>(p, first);
  if constexpr (Rows > 1) add_from<Bytes, Rows / 2>(p, first);
}

void add_16(const Products& p) { add_from<16, 2>(p, 0); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] void add_32(const Products& p) { add_from<32, 4>(p, 0); }
[[gnu::target("avx512f")]] void add_64(const Products& p) { add_from<64, 8>(p, 0); }
#endif

}  // namespace

std::vector<AddProducts> add_products_by_width() {
  std::vector<AddProducts> found;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) found.push_back(add_64);
  if (__builtin_cpu_supports("avx2")) found.push_back(add_32);
#endif
  found.push_back(add_16);
  return found;
}

}  // namespace greta::reference
