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

constexpr int32_t kOneTile[] = {0, 1};

}  // namespace

bool Matmul::Plan::serves(const MatmulArgs& args) const {
  if (args.x.data != x || args.x.width != k || args.rows != rows || args.count != count) return false;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    const MatmulOutput &asked = args.outputs[i], &planned = parts[i].asked;
    if (asked.weight != planned.weight || asked.bias != planned.bias || asked.out.data != planned.out.data)
      return false;
  }
  return true;
}

Matmul::Part Matmul::part_of(const MatmulOutput& output) {
  Part part;
  part.asked = output;
  const CpuWeight& w = part.weight();
  const auto* bias = output.bias == nullptr
                         ? nullptr
                         : reinterpret_cast<const float*>(static_cast<const CpuWeight*>(output.bias)->data);
  auto* out = static_cast<float*>(output.out.data);
  part.type = w.index;
  part.kernel_type = static_cast<size_t>(w.kernel_type);
  part.packs = w.packs_in_this_call();
  const bool integers = w.layout == Layout::integers;
  if (integers)
    part.integer = {
        {reinterpret_cast<const uint8_t*>(w.data), 0, w.group_size}, w.rows, nullptr, nullptr, bias, out};
  else
    part.floats = {w.float_rows(), w.rows, w.cols, nullptr, bias, out};
  part.piece_rows = integers ? kLanes : kFloatPiece;
  part.piece_bytes = part.piece_rows * w.group_size / kLanes;
  part.pieces = ceil_div(w.rows, part.piece_rows);
  part.groups = ceil_div(w.rows, kLanes);
  return part;
}

Matmul::Plan Matmul::plan_of(const MatmulArgs& args) {
  Plan plan;
  plan.x = static_cast<const float*>(args.x.data);
  plan.rows = args.rows;
  plan.k = args.x.width;
  plan.count = args.count;
  for (int i = 0; i < args.count; ++i) {
    Part& part = plan.parts[static_cast<size_t>(i)];
    part = part_of(args.outputs[static_cast<size_t>(i)]);
    plan.lasts = plan.lasts && part.weight().data != nullptr;
    if (part.weight().layout == Layout::floats) {
      plan.floats = true;
      continue;
    }
    for (int j = 0; j < i && part.slot < 0; ++j) {
      const Part& before = plan.parts[static_cast<size_t>(j)];
      if (before.integers() && before.type == part.type) part.slot = before.slot;
    }
    if (part.slot < 0) part.slot = plan.slots++;
  }
  return plan;
}

void Matmul::cut_items(Plan& plan) const {
  const int64_t threads = pool_.size();
  int64_t all_groups = 0;
  for (const Part& part : plan.outputs()) all_groups += part.groups;
  for (Part& part : std::span(plan.parts).first(static_cast<size_t>(plan.count))) {
    const bool integers = part.integers();
    part.item_groups = kItemGroups;
    if (!integers) {
      const int64_t together = kernels_.float_together / kLanes;
      part.item_groups = std::clamp<int64_t>(
          ceil_div(kFloatBytes / part.weight().group_size, together) * together, together, kItemGroups);
    }
    part.item_groups = std::clamp<int64_t>(all_groups / (threads * 4), 1, part.item_groups);
    if (integers) part.item_groups = ceil_div(part.item_groups, kernels_.tile_groups) * kernels_.tile_groups;
    part.row_items = ceil_div(part.groups, part.item_groups);
    const int64_t tiles = ceil_div(plan.rows, integers ? kernels_.tile_tokens : kernels_.float_tokens);
    if (threads > 1 && all_groups < threads * 2)
      part.token_items = std::min(tiles, ceil_div(threads * 2, all_groups));
  }
}

void Matmul::make_room(const Plan& plan, std::span<const int32_t> tile_start, Rounded& to) const {
  const int64_t units = ceil_div(plan.k, kUnit);
  const int64_t cells = plan.rows * units;
  const int64_t q_bytes = aligned(cells * kernels_.x_bytes[eight_ ? 1 : 0]);
  const int64_t scale_bytes = aligned(cells * 4);
  const int64_t sum_bytes = aligned(cells * 8);
  to.memory.reserve(static_cast<size_t>(q_bytes + scale_bytes + sum_bytes * (1 + plan.slots)));
  std::byte* at = to.memory.data();
  to.x.rows = plan.rows;
  to.x.units = units;
  to.x.tiles = static_cast<int64_t>(tile_start.size()) - 1;
  to.x.tile_start = tile_start.data();
  to.x.q = reinterpret_cast<uint8_t*>(at);
  to.x.scale = reinterpret_cast<float*>(at + q_bytes);
  to.x.sum = reinterpret_cast<int32_t*>(at + q_bytes + scale_bytes);
  at += q_bytes + scale_bytes + sum_bytes;
  for (size_t slot = 0; slot < to.extra.size(); ++slot)
    to.extra[slot] = at + static_cast<int64_t>(slot) * sum_bytes;
}

