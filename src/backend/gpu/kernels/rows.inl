// Row operators: norms, rotations, sums, activations, the choice of experts. Included after the target's
// target.h.
#include "backend/gpu/kernels/elementary.inl"
#include "backend/gpu/kernels/held_row.h"
#include "backend/gpu/kernels/launchers.h"

namespace greta::gpu::GRETA_GPU_TARGET {
namespace {

inline constexpr int kRowThreads = 256;
inline constexpr int kGluThreads = 1024;
inline constexpr int kTrees = kRowThreads / kTree;

inline unsigned blocks_for(int64_t items, int64_t each) {
  return static_cast<unsigned>((items + each - 1) / each);
}

// ---- rmsnorm
// --------------------------------------------------------------------------------------------------

/// The row to memory.
template <int kThreads, int kHeld>
GRETA_DEVICE void put_row(HeldRow<kThreads, kHeld>& held, int lane, int width, float* out) {
  held.each_four(
      lane, width,
      [&](int i, const float* v) {
        *reinterpret_cast<Floats4*>(out + i) = {v[0], v[1], v[2], v[3]};
      },
      [&](int i, float v) { out[i] = v; });
}

// Of a norm: 32 lanes a row, eight rows a block; or a block a row (orders.h).
template <int Lanes>
inline constexpr int kNormThreads = Lanes == kTree ? kRowThreads : Lanes;

/// r = 1 / sqrt(mean + eps); out = (x r) w, on top of the residual where there is one. Lanes threads share a
/// row, in the order of orders.h.
template <int Lanes, int kHeld>
GRETA_KERNEL void GRETA_BOUNDS(kNormThreads<Lanes>, 1) rmsnorm(Mark mark, RmsnormCall call) {
  entered_early(mark);
  const int lane = thread_index() % Lanes;
  const int64_t row =
      static_cast<int64_t>(block_x()) * (kNormThreads<Lanes> / Lanes) + thread_index() / Lanes;
  const int width = row < call.rows ? static_cast<int>(call.width) : 0;
  const float* x = call.x + row * call.width;
  HeldRow<Lanes, kHeld> held, weight;
  if constexpr (kHeld > 0)  // on their way while the kernel before ends
    weight.load(call.weight, lane, width);
  after_earlier(mark);
  if constexpr (kHeld == 0) {
    held.again = x;
  } else {
    held.load(x, lane, width);
  }
  float sum[1] = {0.0f};
  held.each(lane, width, [&](int /*i*/, float v, int /*e*/) { sum[0] = fused(v, v, sum[0]); });
  Shared shared;
  const SharedArray<float> trees = shared.array<float>(Lanes > kTree ? Lanes / kTree : 0);
  const float r = norm_factor<Lanes>(sum, lane, call.width, call.eps, trees, [] { barrier(); });
  float* out = call.out + row * call.width;
  const float* residual = call.residual == nullptr ? nullptr : call.residual + row * call.width;
  float amax = 0.0f;
  held.each(lane, width, [&](int i, float& v, int e) {
    float w;
    if constexpr (kHeld > 0) {
      w = weight.v[e];
    } else {
      w = call.weight[i];
    }
    v = (v * r) * w;
    if (residual != nullptr) v = residual[i] + v;
    if constexpr (kHeld == 0) out[i] = v;
    amax = larger(amax, magnitude_of(v));
  });
  if constexpr (kHeld > 0) put_row(held, lane, width, out);
  if constexpr (Lanes > kTree) {
    if (call.rounded.data == nullptr) return;
    if constexpr (kHeld == 0) held.again = out;
    round_row(held, row, width, amax, call.rounded, shared.array<float>(Lanes / kWave));
  }
}

// ---- rope and the cache
// ---------------------------------------------------------------------------------------

/// Elements 2u and 2u + 1 of a head, or the two of pair u.
struct HeadPair {
  int unit;
  int head;  ///< of q, k or v
  bool is_q, is_v;
  bool turned;    ///< a pair of the rotation
  bool together;  ///< neighbours that lie on a multiple of two
  int first;
  int second;  ///< head_dim where there is none
  float a;
  float b;

