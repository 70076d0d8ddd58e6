// Products with integer weights: one micro-kernel for every type. A lane owns a row, so there is no
// horizontal sum, and the order of addition is ascending sub-blocks whatever the number of tokens:
//   acc = fma(float(exact integer sum), scale_w * scale_x, acc), then where the format has minima
//   acc = fma(addend_w, float(sum of q) * scale_x, acc); at the end + bias.

// One sub-block H of a unit into the accumulators of T tokens. x, scale_x, extra: of this unit and tile.
template <int F, int T, bool Eight, int H, class Source>
[[gnu::always_inline]] inline void sub_block(VF (&acc)[T], const Source& codes, VF scale, VF addend,
                                             const uint8_t* x, const float* scale_x, const void* extra) {
  constexpr int kGroups = kFormats[F].sub / 4;
  VI sum[T];
  if constexpr (kFormats[F].minima) {
    unroll<T>([&](auto t) { sum[t] = zeroi(); });
  } else {
    const int32_t* bias = static_cast<const int32_t*>(extra) + H * T;
    unroll<T>([&](auto t) { sum[t] = set1i(bias[t]); });
  }
  dot<T, kGroups, Eight>(sum, codes, H * kGroups, x);
  unroll<T>([&](auto t) { acc[t] = fma(to_float(sum[t]), mul(scale, set1(scale_x[t])), acc[t]); });
  if constexpr (kFormats[F].minima) {
    const float* sums = static_cast<const float*>(extra) + H * T;
    unroll<T>([&](auto t) { acc[t] = fma(addend, set1(sums[t]), acc[t]); });
  }
}

template <int T>
inline void store_outputs(const IntegerJob& job, int64_t group, int64_t token, const VF (&acc)[T]) {
  const int64_t row = group * kLanes;
  const int count = job.rows - row < kLanes ? static_cast<int>(job.rows - row) : kLanes;
  unroll<T>([&](auto t) {
    VF y = acc[t];
    if (job.bias != nullptr)
      y = add(y, count == kLanes ? load(job.bias + row) : load_n(job.bias + row, count));
    float* out = job.out + (token + t) * job.rows + row;
    if (count == kLanes) {
      store(out, y);
    } else {
      store_n(out, y, count);
    }
  });
}

// One token: codes and scales go from the packed bytes through registers.
template <int F, bool Eight>
void integer_one(const IntegerJob& job, int64_t group0, int64_t group1) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const Activation& x = *job.x;
  for (int i = 0; i < kAhead; i += 64) __builtin_prefetch(job.packed + group0 * job.group_bytes + i);
  for (int64_t group = group0; group < group1; ++group) {
    VF acc[1] = {zero()};
    each_unit<F>(job.packed + group * job.group_bytes, x.units,
                 [&](int64_t unit, const uint8_t* quants, const StepScales<F>& step, int u) {
                   VF scale[2], addend[2];
                   unit_scales<F>(step, u, scale, addend);
                   VB codes[8];
                   unit_codes<F>(quants, codes);
                   const auto source = [&](int i) { return codes[i]; };
                   unroll<kSubs>([&](auto h) {
                     sub_block<F, 1, Eight, h.value>(acc, source, scale[h], addend[h],
                                                     x.q + unit * kXBytes<Eight>, x.scale + unit,
                                                     static_cast<const int32_t*>(job.extra) + unit * kSubs);
                   });
                 });
    store_outputs<1>(job, group, 0, acc);
  }
}

// A group unpacked: codes [units][8][64], then scale [sub-blocks][16], then addend [sub-blocks][16].
template <int F>
inline void unpack_group(const uint8_t* group, int64_t units, std::byte* scratch) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  auto* codes_out = reinterpret_cast<uint8_t*>(scratch);
  auto* scale_out = reinterpret_cast<float*>(scratch + units * 512);
  float* addend_out = scale_out + units * 2 * kLanes;
  each_unit<F>(group, units, [&](int64_t unit, const uint8_t* quants, const StepScales<F>& step, int u) {
    VF scale[2], addend[2];
    unit_scales<F>(step, u, scale, addend);
    VB codes[8];
    unit_codes<F>(quants, codes);
    unroll<8>([&](auto i) { storeb(codes_out + unit * 512 + 64 * i, codes[i]); });
    unroll<kSubs>([&](auto h) {
      store(scale_out + (unit * kSubs + h) * kLanes, scale[h]);
      if constexpr (kFormats[F].minima) store(addend_out + (unit * kSubs + h) * kLanes, addend[h]);
    });
  });
}

