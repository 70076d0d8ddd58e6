#pragma once
// The file's own answer (numerics.md section 3): what a mode of a backend makes of a text, against FP64.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "support.h"

namespace greta {

using LogProbabilities = std::vector<double>;  ///< one row of logits, [vocab]

/// One row of logits as log-probabilities, FP64.
inline LogProbabilities log_softmax(const std::vector<double>& logits, double& log_sum) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const double x : logits) sum += std::exp(x - largest);
  log_sum = largest + std::log(sum);
  std::vector<double> out(logits.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = logits[i] - log_sum;
  return out;
}

/// Hands every row of logits, in FP64, to a visitor.
class LogitsTap : public Tap {
 public:
  using Visit = std::function<void(int64_t position, const std::vector<double>& logits)>;
  explicit LogitsTap(Visit visit) : visit_(std::move(visit)) {}
  void on_stage(int, Stage stage, const StageRows& rows) override {
    if (stage != Stage::logits) return;
    std::vector<double> row(static_cast<size_t>(rows.width));
    for (int64_t i = 0; i < rows.rows; ++i) {
      rows.read(i, row.data());
      visit_(rows.batch->positions[rows.batch_row(i)], row);
    }
  }

 private:
  Visit visit_;
};

/// Two taps on one run.
class BothTaps : public Tap {
 public:
  BothTaps(Tap& first, Tap& second) : first_(first), second_(second) {}
  void on_stage(int layer, Stage stage, const StageRows& rows) override {
    first_.on_stage(layer, stage, rows);
    second_.on_stage(layer, stage, rows);
  }

 private:
  Tap& first_;
  Tap& second_;
};

struct Answer {
  double mean_kl = 0.0;
  double largest_kl = 0.0;
  int changed = 0;
  double largest_gap = 0.0;  ///< true gap of a greedy token that changed
};

/// Every row's log-probabilities; `log_sums` gets each row's log-sum-exp, `beside` sees the same run.
inline std::vector<LogProbabilities> log_probabilities_of(Engine& engine, const std::vector<TokenId>& ids,
                                                          std::vector<double>& log_sums, Tap* beside) {
  std::vector<LogProbabilities> all(ids.size());
  log_sums.resize(ids.size());
  LogitsTap tap([&](int64_t position, const std::vector<double>& row) {
    const auto p = static_cast<size_t>(position);
    all[p] = log_softmax(row, log_sums[p]);
  });
  if (beside == nullptr) {
    engine.feed_all(0, ids, Feed::Logits::all, &tap);
  } else {
    BothTaps both(tap, *beside);
    engine.feed_all(0, ids, Feed::Logits::all, &both);
  }
  return all;
}

/// A run of the same ids against those.
inline Answer answer_of(const ModelFile& model, const EngineOptions& options, const std::vector<TokenId>& ids,
                        const std::vector<LogProbabilities>& truth) {
  Answer answer;
  size_t rows = 0;
  Engine engine(model, options);
  LogitsTap tap([&](int64_t position, const std::vector<double>& row) {
    double log_sum = 0.0;
    const auto got = log_softmax(row, log_sum);
    const auto& p = truth[static_cast<size_t>(position)];
    double kl = 0.0;
    for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - got[i]);
    answer.mean_kl += kl;
    if (!(kl <= answer.largest_kl)) answer.largest_kl = kl;
    const auto best = std::max_element(p.begin(), p.end()) - p.begin();
    const auto chosen = std::max_element(got.begin(), got.end()) - got.begin();
    if (best != chosen) {
      ++answer.changed;
      answer.largest_gap =
          std::max(answer.largest_gap, p[static_cast<size_t>(best)] - p[static_cast<size_t>(chosen)]);
    }
    ++rows;
  });
  engine.feed_all(0, ids, Feed::Logits::all, &tap);
  EXPECT_EQ(rows, ids.size());
  answer.mean_kl /= static_cast<double>(rows);
  return answer;
}

/// A mode of the cpu backend, and whether it must keep the budget of numerics.md section 3.
struct AnswerMode {
  const char* name;
  Activations activations;
  WeightMode weights;
  KvType kv;
  bool in_budget;
};

/// Runs the modes and prints a line for each. A mode outside the budget must cost something, or it is not the
/// mode that it says.
inline void expect_answers(const ModelFile& model, EngineOptions options, std::span<const AnswerMode> modes,
                           const std::vector<TokenId>& ids, const std::vector<LogProbabilities>& truth) {
  fmt::print("{:<40} {:>10} {:>10} {:>8} {:>10}\n",
             fmt::format("{} tokens of prose, cpu against FP64", ids.size()), "mean KL", "largest KL",
             "changed", "gap");
  for (const AnswerMode& mode : modes) {
    options.backend.activations = mode.activations;
    options.backend.weights = mode.weights;
    options.backend.kv_type = mode.kv;
    const Answer a = answer_of(model, options, ids, truth);
    fmt::print("{:<40} {:>10.1e} {:>10.1e} {:>8} {:>10.4f}\n", mode.name, a.mean_kl, a.largest_kl, a.changed,
               a.largest_gap);
    if (mode.in_budget) {
      EXPECT_TRUE(a.mean_kl <= 1e-5) << mode.name;
      EXPECT_TRUE(a.largest_gap <= 0.005) << mode.name;
    } else {
      EXPECT_TRUE(a.mean_kl > 1e-5) << mode.name << ": a mode that costs nothing is not the mode it says";
    }
  }
}

}  // namespace greta
