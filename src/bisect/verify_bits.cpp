// The rows of greta verify that ask for the same bits: another schedule, the same tokens. Prompts are cut so
// that no chunk of one token is left over and no side but the one that means to decodes.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/system.h"
#include "bisect/verify_rows.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

constexpr size_t kPhaseTokens = 300;
constexpr size_t kBatchTokens[] = {301, 150, 77, 64, 29};
constexpr size_t kThreadTokens = 200;
constexpr size_t kRepeatTokens = 100;
constexpr size_t kIsaTokens = 48;
constexpr size_t kSteps = 8;  ///< decoded behind a prefill
constexpr int kRepeats = 10;
constexpr size_t kContextEnd = 16;  ///< tokens of a long text that are decoded as well

/// The longest length up to `length` that no chunk size divides with a rest of one.
size_t without_single_rows(size_t length, const std::vector<size_t>& chunks) {
  while (length > 1 && std::any_of(chunks.begin(), chunks.end(),
                                   [&](size_t chunk) { return chunk > 1 && length % chunk == 1; }))
    --length;
  return length;
}

std::string threads_text(int threads) { return fmt::format("{} thread{}", threads, threads == 1 ? "" : "s"); }

uint64_t calls_of(const HashedRun& run) {
  uint64_t calls = 0;
  for (const auto& [rows, times] : run.calls) calls += times;
  return calls;
}

/// A prompt with its last kSteps tokens decoded.
struct MixedPrompt {
  std::vector<TokenId> ids;
  size_t steps;
  std::string text() const { return fmt::format("{} tokens, the last {} decoded", ids.size(), steps); }
};
MixedPrompt mixed_prompt(const Audit& audit, size_t tokens) {
  const size_t length = audit.length(tokens);
  return {audit.prompt(length), std::min(kSteps, length / 2)};
}

HashedRun run_once(const Audit& audit, const EngineOptions& options, const MixedPrompt& prompt) {
  Engine engine(audit.model, options);
  return run_alone(engine, prompt.ids, prompt.steps, audit.fed());
}

}  // namespace

void verify_phase(Audit& audit) {
  EngineOptions options = audit.engine(static_cast<int64_t>(audit.length(kPhaseTokens)));
  const auto ids =
      audit.prompt(without_single_rows(audit.length(kPhaseTokens), {static_cast<size_t>(options.chunk)}));
  const auto run = [&](int64_t chunk) {
    options.chunk = chunk;
    Engine engine(audit.model, options);
    return run_alone(engine, ids, 0, audit.fed());
  };
  BitComparison comparison(run(options.chunk));
  const HashedRun decoded = run(1);
  audit.note("prefill", comparison.expected());
  audit.note("decode", decoded);
  require_other_kernels(comparison.expected(), decoded);
  comparison.add(decoded);
  conclude(audit.row, comparison,
           fmt::format("{} tokens prefilled in {} call{} and one by one", ids.size(),
                       calls_of(comparison.expected()), calls_of(comparison.expected()) == 1 ? "" : "s"));
}

void verify_chunk(Audit& audit) {
  // The mode's own size first; each at most two fifths of the prompt, so that every side takes three calls.
  std::vector<size_t> wanted = {static_cast<size_t>(audit.options.engine.chunk), 512, 64, 7};
  const size_t largest = *std::max_element(wanted.begin(), wanted.end());
  const size_t enough = largest / 2 * 5 + 20;
  const size_t most = audit.length(enough);
  std::vector<size_t> sizes;
  for (const size_t size : wanted)
    if (const size_t scaled = std::max<size_t>(1, std::min(size, most * 2 / 5));
        std::find(sizes.begin(), sizes.end(), scaled) == sizes.end())
      sizes.push_back(scaled);
  if (sizes.size() < 2) fail("the context of {} positions is too short for two sizes of chunks", most);
  const auto ids = audit.prompt(without_single_rows(most, sizes));
  EngineOptions options = audit.engine(static_cast<int64_t>(ids.size()));
  std::optional<BitComparison> comparison;
  std::string text;
  for (const size_t size : sizes) {
    options.chunk = static_cast<int64_t>(size);
    Engine engine(audit.model, options);
    HashedRun run = run_alone(engine, ids, 0, audit.fed());
    audit.note(fmt::format("chunk {}", size), run);
    if (comparison && run.calls == comparison->expected().calls)
      throw NotAsMeant{fmt::format("chunks of {} and {} gave the same calls", sizes[0], size)};
    text += fmt::format("{}{}", comparison ? ", " : "", size);
    if (comparison)
      comparison->add(run);
    else
      comparison.emplace(std::move(run));
  }
  conclude(audit.row, *comparison,
           fmt::format("{} tokens in chunks of {}{}", ids.size(), text,
                       most < enough ? fmt::format(" (scaled down to the context of {})", most) : ""));
}

