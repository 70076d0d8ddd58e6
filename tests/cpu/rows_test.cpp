// Norms, sums, embeddings, gathers and rotations.
#include <algorithm>

#include "cpu/support.h"

namespace greta {
namespace {

using namespace cpu_test;

constexpr double kU = 0x1p-24;

TEST(CpuRows, RmsnormInsideItsBoundAndAlikeOnEveryPath) {
  for (const int64_t n : {1, 7, 16, 20, 576, 2048, 5003}) {
    const int64_t rows = 40;
    const Source weight = random_weight(quant::Type::F32, 1, n, 4);
    const std::vector<float> w = dequantised(weight), x = random_rows(rows * n, 8);
    const float eps = 1e-5f;
    std::vector<float> first;
    for (const Isa isa : isas()) {
      for (const int threads : {1, 3}) {
        const auto device = backend(isa, threads);
        const auto resident = device->load(weight.source, WeightUse::vector);
        std::vector<float> in = x, out(x.size());
        device->rmsnorm({rows, {in.data(), n}, resident.get(), eps, {out.data(), n}});
        if (first.empty()) first = out;
        EXPECT_TRUE(same_bits(out, first)) << name_of(isa) << " " << n;
      }
    }
    // d roundings in the sum (a chain of n / 16, then 4), halved by the root; mean, eps, root, division, two
    // products.
    const double bound = (std::ceil(static_cast<double>(n) / 16) + 4 + 2) / 2 * kU + 4 * kU;
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i)
        sum += std::pow(static_cast<double>(x[static_cast<size_t>(r * n + i)]), 2);
      const double factor = 1.0 / std::sqrt(sum / static_cast<double>(n) + static_cast<double>(eps));
      for (int64_t i = 0; i < n; ++i) {
        const double exact = x[static_cast<size_t>(r * n + i)] * factor * w[static_cast<size_t>(i)];
        const double got = first[static_cast<size_t>(r * n + i)];
        EXPECT_TRUE(std::fabs(got - exact) <= bound * 1.01 * std::fabs(exact))
            << n << " " << got << " " << exact;
        if (exact != 0.0) {
          EXPECT_FALSE(std::fabs(got * 1.01 - exact) <= bound * 1.01 * std::fabs(exact));
        }
      }
    }
  }
}

TEST(CpuRows, RmsnormKeepsNanAndInfinityVisible) {
  const Source weight = random_weight(quant::Type::F32, 1, 20, 4);
  for (const Isa isa : isas()) {
    const auto device = backend(isa);
    const auto resident = device->load(weight.source, WeightUse::vector);
    std::vector<float> x = random_rows(40, 1), out(40);
    x[3] = NAN;
    x[23] = INFINITY;
    device->rmsnorm({2, {x.data(), 20}, resident.get(), 1e-5f, {out.data(), 20}});
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(std::isnan(out[static_cast<size_t>(i)]));
    EXPECT_TRUE(std::isnan(out[23]));
  }
}

