// Products with F32, F16 and BF16 weights. Lane l adds the products k = 16 j + l in ascending j, each by one
// fma (a last short vector is padded with zeros); then the fixed tree; then the bias. Neither the register
// tile nor the panels change that order.

template <FloatType W>
inline constexpr int kElement = W == kF32 ? 4 : 2;  // bytes

template <FloatType W>
inline VF load_weights(const void* p) {
  if constexpr (W == kF32) return load(static_cast<const float*>(p));
  if constexpr (W == kF16) return load_f16(p);
  if constexpr (W == kBF16) return load_bf16(p);
}
template <FloatType W>
inline VF load_weights_n(const void* p, int n) {
  if constexpr (W == kF32) return load_n(static_cast<const float*>(p), n);
  if constexpr (W == kF16) return load_f16_n(p, n);
  if constexpr (W == kBF16) return load_bf16_n(p, n);
}
inline int64_t padded_k(const FloatJob& job) { return (job.k + kLanes - 1) / kLanes * kLanes; }
inline void store_output(const FloatJob& job, int64_t row, int64_t token, VF sums) {
  float y = reduce_add(sums);
  if (job.bias != nullptr) y = y + job.bias[row];
  job.out[token * job.rows + row] = y;
}

// Strip `strip` of the weights (kernels.h: FloatRows) from k on; k: a multiple of 16.
inline const uint8_t* strip_at(const FloatJob& job, int64_t strip, int64_t k) {
  return job.weights.data + strip * job.weights.strip + k / kLanes * job.weights.sixteen;
}

// Where the rows of a strip begin in it. Those past the last row of all are its first again: the file may end
// behind the last.
struct RowOffsets {
  int64_t of[kFloatRows];
  RowOffsets(const FloatJob& job, int64_t strip) {
    for (int r = 0; r < kFloatRows; ++r) of[r] = strip * kFloatRows + r < job.rows ? r * job.weights.row : 0;
  }
};

// Asks for what 16 of K fill of a strip's lines, each line once: packed, the next lines of the one stream; in
// the file's order one of each row, of 2-byte elements every second time.
template <FloatType W>
struct Lines {
  static constexpr int kCount = kFloatRows * kLanes * kElement<W> / 64;
  int64_t next, odd;  // bytes
  explicit Lines(const FloatJob& job) {
    const bool packed = job.weights.row == kLanes * kElement<W>;
    next = packed ? 64 : job.weights.row;
    odd = packed ? 0 : job.weights.row * (kFloatRows - kCount);
  }
  // body(the line's address) for the lines at p, where the vector `i` of K begins
  template <class Body>
  [[gnu::always_inline]] inline void each(const uint8_t* p, int64_t i, const Body& body) const {
    p += (i & 1) * odd;
    unroll<kCount>([&](auto line) GRETA_INLINE { body(p + line * next); });
  }
};

// Few tokens, T of one tile, times N strips side by side: straight from the weights, which stream from
// memory.
template <FloatType W, int N, int T>
inline void float_strips(const FloatJob& job, int64_t strip, int64_t token) {
  constexpr int kRows = N * kFloatRows;
  constexpr int kInFlight = N * kFloatRows * kLanes * kElement<W>;  // bytes of 16 of K
  const RowOffsets rows(job, strip);
  const Lines<W> lines(job);
  const uint8_t* w = strip_at(job, strip, 0);
  const int64_t next = job.weights.strip, sixteen = job.weights.sixteen;
  const int64_t vectors = padded_k(job) / kLanes;
  const float* x = job.x + token * padded_k(job);
  VF acc[kRows][T];
  unroll<kRows>([&](auto r) { unroll<T>([&](auto t) { acc[r][t] = zero(); }); });
  for (int64_t i = 0; i < vectors; ++i, w += sixteen) {
    // Past the end of a strip comes the one N below it, not the next.
    const int64_t wrap = N * next - vectors * sixteen;
    const auto ahead = [&](int far)
                           GRETA_INLINE { return w + far * sixteen + (i + far < vectors ? 0 : wrap); };
    const uint8_t* far = ahead(kFar / kInFlight);
    const uint8_t* near = ahead(kNear / kInFlight);
    VF v[T];
    unroll<T>([&](auto t) { v[t] = load(x + t * kLanes); });
    unroll<N>([&](auto n) GRETA_INLINE {
      lines.each(far + n * next, i, [](const uint8_t* p) GRETA_INLINE { fetch_to_second(p); });
      lines.each(near + n * next, i, [](const uint8_t* p) GRETA_INLINE { fetch_to_first(p); });
      unroll<kFloatRows>([&](auto r) GRETA_INLINE {
        const VF weights = load_weights<W>(w + n * next + rows.of[r]);
        unroll<T>(
            [&](auto t) { acc[n * kFloatRows + r][t] = fma(weights, v[t], acc[n * kFloatRows + r][t]); });
      });
    });
    x += T * kLanes;
  }
  unroll<kRows>([&](auto r) {
    const int64_t at = strip * kFloatRows + r;
    if (at < job.rows) unroll<T>([&](auto t) { store_output(job, at, token + t, acc[r][t]); });
  });
}

