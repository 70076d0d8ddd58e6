#include "engine/generator.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "base/error.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Holds text back while it could still be the beginning of a stop string.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(&stops) {}

  /// Text that is safe to show now. `stopped()` tells whether a stop string was met; nothing follows it.
  std::string push(const std::string& text) {
    pending_ += text;
    size_t first = std::string::npos;
    for (const auto& stop : *stops_)
      if (!stop.empty()) first = std::min(first, pending_.find(stop));
    if (first != std::string::npos) {
      stopped_ = true;
      pending_.resize(first);
      return std::exchange(pending_, {});
    }
    const size_t hold = held_back();
    std::string ready = pending_.substr(0, pending_.size() - hold);
    pending_.erase(0, ready.size());
    return ready;
  }
  std::string finish() { return std::exchange(pending_, {}); }
  bool stopped() const { return stopped_; }

 private:
  /// Length of the longest tail that a stop string begins with.
  size_t held_back() const {
    size_t longest = 0;
    for (const auto& stop : *stops_)
      for (size_t n = std::min(stop.size(), pending_.size()); n > longest; --n)
        if (pending_.compare(pending_.size() - n, n, stop, 0, n) == 0) longest = n;
    return longest;
  }

  const std::vector<std::string>* stops_;
  std::string pending_;
  bool stopped_ = false;
};

/// One request on its way.
struct Active {
  size_t index;
  const Request* request;
  Generation result;
  std::vector<TokenId> history;  ///< prompt and produced tokens
  size_t fed = 0;                ///< of history
  StreamDecoder decoder;
  StopFilter filter;
  std::optional<Finish> finished;

  Active(size_t i, const Request& r, const Tokenizer& tokenizer)
      : index(i), request(&r), history(r.prompt), decoder(tokenizer, r.prompt.back()), filter(r.stop) {}
  bool in_prompt() const { return fed < request->prompt.size(); }
};

class Scheduler {
 public:
  Scheduler(Engine& engine, const Tokenizer& tokenizer, const std::vector<Request>& requests,
            const GenerateHooks& hooks, GenerateStats* stats)
      : engine_(engine),
        tokenizer_(tokenizer),
        requests_(requests),
        hooks_(hooks),
        stats_(stats),
        slots_(static_cast<size_t>(engine.cache().sequences())),
        results_(requests.size()) {
    for (const Request& request : requests) {
      validate(request);
      prompt_tokens_ += static_cast<int64_t>(request.prompt.size());
    }
  }

  std::vector<Generation> run() {
    for (size_t slot = 0; slot < slots_.size(); ++slot) engine_.clear(static_cast<int64_t>(slot));
    for (;;) {
      admit();
      if (std::all_of(slots_.begin(), slots_.end(), [](const auto& s) { return s == nullptr; })) {
        if (next_ >= requests_.size()) break;
        continue;  // requests for no tokens came and went
      }
      if (hooks_.cancel != nullptr && hooks_.cancel->load()) {
        for (auto& slot : slots_)
          if (slot) slot->finished = Finish::cancelled;
        for (; next_ < requests_.size(); ++next_) results_[next_].finish = Finish::cancelled;
        retire();
        break;
      }
      step();
      retire();
    }
    return std::move(results_);
  }

 private:
  void validate(const Request& request) const {
    request.sampling.validate();
    if (request.prompt.empty())
      fail("the prompt is empty: 0 tokens, at least 1 is needed (--prompt, --prompt-file)");
    if (static_cast<int64_t>(request.prompt.size()) > engine_.context())
      fail("the prompt has {} tokens, the context holds {} (raise --context, or shorten the prompt)",
           request.prompt.size(), engine_.context());
    if (request.max_tokens < 0) fail("--max-tokens {}: expected 0 or more", request.max_tokens);
  }

  void admit() {
    for (auto& slot : slots_) {
      if (slot || next_ >= requests_.size()) continue;
      slot = std::make_unique<Active>(next_, requests_[next_], tokenizer_);
      if (slot->request->max_tokens == 0) slot->finished = Finish::length;
      ++next_;
    }
    retire();
  }

