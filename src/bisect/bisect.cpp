#include "bisect/bisect.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "bisect/file_faults.h"
#include "bisect/inputs.h"
#include "bisect/recorded.h"
#include "bisect/wiring.h"

namespace greta {
namespace {

/// A subject with whatever it needs to run: a device or a trace.
struct Side {
  Side(char n, Subject s, const ModelFile* f) : name(n), subject(std::move(s)), file(f) {}
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;
  ~Side() {
    live.reset();
    own.reset();
    if (!copy.empty()) std::filesystem::remove(copy);
  }
  /// A file fault goes into a copy beside the system's temporary files, gone with this.
  void plant_in_copy(const BisectOptions& options);

  char name;
  Subject subject;
  const ModelFile* file = nullptr;
  std::unique_ptr<ModelFile> own;  ///< where the subject names another file
  std::string copy;                ///< of a model file with a fault in it
  std::unique_ptr<SubjectRun> live;
  std::unique_ptr<RecordedRun> recorded;
};

HParams hparams_of(const ModelFile& file) { return truth_plan(file).hp; }

void Side::plant_in_copy(const BisectOptions& options) {
  const FaultInfo* info = subject.fault ? find_fault(subject.fault->id) : nullptr;
  if (info == nullptr || info->planted != Planted::file) return;
  const HParams hp = hparams_of(*file);
  const auto prompt = options.prompts.empty() ? 1 : static_cast<int64_t>(options.prompts.front().ids.size());
  const Plant plant =
      draw_plant(*subject.fault, hp, prompt, prompt + std::max<int64_t>(options.examine.max_tokens - 1, 0));
  std::string pattern = (std::filesystem::temp_directory_path() / "greta-planted-XXXXXX").string();
  const int fd = ::mkstemp(pattern.data());
  if (fd < 0) fail("{}: cannot make a temporary file for the planted copy", pattern);
  ::close(fd);
  copy = pattern;
  plant_in_file(plant, hp, file->file.path(), copy);
  own = std::make_unique<ModelFile>(ModelFile::open(copy));
  file = own.get();
}

/// Rows of one call of the reference: its FP64 logits take eight bytes each.
constexpr int64_t kReferenceChunk = 128;

std::string number(double x) { return fmt::format("{:.9g}", x); }

/// The first `count` fed tokens must be the prompt's.
std::optional<Finding> foreign_token(const Examined& run, const std::vector<TokenId>& ids) {
  for (size_t p = 0; p < ids.size(); ++p) {
    if (p < run.fed.size() && run.fed[p] == ids[p]) continue;
    Finding finding;
    finding.place = {0, static_cast<int64_t>(p), kNoLayer, Stage::embed_out};
    finding.got = p < run.fed.size() ? run.fed[p] : -1;
    finding.expected = ids[p];
    finding.ratio = std::numeric_limits<double>::infinity();
    return finding;
  }
  return std::nullopt;
}

const Finding* first_finding(const Examined& run) {
  return run.findings.empty() ? nullptr : &run.findings.begin()->second;
}

std::string cause_of(const Wiring& wiring, FaultKind kind, const Finding& f, char side) {
  const auto op = name_of(wiring.rule(f.place.stage).op);
  if (f.check == Finding::Check::launched)
    return fmt::format(
        "{} of side {}: where the pass is launched as a recording, element {} is {}; launched call by call "
        "it is {}: "
        "{}",
        op, side, f.index, number(f.got), number(f.expected),
        kind == FaultKind::race
            ? "its bits vary between runs of the same tokens"
            : "the recording keeps something of an earlier pass, in every one of six runs the same");
  switch (kind) {
    case FaultKind::operator_:
      return fmt::format(
          "{} of side {}: the call gives the same bits when it is repeated on its inputs, and element {} is "
          "{} where FP64 has "
          "{}: {} past a bound of {}",
          op, side, f.index, number(f.got), number(f.expected), number(std::abs(f.got - f.expected)),
          number(f.certain));
    case FaultKind::wire:
      return fmt::format(
          "{} of side {} was handed something else than the plan says: repeated on what its producers left "
          "it gives {} in "
          "element {}, the run has {}, in every one of six runs the same",
          op, side, number(f.expected), f.index, number(f.got));
    case FaultKind::race:
      return fmt::format(
          "{} of side {}: its bits vary between runs of the same tokens: something is overwritten between "
          "write "
          "and read (element {}: {} in the run, {} when repeated)",
          op, side, f.index, number(f.got), number(f.expected));
    default:
      return "";
  }
}

/// The kind of a finding that is a side's first (bisect.md, check 5).
FaultKind kind_of(const Finding& finding, const Examined& run, SubjectRun* live, const Prompt& prompt) {
  if (finding.check == Finding::Check::bound || live == nullptr) return FaultKind::operator_;
  if (finding.check == Finding::Check::launched)
    return live->varies_launched(prompt, finding.place, *run.launched_hash) ? FaultKind::race
                                                                            : FaultKind::wire;
  const uint64_t* hash = run.hashes.find(finding.place);
  if (hash != nullptr && live->varies(prompt, finding.place, *hash)) return FaultKind::race;
  return FaultKind::wire;
}

/// Same code, same numbers: schedules and instruction sets alone may differ.
bool bits_must_agree(const Side& a, const Side& b) {
  const BackendOptions& x = a.subject.backend;
  const BackendOptions& y = b.subject.backend;
  return !a.subject.is_trace() && !b.subject.is_trace() && a.subject.device == b.subject.device &&
         x.weights == y.weights && x.activations == y.activations && x.kv_type == y.kv_type;
}

/// Positions of sequence 0 up to which both sides had the same tokens.
int64_t common_positions(const Examined& a, const Examined& b) {
  const auto same = std::mismatch(a.fed.begin(), a.fed.end(), b.fed.begin(), b.fed.end());
  return same.first - a.fed.begin();
}

/// The first row with other bits, and how many rows were compared.
std::optional<Place> first_other_bits(const Examined& a, const Examined& b, int64_t positions,
                                      uint64_t& rows) {
  std::optional<Place> first;
  a.hashes.each([&](const Place& place, uint64_t hash) {
    if (place.sequence != 0 || place.token >= positions) return;
    const uint64_t* other = b.hashes.find(place);
    if (other == nullptr) return;
    ++rows;
    if (*other != hash && (!first || place < *first)) first = place;
  });
  return first;
}

uint64_t common_rows(const Examined& a, const Examined& b, int64_t positions) {
  uint64_t rows = 0;
  first_other_bits(a, b, positions, rows);
  return rows;
}

bool same_route(const Examined& a, const Examined& b) {
  const auto shapes = [](const Examined& x) {
    std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> all;
    for (const CallShape& call : x.calls) all.emplace_back(call.positions, call.sequences);
    return all;
  };
  return a.description == b.description && a.route == b.route && shapes(a) == shapes(b);
}

void set_first(PromptVerdict& v, FaultKind kind, char side, const Finding& finding, std::string cause) {
  v.kind = kind;
  v.side = side;
  v.first = finding;
  v.cause = std::move(cause);
}

/// Inputs first: tokens, then what differs in files and resident weights.
bool judge_inputs(PromptVerdict& v, const Examined& run, char side,
                  const std::vector<InputDifference>& differences) {
  if (const auto foreign = foreign_token(run, v.prompt.ids)) {
    set_first(v, FaultKind::input, side, *foreign,
              fmt::format("the token ids differ: at position {} side {} was fed {}, the prompt has {}",
                          foreign->place.token, side, foreign->got, foreign->expected));
    return true;
  }
  if (differences.empty()) return false;
  const InputDifference& d = differences.front();
  Finding finding;
  if (d.place) finding.place = *d.place;
  if (const Finding* found = first_finding(run)) finding = *found;
  set_first(v, FaultKind::input, side, finding,
            fmt::format("{} {} of side {}: {}", d.what, d.name, side, d.detail));
  return true;
}

/// A verdict's claim about operators, as far as it goes.
std::string inside_bounds(const PromptVerdict& v) {
  if (!v.a.sampling.sampled && !v.b.sampling.sampled)
    return "every operator of every layer and token is inside its bound";
  return "outputs outside their bound: " + coverage_of(v);
}

void judge_tokens(PromptVerdict& v, const Side& a, const Side& b, const ModelFile& truth, int threads) {
  const size_t steps = std::min(v.a.generated.size(), v.b.generated.size());
  size_t step = 0;
  while (step < steps && v.a.generated[step] == v.b.generated[step]) ++step;
  if (step == steps) {
    v.kind = FaultKind::none;
    v.cause = "no divergence";
    return;
  }
  v.kind = FaultKind::rounding;
  SubjectRun* run = b.live ? b.live.get() : a.live.get();
  if (run == nullptr) {
    v.cause = fmt::format("the tokens part at step {} ({} and {}), {}", step, v.a.generated[step],
                          v.b.generated[step], inside_bounds(v));
    return;
  }
  v.side = run == a.live.get() ? 'a' : 'b';
  const int64_t token = static_cast<int64_t>(v.prompt.ids.size() + step) - 1;
  const auto& fed = v.side == 'a' ? v.a.fed : v.b.fed;
  v.rounding =
      explain_rounding(truth, *run, v.prompt, static_cast<int64_t>(step), token, v.a.generated[step],
                       v.b.generated[step], std::span(fed).first(static_cast<size_t>(token) + 1), threads);
  Finding finding;
  finding.place = {0, token, kNoLayer, Stage::logits};
  v.first = finding;
  v.cause = fmt::format(
      "rounding: at step {} side a takes token {} and side b token {}; FP64 has them {} apart, side {}'s "
      "rounding moved that by "
      "{}, most of it by {}; {}",
      step, v.rounding->a, v.rounding->b, number(v.rounding->true_gap), v.side,
      number(v.rounding->difference), v.rounding->contributors.front().what, inside_bounds(v));
}

}  // namespace

std::string coverage_of(const PromptVerdict& v) {
  const uint64_t outputs = v.a.outputs + v.b.outputs;
  const uint64_t values = v.a.values + v.b.values;
  if (outputs == 0) return "";
  if (!v.a.sampling.sampled && !v.b.sampling.sampled) return fmt::format("all {} outputs judged", outputs);
  const bool sound = v.kind == FaultKind::none || v.kind == FaultKind::rounding;
  const uint64_t failed = v.a.checksums_failed + v.b.checksums_failed;
  return fmt::format("{} in {} of {} outputs; the other {} were seen by {} checksums{}",
                     sound ? "none" : "some", values, outputs, outputs - values,
                     v.a.checksums + v.b.checksums,
                     failed == 0 ? std::string(", which all hold")
                                 : fmt::format(", {} of which failed: their rows are judged whole", failed));
}

PromptVerdict verdict_alone(SubjectRun& run, const Prompt& prompt,
                            const std::vector<InputDifference>& resident) {
  PromptVerdict v;
  v.prompt = prompt;
  v.wiring = run.wiring();
  v.b = run.examine(prompt);
  if (v.b.rows_judged == 0 || v.b.rows_replayed == 0) fail("{}: nothing was judged or repeated", prompt.name);
  if (judge_inputs(v, v.b, 'b', resident)) return v;
  if (const Finding* finding = first_finding(v.b)) {
    const FaultKind kind = kind_of(*finding, v.b, &run, prompt);
    set_first(v, kind, 'b', *finding, cause_of(*v.wiring, kind, *finding, 'b'));
  }
  return v;
}

namespace {

/// Everything that the examined sides of one prompt say.
void decide(PromptVerdict& v, Side& a, Side& b,
            const std::vector<std::pair<char, InputDifference>>& differences, const ModelFile& truth,
            const BisectOptions& options) {
  for (Side* side : {&a, &b}) {
    std::vector<InputDifference> mine;
    for (const auto& [name, d] : differences)
      if (name == side->name) mine.push_back(d);
    if (!judge_inputs(v, side->name == 'a' ? v.a : v.b, side->name, mine)) continue;
    if (!mine.empty() && bits_must_agree(a, b))  // the first stage that it spoils, to the bit
      if (const auto spoilt = first_other_bits(v.a, v.b, common_positions(v.a, v.b), v.rows_compared))
        v.first->place = *spoilt;
    return;
  }
  const int64_t positions = common_positions(v.a, v.b);
  std::optional<Place> other_bits;
  if (bits_must_agree(a, b)) {
    other_bits = first_other_bits(v.a, v.b, positions, v.rows_compared);
  } else {
    v.rows_compared = common_rows(v.a, v.b, positions);
  }
  const Finding* fa = first_finding(v.a);
  const Finding* fb = first_finding(v.b);
  Side* side = nullptr;
  const Finding* first = nullptr;
  if (fb != nullptr && (fa == nullptr || !(fa->place < fb->place))) {
    side = &b;
    first = fb;
  } else if (fa != nullptr) {
    side = &a;
    first = fa;
  }
  if (other_bits && (first == nullptr || *other_bits < first->place)) {
    Finding finding;
    finding.place = *other_bits;
    finding.ratio = std::numeric_limits<double>::infinity();
    for (Side* s : {&b, &a}) {
      const Examined& run = s->name == 'a' ? v.a : v.b;
      if (!s->live->varies(v.prompt, *other_bits, *run.hashes.find(*other_bits))) continue;
      set_first(v, FaultKind::race, s->name, finding, cause_of(*v.wiring, FaultKind::race, finding, s->name));
      return;
    }
    set_first(v, FaultKind::operator_, 'b', finding,
              fmt::format("{}: the two sides have other bits although all before agrees and both are inside "
                          "the bound: the order "
                          "of addition depends on the schedule",
                          name_of(v.wiring->rule(other_bits->stage).op)));
    return;
  }
  if (first != nullptr) {
    const FaultKind kind = kind_of(*first, side->name == 'a' ? v.a : v.b, side->live.get(), v.prompt);
    set_first(v, kind, side->name, *first, cause_of(*v.wiring, kind, *first, side->name));
    return;
  }
  judge_tokens(v, a, b, truth, options.examine.threads);
}

Examined examine(Side& side, const Prompt& prompt) {
  return side.recorded ? side.recorded->examine(prompt) : side.live->examine(prompt);
}

void require_layers(const std::set<int>& layers, int64_t count) {
  for (const int layer : layers)
    if (layer >= count) fail("--layers: {} is past the last layer, {}", layer, count - 1);
}

}  // namespace

BisectResult bisect(const BisectOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const auto say = [&](const std::string& line) {
    if (options.log) options.log(line);
  };
  if (options.a.text == options.b.text && !options.repeat_run)
    fail(
        "both subjects are '{}': nothing would be compared; name another, or ask for a repeat with "
        "--repeat-run",
        options.a.text);
  BisectResult result;
  result.model = options.opened
                     ? options.opened
                     : std::make_shared<ModelFile>(ModelFile::open(options.model, options.tokenizer));
  const ModelFile& main = *result.model;
  Side a('a', options.a, &main);
  Side b('b', options.b, &main);
  for (Side* side : {&a, &b})
    if (!side->subject.file.empty()) {
      side->own = std::make_unique<ModelFile>(ModelFile::open(side->subject.file));
      side->file = side->own.get();
    }
  for (Side* side : {&a, &b}) side->plant_in_copy(options);
  const ModelFile& truth = *a.file;
  result.a = {a.subject, a.file->file.path(), a.file->file.sha256(), hparams_of(*a.file), "", 0.0};
  result.b = {b.subject,
              b.file->file.path(),
              b.own ? b.file->file.sha256() : result.a.sha256,
              hparams_of(*b.file),
              "",
              0.0};
  if (!b.own && a.own) result.b.sha256 = b.file->file.sha256();
  require_layers(options.examine.layers, result.a.hp.layers);

  // 1. Inputs.
  if (a.file != b.file) {
    for (auto& d : compare_files(*a.file, result.a.hp, *b.file, result.b.hp, result.tensors_compared))
      result.differences.emplace_back('b', std::move(d));
  } else {
    result.tensors_compared = main.file.tensors().size();
  }

  std::vector<Prompt> prompts = options.prompts;
  for (Side* side : {&a, &b})
    if (side->subject.is_trace()) {
      side->recorded =
          std::make_unique<RecordedRun>(side->subject.trace, truth, result.a.sha256, options.examine);
      if (prompts.empty()) prompts = side->recorded->prompts();
    }
  if (prompts.empty()) fail("no prompt: expected --prompts, or a recorded trace that has some");
  ExamineOptions examine_options = options.examine;
  if (a.recorded || b.recorded) {  // as many steps as were recorded
    size_t steps = 0;
    for (const Side* side : {&a, &b})
      if (side->recorded)
        for (const Prompt& p : prompts) steps = std::max(steps, side->recorded->generated_by(p));
    examine_options.max_tokens = static_cast<int64_t>(steps);
  }
  const auto wiring = std::make_shared<const Wiring>(hparams_of(truth));
  int64_t context = 0;
  for (const Prompt& p : prompts) {
    PromptVerdict v;
    v.prompt = p;
    v.wiring = wiring;
    const auto needed = static_cast<int64_t>(p.ids.size()) + examine_options.max_tokens;
    const int64_t limit = examine_options.context > 0 ? examine_options.context : result.a.hp.context;
    if (p.ids.empty()) {
      v.error = fmt::format("{}: the prompt is empty, 0 tokens; expected at least 1", p.name);
    } else if (needed > limit) {
      v.error = fmt::format("{}: {} tokens and {} to generate, the context holds {}", p.name, p.ids.size(),
                            examine_options.max_tokens, limit);
    } else {
      context = std::max(context, needed);
    }
    result.prompts.push_back(std::move(v));
  }
  if (context == 0) fail("{}", result.prompts.front().error);
  examine_options.rows = 0;
  for (const PromptVerdict& v : result.prompts)
    if (v.error.empty())
      examine_options.rows +=
          static_cast<int64_t>(v.prompt.ids.size()) + std::max<int64_t>(examine_options.max_tokens - 1, 0);
  examine_options.context = context;

  // 2. One side after the other, so that one model at a time is resident; the last one stays for what
  // follows.
  for (Side* side : {&a, &b}) {
    auto& described = side->name == 'a' ? result.a : result.b;
    if (side->recorded) {
      described.description = side->recorded->description();
    } else {
      const auto sample = std::find_if(result.prompts.begin(), result.prompts.end(),
                                       [](const auto& v) { return v.error.empty(); });
      ExamineOptions mine = examine_options;
      mine.untraced = !side->subject.is_reference();
      if (side->subject.is_reference()) mine.chunk = std::min(mine.chunk, kReferenceChunk);
      side->live = std::make_unique<SubjectRun>(side->subject, *side->file, truth, mine, sample->prompt);
      described.description = side->live->engine().backend().description();
      if (!side->subject.is_reference())
        for (auto& d : side->live->check_resident(result.rows_read_back)) {
          // A file that differs is loaded as it is: that is said already.
          if (side->file != &truth) continue;
          result.differences.emplace_back(side->name, std::move(d));
        }
    }
    if (!result.differences.empty() && !options.keep_going && side->name == 'b') break;
    for (PromptVerdict& v : result.prompts) {
      if (!v.error.empty()) continue;
      say(fmt::format("side {}: {} ({} tokens)", side->name, v.prompt.name, v.prompt.ids.size()));
      try {
        (side->name == 'a' ? v.a : v.b) = examine(*side, v.prompt);
      } catch (const Error& error) {
        v.error = error.what();
      }
      described.seconds += (side->name == 'a' ? v.a : v.b).seconds;
    }
    if (side->subject.is_reference())
      side->live.reset();  // its memory is the other side's; nothing repeats it
  }

  // 3. Verdicts.
  for (PromptVerdict& v : result.prompts) {
    if (!v.error.empty()) continue;
    if (!result.differences.empty() && !options.keep_going) {
      const auto& [side, d] = result.differences.front();
      Finding finding;
      if (d.place) finding.place = *d.place;
      set_first(v, FaultKind::input, side, finding,
                fmt::format("{} {} of side {}: {}", d.what, d.name, side, d.detail));
      v.rows_compared = result.rows_read_back + result.tensors_compared;
      continue;
    }
    if (!a.recorded && !b.recorded && !options.repeat_run && a.file == b.file && same_route(v.a, v.b) &&
        !a.subject.fault && !b.subject.fault) {
      v.error = fmt::format(
          "{}: both sides took the same route (the same kernels in the same calls): nothing would be "
          "compared; "
          "choose a longer prompt or another subject, or ask for a repeat with --repeat-run",
          v.prompt.name);
      continue;
    }
    decide(v, a, b, result.differences, truth, options);
    if (v.rows_compared == 0 && v.kind == FaultKind::none)
      v.error = fmt::format("{}: the two sides have no row in common: nothing was compared", v.prompt.name);
    for (const char side : {'a', 'b'}) {
      const Examined& run = side == 'a' ? v.a : v.b;
      if (run.untraced_hash && *run.untraced_hash != run.traced_hash && v.kind != FaultKind::race &&
          !run.launched_hash)
        v.error = fmt::format(
            "side {}: tracing changed the run's bits: a defect of the tap, or of what a device does only "
            "where nobody "
            "looks (operators that meet in one kernel)",
            side);
    }
  }
  for (const PromptVerdict& v : result.prompts) {
    const bool fine = v.kind == FaultKind::none || (v.kind == FaultKind::rounding && options.allow_rounding);
    result.status = std::max(result.status, !v.error.empty() ? 2 : fine ? 0 : 1);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace greta
