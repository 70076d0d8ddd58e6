// Kernel faults that spoil what the right operator left, row by row on the host: a deterministic function of
// those rows, so that a repeated call is spoilt alike.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bisect/fault_base.h"

namespace greta {
namespace {

constexpr uint64_t kElement = 1;  // what plant_bits() are drawn for

/// The rows that a call left, in a buffer or in the cache.
struct Rows {
  Backend& backend;
  int64_t count = 0;
  View view;                       ///< null data: the cache's keys
  const KvLayer* cache = nullptr;  ///< may be null
  const BatchView* batch = nullptr;
  int64_t width = 0;

  std::vector<double> read(int64_t row) const {
    std::vector<double> values(static_cast<size_t>(width));
    if (cache != nullptr) {
      backend.read_kv(*cache, KvPart::k, *batch, row, values.data());
    } else {
      backend.read(view, row, 1, values.data());
    }
    return values;
  }
  void write(int64_t row, const std::vector<double>& values) const {
    if (cache != nullptr) return backend.write_kv(*cache, KvPart::k, *batch, row, values.data());
    backend.write(view, row, 1, values.data());
  }
};

/// The drawn element, or the next that is not zero.
double& drawn_element(std::vector<double>& row, const Plant& plant) {
  const size_t first = plant_bits(plant, kElement) % row.size();
  for (size_t i = 0; i < row.size(); ++i) {
    double& x = row[(first + i) % row.size()];
    if (x != 0.0) return x;
  }
  return row[first];
}

void one_element(const Rows& rows, int64_t planted, const Plant& plant) {
  std::vector<double> row = rows.read(planted);
  drawn_element(row, plant) *= 1.0 + 0x1p-6;
  rows.write(planted, row);
}

void nan(const Rows& rows, int64_t planted, const Plant& plant) {
  std::vector<double> row = rows.read(planted);
  drawn_element(row, plant) = std::numeric_limits<double>::quiet_NaN();
  rows.write(planted, row);
}

/// An accumulator that saturates at f16's 65504, behind the power of two that makes the row's largest value
/// 2 to 4 times that: so it shows in models whose own values are small, too.
void f16_overflow(const Rows& rows, int64_t planted, const Plant&) {
  std::vector<double> row = rows.read(planted);
  double largest = 0.0;
  for (const double x : row) largest = std::max(largest, std::abs(x));
  if (!(largest > 0.0) || !std::isfinite(largest)) return;
  const double most = 65504.0 * std::exp2(std::floor(std::log2(largest / 65504.0)) - 1.0);
  for (double& x : row) x = std::clamp(x, -most, most);
  rows.write(planted, row);
}

void row_gain(const Rows& rows, int64_t, const Plant& plant) {
  const auto n = static_cast<size_t>(plant_bits(plant, kElement) % static_cast<uint64_t>(rows.width));
  for (int64_t i = 0; i < rows.count; ++i) {
    std::vector<double> row = rows.read(i);
    row[n] *= 1.01;
    rows.write(i, row);
  }
}

constexpr int64_t kTile = 16;
constexpr int64_t kTileRows = 32;  ///< calls of more rows take the tiled path

void tile_swap(const Rows& rows, int64_t, const Plant&) {
  if (rows.count <= kTileRows) return;
  for (int64_t top = 0; top + kTile <= rows.count; top += kTile) {
    std::vector<std::vector<double>> tile;
    for (int64_t i = 0; i < kTile; ++i) tile.push_back(rows.read(top + i));
    for (int64_t left = 0; left + kTile <= rows.width; left += kTile) {
      for (size_t i = 0; i < kTile; ++i)
        for (size_t j = 0; j < i; ++j)
          std::swap(tile[i][static_cast<size_t>(left) + j], tile[j][static_cast<size_t>(left) + i]);
    }
    for (int64_t i = 0; i < kTile; ++i) rows.write(top + i, tile[static_cast<size_t>(i)]);
  }
}

void batch_row(const Rows& rows, int64_t, const Plant&) {
  if (rows.count > 1) rows.write(rows.count - 1, rows.read(rows.count - 2));
}

/// Flat indices wrap at a power of two, 2^16 or what is below the vocabulary: of the elements that share a
/// place the last written stays; the rest of the (cleared) output is never written.
void logits_index(const Rows& rows, int64_t, const Plant&) {
  int64_t wrap = 1;
  while (wrap * 2 < rows.width && wrap < 65536) wrap *= 2;
  const std::vector<double> last = rows.read(rows.count - 1);
  std::vector<double> row(static_cast<size_t>(rows.width), 0.0);
  for (int64_t i = 1; i < rows.count; ++i) rows.write(i, row);
  for (int64_t column = rows.width - wrap; column < rows.width; ++column)
    row[static_cast<size_t>(((rows.count - 1) * rows.width + column) % wrap)] =
        last[static_cast<size_t>(column)];
  rows.write(0, row);
}

using Edit = void (*)(const Rows& rows, int64_t planted, const Plant& plant);

Edit edit_of(std::string_view id) {
  if (id == "one-element") return one_element;
  if (id == "nan") return nan;
  if (id == "f16-overflow") return f16_overflow;
  if (id == "row-gain") return row_gain;
  if (id == "tile-swap") return tile_swap;
  if (id == "batch-row") return batch_row;
  if (id == "logits-index") return logits_index;
  return nullptr;
}

class EditFault : public KernelFault {
 public:
  EditFault(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp)
      : KernelFault(std::move(backend), plant, hp), edit_(edit_of(plant.info->id)) {}

