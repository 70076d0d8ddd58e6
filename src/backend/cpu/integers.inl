// Products with integer weights: one micro-kernel for every type. A lane owns a row, so there is no
// horizontal sum, and the order of addition is ascending sub-blocks whatever the number of tokens:
//   acc = fma(float(exact integer sum), scale_w * scale_x, acc), then where the format has minima
//   acc = fma(addend_w, float(sum of q) * scale_x, acc); at the end + bias.

// One sub-block H of a unit into the accumulators of R groups and T tokens. scale[r], addend[r]: of group r's
// rows; scale_x, extra: of this unit and tile; add_products: adds the exact integer products of the sub-block
// to its argument.
template <int F, int R, int T, int H, class Products>
[[gnu::always_inline]] inline void sub_block(VF (&acc)[R][T], const VF (&scale)[R], const VF (&addend)[R],
                                             const float* scale_x, const void* extra,
                                             const Products& add_products) {
  VI sum[R][T];
  if constexpr (kFormats[F].minima) {
    unroll<R>([&](auto r) { unroll<T>([&](auto t) { sum[r][t] = zeroi(); }); });
  } else {
    const int32_t* bias = static_cast<const int32_t*>(extra) + H * T;
    unroll<R>([&](auto r) { unroll<T>([&](auto t) { sum[r][t] = set1i(bias[t]); }); });
  }
  add_products(sum);
  unroll<T>([&](auto t) {
    const VF x = set1(scale_x[t]);
    unroll<R>([&](auto r) { acc[r][t] = fma(to_float(sum[r][t]), mul(scale[r], x), acc[r][t]); });
  });
  if constexpr (kFormats[F].minima) {
    const float* sums = static_cast<const float*>(extra) + H * T;
    unroll<T>([&](auto t) {
      const VF x = set1(sums[t]);
      unroll<R>([&](auto r) { acc[r][t] = fma(addend[r], x, acc[r][t]); });
    });
  }
}

// One token's outputs of a group of rows.
inline void store_outputs(const IntegerJob& job, int64_t group, int64_t token, VF y) {
  const int64_t row = group * kLanes;
  const int count = job.rows - row < kLanes ? static_cast<int>(job.rows - row) : kLanes;
  const bool whole = count == kLanes;
  if (job.bias != nullptr) y = add(y, whole ? load(job.bias + row) : load_n(job.bias + row, count));
  float* out = job.out + token * job.rows + row;
  if (whole) {
    store(out, y);
  } else {
    store_n(out, y, count);
  }
}

// One token: codes and scales go from the packed bytes through registers. cell: the unit of x.
template <int F, bool Eight, int Place>
[[gnu::always_inline]] inline void one_unit(const IntegerJob& job, int64_t cell, int unit,
                                            const uint8_t* quants, const StepScales<F>& scales,
                                            const Ahead<F, Place>& ahead, VF (&acc)[1][1]) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const Activation& x = *job.x;
  VF scale[2], addend[2];
  unit_scales<F, Place>(scales, unit, scale, addend);
  const auto codes = [&](auto group) GRETA_INLINE { return unit_code<F, group.value>(quants); };
  unroll<kSubs>([&](auto h) GRETA_INLINE {
    const VF row_scale[1] = {scale[h]}, row_addend[1] = {addend[h]};
    const auto add_products = [&](VI(&sum)[1][1]) GRETA_INLINE {
      dot_packed<h.value * 8 / kSubs, 8 / kSubs, Eight, kFormats[F].bits>(
          sum[0][0], codes, x.q + cell * kXBytesOfOne<Eight>, ahead);
    };
    sub_block<F, 1, 1, h.value>(acc, row_scale, row_addend, x.scale + cell,
                                static_cast<const int32_t*>(job.extra) + cell * kSubs, add_products);
  });
}