void verify_batch(Audit& audit) {
  std::vector<std::vector<TokenId>> texts;
  size_t total = 0;
  for (const size_t tokens : kBatchTokens) total += audit.length(tokens);
  const auto all = audit.prompt(total);
  for (size_t begin = 0; const size_t tokens : kBatchTokens) {
    const size_t length = audit.length(tokens);
    texts.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(begin),
                       all.begin() + static_cast<std::ptrdiff_t>(begin + length));
    begin += length;
  }
  const auto longest = static_cast<int64_t>(texts[0].size());
  HashedRun alone;
  {
    Engine engine(audit.model, audit.engine(longest));
    for (size_t s = 0; s < texts.size(); ++s) {
      HashedRun run = run_alone(engine, texts[s], 0, audit.fed());
      for (const auto& [key, hash] : run.hashes)
        alone.hashes[{static_cast<int32_t>(s), key.position, key.layer, key.stage}] = hash;
      for (const auto& [rows, times] : run.calls) alone.calls[rows] += times;
      for (const auto& [kernel, times] : run.route) alone.route[kernel] += times;
      alone.device = std::move(run.device);
      alone.widths = std::move(run.widths);
    }
  }
  Engine engine(audit.model, audit.engine(longest, static_cast<int64_t>(texts.size())));
  const HashedRun together = run_together(engine, texts, kSteps, audit.fed());
  audit.note("alone", alone);
  audit.note("together", together);
  if (together.shared_calls == 0) throw NotAsMeant{"no call held rows of more than one text"};
  BitComparison comparison(std::move(alone));
  comparison.add(together);
  audit.row.figures["shared_calls"] = static_cast<double>(together.shared_calls);
  conclude(audit.row, comparison,
           fmt::format("{} texts of {} to {} tokens, {} of {} calls shared, against each alone", texts.size(),
                       texts.back().size(), texts[0].size(), together.shared_calls, calls_of(together)));
}

void verify_threads(Audit& audit) {
  const auto prompt = mixed_prompt(audit, kThreadTokens);
  EngineOptions options = audit.engine(static_cast<int64_t>(prompt.ids.size()));
  const int many = std::max(2, options.backend.threads > 0 ? options.backend.threads : usable_cpus());
  options.backend.threads = many;
  BitComparison comparison(run_once(audit, options, prompt));
  options.backend.threads = 1;
  const HashedRun one = run_once(audit, options, prompt);
  audit.note(threads_text(many), comparison.expected());
  audit.note(threads_text(1), one);
  if (one.device == comparison.expected().device)
    throw NotAsMeant{fmt::format("both sides say '{}': the same number of threads", one.device)};
  comparison.add(one);
  conclude(audit.row, comparison, fmt::format("{}, with {} and with 1 thread", prompt.text(), many));
}

void verify_repeats(Audit& audit) {
  const auto prompt = mixed_prompt(audit, kRepeatTokens);
  Engine engine(audit.model, audit.engine(static_cast<int64_t>(prompt.ids.size())));
  BitComparison comparison(run_alone(engine, prompt.ids, prompt.steps, audit.fed()));
  audit.note("run 1", comparison.expected());
  for (int run = 2; run <= kRepeats; ++run) {
    const HashedRun again = run_alone(engine, prompt.ids, prompt.steps, audit.fed());
    audit.note(fmt::format("run {}", run), again);
    if (again.route != comparison.expected().route || again.calls != comparison.expected().calls)
      throw NotAsMeant{fmt::format("run {} took another way than run 1: no repeat", run)};
    comparison.add(again);
  }
  conclude(audit.row, comparison, fmt::format("{}, {} times", prompt.text(), kRepeats));
}

void verify_isa(Audit& audit) {
  if (audit.options.engine.device != "cpu")
    fail("--device {}: only the cpu has instruction sets to choose from", audit.options.engine.device);
  const auto prompt = mixed_prompt(audit, kIsaTokens);
  std::optional<BitComparison> comparison;
  std::string names;
  for (const Isa isa : kIsas) {
    if (!has_isa(isa)) continue;
    EngineOptions options = audit.engine(static_cast<int64_t>(prompt.ids.size()));
    options.backend.isa = isa;
    HashedRun run = run_once(audit, options, prompt);
    audit.note(std::string(name_of(isa)), run);
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name_of(isa));
    if (!comparison) {
      comparison.emplace(std::move(run));
      continue;
    }
    require_other_kernels(comparison->expected(), run);
    comparison->add(run);
  }
  if (audit.row.sides.size() < 2) fail("this machine has one instruction set alone ({})", names);
  conclude(audit.row, *comparison, fmt::format("{}, on {}", prompt.text(), names));
}