  GRETA_DEVICE void load(const RopeCall& call, int64_t row, int head_of_all, int which) {
    const int head_dim = call.cache.head_dim, kv_heads = call.cache.kv_heads, pairs = call.rotation.dims / 2;
    unit = which;
    is_q = head_of_all < call.heads;
    is_v = head_of_all >= call.heads + kv_heads;
    head = is_q ? head_of_all : is_v ? head_of_all - call.heads - kv_heads : head_of_all - call.heads;
    turned = unit < pairs && !is_v;
    const bool apart = turned && call.rotation.half;
    first = apart ? unit : 2 * unit;
    second = apart ? unit + pairs : 2 * unit + 1;
    together = !apart && head_dim % 2 == 0;
    const float* x = (is_q   ? call.q
                      : is_v ? call.v
                             : call.k) +
                     (row * (is_q ? call.heads : kv_heads) + head) * head_dim + first;
    if (together) {
      const Words2 both = *reinterpret_cast<const Words2*>(x);
      a = float_of(both.x);
      b = float_of(both.y);
    } else {
      a = x[0];
      b = second < head_dim ? x[second - first] : 0.0f;
    }
  }
  GRETA_DEVICE void turn(float c, float s) {
    const float before = a;
    a = turned_first(before, b, c, s);
    b = turned_second(before, b, c, s);
  }
  GRETA_DEVICE void put(const RopeCall& call, int64_t row, int64_t page, int slot) const {
    const int head_dim = call.cache.head_dim;
    if (is_q) {
      float* out = call.q_out + (row * call.heads + head) * head_dim + first;
      if (together) {
        *reinterpret_cast<Words2*>(out) = {bits_of(a), bits_of(b)};
      } else {
        out[0] = a;
        if (second < head_dim) out[second - first] = b;
      }
      return;
    }
    uint16_t* out = (is_v ? call.cache.v : call.cache.k) +
                    ((page * call.cache.kv_heads + head) * 64 + slot) * static_cast<int64_t>(head_dim) +
                    first;
    const uint32_t low = call.cache.bf16 ? to_bf16(a) : to_f16(a);
    const uint32_t high = call.cache.bf16 ? to_bf16(b) : to_f16(b);
    if (together) {
      *reinterpret_cast<uint32_t*>(out) = low | high << 16;
    } else {
      out[0] = static_cast<uint16_t>(low);
      if (second < head_dim) out[second - first] = static_cast<uint16_t>(high);
    }
  }
};

/// Block (row, some heads): of its row, heads of q, then of k, then of v, each `units` of two elements.
GRETA_KERNEL void GRETA_BOUNDS(kRowThreads, 1) rope(Mark mark, RopeCall call, int heads_each) {
  entered(mark);
  const int pairs = call.rotation.dims / 2, kv_heads = call.cache.kv_heads;
  Shared shared;
  const SharedArray<float> cosine = shared.array<float>(pairs), sine = shared.array<float>(pairs);
  const int64_t row = block_x();
  const int position = call.batch.positions[row];
  for (int i = thread_index(); i < pairs; i += block_threads())
    turn_of(call.rotation, position, i, cosine[i], sine[i]);
  barrier();

  constexpr int kAtOnce = 4;  // pairs of a thread that are on their way together
  const int units = (call.cache.head_dim + 1) / 2;
  const int first_head = block_y() * heads_each, all_heads = call.heads + 2 * kv_heads;
  const int heads = first_head + heads_each < all_heads ? heads_each : all_heads - first_head;
  const int64_t page = call.cache.pages[call.batch.sequences[row] * call.cache.page_stride + position / 64];
  // A thread's next pair, by two sums instead of a division for each.
  int head = first_head + thread_index() / units, unit = thread_index() % units;
  const int further_heads = block_threads() / units, further_units = block_threads() % units;
  for (int i = thread_index(); i < heads * units; i += kAtOnce * block_threads()) {
    HeadPair p[kAtOnce];
    GRETA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      if (head < first_head + heads) p[u].load(call, row, head, unit);
      head += further_heads;
      unit += further_units;
      if (unit >= units) {
        unit -= units;
        ++head;
      }
    }
    GRETA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      if (i + u * block_threads() >= heads * units) break;
      if (p[u].turned) p[u].turn(cosine[p[u].unit], sine[p[u].unit]);
      p[u].put(call, row, page, position % 64);
    }
  }
}

