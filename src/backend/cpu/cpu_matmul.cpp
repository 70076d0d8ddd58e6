#include "backend/cpu/cpu_matmul.h"

#include <algorithm>

#include "backend/cpu/packed.h"
#include "base/checked.h"

namespace greta::cpu {
namespace {

/// Float rows of one item: they are read once for every block of tokens and should stay in a core's own
/// cache.
constexpr int64_t kFloatBytes = 384 << 10;
/// What a thread takes at once of its stretch of a one-token call: bytes of weights, and rows of float
/// weights at least (a kernel's rows side by side).
constexpr int64_t kStreamBytes = 16 << 10;
constexpr int64_t kFloatPiece = 8;
/// What a thread asks for ahead of its next stretch while it waits: 10 us of its reading, and no more than
/// the second cache of a small core spares.
constexpr int64_t kAheadBytes = 128 << 10;

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

const CpuWeight& weight_of(const MatmulArgs& args, size_t output) {
  return static_cast<const CpuWeight&>(*args.outputs[output].weight);
}

}  // namespace

void Matmul::plan_rounding(const MatmulArgs& args) {
  const int64_t tiles = ceil_div(args.rows, kernels_.tile_tokens);
  tile_start_.clear();
  for (int64_t tile = 0; tile <= tiles; ++tile)
    tile_start_.push_back(static_cast<int32_t>(args.rows * tile / tiles));
  // Outputs of one type (sub-block, bias, minima) share what is computed from the sums.
  slots_ = 0;
  for (size_t i = 0; i < static_cast<size_t>(args.count); ++i) {
    const CpuWeight& weight = weight_of(args, i);
    slot_[i] = -1;
    if (weight.layout != Layout::integers) continue;
    for (size_t j = 0; j < i && slot_[i] < 0; ++j)
      if (slot_[j] >= 0 && weight_of(args, j).index == weight.index) slot_[i] = slot_[j];
    if (slot_[i] < 0) slot_[i] = slots_++;
  }
}

void Matmul::make_room(const MatmulArgs& args, Rounded& to) const {
  const int64_t units = ceil_div(args.x.width, kUnit);
  const int64_t cells = args.rows * units;
  const int64_t q_bytes = aligned(cells * kernels_.x_bytes[eight_ ? 1 : 0]);
  const int64_t scale_bytes = aligned(cells * 4);
  const int64_t sum_bytes = aligned(cells * 8);
  to.memory.reserve(static_cast<size_t>(q_bytes + scale_bytes + sum_bytes * (1 + slots_)));
  std::byte* at = to.memory.data();
  to.x.rows = args.rows;
  to.x.units = units;
  to.x.tiles = static_cast<int64_t>(tile_start_.size()) - 1;
  to.x.tile_start = tile_start_.data();
  to.x.q = reinterpret_cast<uint8_t*>(at);
  to.x.scale = reinterpret_cast<float*>(at + q_bytes);
  to.x.sum = reinterpret_cast<int32_t*>(at + q_bytes + scale_bytes);
  at += q_bytes + scale_bytes + sum_bytes;
  for (size_t i = 0; i < to.extra.size(); ++i) to.extra[i] = at + slot_[i] * sum_bytes;
}

void Matmul::round_tile(const MatmulArgs& args, Rounded& to, int64_t tile) const {
  const int64_t k = args.x.width;
  kernels_.round_tile[eight_ ? 1 : 0](static_cast<const float*>(args.x.data) + tile_start_[tile] * k, k, to.x,
                                      tile);
  int64_t done = -1;
  for (size_t i = 0; i < static_cast<size_t>(args.count); ++i) {
    if (slot_[i] <= done) continue;
    kernels_.x_extra[weight_of(args, i).index](to.x, tile, to.extra[i]);
    done = slot_[i];
  }
}

void Matmul::tile_floats(const MatmulArgs& args) {
  const int64_t k = args.x.width, vectors = ceil_div(k, kLanes), widest = kernels_.float_tokens;
  const auto* x = static_cast<const float*>(args.x.data);
  floats_ = x;
  if (args.rows == 1 && k % kLanes == 0) return;  // a tile of one token as it lies
  tiled_.reserve(static_cast<size_t>(args.rows * vectors * kLanes) * sizeof(float));
  auto* to = reinterpret_cast<float*>(tiled_.data());
  floats_ = to;
  pool_.parallel_for(ceil_div(args.rows, widest), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t token = tile * widest, tokens = std::min(widest, args.rows - token);
      float* out = to + token * vectors * kLanes;
      for (int64_t k0 = 0; k0 < k; k0 += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, k - k0);
        for (int64_t t = 0; t < tokens; ++t, out += kLanes) {
          std::copy_n(x + (token + t) * k + k0, count, out);
          std::fill(out + count, out + kLanes, 0.0f);
        }
      }
    }
  });
}

