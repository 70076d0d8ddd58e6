#include "synth/shape.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/ranges.h"
#include "synth/vocabulary.h"

namespace greta::synth {
namespace {

/// Gemma 2 caps scores at 50 and logits at 30; of random weights (scores of spread 2, logits of spread 3)
/// hardly one comes near. At 8 and 12 a value of twice its spread loses a thirteenth and the largest a
/// quarter: a cap left out or out of place is a difference that every judge sees.
constexpr Customs kCustoms[] = {
    {.architecture = "llama", .norm_eps = 1e-5F},
    {.architecture = "qwen2", .rope_base = 1e6F, .qkv_bias = true},
    {.architecture = "qwen3", .rope_base = 1e6F, .head_length = true},
    {.architecture = "qwen3moe", .rope_base = 1e6F, .head_length = true, .experts = 8},
    {.architecture = "gemma2",
     .window = 4096,
     .tied = true,
     .head_length = true,
     .attention_softcap = 8.0F,
     .logits_softcap = 12.0F},
    {.architecture = "gemma3", .rope_base = 1e6F, .window = 512, .tied = true, .head_length = true},
    {.architecture = "phi3", .norm_eps = 1e-5F, .window = 0},
    {.architecture = "olmo2", .rope_base = 5e5F},
};

/// An entry of the engine's table without customs of its own has none.
Customs customs_of(std::string_view architecture) {
  for (const Customs& customs : kCustoms)
    if (customs.architecture == architecture) return customs;
  Customs none;
  none.architecture = architecture;
  return none;
}

bool has_rule(const Architecture& architecture, auto matches) {
  return std::any_of(architecture.tensors.begin(), architecture.tensors.end(), matches);
}
bool has_rule(const Architecture& architecture, std::string_view pattern) {
  return has_rule(architecture, [&](const TensorRule& rule) { return rule.pattern == pattern; });
}
bool has_rule(const Architecture& architecture, Role role) {
  return has_rule(architecture, [&](const TensorRule& rule) { return rule.role == role; });
}

constexpr std::string_view kRopeFactors = "rope_freqs.weight";
constexpr std::string_view kLongFactors = "rope_factors_long.weight";
constexpr std::string_view kShortFactors = "rope_factors_short.weight";

/// "gemma2, gemma3, phi3": the architectures of which it is true.
std::string names_of(auto which) {
  std::string names;
  for (const Architecture& entry : architectures())
    if (which(entry)) names += fmt::format("{}{}", names.empty() ? "" : ", ", entry.name);
  return names;
}

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

using Kind = Scaling::Kind;
constexpr std::pair<std::string_view, Kind> kKinds[] = {
    {"linear", Kind::linear}, {"yarn", Kind::yarn}, {"llama3", Kind::llama3}, {"longrope", Kind::longrope}};

std::optional<Scaling> parse_scaling(const std::string& text) {
  Scaling scaling;
  if (text.empty() || text == "none") return scaling;
  std::vector<std::string> parts(1);
  for (const char c : text)
    if (c == ':')
      parts.emplace_back();
    else
      parts.back() += c;
  for (const auto& [name, kind] : kKinds)
    if (parts[0] == name) scaling.kind = kind;
  const size_t fewest = scaling.kind == Kind::linear ? 2 : 3;
  if (scaling.kind == Kind::none || parts.size() < fewest || parts.size() > 3) return std::nullopt;
  const auto factor = number<double>(parts[1]);
  if (!factor || !(*factor >= 1.0)) return std::nullopt;
  scaling.factor = *factor;
  if (parts.size() < 3) return scaling;
  const uint64_t least = scaling.kind == Kind::longrope ? 2 : 1;  // its magnitude divides by ln(original)
  scaling.original_context = number<uint64_t>(parts[2]);
  if (!scaling.original_context || *scaling.original_context < least) return std::nullopt;
  return scaling;
}

/// Options in, shape and problems out, in steps that may rely on what the steps before them left.
class Deriver {
 public:
  Deriver(const SynthOptions& options, std::optional<uint64_t> tokens) : o_(options), tokens_(tokens) {}

