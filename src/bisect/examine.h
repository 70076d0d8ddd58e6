#pragma once
// One subject's run over one prompt, examined: every call repeated (replay.h), every operator judged
// (judge.h), every row hashed, and the same run once more without a tap.
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bisect/grid.h"
#include "bisect/judge.h"
#include "bisect/recorder.h"
#include "bisect/snapshots.h"
#include "bisect/subject.h"
#include "bisect/wiring.h"
#include "engine/engine.h"

namespace greta {

struct Prompt {
  std::string name;
  std::string text;  ///< empty where it is ids alone
  std::vector<TokenId> ids;
  std::optional<int32_t> sequence = {};  ///< of the trace that it comes from
};

/// Something that is not as it must be.
struct Finding {
  enum class Check {
    bound,      ///< outside the operator's certain bound
    replay,     ///< the repeated call gave other bits
    wire,       ///< a wire's end has other bits than its beginning
    launched,   ///< the pass launched as a recording has other bits than launched call by call
    input,      ///< tokens, files or resident weights differ: the first place that they spoil
    nonfinite,  ///< not finite, and FP64 on the same inputs has it too
    sides,      ///< the two sides have other bits
    choice,     ///< the row of logits from which the sides took other tokens
  };
  Place place;
  Check check = Check::bound;
  int64_t index = -1;  ///< -1: the place alone is known; no value was looked at
  double got = 0.0;
  double expected = 0.0;  ///< FP64, or what the repeated call gave, or the pass launched call by call
  double certain = 0.0;
  double ratio = 0.0;
  bool measured() const { return index >= 0; }
};
std::string_view name_of(Finding::Check check);

/// One judged row, in brief (there are millions).
struct Cell {
  float error = 0.0f;
  float certain = 0.0f;
  float likely = 0.0f;
  float ratio = 0.0f;
  bool suspect = false;
};

/// A row of logits from which a token was chosen.
struct StepLogits {
  int64_t token = 0;  ///< position of the row
  TokenId chosen = 0;
  std::vector<double> logits;
};

struct Examined {
  std::vector<TokenId>
      fed;  ///< what entered, by the tap's word: prompt, then all generated tokens but the last
  std::vector<TokenId> generated;
  std::vector<StepLogits> steps;
  Grid<uint64_t> hashes;
  Grid<Cell> judged;
  std::map<Place, Finding> findings;  ///< the first ones, at most kMostFindings
  uint64_t failed = 0;
  uint64_t suspect = 0;
  Sampling sampling;              ///< of the matmuls' outputs
  uint64_t values = 0;            ///< compared with FP64
  uint64_t outputs = 0;           ///< of the judged rows: values, and what checksums alone have seen
  uint64_t checksums = 0;         ///< compared with FP64
  uint64_t checksums_failed = 0;  ///< their rows were judged whole
  uint64_t rows_judged = 0;
  uint64_t calls_replayed = 0;
  uint64_t rows_replayed = 0;
  std::optional<RunRecorder::NonFinite> nonfinite;
  uint64_t traced_hash = 0;
  std::optional<uint64_t> untraced_hash;
  std::optional<uint64_t> launched_hash;  ///< of the row of a finding of Check::launched, as it was launched
  std::map<int, StoredRows> residuals;    ///< residual_post_mlp of the chosen layers, sequence 0
  std::vector<int64_t> positions;         ///< of each row of `residuals`
  int32_t number = 0;                     ///< of a trace: what it calls sequence 0 of the places here
  /// Of a trace: the rows that operators left for all its tokens. Nobody has judged those that `rows_judged`
  /// lacks; `lacks` names them, and is empty where there are none.
  uint64_t rows_expected = 0;
  std::string lacks;
  bool planted_fired = false;  ///< a planted fault changed bits of the run
  std::string description;     ///< the backend's own words
  Backend::Route route;
  std::vector<CallShape> calls;
  size_t most_bytes = 0;  ///< of kept rows
  double seconds = 0.0;
  static constexpr size_t kMostFindings = 4096;
  void add(const Finding& finding);
  void add(const Place& place, const Judgement& judgement);
};

struct ExamineOptions {
  std::optional<int64_t> context;  ///< EngineOptions::context
  int64_t room = 0;                ///< positions that a prompt comes to, at most
  int64_t chunk = 512;
  int64_t max_tokens = 0;
  std::set<int> layers;
  size_t trace_budget = size_t{512} << 20;
  int threads = 0;
  int64_t rows = 0;  ///< that will be judged in all; 0: what one prompt comes to
  double whole_multiply_adds = kWholeMultiplyAdds;  ///< judged whole up to here, else sampled
  uint64_t seed = 1;                                ///< of a sample's places
  bool untraced = true;                             ///< run again without a tap and compare the logits hash
  std::function<void()> after_call = {};            ///< may throw to stop
};

/// What differs before a token is fed.
struct InputDifference {
  std::string what;  ///< "tensor", "hyperparameter", "resident weights", "tokens"
  std::string name;
  std::string detail;          ///< expected and got
  std::optional<Place> place;  ///< the first stage that it spoils, where the name tells
  std::optional<int64_t> row;  ///< of a tensor: the first that differs
};

class SubjectRun {
 public:
  /// `model`: the subject's own file. `truth`: the file that it is judged by. `sample`: the prompt that a
  /// fault is drawn for. Errors: the model does not fit, the device is not there, the fault cannot be
  /// planted, the two models leave other rows than each other.
  SubjectRun(const Subject& subject, const ModelFile& model, const ModelFile& truth,
             const ExamineOptions& options, const Prompt& sample);
  ~SubjectRun();