/// Integers: the part's groups [group0, group1), packed for this call alone where the weight is not yet.
Groups Matmul::groups_of(const Part& part, int64_t group0, int64_t group1, int worker) {
  const CpuWeight& w = *part.weight;
  if (!part.packs) return {reinterpret_cast<const uint8_t*>(w.data), 0, w.group_size};
  Memory& memory = packed_[static_cast<size_t>(worker)];
  memory.reserve(static_cast<size_t>((group1 - group0) * w.group_size));
  for (int64_t group = group0; group < group1; ++group)
    w.pack_group(group, memory.data() + (group - group0) * w.group_size);
  return {reinterpret_cast<const uint8_t*>(memory.data()), group0, w.group_size};
}

Matmul::Part Matmul::make_part(const MatmulArgs& args, int index, int64_t all_groups) const {
  const MatmulOutput& output = args.outputs[static_cast<size_t>(index)];
  Part part;
  part.index = index;
  part.weight = static_cast<const CpuWeight*>(output.weight);
  const CpuWeight& w = *part.weight;
  part.bias = output.bias == nullptr
                  ? nullptr
                  : reinterpret_cast<const float*>(static_cast<const CpuWeight*>(output.bias)->data);
  part.out = static_cast<float*>(output.out.data);
  part.groups = ceil_div(w.rows, kLanes);
  part.packs = w.packs_in_this_call();
  const bool integers = w.layout == Layout::integers;
  part.piece_rows = integers ? kLanes : kFloatPiece;
  part.pieces = ceil_div(w.rows, part.piece_rows);
  if (args.rows == 1) return part;
  const int64_t threads = pool_.size();
  part.item_groups = integers ? kItemGroups : std::clamp<int64_t>(kFloatBytes / w.group_size, 1, kItemGroups);
  part.item_groups = std::clamp<int64_t>(all_groups / (threads * 4), 1, part.item_groups);
  if (integers) part.item_groups = ceil_div(part.item_groups, kernels_.tile_groups) * kernels_.tile_groups;
  part.row_items = ceil_div(part.groups, part.item_groups);
  const int64_t tiles = ceil_div(args.rows, integers ? kernels_.tile_tokens : kernels_.float_tokens);
  if (threads > 1 && all_groups < threads * 2)
    part.token_items = std::min(tiles, ceil_div(threads * 2, all_groups));
  return part;
}

IntegerJob Matmul::integer_job(const Part& part, const Groups& groups, const Rounded& x) const {
  return {groups, part.weight->rows, &x.x, x.extra[static_cast<size_t>(part.index)], part.bias, part.out};
}

FloatJob Matmul::float_job(const Part& part) const {
  return {part.weight->float_rows(), part.weight->rows, part.weight->cols, floats_, part.bias, part.out};
}

void Matmul::run_item(const Part& part, int64_t first, int64_t last, int64_t rows, int worker) {
  const CpuWeight& w = *part.weight;
  std::byte* scratch = scratch_of(worker);
  for (int64_t item = first; item < last; ++item) {
    const int64_t group0 = item / part.token_items * part.item_groups;
    const int64_t group1 = std::min(group0 + part.item_groups, part.groups);
    const int64_t share = item % part.token_items;
    if (w.layout == Layout::floats) {
      const int64_t widest = kernels_.float_tokens, tiles = ceil_div(rows, widest);
      kernels_.float_matmul[w.index](float_job(part), group0 * kLanes, std::min(group1 * kLanes, w.rows),
                                     tiles * share / part.token_items * widest,
                                     std::min(rows, tiles * (share + 1) / part.token_items * widest),
                                     scratch);
    } else {
      const Groups groups = groups_of(part, group0, group1, worker);
      const Rounded& rounded = rounded_.front();
      kernels_.integer_tile[eight_ ? 1 : 0][w.index](
          integer_job(part, groups, rounded), group0, group1, rounded.x.tiles * share / part.token_items,
          rounded.x.tiles * (share + 1) / part.token_items, scratch);
    }
  }
}

ThreadPool::Memory Matmul::begin_at(const Part (&parts)[3], int count, int64_t piece) {
  for (int i = 0; i < count; piece -= parts[i++].pieces) {
    const Part& part = parts[i];
    if (piece >= part.pieces) continue;
    const CpuWeight& w = *part.weight;
    if (part.packs) return {};
    const std::byte* at = w.stored() + piece * part.piece_rows * w.group_size / kLanes;
    const int64_t rest = (part.pieces - piece) * part.piece_rows * w.group_size / kLanes;
    return {at, static_cast<size_t>(std::min(kAheadBytes, rest))};
  }
  return {};
}

