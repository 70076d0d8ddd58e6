#include "bisect/snapshots.h"

#include "backend/gpu/recordings.h"

namespace greta {

void Snapshots::stop() {
  taking_ = false;
  in_pass_ = false;
  copies_.clear();  // and the backend forgets its recordings, which write there
  nothing_.clear();
}

bool Snapshots::begin_pass(const Pass& pass) {
  const BatchView& batch = *pass.batch;
  in_pass_ = taking_ && batch.rows <= gpu::Recordings::kMostRows;
  if (!in_pass_) return below().begin_pass(pass);
  positions_.assign(batch.positions, batch.positions + batch.rows);
  sequences_.assign(batch.sequences, batch.sequences + batch.rows);
  picked_.assign(pass.logit_rows.begin(), pass.logit_rows.end());
  layers_.assign(pass.layers.begin(), pass.layers.end());
  Pass ours = pass;
  ours.workspace = this;  // other launches than a pass without copies: another recording
  return below().begin_pass(ours);
}

void Snapshots::take(const Site& site, Stage stage, const View& view, int64_t rows) {
  if (!in_pass_) return;
  const Key key{static_cast<int64_t>(positions_.size()), static_cast<int64_t>(picked_.size()), site.layer,
                stage};
  Copy& copy = copies_[key];
  if (!copy.buffer) {
    copy.buffer = allocate(static_cast<size_t>(rows * view.width) * element_bytes());
    copy.view = {copy.buffer->data(), view.width};
    copy.rows = rows;
  }
  below().add({rows, view, {nothing(rows * view.width).data, view.width}, copy.view, {}});
}

View Snapshots::nothing(int64_t count) {
  std::unique_ptr<Buffer>& buffer = nothing_[count];
  if (buffer) return {buffer->data(), count};
  buffer = allocate(static_cast<size_t>(count) * element_bytes());
  const View view{buffer->data(), count};
  below().write(view, 0, 1, std::vector<double>(static_cast<size_t>(count), -0.0).data());
  return view;
}

void Snapshots::visit(const Visit& visit) const {
  if (!in_pass_) return;
  for (const auto& [key, copy] : copies_)
    if (key.rows == static_cast<int64_t>(positions_.size()) &&
        key.picked == static_cast<int64_t>(picked_.size()))
      visit_rows(visit, key, copy);
  for (size_t l = 0; l < layers_.size(); ++l) visit_cache(visit, static_cast<int>(l));
}

void Snapshots::visit_rows(const Visit& visit, const Key& key, const Copy& copy) const {
  std::vector<double> values(static_cast<size_t>(copy.view.width));
  for (int64_t i = 0; i < copy.rows; ++i) {
    const auto row = static_cast<size_t>(is_picked(key.stage) ? picked_[static_cast<size_t>(i)] : i);
    if (sequences_[row] != 0) continue;
    below().read(copy.view, i, 1, values.data());
    visit({0, positions_[row], key.layer, key.stage}, values);
  }
}

/// A pass's keys and values lie where they are until another pass of the same positions.
void Snapshots::visit_cache(const Visit& visit, int layer) const {
  const KvLayer& cache = layers_[static_cast<size_t>(layer)];
  const BatchView batch{static_cast<int64_t>(positions_.size()), nullptr, positions_.data(),
                        sequences_.data(), 0};
  std::vector<double> values(static_cast<size_t>(cache.kv_heads) * static_cast<size_t>(cache.head_dim));
  for (int64_t row = 0; row < batch.rows; ++row) {
    if (batch.sequences[row] != 0) continue;
    for (const auto& [part, stage] : {std::pair(KvPart::v, Stage::v), {KvPart::k, Stage::k_post_rope}}) {
      below().read_kv(cache, part, batch, row, values.data());
      visit({0, batch.positions[row], layer, stage}, values);
    }
  }
}

template <class Args>
void Snapshots::once(const Args& args, int64_t rows, void (Backend::*run)(const Args&)) {
  (below().*run)(args);
  take(args.site, args.site.stage, args.out, rows);
}

void Snapshots::embed(const EmbedArgs& args) { once(args, args.batch->rows, &Backend::embed); }
void Snapshots::attention(const AttentionArgs& args) { once(args, args.batch->rows, &Backend::attention); }
void Snapshots::add(const AddArgs& args) { once(args, args.rows, &Backend::add); }
void Snapshots::glu(const GluArgs& args) { once(args, args.rows, &Backend::glu); }
void Snapshots::softcap(const SoftcapArgs& args) { once(args, args.rows, &Backend::softcap); }

void Snapshots::rmsnorm(const RmsnormArgs& args) {
  below().rmsnorm(args);
  const int64_t parts = args.site.parts;  // whole rows
  take(args.site, args.site.stage, {args.out.data, args.out.width * parts}, args.rows / parts);
}

void Snapshots::matmul(const MatmulArgs& args) {
  below().matmul(args);
  for (size_t i = 0; i < static_cast<size_t>(args.count); ++i)
    if (args.outputs[i].stage != Stage::v)  // that is what the cache holds of it
      take(args.site, args.outputs[i].stage, args.outputs[i].out, args.rows);
}

void Snapshots::rope(const RopeArgs& args) {
  below().rope(args);
  take(args.site, Stage::q_post_rope, args.q_out, args.batch->rows);
}

}  // namespace greta
