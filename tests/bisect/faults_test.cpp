// Every fault of the catalogue, planted in tiny models: it changes the run where its log says, first there,
// and nothing before.
#include "bisect/faults.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "base/error.h"
#include "bisect/fault_base.h"
#include "bisect/fault_blocks.h"
#include "support.h"

namespace greta {
namespace {

constexpr int64_t kVocab = 300;
constexpr int64_t kPrompt = 84;  // past a page, and past the tiled path's 32 rows in a call of 40
constexpr int64_t kTokens = 90;  // the prompt, then one-token calls
constexpr int64_t kChunk = 44;

/// The hashes of a run, in the order in which FIRST is sought.
using Hashes = std::map<Place, uint64_t>;

struct Subject {
  quant::Type type = quant::Type::Q4_1;
  WeightMode weights = WeightMode::stored;
  std::string device = "cpu";
  int64_t sequences = 2;
  std::string arch = "llama";
  bool operator<(const Subject& other) const {
    return std::tie(arch, type) < std::tie(other.arch, other.type);
  }
};

/// A small grouped model; of llama with biases and rotary scaling, of gemma with a window shorter than the
/// text.
class Models {
 public:
  const ModelFile& of(const Subject& subject) {
    const quant::Type type = subject.type;
    auto& model = models_[subject];
    if (!model) {
      SynthOptions synth;
      synth.arch = subject.arch;
      synth.dim = quant::traits(type).block > 32 ? 256 : 96;
      synth.layers = 3;
      synth.ffn_dim = quant::traits(type).block > 32 ? 256 : 160;
      synth.heads = 6;
      synth.kv_heads = 2;
      synth.head_dim = quant::traits(type).block > 32 ? 128 : 32;
      synth.vocab = kVocab;
      synth.bias = subject.arch == "llama";
      if (synth.bias) synth.rope_scaling = "linear:2";
      if (subject.arch.starts_with("gemma")) synth.window = 20;
      synth.type = type;
      const auto path = folder_ / (subject.arch + std::string(quant::traits(type).name));
      synthesise(synth, path, 2);
      model = std::make_unique<ModelFile>(ModelFile::open(path));
    }
    return *model;
  }

