#include "synth/synth.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/gguf.h"
#include "model/rope.h"
#include "synth/fill.h"
#include "synth/shape.h"
#include "synth/vocabulary.h"

namespace greta {
namespace {

using gguf::Writer;
using quant::Type;
using synth::Filler;
using synth::Scaling;
using synth::Shape;

/// The numbers that general.file_type holds for files of mainly one type.
uint32_t file_type(Type type) {
  switch (type) {
    case Type::F32:
      return 0;
    case Type::F16:
      return 1;
    case Type::Q4_0:
      return 2;
    case Type::Q4_1:
      return 3;
    case Type::Q8_0:
      return 7;
    case Type::Q5_0:
      return 8;
    case Type::Q5_1:
      return 9;
    case Type::Q2_K:
      return 10;
    case Type::Q3_K:
      return 11;
    case Type::Q4_K:
      return 14;
    case Type::Q5_K:
      return 16;
    case Type::Q6_K:
      return 18;
    case Type::BF16:
      return 32;
  }
  return 0;
}

/// The keys that llama.cpp's converters write. `key`: without the architecture's prefix.
class Metadata {
 public:
  Metadata(Writer& writer, const SynthOptions& options, const Shape& shape)
      : w_(writer), o_(options), s_(shape) {}

  void add() {
    general();
    const HParams& hp = s_.hp;
    u32("context_length", hp.context);
    u32("embedding_length", hp.dim);
    u32("block_count", hp.layers);
    feed_forward();
    u32("attention.head_count", hp.heads);
    u32("attention.head_count_kv", hp.kv_heads);
    f32("attention.layer_norm_rms_epsilon", s_.customs.norm_eps);
    if (s_.customs.head_length || hp.q_dim() != hp.dim) {
      u32("attention.key_length", hp.head_dim);
      u32("attention.value_length", hp.head_dim);
    }
    if (s_.customs.window) u32("attention.sliding_window", hp.window);
    if (s_.customs.attention_softcap > 0) f32("attn_logit_softcapping", s_.customs.attention_softcap);
    if (s_.customs.logits_softcap > 0) f32("final_logit_softcapping", s_.customs.logits_softcap);
    u32("rope.dimension_count", hp.rope.dims);
    f32("rope.freq_base", s_.rope_base);
    if (const double local = s_.architecture->local_rope_base; local > 0)
      f32("rope.freq_base_swa", static_cast<float>(local));
    u32("vocab_size", hp.vocab);
    rope_scaling();
  }

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", s_.architecture->name, name); }
  void u32(std::string_view name, int64_t value) { w_.add_u32(key(name), static_cast<uint32_t>(value)); }
  void f32(std::string_view name, float value) { w_.add_f32(key(name), value); }

  void general() {
    w_.add_string("general.architecture", std::string(s_.architecture->name));
    w_.add_string("general.type", "model");
    w_.add_string("general.name", fmt::format("synthetic {} {}x{} {} seed {}", s_.architecture->name,
                                              s_.hp.dim, s_.hp.layers, quant::traits(o_.type).name, o_.seed));
    w_.add_u32("general.file_type", file_type(o_.type));
    if (quant::traits(o_.type).block > 1) w_.add_u32("general.quantization_version", 2);
  }

  /// Where experts have a key of their own, feed_forward_length is that of a dense layer, of which there is
  /// none: in Qwen3's published files as wide as the experts of a token together.
  void feed_forward() {
    const HParams& hp = s_.hp;
    const bool own_key = s_.customs.experts > 0;
    u32("feed_forward_length", own_key ? hp.mlp_width() : hp.ffn_dim);
    if (hp.experts == 0) return;
    if (own_key) u32("expert_feed_forward_length", hp.expert_ffn_dim);
    u32("expert_count", hp.experts);
    u32("expert_used_count", hp.experts_used);
  }

  /// llama3's scaling is a tensor, longrope's two and a magnitude: sqrt(1 + ln(factor) / ln(original)).
  void rope_scaling() {
    using Kind = Scaling::Kind;
    const Scaling& scaling = s_.scaling;
    if (scaling.kind == Kind::linear || scaling.kind == Kind::yarn) {
      w_.add_string(key("rope.scaling.type"), scaling.kind == Kind::yarn ? "yarn" : "linear");
      f32("rope.scaling.factor", static_cast<float>(scaling.factor));
    }
    // Beside other scalings the key has no effect, and readers say so.
    if (scaling.kind == Kind::yarn || scaling.kind == Kind::longrope)
      u32("rope.scaling.original_context_length", static_cast<int64_t>(*scaling.original_context));
    if (scaling.kind != Kind::longrope) return;
    const double stretch =
        exact_log(scaling.factor) / exact_log(static_cast<double>(*scaling.original_context));
    f32("rope.scaling.attn_factor", static_cast<float>(std::sqrt(1.0 + stretch)));
  }

