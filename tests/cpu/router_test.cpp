// Soft caps, the choice of experts and their combination, on every path of the CPU and on the reference,
// against plain FP64 loops within derived bounds.
#include <algorithm>
#include <functional>
#include <numeric>

#include "cpu/support.h"

namespace greta {
namespace {

using Numbers = std::vector<double>;

/// A device with its unit of rounding.
struct Device {
  std::string name;
  std::unique_ptr<Backend> backend;
  double u;
};

std::vector<Device> devices() {
  std::vector<Device> all;
  for (const Isa isa : cpu_test::isas())
    all.push_back({std::string(name_of(isa)), cpu_test::backend(isa, 2), 0x1p-24});
  all.push_back({"reference", make_backend("reference", {}), 0x1p-53});
  return all;
}

/// Rows in a device's memory.
class Rows {
 public:
  Rows(Backend& backend, int64_t rows, int64_t width)
      : backend_(&backend),
        rows_(rows),
        buffer_(backend.allocate(static_cast<size_t>(rows * width) * backend.element_bytes())),
        view{buffer_->data(), width} {}
  Rows(Backend& backend, int64_t rows, const Numbers& values)
      : Rows(backend, rows, static_cast<int64_t>(values.size()) / rows) {
    backend.write(view, 0, rows, values.data());
  }
  Numbers read() const {
    Numbers values(static_cast<size_t>(rows_ * view.width));
    backend_->read(view, 0, rows_, values.data());
    return values;
  }

 private:
  Backend* backend_;
  int64_t rows_;
  std::unique_ptr<Buffer> buffer_;

