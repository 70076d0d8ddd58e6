#pragma once
// The one inner loop of the reference: matmul, attention's scores and its values are all
//
//   sums[i, l] += a[i, k] * lanes[k, l]     k ascending, i over rows, l over kLanes neighbours
//
// A multiplication, then an addition, each rounded, in ascending k: a sum depends on its own row and lane
// alone, and every vector width gives the bits of the scalar loop.
#include <cstdint>
#include <vector>

namespace greta::reference {

inline constexpr int kLanes = 8;

/// a: a[i * row_stride + k * step] is element (i, k); lanes: [count, kLanes]; sums: [rows, kLanes].
struct Products {
  int64_t rows = 0;
  const double* a = nullptr;
  int64_t row_stride = 0;
  int64_t step = 1;
  int64_t count = 0;
  const double* lanes = nullptr;
  double* sums = nullptr;
};

using AddProducts = void (*)(const Products&);

/// The loop as compiled for each vector width that this machine has, the widest first.
std::vector<AddProducts> add_products_by_width();

}  // namespace greta::reference
