#pragma once
// The operator table: everything that a device computes for a model, and nothing else. The one forward pass
// (decoder/forward.cpp) calls these operators; bisect calls them again on the same inputs (replay). So an
// operator's arguments are plain structs that can be made anew from the plan, and an operator has no memory
// of earlier calls but the KV cache that it is handed.
//
// Contract of every backend but the judge's rounding (docs/numerics: one order of addition): each row of an
// output depends on its own inputs alone, by a fixed order of operations that follows from the weight's shape
// and type (for attention: from absolute key positions). Rows in a call, chunking, neighbours, threads and
// page addresses change no bit.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/arithmetic.h"
#include "backend/stages.h"
#include "quant/types.h"

namespace greta {

/// Keys and values lie in pages of this many consecutive positions, aligned to absolute position. It is also
/// the attention split: a softmax is merged split by split in ascending order.
inline constexpr int kKvPage = 64;

/// Which numbers a tensor holds for the engine.
enum class WeightUse {
  matmul,     ///< [n_out, n_in]: y = W x
  experts,    ///< [experts, n_out, n_in]: a stack of matrices, one an expert
  embedding,  ///< [vocab, dim]: a row is looked up; kept as stored in every weight mode
  vector,     ///< [n]: norm weights, biases; F32 on the device whatever the file's type
};

/// A tensor as the file has it.
struct WeightSource {
  std::string name;
  quant::Type type = quant::Type::F32;
  int64_t rows = 0;  ///< n_out (of all experts together), vocab, or 1
  int64_t cols = 0;  ///< n_in: contiguous in the file (GGUF's first dimension)
  std::span<const std::byte> bytes;
  int64_t experts = 1;
  /// Told once of each part of `bytes` that its weight will not read again. May be empty.
  std::function<void(std::span<const std::byte>)> release = {};
  /// Copies a part of `bytes` from where they come from, from any thread. May be empty: they are copied.
  std::function<void(std::span<const std::byte> part, std::byte* to)> read = {};
  void copy(std::span<const std::byte> part, std::byte* to) const {
    if (read)
      read(part, to);
    else
      std::copy(part.begin(), part.end(), to);
  }
  /// The weight needs none of `bytes` any more.
  void let_go() const {
    if (release) release(bytes);
  }

  /// One expert's matrix of a stack, as a tensor of its own.
  WeightSource expert(int64_t index) const {
    const size_t size = bytes.size() / static_cast<size_t>(experts);
    WeightSource one = *this;
    one.rows = rows / experts;
    one.bytes = bytes.subspan(static_cast<size_t>(index) * size, size);
    one.experts = 1;
    return one;
  }
};

/// A tensor resident on a device.
class Weight {
 public:
  virtual ~Weight() = default;
  std::string name;
  WeightUse use = WeightUse::matmul;
  quant::Type file_type = quant::Type::F32;
  std::string resident;  ///< how it lies there, for reports: "Q4_K/16-row tiles", "F16 in place", "int8"
  int64_t rows = 0;      ///< of all experts together
  int64_t cols = 0;
  int64_t experts = 1;
  int64_t rows_each() const { return rows / experts; }
  uint64_t resident_bytes = 0;  ///< allocated on the device (0 where the file's mapping is used in place)

  /// Rows first .. first + count as FP32, read back through the resident layout: [count, cols]. For `stored`
  /// they are the file's dequantised rows, bit for bit. From any thread.
  virtual void read_back(int64_t first, int64_t count, float* out) const = 0;

  /// A backend may serve the first calls from the file's bytes and make the resident layout meanwhile; this
  /// makes the rest of it now, for those who time what comes after. It changes no bit of any result.
  virtual void settle() const {}
};

/// Rows of activations in a backend's memory: row-major [rows, width], contiguous; elements are FP32, the
/// reference's FP64. Who owns it knows the row count.
struct View {
  void* data = nullptr;
  int64_t width = 0;
};

/// Memory owned by a backend, freed with this handle. Zeroed when made.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() = 0;
  virtual size_t bytes() const = 0;
};

/// The rows of one call: which token, of which sequence, at which position. Host arrays, each [rows]. Rows of
/// a sequence are in ascending position; a row's own key is written before attention reads it.
struct BatchView {
  int64_t rows = 0;
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* sequences = nullptr;  ///< index into the page tables' rows
  int64_t sequence_count = 0;
};

