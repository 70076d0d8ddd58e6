#include "backend/gpu/gpu_backend.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "backend/gpu/gpu_arithmetic.h"
#include "backend/gpu/gpu_limits.h"
#include "backend/gpu/gpu_weights.h"
#include "backend/gpu/kernels.h"
#include "backend/gpu/kernels/orders.h"
#include "backend/gpu/pass_data.h"
#include "backend/gpu/recordings.h"
#include "backend/weight_source.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"

namespace greta {
namespace gpu {
namespace {

constexpr int64_t kNoWindow = int64_t{1} << 30;  ///< as good as none: no position is as large
constexpr size_t kReadAhead = size_t{4} << 20;

const float* floats(const View& view) { return static_cast<const float*>(view.data); }
float* floats_out(const View& view) { return static_cast<float*>(view.data); }
const GpuWeight& own(const Weight* weight) { return static_cast<const GpuWeight&>(*weight); }
const float* vector_of(const Weight* weight) {
  return weight == nullptr ? nullptr : own(weight).memory.data<float>();
}
int64_t stride_of(int64_t width) { return ceil_div(width, int64_t{kChunkK}) * kChunkK; }

/// What the kernels cannot do, of what a model asks.
std::vector<ShapeGap> shape_gaps(const ModelShape& shape) {
  std::vector<ShapeGap> gaps;
  if (shape.head_dim > kMostHeadDim || shape.head_dim % kHeadDimStep != 0)
    gaps.push_back({"head_dim", fmt::format("a multiple of {} of at most {}", kHeadDimStep, kMostHeadDim),
                    shape.head_dim});
  if (shape.experts > kMostExperts)
    gaps.push_back({"experts", fmt::format("at most {}", kMostExperts), shape.experts});
  if (shape.experts_used > kMostExpertsUsed)
    gaps.push_back({"experts_used", fmt::format("at most {}", kMostExpertsUsed), shape.experts_used});
  return gaps;
}

class GpuBackend;

struct OwnedBuffer : Buffer {
  OwnedBuffer(GpuBackend& backend, size_t bytes);
  ~OwnedBuffer() override;
  void* data() override { return memory.data(); }
  size_t bytes() const override { return memory.bytes(); }
  GpuBackend& owner;
  DeviceMemory memory;
};

class GpuBackend : public Backend, private Launch {
 public:
  GpuBackend(std::unique_ptr<Device> device, const BackendOptions& options)
      : device_(std::move(device)),
        kernels_(device_->kernels()),
        options_(options),
        arithmetic_(options.weights, options.kv_type),
        losses_(*device_),
        reader_(*device_, *this),
        pass_(*device_),
        loose_(*device_),
        limits_(*device_, *this) {
    if (options.activations == Activations::bits8)
      fail(
          "--activations 8: {} has 16-bit activations alone (f16 behind a scale for each row); --device cpu "
          "has 8 bits",
          device_->name());
    if (options.kv_type != KvType::f16 && options.kv_type != KvType::bf16)
      fail("--kv-type: the cache on {} is f16 or bf16", device_->name());
    stream = device_->stream();
    warpgroups = device_->warpgroups();
    multiprocessors = device_->multiprocessors();
    mark_ = static_cast<uint32_t*>(device_->allocate_host(sizeof(uint32_t)));
    arrivals_ = DeviceMemory(*device_, kMostArrivals * sizeof(uint32_t));
    device_->running = [this] { return names_.name(*mark_); };
  }
  ~GpuBackend() override {
    device_->running = nullptr;
    device_->release_host(mark_);
  }

  std::string name() const override { return device_->name(); }
  std::string description() const override {
    static constexpr std::string_view kModes[] = {"as stored", "f32", "int8"};
    return fmt::format("{}, {}, {}, weights {}, f16 activations, KV cache {}", device_->name(),
                       device_->description(), kernels_.matrix_unit,
                       kModes[static_cast<size_t>(options_.weights)],
                       options_.kv_type == KvType::f16 ? "f16" : "bf16 (outside the error budget)");
  }
  size_t element_bytes() const override { return sizeof(float); }
  const Arithmetic& arithmetic() const override { return arithmetic_; }

