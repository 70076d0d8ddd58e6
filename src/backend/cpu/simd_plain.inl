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

// The reduced vectors of `count` rows that begin `stride` floats apart; the other lanes are anything.
template <float (&Reduce)(VF)>
inline VF reduce_each(const float* rows, int64_t stride, int count) {
  alignas(64) float reduced[16] = {};
  for (int r = 0; r < count; ++r) reduced[r] = Reduce(load(rows + r * stride));
  return load(reduced);
}
inline VF reduce_rows(const float* rows, int64_t stride, int count) {
  return reduce_each<reduce_add>(rows, stride, count);
}
inline VF max_rows(const float* rows, int64_t stride, int count) {
  return reduce_each<reduce_max>(rows, stride, count);
}

template <int32_t (&Reduce)(VI)>
inline VI reduce_each_of_ints(const int32_t (*rows)[16], int count) {
  alignas(64) int32_t reduced[16] = {};
  for (int r = 0; r < count; ++r) reduced[r] = Reduce(loadi(rows[r]));
  return loadi(reduced);
}
inline VI add_int_rows(const int32_t (*rows)[16], int count) {
  return reduce_each_of_ints<reduce_addi>(rows, count);
}
inline VI max_int_rows(const int32_t (*rows)[16], int count) {
  return reduce_each_of_ints<reduce_maxi>(rows, count);
}
