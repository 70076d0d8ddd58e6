// The reference's operators against naive scalar loops: the same bits where the order of addition is the
// contract, 1e-13 where only the numbers are, at shapes that no tile divides.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "backend/backend.h"
#include "backend/reference/products.h"

namespace greta {
namespace {

using Numbers = std::vector<double>;

class Random {
 public:
  Numbers numbers(int64_t count) {
    Numbers values(static_cast<size_t>(count));
    for (double& v : values) v = normal_(engine_);
    return values;
  }
  std::vector<float> floats(int64_t count) {
    const Numbers values = numbers(count);
    return {values.begin(), values.end()};
  }

 private:
  std::mt19937_64 engine_{11};
  std::normal_distribution<double> normal_;
};

std::unique_ptr<Backend> reference(int threads = 2) {
  BackendOptions options;
  options.threads = threads;
  return make_backend("reference", options);
}

bool same_bits(const Numbers& a, const Numbers& b) {
  return !a.empty() && a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// ---- the inner loop, at every vector width of this machine

Numbers naive_products(const reference::Products& p) {
  Numbers sums(p.sums, p.sums + p.rows * reference::kLanes);
  for (int64_t i = 0; i < p.rows; ++i)
    for (int64_t l = 0; l < reference::kLanes; ++l)
      for (int64_t k = 0; k < p.count; ++k) {
        const double product = p.a[i * p.row_stride + k * p.step] * p.lanes[k * reference::kLanes + l];
        sums[static_cast<size_t>(i * reference::kLanes + l)] += product;
      }
  return sums;
}

TEST(ReferenceProducts, EveryVectorWidthGivesTheScalarLoopsBits) {
  Random random;
  const auto widths = reference::add_products_by_width();
  ASSERT_FALSE(widths.empty());
  for (size_t width = 0; width < widths.size(); ++width)
    for (int64_t rows = 1; rows <= 19; ++rows)
      for (const int64_t count : {0, 1, 33, 100})
        for (const bool across : {false, true}) {  // rows next to one another, or elements of a row
          const int64_t row_stride = across ? 1 : count + 3;
          const int64_t step = across ? rows + 2 : 1;
          const Numbers a = random.numbers((rows + 2) * (count + 3));
          const Numbers lanes = random.numbers(count * reference::kLanes);
          Numbers sums = random.numbers(rows * reference::kLanes);
          const reference::Products p = {rows, a.data(), row_stride, step, count, lanes.data(), sums.data()};
          const Numbers expected = naive_products(p);
          widths[width](p);
          EXPECT_TRUE(same_bits(sums, expected))
              << "width " << width << ", " << rows << " rows, count " << count << ", across " << across;
        }
}

// ---- matmul

struct TestWeight {
  quant::Type type;
  std::vector<std::byte> bytes;
  std::vector<float> values;  ///< [rows, cols], as the file's bytes say
  std::unique_ptr<Weight> loaded;
};

TestWeight make_weight(Backend& backend, Random& random, quant::Type type, WeightUse use, int64_t rows,
                       int64_t cols) {
  TestWeight w{type,
               std::vector<std::byte>(quant::bytes_for(type, static_cast<uint64_t>(rows * cols)).value()),
               random.floats(rows * cols), nullptr};
  quant::quantize(type, w.values.data(), rows * cols, w.bytes.data());
  quant::dequantize(type, w.bytes.data(), rows * cols, w.values.data());
  w.loaded = backend.load({"w", type, rows, cols, w.bytes}, use);
  return w;
}

Numbers naive_matmul(const Numbers& x, int64_t rows, const TestWeight& w, const TestWeight* bias) {
  const int64_t width = w.loaded->cols;
  Numbers out;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < w.loaded->rows; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < width; ++k) {
        const double product =
            x[static_cast<size_t>(r * width + k)] * double{w.values[static_cast<size_t>(n * width + k)]};
        sum += product;
      }
      out.push_back(sum + (bias == nullptr ? 0.0 : double{bias->values[static_cast<size_t>(n)]}));
    }
  return out;
}

void expect_matmul_bits(quant::Type type, int64_t width, int64_t rows, int64_t outputs, bool with_bias) {
  SCOPED_TRACE(testing::Message() << "width " << width << ", rows " << rows << ", outputs " << outputs
                                  << ", bias " << with_bias);
  Random random;
  const auto backend = reference();
  const auto w = make_weight(*backend, random, type, WeightUse::matmul, outputs, width);
  const auto bias = make_weight(*backend, random, quant::Type::F32, WeightUse::vector, 1, outputs);
  Numbers x = random.numbers(rows * width);
  // A guard behind the output: a padded lane must not be stored.
  Numbers out(static_cast<size_t>(rows * outputs + reference::kLanes), 7.0);
  MatmulArgs args;
  args.rows = rows;
  args.x = {x.data(), width};
  args.outputs[0] = {w.loaded.get(), with_bias ? bias.loaded.get() : nullptr, {out.data(), outputs}};
  backend->matmul(args);
  Numbers expected = naive_matmul(x, rows, w, with_bias ? &bias : nullptr);
  expected.resize(out.size(), 7.0);
  EXPECT_TRUE(same_bits(out, expected));
}

TEST(ReferenceMatmul, OddShapesGiveTheNaiveLoopsBits) {
  for (const int64_t width : {1, 33, 100})
    for (const int64_t rows : {1, 3, 8, 9, 17, 65})
      for (const int64_t outputs : {1, 5, 8, 9})
        for (const bool bias : {false, true})
          expect_matmul_bits(quant::Type::F32, width, rows, outputs, bias);
}

TEST(ReferenceMatmul, EveryTypeGivesTheNaiveLoopsBits) {
  for (const auto& t : quant::all_types()) {
    SCOPED_TRACE(t.name);
    expect_matmul_bits(t.type, 512, 3, 11, false);
  }
}

// ---- attention

constexpr int64_t kPagesOfSequence = 4;

/// Two sequences in one cache whose pages lie in no order; rows of a batch at any positions.
struct Attention {
  Attention(int heads_in, int kv_heads, int head_dim)
      : heads(heads_in),
        kv_width(int64_t{kv_heads} * head_dim),
        k(random.numbers(2 * kPagesOfSequence * kKvPage * kv_width)),
        v(random.numbers(static_cast<int64_t>(k.size()))),
        k_cache(backend->allocate(k.size() * sizeof(double))),
        v_cache(backend->allocate(k.size() * sizeof(double))),
        cache{k_cache->data(), v_cache->data(), kv_heads, head_dim} {
    cache.pages = pages.data();
    cache.page_stride = kPagesOfSequence;
    for (int sequence = 0; sequence < 2; ++sequence)
      for (int position = 0; position < kPagesOfSequence * kKvPage; ++position) store(sequence, position);
  }

