#include "bisect/cause.h"

#include <fmt/format.h>

#include <cmath>

#include "model/tensor_plan.h"

namespace greta {
namespace {

std::string launched_cause(const std::string& who, FaultKind kind, const Finding& f) {
  return fmt::format(
      "{}: where the pass is launched as a recording, element {} is {}; launched call by call it is {}: {}",
      who, f.index, cause_number(f.got), cause_number(f.expected),
      kind == FaultKind::race
          ? "its bits vary between runs of the same tokens"
          : "the recording keeps something of an earlier pass, in every one of six runs the same");
}

/// A wire joins two stages; no operator stands between them.
std::string wire_cause(const Finding& f, char side, bool repeated) {
  std::string text = fmt::format("{} of side {} is not what the operator before it left",
                                 trace_name(f.place.layer, f.place.stage), side);
  if (f.measured())
    text += fmt::format(": element {} is {}, there it is {}", f.index, cause_number(f.got),
                        cause_number(f.expected));
  return text + (repeated ? ", in every one of six runs the same" : " in the same trace");
}

std::string operator_cause(const std::string& who, const Finding& f, bool repeated) {
  const std::string values =
      fmt::format("element {} is {} where FP64 on the same inputs has {}: {} past a bound of {}", f.index,
                  cause_number(f.got), cause_number(f.expected), cause_number(std::abs(f.got - f.expected)),
                  cause_number(f.certain));
  if (repeated)
    return fmt::format("{}: the call gives the same bits when it is repeated on its inputs, and {}", who,
                       values);
  return fmt::format(
      "{}, as recorded: {}; a trace cannot be repeated, so whether the operator is wrong or was handed "
      "something else than the trace holds is not told apart",
      who, values);
}

}  // namespace

std::string cause_number(double x) { return fmt::format("{:.9g}", x); }

FaultKind kind_of(const Finding& finding, const Examined& run, SubjectRun* live, const Prompt& prompt) {
  if (finding.check == Finding::Check::bound) return FaultKind::operator_;
  if (live == nullptr) return FaultKind::wire;
  if (finding.check == Finding::Check::launched)
    return live->varies_launched(prompt, finding.place, *run.launched_hash) ? FaultKind::race
                                                                            : FaultKind::wire;
  const uint64_t* hash = run.hashes.find(finding.place);
  if (hash != nullptr && live->varies(prompt, finding.place, *hash)) return FaultKind::race;
  return FaultKind::wire;
}

std::string cause_of(const Wiring& wiring, FaultKind kind, const Finding& f, char side, bool repeated) {
  const std::string who = fmt::format("{} of side {}", name_of(wiring.rule(f.place.stage).op), side);
  if (f.check == Finding::Check::launched) return launched_cause(who, kind, f);
  switch (kind) {
    case FaultKind::operator_:
      return operator_cause(who, f, repeated);
    case FaultKind::wire:
      if (f.check == Finding::Check::wire) return wire_cause(f, side, repeated);
      return fmt::format(
          "{} was handed something else than the plan says: repeated on what its producers left it gives {} "
          "in element {}, the run has {}, in every one of six runs the same",
          who, cause_number(f.expected), f.index, cause_number(f.got));
    case FaultKind::race: {
      const std::string values = f.measured()
                                     ? fmt::format(" (element {}: {} in the run, {} when repeated)", f.index,
                                                   cause_number(f.got), cause_number(f.expected))
                                     : "";
      return fmt::format(
          "{}: its bits vary between runs of the same tokens: something is overwritten between write and "
          "read{}",
          who, values);
    }
    default:
      return "";
  }
}

std::string nonfinite_cause(const Plan& truth, const RunRecorder::NonFinite& value, char side, bool judged) {
  const Place& at = value.place;
  const std::string what = fmt::format("element {} of {} of side {} is {}, and all before it is finite",
                                       value.index, at.text(), side, cause_number(value.value));
  if (!judged)
    return what +
           ", as far as the trace holds it; what it was made from is not there, so nobody has judged it";
  const StageRule& rule = Wiring(truth.hp).rule(at.stage);
  const PlannedTensor* weight =
      rule.weight == Role::count ? nullptr : planned_tensor(truth, at.layer, rule.weight);
  const PlannedTensor* bias = rule.bias == Role::count ? nullptr : planned_tensor(truth, at.layer, rule.bias);
  if (weight == nullptr) return what + "; FP64 on the same inputs has it, too";
  return fmt::format("{}; FP64 on the same inputs has it, too: values of {}{} in the file are not finite",
                     what, weight->tensor->name,
                     bias == nullptr ? std::string() : fmt::format(" or {}", bias->tensor->name));
}

}  // namespace greta
