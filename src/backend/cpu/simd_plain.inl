// What AVX-512 has instructions for, in the operations of the other instruction sets.

// p 2^n in two factors; p of 0.5 to 2 or NaN, n an integer of -150 to 128. A subnormal result is rounded
// once.
inline VF times_power(VF p, VF n) {
  const VI exponent = to_int(n);
  const VI first = sar<1>(exponent);
  const VI second = subi(exponent, first);
  p = mul(p, as_float(shl<23>(addi(first, set1i(127)))));
  return mul(p, as_float(shl<23>(addi(second, set1i(127)))));
}

// The reduced vectors (reduce_add) of 16 rows that begin `stride` floats apart.
inline VF reduce_rows(const float* rows, int64_t stride) {
  alignas(64) float sums[16];
  for (int r = 0; r < 16; ++r) sums[r] = reduce_add(load(rows + r * stride));
  return load(sums);
}
