// Attention over a paged cache. Splits are the pages: 64 keys, aligned to absolute position, in ascending
// order. For one query:  s_j = scale * (fma chain over ascending d of q_d k_jd), capped where there is a cap;
// M = max(m, max_j s_j);  p_j = exp(s_j - M); c = exp(m - M);  l = fma(l, c, tree sum of p_j);  o_d = o_d c,
// then fma(p_j, v_jd, o_d) over ascending visible j; at the end out = o / l. Keys past the query's position
// or before its window enter nowhere (their bytes may be anything), and a page without a visible key is not
// touched. A NaN score makes its p NaN, so it reaches l and every output whatever the maximum made of it.

inline constexpr int kPage = 64;
inline constexpr int kPageVectors = kPage / 16;

// Queries are carried through a page in three passes, so that K and then V stay in the first cache: the
// scores of all, their probabilities, the sums of values. A tile of R queries shares every load of K and V.
struct AttentionState {
  float* q;  // [queries][head_dim] as [tile][head_dim][R], from (its first query) * head_dim on
  float* m;  // [queries]
  float* l;  // [queries]
  float* o;  // [queries][padded]
  float* p;  // [queries][64] scores of the page, then probabilities
  float* c;  // [queries] the factor of what came before the page
  float* k;  // a page as FP32, where more than two tiles read it: [4][head_dim][16]
  float* v;  // [64][padded]
  // [queries] the keys of the page that a query sees: begin .. end - 1, none where they are equal
  int32_t *begin, *end;
  int from, to;  // the page's vectors of keys that some query sees: from .. to - 1
  int64_t padded;

  bool none(int query) const { return begin[query] == end[query]; }
};

inline int64_t padded_width(int head_dim) { return (static_cast<int64_t>(head_dim) + 15) / 16 * 16; }

// body(Index<R>{}, first query) for the tiles of all queries.
template <class Body>
inline void for_tiles(int queries, const Body& body) {
  for (int first = 0; first < queries; first += kQueries) {
    for_tokens<kQueries>(queries - first < kQueries ? queries - first : kQueries,
                         [&](auto count) { body(count, first); });
  }
}

inline int32_t within_page(int64_t n) { return n <= 0 ? 0 : n > kPage ? kPage : static_cast<int32_t>(n); }

inline void see_page(const AttentionJob& job, AttentionState& s, int64_t number) {
  int32_t first = kPage, last = 0;
  for (int i = 0; i < job.queries; ++i) {
    const int64_t end = job.positions[i] - number * kPage + 1;
    s.end[i] = within_page(end);
    s.begin[i] = job.window == 0 ? 0 : within_page(end - job.window);
    if (s.none(i)) continue;
    first = s.begin[i] < first ? s.begin[i] : first;
    last = s.end[i] > last ? s.end[i] : last;
  }
  s.from = first / 16;
  s.to = (last + 15) / 16;
}

// The keys and values of a page, one kv head: k [4][head_dim][16] (a token's key lies in half as many lines
// as by rows of 64), v [64] rows v_row bytes apart.
struct Page {
  const std::byte* k;
  const std::byte* v;
  int64_t v_row;
};

// Keys begin .. end - 1 of a page: it was last read a token ago, and all weights have passed through the
// caches since.
template <FloatType C>
inline void ask_for(const Page& page, int head_dim, int64_t begin, int64_t end) {
  const int64_t sixteen = int64_t{16} * head_dim * kElement<C>;
  for (int64_t at = begin / 16 * sixteen; at < (end + 15) / 16 * sixteen; at += 64)
    fetch_to_second(page.k + at);
  for (int64_t at = begin * page.v_row / 64 * 64; at < end * page.v_row; at += 64)
    fetch_to_second(page.v + at);
}

// Scores of D vectors of keys, from vector `first` on, and R queries.
template <FloatType C, int R, int D>
[[gnu::noinline]] void key_scores(const AttentionJob& job, const AttentionState& s, int query,
                                  const std::byte* k, int first) {
  const float* q = s.q + static_cast<int64_t>(query) * job.head_dim;
  const VF factor = set1(job.scale);
  VF acc[R][D];
  unroll<R>([&](auto r) { unroll<D>([&](auto i) { acc[r][i] = zero(); }); });
  const int64_t sixteen = int64_t{16} * job.head_dim * kElement<C>;
  const std::byte* keys = k + first * sixteen;
  for (int d = 0; d < job.head_dim; ++d) {
    VF key[D];
    unroll<D>([&](auto i) { key[i] = load_weights<C>(keys + i * sixteen); });
    unroll<R>([&](auto r) {
      const VF element = set1(q[d * R + r]);
      unroll<D>([&](auto i) { acc[r][i] = fma(element, key[i], acc[r][i]); });
    });
    keys += 16 * kElement<C>;
  }
  unroll<R>([&](auto r) {
    unroll<D>([&](auto i) {
      VF score = mul(factor, acc[r][i]);
      if (job.softcap > 0.0f) score = softcap16(score, set1(job.softcap));
      store(s.p + (query + r) * kPage + (first + i) * 16, score);
    });
  });
}

