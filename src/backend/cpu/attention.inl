// Attention over a paged cache. Splits are the pages: 64 keys, aligned to absolute position, in ascending
// order. For one query:  s_j = scale * (fma chain over ascending d of q_d k_jd), capped where there is a cap;
// M = max(m, max_j s_j);  p_j = exp(s_j - M); c = exp(m - M);  l = fma(l, c, tree sum of p_j);  o_d = o_d c,
// then fma(p_j, v_jd, o_d) over ascending visible j; at the end out = o / l. Keys past the query's position
// or before its window enter nowhere (their bytes may be anything), and a page without a visible key is not
// touched. A NaN score makes its p NaN, so it reaches l and every output whatever the maximum made of it.

inline constexpr int kPage = 64;
inline constexpr int kPageVectors = kPage / 16;

// Queries that are carried through a page together share every load of K and V.
struct QueryTile {
  int first = 0;
  int count = 0;
};

// The keys of a page that each query of a tile sees: begin .. end - 1, none where begin == end.
template <int R>
struct Visible {
  int begin[R];
  int end[R];
  bool none(int r) const { return begin[r] == end[r]; }
  bool whole(int r) const { return begin[r] == 0 && end[r] == kPage; }
  bool alike() const {
    for (int r = 1; r < R; ++r) {
      if (begin[r] != begin[0] || end[r] != end[0]) return false;
    }
    return true;
  }
};

struct AttentionState {
  float* q;  // [queries][head_dim] as [tile][head_dim][count], from first * head_dim on
  float* m;  // [queries]
  float* l;  // [queries]
  float* o;  // [queries][padded]
  float* p;  // [kQueries][64]
  float* k;  // a page as FP32, where several tiles read it: [head_dim][64]
  float* v;  // [64][padded]
  int64_t padded;
};

inline int64_t padded_width(int head_dim) { return (static_cast<int64_t>(head_dim) + 15) / 16 * 16; }

template <FloatType C, int R>
inline void page_scores(const AttentionJob& job, const AttentionState& s, QueryTile tile,
                        const std::byte* k) {
  const float* q = s.q + static_cast<int64_t>(tile.first) * job.head_dim;
  const VF factor = set1(job.scale);
  for (int first = 0; first < kPageVectors; first += kKeyVectors) {
    VF acc[R][kKeyVectors];
    unroll<R>([&](auto r) { unroll<kKeyVectors>([&](auto i) { acc[r][i] = zero(); }); });
    const std::byte* keys = k + first * 16 * kElement<C>;
    for (int d = 0; d < job.head_dim; ++d) {
      VF key[kKeyVectors];
      unroll<kKeyVectors>([&](auto i) { key[i] = load_weights<C>(keys + i * 16 * kElement<C>); });
      unroll<R>([&](auto r) {
        const VF element = set1(q[d * R + r]);
        unroll<kKeyVectors>([&](auto i) { acc[r][i] = fma(element, key[i], acc[r][i]); });
      });
      keys += kPage * kElement<C>;
    }
    unroll<R>([&](auto r) {
      unroll<kKeyVectors>([&](auto i) {
        VF score = mul(factor, acc[r][i]);
        if (job.softcap > 0.0f) score = softcap16(score, set1(job.softcap));
        store(s.p + r * kPage + (first + i) * 16, score);
      });
    });
  }
}

// v where the query sees the key, else `otherwise`.
template <int R>
inline VF masked_keys(const Visible<R>& visible, int r, int vector, VF v, VF otherwise) {
  const auto within = [&](int key) {
    const int left = key - vector * 16;
    return left < 0 ? 0 : left > 16 ? 16 : left;
  };
  v = select_first(within(visible.end[r]), v, otherwise);
  return select_first(within(visible.begin[r]), otherwise, v);
}