  Examined examine(const Prompt& prompt);
  /// The same run with a tap and nothing else; a planted fault writes no log.
  void feed_quietly(const Prompt& prompt, Tap* tap);
  /// Whether the row's bits vary over five more runs and `hash`.
  bool varies(const Prompt& prompt, const Place& place, uint64_t hash);
  /// The same of a row of passes launched as recordings.
  bool varies_launched(const Prompt& prompt, const Place& place, uint64_t hash);
  /// Resident weights read back through their layout against the truth's. `rows`: counts what was compared.
  std::vector<InputDifference> check_resident(uint64_t& rows);

  Engine& engine() { return *engine_; }
  /// Of the true model.
  const std::shared_ptr<const Wiring>& wiring() const { return wiring_; }
  /// What the run is judged by.
  const Plan& truth() const { return truth_; }
  const Plant* plant() const { return plant_ ? &*plant_ : nullptr; }

 private:
  /// Feeds the prompt as the subject schedules it, then generates greedily. `steps` may be null.
  void run(const Prompt& prompt, Tap* tap, std::vector<StepLogits>* steps,
           const std::function<void()>& on_call);
  /// Every row of sequence 0 that passes left which may have been launched as recordings, in a run of its
  /// own.
  void visit_launched(const Prompt& prompt, const Snapshots::Visit& visit);
  /// The first of those with other bits than the traced run's.
  void compare_launched(const Prompt& prompt, Examined& run);

  Subject subject_;
  const ModelFile& model_;
  ExamineOptions options_;
  std::optional<Plant> plant_;
  Plan truth_;
  std::shared_ptr<const Wiring> wiring_;
  Sampling sampling_;
  Snapshots* snapshots_ = nullptr;  ///< between the engine and a GPU
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Judge> judge_;
  int64_t neighbour_rows_ = 0;
};

/// Whether `rows` rows of a model are judged whole or sampled.
Sampling sampling_of(const ExamineOptions& options, const Plan& truth, int64_t rows);

/// What a file says, planned for the reference: the weights and hyperparameters that a judge goes by.
Plan truth_plan(const ModelFile& file, std::optional<int64_t> context = std::nullopt);

/// The largest, ties to the lower id; nothing where a NaN is among them.
std::optional<TokenId> greedy(std::span<const double> logits);

}  // namespace greta
