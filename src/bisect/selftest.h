#pragma once
// How often bisect is right: faults planted at places drawn before looking, and what it said of each
// (bisect.md, "What keeps it honest").
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bisect/bisect.h"

namespace greta {

struct SelfTestOptions {
  std::string model;
  std::string tokenizer;
  Subject subject;          ///< the device and modes under test
  int64_t plantings = 100;  ///< at least two of each fault that can be planted
  int64_t clean = -1;       ///< runs without a fault; -1: a quarter of the plantings
  uint64_t seed = 1;
  size_t trace_budget = size_t{512} << 20;
  int threads = 0;
  std::function<void()> after_call = {};
  std::function<void(int64_t done, int64_t all)> progress = {};
};

/// One planting and what came of it.
struct Planting {
  std::string id;
  FaultKind meant = FaultKind::none;
  Place place;  ///< the first row that it spoils past what rounding explains
  FaultKind said = FaultKind::none;
  std::optional<Place> found;
  double effect = 0.0;  ///< largest error over certain bound at the place (kernel faults)
  uint64_t seed = 0;
  double seconds = 0.0;
  bool detected() const { return said != FaultKind::none; }
  bool exact() const { return found && *found == place; }
  bool kind_right() const { return said == meant; }
};

struct SelfTestResult {
  std::vector<Planting> plantings;
  uint64_t below_bound = 0;  ///< drawn again: no bit changed, or inside the operator's certain bound
  uint64_t not_fired = 0;    ///< drawn again: a race that did not happen in the traced run
  std::map<std::string, std::string> not_planted;  ///< id: why this model or device cannot have it
  uint64_t clean = 0;
  std::vector<std::string> false_alarms;
  std::map<std::string, double> smallest_gain;  ///< "Q4_1, K = 576": smallest gain of one row past the bound
  double seconds = 0.0;

  uint64_t detected() const;
  uint64_t exact() const;
  uint64_t kind_right() const;
};

SelfTestResult self_test(const SelfTestOptions& options);
/// `{"self_test": {...}}` (cli.md).
nlohmann::ordered_json self_test_json(const SelfTestResult& result);
/// The table that `--self-test` prints.
std::string self_test_text(const SelfTestResult& result);

}  // namespace greta