  Shape run() {
    find_architecture_or_complain();
    experts();
    window();
    const bool sane = sizes();
    rotary();
    vocabulary();
    biases();
    if (!sane) give_up();  // what follows divides by these and multiplies them
    dimensions();
    rows();
    if (!problems_.empty()) give_up();
    return s_;
  }

 private:
  bool expect(bool good, const std::string& problem) {
    if (!good) problems_.push_back(problem);
    return good;
  }
  /// `what`: an option, or how a number follows from several.
  bool sized(const char* what, uint64_t value, IntRange range) {
    return expect(value >= static_cast<uint64_t>(range.least) && value <= static_cast<uint64_t>(range.most),
                  fmt::format("{}: expected {} to {}, got {}", what, range.least, range.most, value));
  }
  /// The same of an option whose 0 leaves the number to what follows.
  bool sized_or_derived(const char* option, uint64_t value, IntRange range) {
    return value == 0 || sized(option, value, range);
  }
  [[noreturn]] void give_up() { throw Error("cannot make such a model", std::move(problems_)); }

  /// What else is wrong beside an unknown name is judged as for the first entry.
  void find_architecture_or_complain() {
    s_.architecture = find_architecture(o_.arch);
    known_ = expect(s_.architecture != nullptr,
                    fmt::format("--arch: expected {}, got {}", architecture_names(), o_.arch));
    if (!known_) s_.architecture = &architectures().front();
    s_.customs = customs_of(s_.architecture->name);
    s_.tied = o_.tied || s_.customs.tied;
  }

  /// Complains of an option that this architecture does not have; nothing is said of an unknown one.
  bool expect_of_architecture(bool has, const std::string& option, const std::string& got,
                              const std::string& what, const std::string& others) {
    if (!known_) return true;
    return expect(has, fmt::format("{}: expected none, as {} has no {}, got {}; leave it out, or take {}",
                                   option, o_.arch, what, got, others));
  }

  void experts() {
    if (o_.experts == 0 && o_.experts_used > 0 && s_.customs.experts == 0) {
      expect(false, fmt::format("--experts-used: expected 0, as --experts is not given, got {}; give both",
                                o_.experts_used));
      return;
    }
    const uint64_t count = o_.experts > 0 ? o_.experts : static_cast<uint64_t>(s_.customs.experts);
    if (count == 0) return;
    if (!expect_of_architecture(s_.architecture->mixture, "--experts", fmt::format("{}", count), "experts",
                                names_of([](const Architecture& a) { return a.mixture; })))
      return;
    if (!sized("--experts", count, {1, kExperts.most})) return;
    const uint64_t used = o_.experts_used > 0 ? o_.experts_used : std::min<uint64_t>(2, count);
    expect(used <= count, fmt::format("--experts-used: expected 1 to --experts, {}, got {}", count, used));
    s_.hp.experts = static_cast<int64_t>(count);
    s_.hp.experts_used = static_cast<int64_t>(used);
  }

  void window() {
    const uint64_t asked = o_.window.value_or(0);
    if (s_.customs.window) s_.hp.window = static_cast<int64_t>(o_.window ? asked : *s_.customs.window);
    if (asked == 0) return;
    const auto windowed = [](const Architecture& a) { return customs_of(a.name).window.has_value(); };
    expect_of_architecture(s_.customs.window.has_value(), "--window", fmt::format("{}", asked),
                           "window in its files", names_of(windowed));
    sized("--window", asked, kWindow);
  }