// Scores in s.p become probabilities against the new maximum; c: the factor of what came before.
template <int R>
inline void page_softmax(const AttentionState& s, QueryTile tile, const Visible<R>& visible, float (&c)[R]) {
  float change[16] = {};
  for (int r = 0; r < R; ++r) {
    if (visible.none(r)) continue;
    float* p = s.p + r * kPage;
    VF v[kPageVectors];
    unroll<kPageVectors>([&](auto i) { v[i] = load(p + i * 16); });
    const VF masked = set1(-__builtin_inff());
    if (!visible.whole(r))
      unroll<kPageVectors>([&](auto i) { v[i] = masked_keys<R>(visible, r, i, v[i], masked); });
    const float most = reduce_max(vmax(vmax(v[0], v[1]), vmax(v[2], v[3])));
    const float before = s.m[tile.first + r];
    const float now = before > most ? before : most;
    const VF top = set1(now);
    unroll<kPageVectors>([&](auto i) { v[i] = exp16(sub(v[i], top)); });
    if (!visible.whole(r))
      unroll<kPageVectors>([&](auto i) { v[i] = masked_keys<R>(visible, r, i, v[i], zero()); });
    unroll<kPageVectors>([&](auto i) { store(p + i * 16, v[i]); });
    s.m[tile.first + r] = now;
    change[r] = before - now;
    c[r] = reduce_add(add(add(v[0], v[1]), add(v[2], v[3])));  // for now the sum
  }
  float factor[16];
  store(factor, exp16(load(change)));
  for (int r = 0; r < R; ++r) {
    if (visible.none(r)) {
      c[r] = 1.0f;  // nothing of this page: o keeps its bits
      continue;
    }
    float& l = s.l[tile.first + r];
    l = __builtin_fmaf(l, factor[r], c[r]);
    c[r] = factor[r];
  }
}

// The keys and values of a page, one kv head: k [head_dim][64], v [64] rows v_row bytes apart.
struct Page {
  const std::byte* k;
  const std::byte* v;
  int64_t v_row;
};

// Dimensions d .. d + 16 D (the last vector holds `last` of them) of R queries from `query` on, over the keys
// begin .. end - 1; p: their probabilities, [R][kPage].
template <FloatType C, int R, int D>
inline void add_values(const AttentionState& s, int query, const float* p, const Page& page, int d, int last,
                       int begin, int end, const float* c) {
  const std::byte* values = page.v + d * kElement<C> + begin * page.v_row;
  float* out = s.o + query * s.padded + d;
  VF acc[R][D];
  unroll<R>([&](auto r) {
    unroll<D>([&](auto i) { acc[r][i] = mul(load(out + r * s.padded + i * 16), set1(c[r])); });
  });
  for (int j = begin; j < end; ++j) {
    VF element[D];
    unroll<D>([&](auto i) {
      const std::byte* at = values + i * 16 * kElement<C>;
      element[i] = D == 1 && last < 16 ? load_weights_n<C>(at, last) : load_weights<C>(at);
    });
    unroll<R>([&](auto r) {
      const VF weight = set1(p[r * kPage + j]);
      unroll<D>([&](auto i) { acc[r][i] = fma(weight, element[i], acc[r][i]); });
    });
    values += page.v_row;
  }
  unroll<R>([&](auto r) { unroll<D>([&](auto i) { store(out + r * s.padded + i * 16, acc[r][i]); }); });
}

// The same of every query in the tile.
template <FloatType C, int R, int D>
inline void page_values(const AttentionState& s, QueryTile tile, const Page& page, int d, int last,
                        const Visible<R>& visible, const float (&c)[R]) {
  if (visible.alike()) {
    add_values<C, R, D>(s, tile.first, s.p, page, d, last, visible.begin[0], visible.end[0], c);
    return;
  }
  for (int r = 0; r < R; ++r) {  // on the pages that hold their own positions or their windows' ends
    add_values<C, 1, D>(s, tile.first + r, s.p + r * kPage, page, d, last, visible.begin[r], visible.end[r],
                        c + r);
  }
}

template <FloatType C, int R>
void page_tile(const AttentionJob& job, const AttentionState& s, QueryTile tile, int64_t number,
               const Page& page) {
  Visible<R> visible;
  bool any = false;
  const auto within = [](int64_t n) { return n <= 0 ? 0 : n > kPage ? kPage : static_cast<int>(n); };
  for (int r = 0; r < R; ++r) {
    const int64_t end = job.positions[tile.first + r] - number * kPage + 1;
    visible.end[r] = within(end);
    visible.begin[r] = job.window == 0 ? 0 : within(end - job.window);
    any = any || !visible.none(r);
  }
  if (!any) return;
  page_scores<C, R>(job, s, tile, page.k);
  float c[R];
  page_softmax<R>(s, tile, visible, c);
  int d = 0;
  for (; d + 16 * kKeyVectors <= job.head_dim; d += 16 * kKeyVectors)
    page_values<C, R, kKeyVectors>(s, tile, page, d, 16, visible, c);
  for (; d < job.head_dim; d += 16) {
    const int left = job.head_dim - d;
    page_values<C, R, 1>(s, tile, page, d, left < 16 ? left : 16, visible, c);
  }
}

