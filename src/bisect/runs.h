#pragma once
// Runs whose every row is hashed, the schedules that they follow, and the exact comparison of two of them.
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "bisect/verdict.h"
#include "engine/engine.h"
#include "trace/trace.h"

namespace greta {

/// What one side of a comparison left, and how it really ran: by the backend's own word and by what the tap
/// saw, never by the options.
struct HashedRun {
  std::string device;  ///< the backend's description
  Backend::Route route;
  std::map<int64_t, uint64_t> calls;  ///< forward calls by their number of rows
  uint64_t shared_calls = 0;          ///< of these, with rows of several sequences
  std::map<HashTap::Key, uint64_t> hashes;
  std::map<Stage, int64_t> widths;
};

/// Hashes every row of every stage while `hashing`, and counts the calls always.
class RunTap : public Tap {
 public:
  bool hashing = true;
  void on_stage(int layer, Stage stage, const StageRows& rows) override;
  /// The run so far, with the engine's route.
  HashedRun take(Engine& engine);

 private:
  HashedRun run_;
  HashTap tap_;
};

/// Called after each forward call with the tokens fed and to be fed; may throw to stop.
using FedTokens = std::function<void(size_t done, size_t total)>;

/// `ids` as sequence 0 of a cleared engine: all but the last `steps` chunk by chunk, those one a call. Logits
/// of every row (EngineOptions::all_logits).
void feed_alone(Engine& engine, std::span<const TokenId> ids, size_t steps, Tap* tap,
                const FedTokens& fed = {});

/// All texts at once, sequence i the i-th: each call of the prefill shared out unevenly, then the last
/// `steps` tokens of each (fewer of shorter texts) together, one of each a call. The engine is cleared.
void feed_together(Engine& engine, std::span<const std::vector<TokenId>> texts, size_t steps, Tap* tap,
                   const FedTokens& fed = {});

/// feed_alone() with every row hashed.
HashedRun run_alone(Engine& engine, std::span<const TokenId> ids, size_t steps, const FedTokens& fed = {});
/// feed_together() with every row hashed.
HashedRun run_together(Engine& engine, std::span<const std::vector<TokenId>> texts, size_t steps,
                       const FedTokens& fed = {});

/// What was compared. A comparison that compared nothing is not one.
struct Compared {
  uint64_t values = 0;
  uint64_t rows = 0;    ///< (sequence, token, layer, stage)
  uint64_t tokens = 0;  ///< (sequence, token)
  uint64_t layers = 0;  ///< in which the rows lie, or through which they went
  uint64_t stages = 0;
  uint64_t runs = 0;
  bool nothing() const {
    return values == 0 || rows == 0 || tokens == 0 || layers == 0 || stages == 0 || runs < 2;
  }
};

/// Runs against one that is expected, row by row.
class BitComparison {
 public:
  explicit BitComparison(HashedRun expected) : expected_(std::move(expected)) { compared_.runs = 1; }

  /// Errors: the two runs did not leave the same rows.
  void add(const HashedRun& run);

  const HashedRun& expected() const { return expected_; }
  Compared compared() const;
  uint64_t differing_rows() const { return differing_; }
  /// The smallest place at which any run differed.
  const std::optional<Place>& first() const { return first_; }

 private:
  HashedRun expected_;
  Compared compared_;
  std::set<std::pair<int32_t, int32_t>> tokens_;
  std::set<int> layers_;
  std::set<Stage> stages_;
  uint64_t differing_ = 0;
  std::optional<Place> first_;
};

}  // namespace greta