 private:
  test::TemporaryFolder folder_;
  std::map<Subject, std::unique_ptr<ModelFile>> models_;
};

Models& models() {
  static Models all;
  return all;
}

HParams hparams(const Subject& subject) {
  static std::map<Subject, HParams> known;
  const auto found = known.find(subject);
  if (found != known.end()) return found->second;
  Engine engine(models().of(subject), {});
  return known[subject] = engine.hparams();
}

EngineOptions options_of(const Subject& subject) {
  EngineOptions o;
  o.device = subject.device;
  o.context = 128;
  o.chunk = kChunk;
  o.sequences = subject.sequences;
  o.all_logits = true;
  o.backend.weights = subject.weights;
  o.backend.threads = 2;
  return o;
}

std::unique_ptr<Engine> engine_of(const Subject& subject, const Plant* plant) {
  EngineOptions o = options_of(subject);
  if (plant != nullptr)
    o.between = [&subject, plant](std::unique_ptr<Backend> below) {
      return plant_fault(std::move(below), *plant, hparams(subject));
    };
  return std::make_unique<Engine>(models().of(subject), o);
}

const std::vector<TokenId>& text_ids() {
  static const auto ids = test::random_tokens(kTokens, kVocab, 3);
  return ids;
}

/// The prompt in chunks beside a neighbour's tokens, then one token a call.
Hashes run(Engine& engine, const std::vector<TokenId>& ids, int64_t prompt = kPrompt) {
  HashTap tap;
  const auto neighbour = test::random_tokens(70, kVocab, 8);
  std::span<const TokenId> rest(ids), other(neighbour);
  for (int64_t s = 0; s < engine.cache().sequences(); ++s) engine.clear(s);
  const bool batched = engine.cache().sequences() > 1;
  for (int64_t done = 0; done < prompt;) {
    const auto count = std::min<int64_t>(40, prompt - done);
    std::vector<Feed> feeds;  // the neighbour first, without logits: rows, batch rows and logits rows differ
    if (batched) feeds.push_back({1, other.subspan(0, 4), Feed::Logits::none});
    feeds.push_back({0, rest.subspan(0, static_cast<size_t>(count)), Feed::Logits::all});
    engine.evaluate(feeds, &tap);
    rest = rest.subspan(static_cast<size_t>(count));
    other = other.subspan(4);
    done += count;
  }
  for (; !rest.empty(); rest = rest.subspan(1)) {
    const Feed feed{0, rest.subspan(0, 1), Feed::Logits::all};
    engine.evaluate({&feed, 1}, &tap);
  }
  Hashes hashes;
  for (const auto& [key, hash] : tap.hashes())
    hashes[{key.sequence, key.position, key.layer, key.stage}] = hash;
  return hashes;
}

Hashes clean_run(const Subject& subject) {
  static std::map<std::tuple<std::string, quant::Type, WeightMode, std::string, int64_t>, Hashes> known;
  Hashes& hashes = known[{subject.arch, subject.type, subject.weights, subject.device, subject.sequences}];
  if (hashes.empty()) hashes = run(*engine_of(subject, nullptr), text_ids());
  return hashes;
}

std::string text_of(const Place& place) {
  return fmt::format("sequence {} token {} {}", place.sequence, place.token,
                     trace_name(place.layer, place.stage));
}

/// The first place where two runs differ, and how many places were compared.
std::optional<Place> first_difference(const Hashes& a, const Hashes& b) {
  EXPECT_GT(a.size(), 90u * 3u * 16u);
  EXPECT_EQ(a.size(), b.size());
  for (const auto& [place, hash] : a)
    if (b.at(place) != hash) return place;
  return std::nullopt;
}

std::set<Place> differences(const Hashes& a, const Hashes& b) {
  std::set<Place> all;
  for (const auto& [place, hash] : a)
    if (b.at(place) != hash) all.insert(place);
  return all;
}

void expect_log_inside(const Plant& plant) {
  for (const auto& [place, row] : plant.log->fired) {
    const bool rotated = plant.stage == Stage::q_post_rope && place.stage == Stage::k_post_rope;
    const bool weighed = plant.stage == Stage::experts && place.stage == Stage::expert_weights;
    EXPECT_TRUE(place.stage == plant.stage || rotated || weighed) << text_of(place);
    EXPECT_EQ(place.layer, plant.layer) << text_of(place);
    EXPECT_EQ(row.healthy.size(), row.faulty.size());
    if (plant.info->one_token) {
      EXPECT_EQ(place.sequence, 0);
      EXPECT_EQ(place.token, plant.token);
    }
  }
}

/// An architecture that has what the fault needs.
std::string arch_for(std::string_view id) {
  if (id == "softcap-dropped") return "gemma2";
  if (id.starts_with("expert") || id == "router-precision") return "qwen3moe";
  for (const char* gemma :
       {"window-short", "rope-exchange", "head-norm-late", "post-norm-skip", "embed-scale"})
    if (id == gemma) return "gemma3";
  return "llama";
}

/// Which subject a fault can show in.
Subject subject_for(const FaultInfo& info) {
  Subject subject;
  if (info.needs.int8) subject.weights = WeightMode::int8;
  subject.arch = arch_for(info.id);
  return subject;
}

std::vector<std::string> planted_ids() {
  std::vector<std::string> ids;
  for (const FaultInfo& info : fault_catalogue())
    if (!info.needs.gpu && info.planted != Planted::file) ids.emplace_back(info.id);
  return ids;
}

std::string test_name(std::string id) {
  for (char& c : id)
    if (c == '-') c = '_';
  return id;
}

class EveryFault : public testing::TestWithParam<std::string> {};

TEST_P(EveryFault, IsFirstWhereItsLogSays) {
  const FaultInfo& info = *find_fault(GetParam());
  const Subject subject = subject_for(info);
  for (const uint64_t seed : {1, 2, 5}) {
    FaultSpec spec{std::string(info.id), {}, {}, seed};
    const Plant plant = draw_plant(spec, hparams(subject), kPrompt, kTokens);
    SCOPED_TRACE(fmt::format("seed {} {} token {}", seed, trace_name(plant.layer, plant.stage), plant.token));
    EXPECT_THAT(info.stages, testing::Contains(plant.stage));
    const auto engine = engine_of(subject, &plant);
    const auto ids = planted_tokens(plant, std::span(text_ids()), kVocab);
    Hashes wrong = run(*engine, ids);
    for (int again = 0; info.kind == FaultKind::race && plant.log->fired.empty() && again < 64; ++again)
      wrong = run(*engine, ids);
    ASSERT_FALSE(plant.log->fired.empty());
    EXPECT_LE(plant.log->fired.size(), FaultLog::kMost);
    const auto first = first_difference(clean_run(subject), wrong);
    ASSERT_TRUE(first.has_value());
    EXPECT_EQ(text_of(*first), text_of(plant.log->fired.begin()->first));
    expect_log_inside(plant);
    if (!info.one_token) continue;
    EXPECT_LE(plant.log->fired.size(), plant.stage == Stage::q_post_rope ? 2u : 1u);
  }
}

/// What the log does not name at the planted place has the healthy bits: nothing more was spoilt than said.
TEST_P(EveryFault, LogsEveryRowThatItSpoils) {
  const FaultInfo& info = *find_fault(GetParam());
  const Subject subject = subject_for(info);
  const int layer = 2;  // the last: what follows from an earlier call's fault reaches no later call there
  const bool anywhere = is_per_layer(info.stages.front());
  const Plant plant =
      draw_plant({std::string(info.id), anywhere ? std::optional(layer) : std::nullopt, {}, 4},
                 hparams(subject), kPrompt, kTokens);
  const auto ids = planted_tokens(plant, std::span(text_ids()), kVocab);
  const auto engine = engine_of(subject, &plant);
  auto different = differences(clean_run(subject), run(*engine, ids));
  for (int again = 0; info.kind == FaultKind::race && plant.log->fired.empty() && again < 64; ++again)
    different = differences(clean_run(subject), run(*engine, ids));
  std::set<Place> spoilt, logged;
  for (const Place& place : different)
    if (place.stage == plant.stage && place.layer == plant.layer) spoilt.insert(place);
  for (const auto& [place, row] : plant.log->fired)
    if (place.stage == plant.stage) logged.insert(place);
  EXPECT_FALSE(logged.empty());
  if (info.id.starts_with("rope-") && info.id != "rope-k-skip")  // keys are rotated wrong with the queries
    EXPECT_EQ(plant.log->fired.size(), 2 * logged.size());
  EXPECT_EQ(logged, spoilt);
}

TEST_P(EveryFault, ChangesNothingWhereItsCallNeverComes) {
  const FaultInfo& info = *find_fault(GetParam());
  const Subject subject = subject_for(info);
  Plant plant = draw_plant({std::string(info.id), {}, {}, 1}, hparams(subject), kPrompt, kTokens);
  plant.layer = 77;
  if (info.planted == Planted::data || info.planted == Planted::input) return;  // they have no call
  EXPECT_FALSE(first_difference(clean_run(subject), run(*engine_of(subject, &plant), text_ids())));
  EXPECT_TRUE(plant.log->fired.empty());
  EXPECT_EQ(plant.log->chances, 0u);
}

TEST_P(EveryFault, IsSilentWhenNotRecording) {
  const FaultInfo& info = *find_fault(GetParam());
  const Subject subject = subject_for(info);
  const Plant plant = draw_plant({std::string(info.id), {}, {}, 1}, hparams(subject), kPrompt, kTokens);
  const auto ids = planted_tokens(plant, std::span(text_ids()), kVocab);
  const auto engine = engine_of(subject, &plant);
  const Hashes loud = run(*engine, ids);
  plant.log->fired.clear();
  plant.log->recording = false;
  const uint64_t chances = plant.log->chances;
  const Hashes quiet = run(*engine, ids);
  EXPECT_TRUE(plant.log->fired.empty());
  EXPECT_EQ(plant.log->chances, chances);
  if (info.kind != FaultKind::race) EXPECT_FALSE(first_difference(loud, quiet)) << "logging changes the run";
}

/// Repeats every call through operators(), as a replay does: the same inputs, fresh outputs.
class Repeats : public Interposer {
 public:
  /// Called with the rows of the run and of the repeated call.
  using Compare = std::function<void(const Place&, const std::vector<double>&, const std::vector<double>&)>;
  Repeats(std::unique_ptr<Backend> backend, const Plant& plant, Compare compare)
      : Interposer(std::move(backend)), plant_(plant), compare_(std::move(compare)) {}

