#pragma once
// A recorded trace as a subject: judged from its own rows, operator by operator, as far as it holds their
// inputs.
#include <string>
#include <vector>

#include "bisect/examine.h"

namespace greta {

class RecordedRun {
 public:
  /// Errors: not a trace (what is missing), of another model than `truth` (both hashes), no stage in it.
  /// `sha256`: of the truth's file.
  RecordedRun(const std::string& path, const ModelFile& truth, const std::string& sha256,
              const ExamineOptions& options);
  ~RecordedRun();

  /// The prompts that it was made of, one a sequence, without the tokens it generated.
  const std::vector<Prompt>& prompts() const;
  /// Errors: no such prompt (the first id that differs), nothing in it that can be judged.
  Examined examine(const Prompt& prompt);
  /// How many tokens the recorded run generated after it; 0 for a prompt that it has not.
  size_t generated_by(const Prompt& prompt) const;
  std::string description() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace greta