// ---- element by element
// ---------------------------------------------------------------------------------------

struct Add {
  GRETA_DEVICE float operator()(float a, float b) const { return a + b; }
};
struct SiluMul {
  GRETA_DEVICE float operator()(float gate, float up) const { return silu_of(gate) * up; }
};
struct GeluMul {
  GRETA_DEVICE float operator()(float gate, float up) const { return gelu_tanh_of(gate) * up; }
};
struct Cap {
  float cap;
  GRETA_DEVICE float operator()(float x, float /*again*/) const { return capped(x, cap); }
};

/// out[i] = op(a[i], b[i]), four elements a thread. `aligned`: to 16 bytes, all three. out may be a or b.
template <class Op>
GRETA_KERNEL void GRETA_BOUNDS(kRowThreads, 1)
    elements(Mark mark, Op op, const float* a, const float* b, int64_t count, float* out, bool aligned) {
  entered(mark);
  const int64_t first = (static_cast<int64_t>(block_x()) * kRowThreads + thread_index()) * 4;
  if (aligned && first + 4 <= count) {
    const Floats4 l = *reinterpret_cast<const Floats4*>(a + first);
    const Floats4 r = *reinterpret_cast<const Floats4*>(b + first);
    *reinterpret_cast<Floats4*>(out + first) = {op(l.x, r.x), op(l.y, r.y), op(l.z, r.z), op(l.w, r.w)};
    return;
  }
  for (int64_t i = first; i < first + 4 && i < count; ++i) out[i] = op(a[i], b[i]);
}

template <class Op>
void run_elements(const Launch& how, const char* name, Op op, const float* a, const float* b, int64_t count,
                  float* out) {
  const auto address = [](const float* at) { return reinterpret_cast<uintptr_t>(at); };
  const bool aligned = (address(a) | address(b) | address(out)) % sizeof(Floats4) == 0;
  launch(how, name, elements<Op>, Grid{blocks_for(count, 4 * kRowThreads)}, kRowThreads, 0, op, a, b, count,
         out, aligned);
}

/// A block a row: out = op(gate, up), and the row rounded.
template <class Op, int kHeld>
GRETA_KERNEL void GRETA_BOUNDS(kGluThreads, 1) glu_rounded(Mark mark, Op op, GluCall call) {
  entered(mark);
  Shared shared;
  const SharedArray<float> largest = shared.array<float>(kGluThreads / kWave);
  const int64_t row = block_x();
  const int width = static_cast<int>(call.width);
  const float* gate = call.gate + row * call.width;
  const float* up = call.up + row * call.width;
  float* out = call.out + row * call.width;
  HeldRow<kGluThreads, kHeld> held;
  if constexpr (kHeld == 0) {
    held.again = gate;
  } else {
    held.load(gate, thread_index(), width);
  }
  float amax = 0.0f;
  held.each(thread_index(), width, [&](int i, float& v, int /*e*/) {
    v = op(v, up[i]);
    if constexpr (kHeld == 0) out[i] = v;
    amax = larger(amax, magnitude_of(v));
  });
  if constexpr (kHeld == 0) {
    held.again = out;
  } else {
    put_row(held, thread_index(), width, out);
  }
  round_row(held, row, width, amax, call.rounded, largest);
}

/// Block (row, columns): moves bits.
GRETA_KERNEL void GRETA_BOUNDS(kRowThreads, 1) gather(Mark mark, GatherCall call) {
  entered(mark);
  const int64_t i = static_cast<int64_t>(block_y()) * kRowThreads + thread_index();
  if (i >= call.width) return;
  call.out[block_x() * call.width + i] = call.x[call.from[block_x()] * call.width + i];
}

// ---- experts
// --------------------------------------------------------------------------------------------------

struct Candidate {
  float logit;
  int expert;  ///< kMostExperts: nobody
};

