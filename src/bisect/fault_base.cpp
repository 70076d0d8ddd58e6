#include "bisect/fault_base.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "trace/row_hash.h"

namespace greta {

uint64_t plant_bits(const Plant& plant, uint64_t what) { return mix64(mix64(plant.seed) ^ what); }

void FaultLog::add(const Place& place, Fired row) {
  if (!recording) return;
  if (row.healthy.size() == row.faulty.size() &&
      std::memcmp(row.healthy.data(), row.faulty.data(), row.healthy.size() * sizeof(double)) == 0)
    return;
  fired.insert_or_assign(place, std::move(row));
  if (fired.size() > kMost) fired.erase(std::prev(fired.end()));
}

std::vector<int64_t> last_positions(const BatchView& batch) {
  std::vector<int64_t> last(static_cast<size_t>(batch.sequence_count), -1);
  for (int64_t row = 0; row < batch.rows; ++row) {
    int64_t& here = last[static_cast<size_t>(batch.sequences[row])];
    here = std::max<int64_t>(here, batch.positions[row]);
  }
  return last;
}

ScratchCache::ScratchCache(Backend& backend, const KvLayer& shape, const BatchView& like) : layer_(shape) {
  const std::vector<int64_t> last = last_positions(like);
  layer_.page_stride = *std::max_element(last.begin(), last.end()) / kKvPage + 1;
  pages_.assign(last.size() * static_cast<size_t>(layer_.page_stride), -1);
  int32_t count = 0;
  for (size_t s = 0; s < last.size(); ++s) {
    for (int64_t page = 0; page < ceil_div(last[s] + 1, kKvPage); ++page)
      pages_[s * static_cast<size_t>(layer_.page_stride) + static_cast<size_t>(page)] = count++;
  }
  const auto bytes = static_cast<size_t>(count) * backend.kv_page_bytes(shape.kv_heads, shape.head_dim);
  k_ = backend.allocate(bytes);
  v_ = backend.allocate(bytes);
  layer_.k = k_->data();
  layer_.v = v_->data();
  layer_.pages = pages_.data();
}

OnePosition::OnePosition(const BatchView& batch, int32_t sequence, int64_t position)
    : token_(batch.tokens[0]),
      position_(static_cast<int32_t>(position)),
      sequence_(sequence),
      batch_{1, &token_, &position_, &sequence_, batch.sequence_count} {}

bool FaultyBackend::here(const Site& site, int64_t rows) const {
  const FaultNeeds& needs = plant_.info->needs;
  if (site.batch == nullptr || rows == 0 || site.layer != plant_.layer) return false;
  if ((needs.prefill && site.batch->rows == 1) || (needs.decode && site.batch->rows > 1)) return false;
  return !plant_.info->one_token || planted_row(site, rows);
}

std::optional<int64_t> FaultyBackend::planted_row(const Site& site, int64_t rows) const {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = site.batch_row(i);
    if (site.batch->sequences[row] == 0 && site.batch->positions[row] == plant_.token) return i;
  }
  return std::nullopt;
}

Scratch FaultyBackend::scratch(int64_t rows, int64_t width) {
  Scratch made;
  made.buffer = allocate(static_cast<size_t>(rows * width) * element_bytes());
  made.view = {made.buffer->data(), width};
  return made;
}

std::vector<double> FaultyBackend::row_of(const View& view, int64_t row) const {
  std::vector<double> values(static_cast<size_t>(view.width));
  read(view, row, 1, values.data());
  return values;
}

std::vector<double> FaultyBackend::cached_row(const KvLayer& cache, KvPart part, const BatchView& batch,
                                              int64_t row) const {
  std::vector<double> values(static_cast<size_t>(cache.kv_heads) * static_cast<size_t>(cache.head_dim));
  read_kv(cache, part, batch, row, values.data());
  return values;
}

void FaultyBackend::finish(const Site& site, Stage stage, Scratch right, const View& wrong, int64_t rows) {
  if (right.view.data == nullptr) return;
  if (stage == Stage::v) {
    healthy_v_ = std::move(right);
    return;
  }
  for (int64_t i = 0; i < rows; ++i) log_row(site, stage, i, row_of(right.view, i), row_of(wrong, i));
}

void FaultyBackend::log_cached(const Site& site, Stage stage, const ScratchCache& right,
                               const KvLayer& wrong) {
  const KvPart part = stage == Stage::v ? KvPart::v : KvPart::k;
  for (int64_t i = 0; i < site.batch->rows; ++i)
    log_row(site, stage, i, cached_row(right.layer(), part, *site.batch, i),
            cached_row(wrong, part, *site.batch, i));
}

void FaultyBackend::log_row(const Site& site, Stage stage, int64_t row, std::vector<double> right,
                            std::vector<double> wrong) {
  const int64_t at = site.batch_row(row);
  plant_.log->add({site.batch->sequences[at], site.batch->positions[at], site.layer, stage},
                  {std::move(right), std::move(wrong)});
}

void FaultyBackend::spoil_rope(const RopeArgs& args, const std::function<void()>& wrong) {
  const int64_t rows = args.batch->rows;
  const ScratchCache clean(below(), args.cache, *args.batch);
  Scratch q = healthy(rows, args.q_out.width, [&](const View& out) {
    RopeArgs right = args;
    right.cache = clean.layer();
    right.q_out = out;
    below().rope(right);
  });
  wrong();
  if (q.view.data == nullptr) return;
  log_cached(args.site, Stage::k_post_rope, clean, args.cache);
  finish(args.site, Stage::q_post_rope, std::move(q), args.q_out, rows);
}

void FaultyBackend::rope(const RopeArgs& args) {
  below().rope(args);
  if (healthy_v_.view.data == nullptr || args.site.layer != plant_.layer) return;
  const ScratchCache right(*this, args.cache, *args.batch);
  const Scratch q = scratch(args.batch->rows, args.q_out.width);
  RopeArgs again = args;
  again.v = healthy_v_.view;
  again.q_out = q.view;
  again.cache = right.layer();
  below().rope(again);
  log_cached(args.site, Stage::v, right, args.cache);
  healthy_v_ = {};
}

}  // namespace greta
