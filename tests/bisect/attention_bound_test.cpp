// The bound of attention's walk over pages: every such walk in FP32 is inside it, and a key that is missing
// among thousands is not.
#include <cmath>
#include <random>

#include "backend/cpu/rounding.h"
#include "units.h"

namespace greta {
namespace {

/// One head and what it sees, the first key at position `first`.
struct Head {
  int64_t first = 0;
  float scale = 1.0f, softcap = 0.0f;
  std::vector<double> q, keys, values;
  size_t width() const { return q.size(); }
  size_t count() const { return keys.size() / q.size(); }

  Judged judged(const Arithmetic& arithmetic) const {
    const auto n = static_cast<int64_t>(count());
    const int64_t splits = (first + n - 1) / kKvPage - first / kKvPage + 1;
    return judge_attention(q, keys, values, double{scale}, double{softcap},
                           arithmetic.score_roundings(static_cast<int64_t>(width())),
                           arithmetic.value_roundings(n, splits), arithmetic, first);
  }
  Head without(size_t key) const {
    Head less = *this;
    const auto at = static_cast<std::ptrdiff_t>(key * width()),
               end = at + static_cast<std::ptrdiff_t>(width());
    less.keys.erase(less.keys.begin() + at, less.keys.begin() + end);
    less.values.erase(less.values.begin() + at, less.values.begin() + end);
    return less;
  }
};

/// The cpu's walk (src/backend/cpu/attention.inl), one operation after another.
std::vector<double> walked(const Head& head) {
  const size_t width = head.width();
  float m = -std::numeric_limits<float>::infinity(), l = 0.0f;
  std::vector<float> o(width, 0.0f);
  for (size_t begin = 0; begin < head.count();) {
    const auto within = static_cast<size_t>((head.first + static_cast<int64_t>(begin)) % kKvPage);
    const size_t end = std::min(head.count(), begin + kKvPage - within);
    std::array<float, kKvPage> s{}, p{};
    float most = m;
    for (size_t j = begin; j < end; ++j) {
      float sum = 0.0f;
      for (size_t d = 0; d < width; ++d)
        sum = std::fma(static_cast<float>(head.q[d]), static_cast<float>(head.keys[j * width + d]), sum);
      sum *= head.scale;
      if (head.softcap > 0.0f) sum = head.softcap * std::tanh(sum / head.softcap);
      s[within + j - begin] = sum;
      most = std::max(most, sum);
    }
    const float c = std::exp(m - most);
    for (size_t j = within; j < within + end - begin; ++j) p[j] = std::exp(s[j] - most);
    for (float& element : o) element *= c;
    for (size_t j = begin; j < end; ++j)
      for (size_t d = 0; d < width; ++d)
        o[d] = std::fma(p[within + j - begin], static_cast<float>(head.values[j * width + d]), o[d]);
    std::array<float, 16> lanes;
    for (size_t i = 0; i < 16; ++i) lanes[i] = (p[i] + p[i + 16]) + (p[i + 32] + p[i + 48]);
    for (size_t half = 8; half > 0; half /= 2)
      for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    l = std::fma(l, c, lanes[0]);
    m = most;
    begin = end;
  }
  std::vector<double> out(width);
  for (size_t d = 0; d < width; ++d) out[d] = double{o[d] / l};
  return out;
}

class AttentionBound : public testing::Test {
 protected:
  /// Scores of about `spread`, values of mean `mean` and deviation 1.
  Head head(size_t count, int64_t first, double spread, double mean, float softcap = 0.0f) {
    constexpr size_t kWidth = 16;
    std::normal_distribution<double> normal;
    const auto draw = [&](double scale, double shift) {
      return double{static_cast<float>(shift + scale * normal(random_))};
    };
    Head head{first, 0.25f, softcap, {}, {}, {}};
    for (size_t d = 0; d < kWidth; ++d) head.q.push_back(draw(spread, 0.0));
    for (size_t i = 0; i < count * kWidth; ++i) {
      head.keys.push_back(draw(1.0, 0.0));
      head.values.push_back(draw(1.0, mean));
    }
    return head;
  }
  /// The largest error over bound.
  static double worst(const Judged& judged, const std::vector<double>& bound,
                      const std::vector<double>& got) {
    return worst_ratio({judged.value, bound}, got);
  }
  std::mt19937 random_{11};
  const cpu::CpuArithmetic cpu_{WeightMode::stored, Activations::bits16, KvType::f32};
};

TEST_F(AttentionBound, EveryWalkIsInsideIt) {
  double most_certain = 0.0, most_likely = 0.0;
  for (const size_t count : {1, 27, 64, 65, 200, 1500, 6000})
    for (const int64_t first : {0, 37})
      for (const double spread : {0.05, 1.0, 12.0})
        for (const double mean : {0.0, 5.0})
          for (const float softcap : {0.0f, 20.0f}) {
            SCOPED_TRACE(testing::Message() << count << " keys from " << first << ", spread " << spread
                                            << ", mean " << mean << ", cap " << softcap);
            const Head h = head(count, first, spread, mean, softcap);
            const Judged judged = h.judged(cpu_);
            ASSERT_EQ(judged.likely.size(), h.width());
            const auto got = walked(h);
            EXPECT_LE(worst(judged, judged.certain, got), 1.0);
            EXPECT_LE(worst(judged, judged.likely, got), 1.0);
            for (size_t d = 0; d < h.width(); ++d) EXPECT_LE(judged.likely[d], judged.certain[d]);
            most_certain = std::max(most_certain, worst(judged, judged.certain, got));
            most_likely = std::max(most_likely, worst(judged, judged.likely, got));
          }
  RecordProperty("certain", fmt::format("{:.3f}", most_certain));
  RecordProperty("likely", fmt::format("{:.3f}", most_likely));
  EXPECT_GT(most_certain, 0.02) << "the bound is far too wide";
}

// One key takes nearly all; thousands of others each add less than half a unit, which the sum never sees.
TEST_F(AttentionBound, ASumThatLosesItsLastAddendsIsInsideIt) {
  for (const double gap : {9.0, 12.0, 15.0, 17.0}) {
    Head h = head(6000, 0, 0.01, 5.0);
    std::ranges::fill(h.keys, 0.0);
    std::ranges::fill(h.q, 1.0);
    for (size_t d = 0; d < h.width(); ++d) h.keys[d] = gap / (0.25 * static_cast<double>(h.width()));
    const Judged judged = h.judged(cpu_);
    EXPECT_LE(worst(judged, judged.certain, walked(h)), 1.0) << gap;
    EXPECT_LE(worst(judged, judged.likely, walked(h)), 1.0) << gap;
  }
}

TEST_F(AttentionBound, AMissingKeyAmongThousandsIsOutside) {
  for (const size_t count : {100, 1000, 4000, 12288}) {
    const Head h = head(count, 37, 0.05, 0.0);
    const Judged judged = h.judged(cpu_);
    EXPECT_GT(worst(judged, judged.certain, walked(h.without(0))), 1.0) << count;
    EXPECT_GT(worst(judged, judged.certain, walked(h.without(count / 2))), 1.0) << count;
  }
}

/// The judge of whole runs computes that bound where an error comes near.
TEST(AttentionJudge, AMissingKeyAmongThousandsFailsAndLessIsSuspect) {
  constexpr int64_t kTokens = 16000;
  test::TemporaryFolder folder;
  SynthOptions synth;
  synth.dim = 32;
  synth.ffn_dim = 32;
  synth.layers = 1;
  synth.heads = 1;
  synth.vocab = 300;
  synth.context = kTokens;
  synth.type = quant::Type::F32;
  const std::string path = folder / "model.gguf";
  synthesise(synth, path, 2);
  const auto model = ModelFile::open(path);
  EngineOptions options;
  options.context = kTokens;
  options.all_logits = true;
  options.backend.kv_type = KvType::f32;
  test::RecordedUnits units(model, options, test::random_tokens(kTokens, 300, 5));
  const auto judged = [&](int64_t row) {
    Judge judge(units.plan(), units.arithmetic(), {}, 2);
    auto [piece, at] = units.find(0, Stage::attn_out, row);
    std::optional<Judgement> found;
    judge.judge(piece.data, piece.names, piece.history, [&, at = at](const Judgement& j) {
      if (j.stage == Stage::attn_out && j.row == at) found = j;
    });
    return found.value();
  };
  const int64_t row = kTokens - 1;
  const Judgement clean = judged(row);
  EXPECT_FALSE(clean.failed()) << clean.ratio;
  EXPECT_FALSE(clean.suspect());

  const auto seen_by = [&](int64_t position) {
    const HParams& hp = units.plan().hp;
    Head h{0, static_cast<float>(hp.attention_scale), 0.0f, units.row(0, Stage::q_post_rope, position), {},
           {}};
    const KvHistory& kv = units.find(0, Stage::attn_out, position).first.history.at(0);
    for (int64_t j = 0; j <= position; ++j)
      for (int64_t d = 0; d < hp.head_dim; ++d) {
        h.keys.push_back(kv.keys.at(j, d));
        h.values.push_back(kv.values.at(j, d));
      }
    return h;
  };
  const Judged less = seen_by(row).without(3000).judged(units.arithmetic());
  for (size_t d = 0; d < less.value.size(); ++d)
    units.set(0, Stage::attn_out, row, static_cast<int64_t>(d), less.value[d]);
  const Judgement wrong = judged(row);
  EXPECT_TRUE(wrong.failed()) << wrong.ratio << " of " << wrong.certain;

  // Between the likely bound and the certain one it is suspect.
  const Judged whole = seen_by(2000).judged(units.arithmetic());
  units.set(0, Stage::attn_out, 2000, 3, whole.value[3] + 0.95 * whole.certain[3]);
  const Judgement between = judged(2000);
  EXPECT_FALSE(between.failed()) << between.ratio;
  EXPECT_TRUE(between.suspect()) << between.likely << " of " << between.certain;
}

}  // namespace
}  // namespace greta