// Many tokens: a panel, kPanelStrips strips as FP32, kPanelK of K at a time, times a block of tokens, whose
// sums (all 16 lanes) wait in scratch from one panel to the next. Panel and x of a register tile fit the
// first cache.
inline constexpr int kPanelStrips = 8 / kFloatRows, kPanelK = 512;
inline constexpr int kTogetherStrips = kTogetherRows / kFloatRows, kFloatBlock = 96;
static_assert((8 * kPanelK + kTogetherRows * kFloatBlock * kLanes) * 4 <= kMatmulScratch);
static_assert(8 % kFloatRows == 0 && kPanelStrips % kTileStrips == 0 && kFloatBlock % kFloatTokens == 0);

// A register tile of S strips and T tokens. `vectors` of K; panel: [vectors][S kFloatRows][16],
// x: [vectors][T][16], sums: [S kFloatRows][T][16].
// Ask: as much of x is asked for from `next` on.
template <int S, int T, bool Ask>
[[gnu::noinline]] void panel_tile(const float* panel, const float* x, int vectors, bool first, float* sums,
                                  const float* next) {
  constexpr int R = S * kFloatRows;
  unroll<kPasses>([&](auto pass) GRETA_INLINE {
    constexpr int kLane = pass * (kLanes / kPasses);
    const float *w = panel + kLane, *v = x + kLane;
    float* const to = sums + kLane;
    VP acc[R][T];
    unroll<R>([&](auto r) GRETA_INLINE {
      unroll<T>([&](auto t)
                    GRETA_INLINE { acc[r][t] = first ? VP{} : load_part(to + (r * T + t) * kLanes); });
    });
    for (int i = 0; i < vectors; ++i) {
      fma_outer<R, T>(acc, w, v);
      if constexpr (Ask && pass == 0)
        unroll<T>([&](auto t) GRETA_INLINE { fetch_to_second(next + (i * T + t) * kLanes); });
      w += R * kLanes;
      v += T * kLanes;
    }
    unroll<R>([&](auto r) GRETA_INLINE {
      unroll<T>([&](auto t) GRETA_INLINE { store_part(to + (r * T + t) * kLanes, acc[r][t]); });
    });
  });
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

// Where the panel that is filled after this one lies: the next strips, else the next part of K, else the
// strips below.
inline const uint8_t* panel_after(const FloatJob& job, int64_t strip, int end, int strips, int64_t k) {
  if (end < strips) return strip_at(job, strip + end, k);
  if (k + kPanelK < job.k) return strip_at(job, strip, k + kPanelK);
  return strip_at(job, strip + strips, 0);
}

// Strips [first, end) from k on as FP32: [register tile][vectors][rows of the tile][16].
template <FloatType W>
inline void fill_panel(const FloatJob& job, int64_t first, int64_t end, int64_t k, int vectors,
                       float* panel) {
  for (int64_t tile = first; tile < end; tile += kTileStrips) {
    const int strips = end - tile < kTileStrips ? 1 : kTileStrips;
    for (int s = 0; s < strips; ++s) {
      const RowOffsets rows(job, tile + s);
      const uint8_t* from = strip_at(job, tile + s, k);
      float* to = panel + s * kFloatRows * kLanes;
      for (int i = 0; i < vectors; ++i, from += job.weights.sixteen, to += strips * kFloatRows * kLanes)
        unroll<kFloatRows>([&](auto r) { store(to + r * kLanes, load_weights<W>(from + rows.of[r])); });
    }
    panel += kTileStrips * kFloatRows * kPanelK;
  }
}

// `strips` strips, kTogetherStrips at most, times the tokens of a block: a panel of some as FP32 before the
// next part of K, while that part of x is near: the first of them asks for it tile by tile (K = 5632: 11 %
// more). A part of the next panel's weights is asked for with each tile. Sums: [token tile][row][T][16].
template <FloatType W>
inline void float_block(const FloatJob& job, int64_t strip, int strips, int64_t token, int tokens,
                        float* panel, float* sums) {
  constexpr int kTile = kTileStrips * kFloatRows * kPanelK;  // floats of a register tile's panel
  const Lines<W> lines(job);
  // of the tile of `some` tokens from t on and row r on
  const auto sums_of = [&](int r, int t, int some) { return sums + (t * kTogetherRows + r * some) * kLanes; };
  for (int64_t k = 0; k < job.k; k += kPanelK) {
    const int64_t left = padded_k(job) - k;
    const int vectors = static_cast<int>(left < kPanelK ? left : kPanelK) / kLanes;
    for (int first = 0; first < strips; first += kPanelStrips) {
      const int end = strips - first < kPanelStrips ? strips : first + kPanelStrips;
      fill_panel<W>(job, strip + first, strip + end, k, vectors, panel);
      constexpr int kPiece =
          (kPanelK / kLanes * kFloatTokens + kFloatBlock - 1) / kFloatBlock;  // vectors of K
      const uint8_t* ahead = panel_after(job, strip, end, strips, k);
      for (int t = 0, i = 0; t < tokens; t += kFloatTokens) {
        for (const int stop = i + kPiece; i < stop; ++i, ahead += job.weights.sixteen) {
          for (int s = 0; s < kPanelStrips; ++s)
            lines.each(ahead + s * job.weights.strip, i, [](const uint8_t* p) { fetch_to_first(p); });
        }
        for_tokens<kFloatTokens>(tokens - t < kFloatTokens ? tokens - t : kFloatTokens, [&](auto some) {
          const float* x = job.x + (token + t) * padded_k(job) + k * some;
          const float* next = x + some * padded_k(job);
          for (int s = first; s < end; s += kTileStrips) {
            constexpr int T = some;
            const float* w = panel + (s - first) / kTileStrips * kTile;
            float* const of = sums_of(s * kFloatRows, t, T);
            const auto run = [&](auto width) {
              (s == 0 ? panel_tile<width.value, T, true>
                      : panel_tile<width.value, T, false>)(w, x, vectors, k == 0, of, next);
            };
            if (end - s < kTileStrips)
              run(Index<1>{});
            else
              run(Index<kTileStrips>{});
          }
        });
      }
    }
  }
  const int64_t row = strip * kFloatRows, left = job.rows - row;
  const int rows = left < strips * kFloatRows ? static_cast<int>(left) : strips * kFloatRows;
  for (int t = 0; t < tokens; ++t) {
    const int tile = t / kFloatTokens * kFloatTokens;
    const int some = tokens - tile < kFloatTokens ? tokens - tile : kFloatTokens;
    const float* of = sums_of(0, tile, some) + (t - tile) * kLanes;
    const int64_t stride = some * kLanes;  // of rows
    int r = 0;
    for (; r + kLanes <= rows; r += kLanes) {
      VF y = reduce_rows(of + r * stride, stride, kLanes);
      if (job.bias != nullptr) y = add(y, load(job.bias + row + r));
      store(job.out + (token + t) * job.rows + row + r, y);
    }
    for (; r < rows; ++r) store_output(job, row + r, token + t, load(of + r * stride));
  }
}

template <FloatType W>
void float_matmul(const FloatJob& job, int64_t row0, int64_t row1, int64_t token0, int64_t token1,
                  std::byte* scratch) {
  const int64_t strip0 = row0 / kFloatRows, strip1 = (row1 + kFloatRows - 1) / kFloatRows;
  if (token1 - token0 <= kFloatTokens) {
    for_tokens<kFloatTokens>(token1 - token0, [&](auto tokens) {
      constexpr int kTogether = tokens.value == 1 ? kStripsOfOne : 1;
      const int64_t whole = row1 / kFloatRows;  // RowOffsets hold for all of these
      int64_t strip = strip0;
      for (; strip + kTogether <= whole; strip += kTogether)
        float_strips<W, kTogether, tokens.value>(job, strip, token0);
      for (; strip < strip1; ++strip) float_strips<W, 1, tokens.value>(job, strip, token0);
    });
    return;
  }
  auto* panel = reinterpret_cast<float*>(scratch);
  float* sums = panel + kPanelStrips * kFloatRows * kPanelK;
  const int64_t tiles = (token1 - token0 + kFloatTokens - 1) / kFloatTokens;
  const int64_t blocks = (token1 - token0 + kFloatBlock - 1) / kFloatBlock;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t token = token0 + tiles * block / blocks * kFloatTokens;
    const int64_t end = block + 1 == blocks ? token1 : token0 + tiles * (block + 1) / blocks * kFloatTokens;
    for (int64_t strip = strip0; strip < strip1; strip += kTogetherStrips) {
      const int strips =
          strip1 - strip < kTogetherStrips ? static_cast<int>(strip1 - strip) : kTogetherStrips;
      float_block<W>(job, strip, strips, token, static_cast<int>(end - token), panel, sums);
    }
  }
}