/// Whether `a` is chosen before `b`: the larger, a NaN before numbers, of equals the lower index.
GRETA_DEVICE bool before(const Candidate& a, const Candidate& b) {
  if (a.expert == kMostExperts || b.expert == kMostExperts) return a.expert < b.expert;
  const bool nan_a = a.logit != a.logit, nan_b = b.logit != b.logit;
  if (nan_a || nan_b) return nan_a != nan_b ? nan_a : a.expert < b.expert;
  return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

GRETA_DEVICE Candidate first_of_all(Candidate best) {
  GRETA_UNROLL
  for (int mask = 1; mask < kTree; mask *= 2) {
    const Candidate other{shuffle_xor(best.logit, mask), shuffle_xor(best.expert, mask)};
    if (before(other, best)) best = other;
  }
  return best;
}

/// 32 lanes share a row; lane i holds the logits of experts i, i + 32, ... The sum of e^(l - max), over the
/// chosen or over all, is each lane's own in ascending order, then the tree; an expert left out adds zero.
GRETA_KERNEL void GRETA_BOUNDS(kRowThreads, 1) choose_experts(Mark mark, ChooseExpertsCall call) {
  entered(mark);
  constexpr int kEach = kMostExperts / kTree;
  static_assert(kMostExpertsUsed <= kTree);
  const int lane = thread_index() % kTree;
  const int64_t row = static_cast<int64_t>(block_x()) * kTrees + thread_index() / kTree;
  const int experts = row < call.rows ? call.experts : 0;
  float logit[kEach];
  bool taken[kEach];
  GRETA_UNROLL
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + kTree * i;
    logit[i] = e < experts ? call.logits[row * call.experts + e] : 0.0f;
    taken[i] = false;
  }
  float largest = 0.0f;
  Candidate mine{0.0f, kMostExperts};  // lane s: the one chosen s-th
  for (int s = 0; s < call.used; ++s) {
    Candidate best{0.0f, kMostExperts};
    GRETA_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const Candidate own{logit[i], lane + kTree * i};
      if (own.expert < experts && !taken[i] && before(own, best)) best = own;
    }
    best = first_of_all(best);
    GRETA_UNROLL
    for (int i = 0; i < kEach; ++i) taken[i] = taken[i] || best.expert == lane + kTree * i;
    if (s == 0) largest = best.logit;
    if (s == lane) mine = best;
  }
  float sum = 0.0f;
  GRETA_UNROLL
  for (int i = 0; i < kEach; ++i) {
    const bool counts = call.normalised ? taken[i] : lane + kTree * i < experts;
    sum += counts ? exp_of(logit[i] - largest) : 0.0f;
  }
  sum = tree_sum(sum);
  int rank = 0;
  for (int s = 0; s < call.used; ++s)
    rank += shuffle(mine.expert, lane_index() - lane + s) < mine.expert ? 1 : 0;
  if (row >= call.rows || lane >= call.used) return;
  call.chosen[row * call.used + rank] = static_cast<float>(mine.expert);
  call.weights[row * call.used + rank] = divide(exp_of(mine.logit - largest), sum) * call.scale;
}

/// Block (row, columns). The first slot's product, then a fused multiply-add for each slot, ascending.
GRETA_KERNEL void GRETA_BOUNDS(kRowThreads, 1) combine(Mark mark, CombineCall call) {
  entered(mark);
  const int64_t i = static_cast<int64_t>(block_y()) * kRowThreads + thread_index();
  if (i >= call.width) return;
  const int64_t row = block_x();
  const float* weights = call.weights + row * call.used;
  const float* x = call.x + row * call.used * call.width + i;
  float sum = weights[0] * x[0];
  for (int s = 1; s < call.used; ++s) sum = fused(weights[s], x[s * call.width], sum);
  call.out[row * call.width + i] = sum;
}

}  // namespace

// ---- launchers
// ------------------------------------------------------------------------------------------------

bool rounds_with_norm(int64_t width) { return rmsnorm_lanes(width) > kTree; }

