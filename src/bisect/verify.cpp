#include "bisect/verify.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "bisect/verify_rows.h"

namespace greta {
namespace {

struct RowEntry {
  VerifyRowInfo info;
  void (*run)(Audit&);
};

const std::vector<RowEntry>& entries() {
  static const std::vector<RowEntry> all = {
      {{"phase", "a prompt prefilled against the same tokens one by one"}, verify_phase},
      {{"chunk", "prefill in chunks of 7, 64 and 512 against the mode's own"}, verify_chunk},
      {{"batch", "five unlike texts together against each alone"}, verify_batch},
      {{"threads", "one thread against all"}, verify_threads},
      {{"repeats", "ten runs of the same tokens"}, verify_repeats},
      {{"isa", "the instruction sets that this machine has (cpu)"}, verify_isa},
      {{"weights", "weight modes against FP64: KL divergence and top-1 agreement"}, verify_weights},
      {{"taps", "logits of a traced run against an untraced one"}, verify_taps},
      {{"context", "the end of a long text prefilled against the same tokens one by one"}, verify_context},
  };
  return all;
}

std::string all_ids() {
  std::string ids;
  for (const RowEntry& entry : entries()) ids += fmt::format("{}{}", ids.empty() ? "" : ", ", entry.info.id);
  return ids;
}

const RowEntry& entry_of(std::string_view id) {
  for (const RowEntry& entry : entries())
    if (entry.info.id == id) return entry;
  fail("no row '{}': expected {}", id, all_ids());
}

/// All of the device: the others would say nothing but that they could not run.
std::vector<std::string> rows_of(const VerifyOptions& options) {
  if (!options.rows.empty()) return options.rows;
  std::vector<std::string> ids;
  for (const RowEntry& entry : entries())
    if (options.engine.device == "cpu" ||
        (entry.info.id != "isa" && (entry.info.id != "threads" || !is_gpu(options.engine.device))))
      ids.emplace_back(entry.info.id);
  return ids;
}

void run_row(const RowEntry& entry, Audit& audit) {
  const auto start = std::chrono::steady_clock::now();
  VerifyRow& row = audit.row;
  row.id = entry.info.id;
  try {
    entry.run(audit);
    if (row.verdict == RowVerdict::pass && row.compared.nothing())
      throw NotAsMeant{fmt::format("nothing was compared ({})", row.detail)};
  } catch (const NotAsMeant& other) {
    row.verdict = RowVerdict::error;
    row.detail = other.why;
  } catch (const Error& error) {
    row.verdict = RowVerdict::not_run;
    row.detail = error.what();
    for (const std::string& detail : error.details()) row.detail += "; " + detail;
  }
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::string_view name_of(RowVerdict verdict) {
  switch (verdict) {
    case RowVerdict::pass:
      return "pass";
    case RowVerdict::fail:
      return "fail";
    case RowVerdict::not_run:
      return "not_run";
    case RowVerdict::error:
      return "error";
  }
  return "";
}

bool VerifyResult::passed() const {
  return !rows.empty() && std::all_of(rows.begin(), rows.end(),
                                      [](const VerifyRow& row) { return row.verdict == RowVerdict::pass; });
}

const std::vector<VerifyRowInfo>& verify_rows() {
  static const std::vector<VerifyRowInfo> infos = [] {
    std::vector<VerifyRowInfo> all;
    for (const RowEntry& entry : entries()) all.push_back(entry.info);
    return all;
  }();
  return infos;
}

std::vector<std::string> parse_verify_rows(std::string_view text) {
  std::vector<std::string> ids;
  for (size_t begin = 0;;) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    ids.emplace_back(entry_of(text.substr(begin, comma - begin)).info.id);
    if (std::count(ids.begin(), ids.end(), ids.back()) > 1) fail("row '{}' is named twice", ids.back());
    if (comma == text.size()) return ids;
    begin = comma + 1;
  }
}

VerifyResult verify(const ModelFile& model, const VerifyOptions& options) {
  if (options.engine.device == "reference")
    fail("the reference is what the rows are held against: expected another --device");
  const auto backend = make_backend(options.engine.device, options.engine.backend);
  EngineOptions least = options.engine;
  least.room = options.engine.context.value_or(1);  // whether a longer one fits is the row's own matter
  const Plan plan = Engine::plan(model, *backend, least);
  require_fit(plan, model.file);

  VerifyResult result{plan.hp, backend->description(), {}};
  for (const std::string& id : rows_of(options)) {
    VerifyRow row;
    Audit audit{model, options, plan.hp, row};
    run_row(entry_of(id), audit);
    if (options.finished) options.finished(row);
    result.rows.push_back(std::move(row));
  }
  return result;
}

EngineOptions Audit::engine(int64_t room, int64_t sequences) const {
  EngineOptions engine = options.engine;
  engine.room = room;
  engine.sequences = sequences;
  engine.all_logits = true;
  engine.expect.clear();  // checked once, by verify()
  return engine;
}

size_t Audit::length(size_t wanted) const { return std::min(wanted, static_cast<size_t>(hp.context)); }

std::vector<TokenId> Audit::prompt(size_t tokens) const {
  return prompt_of_length(*model.tokenizer, tokens, options.text);
}

FedTokens Audit::fed() const {
  if (!options.progress) return {};
  return [this](size_t done, size_t total) { options.progress(row.id, done, total); };
}

void Audit::note(std::string name, const HashedRun& run) const {
  row.sides.push_back({std::move(name), run.device, run.route, run.calls});
}

void require_other_kernels(const HashedRun& a, const HashedRun& b) {
  size_t matmuls = 0;
  for (const auto& [kernel, times] : a.route) {
    if (!kernel.starts_with("matmul")) continue;
    ++matmuls;
    if (b.route.contains(kernel))
      throw NotAsMeant{fmt::format("both sides ran {}: they did not take different ways", kernel)};
  }
  if (matmuls == 0) throw NotAsMeant{"no matmul kernel was recorded"};
}

void conclude(VerifyRow& row, const BitComparison& comparison, const std::string& what) {
  row.compared = comparison.compared();
  row.first = comparison.first();
  row.figures["differing_rows"] = static_cast<double>(comparison.differing_rows());
  row.verdict = row.first ? RowVerdict::fail : RowVerdict::pass;
  row.detail = what + (row.first ? fmt::format(": {} of {} rows differ", comparison.differing_rows(),
                                               row.compared.rows)
                                 : ": the same bits");
}

}  // namespace greta