  std::optional<std::string> refuses(WeightUse, quant::Type type, int64_t rows, int64_t cols) const override {
    return shape_refusal(type, rows, cols);
  }
  std::vector<ShapeGap> lacks(const ModelShape& shape) const override { return shape_gaps(shape); }
  uint64_t resident_bytes(WeightUse use, quant::Type type, int64_t rows, int64_t cols) const override {
    return gpu_weight_bytes(kernels_, use, type, rows, cols, options_.weights);
  }
  uint64_t kv_page_bytes(int kv_heads, int head_dim) const override {
    return static_cast<uint64_t>(kv_heads) * static_cast<uint64_t>(head_dim) * kKvPage * sizeof(uint16_t);
  }
  uint64_t scratch_bytes(const ScratchShape& shape) const override;
  uint64_t available_bytes() const override { return device_->free_bytes(); }

  std::unique_ptr<Buffer> allocate(size_t bytes) override {
    return std::make_unique<OwnedBuffer>(*this, bytes);
  }
  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    at("loading", {}, {});
    return load_gpu_weight(source, use, options_.weights, *device_, *this, staging_, reader_, losses_);
  }

  const float* in_place(const View& view, int64_t first, int64_t count) const override;
  void read(const View& view, int64_t first, int64_t count, float* out) const override;
  void read(const View& view, int64_t first, int64_t count, double* out) const override;
  void write(const View& view, int64_t first, int64_t count, const double* in) override;
  void read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
               double* out) const override;
  void write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                const double* in) override;

  DeviceLimits* limits() override { return &limits_; }
  void synchronize() override {
    launch_pending();
    losses_.tell();
    device_->synchronize();
  }

  bool begin_pass(const Pass& pass) override;
  void end_pass() override;
  bool recording() const override { return recordings_.recording(); }

