// Faults in how a weight is read: the planted call gets another resident tensor, made from the file's bytes.
// In the kernel (made when the call comes, whoever calls) or in resident data (made when the tensor is
// loaded).
#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/half.h"
#include "bisect/fault_base.h"
#include "bisect/fault_blocks.h"

namespace greta {
namespace {

constexpr uint64_t kBlock = 2;  // what plant_bits() are drawn for

struct Altered {
  quant::Type type;
  std::vector<std::byte> bytes;
};

std::vector<std::byte> copy_of(const WeightSource& source) {
  return {source.bytes.begin(), source.bytes.end()};
}

Altered as_f32(const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {quant::Type::F32, {bytes.begin(), bytes.end()}};
}

std::vector<float> values_of(const WeightSource& source) {
  std::vector<float> values(static_cast<size_t>(source.rows * source.cols));
  quant::dequantize(source.type, source.bytes.data(), source.rows * source.cols, values.data());
  return values;
}

Altered transpose(const WeightSource& source, const Plant&) { return {source.type, transposed(source)}; }

Altered nibbles(const WeightSource& source, const Plant&) {
  Altered altered{source.type, copy_of(source)};
  swap_nibbles(source.type, altered.bytes);
  return altered;
}

/// One drawn block, or the next that is not all zero.
Altered scale(const WeightSource& source, const Plant& plant) {
  Altered altered{source.type, copy_of(source)};
  const int64_t blocks = source.rows * source.cols / quant::traits(source.type).block;
  int64_t block = static_cast<int64_t>(plant_bits(plant, kBlock) % static_cast<uint64_t>(blocks));
  for (int64_t tried = 0; tried < blocks && !has_scale(source.type, altered.bytes, block); ++tried)
    block = (block + 1) % blocks;
  change_scale(source.type, altered.bytes, block);
  return altered;
}

/// Blocks of 32 along a row hold q = w / s in int8; s = largest |w| / 127 as f16 is multiplied in twice.
Altered int8_undivided(const WeightSource& source, const Plant&) {
  std::vector<float> values = values_of(source);
  for (int64_t row = 0; row < source.rows; ++row) {
    for (int64_t first = 0; first < source.cols; first += 32) {
      const auto count = static_cast<size_t>(std::min<int64_t>(32, source.cols - first));
      const std::span block =
          std::span(values).subspan(static_cast<size_t>(row * source.cols + first), count);
      float largest = 0.0F;
      for (const float w : block) largest = std::max(largest, std::abs(w));
      const float s = f16_to_f32(f32_to_f16(largest / 127.0F));
      for (float& w : block) w *= s;
    }
  }
  return as_f32(values);
}

Altered shifted(const WeightSource& source, const Plant&) {
  std::vector<float> values = values_of(source);
  std::rotate(values.begin(), values.begin() + 1, values.end());
  return as_f32(values);
}

using Alter = Altered (*)(const WeightSource& source, const Plant& plant);

Alter alter_of(std::string_view id) {
  if (id.ends_with("-transposed") || id == "lmhead-layout") return transpose;
  if (id.starts_with("quant-nibble")) return nibbles;
  if (id.starts_with("quant-scale")) return scale;
  if (id == "int8-undivided") return int8_undivided;
  if (id == "norm-weight-offset") return shifted;
  return nullptr;  // bias-dropped
}

/// A tensor of our own and the bytes that it may lie in.
struct OwnWeight {
  std::vector<std::byte> bytes;
  std::unique_ptr<Weight> weight;
};

class WeightFault : public KernelFault {
 public:
  WeightFault(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp)
      : KernelFault(std::move(backend), plant, hp), alter_(alter_of(plant.info->id)) {
    if (plant.info->needs.int8 && arithmetic().weights != WeightMode::int8)
      fail("{} needs --weights int8", plant.info->id);
  }

  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    auto weight = below().load(source, use);
    sources_[weight.get()] = source;
    return weight;
  }
  void matmul(const MatmulArgs& args) override { product(args, &Backend::matmul); }
  void expert_matmul(const ExpertMatmulArgs& args) override { product(args, &Backend::expert_matmul); }
  template <class Args>
  void product(const Args& args, void (Backend::*run)(const Args&)) {
    const auto index = planted_output(args);
    if (!index) return (below().*run)(args);
    const MatmulOutput& output = args.outputs[*index];
    Scratch right = healthy_product(args, output);
    Args wrong = args;
    if (alter_ != nullptr) {
      wrong.outputs[*index].weight = altered(output.weight);
    } else {
      if (output.bias == nullptr) fail("{}: {} has no bias", plant_.info->id, output.weight->name);
      wrong.outputs[*index].bias = nullptr;
    }
    (below().*run)(wrong);
    finish(args.site, output.stage, std::move(right), output.out, args.rows);
  }
  void rmsnorm(const RmsnormArgs& args) override {
    if (!here(args.site, args.rows, args.site.stage)) return below().rmsnorm(args);
    RmsnormArgs call = args;
    Scratch right = healthy(args.rows, args.out.width, [&](const View& out) {
      call.out = out;
      below().rmsnorm(call);
    });
    call.out = args.out;
    call.weight = altered(args.weight);
    below().rmsnorm(call);
    finish(args.site, args.site.stage, std::move(right), args.out, args.rows);
  }
  /// Column-major: token t's element i is what lies at flat index i * vocab + t.
  void embed(const EmbedArgs& args) override {
    if (!here(args.site, args.batch->rows, Stage::embed_out)) return below().embed(args);
    EmbedArgs call = args;
    Scratch right = healthy(args.batch->rows, args.out.width, [&](const View& out) {
      call.out = out;
      below().embed(call);
    });
    const WeightSource& table = sources_.at(args.table);
    std::vector<double> row(static_cast<size_t>(table.cols));
    for (int64_t r = 0; r < args.batch->rows; ++r) {
      for (int64_t i = 0; i < table.cols; ++i)
        row[static_cast<size_t>(i)] =
            args.scale * double{element_of(table, i * table.rows + args.batch->tokens[r])};
      below().write(args.out, r, 1, row.data());
    }
    finish(args.site, Stage::embed_out, std::move(right), args.out, args.batch->rows);
  }