// The page's scores; only half of a register tile's keys where nobody sees the others.
template <FloatType C, int R>
inline void page_scores(const AttentionJob& job, const AttentionState& s, int query, const std::byte* k) {
  constexpr int kHalf = (kKeyVectors + 1) / 2;
  for (int first = 0; first < kPageVectors; first += kKeyVectors) {
    const int middle = first + kHalf, end = first + kKeyVectors;
    if (s.to <= first || s.from >= end) continue;
    if (s.to <= middle || s.from >= middle)
      key_scores<C, R, kHalf>(job, s, query, k, s.to <= middle ? first : middle);
    else
      key_scores<C, R, kKeyVectors>(job, s, query, k, first);
  }
}

// The vector of keys from 16 * `vector` on: v where the query sees the key, else `otherwise`.
inline VF masked_keys(const AttentionState& s, int query, int vector, VF v, VF otherwise) {
  const int begin = s.begin[query] - vector * 16, end = s.end[query] - vector * 16;
  if (end < 16) v = select_first(end < 0 ? 0 : end, v, otherwise);
  if (begin > 0) v = select_first(begin > 16 ? 16 : begin, otherwise, v);
  return v;
}

// body(scores of a vector of keys) for those that some query sees; `otherwise` for keys that this one does
// not.
template <class Body>
inline void for_keys(const AttentionState& s, int query, VF otherwise, VF (&v)[kPageVectors],
                     const Body& body) {
  unroll<kPageVectors>([&](auto j) {
    v[j] = otherwise;
    if (s.from <= j && j < s.to)
      v[j] = masked_keys(s, query, j, body(load(s.p + query * kPage + j * 16)), otherwise);
  });
}

// Scores become probabilities against the new maxima, and their sums enter l. Sixteen queries at a time, so
// that their maxima and sums are one vector each: a query alone would wait for its reductions.
inline void page_softmax(const AttentionState& s, int queries) {
  alignas(64) float rows[16][16] = {};
  for (int first = 0; first < queries; first += 16) {
    const int count = queries - first < 16 ? queries - first : 16;
    for (int i = 0; i < count; ++i) {
      VF v[kPageVectors];
      for_keys(s, first + i, set1(-__builtin_inff()), v, [](VF score) { return score; });
      store(rows[i], vmax(vmax(v[0], v[1]), vmax(v[2], v[3])));
    }
    const VF before = load_n(s.m + first, count);
    const VF now = vmax(before, max_rows(rows[0], 16, count));
    float top[16], change[16];
    store(top, now);
    store(change, sub(before, now));
    store_n(s.m + first, now, count);
    for (int i = 0; i < count; ++i) {
      if (s.none(first + i)) {  // nothing of this page: l and o keep their bits
        change[i] = 0.0f;
        store(rows[i], zero());
        continue;
      }
      VF v[kPageVectors];
      for_keys(s, first + i, zero(), v, [&](VF score) { return exp16(sub(score, set1(top[i]))); });
      unroll<kPageVectors>([&](auto j) { store(s.p + (first + i) * kPage + j * 16, v[j]); });
      store(rows[i], add(add(v[0], v[1]), add(v[2], v[3])));
    }
    const VF factor = exp16(load(change));
    store_n(s.c + first, factor, count);
    store_n(s.l + first, fma(load_n(s.l + first, count), factor, reduce_rows(rows[0], 16, count)), count);
  }
}