template <int F, bool Eight>
void integer_one(const IntegerJob& job, int64_t group0, int64_t group1) {
  for (int64_t group = group0; group < group1; ++group) {
    VF acc[1][1] = {{zero()}};
    const uint8_t* packed = job.groups.data + (group - job.groups.first) * job.groups.bytes;
    each_step<F>(packed, job.x->units, [&](const uint8_t* step, int64_t first, int count) {
      each_unit<F>(step, count,
                   [&](auto place, int u, const uint8_t* quants, const auto& scales, auto ahead)
                       GRETA_INLINE {
                         one_unit<F, Eight, place.value>(job, first + u, u, quants, scales, ahead, acc);
                       });
    });
    store_outputs(job, group, 0, acc[0][0]);
  }
}

// A step of a group unpacked, kPanelBytes: codes [units][kCodeBytes], scale [sub-blocks][16], addend
// [sub-blocks][16].
template <int F, bool Eight>
struct Panel {
  static constexpr int kSubs = kUnit / kFormats[F].sub;
  explicit Panel(std::byte* at)
      : codes(reinterpret_cast<uint8_t*>(at)),
        scale(reinterpret_cast<float*>(at + kStepUnits * kCodeBytes<Eight, kFormats[F].bits>)),
        addend(scale + kStepUnits * kSubs * kLanes) {}
  uint8_t* codes;
  float* scale;
  float* addend;
};

template <int F, bool Eight>
inline void unpack_step(const uint8_t* step, int count, const Panel<F, Eight>& panel) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  constexpr int kBits = kFormats[F].bits;
  each_unit<F>(step, count,
               [&](auto place, int u, const uint8_t* quants, const auto& scales, auto ahead) GRETA_INLINE {
                 VF scale[2], addend[2];
                 unit_scales<F, place.value>(scales, u, scale, addend);
                 VB codes[8];  // before anything is stored: the compiler cannot know that it lies elsewhere
                 unroll<8>([&](auto i) { codes[i] = unit_code<F, i.value>(quants); });
                 unroll<8>([&](auto i) {
                   ahead(i);
                   store_codes<Eight, kBits>(panel.codes + u * kCodeBytes<Eight, kBits>, i.value, codes[i]);
                 });
                 unroll<kSubs>([&](auto h) {
                   store(panel.scale + (u * kSubs + h) * kLanes, scale[h]);
                   if constexpr (kFormats[F].minima)
                     store(panel.addend + (u * kSubs + h) * kLanes, addend[h]);
                 });
               });
}

// The T tokens from `token` on times the panels of R groups, one behind the other, of `count` units, `first`
// being the first of them; sums: [R][kBlockTokens][16].
template <int F, bool Eight, int R, int T>
[[gnu::noinline]] void tile_step(const IntegerJob& job, int64_t token, int64_t first, int count,
                                 std::byte* panels, float* sums) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  constexpr int kBits = kFormats[F].bits;
  constexpr int kNext = kPanelBytes / int{sizeof(float)};  // from a group's panel to the next one's
  const Activation& x = *job.x;
  const Panel<F, Eight> panel(panels);
  const uint8_t* codes = panel.codes;
  const float* scale = panel.scale;
  const float* addend = panel.addend;
  const int64_t cell = activation_cell(x, first, token, T);
  const uint8_t* q = x.q + cell * kXBytes<Eight>;
  const float* scale_x = x.scale + cell;
  const auto* extra = static_cast<const int32_t*>(job.extra) + cell * kSubs;
  const auto sums_of = [&](int r, int t) { return sums + (r * kBlockTokens + t) * kLanes; };
  VF acc[R][T];
  unroll<R>(
      [&](auto r) { unroll<T>([&](auto t) { acc[r][t] = first == 0 ? zero() : load(sums_of(r, t)); }); });
  for (int unit = 0; unit < count; ++unit) {
    unroll<kSubs>([&](auto h) {
      VF scales[R], minima[R];
      unroll<R>([&](auto r) {
        scales[r] = load(scale + r * kNext + h * kLanes);
        minima[r] = kFormats[F].minima ? load(addend + r * kNext + h * kLanes) : zero();
      });
      sub_block<F, R, T, h.value>(acc, scales, minima, scale_x, extra, [&](VI(&sum)[R][T]) {
        dot_unpacked<R, T, 8 / kSubs, Eight, kBits>(sum, codes, h.value * 8 / kSubs, q);
      });
    });
    codes += kCodeBytes<Eight, kBits>;
    scale += kSubs * kLanes;
    addend += kSubs * kLanes;
    q += T * kXBytes<Eight>;
    scale_x += T;
    extra += T * kSubs;
  }
  unroll<R>([&](auto r) { unroll<T>([&](auto t) { store(sums_of(r, t), acc[r][t]); }); });
}