  void embed(const EmbedArgs& args) override { once(args, args.batch->rows, &Backend::embed); }
  void rmsnorm(const RmsnormArgs& args) override { in_place(args, &Backend::rmsnorm); }
  void softcap(const SoftcapArgs& args) override { in_place(args, &Backend::softcap); }
  void combine(const CombineArgs& args) override { once(args, args.rows, &Backend::combine); }
  void choose_experts(const ChooseExpertsArgs& args) override {
    below().choose_experts(args);
    const auto experts = copy(args.experts, args.rows);
    const auto weights = copy(args.weights, args.rows);
    ChooseExpertsArgs again = args;
    again.experts.data = experts->data();
    again.weights.data = weights->data();
    const Quiet quiet(plant_);
    operators().choose_experts(again);
    compare(args.site, Stage::experts, args.experts, again.experts, args.rows);
    compare(args.site, Stage::expert_weights, args.weights, again.weights, args.rows);
  }
  void glu(const GluArgs& args) override { once(args, args.rows, &Backend::glu); }
  void attention(const AttentionArgs& args) override { once(args, args.batch->rows, &Backend::attention); }
  void add(const AddArgs& args) override {
    const auto a = copy(args.a, args.rows);  // the run may write its result there
    below().add(args);
    AddArgs again = args;
    again.a = {a->data(), args.a.width};
    repeat(again, args.rows, again.site.stage, args.out, &Backend::add);
  }
  void matmul(const MatmulArgs& args) override { products(args, &Backend::matmul); }
  void expert_matmul(const ExpertMatmulArgs& args) override { products(args, &Backend::expert_matmul); }
  template <class Args>
  void products(const Args& args, void (Backend::*run)(const Args&)) {
    (below().*run)(args);
    Args again = args;
    std::vector<std::unique_ptr<Buffer>> buffers;
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i) {
      buffers.push_back(
          allocate(static_cast<size_t>(args.rows * args.outputs[i].out.width) * element_bytes()));
      again.outputs[i].out.data = buffers.back()->data();
    }
    const Quiet quiet(plant_);
    (operators().*run)(again);
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
      compare(args.site, args.outputs[i].stage, args.outputs[i].out, again.outputs[i].out, args.rows);
  }
  void rope(const RopeArgs& args) override {
    below().rope(args);
    const ScratchCache fresh(below(), args.cache, *args.batch);
    const auto q = copy(args.q_out, args.batch->rows);
    RopeArgs again = args;
    again.cache = fresh.layer();
    again.q_out.data = q->data();
    const Quiet quiet(plant_);
    operators().rope(again);
    compare(args.site, Stage::q_post_rope, args.q_out, again.q_out, args.batch->rows);
    for (const auto& [part, stage] : {std::pair(KvPart::k, Stage::k_post_rope), {KvPart::v, Stage::v}}) {
      std::vector<double> ran(static_cast<size_t>(args.k.width)), repeated(ran.size());
      for (int64_t row = 0; row < args.batch->rows; ++row) {
        read_kv(args.cache, part, *args.batch, row, ran.data());
        read_kv(fresh.layer(), part, *args.batch, row, repeated.data());
        compare_(place(args.site, stage, row), ran, repeated);
      }
    }
  }