template <int F, bool Eight, int T>
void tile_block(const IntegerJob& job, int64_t group, int64_t token, const std::byte* scratch) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const Activation& x = *job.x;
  const int64_t units = x.units;
  const auto* codes = reinterpret_cast<const uint8_t*>(scratch);
  const auto* scale = reinterpret_cast<const float*>(scratch + units * 512);
  const float* addend = scale + units * 2 * kLanes;
  const uint8_t* q = x.q + token * units * kXBytes<Eight>;
  const float* scale_x = x.scale + token * units;
  const auto* extra = static_cast<const int32_t*>(job.extra) + token * units * kSubs;
  VF acc[T];
  unroll<T>([&](auto t) { acc[t] = zero(); });
  for (int64_t unit = 0; unit < units; ++unit) {
    const auto source = [&](int i) { return loadb(codes + 64 * i); };
    unroll<kSubs>([&](auto h) {
      const VF minimum = kFormats[F].minima ? load(addend + h * kLanes) : zero();
      sub_block<F, T, Eight, h.value>(acc, source, load(scale + h * kLanes), minimum, q, scale_x, extra);
    });
    codes += 512;
    scale += kSubs * kLanes;
    addend += kSubs * kLanes;
    q += T * kXBytes<Eight>;
    scale_x += T;
    extra += T * kSubs;
  }
  store_outputs<T>(job, group, token, acc);
}

// Unpacked, types differ in nothing but the sub-block and the minima: one kernel serves each such family.
template <int F>
inline constexpr int kFamily = kFormats[F].minima ? (kFormats[F].sub == 32 ? kQ4_K : kQ2_K)
                                                  : (kFormats[F].sub == 32 ? kQ8_0 : kQ6_K);

template <int F, bool Eight>
void integer_tile(const IntegerJob& job, int64_t group0, int64_t group1, int64_t tile0, int64_t tile1,
                  std::byte* scratch) {
  const int64_t bytes = unpacked_bytes(job.x->units);
  for (int64_t group = group0; group < group1; ++group) {
    unpack_group<F>(job.packed + group * job.group_bytes, job.x->units, scratch + (group - group0) * bytes);
  }
  for (int64_t tile = tile0; tile < tile1; ++tile) {
    const int64_t token = job.x->tile_start[tile];
    const int64_t tokens = job.x->tile_start[tile + 1] - token;
    for (int64_t group = group0; group < group1; ++group) {
      const std::byte* unpacked = scratch + (group - group0) * bytes;
      bool done = false;
      unroll<5>([&](auto i) {
        constexpr int kTokens = kTileSizes[i.value];
        if (done || tokens != kTokens) return;
        tile_block<kFamily<F>, Eight, kTokens>(job, group, token, unpacked);
        done = true;
      });
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
  uint8_t* q = to.q + first * to.units * kXBytes<Eight>;
  float* scales = to.scale + first * to.units;
  int32_t* sums = to.sum + first * to.units * 2;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t unit = 0; unit < to.units; ++unit) {
      const float* p = x + t * k + unit * kUnit;
      const int64_t left = k - unit * kUnit;
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
      place_unit<Eight>(qa, qb, t, tokens, q + unit * tokens * kXBytes<Eight>);
      scales[unit * tokens + t] = scale;
      sums[(2 * unit) * tokens + t] = reduce_addi(qa);
      sums[(2 * unit + 1) * tokens + t] = reduce_addi(qb);
    }
  }
}

template <int F>
void x_extra(const Activation& x, int64_t tile, void* extra) {
  constexpr int kSubs = kUnit / kFormats[F].sub;
  const int64_t first = x.tile_start[tile];
  const int64_t tokens = x.tile_start[tile + 1] - first;
  const int32_t* sums = x.sum + first * x.units * 2;
  const float* scales = x.scale + first * x.units;
  auto* words = static_cast<int32_t*>(extra) + first * x.units * kSubs;
  auto* floats = static_cast<float*>(extra) + first * x.units * kSubs;
  for (int64_t sub = 0; sub < x.units * kSubs; ++sub) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t sum =
          kSubs == 2 ? sums[sub * tokens + t] : sums[2 * sub * tokens + t] + sums[(2 * sub + 1) * tokens + t];
      if constexpr (kFormats[F].minima) {
        floats[sub * tokens + t] = static_cast<float>(sum) * scales[sub / kSubs * tokens + t];
      } else {
        words[sub * tokens + t] = -kFormats[F].bias * sum;
      }
    }
  }
}
