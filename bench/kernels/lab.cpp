#include "kernels/lab.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "backend/gpu/gpu_limits.h"
#include "backend/gpu/targets.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"

namespace greta::gpu::lab {
namespace {

constexpr int64_t kMostCopies = 64;

constexpr std::array<std::pair<const char*, void (*)(Lab&)>, 7> kParts{{{"matmul", run_matmul},
                                                                        {"attention", run_attention},
                                                                        {"rmsnorm", run_rmsnorm},
                                                                        {"rope", run_rope},
                                                                        {"glu", run_glu},
                                                                        {"round", run_round},
                                                                        {"embed", run_embed}}};

}  // namespace

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const auto& [name, part] : kParts) names.emplace_back(name);
  return names;
}

Report run(const Options& options) {
  const std::vector<std::string> names = kernel_names();
  for (const std::string& kernel : options.kernels)
    if (std::ranges::find(names, kernel) == names.end())
      fail("no kernel {} in the lab; there are {}", kernel, fmt::join(names, ", "));
  Lab lab(options);
  lab.measure_rates();
  lab.print(rates_text(lab.report()));
  if (!options.kernels.empty()) lab.print("\n" + rows_header());
  for (const auto& [name, part] : kParts) {
    if (std::ranges::find(options.kernels, name) == options.kernels.end()) continue;
    lab.begin(name);
    part(lab);
  }
  if (options.price) {
    lab.begin("price");
    run_price(lab);
  }
  return std::move(lab.report());
}

// ---- a run
// -------------------------------------------------------------------------------------------------------

Lab::Lab(const Options& options) : options_(options), device_(open_device(options.device)) {
  stream = device_->stream();
  warpgroups = device_->warpgroups();
  multiprocessors = device_->multiprocessors();
  timed_ = !options.device.starts_with("sim:");
  report_.device = device_->name();
  report_.description = device_->description();
}

void Lab::measure_rates() {
  Rates& rates = report_.rates;
  if (!timed_) {
    rates.read_how = rates.matrix_how = "an emulation, nothing is timed";
    return;
  }
  GpuLimits limits(*device_, *this);
  rates.read = limits.read_rate(rates.read_how);
  try {
    rates.matrix = limits.matrix_rate(rates.matrix_how);
  } catch (const Error& error) {  // without the vendor's library there are still bytes to be held against
    rates.matrix_how = error.what();
  }
}

int64_t Lab::copies_of(int64_t bytes) const {
  if (!timed_) return 1;
  return std::clamp(ceil_div(kColdBytes, std::max(bytes, int64_t{1})), int64_t{1}, kMostCopies);
}

void Lab::repeat(const DeviceMemory& memory, int64_t bytes, int64_t stride, int64_t copies) const {
  for (int64_t copy = 1; copy < copies; ++copy)
    device_->copy(memory.data() + copy * stride, memory.data(), static_cast<size_t>(bytes));
}

std::vector<double> Lab::read_row(const float* rows, int64_t row, int64_t width) const {
  const std::vector<float> values = read(rows + row * width, width);
  return {values.begin(), values.end()};
}

std::vector<int64_t> Lab::sample(int64_t count, size_t most) {
  std::set<int64_t> chosen{0, count - 1};
  if (quick() || count <= static_cast<int64_t>(most)) {
    for (int64_t i = 0; i < count; ++i) chosen.insert(i);
  } else {
    std::uniform_int_distribution<int64_t> any(0, count - 1);
    while (chosen.size() < most) chosen.insert(any(random_));
  }
  return {chosen.begin(), chosen.end()};
}

void Lab::measure(const Case& what) {
  Row row{what.kernel, what.shape, {}, {}, what.work};
  what.launch(0);
  what.check(row.check);
  row.timing = time(what.copies, what.launch);
  print(text_of(row, report_.rates));
  report_.rows.push_back(std::move(row));
}

Timing Lab::time(int64_t copies, const std::function<void(int64_t)>& launch) const {
  if (!timed_) return {};
  Stretch stretch;
  stretch.least = copies;
  return time_launches(*device_, stretch, launch);
}

// ---- inputs
// ------------------------------------------------------------------------------------------------------

RoundedRoom::RoundedRoom(const Lab& lab, int64_t rows, int64_t width) {
  rows_.stride = ceil_div(width, int64_t{kChunkK}) * kChunkK;
  rows_.tiled_rows = lab.kernels().wants_tiles(lab, rows) ? ceil_div(rows, kTiledRows) * kTiledRows : 0;
  data_ = lab.room(std::max(rows, rows_.tiled_rows) * rows_.stride * 2);
  scale_ = lab.room(rows * 4);
  sums_ = lab.room(sums_elements(std::max(rows, rows_.tiled_rows) * rows_.stride) * 2);
  rows_.data = data_.data<uint16_t>();
  rows_.scale = scale_.data<float>();
  rows_.sums = sums_.data<uint16_t>();
}

std::vector<double> RoundedRoom::row(const Lab& lab, int64_t row) const {
  const double scale = lab.read(rows_.scale + row, 1)[0];
  std::vector<double> values;
  if (rows_.tiled_rows == 0) {
    for (const uint16_t half : lab.read(rows_.data + row * rows_.stride, rows_.stride))
      values.push_back(f16_to_f32(half) * scale);
    return values;
  }
  // In tiles: for each 64 k, 8 rows of 64 elements one after another; group g of a row's 8 elements is where
  // group g ^ (row % 8) would be.
  for (int64_t k = 0; k < rows_.stride; k += 64) {
    const int64_t at = (k / 64 * (rows_.tiled_rows / 8) + row / 8) * 512 + row % 8 * 64;
    const std::vector<uint16_t> halves = lab.read(rows_.data + at, 64);
    for (int64_t i = 0; i < 64; ++i)
      values.push_back(f16_to_f32(halves[static_cast<size_t>((i / 8 ^ row % 8) * 8 + i % 8)]) * scale);
  }
  return values;
}

void RoundedRoom::check(const Lab& lab, int64_t row_index, std::span<const double> from, Check& check) const {
  Judged exact{rounded_operand(from, OperandRounding::f16_row), {}};
  exact.value.resize(static_cast<size_t>(rows_.stride), 0.0);
  exact.certain.resize(exact.value.size(), 0.0);
  check.add(exact, row(lab, row_index));
}

FileMatrix::FileMatrix(const Lab& lab, quant::Type type, int64_t rows, int64_t cols)
    : piece_(random_matrix(type, std::min(rows, kPeriod), cols, 7)), rows_(rows) {
  const int64_t bytes = rows * row_bytes();
  memory_ = lab.room(bytes);
  auto filled = static_cast<int64_t>(piece_.bytes.size());
  lab.device().upload(memory_.data(), piece_.bytes.data(), piece_.bytes.size());
  for (; filled < bytes; filled *= 2)
    lab.device().copy(memory_.data() + filled, memory_.data(),
                      static_cast<size_t>(std::min(filled, bytes - filled)));
}

}  // namespace greta::gpu::lab
