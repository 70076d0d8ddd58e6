// For instruction sets without an instruction for it.

// p 2^n in two factors; p of 0.5 to 2 or NaN, n an integer of -150 to 128. A subnormal result is rounded
// once.
inline VF times_power(VF p, VF n) {
  const VI exponent = to_int(n);
  const VI first = sar<1>(exponent);
  const VI second = subi(exponent, first);
  p = mul(p, as_float(shl<23>(addi(first, set1i(127)))));
  return mul(p, as_float(shl<23>(addi(second, set1i(127)))));
}