std::span<const ThreadPool::Memory> Matmul::expect_next(const Part (&parts)[3], int count, int64_t pieces) {
  OneTokenCall* expected = last_call_ == nullptr ? nullptr : last_call_->next;
  const bool as_expected = expected != nullptr && expected->first == parts[0].weight;
  OneTokenCall& call = as_expected ? *expected : calls_[parts[0].weight];
  call.first = parts[0].weight;
  call.begins.clear();
  for (int64_t i = 0; i < pool_.size(); ++i)
    call.begins.push_back(begin_at(parts, count, pieces * i / pool_.size()));
  if (last_call_ != nullptr) last_call_->next = &call;
  last_call_ = &call;
  if (call.next == nullptr) return {};
  return call.next->begins;
}

void Matmul::run_one(const MatmulArgs& args, const Part (&parts)[3], bool integers) {
  int64_t all = 0, least = 1;
  for (int i = 0; i < args.count; ++i) {
    all += parts[i].pieces;
    least = std::max(least, kStreamBytes / (parts[i].weight->group_size * parts[i].piece_rows / kLanes));
  }
  ++call_;
  const auto walk = [&](int64_t begin, int64_t end, int worker) {
    Rounded& x = rounded_[static_cast<size_t>(worker)];
    if (integers && x.call != call_) {
      make_room(args, x);
      round_tile(args, x, 0);
      x.call = call_;
    }
    for (int i = 0; i < args.count && end > 0; ++i) {
      const Part& part = parts[i];
      const int64_t stop = std::min(end, part.pieces);
      if (begin < stop) run_pieces(part, begin, stop, worker);
      begin = std::max<int64_t>(begin - part.pieces, 0);
      end -= part.pieces;
    }
  };
  pool_.parallel_walk(all, least, walk, expect_next(parts, args.count, all));
}

void Matmul::run_pieces(const Part& part, int64_t first, int64_t last, int worker) {
  const CpuWeight& w = *part.weight;
  if (w.layout == Layout::floats) {
    kernels_.float_matmul[w.index](float_job(part), first * part.piece_rows,
                                   std::min(last * part.piece_rows, w.rows), 0, 1, scratch_of(worker));
    return;
  }
  const int64_t together = part.packs ? 1 : last - first;
  for (int64_t group = first; group < last; group += together)
    kernels_.integer_one[eight_ ? 1 : 0][w.index](
        integer_job(part, groups_of(part, group, group + together, worker),
                    rounded_[static_cast<size_t>(worker)]),
        group, group + together);
}

void Matmul::run(const MatmulArgs& args) {
  bool integers = false, floats = false;
  int64_t all_groups = 0;
  for (int i = 0; i < args.count; ++i) {
    const CpuWeight& weight = weight_of(args, static_cast<size_t>(i));
    (weight.layout == Layout::integers ? integers : floats) = true;
    all_groups += ceil_div(weight.rows, kLanes);
  }
  if (integers) plan_rounding(args);
  if (floats) tile_floats(args);
  Part parts[3];
  int64_t end_of[3];
  int64_t items = 0;
  for (int i = 0; i < args.count; ++i) {
    parts[i] = make_part(args, i, all_groups);
    items += parts[i].items();
    end_of[i] = items;
  }
  if (args.rows == 1) {
    run_one(args, parts, integers);
    return;
  }
  if (integers) {
    make_room(args, rounded_.front());
    pool_.parallel_for(rounded_.front().x.tiles, 1,
                       [&](int64_t tile, int64_t, int) { round_tile(args, rounded_.front(), tile); });
  }
  pool_.parallel_for(items, 1, [&](int64_t begin, int64_t end, int worker) {
    int64_t start = 0;
    for (int i = 0; i < args.count && begin < end; ++i) {
      if (begin < end_of[i]) {
        const int64_t stop = std::min(end, end_of[i]);
        run_item(parts[i], begin - start, stop - start, args.rows, worker);
        begin = stop;
      }
      start = end_of[i];
    }
  });
}

uint64_t Matmul::scratch_bytes(int64_t rows, int64_t widest) const {
  const int64_t units = ceil_div(widest, kUnit);
  const int64_t tiled = rows * ceil_div(widest, kLanes) * kLanes * 4;
  const int64_t rounded =
      std::max<int64_t>(rows, pool_.size()) * units * (kernels_.x_bytes[eight_ ? 1 : 0] + 4 + 8 * 4) +
      pool_.size() * 6 * 64;
  const int64_t packed = kItemGroups * group_bytes(kQ8_0, units);  // of a call that packs; the largest type
  return static_cast<uint64_t>(tiled + rounded + (kMatmulScratch + packed) * pool_.size());
}

}  // namespace greta::cpu
