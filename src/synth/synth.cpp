#include "synth/synth.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "gguf/gguf.h"
#include "synth/random.h"
#include "synth/vocabulary.h"

namespace greta {
namespace {

using gguf::Writer;
using quant::Type;

constexpr double kRmsEpsilon = 1e-5;

struct Scaling {
  enum class Kind { none, linear, yarn, llama3 } kind = Kind::none;
  double factor = 1.0;
  std::optional<uint64_t> original_context;
};

/// Everything derived: no zeros left.
struct Shape {
  uint64_t dim, layers, ffn_dim, heads, kv_heads, head_dim, vocab, context;
  Scaling scaling;
};

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Scaling parse_scaling(const std::string& text, std::vector<std::string>& problems) {
  Scaling scaling;
  if (text.empty() || text == "none") return scaling;
  const auto refuse = [&] {
    problems.push_back(fmt::format(
        "--rope-scaling: expected none, linear:FACTOR, yarn:FACTOR:CONTEXT or llama3:FACTOR:CONTEXT (as in "
        "yarn:4:4096), got {}",
        text));
    return Scaling{};
  };
  std::vector<std::string> parts(1);
  for (const char c : text)
    if (c == ':')
      parts.emplace_back();
    else
      parts.back() += c;
  using Kind = Scaling::Kind;
  if (parts[0] == "linear") scaling.kind = Kind::linear;
  if (parts[0] == "yarn") scaling.kind = Kind::yarn;
  if (parts[0] == "llama3") scaling.kind = Kind::llama3;
  const size_t fewest = scaling.kind == Kind::linear ? 2 : 3;
  if (scaling.kind == Kind::none || parts.size() < fewest || parts.size() > 3) return refuse();
  const auto factor = number<double>(parts[1]);
  if (!factor || !(*factor >= 1.0) || !(*factor <= 1e6)) return refuse();
  scaling.factor = *factor;
  if (parts.size() == 3) {
    scaling.original_context = number<uint64_t>(parts[2]);
    if (!scaling.original_context || *scaling.original_context == 0 ||
        *scaling.original_context > std::numeric_limits<uint32_t>::max())
      return refuse();
  }
  return scaling;
}

/// The shape with its defaults filled in, or one Error that lists everything that does not fit.
Shape derive(const SynthOptions& o, std::optional<uint64_t> tokens) {
  std::vector<std::string> problems;
  const auto expect = [&](bool good, const std::string& problem) {
    if (!good) problems.push_back(problem);
    return good;
  };
  expect(o.arch == "llama",
         fmt::format("--arch: expected llama (the only one supported yet), got {}", o.arch));
  expect(o.experts == 0 && o.experts_used == 0,
         fmt::format("--experts, --experts-used: expected 0 (dense models only yet), got {} and {}",
                     o.experts, o.experts_used));
  expect(o.window == 0, fmt::format("--window: expected 0 (full attention only yet), got {}", o.window));
  expect(std::isfinite(o.rope_base) && o.rope_base > 1.0F,
         fmt::format("--rope-base: expected a number above 1, got {}", o.rope_base));
  constexpr uint64_t kLimit = std::numeric_limits<int32_t>::max();
  const auto sized = [&](const char* option, uint64_t value, uint64_t least, uint64_t most) {
    return expect(value >= least && value <= most,
                  fmt::format("{}: expected {} to {}, got {}", option, least, most, value));
  };
  bool sane = sized("--dim", o.dim, 1, kLimit);
  sane &= sized("--layers", o.layers, 1, 65535);
  sane &= sized("--heads", o.heads, 1, kLimit);
  sane &= sized("--ffn-dim", o.ffn_dim, 0, kLimit);
  sane &= sized("--kv-heads", o.kv_heads, 0, kLimit);
  sane &= sized("--head-dim", o.head_dim, 0, kLimit);
  sized("--context", o.context, 1, kLimit);
  Shape s{};
  s.scaling = parse_scaling(o.rope_scaling, problems);
  s.vocab = o.vocab != 0 ? o.vocab : tokens.value_or(1024);
  if (tokens)
    expect(s.vocab == *tokens,
           fmt::format("--vocab: expected {}, the vocabulary of --tokenizer-from, got {}; leave --vocab out",
                       *tokens, s.vocab));
  else  // the scores are ranks in F32: exact up to 2^24
    sized("--vocab", s.vocab, synth::kMinVocabulary, 1u << 24);
  const auto give_up = [&] { throw Error("cannot make such a model", std::move(problems)); };
  if (!sane) give_up();  // what follows divides by these and multiplies them

  s.dim = o.dim;
  s.layers = o.layers;
  s.heads = o.heads;
  s.context = o.context;
  s.ffn_dim = o.ffn_dim != 0 ? o.ffn_dim : (o.dim * 8 / 3 + 255) / 256 * 256;
  s.kv_heads = o.kv_heads != 0 ? o.kv_heads : o.heads;
  expect(s.heads % s.kv_heads == 0,
         fmt::format("--kv-heads: expected a divisor of --heads {}, got {}", s.heads, s.kv_heads));
  if (o.head_dim == 0)
    expect(
        o.dim % o.heads == 0,
        fmt::format("--heads: expected a divisor of --dim {}, got {}; or give --head-dim", o.dim, o.heads));
  s.head_dim = o.head_dim != 0 ? o.head_dim : o.dim / o.heads;
  expect(s.head_dim % 2 == 0 && s.head_dim > 0,
         fmt::format("--head-dim: expected an even number (rotary pairs), got {}", s.head_dim));

  const quant::Traits& t = quant::traits(o.type);
  const auto block = static_cast<uint64_t>(t.block);
  const auto rows = [&](const std::string& what, uint64_t row) {
    const uint64_t below = row / block * block;
    expect(row % block == 0,
           fmt::format(
               "{} {}: a row is not a multiple of {}, the block of {}; take {}{}, or a type with smaller "
               "blocks (--type {})",
               what, row, block, t.name, below > 0 ? fmt::format("{} or ", below) : "", below + block,
               block > 32 && row % 32 == 0 ? "q8_0" : "f16"));
  };
  rows("--dim", s.dim);
  rows("--ffn-dim", s.ffn_dim);
  if (s.heads * s.head_dim != s.dim) rows("--heads times --head-dim", s.heads * s.head_dim);
  if (!problems.empty()) give_up();
  return s;
}

/// Fills a tensor with random numbers in pieces of kPiece elements, each made and stored by one thread into
/// its place.
class Generator {
 public:
  Generator(uint64_t seed, int threads)
      : seed_(seed), pool_(threads), buffers_(static_cast<size_t>(pool_.size())) {}

