// Attention kernels that read other keys, other heads or at another scale. What they may read is what a
// repeated call has: keys up to the last position of each sequence in the call.
#include <algorithm>
#include <cmath>

#include "bisect/fault_base.h"

namespace greta {
namespace {

using Wrong = void (*)(Backend& backend, const AttentionArgs& args, const HParams& hp);

void softmax_scale(Backend& backend, const AttentionArgs& args, const HParams& hp) {
  AttentionArgs wrong = args;
  wrong.scale = 1.0 / std::sqrt(static_cast<double>(hp.dim));
  backend.attention(wrong);
}

void at_positions(Backend& backend, const AttentionArgs& args, const std::vector<int32_t>& positions) {
  BatchView batch = *args.batch;
  batch.positions = positions.data();
  AttentionArgs wrong = args;
  wrong.batch = &batch;
  backend.attention(wrong);
}

/// One key too few. Position 0 is left without any: its sums are empty, the output zero.
void seq_len(Backend& backend, const AttentionArgs& args, const HParams&) {
  const int32_t position = args.batch->positions[0];
  if (position > 0) return at_positions(backend, args, {position - 1});
  backend.write(args.out, 0, 1, std::vector<double>(static_cast<size_t>(args.out.width), 0.0).data());
}

/// One key too many, where the call itself has written it.
void mask(Backend& backend, const AttentionArgs& args, const HParams&) {
  const std::vector<int64_t> last = last_positions(*args.batch);
  std::vector<int32_t> positions;
  for (int64_t row = 0; row < args.batch->rows; ++row) {
    const int32_t position = args.batch->positions[row];
    const bool written = position < last[static_cast<size_t>(args.batch->sequences[row])];
    positions.push_back(written ? position + 1 : position);
  }
  at_positions(backend, args, positions);
}

void permute_heads(Backend& backend, const View& from, const View& to, int64_t rows,
                   const std::vector<int>& from_head) {
  const auto width = static_cast<size_t>(from.width);
  const size_t head_dim = width / from_head.size();
  std::vector<double> in(width), out(width);
  for (int64_t row = 0; row < rows; ++row) {
    backend.read(from, row, 1, in.data());
    for (size_t h = 0; h < from_head.size(); ++h)
      std::copy_n(in.data() + static_cast<size_t>(from_head[h]) * head_dim, head_dim,
                  out.data() + h * head_dim);
    backend.write(to, row, 1, out.data());
  }
}

/// Head h reads kv head h % kv_heads: the right kernel on heads in another order.
void gqa_group(Backend& backend, const AttentionArgs& args, const HParams&) {
  std::vector<int> order,
      back(static_cast<size_t>(args.heads));  // order: grouped as the wrong mapping groups
  for (int kv = 0; kv < args.cache.kv_heads; ++kv) {
    for (int h = kv; h < args.heads; h += args.cache.kv_heads) {
      back[static_cast<size_t>(h)] = static_cast<int>(order.size());
      order.push_back(h);
    }
  }
  const int64_t rows = args.batch->rows;
  const auto bytes = static_cast<size_t>(rows * args.q.width) * backend.element_bytes();
  const auto q = backend.allocate(bytes);
  const auto out = backend.allocate(bytes);
  AttentionArgs wrong = args;
  wrong.q = {q->data(), args.q.width};
  wrong.out = {out->data(), args.out.width};
  permute_heads(backend, args.q, wrong.q, rows, order);
  backend.attention(wrong);
  permute_heads(backend, wrong.out, args.out, rows, back);
}

/// Attention over a copy of the keys and values: position j is what fill.change() makes of position
/// fill.source(j), zeros where the call has no such key.
template <class Fill>
void on_copied_cache(Backend& backend, const AttentionArgs& args, const Fill& fill) {
  const ScratchCache copy(backend, args.cache, *args.batch);
  const std::vector<int64_t> last = last_positions(*args.batch);
  std::vector<double> values(static_cast<size_t>(args.cache.kv_heads) *
                             static_cast<size_t>(args.cache.head_dim));
  for (size_t s = 0; s < last.size(); ++s) {
    for (int64_t j = 0; j <= last[s]; ++j) {
      const int64_t from = fill.source(j);
      // Nothing is kept of what lies before every window.
      if (from > last[s] || args.cache.page_of(static_cast<int64_t>(s), from) < 0) continue;
      const OnePosition read(*args.batch, static_cast<int32_t>(s), from);
      const OnePosition written(*args.batch, static_cast<int32_t>(s), j);
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        backend.read_kv(args.cache, part, read.batch(), 0, values.data());
        fill.change(part, values);
        backend.write_kv(copy.layer(), part, written.batch(), 0, values.data());
      }
    }
  }
  AttentionArgs wrong = args;
  wrong.cache = copy.layer();
  backend.attention(wrong);
}

/// Rows of `heads` heads where kv_heads lie: key j is what lies at row j * heads / kv_heads; past the last
/// key lie zeros.
void gqa_stride(Backend& backend, const AttentionArgs& args, const HParams&) {
  struct {
    int64_t group;
    int64_t source(int64_t j) const { return j * group; }
    void change(KvPart, std::vector<double>&) const {}
  } const fill{args.heads / args.cache.kv_heads};
  on_copied_cache(backend, args, fill);
}

/// Values of the first two kv heads exchanged.
void v_head_swap(Backend& backend, const AttentionArgs& args, const HParams&) {
  struct {
    int head_dim;
    int64_t source(int64_t j) const { return j; }
    void change(KvPart part, std::vector<double>& values) const {
      if (part == KvPart::v)
        std::swap_ranges(values.begin(), values.begin() + head_dim, values.begin() + head_dim);
    }
  } const fill{args.cache.head_dim};
  on_copied_cache(backend, args, fill);
}

Wrong wrong_of(std::string_view id) {
  if (id == "softmax-scale") return softmax_scale;
  if (id == "seq-len") return seq_len;
  if (id == "mask") return mask;
  if (id == "gqa-group") return gqa_group;
  if (id == "gqa-stride") return gqa_stride;
  return v_head_swap;
}

class AttentionFault : public KernelFault {
 public:
  AttentionFault(std::unique_ptr<Backend> backend, const Plant& plant, const HParams& hp)
      : KernelFault(std::move(backend), plant, hp), wrong_(wrong_of(plant.info->id)) {}

  void attention(const AttentionArgs& args) override {
    if (!here(args.site, args.batch->rows, Stage::attn_out)) return below().attention(args);
    Scratch right = healthy_call(args, args.batch->rows, &Backend::attention);
    wrong_(below(), args, hp_);
    finish(args.site, Stage::attn_out, std::move(right), args.out, args.batch->rows);
  }

 private:
  Wrong wrong_;
};

}  // namespace

std::unique_ptr<Backend> make_attention_fault(std::unique_ptr<Backend> backend, const Plant& plant,
                                              const HParams& hp) {
  return std::make_unique<AttentionFault>(std::move(backend), plant, hp);
}

}  // namespace greta
