#pragma once
// The guard rail: what a file needs, against what it holds and what the device can do, before anything is
// allocated.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/model.h"

namespace greta {

/// One thing that does not fit. `where` is a metadata key, a tensor (or a range of tensors), or an option.
struct Problem {
  std::string where;
  std::string expected;
  std::string got;
  std::string remedy;  ///< what to do; may be empty where `expected` says it

  std::string text() const;  ///< one line: "where: expected ..., got ... (remedy)"
};

struct PlannedTensor {
  Role role = Role::embedding;
  int64_t layer = -1;  ///< -1: once a model
  WeightUse use = WeightUse::matmul;
  const gguf::Tensor* tensor = nullptr;
  int64_t first_row = 0;  ///< of the tensor's rows: several roles may lie in one tensor
  int64_t rows = 0;       ///< of all experts together; 1 for a vector
};

/// What the run will need.
struct PlanRequest {
  std::optional<int64_t> context;  ///< what was asked for (EngineOptions::context); default: the model's
  std::optional<int64_t> room;     ///< positions a sequence may reach; default: the context
  int64_t sequences = 1;
  int64_t chunk = 512;                     ///< most rows in one call
  int64_t max_logits = 1;                  ///< most rows of logits in one call (Workspace)
  std::string expect;                      ///< "dim=4096,layers=32,...": pins (guard-rail.md)
  std::optional<std::string> file_sha256;  ///< computed by the caller where a sha256 pin asks for it
  std::string tokenizer;  ///< description of the tokenizer in use, for a tokenizer= pin and the printout
  std::optional<int32_t> tokenizer_vocab;  ///< its size, held against the embedding's rows
};

struct Memory {
  uint64_t weights = 0;  ///< allocated for repacked or converted weights
  uint64_t mapped = 0;   ///< file bytes used in place
  uint64_t kv_cache = 0;
  uint64_t activations = 0;  ///< rows of every stage, scratch, logits
  uint64_t available = 0;
  uint64_t total() const { return weights + mapped + kv_cache + activations; }
};

struct Plan {
  HParams hp;
  int64_t context = 0;
  int64_t sequences = 1;
  int64_t chunk = 0;
  std::vector<PlannedTensor> tensors;  ///< to be loaded
  Memory memory;
  std::vector<Problem> problems;      ///< empty: it fits
  std::vector<std::string> warnings;  ///< harmless
  std::string tokenizer;              ///< the request's, for the printout
  std::optional<int32_t> tokenizer_vocab;

  bool fits() const { return problems.empty(); }
};

/// Derives the plan and collects every mismatch: nothing stops at the first. Nothing is allocated on the
/// device.
Plan make_plan(const gguf::File& file, const Backend& backend, const PlanRequest& request);

/// Throws greta::Error with one line for each problem, unless the plan fits.
void require_fit(const Plan& plan, const gguf::File& file);

/// What a pin string names, checked for spelling alone: errors list the known fields. Whether sha256 is among
/// them.
bool pins_sha256(const std::string& expect);

/// The plan as `greta check` prints it.
std::string plan_text(const Plan& plan, const gguf::File& file, const Backend& backend);

}  // namespace greta