 public:
  View view;
};

/// FP32 numbers, so that every device gets the same.
Numbers random_numbers(int64_t count, uint32_t seed, float size = 1.0f) {
  const auto floats = cpu_test::random_rows(count, seed, size);
  return {floats.begin(), floats.end()};
}

::testing::AssertionResult near(double got, double exact, double bound) {
  if (std::isnan(exact) ? std::isnan(got) : std::fabs(got - exact) <= bound)
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << got << ", exact " << exact << ", bound " << bound;
}

// ---- soft cap

/// y = x / cap, e^2y - 1, its quotient and the product: one rounding each but for the exponential's two
/// units; the error of y grows by y (1 - tanh^2 y) / tanh y <= 1. Eight in all. A
/// quotient below the normal range is rounded absolutely, and cap times that.
TEST(Softcap, WithinEightUnitsOfItsValue) {
  Numbers x = {0.0,  -0.0,  1e-40, -1e-30, 1e-5,  0.3,      29.9,
               30.0, -30.0, 480.0, 1e4,    -3e38, INFINITY, -INFINITY};
  for (const double v : random_numbers(5000, 3, 20.0f)) x.push_back(v);
  for (const double v : random_numbers(1000, 4, 0.01f)) x.push_back(v);
  const auto width = static_cast<int64_t>(x.size());
  Numbers first;
  for (const Device& d : devices()) {
    double worst = 0.0;
    for (const double cap : {8.0, 30.0, 50.0}) {
      Rows in(*d.backend, 1, x), out(*d.backend, 1, width);
      d.backend->softcap({1, in.view, cap, out.view});
      const Numbers got = out.read();
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = cap * std::tanh(x[i] / cap);
        EXPECT_TRUE(near(got[i], exact, 8 * d.u * std::fabs(exact) + (cap + 1) * 0x1p-149))
            << d.name << " " << x[i];
        if (std::fabs(exact) > 1e-30)
          worst = std::max(worst, std::fabs(got[i] - exact) / std::fabs(exact) / d.u);
        EXPECT_EQ(std::signbit(got[i]), std::signbit(x[i]));
        EXPECT_LE(std::fabs(got[i]), cap);
      }
      RecordProperty(d.name, std::to_string(worst));
      d.backend->softcap({1, in.view, cap, in.view});  // in place
      EXPECT_EQ(in.read(), got);
      if (cap == 8.0 && d.u > 1e-10) {
        if (first.empty()) first = got;
        EXPECT_EQ(got, first) << d.name;
      }
    }
    Rows in(*d.backend, 1, Numbers{1.0, NAN, 2.0});
    d.backend->softcap({1, in.view, 5.0, in.view});
    EXPECT_TRUE(std::isnan(in.read()[1]));
    EXPECT_FALSE(std::isnan(in.read()[0]) || std::isnan(in.read()[2]));
  }
}

// ---- choice

struct Choice {
  Numbers experts, weights;
};
Choice choose(Backend& backend, const Numbers& logits, int64_t rows, int64_t used, bool normalised,
              double scale) {
  Rows in(backend, rows, logits), experts(backend, rows, used), weights(backend, rows, used);
  backend.choose_experts({rows, in.view, normalised, scale, experts.view, weights.view});
  return {experts.read(), weights.read()};
}

/// The `used` largest by counting, for each, how many come before it: a NaN before numbers, the lower index
/// before its equals.
std::vector<size_t> naive_choice(std::span<const double> row, size_t used) {
  const auto before = [&](size_t a, size_t b) {
    if (std::isnan(row[a]) != std::isnan(row[b])) return std::isnan(row[a]);
    const bool alike = std::isnan(row[a]) || row[a] == row[b];
    return alike ? a < b : row[a] > row[b];
  };
  std::vector<size_t> chosen;
  for (size_t e = 0; e < row.size(); ++e) {
    size_t ahead = 0;
    for (size_t other = 0; other < row.size(); ++other) ahead += other != e && before(other, e) ? 1 : 0;
    if (ahead < used) chosen.push_back(e);
  }
  return chosen;
}

void expect_choice(const Device& d, const Numbers& logits, int64_t rows, int64_t used, bool normalised,
                   double scale) {
  const auto got = choose(*d.backend, logits, rows, used, normalised, scale);
  const size_t width = logits.size() / static_cast<size_t>(rows);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    const auto row = std::span(logits).subspan(r * width, width);
    const auto chosen = naive_choice(row, static_cast<size_t>(used));
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0.0, furthest = 0.0;
    for (size_t e = 0; e < width; ++e) {
      if (normalised && std::find(chosen.begin(), chosen.end(), e) == chosen.end()) continue;
      sum += std::exp(row[e] - largest);
      // What underflows to zero in FP32 adds nothing to the sum's error.
      if (largest - row[e] < 90.0) furthest = std::max(furthest, largest - row[e]);
    }
    // e^x: its own two units and the rounding of x = l - max; a sum of at most `width`; quotient and product.
    const double relative = d.u * (2 * (furthest + 3) + static_cast<double>(width) + 3);
    for (size_t s = 0; s < chosen.size(); ++s) {
      const size_t at = r * static_cast<size_t>(used) + s;
      ASSERT_EQ(got.experts[at], static_cast<double>(chosen[s])) << d.name << " row " << r << " slot " << s;
      const double exact = std::exp(row[chosen[s]] - largest) / sum * scale;
      EXPECT_TRUE(near(got.weights[at], exact, relative * exact + 0x1p-126)) << d.name << " row " << r;
    }
  }
}

TEST(ChooseExperts, LargestOfEachRowInAscendingIndexWithTheirWeights) {
  for (const Device& d : devices())
    for (const int64_t experts : {1, 2, 8, 17, 64})
      for (const int64_t used : {int64_t{1}, int64_t{2}, experts - 1, experts})
        for (const bool normalised : {true, false})
          if (used >= 1 && used <= experts)
            expect_choice(d, random_numbers(30 * experts, 5), 30, used, normalised, normalised ? 1.0 : 2.5);
}

TEST(ChooseExperts, TiesGoToTheLowerIndex) {
  const Numbers logits = {1,  3,    3,   3,  0,  3,  //
                          0,  0,    0,   0,  0,  0,  //
                          5,  -0.0, 0.0, 5,  4,  4,  //
                          -2, -1,   -1,  -2, -1, -3};
  for (const Device& d : devices())
    for (int64_t used = 1; used <= 6; ++used)
      for (const bool normalised : {true, false}) expect_choice(d, logits, 4, used, normalised, 1.0);
  for (const Device& d : devices())
    EXPECT_EQ(choose(*d.backend, logits, 4, 2, true, 1.0).experts, (Numbers{1, 2, 0, 1, 0, 3, 1, 2}));
}