// Unpacked, types differ in their sub-blocks, the minima and how their codes are kept alone: one kernel
// serves each such family.
template <int F, bool Eight>
constexpr int family() {
  for (int other = 0; other < F; ++other) {
    if (kFormats[other].sub == kFormats[F].sub && kFormats[other].minima == kFormats[F].minima &&
        code_class(Eight, kFormats[other].bits) == code_class(Eight, kFormats[F].bits))
      return other;
  }
  return F;
}

// One step of R groups for the tiles begin .. end - 1: unpacked once, then times every tile. step: the first
// group's; sums: of that group and the first tile.
template <int F, bool Eight, int R>
inline void block_step(const IntegerJob& job, const uint8_t* step, int64_t unit, int64_t begin, int64_t end,
                       std::byte* panels, float* sums) {
  const Activation& x = *job.x;
  const int count = units_of_step(x.units, unit);
  for (int r = 0; r < R; ++r)
    unpack_step<F, Eight>(step + r * job.groups.bytes, count, Panel<F, Eight>(panels + r * kPanelBytes));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t token = x.tile_start[i];
    for_tokens<kTileTokens, 2>(x.tile_start[i + 1] - token, [&](auto t) {
      tile_step<family<F, Eight>(), Eight, R, t.value>(job, token, unit, count, panels,
                                                       sums + (token - x.tile_start[begin]) * kLanes);
    });
  }
}

// The sums of a block of tokens wait in scratch between one step of K and the next, so that a step's panels
// are made once for the block and read from the first cache. A step is done for all groups before the next
// one, while its part of x is near; for few tokens x stays near anyway, and kTileGroups groups stream from
// memory.
static_assert(kTileGroups * kPanelBytes + kItemGroups * kBlockTokens * kLanes * 4 <= kMatmulScratch);
static_assert(kItemGroups % kTileGroups == 0 && kBlockTokens % kTileTokens == 0);
template <int F, bool Eight>
void integer_tile(const IntegerJob& job, int64_t group0, int64_t group1, int64_t tile0, int64_t tile1,
                  std::byte* scratch) {
  constexpr int kFewTokens = 32;
  const Activation& x = *job.x;
  const auto sums = [&](int64_t group, int64_t token) {
    return reinterpret_cast<float*>(scratch + kTileGroups * kPanelBytes) +
           (group * kBlockTokens + token) * kLanes;
  };
  const int64_t blocks = (x.tile_start[tile1] - x.tile_start[tile0] + kBlockTokens - 1) / kBlockTokens;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = tile0 + (tile1 - tile0) * block / blocks;
    const int64_t end = tile0 + (tile1 - tile0) * (block + 1) / blocks;
    const int64_t start = x.tile_start[begin], tokens = x.tile_start[end] - start;
    const int64_t most = tokens <= kFewTokens ? kTileGroups : kItemGroups;
    for (int64_t first = group0; first < group1; first += most) {
      const int64_t together = group1 - first < most ? group1 - first : most;
      for (int64_t unit = 0; unit < x.units; unit += kStepUnits) {
        const uint8_t* step = job.groups.data + (first - job.groups.first) * job.groups.bytes +
                              unit / kStepUnits * step_bytes<F>(kStepUnits);
        int64_t g = 0;
        for (; g + kTileGroups <= together; g += kTileGroups)
          block_step<F, Eight, kTileGroups>(job, step + g * job.groups.bytes, unit, begin, end, scratch,
                                            sums(g, 0));
        for (; g < together; ++g)
          block_step<F, Eight, 1>(job, step + g * job.groups.bytes, unit, begin, end, scratch, sums(g, 0));
      }
      // A token's outputs together: fewer pages are touched.
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t g = 0; g < together; ++g)
          store_outputs(job, first + g, start + token, load(sums(g, token)));
      }
    }
  }
}