  /// A weight matrix whose elements have the standard deviation `spread` over all. As in real models it is
  /// not the same everywhere: each run of 16 elements has its own spread and a mean of its own, so that the
  /// blocks' scales and minima take all their values.
  Writer::Fill matrix(const std::string& name, uint64_t elements, Type type, double spread) {
    const uint64_t stream = synth::stream_of(seed_, name);
    // Spreads are uniform in [0.1, 1.6] (mean square 0.91), means in +-0.3 (mean square 0.03): 0.94 in all.
    const auto scale = static_cast<float>(spread / std::sqrt(0.94));
    return [this, stream, elements, type, scale](const Writer::Sink& sink) {
      pieces(elements, type, sink, [stream, scale](uint64_t first, uint64_t count, float* out) {
        fill_matrix(stream, first, count, scale, out);
      });
    };
  }

  /// A vector, F32: `centre` plus uniform numbers in +-`reach`.
  Writer::Fill vector(const std::string& name, uint64_t elements, float centre, float reach) {
    const uint64_t stream = synth::stream_of(seed_, name);
    return [this, stream, elements, centre, reach](const Writer::Sink& sink) {
      pieces(elements, Type::F32, sink, [=](uint64_t first, uint64_t count, float* out) {
        for (uint64_t i = 0; i < count; ++i)
          out[i] = centre + reach * (2.0F * synth::uniform_of(synth::bits_at(stream, first + i)) - 1.0F);
      });
    };
  }

 private:
  static constexpr uint64_t kPiece = 1 << 15;  // a multiple of every block
  static constexpr uint64_t kPieces = 64;      // made before they are written: 2 M elements, 8 MB at most
  static constexpr uint64_t kGroup = 16;

  static void fill_matrix(uint64_t stream, uint64_t first, uint64_t count, float scale, float* out) {
    const uint64_t groups = synth::mix(stream ^ 0x67726f757073u);  // a stream of its own for the runs of 16
    for (uint64_t begin = 0; begin < count; begin += kGroup) {     // first is a multiple of kGroup
      const uint64_t bits = synth::bits_at(groups, (first + begin) / kGroup);
      const float spread = scale * (0.1F + 1.5F * synth::uniform_of(bits));
      const float mean = scale * 0.3F * (2.0F * synth::uniform_of(bits << 24) - 1.0F);
      const uint64_t end = std::min(begin + kGroup, count);
      for (uint64_t i = begin; i < end; ++i)
        out[i] = mean + spread * synth::normal_of(synth::bits_at(stream, first + i));
    }
  }