/// One layer's keys and values: a pool of pages (layout inside a page is the backend's own) and the table
/// that says where a position lies: in page pages[s * page_stride + position / kKvPage]. Host array,
/// [sequences, page_stride]; -1: nothing is kept of those positions (not reached yet, or before every window
/// that a coming row can have).
struct KvLayer {
  void* k = nullptr;
  void* v = nullptr;
  int kv_heads = 0;
  int head_dim = 0;
  const int32_t* pages = nullptr;
  int64_t page_stride = 0;

  int32_t page_of(int64_t sequence, int64_t position) const {
    return pages[sequence * page_stride + position / kKvPage];
  }
};

/// How a rotary embedding turns a head: pair i is rotated by position * inv_freq[i].
enum class RopeStyle {
  adjacent,  ///< pair i is elements (2i, 2i + 1)
  half,      ///< pair i is elements (i, i + dims / 2)
};
struct RopeSpec {
  RopeStyle style = RopeStyle::adjacent;
  int dims = 0;                  ///< rotated elements of a head, even; the rest pass through
  std::vector<double> inv_freq;  ///< [dims / 2] radians a position, every scaling applied
  double magnitude = 1.0;        ///< cos and sin are multiplied by it (YaRN)
};

enum class Activation { silu, gelu_tanh };

/// Which call of the forward pass an operator serves, as the pass itself sees it: for reports, and for those
/// who look on from outside (bisect). It steers nothing. Row i of the call is part i % parts of batch row
/// batch_rows[i / parts], or i / parts.
struct Site {
  int layer = kNoLayer;
  Stage stage = Stage::embed_out;  ///< that the call leaves (the first of several)
  const BatchView* batch = nullptr;
  const int32_t* batch_rows = nullptr;
  int64_t parts = 1;  ///< rows of the call for each batch row (the heads of a norm that each has)
  int64_t batch_row(int64_t i) const { return batch_rows == nullptr ? i / parts : batch_rows[i / parts]; }
};

// ---- arguments, one struct an operator
// ---------------------------------------------------------------------------

/// out[r] = table[tokens[r]] * scale
struct EmbedArgs {
  const BatchView* batch = nullptr;
  const Weight* table = nullptr;
  double scale = 1.0;
  View out;
  Site site = {};
};

/// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight. out may be x. A norm of each head apart is one of
/// rows * heads rows: Site::parts.
struct RmsnormArgs {
  int64_t rows = 0;
  View x;
  const Weight* weight = nullptr;
  float eps = 0.0f;
  View out;
  Site site = {};
};

/// One product of a matmul call: out[r] = w x[r] (+ bias).
struct MatmulOutput {
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;  ///< may be null; added last, one rounding
  View out;
  Stage stage = Stage::logits;  ///< that it leaves (Site)
};

/// Up to three products that read the same rows (q, k and v; gate and up): one call, one reading of x.
struct MatmulArgs {
  int64_t rows = 0;
  View x;
  std::array<MatmulOutput, 3> outputs;
  int count = 1;
  Site site = {};
};

/// Up to two stacks of experts that read the same rows (gate and up): slot s of row r is
/// out[r, s] = w[experts[r, s]] x[r], x being [rows, n_in] or, a part for each slot, [rows, used * n_in].
/// out: [rows, used * n_out]. The slots of a row are independent products, each as a matmul's.
struct ExpertMatmulArgs {
  int64_t rows = 0;
  View x;
  View experts;  ///< [rows, used]: what choose_experts left
  std::array<MatmulOutput, 2> outputs;
  int count = 1;
  Site site = {};
};

/// The `used` largest of each row's logits (ties: the lower index; a NaN counts as the largest), written in
/// ascending index, as numbers; and their weights: e^l over the sum of e^l of the chosen (normalised) or of
/// all, times `scale`. used <= the logits' width.
struct ChooseExpertsArgs {
  int64_t rows = 0;
  View logits;  ///< [rows, experts]
  bool normalised = true;
  double scale = 1.0;
  View experts;  ///< [rows, used]
  View weights;  ///< [rows, used]
  Site site = {};
};

/// out[r] = sum_s weights[r, s] * x[r, s] in ascending s. x: [rows, used * dim].
struct CombineArgs {
  int64_t rows = 0;
  View x;
  View weights;  ///< [rows, used]
  View out;      ///< [rows, dim]
  Site site = {};
};

/// out = cap * tanh(x / cap). out may be x.
struct SoftcapArgs {
  int64_t rows = 0;
  View x;
  double cap = 0.0;  ///< fast backends round it once, to FP32
  View out;
  Site site = {};
};

