// Attention and the cache: against FP64 on the values as stored, within the bound of numerics.md section 5,
// and the same bits however rows are called together, pages placed, or paths and threads chosen.
#include <algorithm>
#include <numeric>

#include "cpu/support.h"

namespace greta {
namespace {

using namespace cpu_test;

constexpr double kU = 0x1p-24;
/// Of softcap, in units of the result (tests/cpu/router_test.cpp holds it to that).
constexpr double kCapUlps = 8.0;

struct Shape {
  int heads, kv_heads, head_dim;
};

/// A cache of one layer with every byte of its pool set (0xff is a NaN in every type), and rows of two
/// sequences.
class Setting {
 public:
  Setting(Shape shape, KvType kv, Isa isa, int threads, const std::vector<int>& lengths, uint32_t page_seed)
      : shape_(shape), device_(backend(isa, threads, Activations::bits16, kv)) {
    const auto sequences = static_cast<int64_t>(lengths.size());
    const int longest = *std::max_element(lengths.begin(), lengths.end());
    stride_ = (longest + kKvPage - 1) / kKvPage;
    pages_.resize(static_cast<size_t>(sequences * stride_));
    std::iota(pages_.begin(), pages_.end(), 0);
    std::mt19937 random(page_seed);
    if (page_seed != 0) std::shuffle(pages_.begin(), pages_.end(), random);
    const uint64_t page = device_->kv_page_bytes(shape.kv_heads, shape.head_dim);
    for (auto* pool : {&k_pool_, &v_pool_}) {
      *pool = device_->allocate(pages_.size() * page);
      std::memset((*pool)->data(), 0xff, (*pool)->bytes());
    }
    cache_ = {k_pool_->data(), v_pool_->data(), shape.kv_heads, shape.head_dim, pages_.data(), stride_};
    for (int s = 0; s < static_cast<int>(lengths.size()); ++s) {
      for (int p = 0; p < lengths[static_cast<size_t>(s)]; ++p) {
        sequences_.push_back(s);
        positions_.push_back(p);
      }
    }
    rows_ = static_cast<int64_t>(positions_.size());
    q_ = random_rows(rows_ * shape.heads * shape.head_dim, 101);
    k_ = random_rows(rows_ * shape.kv_heads * shape.head_dim, 102);
    v_ = random_rows(rows_ * shape.kv_heads * shape.head_dim, 103);
  }

  BatchView batch(int64_t first, int64_t count) const {
    BatchView b;
    b.rows = count;
    b.positions = positions_.data() + first;
    b.sequences = sequences_.data() + first;
    b.sequence_count = static_cast<int64_t>(pages_.size()) / stride_;
    return b;
  }

  /// Writes the cache and attends, `chunk` rows a call. With a window, keys and values that no row of the
  /// call sees are NaN by then.
  std::vector<float> run(int64_t chunk) {
    const RopeSpec none;
    const int64_t width = int64_t{shape_.heads} * shape_.head_dim,
                  kv_width = int64_t{shape_.kv_heads} * shape_.head_dim;
    std::vector<float> rotated(q_.size()), out(q_.size(), -1.0f);
    for (int64_t first = 0; first < rows_; first += chunk) {
      const BatchView b = batch(first, std::min(chunk, rows_ - first));
      RopeArgs rope{&b,
                    &none,
                    shape_.heads,
                    {q_.data() + first * width, width},
                    {k_.data() + first * kv_width, kv_width},
                    {v_.data() + first * kv_width, kv_width},
                    {rotated.data() + first * width, width},
                    cache_};
      device_->rope(rope);
      remember(first, b.rows);
      poison(first, b.rows);
      AttentionArgs args{&b,       shape_.heads,
                         scale(),  {rotated.data() + first * width, width},
                         cache_,   {out.data() + first * width, width},
                         softcap_, window_};
      device_->attention(args);
    }
    return out;
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  /// The largest |got - exact| / bound, of what run() left.
  double worst(const std::vector<float>& got) const {
    const int hd = shape_.head_dim;
    double ratio = 0.0;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t position = positions_[static_cast<size_t>(r)];
      const int64_t seen = window_ == 0 ? position + 1 : std::min(position + 1, window_);
      const int64_t first = r + 1 - seen;  // rows of a sequence are consecutive here
      for (int h = 0; h < shape_.heads; ++h) {
        const int64_t kv = h / (shape_.heads / shape_.kv_heads) * hd;
        const float* q = q_.data() + (r * shape_.heads + h) * hd;
        const float* out = got.data() + (r * shape_.heads + h) * hd;
        const double worst_here = judge(q, out, keys_, values_, first, r + 1, kv);
        if (!(worst_here <= 1.0)) return worst_here;
        ratio = std::max(ratio, worst_here);
      }
    }
    return ratio;
  }

