// Products with integer weights: one micro-kernel for every type. A lane owns a row, so there is no
// horizontal sum, and the order of addition is ascending sub-blocks whatever the number of tokens:
//   acc = fma(float(exact integer sum), scale_w * scale_x, acc), then where the format has minima
//   acc = fma(addend_w, float(sum of q) * scale_x, acc); at the end + bias.

// One sub-block H of a unit into the accumulators of T tokens. scale_x, extra: of this unit and tile;
// add_products: adds the exact integer products of the sub-block to its argument.
template <int F, int T, int H, class Products>
[[gnu::always_inline]] inline void sub_block(VF (&acc)[T], VF scale, VF addend, const float* scale_x,
                                             const void* extra, const Products& add_products) {
  VI sum[T];
  if constexpr (kFormats[F].minima) {
    unroll<T>([&](auto t) { sum[t] = zeroi(); });
  } else {
    const int32_t* bias = static_cast<const int32_t*>(extra) + H * T;
    unroll<T>([&](auto t) { sum[t] = set1i(bias[t]); });
  }
  add_products(sum);
  unroll<T>([&](auto t) { acc[t] = fma(to_float(sum[t]), mul(scale, set1(scale_x[t])), acc[t]); });
  if constexpr (kFormats[F].minima) {
    const float* sums = static_cast<const float*>(extra) + H * T;
    unroll<T>([&](auto t) { acc[t] = fma(addend, set1(sums[t]), acc[t]); });
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

// One token: codes and scales go from the packed bytes through registers.
template <int F, bool Eight>
void integer_one(const IntegerJob& job, int64_t group0, int64_t group1) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const Activation& x = *job.x;
  for (int i = 0; i < kAhead; i += 64) __builtin_prefetch(job.packed + group0 * job.group_bytes + i);
  for (int64_t group = group0; group < group1; ++group) {
    VF acc[1] = {zero()};
    each_step<F>(
        job.packed + group * job.group_bytes, x.units, [&](const uint8_t* step, int64_t first, int count) {
          each_unit<F>(step, count, [&](int u, const uint8_t* quants, const StepScales<F>& scales) {
            const int64_t unit = first + u;
            VF scale[2], addend[2];
            unit_scales<F>(scales, u, scale, addend);
            VB codes[8];
            unit_codes<F>(quants, codes);
            unroll<kSubs>([&](auto h) {
              sub_block<F, 1, h.value>(acc, scale[h], addend[h], x.scale + unit,
                                       static_cast<const int32_t*>(job.extra) + unit * kSubs,
                                       [&](VI(&sum)[1]) {
                                         dot_packed<8 / kSubs, Eight, kFormats[F].bits>(
                                             sum, codes, h.value * 8 / kSubs, x.q + unit * kXBytes<Eight>);
                                       });
            });
          });
        });
    store_outputs(job, group, 0, acc[0]);
  }
}

// A step of a group unpacked: codes [units][kCodeBytes], scale [sub-blocks][16], addend [sub-blocks][16].
struct Panel {
  uint8_t* codes;
  float* scale;
  float* addend;
};

template <int F, bool Eight>
inline void unpack_step(const uint8_t* step, int count, const Panel& panel) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  constexpr int kBits = kFormats[F].bits;
  each_unit<F>(step, count, [&](int u, const uint8_t* quants, const StepScales<F>& scales) {
    VF scale[2], addend[2];
    unit_scales<F>(scales, u, scale, addend);
    VB codes[8];
    unit_codes<F>(quants, codes);
    unroll<8>([&](auto i) {
      store_codes<Eight, kBits>(panel.codes + u * kCodeBytes<Eight, kBits>, i.value, codes[i]);
    });
    unroll<kSubs>([&](auto h) {
      store(panel.scale + (u * kSubs + h) * kLanes, scale[h]);
      if constexpr (kFormats[F].minima) store(panel.addend + (u * kSubs + h) * kLanes, addend[h]);
    });
  });
}

