#pragma once
// Two subjects compared over some prompts: the first wrong value, its place, and what kind of fault it is
// (bisect.md).
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bisect/examine.h"
#include "bisect/rounding.h"

namespace greta {

struct BisectOptions {
  std::string model;                       ///< path of the model file
  std::string tokenizer;                   ///< a SentencePiece file that overrides the model's own
  std::shared_ptr<ModelFile> opened = {};  ///< the model and its tokenizer, where the caller has opened them
  Subject a;
  Subject b;
  std::vector<Prompt> prompts;  ///< empty: those of the recorded trace
  ExamineOptions examine;
  bool repeat_run = false;  ///< the same route on both sides is meant
  bool keep_going = false;  ///< past a difference of the inputs
  bool allow_rounding = false;
  std::function<void(const std::string& line)> log = {};
};

/// What one prompt came to.
struct PromptVerdict {
  Prompt prompt;
  std::shared_ptr<const Wiring> wiring;  ///< of the true model: which operator leaves a stage
  std::string error;                     ///< why it could not be compared; no kind then
  bool undecided = false;  ///< with an error: both sides were examined as below, but no verdict can be told
  FaultKind kind = FaultKind::none;
  char side = 'b';               ///< where the fault is
  std::optional<Finding> first;  ///< where it begins; of INPUT only where the difference names a stage
  std::string cause;
  Examined a, b;
  uint64_t rows_common = 0;    ///< that both sides have with the same tokens before them
  uint64_t rows_compared = 0;  ///< of those: bit by bit, where bits must agree
  std::optional<Rounding> rounding;
};

struct BisectResult {
  struct Side {
    Subject subject;
    std::string path;
    std::string sha256;
    HParams hp;
    std::string device;      ///< that runs it or ran it: a trace's, too
    std::string arithmetic;  ///< arithmetic_text()
    std::string description;
    double seconds = 0.0;
  };
  std::shared_ptr<ModelFile> model;  ///< the command's, whose tokenizer spells the ids
  Side a, b;
  uint64_t tensors_compared = 0;
  uint64_t rows_read_back = 0;
  std::vector<std::pair<char, InputDifference>> differences;
  std::vector<PromptVerdict> prompts;
  double seconds = 0.0;
  int status =
      0;  ///< exit status: 0 nothing but NONE (or allowed ROUNDING), 1 a divergence, 2 a prompt not compared
};

/// Errors (greta::Error): what makes every prompt vacuous or impossible: equal subjects, the judge on both
/// sides, a trace of another model, a model that does not fit, layers past the end, models of two shapes
/// with keep_going.
BisectResult bisect(const BisectOptions& options);

/// Refuses a model that the reference cannot plan: a line for each mismatch.
void require_model(const ModelFile& model);

/// The first value of both sides that is not finite; null where there is none.
struct FirstNonFinite {
  char side = 'a';
  const RunRecorder::NonFinite* value = nullptr;
};
FirstNonFinite first_nonfinite(const PromptVerdict& verdict);

/// How much was judged: "none in 5 of 80 outputs; ..." where outputs were sampled, and what a trace lacks;
/// empty where nothing was judged.
std::string coverage_of(const PromptVerdict& verdict);
/// What of the recorded sides nobody has judged; empty where that is nothing.
std::string unjudged_of(const PromptVerdict& verdict);

/// The verdict of one side alone, as bisect reaches it: what the self-test scores.
PromptVerdict verdict_alone(SubjectRun& run, const Prompt& prompt,
                            const std::vector<InputDifference>& resident);

}  // namespace greta