  void embed(const EmbedArgs& args) override {
    below().embed(args);
    edit(args.site, Stage::embed_out, args.out, args.batch->rows);
  }
  void rmsnorm(const RmsnormArgs& args) override {
    below().rmsnorm(args);
    const RmsnormArgs whole = whole_rows(args);
    edit(whole.site, whole.site.stage, whole.out, whole.rows);
  }
  void matmul(const MatmulArgs& args) override {
    below().matmul(args);
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
      edit(args.site, args.outputs[i].stage, args.outputs[i].out, args.rows);
  }
  void rope(const RopeArgs& args) override {
    KernelFault::rope(args);
    edit(args.site, Stage::q_post_rope, args.q_out, args.batch->rows);
    if (!here(args.site, args.batch->rows, Stage::k_post_rope)) return;
    const int64_t row = *planted_row(args.site, args.batch->rows);
    const int64_t width = int64_t{args.cache.kv_heads} * args.cache.head_dim;
    const Rows rows{below(), args.batch->rows, {}, &args.cache, args.batch, width};
    std::vector<double> right = rows.read(row);
    edit_(rows, row, plant_);
    log_row(args.site, Stage::k_post_rope, row, std::move(right), rows.read(row));
  }
  void attention(const AttentionArgs& args) override {
    below().attention(args);
    edit(args.site, Stage::attn_out, args.out, args.batch->rows);
  }
  void add(const AddArgs& args) override {
    below().add(args);
    edit(args.site, args.site.stage, args.out, args.rows);
  }
  void glu(const GluArgs& args) override {
    below().glu(args);
    edit(args.site, args.site.stage, args.out, args.rows);
  }
  void choose_experts(const ChooseExpertsArgs& args) override {
    below().choose_experts(args);
    edit(args.site, Stage::expert_weights, args.weights, args.rows);
  }
  void expert_matmul(const ExpertMatmulArgs& args) override {
    below().expert_matmul(args);
    for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
      edit(args.site, args.outputs[i].stage, args.outputs[i].out, args.rows);
  }
  void combine(const CombineArgs& args) override {
    below().combine(args);
    edit(args.site, args.site.stage, args.out, args.rows);
  }
  void softcap(const SoftcapArgs& args) override {
    below().softcap(args);
    edit(args.site, args.site.stage, args.out, args.rows);
  }

 private:
  void edit(const Site& site, Stage stage, const View& out, int64_t rows) {
    if (!here(site, rows, stage)) return;
    Scratch right = healthy(rows, out.width, [&](const View& copy) {
      for (int64_t i = 0; i < rows; ++i) below().write(copy, i, 1, row_of(out, i).data());
    });
    edit_({below(), rows, out, nullptr, nullptr, out.width}, planted_row(site, rows).value_or(0), plant_);
    finish(site, stage, std::move(right), out, rows);
  }

  Edit edit_;
};

}  // namespace

std::unique_ptr<Backend> make_edit_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                         const HParams& hp) {
  return std::make_unique<EditFault>(std::move(backend), plant, hp);
}

}  // namespace greta
