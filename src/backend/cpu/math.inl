// Our own exp, silu, gelu and sincos: the same operations in the same order on every instruction set, so the
// same bits.

// e^x for every x: below -104 zero, above 88.73 infinity, subnormal results rounded once, NaN stays NaN.
// Cody-Waite: x = n ln2 + r with |r| <= ln2 / 2 (the first fma is exact), then 1 + (r + r^2 p(r)), p minimax
// of degree 4, relative error 0.06 units of 2^-24; all told below 0.6 + that, measured 1 ulp at most
// (tests/cpu).
inline VF exp16(VF x) {
  x = vmax(set1(-104.0f), vmin(set1(89.0f), x));  // this order of operands lets a NaN through
  const VF shifted = fma(x, set1(0x1.715476p+0f), set1(12582912.0f));
  const VF n = sub(shifted, set1(12582912.0f));
  VF r = fma(n, set1(-0x1.62e43p-1f), x);
  r = fma(n, set1(0x1.05c61p-29f), r);
  VF p = fma(set1(0x1.6a23dp-10f), r, set1(0x1.123a2p-7f));
  p = fma(p, r, set1(0x1.5558f2p-5f));
  p = fma(p, r, set1(0x1.555492p-3f));
  p = fma(p, r, set1(0x1.fffffcp-2f));
  return times_power(add(set1(1.0f), fma(p, mul(r, r), r)), n);
}

// x where the sign bit is set in `of`, else y
inline VF by_sign(VF of, VF negative, VF positive) {
  const VI mask = sar<31>(as_int(of));
  return as_float(ori(andi(mask, as_int(negative)), subi(as_int(positive), andi(mask, as_int(positive)))));
}
inline VF magnitude(VF x) { return as_float(andi(as_int(x), set1i(0x7fffffff))); }

// x / (1 + e^-x), written with e^-|x| so that nothing overflows: x e / (1 + e) on the negative side.
inline VF silu16(VF x) {
  const VF e = exp16(neg(magnitude(x)));
  return div(mul(x, by_sign(x, e, set1(1.0f))), add(set1(1.0f), e));
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^-y), y = x (a + b x^2), a = 2 sqrt(2/pi), b =
// 0.044715 a. e^-y magnifies an error of y by |y|, so y is computed as a sum of two FP32 numbers.
inline VF gelu16(VF x) {
  const VF c = vmax(set1(-16.0f), vmin(set1(16.0f), x));  // beyond it the sigmoid is 0 or 1
  const VF square = mul(c, c);
  const VF square_low = fma(c, c, neg(square));
  const VF b = set1(0x1.2444f2p-4f), a = set1(0x1.988454p+0f);
  const VF product = mul(b, square);
  const VF product_low = fma(b, square_low, fma(set1(0x1.49b16ap-29f), square, fma(b, square, neg(product))));
  const VF sum = add(a, product);  // both positive; TwoSum gives the exact rest
  const VF back = sub(sum, a);
  const VF rest = add(sub(a, sub(sum, back)), sub(product, back));
  const VF sum_low = add(add(rest, product_low), set1(-0x1.857936p-25f));
  const VF y = mul(c, sum);
  const VF y_low = fma(c, sum_low, fma(c, sum, neg(y)));
  VF e = exp16(neg(magnitude(y)));
  e = fma(e, by_sign(y, y_low, neg(y_low)), e);  // e^-(|y| + low) = e^-|y| (1 - low)
  return div(mul(x, by_sign(y, e, set1(1.0f))), add(set1(1.0f), e));
}

// e^x - 1 for 0 <= x <= 64, and NaN: exp16's reduction, the one left out of the last sum. With n > 0 the sum
// cannot cancel: r + r^2 p(r) >= -0.3, 2^n - 1 >= 1.
inline VF expm1_16(VF x) {
  const VF shifted = fma(x, set1(0x1.715476p+0f), set1(12582912.0f));
  const VF n = sub(shifted, set1(12582912.0f));
  const VI exponent = subi(as_int(shifted), set1i(0x4b400000));
  VF r = fma(n, set1(-0x1.62e43p-1f), x);
  r = fma(n, set1(0x1.05c61p-29f), r);
  VF p = fma(set1(0x1.6a23dp-10f), r, set1(0x1.123a2p-7f));
  p = fma(p, r, set1(0x1.5558f2p-5f));
  p = fma(p, r, set1(0x1.555492p-3f));
  p = fma(p, r, set1(0x1.fffffcp-2f));
  p = fma(p, mul(r, r), r);
  const VF power = as_float(shl<23>(addi(exponent, set1i(127))));
  return fma(p, power, sub(power, set1(1.0f)));
}

// cap tanh(x / cap), tanh y = (e^2|y| - 1) / (e^2|y| + 1) with y's sign; beyond |y| = 16 it is 1.
inline VF softcap16(VF x, VF cap) {
  const VF y = div(x, cap);
  const VF twice = vmin(set1(32.0f), add(magnitude(y), magnitude(y)));  // this order lets a NaN through
  const VF t = expm1_16(twice);
  const VF tanh = div(t, add(t, set1(2.0f)));
  return mul(cap, by_sign(x, neg(tanh), tanh));
}

// sin and cos of x radians, |x| up to 2^31, in double. x = n pi/2 + r: with pi/2 in two doubles and n below
// 2^31 the first fma is exact, what the second constant leaves out is below 1e-23. Taylor on |r| <= pi/4:
// 5e-17 absolute.
inline void sincos1(double x, double* sine, double* cosine) {
  const double shifted = __builtin_fma(x, 0x1.45f306dc9c883p-1, 0x1.8p52);
  const double n = shifted - 0x1.8p52;
  const uint64_t quadrant = __builtin_bit_cast(uint64_t, shifted) & 3u;
  double r = __builtin_fma(-n, 0x1.921fb54442d18p+0, x);
  r = __builtin_fma(-n, 0x1.1a62633145c07p-54, r);
  const double q = r * r;
  double s = -0x1.ae7f3e733b81fp-41;
  s = __builtin_fma(s, q, 0x1.6124613a86d09p-33);
  s = __builtin_fma(s, q, -0x1.ae64567f544e4p-26);
  s = __builtin_fma(s, q, 0x1.71de3a556c734p-19);
  s = __builtin_fma(s, q, -0x1.a01a01a01a01ap-13);
  s = __builtin_fma(s, q, 0x1.1111111111111p-7);
  s = __builtin_fma(s, q, -0x1.5555555555555p-3);
  s = __builtin_fma(s * q, r, r);
  double c = 0x1.ae7f3e733b81fp-45;
  c = __builtin_fma(c, q, -0x1.93974a8c07c9dp-37);
  c = __builtin_fma(c, q, 0x1.1eed8eff8d898p-29);
  c = __builtin_fma(c, q, -0x1.27e4fb7789f5cp-22);
  c = __builtin_fma(c, q, 0x1.a01a01a01a01ap-16);
  c = __builtin_fma(c, q, -0x1.6c16c16c16c17p-10);
  c = __builtin_fma(c, q, 0x1.5555555555555p-5);
  c = __builtin_fma(c, q, -0.5);
  c = __builtin_fma(c, q, 1.0);
  const bool swap = (quadrant & 1u) != 0;
  *sine = (quadrant & 2u) != 0 ? -(swap ? c : s) : (swap ? c : s);
  *cosine = ((quadrant + 1) & 2u) != 0 ? -(swap ? s : c) : (swap ? s : c);
}