 private:
  const Weight* altered(const Weight* weight) {
    OwnWeight& own = owned_[weight];
    if (!own.weight) {
      const WeightSource& file = sources_.at(weight);
      auto [type, bytes] = alter_(file, plant_);
      own.bytes = std::move(bytes);
      own.weight =
          below().load({file.name, type, file.rows, file.cols, own.bytes, file.experts}, weight->use);
    }
    return own.weight.get();
  }

  Alter alter_;
  std::map<const Weight*, WeightSource> sources_;
  std::map<const Weight*, OwnWeight> owned_;
};

/// One resident tensor is not the file's. Everything that meets it is sound.
class DataFault : public FaultyBackend {
 public:
  DataFault(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp)
      : FaultyBackend(std::move(backend), plant, hp), name_(tensor_name(hp, plant.stage, plant.layer)) {}

  std::unique_ptr<Weight> load(const WeightSource& source, WeightUse use) override {
    const bool tied_head = is_picked(plant_.stage) && source.name == "token_embd.weight";
    const bool product = use == WeightUse::matmul || use == WeightUse::experts;
    if (!product || (source.name != name_ && !tied_head)) return below().load(source, use);
    auto [type, bytes] = alter_of(plant_.info->id)(source, plant_);
    bytes_ = std::move(bytes);
    file_ = source;
    auto weight = below().load({source.name, type, source.rows, source.cols, bytes_, source.experts}, use);
    resident_ = weight.get();
    return weight;
  }
  void matmul(const MatmulArgs& args) override { product(args, &Backend::matmul); }
  void expert_matmul(const ExpertMatmulArgs& args) override { product(args, &Backend::expert_matmul); }

 private:
  template <class Args>
  void product(const Args& args, void (Backend::*run)(const Args&)) {
    (below().*run)(args);
    const auto index = planted_output(args);
    if (!index || args.outputs[*index].weight != resident_ || !logging()) return;
    if (!intact_) intact_ = below().load(file_, resident_->use);
    MatmulOutput output = args.outputs[*index];
    output.weight = intact_.get();
    finish(args.site, output.stage, healthy_product(args, output), output.out, args.rows);
  }

  std::string name_;
  WeightSource file_;
  std::vector<std::byte> bytes_;  ///< the altered tensor, where it is used in place
  const Weight* resident_ = nullptr;
  std::unique_ptr<Weight> intact_;
};

}  // namespace

std::unique_ptr<Backend> make_weight_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                           const HParams& hp) {
  if (plant.info->planted == Planted::data) return std::make_unique<DataFault>(std::move(backend), plant, hp);
  return std::make_unique<WeightFault>(std::move(backend), plant, hp);
}

}  // namespace greta