  /// One forward call: the decoding sequences' one token each, then prompts' chunks in what room is left.
  void step() {
    std::vector<Feed> feeds;
    int64_t room = engine_.chunk();
    int64_t decoding = 0;
    for (const bool prompts : {false, true})
      for (size_t slot = 0; slot < slots_.size() && room > 0; ++slot) {
        Active* active = slots_[slot].get();
        if (active == nullptr || active->in_prompt() != prompts) continue;
        const size_t count = std::min(active->history.size() - active->fed, static_cast<size_t>(room));
        const bool last = active->fed + count == active->history.size();
        feeds.push_back({static_cast<int64_t>(slot), std::span(active->history).subspan(active->fed, count),
                         last ? Feed::Logits::last : Feed::Logits::none});
        active->fed += count;
        room -= static_cast<int64_t>(count);
        decoding += prompts ? 0 : 1;
        prompt_done_ += prompts ? static_cast<int64_t>(count) : 0;
      }
    const auto start = Clock::now();
    engine_.evaluate(feeds);
    const auto rows = engine_.logits_rows();
    for (size_t i = 0; i < rows.size(); ++i)
      choose(*slots_[static_cast<size_t>(rows[i].sequence)], i, rows[i].position);
    account(feeds, decoding, seconds_since(start));
    deliver();
  }

  /// A call that carries any prompt counts as prefill; its decoding rows ride along and are not timed as
  /// decode.
  void account(const std::vector<Feed>& feeds, int64_t decoding, double seconds) {
    const bool prefill = decoding < static_cast<int64_t>(feeds.size());
    if (prefill && hooks_.on_prefill) hooks_.on_prefill(prompt_done_, prompt_tokens_);
    if (stats_ == nullptr) return;
    ++stats_->calls;
    stats_->prompt_tokens = prompt_done_;
    (prefill ? stats_->prefill_seconds : stats_->decode_seconds) += seconds;
    if (!prefill) stats_->decoded_tokens += decoding;
  }

  void choose(Active& active, size_t row, int64_t position) {
    const auto logits = engine_.logits(row);
    active.result.logits_hash += positioned(engine_.logits_row_hash(row), position);
    const Request& request = *active.request;
    const TokenId id = sample(logits, request.sampling, active.history, request.sequence, position);
    const auto& ends = tokenizer_.end_tokens();
    if (!request.ignore_eos && std::find(ends.begin(), ends.end(), id) != ends.end()) {
      active.finished = Finish::stop;
      return;
    }
    active.history.push_back(id);
    active.result.ids.push_back(id);
    if (request.logprobs >= 0) active.result.logprobs.push_back(logprobs_of(logits, id, request.logprobs));
    show(active, active.filter.push(active.decoder.push(id)));
    if (active.filter.stopped()) {
      active.finished = Finish::stop_string;
    } else if (static_cast<int64_t>(active.result.ids.size()) >= request.max_tokens) {
      active.finished = Finish::length;
    } else if (static_cast<int64_t>(active.history.size()) > engine_.context()) {
      active.finished = Finish::context;
    }
  }

  void show(Active& active, const std::string& text) {
    if (text.empty()) return;
    active.result.text += text;
    shown_.emplace_back(active.index, text);
  }

  /// Outside of what is timed: whoever takes the text takes the time he likes.
  void deliver() {
    for (const auto& [index, text] : std::exchange(shown_, {}))
      if (hooks_.on_text) hooks_.on_text(index, text);
  }

  void retire() {
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      auto& active = slots_[slot];
      if (!active || !active->finished) continue;
      if (!active->filter.stopped()) {
        show(*active, active->filter.push(active->decoder.finish()));
        if (active->filter.stopped()) active->finished = Finish::stop_string;
        show(*active, active->filter.finish());
        deliver();
      }
      active->result.finish = *active->finished;
      results_[active->index] = std::move(active->result);
      active.reset();
      engine_.clear(static_cast<int64_t>(slot));
    }
  }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const std::vector<Request>& requests_;
  const GenerateHooks& hooks_;
  GenerateStats* stats_;
  std::vector<std::unique_ptr<Active>> slots_;  ///< one for each sequence of the engine
  std::vector<Generation> results_;
  std::vector<std::pair<size_t, std::string>> shown_;  ///< request and text, not delivered yet
  size_t next_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t prompt_done_ = 0;
};

}  // namespace

std::string_view name_of(Finish finish) {
  switch (finish) {
    case Finish::stop:
      return "stop";
    case Finish::stop_string:
      return "stop_string";
    case Finish::length:
      return "length";
    case Finish::context:
      return "context";
    case Finish::cancelled:
      return "cancelled";
  }
  return "";
}

std::vector<Generation> generate(Engine& engine, const Tokenizer& tokenizer,
                                 const std::vector<Request>& requests, const GenerateHooks& hooks,
                                 GenerateStats* stats) {
  return Scheduler(engine, tokenizer, requests, hooks, stats).run();
}

}  // namespace greta