TEST(ChooseExperts, ANanIsChosenAndShows) {
  const Numbers logits = {1, 2, NAN, 4, NAN, -INFINITY};
  for (const Device& d : devices()) {
    for (const bool normalised : {true, false}) {
      const auto one = choose(*d.backend, logits, 1, 1, normalised, 1.0);
      EXPECT_EQ(one.experts, Numbers{2}) << d.name;
      const auto three = choose(*d.backend, logits, 1, 3, normalised, 1.0);
      EXPECT_EQ(three.experts, (Numbers{2, 3, 4})) << d.name;
      for (const double w : three.weights) EXPECT_TRUE(std::isnan(w)) << d.name;
    }
    const auto far = choose(*d.backend, {-INFINITY, 1, 1, -200}, 1, 4, true, 1.0);
    EXPECT_EQ(far.experts, (Numbers{0, 1, 2, 3})) << d.name;
    EXPECT_EQ(far.weights[0], 0.0);
    EXPECT_TRUE(near(far.weights[1], 0.5, 2 * d.u));
  }
}

TEST(ChooseExperts, TheSameBitsOnEveryPathAndWithAnyNeighbours) {
  const Numbers logits = random_numbers(40 * 17, 9);
  Choice first;
  for (const Device& d : devices()) {
    if (d.u < 1e-10) continue;
    const Choice all = choose(*d.backend, logits, 40, 5, true, 1.0);
    if (first.experts.empty()) first = all;
    EXPECT_EQ(all.experts, first.experts) << d.name;
    EXPECT_EQ(all.weights, first.weights) << d.name;
    for (int64_t r = 0; r < 40; ++r) {
      const Choice alone =
          choose(*d.backend, {logits.begin() + r * 17, logits.begin() + (r + 1) * 17}, 1, 5, true, 1.0);
      EXPECT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(), all.weights.begin() + r * 5)) << r;
    }
  }
}

// ---- combination

TEST(Combine, WithinItsBoundInAscendingOrder) {
  constexpr int64_t kRows = 9;
  for (const int64_t width : {1, 15, 16, 40, 257})
    for (const int64_t used : {1, 2, 8}) {
      const Numbers x = random_numbers(kRows * used * width, 11);
      const Numbers w = random_numbers(kRows * used, 12);
      Numbers first;
      for (const Device& d : devices()) {
        Rows in(*d.backend, kRows, x), weights(*d.backend, kRows, w), out(*d.backend, kRows, width);
        d.backend->combine({kRows, in.view, weights.view, out.view});
        const Numbers got = out.read();
        for (int64_t r = 0; r < kRows; ++r)
          for (int64_t i = 0; i < width; ++i) {
            double sum = 0.0, size = 0.0;
            for (int64_t s = 0; s < used; ++s) {
              const double term =
                  w[static_cast<size_t>(r * used + s)] * x[static_cast<size_t>((r * used + s) * width + i)];
              sum += term;
              size += std::fabs(term);
            }
            // A product passes through its own rounding and those of the sums after it: `used` at most.
            const double bound = static_cast<double>(used + 1) * d.u * size;
            const double value = got[static_cast<size_t>(r * width + i)];
            ASSERT_TRUE(near(value, sum, bound)) << d.name << " used " << used << " width " << width;
            ASSERT_FALSE(near(value + 0.01 * size, sum, bound));
          }
        if (d.u < 1e-10) continue;
        if (first.empty()) first = got;
        EXPECT_EQ(got, first) << d.name;
      }
    }
}

TEST(Combine, ANanOfASlotIsInItsElementAlone) {
  for (const Device& d : devices()) {
    Numbers x = random_numbers(2 * 3 * 20, 13);
    x[3 * 20 + 20 + 7] = NAN;  // row 1, slot 1, element 7
    Rows in(*d.backend, 2, x), weights(*d.backend, 2, random_numbers(6, 14)), out(*d.backend, 2, 20);
    d.backend->combine({2, in.view, weights.view, out.view});
    const Numbers got = out.read();
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i == 27) << d.name << " " << i;
  }
}

}  // namespace
}  // namespace greta