/// q_out = rotate(q); the cache's rows of this layer = (rotate(k), v), rounded to the cache's type.
struct RopeArgs {
  const BatchView* batch = nullptr;
  const RopeSpec* rope = nullptr;
  int heads = 0;
  View q;  ///< [rows, heads * head_dim]
  View k;  ///< [rows, kv_heads * head_dim]
  View v;
  View q_out;
  KvLayer cache;
  Site site = {};
};

/// out[r, h] = sum_j softmax_j(cap(scale * q[r, h] . k[j])) v[j] over the keys j that row r sees of its
/// sequence: 0 .. position[r], with a window the last `window` of them; head h reads kv head h / (heads /
/// kv_heads); cap(s) = softcap * tanh(s / softcap), or s where softcap is 0. Only the cache is read, the
/// row's own key too; of a key that no row of a sequence sees nothing is read.
struct AttentionArgs {
  const BatchView* batch = nullptr;
  int heads = 0;
  double scale = 0.0;  ///< fast backends round it once, to FP32
  View q;
  KvLayer cache;
  View out;
  double softcap = 0.0;  ///< fast backends round it once, to FP32; 0: none
  int64_t window = 0;    ///< 0: every earlier key
  Site site = {};
};

/// out = a + b. out may be a.
struct AddArgs {
  int64_t rows = 0;
  View a;
  View b;
  View out;
  Site site = {};
};

/// out = activation(gate) * up. out may be gate.
struct GluArgs {
  int64_t rows = 0;
  Activation activation = Activation::silu;
  View gate;
  View up;
  View out;
  Site site = {};
};

/// out[i] = x[rows[i]]: a wire, it moves bits.
struct GatherArgs {
  std::span<const int32_t> rows;
  View x;
  View out;
  Site site = {};
};

/// What the calls of one forward pass share. From begin_pass to end_pass the arrays behind it keep their
/// place and their values.
struct Pass {
  const BatchView* batch = nullptr;
  std::span<const int32_t> logit_rows;
  std::span<const KvLayer> layers;
  int heads = 0;
  const void* model = nullptr;      ///< the same for all passes over the same weights
  const void* workspace = nullptr;  ///< the same where every view of the pass is
  bool observed = false;            ///< somebody reads stages between the calls
};

/// What lacks() is asked about: the numbers of a model that kernels are made for, beside its tensors' shapes.
struct ModelShape {
  int64_t head_dim = 0;
  int64_t experts = 0;  ///< 0: none
  int64_t experts_used = 0;
};
/// One of them that a device cannot compute with.
struct ShapeGap {
  std::string what;      ///< "head_dim"
  std::string expected;  ///< "an even number of at most 256"
  int64_t got = 0;
};

/// What scratch_bytes() is asked for: the largest call of a run.
struct ScratchShape {
  int64_t rows = 0;
  int64_t widest = 0;  ///< of any operator's rows
  int heads = 0;
  int head_dim = 0;
  int64_t context = 0;
  int64_t sequences = 0;
};

// ---- the table
// ---------------------------------------------------------------------------------------------------

enum class KvPart { k, v };

/// What a device could do at most, measured when asked: for bench.
class DeviceLimits {
 public:
  virtual ~DeviceLimits() = default;
  /// Bytes a second of reading memory: the best of several patterns. `how` says which, and over what.
  virtual double read_rate(std::string& how) = 0;
  /// Multiply-adds a second of the matrix unit in 16 bits.
  virtual double matrix_rate(std::string& how) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;  ///< "cpu", "reference", "cuda:0"
  virtual std::string description()
      const = 0;  ///< with instruction set, threads, activation and KV mode, for the log
  virtual size_t element_bytes() const = 0;  ///< of activations: 4, the reference's 8
  /// How its operators round: what a judge must know of it.
  virtual const Arithmetic& arithmetic() const = 0;
  KvType kv_type() const { return arithmetic().kv_type; }

