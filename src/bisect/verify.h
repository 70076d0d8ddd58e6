#pragma once
// The audit as one command: the promises of the numerics (one order of addition, the file's own answer),
// each held against a run on this machine. Rows as data; greta verify prints them.
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bisect/runs.h"
#include "bisect/texts.h"

namespace greta {

enum class RowVerdict {
  pass,
  fail,
  not_run,  ///< it could not run here; `detail` says why
  error,    ///< it ran, but not as it was meant, or compared nothing
};
std::string_view name_of(RowVerdict verdict);  ///< "pass", "not_run"

/// One run behind a row: what the backend and the tap recorded.
struct VerifySide {
  std::string name;    ///< "chunk 7"
  std::string device;  ///< HashedRun::device
  Backend::Route route;
  std::map<int64_t, uint64_t> calls;  ///< by their number of rows; empty where no tap looked on
};

struct VerifyRow {
  std::string id;
  RowVerdict verdict = RowVerdict::error;
  Compared compared;
  std::string detail;          ///< one line: what was held against what, and what came out
  std::optional<Place> first;  ///< that differs
  std::map<std::string, double> figures;
  std::vector<VerifySide> sides;
  double seconds = 0.0;
};

struct VerifyResult {
  HParams hp;
  std::string device;  ///< the description of the backend as it was asked for
  std::vector<VerifyRow> rows;
  bool passed() const;  ///< every row is a pass, and there is one
};

struct VerifyOptions {
  /// The mode under test. `context` is that of the row `context`, too (default there: the model's, at most
  /// kLongContext); `room`, `sequences` and `all_logits` are set by each row; `between` goes into
  /// every engine but the judge's.
  EngineOptions engine;
  std::vector<std::string> rows;  ///< ids; empty: all that the device has
  std::string_view text = built_in_text();
  /// Called after every forward call; what it throws ends the audit.
  std::function<void(std::string_view row, size_t done, size_t total)> progress;
  std::function<void(const VerifyRow&)> finished;  ///< called after each row
};

/// Positions of the row `context` where nobody asked for more: a model of 135M parameters fills them within
/// three minutes on two cores.
inline constexpr int64_t kLongContext = 8192;

struct VerifyRowInfo {
  std::string_view id;
  std::string_view what;  ///< one line, for people
};
/// In the order in which they run.
const std::vector<VerifyRowInfo>& verify_rows();
/// "phase,chunk": errors list the rows.
std::vector<std::string> parse_verify_rows(std::string_view text);

/// Errors: the model does not fit the device, a context that the model does not have, the reference as the
/// device, unknown rows. What goes wrong inside a row is the row's verdict.
VerifyResult verify(const ModelFile& model, const VerifyOptions& options);

}  // namespace greta