  Shape shape_;
  std::unique_ptr<Backend> device_;
  std::vector<int32_t> positions_, sequences_, pages_;
  int64_t stride_ = 0, rows_ = 0;
  std::vector<float> q_, k_, v_;
  std::unique_ptr<Buffer> k_pool_, v_pool_;
  KvLayer cache_;
  int64_t window_ = 0;
  double softcap_ = 0.0;
  std::vector<std::vector<double>> keys_, values_;  ///< [rows], as the cache had them

 private:
  void remember(int64_t first, int64_t count) {
    keys_.resize(static_cast<size_t>(rows_));
    values_.resize(static_cast<size_t>(rows_));
    for (int64_t r = first; r < first + count; ++r)
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        auto& row = (part == KvPart::k ? keys_ : values_)[static_cast<size_t>(r)];
        row.resize(static_cast<size_t>(shape_.kv_heads * shape_.head_dim));
        device_->read_kv(cache_, part, batch(r, 1), 0, row.data());
      }
  }

  /// What lies before the window of a sequence's first row in the call.
  void poison(int64_t first, int64_t count) {
    if (window_ == 0) return;
    const std::vector<double> nan(static_cast<size_t>(shape_.kv_heads * shape_.head_dim), std::nan(""));
    for (int64_t r = first; r < first + count; ++r) {
      if (r > first && sequences_[static_cast<size_t>(r)] == sequences_[static_cast<size_t>(r - 1)]) continue;
      const int64_t start = r - positions_[static_cast<size_t>(r)];
      for (int64_t before = start; before <= r - window_; ++before)
        for (const KvPart part : {KvPart::k, KvPart::v})
          device_->write_kv(cache_, part, batch(before, 1), 0, nan.data());
    }
  }

