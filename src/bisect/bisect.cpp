#include "bisect/bisect.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "bisect/cause.h"
#include "bisect/file_faults.h"
#include "bisect/inputs.h"
#include "bisect/recorded.h"
#include "bisect/wiring.h"
#include "trace/trace.h"

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

HParams hparams_of(const ModelFile& file, const ExamineOptions& options) {
  return truth_plan(file, options.context).hp;
}

void Side::plant_in_copy(const BisectOptions& options) {
  const FaultInfo* info = subject.fault ? find_fault(subject.fault->id) : nullptr;
  if (info == nullptr || info->planted != Planted::file) return;
  const HParams hp = hparams_of(*file, options.examine);
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

/// The first `count` fed tokens must be the prompt's.
std::optional<Finding> foreign_token(const Examined& run, const std::vector<TokenId>& ids) {
  for (size_t p = 0; p < ids.size(); ++p) {
    if (p < run.fed.size() && run.fed[p] == ids[p]) continue;
    Finding finding;
    finding.place = {0, static_cast<int64_t>(p), kNoLayer, Stage::embed_out};
    finding.check = Finding::Check::input;
    finding.index = 0;  // of the row of ids: the id itself
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

void set_first(PromptVerdict& v, FaultKind kind, char side, const std::optional<Finding>& first,
               std::string cause) {
  v.kind = kind;
  v.side = side;
  v.first = first;
  v.cause = std::move(cause);
}

/// A place at which no value was looked at.
Finding at_place(const Place& place, Finding::Check check) {
  Finding finding;
  finding.place = place;
  finding.check = check;
  finding.ratio = std::numeric_limits<double>::infinity();
  return finding;
}

/// INPUT by what was known before a token was fed.
void set_input(PromptVerdict& v, char side, const InputDifference& d) {
  std::optional<Finding> first;
  if (d.place) first = at_place(*d.place, Finding::Check::input);
  set_first(v, FaultKind::input, side, first,
            fmt::format("{} {} of side {}: {}", d.what, d.name, side, d.detail));
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
  set_input(v, side, differences.front());
  if (const Finding* found = first_finding(run)) v.first = *found;
  return true;
}

constexpr std::string_view kRecordAll = "record every stage of every layer at every position";

/// No kind can be told, although both sides were examined.
void leave_undecided(PromptVerdict& v, std::string error) {
  v.error = std::move(error);
  v.undecided = true;
}

/// A side's first finding.
struct First {
  char side = 'b';
  const Finding* finding = nullptr;
};
First first_of(const PromptVerdict& v) {
  const Finding* a = first_finding(v.a);
  const Finding* b = first_finding(v.b);
  if (b != nullptr && (a == nullptr || !(a->place < b->place))) return {'b', b};
  return {'a', a};
}

/// What is not finite and stands before every finding, so that its operator is sound: the file has it.
bool judge_nonfinite(PromptVerdict& v, const First& first, const std::optional<Place>& other_bits,
                     const Plan& truth) {
  const auto [side, found] = first_nonfinite(v);
  if (found == nullptr) return false;
  const RunRecorder::NonFinite& value = *found;
  const Examined& run = side == 'b' ? v.b : v.a;
  if (first.finding != nullptr && !(value.place < first.finding->place)) return false;
  if (other_bits && *other_bits < value.place) return false;
  // The reference is FP64 itself, and nobody judges it.
  const bool judged = run.rows_judged == 0 || run.judged.find(value.place) != nullptr;
  if (!judged && first.finding != nullptr) return false;  // an operator is wrong, whatever this is
  Finding finding = at_place(value.place, Finding::Check::nonfinite);
  if (judged) {
    finding.index = value.index;
    finding.got = finding.expected = value.value;
    finding.ratio = 0.0;
  }
  RunRecorder::NonFinite shown = value;
  if (shown.place.sequence == 0) shown.place.sequence = run.number;
  const std::string cause = nonfinite_cause(truth, shown, side, judged);
  set_first(v, judged ? FaultKind::input : FaultKind::none, side, finding, judged ? cause : "");
  if (!judged)
    leave_undecided(v, fmt::format("{}: whether the file or an operator brought it cannot be told; {}", cause,
                                   kRecordAll));
  return true;
}

/// A verdict's claim about operators, as far as it goes.
std::string inside_bounds(const PromptVerdict& v) {
  if (v.a.sampling.sampled || v.b.sampling.sampled) return "outputs outside their bound: " + coverage_of(v);
  return "every operator of every layer and token is inside its bound";
}

std::string rounding_cause(const PromptVerdict& v) {
  const Rounding& r = *v.rounding;
  std::string text = fmt::format("rounding: at step {} side a takes token {} and side b token {}; FP64 has ",
                                 r.step, r.a, r.b);
  text += r.true_gap == 0.0 ? "both level"
                            : fmt::format("token {} ahead by {}", r.true_gap > 0.0 ? r.a : r.b,
                                          cause_number(std::abs(r.true_gap)));
  if (r.difference)
    text += fmt::format(", side {}'s rounding moved that by {} the other way", v.side,
                        cause_number(std::abs(*r.difference)));
  if (!r.contributors.empty()) text += fmt::format(", most of it by {}", r.contributors.front().what);
  return text + "; " + inside_bounds(v);
}

/// Whether the side has the row of logits from which it took the token of this step.
bool has_step(const Examined& run, int64_t token) {
  return std::any_of(run.steps.begin(), run.steps.end(), [&](const auto& s) { return s.token == token; });
}

/// The side whose token FP64 has below the other's. The reference is FP64 and does not round.
Side& overturned(Side& a, Side& b, double true_gap) {
  if (a.subject.is_reference()) return b;
  return b.subject.is_reference() || true_gap < 0.0 ? a : b;
}

void judge_rounding(PromptVerdict& v, Side& a, Side& b, size_t step, const ModelFile& truth,
                    const ExamineOptions& asked) {
  Parting at{static_cast<int64_t>(step),
             static_cast<int64_t>(v.prompt.ids.size() + step) - 1,
             v.a.generated[step],
             v.b.generated[step],
             {},
             asked.context};
  for (const char side : {'a', 'b'})
    if (!has_step(side == 'a' ? v.a : v.b, at.token)) {
      leave_undecided(
          v, fmt::format("the tokens part at step {} (a takes {}, b {}), and side {} has no row of "
                         "logits of position {}: whether that is rounding cannot be told; record the logits "
                         "of every position",
                         step, at.a, at.b, side, at.token));
      return;
    }
  if (const std::string unjudged = unjudged_of(v); !unjudged.empty()) {
    leave_undecided(v, fmt::format("the tokens part at step {} (a takes {}, b {}): whether that is "
                                   "rounding cannot be told: {}; {}",
                                   step, at.a, at.b, unjudged, kRecordAll));
    return;
  }
  v.kind = FaultKind::rounding;
  at.ids = std::span(v.b.fed).first(static_cast<size_t>(at.token) + 1);  // side a's, too
  v.rounding = explain_rounding(truth, at, asked.threads, [&](double true_gap) {
    Side& side = overturned(a, b, true_gap);
    v.side = side.name;
    return side.live ? rows_at(*side.live, v.prompt, at.token) : *side.recorded->rows_at(v.prompt, at.token);
  });
  v.first = at_place({0, at.token, kNoLayer, Stage::logits}, Finding::Check::choice);
  v.cause = rounding_cause(v);
}

/// `asked`: the tokens that a live side was to generate.
void judge_tokens(PromptVerdict& v, Side& a, Side& b, const ModelFile& truth, const ExamineOptions& asked) {
  for (const Side* side : {&a, &b}) {
    const auto& made = (side->name == 'a' ? v.a : v.b).generated;
    if (side->recorded || static_cast<int64_t>(made.size()) >= asked.max_tokens) continue;
    v.error = fmt::format("{}: side {} generated {} tokens of {} although its logits are finite: a defect",
                          v.prompt.name, side->name, made.size(), asked.max_tokens);
    return;
  }
  const size_t steps = std::min(v.a.generated.size(), v.b.generated.size());
  size_t step = 0;
  while (step < steps && v.a.generated[step] == v.b.generated[step]) ++step;
  if (step < steps) return judge_rounding(v, a, b, step, truth, asked);
  if (const std::string unjudged = unjudged_of(v); !unjudged.empty())
    return leave_undecided(v, fmt::format("no divergence in what was judged, and whether the rest is sound "
                                          "cannot be told: {}; {}",
                                          unjudged, kRecordAll));
  v.kind = FaultKind::none;
  v.cause = "no divergence";
}

}  // namespace

std::string unjudged_of(const PromptVerdict& v) {
  std::string text;
  for (const char side : {'a', 'b'}) {
    const Examined& run = side == 'a' ? v.a : v.b;
    if (run.lacks.empty()) continue;
    text += fmt::format(
        "{}{} of {} rows of the trace of side {} were judged, and not (not recorded, or without what they "
        "were made from): {}",
        text.empty() ? "" : "; ", run.rows_judged, run.rows_expected, side, run.lacks);
  }
  return text;
}

std::string coverage_of(const PromptVerdict& v) {
  const uint64_t outputs = v.a.outputs + v.b.outputs;
  const uint64_t values = v.a.values + v.b.values;
  if (outputs == 0) return "";
  const std::string unjudged = unjudged_of(v);
  const std::string rest = unjudged.empty() ? "" : "; " + unjudged;
  if (!v.a.sampling.sampled && !v.b.sampling.sampled)
    return fmt::format("{}{} outputs judged{}", rest.empty() ? "all " : "", outputs, rest);
  const bool sound = v.kind == FaultKind::none || v.kind == FaultKind::rounding;
  const uint64_t failed = v.a.checksums_failed + v.b.checksums_failed;
  return fmt::format("{} in {} of {} outputs; the other {} were seen by {} checksums{}{}",
                     sound ? "none" : "some", values, outputs, outputs - values,
                     v.a.checksums + v.b.checksums,
                     failed == 0 ? std::string(", which all hold")
                                 : fmt::format(", {} of which failed: their rows are judged whole", failed),
                     rest);
}

PromptVerdict verdict_alone(SubjectRun& run, const Prompt& prompt,
                            const std::vector<InputDifference>& resident) {
  PromptVerdict v;
  v.prompt = prompt;
  v.wiring = run.wiring();
  v.b = run.examine(prompt);
  if (v.b.rows_judged == 0 || v.b.rows_replayed == 0) fail("{}: nothing was judged or repeated", prompt.name);
  if (judge_inputs(v, v.b, 'b', resident)) return v;
  const First first = first_of(v);
  if (judge_nonfinite(v, first, {}, run.truth()) || first.finding == nullptr) return v;
  const FaultKind kind = kind_of(*first.finding, v.b, &run, prompt);
  set_first(v, kind, 'b', *first.finding, cause_of(*v.wiring, kind, *first.finding, 'b', true));
  return v;
}

namespace {

/// The sides have other bits at `place` although they must not, and nothing before it is wrong.
void judge_sides(PromptVerdict& v, Side& a, Side& b, const Place& place) {
  const Finding finding = at_place(place, Finding::Check::sides);
  for (Side* s : {&b, &a}) {
    const Examined& run = s->name == 'a' ? v.a : v.b;
    if (!s->live->varies(v.prompt, place, *run.hashes.find(place))) continue;
    set_first(v, FaultKind::race, s->name, finding,
              cause_of(*v.wiring, FaultKind::race, finding, s->name, true));
    return;
  }
  set_first(v, FaultKind::operator_, 'b', finding,
            fmt::format("{}: the two sides have other bits although all before agrees and both are inside "
                        "the bound: the order of addition depends on the schedule",
                        name_of(v.wiring->rule(place.stage).op)));
}

using Differences = std::vector<std::pair<char, InputDifference>>;

/// INPUT where a side's tokens, file or resident weights are not what they should be.
bool decide_inputs(PromptVerdict& v, Side& a, Side& b, const Differences& differences) {
  for (Side* side : {&a, &b}) {
    std::vector<InputDifference> mine;
    for (const auto& [name, d] : differences)
      if (name == side->name) mine.push_back(d);
    if (!judge_inputs(v, side->name == 'a' ? v.a : v.b, side->name, mine)) continue;
    if (mine.empty() || !bits_must_agree(a, b)) return true;
    // The first stage that it spoils, to the bit.
    const auto spoilt = first_other_bits(v.a, v.b, common_positions(v.a, v.b), v.rows_compared);
    if (spoilt && (!v.first || !(v.first->place == *spoilt)))
      v.first = at_place(*spoilt, Finding::Check::input);
    return true;
  }
  return false;
}

/// Everything that the examined sides of one prompt say.
void decide(PromptVerdict& v, Side& a, Side& b, const Differences& differences, const ModelFile& truth,
            const ExamineOptions& asked) {
  if (decide_inputs(v, a, b, differences)) return;
  const int64_t positions = common_positions(v.a, v.b);
  std::optional<Place> other_bits;
  v.rows_common = common_rows(v.a, v.b, positions);
  if (bits_must_agree(a, b)) other_bits = first_other_bits(v.a, v.b, positions, v.rows_compared);
  const First first = first_of(v);
  if (judge_nonfinite(v, first, other_bits, truth_plan(truth, asked.context))) return;
  if (other_bits && (first.finding == nullptr || *other_bits < first.finding->place))
    return judge_sides(v, a, b, *other_bits);
  if (first.finding == nullptr) return judge_tokens(v, a, b, truth, asked);
  Side& side = first.side == 'a' ? a : b;
  const FaultKind kind = kind_of(*first.finding, first.side == 'a' ? v.a : v.b, side.live.get(), v.prompt);
  set_first(v, kind, first.side, *first.finding,
            cause_of(*v.wiring, kind, *first.finding, first.side, side.recorded == nullptr));
}

void require_layers(const std::set<int>& layers, int64_t count) {
  for (const int layer : layers)
    if (layer >= count) fail("--layers: {} is past the last layer, {}", layer, count - 1);
}

void require_pair(const BisectOptions& options) {
  if (options.a.is_reference() && options.b.is_reference())
    fail(
        "subjects '{}' and '{}': both are the reference, which judges and is not judged: nothing would be "
        "repeated or judged; expected a device (cpu, cuda:0) or a trace on one side",
        options.a.text, options.b.text);
  if (options.a.text == options.b.text && !options.repeat_run)
    fail(
        "both subjects are '{}': nothing would be compared; name another, or ask for a repeat with "
        "--repeat-run",
        options.a.text);
}

/// One bisect from files to verdicts.
class Search {
 public:
  explicit Search(const BisectOptions& options)
      : o_(options),
        main_(opened(options)),
        a_('a', options.a, main_.get()),
        b_('b', options.b, main_.get()) {
    examine_ = o_.examine;
  }

  BisectResult run() {
    require_model(*main_);
    result_.model = main_;
    open_files();
    describe_files();
    require_layers(o_.examine.layers, result_.a.hp.layers);
    compare_inputs();
    open_traces();
    take_prompts();
    examine_sides();
    for (PromptVerdict& v : result_.prompts)
      if (v.error.empty()) judge(v);
    for (const PromptVerdict& v : result_.prompts) {
      const bool fine = v.kind == FaultKind::none || (v.kind == FaultKind::rounding && o_.allow_rounding);
      result_.status = std::max(result_.status, !v.error.empty() ? 2 : fine ? 0 : 1);
    }
    return std::move(result_);
  }

 private:
  static std::shared_ptr<ModelFile> opened(const BisectOptions& o) {
    return o.opened ? o.opened : std::make_shared<ModelFile>(ModelFile::open(o.model, o.tokenizer));
  }
  /// By what side b and the traces are judged.
  const ModelFile& truth() const { return *a_.file; }
  BisectResult::Side& described(const Side& side) { return side.name == 'a' ? result_.a : result_.b; }
  /// A difference of the inputs is the verdict: nothing more is loaded or run.
  bool stopped() const { return !result_.differences.empty() && !o_.keep_going; }

  void open_files() {
    for (Side* side : {&a_, &b_}) {
      if (side->subject.file.empty()) continue;
      side->own = std::make_unique<ModelFile>(ModelFile::open(side->subject.file));
      require_model(*side->own);
      side->file = side->own.get();
    }
    if (b_.subject.is_trace()) b_.file = a_.file;
    for (Side* side : {&a_, &b_}) side->plant_in_copy(o_);
  }

  void describe_files() {
    for (Side* side : {&a_, &b_}) {
      const Subject& s = side->subject;
      const bool same = side == &b_ && b_.file == a_.file;
      described(*side) = {s,
                          side->file->file.path(),
                          same ? result_.a.sha256 : side->file->file.sha256(),
                          hparams_of(*side->file, o_.examine),
                          s.device,
                          arithmetic_text(s.device, s.backend),
                          "",
                          0.0};
    }
  }

  void compare_inputs() {
    if (a_.file == b_.file) {
      result_.tensors_compared = truth().file.tensors().size();
      return;
    }
    for (auto& d : compare_files(truth(), result_.a.hp, *b_.file, result_.b.hp, result_.tensors_compared))
      result_.differences.emplace_back('b', std::move(d));
    if (const auto other = other_shape(result_.a.hp, result_.b.hp); other && o_.keep_going)
      fail("--keep-going: {} cannot be judged by {}: {}; leave --keep-going out, the verdict is INPUT",
           b_.file->file.path(), truth().file.path(), *other);
  }

  void open_traces() {
    for (Side* side : {&a_, &b_}) {
      if (!side->subject.is_trace()) continue;
      side->recorded =
          std::make_unique<RecordedRun>(side->subject.trace, truth(), result_.a.sha256, o_.examine);
      auto& to = described(*side);
      to.description = side->recorded->description();
      to.device = side->recorded->device();
      to.arithmetic = side->recorded->arithmetic();
    }
  }

  void take_prompts() {
    std::vector<Prompt> prompts = o_.prompts;
    const bool given = !prompts.empty();
    for (const Side* side : {&a_, &b_}) {
      if (!side->recorded || given) continue;
      for (Prompt& p : side->recorded->prompts_besides(prompts)) {
        if (side == &b_ && a_.recorded) p.name += "-b";  // side a has a prompt of that name
        prompts.push_back(std::move(p));
      }
    }
    if (prompts.empty()) fail("no prompt: expected --prompts, or a recorded trace that has some");
    if (a_.recorded || b_.recorded) {  // as many steps as were recorded
      size_t steps = 0;
      for (const Side* side : {&a_, &b_})
        for (const Prompt& p : prompts)
          if (side->recorded) steps = std::max(steps, side->recorded->generated_by(p));
      examine_.max_tokens = static_cast<int64_t>(steps);
    }
    const auto wiring = std::make_shared<const Wiring>(result_.a.hp);
    const int64_t limit = o_.examine.context.value_or(result_.a.hp.context);
    examine_.room = examine_.rows = 0;
    for (Prompt& p : prompts) {
      PromptVerdict v;
      const auto length = static_cast<int64_t>(p.ids.size());
      const int64_t needed = length + examine_.max_tokens;
      if (p.ids.empty()) {
        v.error = fmt::format("{}: the prompt is empty, 0 tokens; expected at least 1", p.name);
      } else if (needed > limit) {
        v.error = fmt::format("{}: {} tokens and {} to generate, the context holds {}", p.name, length,
                              examine_.max_tokens, limit);
      } else {
        examine_.room = std::max(examine_.room, needed);
        examine_.rows += length + std::max<int64_t>(examine_.max_tokens - 1, 0);
      }
      v.prompt = std::move(p);
      v.wiring = wiring;
      result_.prompts.push_back(std::move(v));
    }
    if (examine_.room == 0) fail("{}", result_.prompts.front().error);
  }

  /// One side after the other, so that one model at a time is resident; the last one stays for what follows.
  void examine_sides() {
    for (Side* side : {&a_, &b_}) {
      if (stopped()) return;
      if (!side->recorded) load(*side);
      if (stopped()) return;
      for (PromptVerdict& v : result_.prompts)
        if (v.error.empty()) examine(*side, v);
      if (side->subject.is_reference()) side->live.reset();  // its memory is the other side's
    }
  }

  void load(Side& side) {
    const auto sample = std::find_if(result_.prompts.begin(), result_.prompts.end(),
                                     [](const auto& v) { return v.error.empty(); });
    if (sample == result_.prompts.end()) return;
    ExamineOptions mine = examine_;
    mine.untraced = !side.subject.is_reference();
    if (side.subject.is_reference()) mine.chunk = std::min(mine.chunk, kReferenceChunk);
    side.live = std::make_unique<SubjectRun>(side.subject, *side.file, truth(), mine, sample->prompt);
    described(side).description = side.live->engine().backend().description();
    if (side.subject.is_reference()) return;
    for (auto& d : side.live->check_resident(result_.rows_read_back))
      if (side.file == &truth())  // a file that differs is loaded as it is: that is said already
        result_.differences.emplace_back(side.name, std::move(d));
  }

  void examine(Side& side, PromptVerdict& v) {
    if (o_.log) o_.log(fmt::format("side {}: {} ({} tokens)", side.name, v.prompt.name, v.prompt.ids.size()));
    Examined& run = side.name == 'a' ? v.a : v.b;
    try {
      run = side.recorded ? side.recorded->examine(v.prompt) : side.live->examine(v.prompt);
    } catch (const Error& error) {
      v.error = error.what();
    }
    described(side).seconds += run.seconds;
  }

  void judge(PromptVerdict& v) {
    if (stopped()) {
      set_input(v, result_.differences.front().first, result_.differences.front().second);
      v.rows_compared = result_.rows_read_back + result_.tensors_compared;
      return;
    }
    const bool two_runs = !a_.recorded && !b_.recorded && a_.file == b_.file;
    if (two_runs && !o_.repeat_run && same_route(v.a, v.b) && !a_.subject.fault && !b_.subject.fault) {
      v.error = fmt::format(
          "{}: both sides took the same route (the same kernels in the same calls): nothing would be "
          "compared; choose a longer prompt or another subject, or ask for a repeat with --repeat-run",
          v.prompt.name);
      return;
    }
    decide(v, a_, b_, result_.differences, truth(), examine_);
    require_compared(v);
    require_fired(v);
    require_same_when_traced(v);
  }

  /// A verdict that finds nothing must have looked.
  static void require_compared(PromptVerdict& v) {
    if (!v.error.empty() || (v.kind != FaultKind::none && v.kind != FaultKind::rounding)) return;
    if (v.rows_common == 0)
      v.error = fmt::format("{}: the two sides have no row in common: nothing was compared", v.prompt.name);
    if (v.a.values + v.b.values == 0) v.error = fmt::format("{}: no value was judged", v.prompt.name);
  }

  /// A verdict that finds nothing in spite of a planted fault says nothing where that changed nothing.
  void require_fired(PromptVerdict& v) const {
    if (!v.error.empty() || (v.kind != FaultKind::none && v.kind != FaultKind::rounding)) return;
    for (const Side* side : {&a_, &b_}) {
      if (!side->subject.fault || (side->name == 'a' ? v.a : v.b).planted_fired) continue;
      const std::string& id = side->subject.fault->id;
      if (find_fault(id)->planted == Planted::file) continue;  // a file that differs is INPUT
      leave_undecided(
          v,
          fmt::format("the planted fault {} changed no bit of this run of side {}: expected at least "
                      "one row that it spoils, got none, so nothing was there to find; name another layer, "
                      "token or seed ({}@layer,token,seed), or a prompt and a device where it can show",
                      id, side->name, id));
      return;
    }
  }

  static void require_same_when_traced(PromptVerdict& v) {
    for (const char side : {'a', 'b'}) {
      const Examined& run = side == 'a' ? v.a : v.b;
      if (!run.untraced_hash || *run.untraced_hash == run.traced_hash || v.kind == FaultKind::race ||
          run.launched_hash)
        continue;
      v.error = fmt::format(
          "side {}: tracing changed the run's bits: a defect of the tap, or of what a device does only where "
          "nobody looks (operators that meet in one kernel)",
          side);
    }
  }

  const BisectOptions& o_;
  BisectResult result_;
  ExamineOptions examine_;  ///< with room and steps for all prompts
  std::shared_ptr<ModelFile> main_;
  Side a_, b_;
};

}  // namespace

void require_model(const ModelFile& model) {
  BackendOptions plain;
  plain.kv_type = KvType::f64;
  plain.threads = 1;  // it plans and computes nothing
  EngineOptions options;
  options.room = 1;  // whether a run's context fits is for its device to say
  options.chunk = 1;
  require_fit(Engine::plan(model, *make_backend("reference", plain), options), model.file);
}

FirstNonFinite first_nonfinite(const PromptVerdict& v) {
  const auto &a = v.a.nonfinite, &b = v.b.nonfinite;
  if (b && (!a || !(a->place < b->place))) return {'b', &*b};
  return {'a', a ? &*a : nullptr};
}

BisectResult bisect(const BisectOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  require_pair(options);
  BisectResult result = Search(options).run();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace greta