// The T tokens from `token` on times a panel of `count` units, `first` being the first of them.
template <int F, bool Eight, int T>
[[gnu::noinline]] void tile_step(const IntegerJob& job, int64_t token, int64_t first, int count,
                                 const Panel& panel, float* sums) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  constexpr int kBits = kFormats[F].bits;
  const Activation& x = *job.x;
  const uint8_t* codes = panel.codes;
  const float* scale = panel.scale;
  const float* addend = panel.addend;
  const int64_t cell = activation_cell(x, first, token, T);
  const uint8_t* q = x.q + cell * kXBytes<Eight>;
  const float* scale_x = x.scale + cell;
  const auto* extra = static_cast<const int32_t*>(job.extra) + cell * kSubs;
  VF acc[T];
  unroll<T>([&](auto t) { acc[t] = first == 0 ? zero() : load(sums + t * kLanes); });
  const uint8_t* next = q + T * count * kXBytes<Eight>;  // the next tile's, which is asked for meanwhile
  for (int unit = 0; unit < count; ++unit) {
    unroll<T * kXBytes<Eight> / 64>([&](auto i) { __builtin_prefetch(next + 64 * i); });
    next += T * kXBytes<Eight>;
    unroll<kSubs>([&](auto h) {
      const VF minimum = kFormats[F].minima ? load(addend + h * kLanes) : zero();
      sub_block<F, T, h.value>(acc, load(scale + h * kLanes), minimum, scale_x, extra, [&](VI(&sum)[T]) {
        dot_unpacked<T, 8 / kSubs, Eight, kBits>(sum, codes, h.value * 8 / kSubs, q);
      });
    });
    codes += kCodeBytes<Eight, kBits>;
    scale += kSubs * kLanes;
    addend += kSubs * kLanes;
    q += T * kXBytes<Eight>;
    scale_x += T;
    extra += T * kSubs;
  }
  unroll<T>([&](auto t) { store(sums + t * kLanes, acc[t]); });
}