  Writer& w_;
  const SynthOptions& o_;
  const Shape& s_;
};

/// Llama 3's rotary scaling as one divisor a frequency (rope_freqs.weight): 1 for wavelengths that the
/// original context holds four times or more, the factor for those it does not hold once, and a blend of the
/// two between.
std::vector<float> llama3_divisors(const Shape& s) {
  constexpr double kLow = 1.0;
  constexpr double kHigh = 4.0;
  const auto original = static_cast<double>(*s.scaling.original_context);
  std::vector<float> divisors;
  for (int64_t i = 0; i < s.hp.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(s.hp.head_dim);
    const double wavelength = 2.0 * std::numbers::pi * std::pow(static_cast<double>(s.rope_base), exponent);
    const double turns = original / wavelength;
    const double blend = std::clamp((turns - kLow) / (kHigh - kLow), 0.0, 1.0);
    divisors.push_back(static_cast<float>(1.0 / ((1.0 - blend) / s.scaling.factor + blend)));
  }
  return divisors;
}

/// LongRoPE's divisors have no formula (a search found the published ones). Like those they rise from 1 with
/// the wavelength: the long ones as factor^t to the factor, the short ones as 1 + t to 2, t in 0 .. 1.
std::vector<float> longrope_divisors(const Shape& s, bool long_ones) {
  const int64_t pairs = s.hp.head_dim / 2;
  std::vector<float> divisors;
  for (int64_t i = 0; i < pairs; ++i) {
    const double t = pairs > 1 ? static_cast<double>(i) / static_cast<double>(pairs - 1) : 1.0;
    divisors.push_back(static_cast<float>(long_ones ? exact_pow(s.scaling.factor, t) : 1.0 + t));
  }
  return divisors;
}

/// The architecture's tensors with their weights. Rmsnorm leaves rows of mean square about 1.08 (norm weights
/// are uniform in 0.5 .. 1.5), so that a matrix of spread g / sqrt(K) gives outputs of spread about g:
///   q, k     1.4: scores of spread 2, attention that picks some keys out. Where q and k have norms of their
///            own, those weights are 1.4 +- 0.5 to the same end
///   v        1
///   gate, up 1: silu(gate) * up has a root mean square of about 0.6
///   output, down 1.5: each layer adds about as much as the embedding brought; an expert's down 2, for a
///            weighted mean of two is smaller than each. Where norms stand after, they alone set what is
///            added
///   router   1.5: the choice differs from token to token, and no expert takes all of the weight
///   head     3 / sqrt(dim): logits of spread 3. A tied embedding has that spread too; it is then small
///            beside the layers' contributions, so that a token does not merely predict itself.
/// A scaled embedding is divided by its scale, sqrt(dim), beforehand, and where it is the head too the last
/// norm's weights make up for it.
class Tensors {
 public:
  Tensors(Writer& writer, Filler& filler, const SynthOptions& options, const Shape& shape)
      : w_(writer), f_(filler), type_(options.type), s_(shape) {}

  /// In the order of converters: embedding, rotary divisors, the layers, the last norm, the head. A layer's
  /// tensors stand in the order of their roles.
  void add() {
    std::vector<const TensorRule*> layer, first, last;
    for (const TensorRule& rule : s_.architecture->tensors) {
      if (!s_.has(rule)) continue;
      const bool before = rule.role == Role::embedding || !rule.role;
      (rule.per_layer() ? layer : before ? first : last).push_back(&rule);
    }
    std::stable_sort(layer.begin(), layer.end(),
                     [](const TensorRule* a, const TensorRule* b) { return *a->role < *b->role; });
    for (const TensorRule* rule : first) add(*rule, 0);
    for (int64_t l = 0; l < s_.hp.layers; ++l)
      for (const TensorRule* rule : layer) add(*rule, l);
    for (const TensorRule* rule : last) add(*rule, 0);
  }

 private:
  void add(const TensorRule& rule, int64_t layer) {
    const std::string name = rule.name(layer);
    if (!rule.role)
      divisors(rule, name);
    else if (rule.use == WeightUse::vector)
      vector(rule, name);
    else
      matrix(rule, name);
  }

  uint64_t columns(const TensorRule& rule) const {
    return static_cast<uint64_t>(value_of(rule.cols, s_.hp).value_or(0));
  }

