// Products with F32, F16 and BF16 weights. Lane l adds the products k = 16 j + l in ascending j, each by one
// fma (a last short vector is padded with zeros); then the fixed tree; then the bias. The register tile
// changes no order.

template <FloatType W>
inline VF load_weights(const std::byte* p) {
  if constexpr (W == kF32) return load(reinterpret_cast<const float*>(p));
  if constexpr (W == kF16) return load_f16(p);
  if constexpr (W == kBF16) return load_bf16(p);
}
template <FloatType W>
inline VF load_weights_n(const std::byte* p, int n) {
  if constexpr (W == kF32) {
    alignas(64) float part[16] = {};  // the file's rows need not be aligned for float
    __builtin_memcpy(part, p, static_cast<size_t>(n) * 4);
    return load(part);
  }
  if constexpr (W == kF16) return load_f16_n(p, n);
  if constexpr (W == kBF16) return load_bf16_n(p, n);
}
template <FloatType W>
inline constexpr int kElement = W == kF32 ? 4 : 2;

// How far ahead of its use a line of weights is asked for where one token streams them, kRowsOfOne rows side
// by side (measured on Zen 4: 8 rows and 512 bytes give 24 GB/s a thread, 4 rows without 19).
inline constexpr int kRowAhead = 512;

template <FloatType W, int R, int T>
inline void float_block(const FloatJob& job, int64_t row, int64_t token) {
  const std::byte* w = job.w + row * job.row_bytes;
  const float* x = job.x + token * job.k;
  VF acc[R][T];
  unroll<R>([&](auto r) { unroll<T>([&](auto t) { acc[r][t] = zero(); }); });
  int64_t k = 0;
  for (; k + 16 <= job.k; k += 16) {
    VF weights[R];
    // Past the end of a row comes the row R below it, not the next.
    const int64_t ahead =
        k * kElement<W> + kRowAhead < job.row_bytes ? kRowAhead : kRowAhead + (R - 1) * job.row_bytes;
    unroll<R>([&](auto r) {
      const std::byte* p = w + r * job.row_bytes + k * kElement<W>;
      if constexpr (T == 1) __builtin_prefetch(p + ahead);
      weights[r] = load_weights<W>(p);
    });
    unroll<T>([&](auto t) {
      const VF v = load(x + t * job.k + k);
      unroll<R>([&](auto r) { acc[r][t] = fma(weights[r], v, acc[r][t]); });
    });
  }
  if (k < job.k) {
    const int tail = static_cast<int>(job.k - k);
    VF weights[R];
    unroll<R>([&](auto r) { weights[r] = load_weights_n<W>(w + r * job.row_bytes + k * kElement<W>, tail); });
    unroll<T>([&](auto t) {
      const VF v = load_n(x + t * job.k + k, tail);
      unroll<R>([&](auto r) { acc[r][t] = fma(weights[r], v, acc[r][t]); });
    });
  }
  unroll<R>([&](auto r) {
    unroll<T>([&](auto t) {
      float y = reduce_add(acc[r][t]);
      if (job.bias != nullptr) y = y + job.bias[row + r];
      job.out[(token + t) * job.rows + row + r] = y;
    });
  });
}

// The tokens left, at most T.
template <FloatType W, int R, int T>
inline void float_tokens(const FloatJob& job, int64_t row, int64_t token, int64_t count) {
  if (count == T) {
    float_block<W, R, T>(job, row, token);
  } else if constexpr (T > 1) {
    float_tokens<W, R, T - 1>(job, row, token, count);
  }
}

template <FloatType W>
void float_matmul(const FloatJob& job, int64_t row0, int64_t row1, int64_t token0, int64_t token1) {
  for (int64_t token = token0; token < token1; token += kFloatTokens) {
    const int64_t count = token1 - token < kFloatTokens ? token1 - token : kFloatTokens;
    int64_t row = row0;
    if (count == 1) {
      for (; row + kRowsOfOne <= row1; row += kRowsOfOne) float_block<W, kRowsOfOne, 1>(job, row, token);
    }
    for (; row + kFloatRows <= row1; row += kFloatRows)
      float_tokens<W, kFloatRows, kFloatTokens>(job, row, token, count);
    for (; row < row1; ++row) float_tokens<W, 1, kFloatTokens>(job, row, token, count);
  }
}
