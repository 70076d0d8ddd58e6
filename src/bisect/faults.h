#pragma once
// The catalogue of faults that bisect must find, and how each is planted: below the taps, in the subject,
// never in the judge. A fault lives in a backend of its own between the forward pass and the real one, so
// that it works on any device.
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "bisect/verdict.h"
#include "model/model.h"

namespace greta {

enum class Planted {
  kernel,  ///< in the operator: a replay has it too
  call,    ///< in what the engine hands to the operator: a replay has it not
  data,    ///< in one resident tensor
  input,   ///< in the token ids that enter
  file,    ///< in a copy of the model file (bisect/file_faults.h)
};

/// Without which a fault cannot show. draw_plant() judges what hyperparameters and lengths tell; the others
/// are the caller's to provide.
struct FaultNeeds {
  bool decode = false;     ///< a one-token call
  bool prefill = false;    ///< a call of several tokens: the fault spoils no other
  int64_t tokens = 1;      ///< positions of the run (with `prefill`: of the prompt), at least
  int64_t layers = 1;      ///< of the model, at least
  int64_t chunks = 1;      ///< caller: calls that the prompt takes, at least
  bool grouped = false;    ///< fewer kv heads than heads
  bool quantised = false;  ///< caller: integer weights at the place, of a type with that part
  bool int8 = false;       ///< caller: --weights int8
  bool bias = false;       ///< caller: a bias at the place
  bool gpu = false;        ///< a subject on a GPU (or on the kernels' emulation)
  bool recorded = false;   ///< passes launched as recordings: it shows in an untraced run alone
};

struct FaultInfo {
  std::string_view id;
  std::string_view what;  ///< one line, for people
  Planted planted;
  FaultKind kind;             ///< what bisect must call it
  std::vector<Stage> stages;  ///< where it can be planted; the first wrong stage is the planted one
  FaultNeeds needs;
  bool one_token = false;  ///< it spoils one position of sequence 0; else every row of the planted calls
  bool product = false;    ///< only where the stage is a matmul's (all its stages can be: the table's to say)
};

std::span<const FaultInfo> fault_catalogue();
const FaultInfo* find_fault(std::string_view id);

/// `ID@layer,token,seed`; parts may be left out (`row-gain`, `row-gain@3`, `nan@,17`). What is left out
/// is drawn from the seed when the model is known.
struct FaultSpec {
  std::string id;
  std::optional<int> layer;
  std::optional<int64_t> token;
  uint64_t seed = 1;
};
/// Errors: an unknown id (lists them), parts that are no numbers.
FaultSpec parse_fault(std::string_view text);

/// What a planted fault did, written by the code that did it.
class FaultLog {
 public:
  /// One row that the fault touched: what the call should have left and what it left, FP32 or FP64 as
  /// doubles.
  struct Fired {
    std::vector<double> healthy;
    std::vector<double> faulty;  ///< empty inside a recording, where nobody can read
  };
  bool recording = true;         ///< off while calls are replayed and while a run is repeated
  std::map<Place, Fired> fired;  ///< at most kMost rows, the first in order; of a place the latest
  uint64_t chances = 0;          ///< times that a race could have fired while recording
  static constexpr size_t kMost = 256;
  /// Nothing where not recording, or where the two rows are the same bits.
  void add(const Place& place, Fired row);
};

/// A fault ready to be put between the forward pass and a backend (EngineOptions::between).
struct Plant {
  const FaultInfo* info = nullptr;
  int layer = 0;      ///< drawn or given; kNoLayer for a stage outside the layers
  int64_t token = 0;  ///< position, where the fault concerns one token
  Stage stage = Stage::embed_out;
  uint64_t seed = 1;
  std::shared_ptr<FaultLog> log;
};

/// Draws what the spec leaves open. `prompt_tokens`: positions that come in calls of several (1 where the
/// whole run takes the one-token path); `tokens`: positions of the run; `gpu`: is_gpu() of its device.
/// Errors: the fault cannot be planted in such a model or run, or not there (what it needs, what is there).
Plant draw_plant(const FaultSpec& spec, const HParams& hp, int64_t prompt_tokens, int64_t tokens,
                 bool gpu = false);

/// The backend with the fault in it (kernel, call and data faults; others: `below` unchanged). Errors of its
/// load() and of the planted call: the tensor there has not what the fault needs (a bias, nibbles, a scale).
std::unique_ptr<Backend> plant_fault(std::unique_ptr<Backend> below, const Plant& plant, const HParams& hp);

/// The token ids that enter the engine instead of `ids` (input faults; others: unchanged). The log's rows are
/// the two ids.
std::vector<int32_t> planted_tokens(const Plant& plant, std::span<const int32_t> ids, int64_t vocab);

}  // namespace greta