  /// The capability query, asked by the plan before anything is allocated: nothing, or why this backend
  /// cannot use such a tensor (one expert's matrix of a stack) and what would help.
  virtual std::optional<std::string> refuses(WeightUse use, quant::Type type, int64_t rows,
                                             int64_t cols) const = 0;
  /// The same of the model as a whole: everything that its operators cannot do here.
  virtual std::vector<ShapeGap> lacks(const ModelShape&) const { return {}; }
  /// Bytes that load() will allocate for it (for each expert of a stack).
  virtual uint64_t resident_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols) const = 0;
  /// Bytes of one page of one layer, keys and values each.
  virtual uint64_t kv_page_bytes(int kv_heads, int head_dim) const = 0;
  /// Bytes of scratch that the operators need beside their arguments.
  virtual uint64_t scratch_bytes(const ScratchShape& shape) const = 0;
  /// Bytes of memory free for us now.
  virtual uint64_t available_bytes() const = 0;

  virtual std::unique_ptr<Buffer> allocate(size_t bytes) = 0;
  virtual std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) = 0;

  /// Row `first` of a view, of `count` rows from there on that will be asked for, as it lies: FP32 in the
  /// host's memory, until another row is asked for or an operator runs. Null: it must be read.
  virtual const float* in_place(const View&, int64_t /*first*/, int64_t /*count*/) const { return nullptr; }
  /// Rows [first, first + count) of a view, as FP32 (the reference rounds) or FP64 (exact).
  virtual void read(const View& view, int64_t first, int64_t count, float* out) const = 0;
  virtual void read(const View& view, int64_t first, int64_t count, double* out) const = 0;
  /// Writes rows (replay, tests): the opposite of read; FP64 is rounded to the element type.
  virtual void write(const View& view, int64_t first, int64_t count, const double* in) = 0;
  /// The cache's own values of batch row `row`: [kv_heads * head_dim].
  virtual void read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                       double* out) const = 0;
  /// Puts them there (replay): the opposite of read_kv.
  virtual void write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                        const double* in) = 0;

  /// The operators without the wiring around them: what a replay calls. A backend is its own; whoever stands
  /// between the forward pass and a backend (planted faults) names what is below.
  virtual Backend& operators() { return *this; }

  /// Around the calls of a forward pass. True: the backend has the whole pass recorded, with the same views,
  /// and has begun to run it; no operator is to be called, nor end_pass().
  virtual bool begin_pass(const Pass&) { return false; }
  virtual void end_pass() {}
  /// Inside a pass: its calls are not run now but recorded, and run whenever the recording is launched.
  virtual bool recording() const { return false; }

  virtual void embed(const EmbedArgs& args) = 0;
  virtual void rmsnorm(const RmsnormArgs& args) = 0;
  virtual void matmul(const MatmulArgs& args) = 0;
  virtual void rope(const RopeArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void add(const AddArgs& args) = 0;
  virtual void glu(const GluArgs& args) = 0;
  virtual void choose_experts(const ChooseExpertsArgs& args) = 0;
  virtual void expert_matmul(const ExpertMatmulArgs& args) = 0;
  virtual void combine(const CombineArgs& args) = 0;
  virtual void softcap(const SoftcapArgs& args) = 0;
  virtual void gather(const GatherArgs& args) = 0;

  /// Returns when all calls so far have been computed: a device's calls return before that.
  virtual void synchronize() {}

  /// Null: the host's limits are this device's.
  virtual DeviceLimits* limits() { return nullptr; }

  /// Kernels that ran since reset_route(), by name, with how often: recorded where a kernel is entered, never
  /// derived from options.
  using Route = std::map<std::string, uint64_t, std::less<>>;
  virtual Route route() const { return route_; }
  virtual void reset_route() { route_.clear(); }

 protected:
  void ran(std::string_view kernel, uint64_t times = 1) {
    const auto found = route_.find(kernel);
    if (found != route_.end()) {
      found->second += times;
    } else {
      route_.emplace(kernel, times);
    }
  }
  /// What ran() has counted, where a copy (route()) would cost too much: once a pass.
  const Route& noted() const { return route_; }

 private:
  Route route_;
};

enum class Isa { automatic, avx512, avx2, portable };

/// What is the same for every device.
struct BackendOptions {
  int threads = 0;  ///< 0: as many as the process may use
  Isa isa = Isa::automatic;
  WeightMode weights = WeightMode::stored;
  Activations activations = Activations::bits16;
  KvType kv_type = KvType::f16;
};

/// Whether a device's name is one of gpu/'s: "cuda:0", "hip:0", "sim:32".
inline bool is_gpu(std::string_view device) {
  return device.starts_with("cuda:") || device.starts_with("hip:") || device.starts_with("sim:");
}

/// `device`: "cpu", "reference", and in builds that have them "cuda:0", "hip:0" and, to try GPU kernels on
/// the host, "sim:32" and "sim:64". Errors: an unknown device, an instruction set that this machine lacks, an
/// option that the device does not have (the reference keeps the file's own weights, unrounded activations
/// and an FP64 cache): each says what there is instead.
std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options);

}  // namespace greta