// ---- activations
// -------------------------------------------------------------------------------------------------

// The scales of sixteen units of 32 elements from the bits of their largest magnitudes, and the factors that
// x is multiplied by. rounding.h has the definition in words; a block with a NaN or an infinity gets the
// scale NaN and the factor 0, which makes its products NaN.
template <bool Eight>
inline void unit_scales(VI largest_bits, float* scale, float* factor) {
  if constexpr (Eight) {
    constexpr float kMost = 3.4028234663852886e38f;
    alignas(64) float largest[16];
    store(largest, as_float(largest_bits));
    for (int i = 0; i < 16; ++i) {
      scale[i] = largest[i] / 127.0f;
      factor[i] = 1.0f / scale[i];
      if (!(factor[i] <= kMost)) scale[i] = factor[i] = 0.0f;
      if (!(largest[i] <= kMost)) {
        scale[i] = __builtin_nanf("");
        factor[i] = 0.0f;
      }
    }
  } else {
    // largest = m 2^E: e = E - 14 where m <= 32639 / 2^14, else E - 13 (by a carry); at least -125, and
    // 0 * 2^-125 for a zero block
    constexpr int32_t kPast = 0x7fffff - (32639 * 512 - (1 << 23));
    const VI e = maxi(subi(shr<23>(addi(largest_bits, set1i(kPast))), set1i(127 + 14)), set1i(-125));
    const VI lost = sar<31>(subi(set1i(0x7f7fffff), largest_bits)), kept = subi(set1i(-1), lost);
    storei(scale, ori(andi(kept, shl<23>(addi(e, set1i(127)))), andi(lost, set1i(0x7fc00000))));
    storei(factor, andi(kept, shl<23>(subi(set1i(127), e))));
  }
}

// round_tile() of one token, whose cells are its units. Decode runs this 150 times a token, and what it runs
// between two of them does not fit the first cache: half as much code, a call in 0.35 us for 0.49 when warm.
template <bool Eight>
void round_one(const float* x, int64_t k, const Activation& to) {
  alignas(64) int32_t rows[2][16][16];  // past `count` they may hold anything
  alignas(64) int32_t sums[2][16];
  alignas(64) float scale[16], factor[16];
  for (int64_t unit = 0; unit < to.units; unit += 16) {
    const int count = to.units - unit < 16 ? static_cast<int>(to.units - unit) : 16;
    const float* from = x + unit * kUnit;
    const int64_t left = k - unit * kUnit;
    const auto elements = [&](int at) {
      return left - at >= 16 ? load(from + at)
             : left > at     ? load_n(from + at, static_cast<int>(left - at))
                             : zero();
    };
    const auto largest = [&](int at) { return as_int(magnitude(elements(at))); };
    for (int i = 0; i < count; ++i) storei(rows[0][i], maxi(largest(i * kUnit), largest(i * kUnit + 16)));
    unit_scales<Eight>(max_int_rows(rows[0], count), scale, factor);
    for (int i = 0; i < count; ++i) {
      VI q[2] = {zeroi(), zeroi()};
      if (scale[i] == scale[i]) {
        unroll<2>([&](auto half) {
          VF y = mul(elements(i * kUnit + half * 16), set1(factor[i]));
          if constexpr (Eight) y = vmax(set1(-127.0f), vmin(set1(127.0f), y));
          q[half] = to_int(y);
        });
      }
      place_unit<Eight>(q[0], q[1], 0, 1, to.q + (unit + i) * kXBytesOfOne<Eight>);
      unroll<2>([&](auto half) { storei(rows[half][i], q[half]); });
    }
    for (int half = 0; half < 2; ++half) storei(sums[half], add_int_rows(rows[half], count));
    float* const scales_to = to.scale + unit;
    int32_t* const sums_to = to.sum + 2 * unit;
    for (int i = 0; i < count; ++i) {
      scales_to[i] = scale[i];
      sums_to[2 * i] = sums[0][i];
      sums_to[2 * i + 1] = sums[1][i];
    }
  }
}

