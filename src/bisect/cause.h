#pragma once
// What a finding that is a side's first means: its kind, and the sentence that says why.
#include <string>

#include "bisect/examine.h"

namespace greta {

/// bisect.md, check 5. `live`: what can run the side again; null for a trace.
FaultKind kind_of(const Finding& finding, const Examined& run, SubjectRun* live, const Prompt& prompt);

/// `repeated`: the side was run live, so that its calls were repeated; a trace's never are.
std::string cause_of(const Wiring& wiring, FaultKind kind, const Finding& finding, char side, bool repeated);

/// A value that is not finite, and before which everything is. `judged`: FP64 on the same inputs has it, too.
std::string nonfinite_cause(const Plan& truth, const RunRecorder::NonFinite& value, char side, bool judged);

/// Nine digits.
std::string cause_number(double x);

}  // namespace greta