void run_rmsnorm(const Launch& how, const RmsnormCall& call) {
  constexpr int kLanes = 512;
  if (rmsnorm_lanes(call.width) == kTree) {
    launch(how, "rmsnorm.narrow", rmsnorm<kTree, 8>, Grid{blocks_for(call.rows, kRowThreads / kTree)},
           kRowThreads, 0, call);
    return;
  }
  static_assert(rmsnorm_lanes(1 << 20) == kLanes);
  const auto norm = [&](auto kernel) {
    constexpr int kShared = (kLanes / kTree + kLanes / kWave) * static_cast<int>(sizeof(float));
    launch(how, "rmsnorm", kernel, Grid{static_cast<unsigned>(call.rows)}, kLanes, kShared, call);
  };
  if (call.width <= 4 * kLanes) return norm(rmsnorm<kLanes, 4>);
  if (call.width <= 8 * kLanes) return norm(rmsnorm<kLanes, 8>);
  if (call.width <= 16 * kLanes) return norm(rmsnorm<kLanes, 16>);
  norm(rmsnorm<kLanes, 0>);
}

void run_rope(const Launch& how, const RopeCall& call) {
  constexpr int kThreads = 128;
  // Few rows: their heads go to several blocks, each with a table of its own, so that the machine is used.
  constexpr int64_t kBlocks = 512;
  if (call.batch.rows == 0) return;
  const int heads = call.heads + 2 * call.cache.kv_heads;
  const int64_t parts = kBlocks / call.batch.rows < 1 ? 1 : kBlocks / call.batch.rows;
  const int each = static_cast<int>((heads + parts - 1) / parts);
  const int table = (call.rotation.dims / 2 * static_cast<int>(sizeof(float)) + 15) / 16 * 16;
  launch(how, "rope", rope, Grid{static_cast<unsigned>(call.batch.rows), blocks_for(heads, each)}, kThreads,
         2 * table, call, each);
}

void run_add(const Launch& how, const AddCall& call) {
  run_elements(how, "add", Add{}, call.a, call.b, call.count, call.out);
}

/// The one block a row where it is to be rounded, else any number of blocks.
template <class Op>
void run_glu_of(const Launch& how, const char* plain, const char* rounding, Op op, const GluCall& call) {
  constexpr int kShared = (kGluThreads / kWave + 3) / 4 * 16;
  const Grid rows{static_cast<unsigned>(call.rows)};
  if (call.rounded.data == nullptr) {
    run_elements(how, plain, op, call.gate, call.up, call.rows * call.width, call.out);
  } else if (call.width <= 8 * kGluThreads) {
    launch(how, rounding, glu_rounded<Op, 8>, rows, kGluThreads, kShared, op, call);
  } else if (call.width <= 16 * kGluThreads) {
    launch(how, rounding, glu_rounded<Op, 16>, rows, kGluThreads, kShared, op, call);
  } else {
    launch(how, rounding, glu_rounded<Op, 0>, rows, kGluThreads, kShared, op, call);
  }
}

void run_glu(const Launch& how, const GluCall& call) {
  if (call.glu == Glu::gelu) return run_glu_of(how, "glu.gelu", "glu_rounded.gelu", GeluMul{}, call);
  run_glu_of(how, "glu.silu", "glu_rounded.silu", SiluMul{}, call);
}

void run_softcap(const Launch& how, const SoftcapCall& call) {
  run_elements(how, "softcap", Cap{call.cap}, call.x, call.x, call.count, call.out);
}

void run_gather(const Launch& how, const GatherCall& call) {
  launch(how, "gather", gather, Grid{static_cast<unsigned>(call.rows), blocks_for(call.width, kRowThreads)},
         kRowThreads, 0, call);
}

void run_choose_experts(const Launch& how, const ChooseExpertsCall& call) {
  launch(how, "choose_experts", choose_experts, Grid{blocks_for(call.rows, kTrees)}, kRowThreads, 0, call);
}

void run_combine(const Launch& how, const CombineCall& call) {
  launch(how, "combine", combine, Grid{static_cast<unsigned>(call.rows), blocks_for(call.width, kRowThreads)},
         kRowThreads, 0, call);
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