  void embed(const EmbedArgs& args) override;
  void rmsnorm(const RmsnormArgs& args) override;
  void matmul(const MatmulArgs& args) override;
  void rope(const RopeArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void add(const AddArgs& args) override;
  void glu(const GluArgs& args) override;
  void choose_experts(const ChooseExpertsArgs& args) override;
  void expert_matmul(const ExpertMatmulArgs& args) override;
  void combine(const CombineArgs& args) override;
  void softcap(const SoftcapArgs& args) override;
  void gather(const GatherArgs& args) override;

 private:
  friend struct OwnedBuffer;

  /// Of an operator that was called without a plan.
  void require(const ModelShape& shape) const {
    for (const ShapeGap& gap : shape_gaps(shape))
      fail("{}: {}: expected {}, got {}; --device cpu computes any", name(), gap.what, gap.expected, gap.got);
  }

  /// Launch: what runs is counted, named, and makes what was read of the device old.
  Mark mark(const char* kernel) const override {
    auto* self = const_cast<GpuBackend*>(this);
    self->ran(kernel);
    self->touched();
    return {mark_, self->names_.id(kernel, operator_)};
  }
  /// An operator begins: who it is, and what it will write. What was put off is launched first.
  void at(const char* name, const Site& site, std::initializer_list<View> writes) {
    launch_pending();
    begin(name, site, writes);
  }
  void begin(const char* name, const Site& site, std::initializer_list<View> writes) {
    operator_ = {name, site.layer, site.stage};
    stream = device_->stream();  // and the thread's current device is ours
    for (const View& view : writes) written(view.data);
  }

  // Operators that meet in one kernel, in passes in which nobody reads what lies between: a norm and the
  // product of its rows, a product (or a norm) and its addition to the residual, gate, up and glu. A norm and
  // a product wait for what follows them; the bits are those of kernels apart.
  struct WaitingProduct {
    MatmulCall call;
    OperatorName of;
  };
  /// Launches what waits, as it is.
  void launch_pending();
  void launch_norm(const RmsnormArgs& args, const AddArgs* add);
  void launch_product(const WaitingProduct& product);
  void launch_rope(const RopeArgs& args);
  Rotation rotation_of(const RopeSpec& spec) {
    return {spec.style == RopeStyle::half, spec.dims, frequencies(spec), spec.magnitude};
  }
  /// Whether a waiting rope can be attention's own blocks' work.
  bool rope_waits_for(const AttentionArgs& args, const PassData& data) const {
    return rope_ && data.alone() && rope_->q_out.data == args.q.data && rope_->batch == args.batch &&
           rope_->cache.k == args.cache.k &&
           kernels_.fuses_rope(args.heads, args.cache.kv_heads, rope_->rope->dims);
  }
  /// Whether the waiting norm left its rows where `x` is.
  bool norm_made(const View& x, int64_t rows) const {
    return norm_ && norm_->out.data == x.data && norm_->out.width == x.width && norm_->rows == rows;
  }
  /// The operands of products of x of so many outputs: rounded, or to be rounded by its own blocks, a waiting
  /// norm with them.
  void take_operands(const View& x, int64_t rows, int64_t outputs, MatmulCall& call);
  /// A buffer's rows change or go: what was rounded of them is old. All views of a buffer begin where it
  /// does.
  void written(const void* data) {
    if (data == rounded_of_.data) rounded_of_ = {};
  }
  /// Room for rows to be left rounded in; `of` are those rows, until they or the room are written again.
  /// `tiles`: as a product without x_rows wants them.
  RoundedRows rounded_room(const View& of, int64_t rows, bool tiles = true);
  void touched() {
    read_begin_ = nullptr;
    lent_of_ = nullptr;
  }
  /// Scratch of at least so many bytes; recordings know the old place.
  void reserve(DeviceMemory& memory, size_t bytes) {
    if (bytes <= memory.bytes()) return;
    if (recordings_.recording()) fail("scratch had to grow in a recorded pass");
    recordings_.forget();
    memory.reserve(*device_, bytes);
  }

  /// The batch (and a page table) on the device: the pass's own, or put there for this call.
  const PassData& data_of(const BatchView& batch, const KvLayer* cache, int heads);
  DeviceKv cache_of(const KvLayer& cache, const PassData& data) const;
  RoundedRows rounded(const View& x, int64_t rows, bool tiles);
  bool is_rounded(const View& x, int64_t rows, bool tiles) const {
    return rounded_of_.data == x.data && rounded_of_.width == x.width && rounded_count_ == rows &&
           rounded_tiles_ == tiles;
  }
  const double* frequencies(const RopeSpec& spec);
  const std::byte* read_bytes(const void* from, size_t bytes) const;
  uint16_t* kv_row(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row) const;

  std::unique_ptr<Device> device_;
  const Kernels& kernels_;
  BackendOptions options_;
  GpuArithmetic arithmetic_;
  uint32_t* mark_ = nullptr;
  KernelNames names_;
  OperatorName operator_;
  DeviceMemory staging_, rounded_, partial_, indices_, arrivals_;
  View rounded_of_;  ///< whose rows lie in rounded_
  int64_t rounded_count_ = 0;
  bool rounded_tiles_ = false;
  bool fusing_ = false;
  std::optional<RmsnormArgs> norm_;
  std::optional<WaitingProduct> product_;
  std::optional<RopeArgs> rope_;
  Losses losses_;
  ReadBack reader_;
  PassData pass_, loose_;
  bool in_pass_ = false;
  Recordings recordings_;
  GpuLimits limits_;
  std::vector<std::pair<std::vector<double>, DeviceMemory>> frequencies_;
  std::map<const std::byte*, size_t> allocations_;
  // What was read last, with what follows it in its buffer: valid until something runs.
  mutable const std::byte* read_begin_ = nullptr;
  mutable std::vector<std::byte> read_ahead_;
  // The same of rows in place.
  mutable const float* lent_of_ = nullptr;
  mutable const float* lent_ = nullptr;
  mutable int64_t lent_count_ = 0;  ///< of numbers
  std::vector<float> values_;
};

OwnedBuffer::OwnedBuffer(GpuBackend& backend, size_t bytes)
    : owner(backend), memory(*backend.device_, bytes) {
  owner.allocations_[memory.data()] = bytes;
}
OwnedBuffer::~OwnedBuffer() {
  owner.touched();
  owner.written(memory.data());
  owner.recordings_.forget();
  owner.allocations_.erase(memory.data());
}

uint64_t GpuBackend::scratch_bytes(const ScratchShape& shape) const {
  const auto rounded = static_cast<uint64_t>(shape.rows + kTiledRows) *
                       (static_cast<uint64_t>(stride_of(shape.widest)) * 2 + 4);
  const int64_t splits =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(ceil_div(shape.context, kKvPage))));
  int64_t partial = 0;  // of as many rows as have their splits apart: more go another way
  for (int64_t rows = 1; rows <= shape.rows; ++rows) {
    const int64_t floats = kernels_.attention_scratch_floats(rows, shape.heads, shape.head_dim, splits);
    if (floats == 0) break;
    partial = floats;
  }
  return rounded + static_cast<uint64_t>(partial) * sizeof(float) + kStagingBytes +
         kMostArrivals * sizeof(uint32_t) + Losses::kMost * sizeof(Losses::Counters) +
         PassData::bytes(shape.rows, shape.sequences, ceil_div(shape.context, kKvPage));
}