void Matmul::round_tile(const Plan& plan, Rounded& to, int64_t tile) const {
  kernels_.round_tile[eight_ ? 1 : 0](plan.x + to.x.tile_start[tile] * plan.k, plan.k, to.x, tile);
  int64_t done = 0;
  for (const Part& part : plan.outputs()) {
    if (part.slot != done) continue;
    kernels_.x_extra[part.type](to.x, tile, to.extra[static_cast<size_t>(done)]);
    ++done;
  }
}

void Matmul::tile_floats(const Plan& plan) {
  const int64_t k = plan.k, vectors = ceil_div(k, kLanes), widest = kernels_.float_tokens;
  const float* x = plan.x;
  floats_ = x;
  if (plan.rows == 1 && k % kLanes == 0) return;  // a tile of one token as it lies
  tiled_.reserve(static_cast<size_t>(plan.rows * vectors * kLanes) * sizeof(float));
  auto* to = reinterpret_cast<float*>(tiled_.data());
  floats_ = to;
  pool_.parallel_for(ceil_div(plan.rows, widest), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t token = tile * widest, tokens = std::min(widest, plan.rows - token);
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
  if (!part.packs) return part.integer.groups;
  const int64_t bytes = part.integer.groups.bytes;
  Memory& memory = packed_[static_cast<size_t>(worker)];
  memory.reserve(static_cast<size_t>((group1 - group0) * bytes));
  for (int64_t group = group0; group < group1; ++group)
    part.weight().pack_group(group, memory.data() + (group - group0) * bytes);
  return {reinterpret_cast<const uint8_t*>(memory.data()), group0, bytes};
}

IntegerJob Matmul::integer_job(const Part& part, const Groups& groups, const Rounded& x) {
  IntegerJob job = part.integer;
  job.groups = groups;
  job.x = &x.x;
  job.extra = x.extra[static_cast<size_t>(part.slot)];
  return job;
}

FloatJob Matmul::float_job(const Part& part) const {
  FloatJob job = part.floats;
  job.x = floats_;
  return job;
}

void Matmul::run_item(const Part& part, int64_t first, int64_t last, int64_t rows, int worker) {
  std::byte* scratch = scratch_of(worker);
  for (int64_t item = first; item < last; ++item) {
    const int64_t group0 = item / part.token_items * part.item_groups;
    const int64_t group1 = std::min(group0 + part.item_groups, part.groups);
    const int64_t share = item % part.token_items;
    if (!part.integers()) {
      const int64_t widest = kernels_.float_tokens, tiles = ceil_div(rows, widest);
      kernels_.float_matmul[part.type](
          float_job(part), group0 * kLanes, std::min(group1 * kLanes, part.floats.rows),
          tiles * share / part.token_items * widest,
          std::min(rows, tiles * (share + 1) / part.token_items * widest), scratch);
    } else {
      const Groups groups = groups_of(part, group0, group1, worker);
      const Rounded& rounded = rounded_.front();
      kernels_.integer_tile[eight_ ? 1 : 0][part.type](
          integer_job(part, groups, rounded), group0, group1, rounded.x.tiles * share / part.token_items,
          rounded.x.tiles * (share + 1) / part.token_items, scratch);
    }
  }
}

/// The first of what is read from piece `piece` of a call on.
ThreadPool::Memory Matmul::begin_at(const Plan& plan, int64_t piece) {
  for (const Part& part : plan.outputs()) {
    if (piece >= part.pieces) {
      piece -= part.pieces;
      continue;
    }
    if (part.packs) return {};
    const int64_t rest = (part.pieces - piece) * part.piece_bytes;
    return {part.weight().stored() + piece * part.piece_bytes,
            static_cast<size_t>(std::min(kAheadBytes, rest))};
  }
  return {};
}

void Matmul::plan_call(const MatmulArgs& args, OneTokenCall& call) const {
  call.plan = plan_of(args);
  call.loads = maker_.loads;
  call.pieces = 0;
  call.least = 1;
  for (const Part& part : call.plan.outputs()) {
    call.pieces += part.pieces;
    call.least = std::max(call.least, kStreamBytes / part.piece_bytes);
  }
  call.begins.clear();
  for (int64_t i = 0; i < pool_.size(); ++i)
    call.begins.push_back(begin_at(call.plan, call.pieces * i / pool_.size()));
}

Matmul::OneTokenCall& Matmul::call_of(const MatmulArgs& args) {
  const Weight* first = args.outputs[0].weight;
  OneTokenCall* expected = last_call_ == nullptr ? nullptr : last_call_->next;
  OneTokenCall& call =
      expected != nullptr && expected->plan.parts[0].asked.weight == first ? *expected : calls_[first];
  if (!call.plan.lasts || call.loads != maker_.loads || !call.plan.serves(args)) plan_call(args, call);
  if (last_call_ != nullptr && expected != &call) last_call_->next = &call;
  last_call_ = &call;
  return call;
}

/// Into the second cache: it was read a token ago.
void Matmul::ask_for(const OneTokenCall& call) {
  for (size_t at = 0; at < sizeof call; at += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(&call) + at, 0, 2);
}

void Matmul::run_one(const MatmulArgs& args) {
  const OneTokenCall& call = call_of(args);
  const Plan& plan = call.plan;
  for (const Part& part : plan.outputs()) ++runs_[part.kernel_type].one;
  if (plan.floats) tile_floats(plan);
  const auto walk = [this, &plan, number = ++call_, next = call.next](int64_t begin, int64_t end,
                                                                      int worker) {
    Rounded& x = rounded_[static_cast<size_t>(worker)];
    if (x.call != number) {
      if (plan.integers()) {
        make_room(plan, kOneTile, x);
        round_tile(plan, x, 0);
      }
      if (next != nullptr) ask_for(*next);
      x.call = number;
    }
    for (const Part& part : plan.outputs()) {
      if (end <= 0) break;
      const int64_t stop = std::min(end, part.pieces);
      if (begin < stop) run_pieces(part, begin, stop, worker);
      begin = std::max<int64_t>(begin - part.pieces, 0);
      end -= part.pieces;
    }
  };
  std::span<const ThreadPool::Memory> ahead;
  if (call.next != nullptr) ahead = call.next->begins;
  pool_.parallel_walk(call.pieces, call.least, walk, ahead);
}

void Matmul::run_pieces(const Part& part, int64_t first, int64_t last, int worker) {
  if (!part.integers()) {
    kernels_.float_matmul[part.type](float_job(part), first * part.piece_rows,
                                     std::min(last * part.piece_rows, part.floats.rows), 0, 1,
                                     scratch_of(worker));
    return;
  }
  const int64_t together = part.packs ? 1 : last - first;
  for (int64_t group = first; group < last; group += together)
    kernels_.integer_one[eight_ ? 1 : 0][part.type](
        integer_job(part, groups_of(part, group, group + together, worker),
                    rounded_[static_cast<size_t>(worker)]),
        group, group + together);
}

void Matmul::run_many(const MatmulArgs& args) {
  Plan plan = plan_of(args);
  cut_items(plan);
  for (const Part& part : plan.outputs()) ++runs_[part.kernel_type].tile;
  if (plan.floats) tile_floats(plan);
  if (plan.integers()) {
    const int64_t tiles = ceil_div(plan.rows, kernels_.tile_tokens);
    tile_start_.clear();
    for (int64_t tile = 0; tile <= tiles; ++tile)
      tile_start_.push_back(static_cast<int32_t>(plan.rows * tile / tiles));
    make_room(plan, tile_start_, rounded_.front());
    pool_.parallel_for(tiles, 1,
                       [&](int64_t tile, int64_t, int) { round_tile(plan, rounded_.front(), tile); });
  }
  int64_t items = 0;
  for (const Part& part : plan.outputs()) items += part.items();
  pool_.parallel_for(items, 1, [&](int64_t begin, int64_t end, int worker) {
    for (const Part& part : plan.outputs()) {
      if (end <= 0) break;
      const int64_t stop = std::min(end, part.items());
      if (begin < stop) run_item(part, begin, stop, plan.rows, worker);
      begin = std::max<int64_t>(begin - part.items(), 0);
      end -= part.items();
    }
  });
}

void Matmul::run(const MatmulArgs& args) {
  if (args.rows == 1)
    run_one(args);
  else if (args.rows > 1)
    run_many(args);
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