  double judge(const float* q, const float* out, const std::vector<std::vector<double>>& keys,
               const std::vector<std::vector<double>>& values, int64_t first, int64_t end, int64_t kv) const {
    const int hd = shape_.head_dim;
    const auto gamma = [](double d) { return d * kU / (1.0 - d * kU); };
    std::vector<double> s;
    double delta = 0.0;
    for (int64_t j = first; j < end; ++j) {
      double dot = 0.0, size = 0.0;
      for (int d = 0; d < hd; ++d) {
        const double term =
            static_cast<double>(q[d]) * keys[static_cast<size_t>(j)][static_cast<size_t>(kv + d)];
        dot += term;
        size += std::fabs(term);
      }
      s.push_back(scale() * dot);
      double error = gamma(hd) * scale() * size + kU * std::fabs(s.back());
      if (softcap_ > 0.0) {  // |cap tanh(s / cap)|' <= 1: the score's error, and the cap's own
        s.back() = softcap_ * std::tanh(s.back() / softcap_);
        error += kCapUlps * kU * std::fabs(s.back());
      }
      delta = std::max(delta, error);
    }
    const double most = *std::max_element(s.begin(), s.end());
    const double range = most - *std::min_element(s.begin(), s.end());
    const auto count = static_cast<double>(s.size());
    const double pages = std::ceil(count / kKvPage);
    // Of numerator and denominator each: the scores' errors; exp's (2 ulps) for p and for every rescaling;
    // the rounding of the exponents, which add up to no more than twice the range; the chain over keys and
    // pages.
    const double relative = 2.0 * (std::expm1(2.0 * delta) + 2.0 * kU * (pages + 1) + 2.0 * kU * range +
                                   gamma(count + pages + 8));
    double total = 0.0, ratio = 0.0;
    for (double& value : s) total += value = std::exp(value - most);
    for (int d = 0; d < hd; ++d) {
      double sum = 0.0, size = 0.0;
      for (size_t j = 0; j < s.size(); ++j) {
        const double term =
            s[j] / total * values[static_cast<size_t>(first) + j][static_cast<size_t>(kv + d)];
        sum += term;
        size += std::fabs(term);
      }
      const double error = std::fabs(static_cast<double>(out[d]) - sum);
      if (!(error <= relative * size)) return error / (relative * size);
      ratio = std::max(ratio, error / (relative * size));
    }
    return ratio;
  }
};

const std::vector<Shape> kShapes{{8, 1, 64}, {4, 4, 20}, {6, 2, 80}, {9, 3, 96}, {3, 3, 7}, {16, 2, 128}};
const std::vector<int> kLengths{200, 70};

class CpuAttention : public testing::TestWithParam<KvType> {};
INSTANTIATE_TEST_SUITE_P(
    Cache, CpuAttention, testing::Values(KvType::f16, KvType::bf16, KvType::f32), [](const auto& kv) {
      return std::string(kv.param == KvType::f16 ? "f16" : kv.param == KvType::f32 ? "f32" : "bf16");
    });

TEST_P(CpuAttention, InsideItsBoundWithGarbageInTheRestOfTheCache) {
  for (const Shape& shape : kShapes) {
    Setting setting(shape, GetParam(), isas().back(), 2, kLengths, 0);
    std::vector<float> got = setting.run(512);
    EXPECT_LE(setting.worst(got), 1.0) << shape.heads << " " << shape.head_dim;
    for (float& v : got) v *= 1.01f;
    EXPECT_GT(setting.worst(got), 1.0);
  }
}

TEST_P(CpuAttention, SameBitsForEveryChunkPagePlacementThreadsAndPath) {
  for (const Shape& shape : kShapes) {
    const std::vector<float> expected = Setting(shape, GetParam(), Isa::portable, 1, kLengths, 0).run(1);
    for (const Isa isa : isas()) {
      for (const int64_t chunk : {1, 7, 64, 512}) {
        for (const int threads : {1, 3}) {
          if (isa == Isa::portable && (chunk != 64 || threads != 3))
            continue;  // slow, and the reference here
          Setting setting(shape, GetParam(), isa, threads, kLengths, static_cast<uint32_t>(chunk));
          EXPECT_TRUE(same_bits(setting.run(chunk), expected))
              << name_of(isa) << " chunk " << chunk << " threads " << threads << " head_dim "
              << shape.head_dim;
        }
      }
    }
  }
}

TEST_P(CpuAttention, ANanInWhatIsReadIsInWhatIsWritten) {
  const Shape shape{4, 2, 20};
  for (const Isa isa : isas()) {
    for (int what = 0; what < 3; ++what) {
      Setting setting(shape, GetParam(), isa, 1, {100}, 0);
      const int row = 66;  // its key and value are seen by the rows from 66 on
      auto& x = what == 0 ? setting.q_ : what == 1 ? setting.k_ : setting.v_;
      const int width = what == 0 ? 4 * 20 : 2 * 20;
      x[static_cast<size_t>(row * width + 3)] = std::nanf("");  // head 0, or kv head 0: heads 0 and 1
      const std::vector<float> got = setting.run(512);
      for (int r = 0; r < 100; ++r) {
        for (int h = 0; h < 4; ++h) {
          for (int d = 0; d < 20; ++d) {
            const bool expected = what == 0 ? r == row && h == 0 : r >= row && h < 2 && (what == 1 || d == 3);
            ASSERT_EQ(std::isnan(got[static_cast<size_t>((r * 4 + h) * 20 + d)]), expected)
                << name_of(isa) << " what " << what << " row " << r << " head " << h << " d " << d;
          }
        }
      }
    }
  }
}

const std::vector<int64_t> kWindows{1, 63, 64, 65, 100, 200};

TEST_P(CpuAttention, WindowsAndSoftCapsInsideTheBoundOnEveryPath) {
  for (const Shape& shape : {Shape{8, 1, 32}, Shape{4, 4, 20}, Shape{3, 3, 7}}) {
    for (const Isa isa : isas()) {
      for (size_t i = 0; i < kWindows.size(); ++i) {
        Setting setting(shape, GetParam(), isa, 2, kLengths, 3);
        setting.window_ = kWindows[i];
        setting.softcap_ = i % 2 == 0 ? 3.0 : 0.0;
        std::vector<float> got = setting.run(i % 3 == 0 ? 7 : 33);
        EXPECT_LE(setting.worst(got), 1.0)
            << name_of(isa) << " window " << setting.window_ << " head_dim " << shape.head_dim;
        for (float& v : got) v *= 1.01f;
        if (i == 0) EXPECT_GT(setting.worst(got), 1.0);
      }
    }
  }
}

TEST_P(CpuAttention, WindowsAndSoftCapsGiveTheSameBitsHoweverCalled) {
  for (const Shape& shape : {Shape{6, 2, 40}, Shape{3, 3, 7}}) {
    for (const int64_t window : kWindows) {
      if (shape.heads == 6 && window != 65 && window != 100) continue;
      const auto run = [&](Isa isa, int threads, int64_t chunk) {
        Setting setting(shape, GetParam(), isa, threads, kLengths, static_cast<uint32_t>(chunk));
        setting.window_ = window;
        setting.softcap_ = 3.0;
        return setting.run(chunk);
      };
      const std::vector<float> expected = run(Isa::portable, 1, 1);
      for (const Isa isa : isas())
        for (const int64_t chunk : {1, 7, 64, 512})
          if (isa != Isa::portable || chunk == 64)
            EXPECT_TRUE(same_bits(run(isa, chunk == 7 ? 1 : 3, chunk), expected))
                << name_of(isa) << " chunk " << chunk << " window " << window << " head_dim "
                << shape.head_dim;
    }
  }
}

TEST_P(CpuAttention, ANanIsSeenByTheRowsOfItsWindowAlone) {
  const Shape shape{4, 2, 20};
  for (const Isa isa : isas())
    for (const int64_t window : {1, 5, 64, 65})
      for (const double softcap : {0.0, 3.0})
        for (int what = 1; what < 3; ++what) {
          Setting setting(shape, GetParam(), isa, 1, {200}, 0);
          setting.window_ = window;
          setting.softcap_ = softcap;
          const int row = 66;
          auto& x = what == 1 ? setting.k_ : setting.v_;
          x[static_cast<size_t>(row * 2 * 20 + 3)] = std::nanf("");  // kv head 0: heads 0 and 1
          const std::vector<float> got = setting.run(512);
          for (int r = 0; r < 200; ++r)
            for (int h = 0; h < 4; ++h)
              for (int d = 0; d < 20; ++d) {
                const bool expected = r >= row && r - row < window && h < 2 && (what == 1 || d == 3);
                ASSERT_EQ(std::isnan(got[static_cast<size_t>((r * 4 + h) * 20 + d)]), expected)
                    << name_of(isa) << " window " << window << " what " << what << " row " << r << " head "
                    << h;
              }
        }
}

TEST_P(CpuAttention, TheCacheHoldsNearestValues) {
  const Shape shape{2, 2, 36};
  for (const Isa isa : isas()) {
    Setting setting(shape, GetParam(), isa, 1, {130}, 5);
    setting.run(512);
    for (int64_t r = 0; r < setting.rows_; ++r) {
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        std::vector<double> stored(72);
        const BatchView b = setting.batch(r, 1);
        setting.device_->read_kv(setting.cache_, part, b, 0, stored.data());
        const float* x = (part == KvPart::k ? setting.k_ : setting.v_).data() + r * 72;
        for (int i = 0; i < 72; ++i) {
          const float expected = GetParam() == KvType::f32   ? x[i]
                                 : GetParam() == KvType::f16 ? f16_to_f32(f32_to_f16(x[i]))
                                                             : bf16_to_f32(f32_to_bf16(x[i]));
          ASSERT_EQ(stored[static_cast<size_t>(i)], static_cast<double>(expected)) << name_of(isa);
        }
      }
    }
  }
}

}  // namespace
}  // namespace greta
