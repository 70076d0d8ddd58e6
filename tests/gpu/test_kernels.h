#pragma once
// Kernels for tests alone, one set a target (test_kernels.inl).
#include <cstdint>
#include <string>

#include "backend/gpu/device.h"

namespace greta::gpu {

struct TestKernels {
  // The target's fragments (target.h): elements a lane has, and where each lies.
  int wave, tile_n, count_a, count_b, count_c;
  int (*a_row)(int lane, int e);
  int (*a_k)(int lane, int e);
  int (*b_n)(int lane, int e);
  int (*b_k)(int lane, int e);
  int (*c_row)(int lane, int i);
  int (*c_n)(int lane, int i);
  /// For every pair of an element of A and one of B, numbered lane * count + e: c = `start` + A B of a matrix
  /// of one 1 each. `start`: [wave * count_c]; `c`: [wave * count_a, wave * count_b, wave * count_c].
  void (*one_hot)(const Launch&, bool bf16, const float* start, float* c);
  /// x[count] = 1: one element past [count].
  void (*write_past)(const Launch&, float* x, int64_t count);
};

/// Of a device's target; null where the test program has none (hip).
const TestKernels* test_kernels(const std::string& device);

}  // namespace greta::gpu