 private:
  /// Repeated calls are not logged.
  struct Quiet {
    explicit Quiet(const Plant& plant) : log(*plant.log) { log.recording = false; }
    ~Quiet() { log.recording = true; }
    FaultLog& log;
  };
  static Place place(const Site& site, Stage stage, int64_t row) {
    const int64_t at = site.batch_row(row);
    return {site.batch->sequences[at], site.batch->positions[at], site.layer, stage};
  }
  std::unique_ptr<Buffer> copy(const View& view, int64_t rows) {
    auto buffer = allocate(static_cast<size_t>(rows * view.width) * element_bytes());
    std::vector<double> values(static_cast<size_t>(rows * view.width));
    read(view, 0, rows, values.data());
    write({buffer->data(), view.width}, 0, rows, values.data());
    return buffer;
  }
  /// The run may write its result over its input; a norm of each head apart is looked at by whole rows.
  template <class Args>
  void in_place(const Args& args, void (Backend::*run)(const Args&)) {
    const auto x = copy(args.x, args.rows);
    (below().*run)(args);
    Args again = args;
    again.x.data = x->data();
    const auto fresh = allocate(static_cast<size_t>(args.rows * args.out.width) * element_bytes());
    again.out.data = fresh->data();
    const int64_t parts = args.site.parts;
    Site whole = args.site;
    whole.parts = 1;
    const Quiet quiet(plant_);
    (operators().*run)(again);
    compare(whole, args.site.stage, {args.out.data, args.out.width * parts},
            {fresh->data(), args.out.width * parts}, args.rows / parts);
  }
  template <class Args>
  void once(const Args& args, int64_t rows, void (Backend::*run)(const Args&)) {
    (below().*run)(args);
    repeat(args, rows, args.site.stage, args.out, run);
  }
  template <class Args>
  void repeat(Args args, int64_t rows, Stage stage, const View& ran, void (Backend::*run)(const Args&)) {
    const auto fresh = allocate(static_cast<size_t>(rows * ran.width) * element_bytes());
    args.out.data = fresh->data();
    const Quiet quiet(plant_);
    (operators().*run)(args);
    compare(args.site, stage, ran, args.out, rows);
  }
  void compare(const Site& site, Stage stage, const View& ran, const View& repeated, int64_t rows) {
    std::vector<double> a(static_cast<size_t>(ran.width)), b(a.size());
    for (int64_t row = 0; row < rows; ++row) {
      read(ran, row, 1, a.data());
      read(repeated, row, 1, b.data());
      compare_(place(site, stage, row), a, b);
    }
  }

