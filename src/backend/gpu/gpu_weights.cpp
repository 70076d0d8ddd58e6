#include "backend/gpu/gpu_weights.h"

#include <algorithm>
#include <utility>

#include "backend/weight_source.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/log.h"

namespace greta::gpu {
namespace {

size_t scale_bytes(int64_t rows) {
  return aligned(static_cast<size_t>(ceil_div(rows, 16) * 16) * sizeof(float));
}

/// Bytes [first, first + bytes) of a tensor, from the file to the device.
void upload(const WeightSource& source, size_t first, size_t bytes, std::byte* to, Device& device) {
  device.upload_by(to, bytes, [&](std::byte* at, size_t begin, size_t count) {
    source.copy(source.bytes.subspan(first + begin, count), at);
  });
}

/// The file's rows go over in pieces of whole 16-row tiles; each is packed while the host reads the next.
void pack_matrix(const WeightSource& source, bool int8, const PackedMatrix& to, Device& device,
                 const Launch& launch, DeviceMemory& staging, Losses::Counters* lost) {
  const Kernels& kernels = device.kernels();
  const int64_t row_bytes = file_row_bytes(source.type, source.cols);
  const int64_t piece = std::max<int64_t>(kStagingBytes / row_bytes / 16, 1) * 16;
  staging.reserve(device, aligned(static_cast<size_t>(std::min(piece, source.rows) * row_bytes)));
  for (int64_t first = 0; first < source.rows; first += piece) {
    const int64_t rows = std::min(piece, source.rows - first);
    upload(source, static_cast<size_t>(first * row_bytes), static_cast<size_t>(rows * row_bytes),
           staging.data(), device);
    PackedMatrix part = to;
    part.rows = rows;
    part.data += kernels.packed_bytes(to.type, first, to.cols);
    part.row_scale += first;
    kernels.pack(launch, {source.type, staging.data(), row_bytes, part, int8, &lost->inexact, &lost->unfit});
  }
}

void load_matrices(const WeightSource& source, WeightMode mode, GpuWeight& weight, Device& device,
                   const Launch& launch, DeviceMemory& staging, Losses& losses) {
  const Kernels& kernels = device.kernels();
  const bool int8 = mode == WeightMode::int8;
  const quant::Type type = kernel_type_of(weight.use, source.type, mode);
  const int64_t rows = weight.rows_each();
  const size_t data_bytes = aligned(kernels.packed_bytes(type, rows, source.cols));
  const size_t each = data_bytes + scale_bytes(rows);
  weight.memory = DeviceMemory(device, each * static_cast<size_t>(source.experts));
  Losses::Counters* lost = losses.next(source);
  for (int64_t e = 0; e < source.experts; ++e) {
    const std::byte* at = weight.memory.data() + static_cast<size_t>(e) * each;
    weight.matrices.push_back({type, rows, source.cols, at, reinterpret_cast<const float*>(at + data_bytes)});
    pack_matrix(source.experts > 1 ? source.expert(e) : source, int8, weight.matrices.back(), device, launch,
                staging, lost);
  }
  weight.resident =
      fmt::format("{}/16x256 tiles ({})", int8 ? "int8" : quant::traits(type).name, kernels.matrix_unit);
}

/// Of a tensor of so many values: why it cannot be used, or nothing; what is harmless is told.
std::string refusal(const std::string& name, int64_t values, const Losses::Counters& lost) {
  if (lost.unfit > 0)
    return fmt::format(
        "{}: {} blocks of 32 weights hold one that is not finite or past 8.3 million; --weights int8 expects "
        "less",
        name, lost.unfit);
  if (lost.inexact > static_cast<uint64_t>(values / Losses::kInexact))
    return fmt::format(
        "{}: {} of its {} values cannot be held, far below their row's largest or of a super-block with an "
        "infinite scale; expected at most one in {}: run with --weights f32",
        name, lost.inexact, values, Losses::kInexact);
  if (lost.inexact > 0)
    log::warning(
        "{}: {} of its {} values are not kept: rounded, by at most 2^-32 of their row's largest, or NaN, of "
        "a super-block with an infinite scale",
        name, lost.inexact, values);
  return "";
}

}  // namespace

quant::Type kernel_type_of(WeightUse use, quant::Type type, WeightMode mode) {
  if (use != WeightUse::matmul && use != WeightUse::experts) return type;
  if (mode == WeightMode::int8) return quant::Type::Q8_0;
  if (mode == WeightMode::f32) return quant::Type::F32;
  return type == quant::Type::BF16 ? quant::Type::F16 : type;
}

uint64_t gpu_weight_bytes(const Kernels& kernels, WeightUse use, quant::Type type, int64_t rows, int64_t cols,
                          WeightMode mode) {
  switch (use) {
    case WeightUse::matmul:
    case WeightUse::experts:
      return aligned(kernels.packed_bytes(kernel_type_of(use, type, mode), rows, cols)) + scale_bytes(rows);
    case WeightUse::embedding:
      return aligned(static_cast<size_t>(rows * file_row_bytes(type, cols)));
    case WeightUse::vector:
      return aligned(static_cast<size_t>(rows * cols) * sizeof(float));
  }
  fail("a tensor without a use");
}

std::unique_ptr<GpuWeight> load_gpu_weight(const WeightSource& source, WeightUse use, WeightMode mode,
                                           Device& device, const Launch& launch, DeviceMemory& staging,
                                           ReadBack& reader, Losses& losses) {
  auto weight = std::make_unique<GpuWeight>();
  begin_weight(source, use, *weight);
  weight->reader = &reader;
  switch (use) {
    case WeightUse::matmul:
    case WeightUse::experts:
      load_matrices(source, mode, *weight, device, launch, staging, losses);
      break;
    case WeightUse::embedding:
      weight->row_bytes = file_row_bytes(source.type, source.cols);
      weight->memory = DeviceMemory(device, aligned(source.bytes.size()));
      upload(source, 0, source.bytes.size(), weight->memory.data(), device);
      weight->resident = fmt::format("{} as in the file", quant::traits(source.type).name);
      break;
    case WeightUse::vector:
      weight->memory =
          DeviceMemory(device, aligned(static_cast<size_t>(source.rows * source.cols) * sizeof(float)));
      staging.reserve(device, aligned(source.bytes.size()));
      upload(source, 0, source.bytes.size(), staging.data(), device);
      device.kernels().dequantize(
          launch, {source.type, staging.data(), source.rows * source.cols, weight->memory.data<float>()});
      weight->resident = "F32";
      break;
  }
  weight->resident_bytes = weight->memory.bytes();
  return weight;
}

Losses::Counters* Losses::next(const WeightSource& source) {
  if (tensors_.size() == kMost) tell();
  memory_.reserve(device_, kMost * sizeof(Counters));
  tensors_.push_back({source.name, source.rows * source.cols});
  return memory_.data<Counters>() + (tensors_.size() - 1);
}

void Losses::tell() {
  if (tensors_.empty()) return;
  std::vector<Counters> counts(tensors_.size());
  device_.download(counts.data(), memory_.data(), counts.size() * sizeof(Counters));
  device_.zero(memory_.data(), counts.size() * sizeof(Counters));
  const std::vector<Tensor> tensors = std::exchange(tensors_, {});
  std::vector<std::string> wrong;
  for (size_t i = 0; i < tensors.size(); ++i)
    if (std::string why = refusal(tensors[i].name, tensors[i].values, counts[i]); !why.empty())
      wrong.push_back(std::move(why));
  if (wrong.empty()) return;
  if (wrong.size() == 1) fail("{}", wrong.front());
  const std::string headline = fmt::format("{} tensors do not fit {}", wrong.size(), device_.name());
  throw Error(headline, std::move(wrong));
}

void ReadBack::unpack(const GpuWeight& weight, int64_t row, float* to) const {
  const Kernels& kernels = device_.kernels();
  if (!weight.matrices.empty()) {
    const int64_t each = weight.rows_each();
    kernels.unpack(launch_, {weight.matrix(row / each), row % each, to});
  } else if (weight.use == WeightUse::embedding) {
    kernels.dequantize(launch_,
                       {weight.file_type, weight.memory.data() + row * weight.row_bytes, weight.cols, to});
  } else {
    device_.copy(to, weight.memory.data<float>() + row * weight.cols,
                 static_cast<size_t>(weight.cols) * sizeof(float));
  }
}

void ReadBack::rows(const GpuWeight& weight, int64_t first, int64_t count, float* out) {
  const std::lock_guard lock(mutex_);
  device_.stream();  // a launch goes to the thread's current device, and each thread has its own
  const size_t row_bytes = static_cast<size_t>(weight.cols) * sizeof(float);
  const int64_t piece = std::max<int64_t>(kPieceBytes / static_cast<int64_t>(row_bytes), 1);
  rows_.reserve(device_, static_cast<size_t>(std::min(piece, count)) * row_bytes);
  for (int64_t done = 0; done < count; done += piece) {
    const int64_t rows = std::min(piece, count - done);
    for (int64_t r = 0; r < rows; ++r)
      unpack(weight, first + done + r, rows_.data<float>() + r * weight.cols);
    device_.download(out + done * weight.cols, rows_.data(), static_cast<size_t>(rows) * row_bytes);
  }
}

}  // namespace greta::gpu