  void rotary() {
    s_.rope_base = o_.rope_base == 0.0F ? s_.customs.rope_base : o_.rope_base;
    expect(kRopeBase.has(s_.rope_base),
           fmt::format("--rope-base: expected a number above {:g}, at most {:g}, got {}", kRopeBase.above,
                       kRopeBase.most, s_.rope_base));
    const auto scaling = parse_scaling(o_.rope_scaling);
    if (!scaling) {
      expect(false,
             fmt::format("--rope-scaling: expected none, linear:FACTOR, yarn:FACTOR:CONTEXT, "
                         "llama3:FACTOR:CONTEXT or longrope:FACTOR:CONTEXT (as in yarn:4:4096), got {}",
                         o_.rope_scaling));
      return;
    }
    s_.scaling = *scaling;
    expect(kFactor.has(scaling->factor),
           fmt::format("--rope-scaling: expected a factor of at most {:g}, got {}", kFactor.most,
                       scaling->factor));
    if (scaling->original_context) stretched(*scaling->original_context);
    const auto needs = [&](Kind kind, std::string_view tensor) {
      if (scaling->kind == kind)
        expect_of_architecture(
            has_rule(*s_.architecture, tensor), "--rope-scaling", o_.rope_scaling, std::string(tensor),
            names_of([&](const Architecture& a) { return has_rule(a, tensor); }) + ", linear or yarn");
    };
    needs(Kind::llama3, kRopeFactors);
    needs(Kind::longrope, kLongFactors);
  }

  /// The context is what the scaling is for, where none is asked for; YaRN's reader holds one to it.
  void stretched(uint64_t original) {
    if (!sized("--rope-scaling, the original context", original, kContext)) return;
    if (!o_.context) {
      const double reach = s_.scaling.factor * static_cast<double>(original);
      s_.hp.context = std::max(s_.hp.context, static_cast<int64_t>(std::min<double>(reach, kContext.most)));
    }
    if (s_.scaling.kind == Kind::yarn)
      expect(static_cast<int64_t>(original) <= s_.hp.context,
             fmt::format("--rope-scaling: expected an original context of at most --context, {}, got {}; "
                         "leave --context out, or raise it",
                         s_.hp.context, original));
  }

  bool sizes() {
    bool sane = sized("--dim", o_.dim, kDim);
    sane &= sized("--layers", o_.layers, kLayers);
    sane &= sized("--heads", o_.heads, kHeads);
    sane &= sized_or_derived("--ffn-dim", o_.ffn_dim, kFfnDim);
    sane &= sized_or_derived("--kv-heads", o_.kv_heads, kHeads);
    sane &= sized_or_derived("--head-dim", o_.head_dim, kHeadDim);
    const uint64_t context = o_.context.value_or(2048);
    sized("--context", context, kContext);
    s_.hp.context = static_cast<int64_t>(context);
    return sane;
  }

  void vocabulary() {
    const uint64_t vocab = o_.vocab != 0 ? o_.vocab : tokens_.value_or(1024);
    if (tokens_)
      expect(
          vocab == *tokens_,
          fmt::format("--vocab: expected {}, the vocabulary of --tokenizer-from, got {}; leave --vocab out",
                      *tokens_, vocab));
    else  // the scores are ranks in F32: exact up to 2^24
      sized("--vocab", vocab, {kMinVocabulary, kVocab.most});
    s_.hp.vocab = static_cast<int64_t>(vocab);
  }

  void biases() {
    s_.qkv_bias = o_.bias || s_.customs.qkv_bias;
    s_.output_bias = o_.bias;
    if (o_.bias)
      expect_of_architecture(has_rule(*s_.architecture, Role::bo), "--bias", "it", "biases",
                             names_of([](const Architecture& a) { return has_rule(a, Role::bo); }));
  }