  const Plant& plant_;
  Compare compare_;
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

/// A repeated call has a kernel's fault and not a call's: OPERATOR and WIRE are told apart by that.
TEST_P(EveryFault, RecursInARepeatedCallIfItIsInTheKernel) {
  const FaultInfo& info = *find_fault(GetParam());
  if (info.planted == Planted::input) return;
  const Subject subject = subject_for(info);
  const Plant plant = draw_plant({std::string(info.id), {}, {}, 6}, hparams(subject), kPrompt, kTokens);
  std::map<Place, std::pair<std::vector<double>, std::vector<double>>> unlike;  // the run's row, the repeated
  size_t compared = 0;
  EngineOptions o = options_of(subject);
  o.between = [&](std::unique_ptr<Backend> below) {
    return std::make_unique<Repeats>(
        plant_fault(std::move(below), plant, hparams(subject)), plant,
        [&](const Place& place, const std::vector<double>& ran, const std::vector<double>& repeated) {
          ++compared;
          if (!same_bits(ran, repeated)) unlike[place] = {ran, repeated};
        });
  };
  Engine engine(models().of(subject), o);
  for (int again = 0; plant.log->fired.empty() && again < 64; ++again) {  // a race may not come at once
    unlike.clear();
    run(engine, text_ids());
  }
  EXPECT_GT(compared, 90u * 3u * 15u);
  ASSERT_FALSE(plant.log->fired.empty());
  if (info.planted != Planted::call) {
    EXPECT_TRUE(unlike.empty()) << text_of(unlike.begin()->first);
    return;
  }
  for (const auto& [place, row] : plant.log->fired) {
    SCOPED_TRACE(text_of(place));
    const auto found = unlike.find(place);
    ASSERT_TRUE(found != unlike.end());
    EXPECT_TRUE(same_bits(found->second.first, row.faulty));
    EXPECT_TRUE(same_bits(found->second.second, row.healthy));
  }
}

INSTANTIATE_TEST_SUITE_P(Catalogue, EveryFault, testing::ValuesIn(planted_ids()),
                         [](const auto& info) { return test_name(info.param); });

/// Other weights, the judge's own arithmetic, one sequence alone: how many faults fired first where they say.
size_t fired_first(Subject subject) {
  size_t fired = 0;
  for (const std::string& id : planted_ids()) {
    const FaultInfo& info = *find_fault(id);
    subject.arch = arch_for(id);
    const bool integers = subject.type != quant::Type::F16 && subject.type != quant::Type::F32;
    if ((info.needs.int8 && subject.weights != WeightMode::int8) || (info.needs.quantised && !integers) ||
        (id.starts_with("quant-nibble") && subject.type == quant::Type::Q8_0))
      continue;
    const Plant plant = draw_plant({id, {}, {}, 9}, hparams(subject), kPrompt, kTokens);
    SCOPED_TRACE(fmt::format("{} {} token {}", id, trace_name(plant.layer, plant.stage), plant.token));
    const auto engine = engine_of(subject, &plant);
    const auto ids = planted_tokens(plant, std::span(text_ids()), kVocab);
    Hashes wrong = run(*engine, ids);
    for (int again = 0; info.kind == FaultKind::race && plant.log->fired.empty() && again < 64; ++again)
      wrong = run(*engine, ids);
    const auto first = first_difference(clean_run(subject), wrong);
    EXPECT_EQ(first.has_value(), !plant.log->fired.empty());
    if (!first || plant.log->fired.empty()) continue;
    EXPECT_EQ(text_of(*first), text_of(plant.log->fired.begin()->first));
    ++fired;
  }
  return fired;
}

TEST(FaultsElsewhere, OtherWeightsAndDevices) {
  const size_t all = planted_ids().size();
  EXPECT_EQ(fired_first({quant::Type::Q4_K}), all - 1);  // int8-undivided
  EXPECT_EQ(fired_first({quant::Type::Q6_K}), all - 1);
  EXPECT_EQ(fired_first({quant::Type::Q3_K, WeightMode::int8}), all);
  EXPECT_EQ(fired_first({quant::Type::Q8_0, WeightMode::stored, "cpu", 1}), all - 3);  // and both nibbles
  EXPECT_EQ(fired_first({quant::Type::F16}), all - 5);                                 // and both scales
  EXPECT_EQ(fired_first({quant::Type::Q4_1, WeightMode::stored, "reference"}), all - 1);
}

TEST(FaultsElsewhere, WhatTheTensorLacksIsAnError) {
  const auto error_of = [](const Subject& subject, const std::string& id) -> std::string {
    const Plant plant = draw_plant({id, 1, {}, 1}, hparams(subject), kPrompt, kTokens);
    try {
      run(*engine_of(subject, &plant), text_ids());
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_THAT(error_of({quant::Type::F16}, "quant-scale"), testing::HasSubstr("needs quantised weights"));
  EXPECT_THAT(error_of({quant::Type::F16}, "quant-scale-data"),
              testing::HasSubstr("needs quantised weights"));
  EXPECT_THAT(error_of({quant::Type::Q8_0}, "quant-nibble"), testing::HasSubstr("no nibbles"));
  EXPECT_THAT(error_of({quant::Type::Q4_1}, "int8-undivided"), testing::HasSubstr("--weights int8"));
}

/// A race fires in about half of its chances, each time otherwise, and leaves what it read as it was.
TEST(Race, FiresInHalfOfItsChancesEachTimeOtherwise) {
  const Subject subject;
  const Plant plant = draw_plant({"race", 1, 2, 3}, hparams(subject), 4, 4);
  const auto engine = engine_of(subject, &plant);
  const std::vector<TokenId> ids(text_ids().begin(), text_ids().begin() + 4);
  std::set<uint64_t> seen;
  size_t fired = 0;
  for (int i = 0; i < 400; ++i) {
    plant.log->fired.clear();
    const Hashes hashes = run(*engine, ids, 4);
    fired += plant.log->fired.size();
    seen.insert(hashes.at({0, 2, 1, plant.stage}));
  }
  EXPECT_EQ(plant.log->chances, 400u);
  EXPECT_GT(fired, 120u);
  EXPECT_LT(fired, 280u);
  EXPECT_EQ(seen.size(), fired + 1);  // and the healthy bits
}

std::string error_in(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

TEST(FaultSpecs, AreParsed) {
  const auto spec = parse_fault("row-gain@3,17,99");
  EXPECT_EQ(spec.id, "row-gain");
  EXPECT_EQ(spec.layer, 3);
  EXPECT_EQ(spec.token, 17);
  EXPECT_EQ(spec.seed, 99u);
  EXPECT_EQ(parse_fault("nan").seed, 1u);
  EXPECT_FALSE(parse_fault("nan@,17").layer.has_value());
  EXPECT_EQ(parse_fault("nan@,17").token, 17);
  EXPECT_EQ(parse_fault("nan@,,5").seed, 5u);
  EXPECT_FALSE(parse_fault("nan@,,5").token.has_value());
  EXPECT_THAT(error_in([] { parse_fault("nonsense@1"); }), testing::HasSubstr("row-gain"));
  for (const char* bad : {"nan@x", "nan@-1", "nan@1,2x", "nan@1,-2", "nan@1,2,3,4", "nan@1,2,y"})
    EXPECT_THAT(error_in([&] { parse_fault(bad); }), testing::HasSubstr("ID@LAYER,TOKEN,SEED")) << bad;
}

TEST(DrawPlant, SaysWhyNot) {
  using testing::HasSubstr;
  HParams hp = hparams({});
  const auto why = [&](const char* spec, int64_t prompt = kPrompt, int64_t tokens = kTokens) {
    return error_in([&] { draw_plant(parse_fault(spec), hp, prompt, tokens); });
  };
  EXPECT_THAT(why("lost-copy"), HasSubstr("GPU"));
  EXPECT_THAT(why("graph-frozen"), HasSubstr("GPU"));
  EXPECT_THAT(why("row-gain@3"), HasSubstr("layer 3: expected 0 to 2"));
  EXPECT_THAT(why("kv-layer-base@0"), HasSubstr("expected 1 to 2"));
  EXPECT_THAT(why("nan@,90"), HasSubstr("token 90"));
  EXPECT_THAT(why("row-gain@,17"), HasSubstr("every token"));
  EXPECT_THAT(why("lmhead-layout@1"), HasSubstr("in layer 1"));
  EXPECT_THAT(why("seq-len", 84, 84), HasSubstr("after the prompt"));
  EXPECT_THAT(why("mask", 1, 20), HasSubstr("prompt of at least 2"));
  EXPECT_THAT(why("tile-swap", 32, 90), HasSubstr("at least 33"));
  EXPECT_THAT(why("kv-page", 60, 64), HasSubstr("at least 65"));
  EXPECT_THAT(why("embed-scale"), HasSubstr("embedding scale"));
  EXPECT_EQ(why("nan@2,89"), "none");
  hp.rope_scaling = "none";
  EXPECT_THAT(why("rope-scaling-dropped"), HasSubstr("scaling"));
  hp.kv_heads = hp.heads;
  EXPECT_THAT(why("gqa-stride"), HasSubstr("fewer kv heads"));
  EXPECT_THAT(why("gqa-group"), HasSubstr("fewer kv heads"));
  hp.layers = 1;
  EXPECT_THAT(why("weight-layer"), HasSubstr("at least 2 layers"));
}

TEST(DrawPlant, CoversEveryStageLayerAndToken) {
  const HParams hp = hparams({});
  std::set<std::pair<int, Stage>> places;
  std::set<int64_t> tokens;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    const Plant plant = draw_plant({"one-element", {}, {}, seed}, hp, 10, 12);
    const bool picked = plant.stage == Stage::final_norm || plant.stage == Stage::logits;
    EXPECT_TRUE(plant.token < 12 && plant.token >= (picked ? 9 : 0));
    EXPECT_EQ(plant.layer == kNoLayer, !is_per_layer(plant.stage));
    places.insert({plant.layer, plant.stage});
    tokens.insert(plant.token);
  }
  EXPECT_EQ(places.size(), 3u + 3u * 15u);
  EXPECT_EQ(tokens.size(), 12u);
  const Plant one = draw_plant({"nan", {}, {}, 7}, hp, 10, 12);
  const Plant same = draw_plant({"nan", {}, {}, 7}, hp, 10, 12);
  EXPECT_EQ(std::tuple(one.layer, one.stage, one.token), std::tuple(same.layer, same.stage, same.token));
}

TEST(FaultLogs, KeepTheFirstRowsThatDiffer) {
  FaultLog log;
  log.add({0, 5, 1, Stage::v}, {{1.0, 2.0}, {1.0, 2.0}});
  EXPECT_TRUE(log.fired.empty());
  log.add({0, 5, 1, Stage::v}, {{0.0}, {-0.0}});
  EXPECT_EQ(log.fired.size(), 1u);
  for (int64_t token = 1000; token > 0; --token) log.add({0, token, 1, Stage::v}, {{1.0}, {2.0}});
  EXPECT_EQ(log.fired.size(), FaultLog::kMost);
  EXPECT_EQ(log.fired.begin()->first.token, 1);
  EXPECT_EQ(std::prev(log.fired.end())->first.token, 256);
}

/// What each does in numbers, on the rows that it logged.
TEST(FaultRows, AreWhatTheCatalogueSays) {
  const Subject subject;
  const auto rows_of = [&](const char* spec) {
    const Plant plant = draw_plant(parse_fault(spec), hparams(subject), kPrompt, kTokens);
    run(*engine_of(subject, &plant), text_ids());
    EXPECT_FALSE(plant.log->fired.empty()) << spec;
    return plant.log->fired.begin()->second;
  };
  const auto changed = [](const FaultLog::Fired& row) {
    std::vector<size_t> at;
    for (size_t i = 0; i < row.healthy.size(); ++i)
      if (row.healthy[i] != row.faulty[i]) at.push_back(i);
    return at;
  };
  const auto gain = rows_of("row-gain@1,,3");
  ASSERT_EQ(changed(gain).size(), 1u);
  EXPECT_NEAR(gain.faulty[changed(gain)[0]] / gain.healthy[changed(gain)[0]], 1.01, 1e-6);
  const auto element = rows_of("one-element@1,9,4");
  ASSERT_EQ(changed(element).size(), 1u);
  EXPECT_NEAR(element.faulty[changed(element)[0]] / element.healthy[changed(element)[0]], 1.0 + 0x1p-6, 1e-3);
  const auto nan = rows_of("nan@1,9,4");
  ASSERT_EQ(changed(nan).size(), 1u);
  EXPECT_TRUE(std::isnan(nan.faulty[changed(nan)[0]]));
  const auto saturated = rows_of("f16-overflow@1,9,4");
  const auto largest = [](const std::vector<double>& row) {
    double most = 0.0;
    for (const double x : row) most = std::max(most, std::abs(x));
    return most;
  };
  EXPECT_GE(largest(saturated.healthy) / largest(saturated.faulty), 2.0);
  EXPECT_LE(largest(saturated.healthy) / largest(saturated.faulty), 4.0);
  const auto stale = rows_of("kv-stale@1,9,4");
  EXPECT_EQ(largest(stale.faulty), 0.0);
  const auto scale = rows_of("quant-scale@1,,4");
  EXPECT_EQ(changed(scale).size(), 1u) << "one block lies in one row of the weight";
}

/// Nibbles are exchanged where quants lie and nowhere else: a block of equal values stays as it is.
TEST(FaultBlocks, NibblesAreThoseOfTheQuants) {
  size_t types = 0;
  for (const auto& t : quant::all_types()) {
    if (t.block == 1 || t.type == quant::Type::Q8_0) continue;
    SCOPED_TRACE(t.name);
    ++types;
    std::vector<float> values(static_cast<size_t>(t.block), -0.3721F);
    std::vector<std::byte> bytes(static_cast<size_t>(t.bytes));
    quant::quantize(t.type, values.data(), t.block, bytes.data());
    const auto constant = bytes;
    swap_nibbles(t.type, bytes);
    EXPECT_EQ(bytes, constant);
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(3 * i + i * i));
    quant::quantize(t.type, values.data(), t.block, bytes.data());
    std::vector<float> before(values.size()), after(values.size());
    quant::dequantize(t.type, bytes.data(), t.block, before.data());
    swap_nibbles(t.type, bytes);
    quant::dequantize(t.type, bytes.data(), t.block, after.data());
    size_t different = 0;
    for (size_t i = 0; i < values.size(); ++i) different += before[i] != after[i] ? 1 : 0;
    EXPECT_GT(different, values.size() / 2);
  }
  EXPECT_EQ(types, 9u);
}

/// A changed scale multiplies what depends on it by 2 and leaves minima alone.
TEST(FaultBlocks, ScalesAreDoubled) {
  for (const auto& t : quant::all_types()) {
    if (t.block == 1) continue;
    SCOPED_TRACE(t.name);
    std::vector<float> values(2 * static_cast<size_t>(t.block));
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(3 * i + i * i));
    std::vector<std::byte> bytes(2 * static_cast<size_t>(t.bytes));
    quant::quantize(t.type, values.data(), 2 * t.block, bytes.data());
    const auto read = [&] {
      std::vector<float> out(values.size());
      quant::dequantize(t.type, bytes.data(), 2 * t.block, out.data());
      return out;
    };
    const auto once = read();
    change_scale(t.type, bytes, 1);
    const auto twice = read();
    change_scale(t.type, bytes, 1);
    const auto four = read();
    size_t different = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i < values.size() / 2) EXPECT_EQ(once[i], twice[i]);
      EXPECT_NEAR(four[i] - twice[i], 2.0 * (twice[i] - once[i]), 1e-5) << i;  // linear in the scale
      different += once[i] != twice[i] ? 1 : 0;
    }
    EXPECT_GT(different, values.size() / 4);
  }
}

/// Element (n, k) is what lies at flat index k * rows + n.
TEST(FaultBlocks, TransposedReadsColumnsAsRows) {
  const std::vector<float> values = {0, 1, 2, 3, 4, 5};
  const WeightSource source{"w", quant::Type::F32, 2, 3, std::as_bytes(std::span(values))};
  const auto bytes = transposed(source);
  std::vector<float> turned(6);
  std::memcpy(turned.data(), bytes.data(), bytes.size());
  EXPECT_THAT(turned, testing::ElementsAre(0, 2, 4, 1, 3, 5));
  EXPECT_EQ(element_of(source, 4), 4.0F);
}

}  // namespace
}  // namespace greta