// Sixteen units of a token at a time, so that their maxima and sums are one vector each.
template <bool Eight>
void round_tile(const float* x, int64_t k, Activation& to, int64_t tile) {
  if (to.rows == 1) return round_one<Eight>(x, k, to);
  const int64_t first = to.tile_start[tile];
  const int64_t tokens = to.tile_start[tile + 1] - first;
  const int64_t bytes = tokens == 1 ? kXBytesOfOne<Eight> : kXBytes<Eight>;
  alignas(64) int32_t rows[2][16][16];  // past `count` they may hold anything
  alignas(64) int32_t reduced[2][16];
  alignas(64) float scale[16], factor[16];
  for (int64_t unit = 0; unit < to.units; unit += 16) {
    const int count = to.units - unit < 16 ? static_cast<int>(to.units - unit) : 16;
    for (int64_t t = 0; t < tokens; ++t) {
      const auto elements = [&](int i, int half) {
        const int64_t at = (unit + i) * kUnit + half * 16, left = k - at;
        const float* p = x + t * k + at;
        return left >= 16 ? load(p) : left > 0 ? load_n(p, static_cast<int>(left)) : zero();
      };
      for (int i = 0; i < count; ++i)
        storei(rows[0][i], maxi(as_int(magnitude(elements(i, 0))), as_int(magnitude(elements(i, 1)))));
      unit_scales<Eight>(max_int_rows(rows[0], count), scale, factor);
      for (int i = 0; i < count; ++i) {
        VI q[2] = {zeroi(), zeroi()};
        if (scale[i] == scale[i]) {
          unroll<2>([&](auto half) {
            VF y = mul(elements(i, half), set1(factor[i]));
            if constexpr (Eight) y = vmax(set1(-127.0f), vmin(set1(127.0f), y));
            q[half] = to_int(y);
          });
        }
        place_unit<Eight>(q[0], q[1], t, tokens, to.q + activation_cell(to, unit + i, first, tokens) * bytes);
        unroll<2>([&](auto half) { storei(rows[half][i], q[half]); });
      }
      unroll<2>([&](auto half) { storei(reduced[half], add_int_rows(rows[half], count)); });
      for (int i = 0; i < count; ++i) {
        const int64_t cell = activation_cell(to, unit + i, first, tokens);
        to.scale[cell + t] = scale[i];
        to.sum[2 * cell + t] = reduced[0][i];
        to.sum[2 * cell + tokens + t] = reduced[1][i];
      }
    }
  }
}

// x_extra() of one token.
template <int F>
void x_extra_of_one(const Activation& x, void* extra) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const int32_t* __restrict sums = x.sum;
  const float* __restrict scale = x.scale;
  for (int64_t i = 0; i < x.units * kSubs; ++i) {
    const int32_t sum = kSubs == 2 ? sums[i] : sums[2 * i] + sums[2 * i + 1];
    if constexpr (kFormats[F].minima) {
      float* __restrict to = static_cast<float*>(extra);
      to[i] = static_cast<float>(sum) * scale[i / kSubs];
    } else {
      int32_t* __restrict to = static_cast<int32_t*>(extra);
      to[i] = -kFormats[F].bias * sum;
    }
  }
}

template <int F>
void x_extra(const Activation& x, int64_t tile, void* extra) {
  if (x.rows == 1) return x_extra_of_one<F>(x, extra);
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const int64_t first = x.tile_start[tile];
  const int64_t tokens = x.tile_start[tile + 1] - first;
  for (int64_t unit = 0; unit < x.units; ++unit) {
    const int64_t cell = activation_cell(x, unit, first, tokens);
    for (int64_t h = 0; h < kSubs; ++h) {
      const int32_t* sums = x.sum + 2 * cell + h * tokens;
      const int64_t at = kSubs * cell + h * tokens;
      for (int64_t t = 0; t < tokens; ++t) {
        const int32_t sum = kSubs == 2 ? sums[t] : sums[t] + sums[tokens + t];
        if constexpr (kFormats[F].minima) {
          static_cast<float*>(extra)[at + t] = static_cast<float>(sum) * x.scale[cell + t];
        } else {
          static_cast<int32_t*>(extra)[at + t] = -kFormats[F].bias * sum;
        }
      }
    }
  }
}
