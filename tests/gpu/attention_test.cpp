// Attention: against FP64 on the operands as the kernels round them, within its bound; and the same bits
// however rows are called together, whichever kernel takes them, wherever pages lie and whatever lies in what
// a row does not see.
#include <algorithm>
#include <numeric>

#include "backend/backend.h"
#include "backend/gpu/kernels/orders.h"
#include "base/half.h"
#include "gpu/rows_support.h"

namespace greta::gpu {
namespace {

using namespace rows_test;

/// The matrix unit may truncate its sums (numerics.md section 5).
constexpr double kU = 0x1p-23;
constexpr double kExpUlps = 2.0;
constexpr int kSplit = 64;

struct Heads {
  int heads, kv_heads, head_dim;
  bool bf16 = false;
};

/// Rows of a sequence that a test looks at; its cache holds every position before them too.
struct Piece {
  int first, count;
};

/// A cache of one layer for several sequences, random; whatever no position has is NaN, and pages of nothing
/// are -1.
class Setting {
 public:
  Setting(const Machine& machine, Heads shape, std::vector<Piece> pieces, int window = 0,
          float softcap = 0.0f)
      : machine_(machine), shape_(shape), pieces_(std::move(pieces)), window_(window), softcap_(softcap) {
    for (const Piece& piece : pieces_) {
      const auto width = size_t{1} * static_cast<size_t>(piece.first + piece.count) *
                         static_cast<size_t>(shape.kv_heads * shape.head_dim);
      const auto seed = static_cast<uint32_t>(keys_.size());
      keys_.push_back(rounded(random_rows(static_cast<int64_t>(width), 200 + seed)));
      values_.push_back(rounded(random_rows(static_cast<int64_t>(width), 300 + seed)));
      rows_ += piece.count;
    }
    q_ = random_rows(rows_ * shape.heads * shape.head_dim, 100);
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  int64_t stride() const {
    int64_t most = 0;
    for (const Piece& piece : pieces_) most = std::max<int64_t>(most, piece.first + piece.count);
    return (most + kSplit - 1) / kSplit + 1;
  }
  uint16_t& key(size_t sequence, int position, int kv_head, int d) {
    return keys_[sequence][static_cast<size_t>((position * shape_.kv_heads + kv_head) * shape_.head_dim + d)];
  }
  uint16_t& value(size_t sequence, int position, int kv_head, int d) {
    return values_[sequence]
                  [static_cast<size_t>((position * shape_.kv_heads + kv_head) * shape_.head_dim + d)];
  }
  double number(uint16_t bits) const { return shape_.bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

  /// The sequences' pieces cut into calls of `chunk` rows of each sequence, all sequences in a call. `apart`:
  /// with room for splits apart.
  std::vector<float> run(int chunk, bool apart, uint32_t page_seed = 1) {
    std::vector<float> out(q_.size(), -1.0f);
    int longest = 0;
    for (const Piece& piece : pieces_) longest = std::max(longest, piece.count);
    for (int first = 0; first < longest; first += chunk) call(first, chunk, apart, page_seed, out);
    return out;
  }

  /// The largest |got - exact| / bound; infinity where a NaN is on one side.
  double worst(const std::vector<float>& got) const;

  const Machine& machine_;
  Heads shape_;
  std::vector<Piece> pieces_;
  int window_;
  float softcap_;
  int64_t rows_ = 0;
  std::vector<float> q_;
  std::vector<std::vector<uint16_t>> keys_, values_;  ///< [sequence][positions, kv_heads, head_dim]

 private:
  std::vector<uint16_t> rounded(const std::vector<float>& x) const {
    std::vector<uint16_t> bits(x.size());
    for (size_t i = 0; i < x.size(); ++i) bits[i] = shape_.bf16 ? f32_to_bf16(x[i]) : f32_to_f16(x[i]);
    return bits;
  }
  void call(int first, int chunk, bool apart, uint32_t page_seed, std::vector<float>& out);
  double judge(const float* q, const float* out, size_t sequence, int position, int kv_head) const;
};

/// Rows first .. first + chunk of each piece, with a cache made for the call: what its first row of a
/// sequence cannot see has no page, or is NaN in its page.
void Setting::call(int first, int chunk, bool apart, uint32_t page_seed, std::vector<float>& out) {
  const int hd = shape_.head_dim, width = shape_.heads * hd;
  const int64_t page = int64_t{shape_.kv_heads} * kSplit * hd, pages = stride();
  std::vector<int32_t> table(pieces_.size() * static_cast<size_t>(pages), -1), order(table.size());
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(page_seed);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<uint16_t> k(table.size() * static_cast<size_t>(page), 0xffff), v = k;
  std::vector<int32_t> positions, sequences;
  std::vector<float> q;
  std::vector<size_t> from;
  size_t row = 0;
  int longest = 0;
  for (size_t s = 0; s < pieces_.size(); ++s) {
    const Piece& piece = pieces_[s];
    const int begin = std::min(first, piece.count), end = std::min(first + chunk, piece.count);
    for (int r = begin; r < end; ++r) {
      positions.push_back(piece.first + r);
      sequences.push_back(static_cast<int32_t>(s));
      from.push_back((row + static_cast<size_t>(r)) * static_cast<size_t>(width));
      q.insert(q.end(), q_.begin() + static_cast<ptrdiff_t>(from.back()),
               q_.begin() + static_cast<ptrdiff_t>(from.back()) + width);
    }
    row += static_cast<size_t>(piece.count);
    if (begin == end) continue;
    longest = std::max(longest, piece.first + end);
    const int64_t seen = window_ == 0 ? 0 : std::max<int64_t>(0, piece.first + begin - window_ + 1);
    for (auto p = static_cast<int>(seen); p < piece.first + end; ++p) {
      int32_t& at = table[s * static_cast<size_t>(pages) + static_cast<size_t>(p / kSplit)];
      at = order[s * static_cast<size_t>(pages) + static_cast<size_t>(p / kSplit)];
      for (int h = 0; h < shape_.kv_heads; ++h)
        for (int d = 0; d < hd; ++d) {
          const auto to =
              static_cast<size_t>(((int64_t{at} * shape_.kv_heads + h) * kSplit + p % kSplit) * hd + d);
          k[to] = key(s, p, h, d);
          v[to] = value(s, p, h, d);
        }
    }
  }
  const auto rows = static_cast<int64_t>(positions.size());
  const Kernels& kernels = machine_.kernels();
  const int64_t tile_rows = kernels.attention_tile_rows(shape_.heads, shape_.kv_heads, hd, rows);
  std::vector<AttentionTile> tiles;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t s = sequences[static_cast<size_t>(r)], p = positions[static_cast<size_t>(r)];
    if (!tiles.empty() && tiles.back().sequence == s && tiles.back().count < tile_rows) {
      ++tiles.back().count;
    } else {
      tiles.push_back({static_cast<int32_t>(r), 1, s, p});
    }
  }
  int64_t splits = 1;  // rounded up, as the backend does
  while (splits * kSplit < longest) splits *= 2;
  const int64_t scratch = apart ? kernels.attention_scratch_floats(rows, shape_.heads, hd, splits) : 0;
  const Array<int32_t> on_positions(machine_, positions), on_sequences(machine_, sequences),
      on_table(machine_, table);
  const Array<uint16_t> on_k(machine_, k), on_v(machine_, v);
  const Array<float> on_q(machine_, q), on_out(machine_, rows * width, -1.0f),
      partial(machine_, scratch, NAN);
  const Array<AttentionTile> on_tiles(machine_, tiles);
  const Array<uint32_t> arrivals(machine_, std::vector<uint32_t>(kMostArrivals, 0));
  AttentionCall call{};
  call.batch = {rows, nullptr, on_positions.data(), on_sequences.data()};
  call.heads = shape_.heads;
  call.scale = scale();
  call.softcap = softcap_;
  call.window = static_cast<int>(window_);
  call.q = on_q.data();
  call.cache = {on_k.data(), on_v.data(), shape_.kv_heads, hd, shape_.bf16, on_table.data(), pages};
  call.out = on_out.data();
  call.tiles = on_tiles.data();
  call.tile_count = static_cast<int64_t>(tiles.size());
  call.tile_rows = tile_rows;
  call.splits = splits;
  call.partial = scratch > 0 ? partial.data() : nullptr;
  call.arrivals = arrivals.data();
  kernels.attention(machine_, call);
  for (const uint32_t count : arrivals.read()) ASSERT_EQ(count, 0u);
  const std::vector<float> got = on_out.read();
  for (size_t r = 0; r < from.size(); ++r)
    std::copy_n(got.begin() + static_cast<ptrdiff_t>(r) * width, width,
                out.begin() + static_cast<ptrdiff_t>(from[r]));
}

/// q as the kernels see it with an f16 cache: f16(q 2^e) 2^-e, e = 14 - floor(log2 max |q|), at most 126.
/// With a bf16 cache two bf16 of q 2^e: 2^-17 of it is lost.
std::vector<double> query_operand(const float* q, int head_dim, bool bf16) {
  std::vector<double> operand(q, q + head_dim);
  if (bf16) return operand;
  double largest = 0.0;
  for (const double v : operand) largest = std::max(largest, std::fabs(v));
  const int e = largest == 0.0 ? 0 : std::min(126, 14 - std::ilogb(largest));
  for (double& v : operand)
    v = std::ldexp(double{f16_to_f32(f32_to_f16(static_cast<float>(std::ldexp(v, e))))}, -e);
  return operand;
}

double Setting::judge(const float* q, const float* out, size_t sequence, int position, int kv_head) const {
  const int hd = shape_.head_dim;
  const int first = window_ == 0 ? 0 : static_cast<int>(std::max<int64_t>(0, position - window_ + 1));
  const auto at = [&](const std::vector<std::vector<uint16_t>>& of, int j, int d) {
    return number(of[sequence][static_cast<size_t>((j * shape_.kv_heads + kv_head) * hd + d)]);
  };
  const std::vector<double> operand = query_operand(q, hd, shape_.bf16);
  std::vector<double> p;
  double delta = 0.0;
  for (int j = first; j <= position; ++j) {
    double dot = 0.0, size = 0.0;
    for (int d = 0; d < hd; ++d) {
      dot += operand[static_cast<size_t>(d)] * at(keys_, j, d);
      size += std::fabs(operand[static_cast<size_t>(d)] * at(keys_, j, d));
    }
    double s = dot * scale(), error = gamma(score_roundings(hd, shape_.bf16), kU) * size * scale();
    if (shape_.bf16) error += 0x1p-17 * size * scale();
    if (softcap_ > 0.0f) {
      s = double{softcap_} * std::tanh(s / double{softcap_});
      error += 8 * kU * std::fabs(s);
    }
    p.push_back(s);
    delta = std::max(delta, error + 2 * kU * std::fabs(s));  // and the rounding of s - m
  }
  const double largest = *std::max_element(p.begin(), p.end());
  double sum = 0.0, worst = 0.0;
  for (double& value : p) sum += value = std::exp(value - largest);
  const double splits = position / kSplit - first / kSplit + 1;
  // p's operand is f16(p 2^15), relative 2^-11 and absolute 2^-40 of the split's own maximum; or two bf16.
  const double of_p = shape_.bf16 ? 0x1p-17 : 0x1p-11, of_small_p = shape_.bf16 ? 0x1p-126 : 0x1p-40;
  const double relative =
      std::expm1(2 * delta) + of_p + 4 * kExpUlps * kU +
      gamma(value_roundings(static_cast<int64_t>(p.size()), static_cast<int64_t>(splits), shape_.bf16), kU);
  for (int d = 0; d < hd; ++d) {
    double exact = 0.0, bound = 0.0;
    for (size_t j = 0; j < p.size(); ++j) {
      const double v = at(values_, first + static_cast<int>(j), d);
      exact += p[j] / sum * v;
      bound += p[j] / sum * std::fabs(v) * relative + of_small_p * std::fabs(v);
    }
    const double error = std::fabs(double{out[d]} - exact);
    if (!(error <= bound)) return std::isnan(error) ? INFINITY : error / bound;
    if (error > 0.0) worst = std::max(worst, error / bound);
  }
  return worst;
}

double Setting::worst(const std::vector<float>& got) const {
  double ratio = 0.0;
  int64_t r = 0;
  for (size_t s = 0; s < pieces_.size(); ++s)
    for (int i = 0; i < pieces_[s].count; ++i, ++r)
      for (int h = 0; h < shape_.heads; ++h) {
        const int64_t at = (r * shape_.heads + h) * shape_.head_dim;
        ratio = std::max(ratio, judge(q_.data() + at, got.data() + at, s, pieces_[s].first + i,
                                      h / (shape_.heads / shape_.kv_heads)));
      }
  return ratio;
}

std::string said(const Heads& shape) {
  return std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) + " heads of " +
         std::to_string(shape.head_dim) + (shape.bf16 ? ", bf16" : ", f16");
}

/// The kernel that has many rows of it.
std::string large_kernel(const Machine& machine, const Heads& shape) {
  const bool warpgroups =
      machine.warpgroups && !shape.bf16 && (shape.head_dim == 64 || shape.head_dim == 128);
  return warpgroups ? "attention.warpgroup" : "attention.large";
}

// One row, rows that end a split or begin one, a piece long enough for large blocks.
const std::vector<Piece> kPieces{{0, 66}, {126, 4}, {200, 1}, {63, 2}};
const std::vector<Heads> kShapes{{2, 2, 64},       {4, 1, 80},       {9, 3, 96},        {3, 1, 128},
                                 {2, 1, 256},      {2, 1, 20},       {1, 1, 2},         {2, 1, 202},
                                 {4, 1, 64, true}, {3, 3, 80, true}, {2, 1, 128, true}, {2, 1, 256, true}};

class GpuAttention : public testing::TestWithParam<std::string> {
 protected:
  Machine machine_{GetParam()};
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuAttention);
INSTANTIATE_TEST_SUITE_P(Device, GpuAttention, testing::ValuesIn(test::usable_gpus()), test::gpu_test_name);

TEST_P(GpuAttention, InsideItsBound) {
  for (const Heads& shape : kShapes)
    for (const bool apart : {false, true}) {
      Setting setting(machine_, shape, kPieces);
      std::vector<float> got = setting.run(1000, apart);
      EXPECT_LE(setting.worst(got), 1.0) << said(shape) << (apart ? ", splits apart" : "");
      for (float& v : got) v *= 1.02f;
      EXPECT_GT(setting.worst(got), 1.0);
      const auto ran = machine_.ran();
      EXPECT_EQ(ran.count("attention.splits"), apart ? 1u : 0u);
      EXPECT_EQ(ran.count(large_kernel(machine_, shape)), apart ? 0u : 1u);
    }
}

TEST_P(GpuAttention, WindowsAndSoftCapsInsideTheBound) {
  int turn = 0;
  for (const Heads& shape : {Heads{4, 2, 64}, Heads{2, 1, 20}, Heads{2, 1, 136}, Heads{2, 1, 64, true}})
    for (const int window : {1, 2, 63, 64, 65, 128}) {
      Setting setting(machine_, shape, {{0, 70}, {190, 5}, {127, 2}}, window, turn % 3 == 0 ? 0.0f : 3.0f);
      EXPECT_LE(setting.worst(setting.run(turn % 2 == 0 ? 1000 : 7, turn % 4 < 2)), 1.0)
          << said(shape) << " window " << window << " cap " << setting.softcap_;
      ++turn;
    }
}

/// Every chunking, with splits apart and not, gives the bits of rows alone.
void expect_same_bits(Setting& setting, const std::string& what) {
  const std::vector<float> expected = setting.run(1, true, 7);
  setting.machine_.ran();
  EXPECT_TRUE(same_bits(setting.run(1, false, 8), expected)) << what << ", rows alone";
  EXPECT_EQ(setting.machine_.ran().count("attention.small"), 1u);
  for (const int chunk : {7, 64, 200})
    for (const bool apart : {false, true})
      EXPECT_TRUE(same_bits(setting.run(chunk, apart, static_cast<uint32_t>(chunk)), expected))
          << what << ", chunks of " << chunk << (apart ? ", splits apart" : "");
  EXPECT_EQ(setting.machine_.ran().count(large_kernel(setting.machine_, setting.shape_)), 1u);
}

TEST_P(GpuAttention, SameBitsAloneAndTogether) {
  for (const Heads& shape :
       {Heads{2, 2, 64}, Heads{4, 1, 80}, Heads{9, 3, 96}, Heads{3, 1, 128}, Heads{2, 1, 256},
        Heads{2, 1, 20}, Heads{4, 1, 64, true}, Heads{2, 1, 136, true}}) {
    Setting setting(machine_, shape, {{0, shape.head_dim == 64 ? 200 : 70}, {190, 5}, {63, 2}});
    expect_same_bits(setting, said(shape));
  }
}

TEST_P(GpuAttention, SameBitsWithWindowsAndSoftCaps) {
  for (const int window : {1, 2, 63, 64, 65, 128}) {
    const bool bf16 = window == 63;
    Setting setting(machine_, {2, 1, bf16 ? 20 : 64, bf16}, {{0, 140}, {190, 5}}, window,
                    window % 2 == 0 ? 3.0f : 0.0f);
    expect_same_bits(setting, "window " + std::to_string(window));
  }
}

/// In K or V of one position, element 3 of kv head 0: rows that do not see it keep their bits; of those that
/// do, heads of kv head 0 show it.
TEST_P(GpuAttention, WhatARowDoesNotSeeReachesNoneOfItsBits) {
  constexpr int kAt = 70;
  for (const Heads& shape :
       {Heads{4, 2, 64}, Heads{2, 2, 128}, Heads{2, 2, 20}, Heads{2, 2, 144}, Heads{2, 2, 64, true}})
    for (const int64_t window : {0, 5, 65}) {
      Setting clean(machine_, shape, {{0, 150}, {65, 20}}, window);
      const std::vector<float> expected = clean.run(1000, false);
      for (const bool infinity : {false, true})
        for (const bool in_value : {false, true})
          for (const bool apart : {false, true}) {
            Setting setting = clean;
            for (size_t s = 0; s < 2; ++s) {
              uint16_t& at = in_value ? setting.value(s, kAt, 0, 3) : setting.key(s, kAt, 0, 3);
              at =
                  shape.bf16 ? f32_to_bf16(infinity ? INFINITY : NAN) : f32_to_f16(infinity ? INFINITY : NAN);
            }
            const std::vector<float> got = setting.run(1000, apart);
            size_t i = 0;
            for (const Piece& piece : setting.pieces_)
              for (int p = piece.first; p < piece.first + piece.count; ++p)
                for (int h = 0; h < shape.heads; ++h)
                  for (int d = 0; d < shape.head_dim; ++d, ++i) {
                    const bool sees = p >= kAt && (window == 0 || p - kAt < window) && h < shape.heads / 2 &&
                                      (!in_value || d == 3);
                    if (!sees) {
                      ASSERT_EQ(std::memcmp(&got[i], &expected[i], sizeof(float)), 0)
                          << said(shape) << " window " << window << " position " << p << " head " << h
                          << " d " << d << (in_value ? " V" : " K") << (apart ? " apart" : "") << got[i]
                          << " " << expected[i];
                    } else if (!infinity) {
                      ASSERT_TRUE(std::isnan(got[i])) << said(shape) << " position " << p;
                    } else if (in_value) {
                      ASSERT_FALSE(std::isfinite(got[i])) << said(shape) << " position " << p;
                    }
                  }
          }
    }
}

/// p is 0 for a key that a row does not see, and 0 times the largest V must not move where a sum is cut off:
/// a matrix unit that aligned its addends to such a product would lose bits of small ones.
TEST_P(GpuAttention, ZeroTimesALargeValueIsNothing) {
  for (const bool bf16 : {false, true})
    for (const int64_t window : {0, 20}) {
      Setting setting(machine_, {2, 1, 64, bf16}, {{0, 100}}, window);
      for (int p = 0; p < 100; ++p)
        for (int d = 0; d < 64; ++d) {
          const float x = static_cast<float>(setting.number(setting.value(0, p, 0, d)));
          const float v = p / 10 % 2 == 0 ? x * 0x1p-14f : std::copysign(60000.0f, x);
          setting.value(0, p, 0, d) = bf16 ? f32_to_bf16(v) : f32_to_f16(v);
        }
      const std::vector<float> alone = setting.run(1, true);
      for (const bool apart : {false, true})
        EXPECT_TRUE(same_bits(setting.run(1000, apart), alone))
            << "window " << window << (bf16 ? " bf16" : "");
    }
}

TEST_P(GpuAttention, ANanInAQueryIsInItsHeadAlone) {
  for (const float bad : {NAN, INFINITY})
    for (const bool apart : {false, true}) {
      Setting setting(machine_, {4, 2, 64}, {{0, 40}, {100, 3}});
      const std::vector<float> expected = setting.run(1000, apart);
      setting.q_[(30 * 4 + 1) * 64 + 5] = bad;
      const std::vector<float> got = setting.run(1000, apart);
      for (size_t i = 0; i < got.size(); ++i) {
        if (i / 64 == 30 * 4 + 1) {
          ASSERT_TRUE(std::isnan(got[i])) << i;
        } else {
          ASSERT_EQ(std::memcmp(&got[i], &expected[i], sizeof(float)), 0) << i;
        }
      }
    }
}

/// Queries of any size have the same relative precision, zeros give the mean of what they see.
TEST_P(GpuAttention, QueriesOfEverySize) {
  for (const float size : {0.0f, 1e-44f, 1e-30f, 1e-3f, 1e3f}) {
    Setting setting(machine_, {2, 1, 64}, {{60, 8}});
    for (float& v : setting.q_) v *= size;
    EXPECT_LE(setting.worst(setting.run(1000, false)), 1.0) << size;
  }
}

TEST_P(GpuAttention, ManySplitsMergeAlikeInBothWays) {
  // Of six heads some waves merge two rows, others one.
  for (const Heads& shape : {Heads{2, 1, 64}, Heads{6, 1, 64}, Heads{2, 1, 18}}) {
    Setting setting(machine_, shape, {{70 * kSplit, 1}, {3, 1}});  // past what the merging takes at a time
    const std::vector<float> apart = setting.run(1000, true);
    EXPECT_EQ(machine_.ran().count("attention.splits"), 1u);
    EXPECT_LE(setting.worst(apart), 1.0);
    EXPECT_TRUE(same_bits(setting.run(1000, false), apart));
  }
}

/// Few rows make blocks enough by their splits alone, however long the context; of many the room is bounded.
TEST_P(GpuAttention, ALongContextIsTakenApart) {
  const Kernels& kernels = machine_.kernels();
  for (int64_t splits = 2; splits <= 1 << 14; splits *= 2)
    for (const int64_t rows : {1, 8})  // 70B's
      EXPECT_EQ(kernels.attention_scratch_floats(rows, 64, 128, splits), rows * 64 * splits * 130);
  EXPECT_EQ(kernels.attention_scratch_floats(9, 64, 128, 1024), 0);
  EXPECT_EQ(kernels.attention_scratch_floats(1, 64, 128, 1), 0);
  const auto backend = make_backend(GetParam(), {});
  EXPECT_GT(backend->scratch_bytes({1, 8192, 64, 128, 131072, 1}), uint64_t{64} * 2048 * 130 * sizeof(float));
  // 170 rows of 3 heads are the most.
  EXPECT_GT(backend->scratch_bytes({512, 192, 3, 64, 1 << 20, 1}),
            uint64_t{510} * 16384 * 66 * sizeof(float));
}

// Rows that come with their own k and v, each a sequence of its own.

struct OwnCase {
  Heads shape;
  bool half;
  int dims;
  int window = 0;
  float softcap = 0.0f;
};

/// What a call has left: its output, and the pools of K and V.
struct Left {
  std::vector<float> out;
  std::vector<uint16_t> k, v;
};

/// The rows at `positions`, turned and attended to: by one kernel (`fused`), or by rope and then attention.
Left attend_own(const Machine& machine, const OwnCase& c, const std::vector<int32_t>& positions, bool fused,
                bool apart) {
  const auto rows = static_cast<int64_t>(positions.size());
  const int hd = c.shape.head_dim, last = *std::max_element(positions.begin(), positions.end());
  const int64_t pages = last / kSplit + 1, page = int64_t{c.shape.kv_heads} * kSplit * hd;
  std::vector<int32_t> table(static_cast<size_t>(rows * pages)), sequences(positions.size());
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(5));
  std::iota(sequences.begin(), sequences.end(), 0);
  std::vector<uint16_t> pool_k(table.size() * static_cast<size_t>(page), 0xffff), pool_v = pool_k;  // NaN
  const std::vector<float> old = random_rows(static_cast<int64_t>(pool_k.size()), 11);
  const auto bits = [&](float x) { return c.shape.bf16 ? f32_to_bf16(x) : f32_to_f16(x); };
  std::vector<AttentionTile> tiles;
  for (int32_t r = 0; r < rows; ++r) {
    const int32_t position = positions[static_cast<size_t>(r)];
    tiles.push_back({r, 1, r, position});
    for (int p = 0; p < position; ++p)
      for (int64_t h = 0; h < c.shape.kv_heads; ++h)
        for (int d = 0; d < hd; ++d) {
          const auto at = static_cast<size_t>(
              ((table[static_cast<size_t>(r * pages + p / kSplit)] * int64_t{c.shape.kv_heads} + h) * kSplit +
               p % kSplit) *
                  hd +
              d);
          pool_k[at] = bits(old[at]);
          pool_v[at] = bits(0.5f - old[at]);
        }
  }
  std::vector<double> inv_freq;
  for (int i = 0; i < c.dims / 2; ++i) inv_freq.push_back(std::pow(10000.0, -2.0 * i / c.dims));
  int64_t splits = 1;
  while (splits * kSplit <= last) splits *= 2;
  const Kernels& kernels = machine.kernels();
  const int64_t width = int64_t{c.shape.heads} * hd, kv_width = int64_t{c.shape.kv_heads} * hd;
  const int64_t scratch =
      apart ? kernels.attention_scratch_floats(rows, c.shape.heads, hd, splits) : int64_t{0};
  const Array<double> frequencies(machine, inv_freq);
  const Array<int32_t> on_positions(machine, positions), on_sequences(machine, sequences),
      on_table(machine, table);
  const Array<uint16_t> k(machine, pool_k), v(machine, pool_v);
  const Array<float> q(machine, random_rows(rows * width, 1)),
      new_k(machine, random_rows(rows * kv_width, 2)), new_v(machine, random_rows(rows * kv_width, 3)),
      turned(machine, rows * width, -1.0f), out(machine, rows * width, -1.0f), partial(machine, scratch, NAN);
  const Array<AttentionTile> on_tiles(machine, tiles);
  const Array<uint32_t> arrivals(machine, std::vector<uint32_t>(kMostArrivals, 0));
  const Rotation rotation{c.half, c.dims, frequencies.data(), 1.25};
  AttentionCall call{};
  call.batch = {rows, nullptr, on_positions.data(), on_sequences.data()};
  call.heads = c.shape.heads;
  call.scale = 1.0f / std::sqrt(static_cast<float>(hd));
  call.window = c.window;
  call.softcap = c.softcap;
  call.cache = {k.data(), v.data(), c.shape.kv_heads, hd, c.shape.bf16, on_table.data(), pages};
  call.out = out.data();
  call.tiles = on_tiles.data();
  call.tile_count = rows;
  call.tile_rows = kernels.attention_tile_rows(c.shape.heads, c.shape.kv_heads, hd, rows);
  call.splits = splits;
  call.partial = scratch > 0 ? partial.data() : nullptr;
  call.arrivals = arrivals.data();
  if (fused) {
    call.q = q.data();
    call.rotation = rotation;
    call.k = new_k.data();
    call.v = new_v.data();
  } else {
    call.q = turned.data();
    kernels.rope(machine, {call.batch, rotation, c.shape.heads, q.data(), new_k.data(), new_v.data(),
                           turned.data(), call.cache});
  }
  kernels.attention(machine, call);
  for (const uint32_t count : arrivals.read()) EXPECT_EQ(count, 0u);
  return {out.read(), k.read(), v.read()};
}

TEST_P(GpuAttention, RowsWithTheirOwnKeysHaveTheBitsOfRopeAndAttention) {
  EXPECT_FALSE(machine_.kernels().fuses_rope(2, 1, 10));  // a unit of two would turn with two units
  EXPECT_FALSE(machine_.kernels().fuses_rope(17, 1, 64));
  for (const OwnCase& c :
       {OwnCase{{2, 2, 64}, false, 64}, OwnCase{{4, 1, 80}, true, 80}, OwnCase{{4, 2, 128}, false, 128, 65},
        OwnCase{{2, 1, 256}, true, 64}, OwnCase{{3, 1, 20}, true, 12, 3}, OwnCase{{2, 1, 202}, false, 100},
        OwnCase{{4, 1, 64, true}, true, 64}, OwnCase{{2, 1, 256, true}, false, 256, 64},
        OwnCase{{16, 1, 64}, false, 0}, OwnCase{{2, 1, 64}, true, 12}, OwnCase{{8, 1, 64}, true, 32, 0, 3.0f},
        OwnCase{{12, 2, 128}, true, 32, 70}})
    for (const std::vector<int32_t>& positions : {std::vector<int32_t>{0}, std::vector<int32_t>{63, 64, 65},
                                                  std::vector<int32_t>{130, 1, 200, 191}}) {
      const Left expected = attend_own(machine_, c, positions, false, false);
      EXPECT_EQ(machine_.ran().count("rope"), 1u);
      ASSERT_TRUE(machine_.kernels().fuses_rope(c.shape.heads, c.shape.kv_heads, c.dims));
      for (const bool apart : {false, true}) {
        const Left got = attend_own(machine_, c, positions, true, apart);
        const auto ran = machine_.ran();
        EXPECT_EQ(ran.count("rope"), 0u);
        EXPECT_EQ(ran.count("attention.splits.rope"), apart && positions.back() >= kSplit ? 1u : 0u);
        EXPECT_TRUE(same_bits(got.out, expected.out)) << said(c.shape) << " apart " << apart;
        EXPECT_TRUE(same_bits(got.k, expected.k)) << said(c.shape) << " apart " << apart;
        EXPECT_TRUE(same_bits(got.v, expected.v)) << said(c.shape) << " apart " << apart;
        for (const float y : got.out) ASSERT_FALSE(std::isnan(y)) << said(c.shape);
      }
    }
}

}  // namespace
}  // namespace greta::gpu
