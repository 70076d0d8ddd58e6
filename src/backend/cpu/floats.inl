// Products with F32, F16 and BF16 weights. Lane l adds the products k = 16 j + l in ascending j, each by one
// fma (a last short vector is padded with zeros); then the fixed tree; then the bias. Neither the register
// tile nor the panels change that order.

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
inline int64_t padded_k(const FloatJob& job) { return (job.k + kLanes - 1) / kLanes * kLanes; }
inline void store_output(const FloatJob& job, int64_t row, int64_t token, VF sums) {
  float y = reduce_add(sums);
  if (job.bias != nullptr) y = y + job.bias[row];
  job.out[token * job.rows + row] = y;
}

template <FloatType W>
inline constexpr int kElement = W == kF32 ? 4 : 2;

// How far ahead of its use a line of weights is asked for where few tokens stream them, R rows side by side,
// first into the second cache and then into the first (Emerald Rapids, 8 rows: 7 % more than 512 bytes alone;
// Zen 4: 8 rows and 512 bytes give 24 GB/s a thread, 4 rows without 19).
inline constexpr int kFarInRow = 2048, kNearInRow = 512;

// Few tokens, T of one tile: straight from the weights, which stream from memory.
template <FloatType W, int R, int T>
inline void float_rows(const FloatJob& job, int64_t row, int64_t token) {
  const std::byte* w = job.w + row * job.row_bytes;
  const float* x = job.x + token * padded_k(job);
  VF acc[R][T];
  unroll<R>([&](auto r) { unroll<T>([&](auto t) { acc[r][t] = zero(); }); });
  // The next vector of x times what weights_of(r) gives.
  const auto multiply = [&](const auto& weights_of) GRETA_INLINE {
    VF v[T];
    unroll<T>([&](auto t) { v[t] = load(x + t * kLanes); });
    unroll<R>([&](auto r) GRETA_INLINE {
      const VF weights = weights_of(r);
      unroll<T>([&](auto t) { acc[r][t] = fma(weights, v[t], acc[r][t]); });
    });
    x += T * kLanes;
  };
  const auto at = [&](int r, int64_t k) GRETA_INLINE { return w + r * job.row_bytes + k * kElement<W>; };
  constexpr int kLine = 64 / kElement<W>;  // elements
  int64_t k = 0;
  for (; k + kLine <= job.k; k += kLine) {
    // Past the end of a row comes the row R below it, not the next.
    const auto past = [&](int ahead) GRETA_INLINE {
      return k * kElement<W> + ahead < job.row_bytes ? ahead : ahead + (R - 1) * job.row_bytes;
    };
    const int64_t far = past(kFarInRow), near = past(kNearInRow);
    unroll<kLine / kLanes>([&](auto part) GRETA_INLINE {
      multiply([&](auto r) GRETA_INLINE {
        if constexpr (part.value == 0) {
          fetch_to_second(at(r, k) + far);
          fetch_to_first(at(r, k) + near);
        }
        return load_weights<W>(at(r, k + part * kLanes));
      });
    });
  }
  for (; k + kLanes <= job.k; k += kLanes)
    multiply([&](auto r) GRETA_INLINE { return load_weights<W>(at(r, k)); });
  if (k < job.k)
    multiply([&](auto r) GRETA_INLINE { return load_weights_n<W>(at(r, k), static_cast<int>(job.k - k)); });
  unroll<R>([&](auto r) { unroll<T>([&](auto t) { store_output(job, row + r, token + t, acc[r][t]); }); });
}

// Many tokens: kPanelRows rows as FP32, kPanelK of K at a time, times a block of tokens, whose sums (all 16
// lanes) wait in scratch from one panel to the next. Panel and x of a register tile fit the first cache.
inline constexpr int kPanelRows = 8, kPanelK = 512, kTogetherRows = 32, kFloatBlock = 96;
static_assert((kPanelRows * kPanelK + kTogetherRows * kFloatBlock * kLanes) * 4 <= kMatmulScratch);
static_assert(kPanelRows % kFloatRows == 0 && kFloatBlock % kFloatTokens == 0);

// `vectors` of K; panel: [vectors][R][16], x: [vectors][T][16], sums: [R][kFloatBlock][16].
template <int R, int T>
[[gnu::noinline]] void panel_tile(const float* panel, const float* x, int vectors, bool first, float* sums) {
  VF acc[R][T];
  unroll<R>([&](auto r) {
    unroll<T>([&](auto t) { acc[r][t] = first ? zero() : load(sums + (r * kFloatBlock + t) * kLanes); });
  });
  for (int i = 0; i < vectors; ++i) {
    fma_outer<R, T>(acc, panel, x);
    panel += R * kLanes;
    x += T * kLanes;
  }
  unroll<R>(
      [&](auto r) { unroll<T>([&](auto t) { store(sums + (r * kFloatBlock + t) * kLanes, acc[r][t]); }); });
}

// R rows of the weights as FP32 from k on, `count` of K: [vectors][R][16], a last short vector filled with
// zeros.
template <FloatType W, int R>
inline void fill_panel(const FloatJob& job, int64_t row, int64_t k, int count, float* panel) {
  const std::byte* w = job.w + row * job.row_bytes + k * kElement<W>;
  const auto at = [&](int r, int i) { return w + r * job.row_bytes + i * kElement<W>; };
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    unroll<R>([&](auto r) { store(panel + i * R + r * kLanes, load_weights<W>(at(r, i))); });
  if (i < count)
    unroll<R>([&](auto r) { store(panel + i * R + r * kLanes, load_weights_n<W>(at(r, i), count - i)); });
}