  void dimensions() {
    HParams& hp = s_.hp;
    const uint64_t ffn = o_.ffn_dim != 0 ? o_.ffn_dim : (o_.dim * 8 / 3 + 255) / 256 * 256;
    const uint64_t kv_heads = o_.kv_heads != 0 ? o_.kv_heads : o_.heads;
    expect(o_.heads % kv_heads == 0,
           fmt::format("--kv-heads: expected a divisor of --heads {}, got {}", o_.heads, kv_heads));
    if (o_.head_dim == 0)
      expect(o_.dim % o_.heads == 0,
             fmt::format("--heads: expected a divisor of --dim {}, got {}; or give --head-dim", o_.dim,
                         o_.heads));
    const uint64_t head_dim = o_.head_dim != 0 ? o_.head_dim : o_.dim / o_.heads;
    expect(head_dim % 2 == 0 && head_dim > 0,
           fmt::format("--head-dim: expected an even number (rotary pairs), got {}", head_dim));
    if (o_.head_dim == 0 && head_dim % 2 == 0) sized("--dim over --heads", head_dim, kHeadDim);
    hp.dim = static_cast<int64_t>(o_.dim);
    hp.layers = static_cast<int64_t>(o_.layers);
    hp.heads = static_cast<int64_t>(o_.heads);
    hp.kv_heads = static_cast<int64_t>(kv_heads);
    hp.head_dim = static_cast<int64_t>(head_dim);
    hp.ffn_dim = hp.expert_ffn_dim = static_cast<int64_t>(ffn);
    if (s_.customs.experts > 0)
      sized("--experts-used times --ffn-dim", static_cast<uint64_t>(hp.mlp_width()), kFfnDim);
    hp.rope.dims = static_cast<int>(head_dim);
  }

  /// The rows of every matrix hold whole blocks.
  void rows() {
    static constexpr std::array kRows = {std::pair{Dim::dim, "--dim"}, std::pair{Dim::ffn_dim, "--ffn-dim"},
                                         std::pair{Dim::expert_ffn_dim, "--ffn-dim"},
                                         std::pair{Dim::q_dim, "--heads times --head-dim"}};
    for (const auto& [dim, option] : kRows) {
      const int64_t row = value_of(dim, s_.hp).value_or(0);
      const bool used = has_rule(*s_.architecture, [&, d = dim](const TensorRule& rule) {
        return s_.has(rule) && rule.use != WeightUse::vector && rule.cols == d;
      });
      if (!used || (dim == Dim::q_dim && row == s_.hp.dim)) continue;
      whole_blocks(option, static_cast<uint64_t>(row));
    }
  }

  void whole_blocks(const char* what, uint64_t row) {
    const quant::Traits& t = quant::traits(o_.type);
    const auto block = static_cast<uint64_t>(t.block);
    const uint64_t below = row / block * block;
    expect(row % block == 0,
           fmt::format(
               "{} {}: a row is not a multiple of {}, the block of {}; take {}{}, or a type with smaller "
               "blocks (--type {})",
               what, row, block, t.name, below > 0 ? fmt::format("{} or ", below) : "", below + block,
               block > 32 && row % 32 == 0 ? "q8_0" : "f16"));
  }

  const SynthOptions& o_;
  std::optional<uint64_t> tokens_;
  Shape s_;
  bool known_ = false;
  std::vector<std::string> problems_;
};

}  // namespace

bool Shape::has(const TensorRule& rule) const {
  if (!rule.in(hp)) return false;
  switch (rule.need) {
    case Need::required:
      return true;
    case Need::else_embedding:
      return !tied;
    case Need::optional:
      break;
  }
  if (rule.pattern == kRopeFactors) return scaling.kind == Kind::llama3;
  if (rule.pattern == kLongFactors || rule.pattern == kShortFactors) return scaling.kind == Kind::longrope;
  if (rule.role == Role::bq || rule.role == Role::bk || rule.role == Role::bv) return qkv_bias;
  return rule.role == Role::bo && output_bias;
}

int64_t Shape::rows_of(const TensorRule& rule) const {
  int64_t rows = value_of(rule.rows, hp).value_or(0);
  for (const FusedRows& more : rule.fused) rows += value_of(more.rows, hp).value_or(0);
  return rows;
}

Shape derive(const SynthOptions& options, std::optional<uint64_t> tokens) {
  return Deriver(options, tokens).run();
}

}  // namespace greta::synth
