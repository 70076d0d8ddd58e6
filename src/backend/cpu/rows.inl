// Element-wise operators and norms of one row.

// r = 1 / sqrt(mean + eps), by a square root and a division; out = (x r) w. The sum of squares runs over 16
// lanes in ascending order, then the fixed tree.
void rmsnorm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  VF sum = zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const VF v = load(x + i);
    sum = fma(v, v, sum);
  }
  const int tail = static_cast<int>(n - i);
  if (tail > 0) {
    const VF v = load_n(x + i, tail);
    sum = fma(v, v, sum);
  }
  const float mean = reduce_add(sum) / static_cast<float>(n);
  const VF r = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i + 16 <= n; i += 16) store(out + i, mul(mul(load(x + i), r), load(weight + i)));
  if (tail > 0) store_n(out + i, mul(mul(load_n(x + i, tail), r), load_n(weight + i, tail)), tail);
}

template <class Op>
inline void map1(const float* a, int64_t n, float* out, const Op& op) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, op(load(a + i)));
  if (i < n) store_n(out + i, op(load_n(a + i, static_cast<int>(n - i))), static_cast<int>(n - i));
}
template <class Op>
inline void map2(const float* a, const float* b, int64_t n, float* out, const Op& op) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, op(load(a + i), load(b + i)));
  if (i < n) {
    const int tail = static_cast<int>(n - i);
    store_n(out + i, op(load_n(a + i, tail), load_n(b + i, tail)), tail);
  }
}

void add_rows(const float* a, const float* b, int64_t n, float* out) {
  map2(a, b, n, out, [](VF x, VF y) { return add(x, y); });
}
void scale_row(const float* x, float factor, int64_t n, float* out) {
  const VF f = set1(factor);
  map1(x, n, out, [&](VF v) { return mul(v, f); });
}
void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  map2(gate, up, n, out, [](VF g, VF u) { return mul(silu16(g), u); });
}
void gelu_mul(const float* gate, const float* up, int64_t n, float* out) {
  map2(gate, up, n, out, [](VF g, VF u) { return mul(gelu16(g), u); });
}
void softcap_row(const float* x, float cap, int64_t n, float* out) {
  const VF c = set1(cap);
  map1(x, n, out, [&](VF v) { return softcap16(v, c); });
}
// sum_s weights[s] x[s]: a product, then a chain of fma in ascending s.
void combine_row(const float* x, const float* weights, int64_t used, int64_t n, float* out) {
  const auto sum_at = [&](int64_t i, const auto& get) {
    VF sum = mul(set1(weights[0]), get(x + i));
    for (int64_t s = 1; s < used; ++s) sum = fma(set1(weights[s]), get(x + s * n + i), sum);
    return sum;
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, sum_at(i, [](const float* p) { return load(p); }));
  const int tail = static_cast<int>(n - i);
  if (tail > 0) store_n(out + i, sum_at(i, [tail](const float* p) { return load_n(p, tail); }), tail);
}
void exp_row(const float* x, int64_t n, float* out) {
  map1(x, n, out, [](VF v) { return exp16(v); });
}

void sincos_row(const double* x, int64_t n, double* sine, double* cosine) {
  for (int64_t i = 0; i < n; ++i) sincos1(x[i], sine + i, cosine + i);
}
void rope_table(int32_t position, const double* inv_freq, int64_t n, double magnitude, float* cosine,
                float* sine) {
  for (int64_t i = 0; i < n; ++i) {
    double s, c;
    sincos1(static_cast<double>(position) * inv_freq[i], &s, &c);
    cosine[i] = static_cast<float>(c * magnitude);
    sine[i] = static_cast<float>(s * magnitude);
  }
}
// (a, b) -> (a c - b s, b c + a s): the product with s is rounded, the one with c is fused.
void rotate_adjacent(const float* x, const float* cosine, const float* sine, int pairs, float* out) {
  for (int i = 0; i < pairs; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    out[2 * i] = __builtin_fmaf(a, cosine[i], -(b * sine[i]));
    out[2 * i + 1] = __builtin_fmaf(b, cosine[i], a * sine[i]);
  }
}
void rotate_half(const float* x, const float* cosine, const float* sine, int pairs, float* out) {
  for (int i = 0; i < pairs; ++i) {
    const float a = x[i], b = x[i + pairs];
    out[i] = __builtin_fmaf(a, cosine[i], -(b * sine[i]));
    out[i + pairs] = __builtin_fmaf(b, cosine[i], a * sine[i]);
  }
}

void round_f32(const float* x, int64_t n, void* out) { __builtin_memcpy(out, x, static_cast<size_t>(n) * 4); }
template <class Store>
inline void round_half(const float* x, int64_t n, void* out, const Store& put) {
  auto* to = static_cast<uint16_t*>(out);
  for (int64_t i = 0; i < n; i += 16) {
    const int count = n - i < 16 ? static_cast<int>(n - i) : 16;
    put(to + i, load_n(x + i, count), count);
  }
}
void round_f16(const float* x, int64_t n, void* out) {
  round_half(x, n, out, [](uint16_t* p, VF v, int count) { store_f16_n(p, v, count); });
}
void round_bf16(const float* x, int64_t n, void* out) {
  round_half(x, n, out, [](uint16_t* p, VF v, int count) { store_bf16_n(p, v, count); });
}