  /// The row of `k` or `v` of a position.
  int64_t at(int sequence, int position) const {
    return (sequence * kPagesOfSequence * kKvPage + position) * kv_width;
  }

  BatchView batch(const std::vector<int>& sequences, const std::vector<int>& positions) const {
    return {static_cast<int64_t>(positions.size()),
            positions.data(),  // tokens: not read
            positions.data(), sequences.data(), 2};
  }

  /// Writes a position's key and value into the cache, by a rope that turns nothing.
  void store(int sequence, int position) {
    const std::vector<int> sequences = {sequence};
    const std::vector<int> positions = {position};
    const BatchView one = batch(sequences, positions);
    const RopeSpec still;
    RopeArgs args;
    args.batch = &one;
    args.rope = &still;
    args.k = {k.data() + at(sequence, position), kv_width};
    args.v = {v.data() + at(sequence, position), kv_width};
    args.cache = cache;
    backend->rope(args);
  }

  Numbers run(Numbers& q, const std::vector<int>& sequences, const std::vector<int>& positions) {
    const BatchView rows = batch(sequences, positions);
    const int64_t width = int64_t{heads} * cache.head_dim;
    Numbers out(q.size(), 7.0);
    backend->attention({&rows, heads, scale, {q.data(), width}, cache, {out.data(), width}, softcap, window});
    return out;
  }

  /// One head of one row.
  Numbers naive(const double* q, int head, int sequence, int position) const {
    const int offset = head / (heads / cache.kv_heads) * cache.head_dim;
    Numbers scores;
    const int first = window == 0 ? 0 : std::max(position + 1 - static_cast<int>(window), 0);
    for (int j = first; j <= position; ++j) {
      const double* key = k.data() + at(sequence, j) + offset;
      scores.push_back(scale * std::inner_product(q, q + cache.head_dim, key, 0.0));
      if (softcap > 0) scores.back() = softcap * std::tanh(scores.back() / softcap);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    Numbers out(static_cast<size_t>(cache.head_dim), 0.0);
    for (int j = first; j <= position; ++j) {
      const double p = std::exp(scores[static_cast<size_t>(j - first)] - largest);
      total += p;
      for (size_t d = 0; d < out.size(); ++d)
        out[d] += p * v[static_cast<size_t>(at(sequence, j) + offset) + d];
    }
    for (double& x : out) x /= total;
    return out;
  }

  Random random;
  std::unique_ptr<Backend> backend = reference();
  int heads;
  int64_t kv_width;
  Numbers k, v;  ///< [sequences, positions, kv_width]
  std::unique_ptr<Buffer> k_cache, v_cache;
  KvLayer cache;
  double scale = 0.3;
  double softcap = 0.0;
  int64_t window = 0;
  std::vector<int32_t> pages = {6, 1, 4, 3, 0, 7, 2, 5};
};

struct Shape {
  int heads, kv_heads, head_dim;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {9, 3, 64}, {8, 2, 33}, {11, 1, 16}, {4, 4, 5}, {16, 1, 8}};

/// Twelve rows of sequence 0, then five of sequence 1, over page boundaries and with a gap.
const std::vector<int> kSequences = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1};
const std::vector<int> kPositions = {0, 1, 2, 3, 4, 5, 60, 61, 62, 63, 64, 65, 7, 126, 127, 128, 255};

class ReferenceAttention : public testing::TestWithParam<Shape> {
 protected:
  void expect_naive();
  void expect_nan_stays_out();