  void divisors(const TensorRule& rule, const std::string& name) {
    std::vector<float> values =
        s_.scaling.kind == Scaling::Kind::llama3
            ? llama3_divisors(s_)
            : longrope_divisors(s_, rule.pattern.find("long") != std::string_view::npos);
    const uint64_t size = values.size();
    w_.add_tensor(name, {size}, Type::F32, [values = std::move(values)](const Writer::Sink& sink) {
      sink(std::as_bytes(std::span(values)));
    });
  }

  void vector(const TensorRule& rule, const std::string& name) {
    const uint64_t size = columns(rule);
    const auto [centre, reach] = centre_and_reach(*rule.role);
    w_.add_tensor(name, {size}, Type::F32, f_.vector(name, size, centre, reach));
  }

  /// [columns, rows] or a stack [columns, rows, experts]; fused rows one part after the other.
  void matrix(const TensorRule& rule, const std::string& name) {
    const uint64_t cols = columns(rule);
    const auto rows = static_cast<uint64_t>(s_.rows_of(rule));
    std::vector<uint64_t> shape = {cols, rows};
    if (rule.use == WeightUse::experts) shape.push_back(static_cast<uint64_t>(s_.hp.experts));
    std::optional<uint64_t> elements = 1;
    for (const uint64_t n : shape) elements = elements ? checked_mul(*elements, n) : std::nullopt;
    const Type type = rule.role == Role::router ? Type::F32 : type_;
    if (!elements || !quant::bytes_for(type, *elements))
      fail("{}: {} elements are too many", name, fmt::join(shape, " x "));
    w_.add_tensor(name, shape, type, f_.matrix(name, parts(rule, cols, *elements), type));
  }

  std::vector<Filler::Part> parts(const TensorRule& rule, uint64_t cols, uint64_t elements) const {
    if (rule.fused.empty()) return {{elements, spread(*rule.role, cols)}};
    uint64_t end = 0;
    std::vector<Filler::Part> all;
    const auto part = [&](Role role, Dim rows) {
      end += static_cast<uint64_t>(value_of(rows, s_.hp).value_or(0)) * cols;
      all.push_back({end, spread(role, cols)});
    };
    part(*rule.role, rule.rows);
    for (const FusedRows& more : rule.fused) part(more.role, more.rows);
    return all;
  }

  double embedding_scale() const {
    return s_.architecture->scaled_embedding ? std::sqrt(static_cast<double>(s_.hp.dim)) : 1.0;
  }

  double spread(Role role, uint64_t cols) const {
    const auto gain = [&](double wanted) { return wanted / std::sqrt(static_cast<double>(cols)); };
    const double head = gain(3.0) / std::sqrt(13.0 / 12.0);
    switch (role) {
      case Role::embedding:
        return (s_.tied ? head : 1.0) / embedding_scale();
      case Role::head:
        return head;
      case Role::wq:
      case Role::wk:
        return gain(1.4);
      case Role::wo:
      case Role::w_down:
      case Role::router:
        return gain(1.5);
      case Role::expert_down:
        return gain(2.0);
      default:
        return gain(1.0);
    }
  }

  struct Uniform {
    float centre, reach;
  };
  Uniform centre_and_reach(Role role) const {
    switch (role) {
      case Role::bq:
      case Role::bk:
      case Role::bv:
      case Role::bo:
        return {0.0F, 0.5F};
      case Role::q_norm:
      case Role::k_norm:
        return {1.4F, 0.5F};
      case Role::final_norm: {
        const auto size = static_cast<float>(s_.tied ? embedding_scale() : 1.0);
        return {size, 0.5F * size};
      }
      default:
        return {1.0F, 0.5F};
    }
  }

  Writer& w_;
  Filler& f_;
  Type type_;
  const Shape& s_;
};

}  // namespace

void synthesise(const SynthOptions& options, const std::string& out_path, int threads) {
  std::optional<gguf::File> tokenizer;
  if (!options.tokenizer_from.empty()) tokenizer = gguf::File::open(options.tokenizer_from);
  const Shape shape =
      synth::derive(options, tokenizer ? std::optional(synth::vocabulary_size(*tokenizer)) : std::nullopt);
  Writer writer;
  Metadata(writer, options, shape).add();
  if (tokenizer)
    synth::copy_tokenizer(writer, *tokenizer);
  else
    synth::add_made_up_tokenizer(writer, static_cast<uint64_t>(shape.hp.vocab));
  Filler filler(options.seed, std::max(threads, 1));
  Tensors(writer, filler, options, shape).add();
  writer.write(out_path);
}

}  // namespace greta