// body(Index<tokens>{}), Least <= tokens <= T.
template <int T, int Least = 1, class Body>
inline void for_tokens(int64_t tokens, const Body& body) {
  if (tokens == T) {
    body(Index<T>{});
  } else if constexpr (T > Least) {
    for_tokens<T - 1, Least>(tokens, body);
  }
}

// Where the panel that is filled after this one lies: the next rows, else the next part of K, else the rows
// below.
template <FloatType W>
inline const std::byte* panel_after(const FloatJob& job, int64_t row, int end, int rows, int64_t k) {
  if (end < rows) return job.w + (row + end) * job.row_bytes + k * kElement<W>;
  if (k + kPanelK < job.k) return job.w + row * job.row_bytes + (k + kPanelK) * kElement<W>;
  return job.w + (row + rows) * job.row_bytes;
}

// `rows` rows, kTogetherRows at most, R at a time, times the tokens of a block: a panel of each before the
// next part of K, while that part of x is near. A panel's weights come in short pieces of many rows, which no
// hardware fetches ahead: a part of the next panel's is asked for with each tile.
template <FloatType W, int R>
inline void float_block(const FloatJob& job, int64_t row, int rows, int64_t token, int tokens, float* panel,
                        float* sums) {
  for (int64_t k = 0; k < job.k; k += kPanelK) {
    const int count = job.k - k < kPanelK ? static_cast<int>(job.k - k) : kPanelK;
    for (int first = 0; first < rows; first += kPanelRows) {
      const int end = rows - first < kPanelRows ? rows : first + kPanelRows;
      for (int r = first; r < end; r += R)
        fill_panel<W, R>(job, row + r, k, count, panel + (r - first) * kPanelK);
      constexpr int kPiece = kPanelK * kElement<W> * kFloatTokens / kFloatBlock;
      const std::byte* ahead = panel_after<W>(job, row, end, rows, k);
      for (int t = 0; t < tokens; t += kFloatTokens, ahead += kPiece) {
        for (int r = 0; r < kPanelRows; ++r) {
          for (int line = 0; line < kPiece; line += 64) fetch_to_first(ahead + r * job.row_bytes + line);
        }
        for_tokens<kFloatTokens>(tokens - t < kFloatTokens ? tokens - t : kFloatTokens, [&](auto some) {
          const float* x = job.x + (token + t) * padded_k(job) + k * some;
          const int vectors = (count + kLanes - 1) / kLanes;
          for (int r = first; r < end; r += R)
            panel_tile<R, some.value>(panel + (r - first) * kPanelK, x, vectors, k == 0,
                                      sums + (r * kFloatBlock + t) * kLanes);
        });
      }
    }
  }
  for (int t = 0; t < tokens; ++t) {
    int r = 0;
    for (; r + kLanes <= rows; r += kLanes) {
      VF y = reduce_rows(sums + (r * kFloatBlock + t) * kLanes, kFloatBlock * kLanes, kLanes);
      if (job.bias != nullptr) y = add(y, load(job.bias + row + r));
      store(job.out + (token + t) * job.rows + row + r, y);
    }
    for (; r < rows; ++r) store_output(job, row + r, token + t, load(sums + (r * kFloatBlock + t) * kLanes));
  }
}

template <FloatType W>
void float_matmul(const FloatJob& job, int64_t row0, int64_t row1, int64_t token0, int64_t token1,
                  std::byte* scratch) {
  if (token1 - token0 <= kFloatTokens) {
    for_tokens<kFloatTokens>(token1 - token0, [&](auto tokens) {
      constexpr int kRows = tokens.value == 1 ? kRowsOfOne : kFloatRows;
      int64_t row = row0;
      for (; row + kRows <= row1; row += kRows) float_rows<W, kRows, tokens.value>(job, row, token0);
      for (; row < row1; ++row) float_rows<W, 1, tokens.value>(job, row, token0);
    });
    return;
  }
  auto* panel = reinterpret_cast<float*>(scratch);
  float* sums = panel + kPanelRows * kPanelK;
  const int64_t tiles = (token1 - token0 + kFloatTokens - 1) / kFloatTokens;
  const int64_t blocks = (token1 - token0 + kFloatBlock - 1) / kFloatBlock;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t token = token0 + tiles * block / blocks * kFloatTokens;
    const int64_t end = block + 1 == blocks ? token1 : token0 + tiles * (block + 1) / blocks * kFloatTokens;
    const int tokens = static_cast<int>(end - token);
    for (int64_t row = row0; row < row1; row += kTogetherRows) {
      const int rows = row1 - row < kTogetherRows ? static_cast<int>(row1 - row) : kTogetherRows;
      const int whole = rows / kFloatRows * kFloatRows;
      float_block<W, kFloatRows>(job, row, whole, token, tokens, panel, sums);
      if (whole < rows) float_block<W, 1>(job, row + whole, rows - whole, token, tokens, panel, sums);
    }
  }
}