TEST(CpuRows, AddInPlaceGatherAndEmbed) {
  for (const Isa isa : isas()) {
    const auto device = backend(isa, 2);
    const int64_t rows = 50, n = 417;
    std::vector<float> a = random_rows(rows * n, 1), b = random_rows(rows * n, 2), sum(a.size());
    for (size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
    device->add({rows, {a.data(), n}, {b.data(), n}, {a.data(), n}});
    EXPECT_TRUE(same_bits(a, sum));

    std::vector<float> picked(static_cast<size_t>(2 * n));
    const std::vector<int32_t> which{7, 49};
    device->gather({which, {a.data(), n}, {picked.data(), n}});
    EXPECT_EQ(std::memcmp(picked.data(), a.data() + 7 * n, static_cast<size_t>(n) * 4), 0);
    EXPECT_EQ(std::memcmp(picked.data() + n, a.data() + 49 * n, static_cast<size_t>(n) * 4), 0);

    for (const quant::Traits& t : quant::all_types()) {
      const Source table = random_weight(t.type, 11, 512, 5);
      const std::vector<float> values = dequantised(table);
      const auto weight = device->load(table.source, WeightUse::embedding);
      EXPECT_EQ(weight->resident_bytes, 0u);
      const std::vector<int32_t> tokens{10, 0, 3};
      BatchView batch;
      batch.rows = 3;
      batch.tokens = tokens.data();
      std::vector<float> out(3 * 512);
      device->embed({&batch, weight.get(), 1.5f, {out.data(), 512}});
      for (size_t r = 0; r < 3; ++r) {
        for (size_t i = 0; i < 512; ++i)
          ASSERT_EQ(out[r * 512 + i], values[static_cast<size_t>(tokens[r]) * 512 + i] * 1.5f) << t.name;
      }
      const std::vector<int32_t> wrong{11};
      batch.rows = 1;
      batch.tokens = wrong.data();
      EXPECT_ANY_THROW(device->embed({&batch, weight.get(), 1.0f, {out.data(), 512}}));
    }
  }
}

class CpuRope : public testing::TestWithParam<RopeStyle> {};
INSTANTIATE_TEST_SUITE_P(Style, CpuRope, testing::Values(RopeStyle::adjacent, RopeStyle::half),
                         [](const auto& type) {
                           return std::string(type.param == RopeStyle::adjacent ? "adjacent" : "half");
                         });

TEST_P(CpuRope, PairsTurnByTheirAngleAndTheRestStays) {
  for (const int dims : {64, 24}) {
    const int head_dim = 64, heads = 3, kv_heads = 1;
    RopeSpec spec;
    spec.style = GetParam();
    spec.dims = dims;
    spec.magnitude = 1.25;
    for (int i = 0; i < dims / 2; ++i) spec.inv_freq.push_back(std::pow(10000.0, -2.0 * i / dims));
    const std::vector<int32_t> positions{0, 1, 63, 64, 4095}, sequences(5, 0);
    const int64_t rows = 5;
    std::vector<int32_t> pages(64);
    for (int i = 0; i < 64; ++i) pages[static_cast<size_t>(i)] = i;
    BatchView batch;
    batch.rows = rows;
    batch.positions = positions.data();
    batch.sequences = sequences.data();
    std::vector<float> q = random_rows(rows * heads * head_dim, 1), k = random_rows(rows * head_dim, 2);
    std::vector<float> v = random_rows(rows * head_dim, 3), first;
    for (const Isa isa : isas()) {
      const auto device = backend(isa, 2, Activations::bits16, KvType::f32);
      const uint64_t page = device->kv_page_bytes(kv_heads, head_dim);
      const auto k_pool = device->allocate(64 * page), v_pool = device->allocate(64 * page);
      const KvLayer cache{k_pool->data(), v_pool->data(), kv_heads, head_dim, pages.data(), 64};
      std::vector<float> out(q.size());
      const auto turn = [&](const RopeSpec& by, const int32_t* at) {
        batch.positions = at;
        device->rope({&batch,
                      &by,
                      heads,
                      {q.data(), heads * head_dim},
                      {k.data(), head_dim},
                      {v.data(), head_dim},
                      {out.data(), heads * head_dim},
                      cache});
      };
      RopeSpec faster = spec, longer = spec;
      for (double& f : faster.inv_freq) f *= 2.0;
      longer.magnitude = 2.0;
      turn(spec, positions.data());
      const std::vector<float> fresh = out;
      for (const RopeSpec* other :
           {&faster, &longer, &spec}) {  // cosines and sines are kept from call to call
        const std::vector<int32_t> next{1, 2, 64, 65, 4000};
        turn(*other, other == &spec ? next.data() : positions.data());
        EXPECT_FALSE(same_bits(out, fresh)) << name_of(isa);
        turn(spec, positions.data());
        EXPECT_TRUE(same_bits(out, fresh)) << name_of(isa);
      }
      std::vector<double> stored(static_cast<size_t>(head_dim));
      for (int64_t r = 0; r < rows; ++r) {  // the cache's own keys and values behind q's rows
        device->read_kv(cache, KvPart::k, batch, r, stored.data());
        for (const double value : stored) out.push_back(static_cast<float>(value));
        device->read_kv(cache, KvPart::v, batch, r, stored.data());
        for (int d = 0; d < head_dim; ++d)
          ASSERT_EQ(static_cast<float>(stored[static_cast<size_t>(d)]),
                    v[static_cast<size_t>(r * head_dim + d)]);
      }
      if (first.empty()) first = out;
      EXPECT_TRUE(same_bits(out, first)) << name_of(isa);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int h = 0; h <= heads; ++h) {
        const float* x = h < heads ? q.data() + (r * heads + h) * head_dim : k.data() + r * head_dim;
        const float* y = h < heads ? first.data() + (r * heads + h) * head_dim
                                   : first.data() + rows * heads * head_dim + r * head_dim;
        for (int i = 0; i < dims / 2; ++i) {
          const int a = GetParam() == RopeStyle::adjacent ? 2 * i : i;
          const int b = GetParam() == RopeStyle::adjacent ? 2 * i + 1 : i + dims / 2;
          const double angle = positions[static_cast<size_t>(r)] * spec.inv_freq[static_cast<size_t>(i)];
          const double c = std::cos(angle) * spec.magnitude, s = std::sin(angle) * spec.magnitude;
          // half an ulp in cos and sin, one rounding of the product, one of the fma
          const double bound_a = 3 * kU * (std::fabs(x[a] * c) + std::fabs(x[b] * s));
          const double bound_b = 3 * kU * (std::fabs(x[b] * c) + std::fabs(x[a] * s));
          EXPECT_TRUE(std::fabs(y[a] - (x[a] * c - x[b] * s)) <= bound_a) << r << " " << h << " " << i;
          EXPECT_TRUE(std::fabs(y[b] - (x[b] * c + x[a] * s)) <= bound_b) << r << " " << h << " " << i;
        }
        for (int d = dims; d < head_dim; ++d) EXPECT_EQ(y[d], x[d]);
      }
    }
  }
}

}  // namespace
}  // namespace greta