// ---- reading and writing
// -----------------------------------------------------------------------------------------

/// Reads more than was asked for: who reads a row of a stage will read the next.
const std::byte* GpuBackend::read_bytes(const void* from, size_t bytes) const {
  const_cast<GpuBackend*>(this)->launch_pending();
  const auto* begin = static_cast<const std::byte*>(from);
  if (read_begin_ != nullptr && begin >= read_begin_ && begin + bytes <= read_begin_ + read_ahead_.size())
    return read_ahead_.data() + (begin - read_begin_);
  size_t length = bytes;
  if (auto above = allocations_.upper_bound(begin); above != allocations_.begin()) {
    const auto& [start, size] = *--above;
    const auto left = static_cast<size_t>(start + size - begin);
    length = std::max(bytes, std::min(left, kReadAhead));
  }
  read_ahead_.resize(length);
  read_begin_ = nullptr;
  device_->download(read_ahead_.data(), begin, length);
  read_begin_ = begin;
  return read_ahead_.data();
}

/// Of the rows that will be asked for, as many as can be lent come together.
const float* GpuBackend::in_place(const View& view, int64_t first, int64_t count) const {
  const float* at = floats(view) + first * view.width;
  if (lent_of_ == nullptr || at < lent_of_ || at + view.width > lent_of_ + lent_count_) {
    const auto most = static_cast<int64_t>(device_->most_lent() / sizeof(float)) / view.width;
    if (most == 0) return nullptr;
    const_cast<GpuBackend*>(this)->launch_pending();
    lent_of_ = nullptr;
    lent_count_ = std::min(count, most) * view.width;
    lent_ = static_cast<const float*>(device_->lend(at, static_cast<size_t>(lent_count_) * sizeof(float)));
    lent_of_ = at;
  }
  return lent_ + (at - lent_of_);
}

void GpuBackend::read(const View& view, int64_t first, int64_t count, float* out) const {
  const_cast<GpuBackend*>(this)->launch_pending();
  device_->download(out, floats(view) + first * view.width,
                    static_cast<size_t>(count * view.width) * sizeof(float));
}

void GpuBackend::read(const View& view, int64_t first, int64_t count, double* out) const {
  const auto n = static_cast<size_t>(count * view.width);
  const std::byte* from = read_bytes(floats(view) + first * view.width, n * sizeof(float));
  for (size_t i = 0; i < n; ++i) {
    float value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    out[i] = value;
  }
}

void GpuBackend::write(const View& view, int64_t first, int64_t count, const double* in) {
  values_.assign(in, in + count * view.width);
  launch_pending();
  written(view.data);
  touched();
  device_->upload(floats_out(view) + first * view.width, values_.data(), values_.size() * sizeof(float));
}

/// Of kv head 0; the next head's is kKvPage * head_dim elements on.
uint16_t* GpuBackend::kv_row(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row) const {
  const int32_t position = batch.positions[row];
  const int64_t page = cache.page_of(batch.sequences[row], position);
  auto* base = static_cast<uint16_t*>(part == KvPart::k ? cache.k : cache.v);
  return base + (page * cache.kv_heads * kKvPage + position % kKvPage) * cache.head_dim;
}