inline QueryTile tile_at(const AttentionJob& job, int query) {
  int count = kQueries;
  while (query + count > job.queries) count /= 2;
  return QueryTile{query, count};
}

template <FloatType C>
inline void page_tiles(const AttentionJob& job, const AttentionState& s, int64_t number, const Page& page) {
  for (QueryTile tile = tile_at(job, 0); tile.first < job.queries;
       tile = tile_at(job, tile.first + tile.count)) {
    if (tile.count == 4) {
      if constexpr (kQueries >= 4) page_tile<C, 4>(job, s, tile, number, page);
    } else if (tile.count == 2) {
      page_tile<C, 2>(job, s, tile, number, page);
    } else {
      page_tile<C, 1>(job, s, tile, number, page);
    }
  }
}

// The page as FP32, converted once instead of in every tile.
template <FloatType C>
inline Page widen_page(const AttentionJob& job, const AttentionState& s, const Page& page) {
  for (int64_t i = 0; i < static_cast<int64_t>(job.head_dim) * kPage; i += 16)
    store(s.k + i, load_weights<C>(page.k + i * kElement<C>));
  for (int64_t j = 0; j < kPage; ++j) {
    for (int d = 0; d < job.head_dim; d += 16) {
      const std::byte* from = page.v + j * page.v_row + d * kElement<C>;
      const int left = job.head_dim - d;
      store(s.v + j * s.padded + d, left < 16 ? load_weights_n<C>(from, left) : load_weights<C>(from));
    }
  }
  return {reinterpret_cast<const std::byte*>(s.k), reinterpret_cast<const std::byte*>(s.v),
          s.padded * kElement<kF32>};
}

template <FloatType C>
void attention(const AttentionJob& job, std::byte* scratch) {
  AttentionState s;
  s.padded = padded_width(job.head_dim);
  s.o = reinterpret_cast<float*>(scratch);
  s.p = s.o + job.queries * s.padded;
  s.q = s.p + kQueries * kPage;
  s.k = s.q + job.queries * s.padded;
  s.v = s.k + kPage * s.padded;
  s.m = s.v + kPage * s.padded;
  s.l = s.m + job.queries;
  int64_t first = 0, last = 0;  // keys: the first that some query sees, the last
  for (int i = 0; i < job.queries; ++i) {
    const int64_t position = job.positions[i];
    const int64_t begin = job.window == 0 || position < job.window ? 0 : position - job.window + 1;
    first = i == 0 || begin < first ? begin : first;
    last = position > last ? position : last;
    s.m[i] = -__builtin_inff();
    s.l[i] = 0.0f;
  }
  __builtin_memset(s.o, 0, static_cast<size_t>(job.queries * s.padded) * sizeof(float));
  for (QueryTile tile = tile_at(job, 0); tile.first < job.queries;
       tile = tile_at(job, tile.first + tile.count)) {
    float* q = s.q + static_cast<int64_t>(tile.first) * job.head_dim;
    for (int d = 0; d < job.head_dim; ++d) {
      for (int r = 0; r < tile.count; ++r) q[d * tile.count + r] = job.q[tile.first + r][d];
    }
  }
  for (int64_t number = first / kPage; number <= last / kPage; ++number) {
    const int64_t at = job.pages[number] * job.page_bytes;
    const Page page{job.k + at, job.v + at, int64_t{job.head_dim} * kElement<C>};
    if (C == kF32 || job.queries <= kQueries) {
      page_tiles<C>(job, s, number, page);
    } else {
      page_tiles<kF32>(job, s, number, widen_page<C>(job, s, page));
    }
  }
  for (int i = 0; i < job.queries; ++i) {
    const VF l = set1(s.l[i]);
    for (int d = 0; d < job.head_dim; d += 16) {
      const int count = job.head_dim - d < 16 ? job.head_dim - d : 16;
      store_n(job.out[i] + d, div(load(s.o + i * s.padded + d), l), count);
    }
  }
}