// body(Index<tokens>{}), `tokens` being one of the tile sizes.
template <class Body>
inline void for_tile(int64_t tokens, const Body& body) {
  bool done = false;
  unroll<5>([&](auto i) {
    constexpr int kTokens = kTileSizes[i.value];
    if (done || tokens != kTokens) return;
    body(Index<kTokens>{});
    done = true;
  });
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

// The sums of a block of tokens wait in scratch between one step of K and the next, so that a step's panel is
// made once for the block and read from the first cache. A step is done for all groups before the next one,
// while its part of x is near; for few tokens x stays near anyway, and each group streams from memory.
static_assert(kPanelBytes + kItemGroups * kBlockTokens * kLanes * 4 <= kMatmulScratch);
template <int F, bool Eight>
void integer_tile(const IntegerJob& job, int64_t group0, int64_t group1, int64_t tile0, int64_t tile1,
                  std::byte* scratch) {
  constexpr int kFamily = family<F, Eight>();
  constexpr int kSubs = kUnit / kFormats[F].sub;
  constexpr int kFewTokens = 32;
  const Activation& x = *job.x;
  Panel panel;
  panel.codes = reinterpret_cast<uint8_t*>(scratch);
  panel.scale = reinterpret_cast<float*>(scratch + kStepUnits * kCodeBytes<Eight, kFormats[F].bits>);
  panel.addend = panel.scale + kStepUnits * kSubs * kLanes;
  const auto sums = [&](int64_t group, int64_t token) {
    return reinterpret_cast<float*>(scratch + kPanelBytes) + (group * kBlockTokens + token) * kLanes;
  };
  for (int64_t tile = tile0; tile < tile1;) {
    const int64_t begin = tile, start = x.tile_start[begin];
    while (tile < tile1 && x.tile_start[tile + 1] - start <= kBlockTokens) ++tile;
    const int64_t tokens = x.tile_start[tile] - start;
    const int64_t together = tokens <= kFewTokens ? 1 : group1 - group0;
    for (int64_t first = group0; first < group1; first += together) {
      for (int64_t unit = 0; unit < x.units; unit += kStepUnits) {
        const int count = units_of_step(x.units, unit);
        for (int64_t g = 0; g < together; ++g) {
          const uint8_t* group = job.packed + (first + g) * job.group_bytes;
          unpack_step<F, Eight>(group + unit / kStepUnits * step_bytes<F>(kStepUnits), count, panel);
          for (int64_t i = begin; i < tile; ++i) {
            const int64_t token = x.tile_start[i];
            for_tile(x.tile_start[i + 1] - token, [&](auto t) {
              tile_step<kFamily, Eight, t.value>(job, token, unit, count, panel, sums(g, token - start));
            });
          }
        }
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

// The scale of 32 elements from the largest magnitude's bits, and the factor that x is multiplied by.
// rounding.h has the definition in words; a block with a NaN or an infinity gets the scale NaN and q = 0,
// which makes its products NaN.
template <bool Eight>
inline void unit_scale(int32_t largest_bits, float* scale, float* factor) {
  const float largest = __builtin_bit_cast(float, largest_bits);
  if (largest_bits >= 0x7f800000) {
    *scale = __builtin_nanf("");
    *factor = 0.0f;
  } else if constexpr (Eight) {
    *scale = largest / 127.0f;
    *factor = 1.0f / *scale;
    if (!(*factor <= 3.4028234663852886e38f)) *scale = *factor = 0.0f;
  } else {
    // largest = m 2^E: e = E - 14 where m <= 32639 / 2^14, else E - 13; at least -125, and 0 * 2^-125 for a
    // zero block
    int e = (largest_bits >> 23) - 127 - 14 + ((largest_bits & 0x7fffff) > (32639 * 512 - (1 << 23)) ? 1 : 0);
    if (e < -125) e = -125;
    *scale = __builtin_bit_cast(float, (e + 127) << 23);
    *factor = __builtin_bit_cast(float, (127 - e) << 23);
  }
}

template <bool Eight>
void round_tile(const float* x, int64_t k, Activation& to, int64_t tile) {
  const int64_t first = to.tile_start[tile];
  const int64_t tokens = to.tile_start[tile + 1] - first;
  for (int64_t unit = 0; unit < to.units; ++unit) {
    const int64_t cell = activation_cell(to, unit, first, tokens);
    const int64_t left = k - unit * kUnit;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* p = x + t * k + unit * kUnit;
      const VF a = left >= 16 ? load(p) : load_n(p, static_cast<int>(left));
      const VF b = left >= 32  ? load(p + 16)
                   : left > 16 ? load_n(p + 16, static_cast<int>(left - 16))
                               : zero();
      const VI largest = maxi(as_int(magnitude(a)), as_int(magnitude(b)));
      float scale, factor;
      unit_scale<Eight>(reduce_maxi(largest), &scale, &factor);
      VI qa = zeroi(), qb = zeroi();
      if (scale == scale) {
        VF ya = mul(a, set1(factor)), yb = mul(b, set1(factor));
        if constexpr (Eight) {
          ya = vmax(set1(-127.0f), vmin(set1(127.0f), ya));
          yb = vmax(set1(-127.0f), vmin(set1(127.0f), yb));
        }
        qa = to_int(ya);
        qb = to_int(yb);
      }
      place_unit<Eight>(qa, qb, t, tokens, to.q + cell * kXBytes<Eight>);
      to.scale[cell + t] = scale;
      to.sum[2 * cell + t] = reduce_addi(qa);
      to.sum[2 * cell + tokens + t] = reduce_addi(qb);
    }
  }
}

template <int F>
void x_extra(const Activation& x, int64_t tile, void* extra) {
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
