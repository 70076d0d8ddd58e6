#pragma once
// A recorded trace as a subject: judged from its own rows, operator by operator, as far as it holds their
// inputs.
#include <optional>
#include <string>
#include <vector>

#include "bisect/examine.h"
#include "bisect/rounding.h"

namespace greta {

class RecordedRun {
 public:
  /// Errors: not a trace of `truth`'s model (both hashes), or not as cli.md has it: a tensor that is missing
  /// or of another type or shape, tokens, sequences or positions that cannot be, no stage. Nothing is read
  /// before that. `sha256`: of the truth's file.
  RecordedRun(const std::string& path, const ModelFile& truth, const std::string& sha256,
              const ExamineOptions& options);
  ~RecordedRun();

  /// The prompts that it was made of, one a sequence, without the tokens it generated: those that none of
  /// `prompts` finds.
  std::vector<Prompt> prompts_besides(const std::vector<Prompt>& prompts) const;
  /// Errors: no such prompt (the first id that differs), several sequences with it, nothing in it that can be
  /// judged.
  /// A generated token that its own row of logits does not choose is an error, too: the trace is of a sampled
  /// run, or of two.
  Examined examine(const Prompt& prompt);
  /// What the trace holds of a position of that prompt; nothing where it has no row of it.
  std::optional<PositionRows> rows_at(const Prompt& prompt, int64_t token) const;
  /// How many tokens the recorded run generated after it; 0 for a prompt that it has not.
  size_t generated_by(const Prompt& prompt) const;
  std::string description() const;
  /// Of the recorded run, by the trace's own word.
  std::string device() const;
  std::string arithmetic() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace greta