// Dimensions d .. d + 16 D (the last vector holds `last` of them) of R queries from `query` on, over the keys
// that the first of them sees.
template <FloatType C, int R, int D>
[[gnu::noinline]] void add_values(const AttentionState& s, int query, const Page& page, int d, int last) {
  const int begin = s.begin[query], end = s.end[query];
  const std::byte* values = page.v + d * kElement<C> + begin * page.v_row;
  const float* p = s.p + query * kPage;
  float* out = s.o + query * s.padded + d;
  VF acc[R][D];
  unroll<R>([&](auto r) {
    unroll<D>([&](auto i) { acc[r][i] = mul(load(out + r * s.padded + i * 16), set1(s.c[query + r])); });
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

// The same of every query in a tile. On the pages that hold their own positions or their windows' ends,
// queries see unlike keys and part company.
template <FloatType C, int R, int D>
inline void tile_values(const AttentionState& s, int query, const Page& page, int d, int last) {
  bool alike = true;
  for (int r = 1; r < R; ++r)
    alike = alike && s.begin[query + r] == s.begin[query] && s.end[query + r] == s.end[query];
  if (alike) {
    add_values<C, R, D>(s, query, page, d, last);
    return;
  }
  for (int r = 0; r < R; ++r) add_values<C, 1, D>(s, query + r, page, d, last);
}

template <FloatType C, int R>
inline void page_values(const AttentionJob& job, const AttentionState& s, int query, const Page& page) {
  int d = 0;
  for (; d + 16 * kKeyVectors <= job.head_dim; d += 16 * kKeyVectors)
    tile_values<C, R, kKeyVectors>(s, query, page, d, 16);
  for (; d < job.head_dim; d += 16)
    tile_values<C, R, 1>(s, query, page, d, job.head_dim - d < 16 ? job.head_dim - d : 16);
}

template <FloatType C>
inline void add_page(const AttentionJob& job, const AttentionState& s, const Page& page) {
  const auto seen = [&](int first, int count) {
    bool any = false;
    for (int i = first; i < first + count; ++i) any = any || !s.none(i);
    return any;
  };
  for_tiles(job.queries, [&](auto count, int first) {
    if (seen(first, count)) page_scores<C, count.value>(job, s, first, page.k);
  });
  page_softmax(s, job.queries);
  for_tiles(job.queries, [&](auto count, int first) {
    if (seen(first, count)) page_values<C, count.value>(job, s, first, page);
  });
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

static_assert(kQueryFloats == kPage + 5);
template <FloatType C>
void attention(const AttentionJob& job, std::byte* scratch) {
  AttentionState s;
  s.padded = padded_width(job.head_dim);
  s.o = reinterpret_cast<float*>(scratch);
  s.q = s.o + job.queries * s.padded;
  s.k = s.q + job.queries * s.padded;
  s.v = s.k + kPage * s.padded;
  s.p = s.v + kPage * s.padded;
  s.m = s.p + job.queries * kPage;
  s.l = s.m + job.queries;
  s.c = s.l + job.queries;
  s.begin = reinterpret_cast<int32_t*>(s.c + job.queries);
  s.end = s.begin + job.queries;
  int64_t first = 0, last = 0;  // keys: the first that some query sees, the last
  for (int i = 0; i < job.queries; ++i) {
    const int64_t position = job.positions[i];
    const int64_t begin = job.window == 0 || position < job.window ? 0 : position - job.window + 1;
    first = i == 0 || begin < first ? begin : first;
    last = position > last ? position : last;
    s.m[i] = -__builtin_inff();
    s.l[i] = 0.0f;
  }
  const int64_t row_bytes = int64_t{job.head_dim} * kElement<C>;
  const auto page_at = [&](int64_t number) {
    const int64_t at = job.pages[number] * job.page_bytes;
    return Page{job.k + at, job.v + at, row_bytes};
  };
  const auto ask = [&](int64_t number) {
    ask_for<C>(page_at(number), job.head_dim, within_page(first - number * kPage),
               within_page(last + 1 - number * kPage));
  };
  ask(first / kPage);
  __builtin_memset(s.o, 0, static_cast<size_t>(job.queries * s.padded) * sizeof(float));
  for_tiles(job.queries, [&](auto count, int tile) {
    float* q = s.q + static_cast<int64_t>(tile) * job.head_dim;
    for (int d = 0; d < job.head_dim; ++d) {
      for (int r = 0; r < count; ++r) q[d * count + r] = job.q[tile + r][d];
    }
  });
  for (int64_t number = first / kPage; number <= last / kPage; ++number) {
    const Page page = page_at(number);
    if (number < last / kPage) ask(number + 1);
    see_page(job, s, number);
    if (C == kF32 || job.queries <= 2 * kQueries) {
      add_page<C>(job, s, page);
    } else {
      add_page<kF32>(job, s, widen_page<C>(job, s, page));
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