void GpuBackend::read_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                         double* out) const {
  const auto width = static_cast<size_t>(cache.head_dim);
  const uint16_t* at = kv_row(cache, part, batch, row);
  for (int head = 0; head < cache.kv_heads; ++head, at += kKvPage * cache.head_dim) {
    const std::byte* from = read_bytes(at, width * sizeof(uint16_t));
    for (size_t i = 0; i < width; ++i) {
      uint16_t bits;
      std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
      *out++ = options_.kv_type == KvType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }
}

void GpuBackend::write_kv(const KvLayer& cache, KvPart part, const BatchView& batch, int64_t row,
                          const double* in) {
  std::vector<uint16_t> bits(static_cast<size_t>(cache.head_dim));
  uint16_t* at = kv_row(cache, part, batch, row);
  touched();
  for (int head = 0; head < cache.kv_heads; ++head, at += kKvPage * cache.head_dim) {
    for (uint16_t& b : bits) {
      const auto value = static_cast<float>(*in++);
      b = options_.kv_type == KvType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    }
    device_->upload(at, bits.data(), bits.size() * sizeof(uint16_t));
  }
}

// ---- a pass
// -----------------------------------------------------------------------------------------------------

bool GpuBackend::begin_pass(const Pass& pass) {
  launch_pending();
  touched();
  in_pass_ = fusing_ = false;
  recordings_.abort(*device_);
  losses_.tell();
  const int64_t tile_rows = kernels_.attention_tile_rows(pass.heads, pass.layers.front().kv_heads,
                                                         pass.layers.front().head_dim, pass.batch->rows);
  if (pass_.put(*pass.batch, pass.logit_rows, pass.layers, tile_rows)) recordings_.forget();
  in_pass_ = true;
  fusing_ = !pass.observed;
  if (pass.observed) return false;
  const RecordingKey key{pass.model,
                         pass.workspace,
                         pass.layers.front().k,
                         pass.batch->rows,
                         static_cast<int64_t>(pass.logit_rows.size()),
                         pass_.tile_count(),
                         pass_.alone(),
                         pass_.splits()};
  if (!recordings_.begin(key, *device_, noted())) return false;
  for (const auto& [kernel, count] : recordings_.route(key)) ran(kernel, count);
  in_pass_ = fusing_ = false;
  return true;
}

void GpuBackend::end_pass() {
  launch_pending();
  in_pass_ = fusing_ = false;
  recordings_.end(*device_, noted());
}

const PassData& GpuBackend::data_of(const BatchView& batch, const KvLayer* cache, int heads) {
  const int32_t* pages = cache == nullptr ? nullptr : cache->pages;
  if (in_pass_ && pass_.has(batch, pages)) return pass_;
  if (recordings_.recording()) fail("a recorded pass was handed a batch that is not its own");
  const int64_t tile_rows =
      cache == nullptr ? 1
                       : kernels_.attention_tile_rows(heads, cache->kv_heads, cache->head_dim, batch.rows);
  loose_.put(batch, {}, cache == nullptr ? std::span<const KvLayer>() : std::span(cache, 1), tile_rows);
  return loose_;
}

DeviceKv GpuBackend::cache_of(const KvLayer& cache, const PassData& data) const {
  return {static_cast<uint16_t*>(cache.k),  static_cast<uint16_t*>(cache.v), cache.kv_heads,   cache.head_dim,
          options_.kv_type == KvType::bf16, data.pages(cache.pages),         cache.page_stride};
}

// ---- operators
// ---------------------------------------------------------------------------------------------------

void GpuBackend::embed(const EmbedArgs& args) {
  at("embed", args.site, {args.out});
  const GpuWeight& table = own(args.table);
  for (int64_t r = 0; r < args.batch->rows; ++r)
    if (args.batch->tokens[r] < 0 || args.batch->tokens[r] >= table.rows)
      fail("token {} of a vocabulary of {}", args.batch->tokens[r], table.rows);
  const PassData& data = data_of(*args.batch, nullptr, 0);
  kernels_.embed(*this, {data.batch(), table.file_type, table.memory.data(), table.row_bytes,
                         static_cast<float>(args.scale), floats_out(args.out), args.out.width});
}

void GpuBackend::rmsnorm(const RmsnormArgs& args) {
  launch_pending();
  written(args.out.data);
  norm_ = args;
  if (!fusing_) launch_pending();
}

void GpuBackend::launch_norm(const RmsnormArgs& args, const AddArgs* add) {
  const View& out = add == nullptr ? args.out : add->out;
  begin("rmsnorm", args.site, {out});
  RmsnormCall call{floats(args.x), vector_of(args.weight), args.eps,
                   args.rows,      args.x.width,           floats_out(out)};
  if (add != nullptr) {
    call.residual = floats(add->a);
  } else if (kernels_.rounds_with_norm(args.x.width)) {
    call.rounded = rounded_room(out, args.rows);
  }
  kernels_.rmsnorm(*this, call);
}

void GpuBackend::launch_product(const WaitingProduct& product) {
  operator_ = product.of;
  stream = device_->stream();
  kernels_.matmul(*this, product.call);
}

void GpuBackend::launch_pending() {
  if (norm_) launch_norm(*std::exchange(norm_, std::nullopt), nullptr);
  if (product_) launch_product(*std::exchange(product_, std::nullopt));
  if (rope_) launch_rope(*std::exchange(rope_, std::nullopt));
}

RoundedRows GpuBackend::rounded_room(const View& of, int64_t rows, bool tiles) {
  RoundedRows to;
  to.stride = stride_of(of.width);
  to.tiled_rows = tiles && kernels_.wants_tiles(*this, rows) ? ceil_div(rows, kTiledRows) * kTiledRows : 0;
  const int64_t held = std::max(rows, to.tiled_rows);
  const int64_t elements = held * to.stride;
  const size_t data = aligned(static_cast<size_t>(elements) * sizeof(uint16_t));
  const size_t sums = aligned(static_cast<size_t>(sums_elements(elements)) * sizeof(uint16_t));
  reserve(rounded_, data + sums + static_cast<size_t>(rows) * sizeof(float));
  to.data = rounded_.data<uint16_t>();
  to.sums = reinterpret_cast<uint16_t*>(rounded_.data() + data);
  to.scale = reinterpret_cast<float*>(rounded_.data() + data + sums);
  rounded_of_ = of;
  rounded_count_ = rows;
  rounded_tiles_ = tiles;
  return to;
}

RoundedRows GpuBackend::rounded(const View& x, int64_t rows, bool tiles) {
  const bool there = is_rounded(x, rows, tiles);
  const RoundedRows to = rounded_room(x, rows, tiles);
  if (!there) kernels_.round(*this, {floats(x), rows, x.width, to});
  return to;
}

void GpuBackend::take_operands(const View& x, int64_t rows, int64_t outputs, MatmulCall& call) {
  const auto round_themselves = [&](bool norm) {
    return kernels_.rounds_itself(*this, rows, x.width, norm, outputs);
  };
  if (norm_made(x, rows) && round_themselves(true)) {
    const RmsnormArgs norm = *std::exchange(norm_, std::nullopt);
    call.own = {floats(norm.x), vector_of(norm.weight), norm.eps, floats_out(norm.out)};
    return;
  }
  launch_pending();
  if (fusing_ && !is_rounded(x, rows, true) && round_themselves(false)) {
    call.own.x = floats(x);
  } else {
    call.x = rounded(x, rows, true);
  }
}

/// Neighbours of one type go together.
void GpuBackend::matmul(const MatmulArgs& args) {
  if (args.rows == 0) return;
  if (product_) launch_pending();
  begin("matmul", args.site, {});
  WaitingProduct product{{}, operator_};
  product.call.rows = args.rows;
  const auto output = [&](int i) -> const MatmulOutput& { return args.outputs[static_cast<size_t>(i)]; };
  int64_t outputs = 0;
  for (int i = 0; i < args.count; ++i) outputs += own(output(i).weight).matrix().rows;
  take_operands(args.x, args.rows, outputs, product.call);
  for (int i = 0; i < args.count;) {
    if (product_) launch_pending();
    product.of.stage = output(i).stage;
    product.call.count = 0;
    const quant::Type type = own(output(i).weight).matrix().type;
    for (; i < args.count && own(output(i).weight).matrix().type == type; ++i)
      product.call.products[product.call.count++] = {own(output(i).weight).matrix(),
                                                     vector_of(output(i).bias), floats_out(output(i).out)};
    product_ = product;
  }
  for (int i = 0; i < args.count; ++i) written(output(i).out.data);
  if (!fusing_) launch_pending();
}

const double* GpuBackend::frequencies(const RopeSpec& spec) {
  for (const auto& [values, memory] : frequencies_)
    if (values == spec.inv_freq) return memory.data<double>();
  DeviceMemory memory(*device_, spec.inv_freq.size() * sizeof(double));
  device_->upload(memory.data(), spec.inv_freq.data(), memory.bytes());
  return frequencies_.emplace_back(spec.inv_freq, std::move(memory)).second.data<double>();
}

void GpuBackend::rope(const RopeArgs& args) {
  launch_pending();
  written(args.q_out.data);
  rope_ = args;
  if (!fusing_) launch_pending();
}

void GpuBackend::launch_rope(const RopeArgs& args) {
  begin("rope", args.site, {args.q_out});
  const PassData& data = data_of(*args.batch, &args.cache, args.heads);
  kernels_.rope(*this, {data.batch(), rotation_of(*args.rope), args.heads, floats(args.q), floats(args.k),
                        floats(args.v), floats_out(args.q_out), cache_of(args.cache, data)});
}

void GpuBackend::attention(const AttentionArgs& args) {
  require({.head_dim = args.cache.head_dim});
  const PassData& data = data_of(*args.batch, &args.cache, args.heads);
  AttentionCall call{};
  call.q = floats(args.q);
  if (rope_waits_for(args, data)) {
    const RopeArgs rope = *std::exchange(rope_, std::nullopt);
    call.rotation = rotation_of(*rope.rope);
    call.q = floats(rope.q);
    call.k = floats(rope.k);
    call.v = floats(rope.v);
  }
  at("attention", args.site, {args.out});
  const int64_t scratch =
      kernels_.attention_scratch_floats(args.batch->rows, args.heads, args.cache.head_dim, data.splits());
  reserve(partial_, static_cast<size_t>(scratch) * sizeof(float));
  call.batch = data.batch();
  call.heads = args.heads;
  call.scale = static_cast<float>(args.scale);
  call.softcap = static_cast<float>(args.softcap);
  call.window = static_cast<int>(std::min<int64_t>(args.window, kNoWindow));
  call.cache = cache_of(args.cache, data);
  call.out = floats_out(args.out);
  call.tiles = data.tiles();
  call.tile_count = data.tile_count();
  call.tile_rows = data.tile_rows();
  call.splits = data.splits();
  call.partial = scratch > 0 ? partial_.data<float>() : nullptr;
  call.arrivals = arrivals_.data<uint32_t>();
  kernels_.attention(*this, call);
}

void GpuBackend::add(const AddArgs& args) {
  const auto is_b = [&](const void* data) { return data == args.b.data && data != args.a.data; };
  if (norm_made(args.b, args.rows) && is_b(norm_->out.data)) {
    launch_norm(*std::exchange(norm_, std::nullopt), &args);
  } else if (product_ && product_->call.count == 1 && product_->call.rows == args.rows &&
             is_b(product_->call.products[0].y) && product_->call.products[0].weight.rows == args.b.width) {
    product_->call.residual = floats(args.a);
    product_->call.products[0].y = floats_out(args.out);
    launch_pending();
    written(args.out.data);
  } else {
    at("add", args.site, {args.out});
    kernels_.add(*this, {floats(args.a), floats(args.b), args.rows * args.a.width, floats_out(args.out)});
  }
}

void GpuBackend::glu(const GluArgs& args) {
  const Glu glu = args.activation == Activation::gelu_tanh ? Glu::gelu : Glu::silu;
  if (product_ && product_->call.count == 2 && product_->call.rows == args.rows &&
      product_->call.products[0].y == args.gate.data && product_->call.products[1].y == args.up.data &&
      kernels_.fuses_glu(product_->call)) {
    product_->call.glu = glu;
    product_->call.products[0].y = floats_out(args.out);
    launch_pending();
    written(args.out.data);
    return;
  }
  at("glu", args.site, {args.out});
  kernels_.glu(*this, {glu, floats(args.gate), floats(args.up), args.rows, args.gate.width,
                       floats_out(args.out), rounded_room(args.out, args.rows)});
}

void GpuBackend::choose_experts(const ChooseExpertsArgs& args) {
  require({.experts = args.logits.width, .experts_used = args.experts.width});
  at("choose_experts", args.site, {args.experts, args.weights});
  kernels_.choose_experts(
      *this, {floats(args.logits), args.rows, static_cast<int>(args.logits.width),
              static_cast<int>(args.experts.width), args.normalised, static_cast<float>(args.scale),
              floats_out(args.experts), floats_out(args.weights)});
}

/// Expert by expert in ascending order, the rows that chose it as one product; which rows those are the host
/// reads back, so a pass with experts is not recorded.
void GpuBackend::expert_matmul(const ExpertMatmulArgs& args) {
  at("expert_matmul", args.site, {args.outputs[0].out, args.outputs[1].out});
  recordings_.refuse(*device_);
  const int64_t used = args.experts.width;
  const GpuWeight& first = own(args.outputs[0].weight);
  const int64_t in = first.cols;
  const bool shared = args.x.width == in;
  std::vector<float> ids(static_cast<size_t>(args.rows * used));
  read(args.experts, 0, args.rows, ids.data());
  std::vector<std::vector<int32_t>> slots(static_cast<size_t>(first.experts));  // row * used + slot
  for (size_t i = 0; i < ids.size(); ++i)
    slots.at(static_cast<size_t>(ids[i])).push_back(static_cast<int32_t>(i));

  std::vector<int32_t> x_rows, y_rows;
  for (const auto& of : slots)
    for (const int32_t slot : of) {
      x_rows.push_back(shared ? slot / static_cast<int32_t>(used) : slot);
      y_rows.push_back(slot);
    }
  const size_t bytes = x_rows.size() * sizeof(int32_t);
  reserve(indices_, 2 * bytes);
  device_->upload(indices_.data(), x_rows.data(), bytes);
  device_->upload(indices_.data() + bytes, y_rows.data(), bytes);

  const RoundedRows x = rounded({args.x.data, in}, shared ? args.rows : args.rows * used, false);
  int64_t begin = 0;
  for (size_t e = 0; e < slots.size(); ++e) {
    const auto count = static_cast<int64_t>(slots[e].size());
    for (int o = 0; count > 0 && o < args.count; ++o) {
      const MatmulOutput& output = args.outputs[static_cast<size_t>(o)];
      operator_.stage = output.stage;
      MatmulCall call;
      call.products[0] = {own(output.weight).matrix(static_cast<int64_t>(e)), nullptr,
                          floats_out(output.out)};
      call.rows = count;
      call.x = x;
      call.x_rows = indices_.data<int32_t>() + begin;
      call.y_rows = reinterpret_cast<const int32_t*>(indices_.data() + bytes) + begin;
      kernels_.matmul(*this, call);
    }
    begin += count;
  }
}

void GpuBackend::combine(const CombineArgs& args) {
  at("combine", args.site, {args.out});
  kernels_.combine(*this, {floats(args.x), floats(args.weights), args.rows,
                           static_cast<int>(args.weights.width), args.out.width, floats_out(args.out)});
}

void GpuBackend::softcap(const SoftcapArgs& args) {
  at("softcap", args.site, {args.out});
  kernels_.softcap(
      *this, {floats(args.x), static_cast<float>(args.cap), args.rows * args.x.width, floats_out(args.out)});
}

void GpuBackend::gather(const GatherArgs& args) {
  at("gather", args.site, {args.out});
  const int32_t* from = in_pass_ ? pass_.rows(args.rows) : nullptr;
  if (from == nullptr) {
    if (recordings_.recording()) fail("a recorded pass was handed rows that are not its own");
    reserve(indices_, args.rows.size_bytes());
    device_->upload(indices_.data(), args.rows.data(), args.rows.size_bytes());
    from = indices_.data<int32_t>();
  }
  kernels_.gather(*this, {floats(args.x), from, static_cast<int64_t>(args.rows.size()), args.x.width,
                          floats_out(args.out)});
}

}  // namespace
}  // namespace gpu

std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<gpu::Device> device,
                                          const BackendOptions& options) {
  return std::make_unique<gpu::GpuBackend>(std::move(device), options);
}

}  // namespace greta