  template <class Make>
  void pieces(uint64_t elements, Type type, const Writer::Sink& sink, const Make& make) {
    const uint64_t piece_bytes = *quant::bytes_for(type, kPiece);
    for (uint64_t start = 0; start < elements; start += kPiece * kPieces) {
      const uint64_t here = std::min(elements - start, kPiece * kPieces);
      stored_.resize(*quant::bytes_for(type, here));
      pool_.parallel_for(ceil_div(static_cast<int64_t>(here), kPiece), 1,
                         [&](int64_t begin, int64_t end, int worker) {
                           std::vector<float>& values = buffers_[static_cast<size_t>(worker)];
                           values.resize(kPiece);
                           for (int64_t p = begin; p < end; ++p) {
                             const uint64_t offset = static_cast<uint64_t>(p) * kPiece;
                             const uint64_t count = std::min(here - offset, kPiece);
                             make(start + offset, count, values.data());
                             quant::quantize(type, values.data(), static_cast<int64_t>(count),
                                             stored_.data() + static_cast<uint64_t>(p) * piece_bytes);
                           }
                         });
      sink(stored_);
    }
  }

  uint64_t seed_;
  ThreadPool pool_;
  std::vector<std::vector<float>> buffers_;  ///< one a worker
  std::vector<std::byte> stored_;
};

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

void add_metadata(Writer& w, const SynthOptions& o, const Shape& s) {
  const auto u32 = [&](const char* key, uint64_t value) { w.add_u32(key, static_cast<uint32_t>(value)); };
  w.add_string("general.architecture", "llama");
  w.add_string("general.type", "model");
  w.add_string("general.name", fmt::format("synthetic llama {}x{} {} seed {}", s.dim, s.layers,
                                           quant::traits(o.type).name, o.seed));
  u32("general.file_type", file_type(o.type));
  if (quant::traits(o.type).block > 1) u32("general.quantization_version", 2);
  u32("llama.context_length", s.context);
  u32("llama.embedding_length", s.dim);
  u32("llama.block_count", s.layers);
  u32("llama.feed_forward_length", s.ffn_dim);
  u32("llama.attention.head_count", s.heads);
  u32("llama.attention.head_count_kv", s.kv_heads);
  w.add_f32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(kRmsEpsilon));
  if (s.head_dim * s.heads != s.dim) {
    u32("llama.attention.key_length", s.head_dim);
    u32("llama.attention.value_length", s.head_dim);
  }
  u32("llama.rope.dimension_count", s.head_dim);
  w.add_f32("llama.rope.freq_base", o.rope_base);
  u32("llama.vocab_size", s.vocab);
  using Kind = Scaling::Kind;
  if (s.scaling.kind == Kind::linear || s.scaling.kind == Kind::yarn) {  // llama3's is a tensor, not a key
    w.add_string("llama.rope.scaling.type", s.scaling.kind == Kind::yarn ? "yarn" : "linear");
    w.add_f32("llama.rope.scaling.factor", static_cast<float>(s.scaling.factor));
    if (s.scaling.original_context)
      u32("llama.rope.scaling.original_context_length", *s.scaling.original_context);
  }
}

/// Llama 3's rotary scaling as one divisor a frequency (rope_freqs.weight): 1 for wavelengths that the
/// original context holds four times or more, the factor for those it does not hold once, and a blend of the
/// two between.
std::vector<float> llama3_divisors(const SynthOptions& o, const Shape& s) {
  constexpr double kLow = 1.0;
  constexpr double kHigh = 4.0;
  const auto original = static_cast<double>(*s.scaling.original_context);
  std::vector<float> divisors;
  for (uint64_t i = 0; i < s.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(s.head_dim);
    const double wavelength = 2.0 * std::numbers::pi * std::pow(static_cast<double>(o.rope_base), exponent);
    const double turns = original / wavelength;
    const double blend = std::clamp((turns - kLow) / (kHigh - kLow), 0.0, 1.0);
    divisors.push_back(static_cast<float>(1.0 / ((1.0 - blend) / s.scaling.factor + blend)));
  }
  return divisors;
}

/// Weight scales. Rmsnorm leaves rows of mean square about 1.08 (norm weights are uniform in 0.5 .. 1.5), so
/// that a matrix of spread g / sqrt(K) gives outputs of spread about g:
///   q, k     1.4: scores of spread 2, attention that picks some keys out
///   v        1
///   gate, up 1: silu(gate) * up has a root mean square of about 0.6
///   output, down 1.5: each layer adds about as much as the embedding brought
///   head     3 / sqrt(dim): logits of spread 3. A tied embedding has that spread too; it is then small
///   beside the
///            layers' contributions, so that a token does not merely predict itself.
void add_tensors(Writer& w, Generator& g, const SynthOptions& o, const Shape& s,
                 const std::vector<float>& divisors) {
  const auto matrix = [&](const std::string& name, uint64_t columns, uint64_t rows, double spread) {
    const auto elements = checked_mul(columns, rows);
    if (!elements || !quant::bytes_for(o.type, *elements))
      fail("{}: {} x {} elements are too many", name, columns, rows);
    w.add_tensor(name, {columns, rows}, o.type, g.matrix(name, *elements, o.type, spread));
  };
  const auto vector = [&](const std::string& name, uint64_t size, float centre, float reach) {
    w.add_tensor(name, {size}, Type::F32, g.vector(name, size, centre, reach));
  };
  const auto gain = [](double wanted, uint64_t columns) {
    return wanted / std::sqrt(static_cast<double>(columns));
  };
  const double head = gain(3.0, s.dim) / std::sqrt(13.0 / 12.0);
  const uint64_t q = s.heads * s.head_dim;
  const uint64_t kv = s.kv_heads * s.head_dim;
  matrix("token_embd.weight", s.dim, s.vocab, o.tied ? head : 1.0);
  if (!divisors.empty())
    w.add_tensor("rope_freqs.weight", {divisors.size()}, Type::F32,
                 [&divisors](const Writer::Sink& sink) { sink(std::as_bytes(std::span(divisors))); });
  for (uint64_t layer = 0; layer < s.layers; ++layer) {
    const auto name = [&](const char* part) { return fmt::format("blk.{}.{}", layer, part); };
    vector(name("attn_norm.weight"), s.dim, 1.0F, 0.5F);
    matrix(name("attn_q.weight"), s.dim, q, gain(1.4, s.dim));
    matrix(name("attn_k.weight"), s.dim, kv, gain(1.4, s.dim));
    matrix(name("attn_v.weight"), s.dim, kv, gain(1.0, s.dim));
    matrix(name("attn_output.weight"), q, s.dim, gain(1.5, q));
    if (o.bias) {
      vector(name("attn_q.bias"), q, 0.0F, 0.5F);
      vector(name("attn_k.bias"), kv, 0.0F, 0.5F);
      vector(name("attn_v.bias"), kv, 0.0F, 0.5F);
      vector(name("attn_output.bias"), s.dim, 0.0F, 0.5F);
    }
    vector(name("ffn_norm.weight"), s.dim, 1.0F, 0.5F);
    matrix(name("ffn_gate.weight"), s.dim, s.ffn_dim, gain(1.0, s.dim));
    matrix(name("ffn_up.weight"), s.dim, s.ffn_dim, gain(1.0, s.dim));
    matrix(name("ffn_down.weight"), s.ffn_dim, s.dim, gain(1.5, s.ffn_dim));
  }
  vector("output_norm.weight", s.dim, 1.0F, 0.5F);
  if (!o.tied) matrix("output.weight", s.dim, s.vocab, head);
}

}  // namespace

void synthesise(const SynthOptions& options, const std::string& out_path, int threads) {
  std::optional<gguf::File> tokenizer;
  if (!options.tokenizer_from.empty()) tokenizer = gguf::File::open(options.tokenizer_from);
  const Shape shape =
      derive(options, tokenizer ? std::optional(synth::vocabulary_size(*tokenizer)) : std::nullopt);
  Writer writer;
  add_metadata(writer, options, shape);
  if (tokenizer)
    synth::copy_tokenizer(writer, *tokenizer);
  else
    synth::add_made_up_tokenizer(writer, shape.vocab);
  std::vector<float> divisors;
  if (shape.scaling.kind == Scaling::Kind::llama3) divisors = llama3_divisors(options, shape);
  Generator generator(options.seed, std::max(threads, 1));
  add_tensors(writer, generator, options, shape, divisors);
  writer.write(out_path);
}

}  // namespace greta