void verify_taps(Audit& audit) {
  const auto prompt = mixed_prompt(audit, kThreadTokens);
  Engine engine(audit.model, audit.engine(static_cast<int64_t>(prompt.ids.size())));
  const HashedRun traced = run_alone(engine, prompt.ids, prompt.steps, audit.fed());
  audit.note("traced", traced);
  if (traced.hashes.empty()) throw NotAsMeant{"the tap saw no stage: was it built with GRETA_TAPS=OFF?"};

  std::map<HashTap::Key, uint64_t> logits;
  engine.backend().reset_route();
  feed_alone(engine, prompt.ids, prompt.steps, nullptr, [&](size_t done, size_t total) {
    for (size_t i = 0; i < engine.logits_rows().size(); ++i)
      logits[{0, static_cast<int32_t>(engine.logits_rows()[i].position), kNoLayer, Stage::logits}] =
          row_hash(engine.logits(i));
    if (audit.options.progress) audit.options.progress(audit.row.id, done, total);
  });
  HashedRun untraced{engine.backend().description(),   engine.backend().route(), {}, 0, std::move(logits),
                     {{Stage::logits, audit.hp.vocab}}};
  audit.note("untraced", untraced);
  // Where operators are fused when nobody watches, the two are of different kernels.
  const bool fused = untraced.route != traced.route;

  HashedRun expected = traced;
  std::erase_if(expected.hashes, [](const auto& entry) { return entry.first.stage != Stage::logits; });
  BitComparison comparison(std::move(expected));
  comparison.add(untraced);
  conclude(
      audit.row, comparison,
      fmt::format("logits of {}, traced and untraced{}", prompt.text(), fused ? " (by fused kernels)" : ""));
  audit.row.compared.layers = static_cast<uint64_t>(audit.hp.layers);  // behind the logits
}

void verify_context(Audit& audit) {
  const auto chunk = static_cast<size_t>(audit.options.engine.chunk);
  const auto wanted =
      static_cast<size_t>(audit.options.engine.context.value_or(std::min(audit.hp.context, kLongContext)));
  const size_t length = without_single_rows(wanted, {chunk});
  const auto ids = audit.prompt(length);
  // The last call of the prefill, and how much of it is decoded as well.
  const size_t last_call = (length - 1) % chunk + 1;
  const size_t end = std::min({kContextEnd, last_call, length - 1});
  if (end == 0) fail("a context of {} is too short: expected at least 2 positions", wanted);

  Engine engine(audit.model, audit.engine(static_cast<int64_t>(length)));
  const auto fed = [&] {
    if (const auto report = audit.fed()) report(static_cast<size_t>(engine.length(0)), length);
  };
  RunTap prefill;
  prefill.hashing = false;
  engine.feed_all(0, std::span(ids).first(length - last_call), Feed::Logits::none, &prefill, fed);
  prefill.hashing = true;
  engine.feed_all(0, std::span(ids).last(last_call), Feed::Logits::all, &prefill, fed);
  const auto last = engine.logits(engine.logits_rows().size() - 1);
  const auto finite = std::count_if(last.begin(), last.end(), [](float x) { return std::isfinite(x); });
  HashedRun prefilled = prefill.take(engine);
  std::erase_if(prefilled.hashes,
                [&](const auto& entry) { return entry.first.position < static_cast<int32_t>(length - end); });

  engine.truncate(0, static_cast<int64_t>(length - end));
  engine.backend().reset_route();
  RunTap decode;
  for (const TokenId& id : std::span(ids).last(end))
    engine.feed_all(0, std::span(&id, 1), Feed::Logits::all, &decode, fed);
  const HashedRun decoded = decode.take(engine);
  audit.note("prefill", prefilled);
  audit.note("decode", decoded);
  require_other_kernels(prefilled, decoded);
  BitComparison comparison(std::move(prefilled));
  comparison.add(decoded);
  audit.row.figures["context"] = static_cast<double>(length);
  audit.row.figures["model_context"] = static_cast<double>(audit.hp.context);
  conclude(audit.row, comparison,
           fmt::format("{} tokens (the model's limit is {}), the last {} prefilled and one by one", length,
                       audit.hp.context, end));
  if (finite == static_cast<std::ptrdiff_t>(last.size())) return;
  audit.row.verdict = RowVerdict::fail;
  audit.row.detail += fmt::format("; {} of the last row's {} logits are not finite",
                                  static_cast<std::ptrdiff_t>(last.size()) - finite, last.size());
}

}  // namespace greta