  Attention attention{GetParam().heads, GetParam().kv_heads, GetParam().head_dim};
  int64_t width = int64_t{GetParam().heads} * GetParam().head_dim;
  Numbers q = attention.random.numbers(static_cast<int64_t>(kPositions.size()) * width);
};

void ReferenceAttention::expect_naive() {
  const Numbers out = attention.run(q, kSequences, kPositions);
  const int head_dim = GetParam().head_dim;
  size_t compared = 0;
  for (size_t r = 0; r < kPositions.size(); ++r)
    for (int h = 0; h < GetParam().heads; ++h) {
      const size_t from = r * static_cast<size_t>(width) + static_cast<size_t>(h * head_dim);
      const Numbers expected = attention.naive(q.data() + from, h, kSequences[r], kPositions[r]);
      double largest = 0.0;
      for (const double x : expected) largest = std::max(largest, std::abs(x));
      for (size_t d = 0; d < expected.size(); ++d, ++compared)
        EXPECT_TRUE(std::abs(out[from + d] - expected[d]) <= 1e-13 * largest)
            << "row " << r << ", head " << h << ", element " << d << ": " << out[from + d] << ", expected "
            << expected[d];
    }
  EXPECT_EQ(compared, out.size());
}

TEST_P(ReferenceAttention, WithinTenToTheMinus13OfNaiveLoops) { expect_naive(); }

TEST_P(ReferenceAttention, WindowsAndSoftCapsWithinTenToTheMinus13OfNaiveLoops) {
  for (const int64_t window : {0, 1, 2, 63, 64, 65, 100, 129, 256, 1000})
    for (const double softcap : {0.0, 1.5}) {
      SCOPED_TRACE(testing::Message() << "window " << window << ", cap " << softcap);
      attention.window = window;
      attention.softcap = softcap;
      expect_naive();
    }
}

TEST_P(ReferenceAttention, ARowAloneGivesTheSameBits) {
  const Numbers together = attention.run(q, kSequences, kPositions);
  for (size_t r = 0; r < kPositions.size(); ++r) {
    const auto from = static_cast<int64_t>(r) * width;
    Numbers one(q.begin() + from, q.begin() + from + width);
    const Numbers alone = attention.run(one, {kSequences[r]}, {kPositions[r]});
    EXPECT_TRUE(same_bits(alone, Numbers(together.begin() + from, together.begin() + from + width)))
        << "row " << r;
  }
}

void ReferenceAttention::expect_nan_stays_out() {
  const Numbers clean = attention.run(q, kSequences, kPositions);
  for (Numbers* part : {&attention.k, &attention.v})
    for (const int position : {3, 63, 65}) {
      const auto row = part->begin() + attention.at(0, position);
      const Numbers kept(row, row + attention.kv_width);
      std::fill_n(row, attention.kv_width, NAN);
      attention.store(0, position);
      const Numbers out = attention.run(q, kSequences, kPositions);
      std::copy(kept.begin(), kept.end(), row);
      attention.store(0, position);
      for (size_t i = 0; i < out.size(); ++i) {
        const size_t r = i / static_cast<size_t>(width);
        const bool sees = kSequences[r] == 0 && kPositions[r] >= position &&
                          (attention.window == 0 || kPositions[r] - position < attention.window);
        EXPECT_TRUE(sees ? std::isnan(out[i]) : out[i] == clean[i])
            << (part == &attention.k ? "key " : "value ") << position << ", row " << r << ": " << out[i];
      }
    }
}

TEST_P(ReferenceAttention, ANaNBeyondARowsPositionStaysOut) { expect_nan_stays_out(); }

TEST_P(ReferenceAttention, ANaNBeforeARowsWindowStaysOut) {
  for (const int64_t window : {1, 2, 3, 58, 64}) {
    SCOPED_TRACE(testing::Message() << "window " << window);
    attention.window = window;
    expect_nan_stays_out();
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ReferenceAttention, testing::ValuesIn(kShapes), [](const auto& info) {
  return std::to_string(info.param.heads) + "Over" + std::to_string(info.param.kv_heads) + "Of" +
         std::to_string(info.param.head_dim);
});

}  // namespace
}  // namespace greta
