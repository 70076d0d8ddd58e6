#include "model/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

#include "base/checked.h"
#include "decoder/forward.h"
#include "decoder/kv_cache.h"
#include "model/tensor_plan.h"

namespace greta {

namespace {

constexpr uint64_t kTooMuch = std::numeric_limits<uint64_t>::max() / 8;  // five of these add without overflow

uint64_t product(uint64_t a, uint64_t b) {
  const auto p = checked_mul(a, b);
  return p ? std::min(*p, kTooMuch) : kTooMuch;
}

/// What a run could ask for, beside what the model needs.
struct Run {
  int64_t context;
  int64_t sequences;
  int64_t chunk;
};

class Estimate {
 public:
  Estimate(const Plan& plan, const Backend& backend, const PlanRequest& request)
      : hp_(plan.hp),
        backend_(backend),
        max_logits_(request.max_logits),
        logits_a_sequence_(request.max_logits <= request.sequences) {
    std::set<const gguf::Tensor*> mapped;
    for (const auto& planned : plan.tensors) {
      const WeightSource source = source_of(planned);
      const uint64_t resident =
          product(backend.resident_bytes(planned.use, source.type, source.rows / source.experts, source.cols),
                  static_cast<uint64_t>(source.experts));
      weights_ = std::min(weights_ + std::min(resident, kTooMuch), kTooMuch);
      if (resident == 0 && mapped.insert(planned.tensor).second) mapped_ += planned.tensor->bytes.size();
      file_ += source.bytes.size();
    }
    page_ = product(backend.kv_page_bytes(static_cast<int>(hp_.kv_heads), static_cast<int>(hp_.head_dim)), 2);
  }

  Memory at(const Run& run) const {
    Memory memory;
    memory.weights = weights_;
    memory.mapped = mapped_;
    for (int64_t layer = 0; layer < hp_.layers; ++layer) {
      const int64_t pages = KvCache::pages_of(hp_.window_of(layer), run.context, run.chunk);
      memory.kv_cache +=
          product(product(page_, static_cast<uint64_t>(run.sequences)), static_cast<uint64_t>(pages));
      memory.kv_cache = std::min(memory.kv_cache, kTooMuch);
    }
    // Every sequence may have a row in a call, even where the chunk is smaller.
    const int64_t rows = std::max(run.chunk, run.sequences);
    const int64_t logits = logits_a_sequence_ ? run.sequences : std::min(max_logits_, rows);
    const int64_t widest = std::max({hp_.dim, hp_.q_dim(), hp_.mlp_width()});
    memory.activations = Workspace::bytes(hp_, rows, logits, backend_.element_bytes()) +
                         backend_.scratch_bytes({rows, widest, static_cast<int>(hp_.heads),
                                                 static_cast<int>(hp_.head_dim), run.context, run.sequences});
    memory.available = backend_.available_bytes();
    return memory;
  }

  uint64_t weights() const { return weights_ + mapped_; }
  uint64_t resident() const { return weights_; }
  uint64_t file() const { return file_; }

 private:
  const HParams& hp_;
  const Backend& backend_;
  int64_t max_logits_;
  bool logits_a_sequence_;  ///< fewer sequences then need fewer
  uint64_t weights_ = 0;
  uint64_t mapped_ = 0;
  uint64_t file_ = 0;
  uint64_t page_ = 0;  ///< of one layer, keys and values
};

/// The longest context that fits with the run's other values; 0 if not one page does.
int64_t longest_context(const Estimate& estimate, Run run, uint64_t available) {
  int64_t pages = 0;
  for (int64_t step = 1 << 24; step > 0; step /= 2) {
    run.context = (pages + step) * kKvPage;
    if (estimate.at(run).total() <= available) pages += step;
  }
  return pages * kKvPage;
}

/// The largest power of two below `from` for which `fits` holds; 0 if none.
template <class Fits>
int64_t largest_power_below(int64_t from, const Fits& fits) {
  int64_t n = 1;
  while (n * 2 < from) n *= 2;
  for (; n >= 1 && n < from; n /= 2) {
    if (fits(n)) return n;
  }
  return 0;
}

/// What would make it fit: each option alone, largest value; else the smallest chunk and the context beside
/// it.
std::string way_out(const Plan& plan, const Backend& backend, const Estimate& estimate, uint64_t available) {
  if (estimate.weights() > available) {
    if (estimate.resident() > estimate.file() && estimate.file() <= available) {
      return fmt::format(
          "the weights alone take {}; as the file has them (--weights stored) they take about {}",
          bytes_text(estimate.weights()), bytes_text(estimate.file()));
    }
    return fmt::format("the weights alone take {}: no option helps, only a smaller file or more memory",
                       bytes_text(estimate.weights()));
  }
  const Run run{plan.context, plan.sequences, plan.chunk};
  std::vector<std::string> ways;
  if (const auto context = longest_context(estimate, run, available); context > 0) {
    ways.push_back(fmt::format("--context {}", context));
  }
  const auto half_kv = plan.memory.total() - plan.memory.kv_cache / 2;
  if (backend.kv_type() == KvType::f32 && half_kv <= available) ways.emplace_back("--kv-type f16");
  const auto batch = largest_power_below(run.sequences, [&](int64_t n) {
    return estimate.at({run.context, n, run.chunk}).total() <= available;
  });
  if (batch > 0) ways.push_back(fmt::format("--batch {}", batch));
  const auto chunk = largest_power_below(run.chunk, [&](int64_t n) {
    return estimate.at({run.context, run.sequences, n}).total() <= available;
  });
  if (chunk > 0) ways.push_back(fmt::format("--chunk {}", chunk));
  if (ways.empty()) {
    const Run least{run.context, 1, std::min<int64_t>(run.chunk, 16)};
    const auto context = longest_context(estimate, least, available);
    if (context == 0)
      return "no context and no chunk is small enough: only a smaller file or more memory helps";
    return fmt::format("it fits with --context {} --chunk {}{}", context, least.chunk,
                       run.sequences > 1 ? " --batch 1" : "");
  }
  std::string text = "it fits with ";
  for (size_t i = 0; i < ways.size(); ++i) text += (i == 0 ? "" : ", or with ") + ways[i];
  return text;
}

}  // namespace

Memory estimate_memory(const Plan& plan, const Backend& backend, const PlanRequest& request) {
  return Estimate(plan, backend, request).at({plan.context, plan.sequences, plan.chunk});
}

void check_memory(Plan& plan, const Backend& backend, const PlanRequest& request) {
  const auto& m = plan.memory;
  if (m.total() <= m.available) return;
  const Estimate estimate(plan, backend, request);
  plan.problems.push_back(
      {"memory", fmt::format("at most {} (available on {})", bytes_text(m.available), backend.name()),
       fmt::format("{} needed: weights {}, KV cache {} for {} positions, activations {}",
                   bytes_text(m.total()), bytes_text(m.weights + m.mapped), bytes_text(m.kv_cache),
                   plan.context * plan.sequences, bytes_text(m.activations)),
       way_out(plan, backend, estimate, m.available)});
}

std::string bytes_text(uint64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (bytes >= 1ull << 30) return fmt::format("{:.2f} GiB", b / (1ull << 30));
  if (bytes >= 1ull << 20) return fmt::format("{:.1f} MiB", b / (1ull << 20));
  if (bytes >= 1ull << 10) return fmt::format("{:.1f} KiB", b / (1ull << 10));
  return fmt::format("{} bytes", bytes);
}

}  // namespace greta
