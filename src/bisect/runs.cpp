#include "bisect/runs.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace greta {

void RunTap::on_stage(int layer, Stage stage, const StageRows& rows) {
  if (stage == Stage::embed_out) {
    ++run_.calls[rows.rows];
    const int32_t* sequences = rows.batch->sequences;
    if (std::adjacent_find(sequences, sequences + rows.rows, std::not_equal_to<>()) != sequences + rows.rows)
      ++run_.shared_calls;
  }
  if (!hashing) return;
  run_.widths[stage] = rows.width;
  tap_.on_stage(layer, stage, rows);
}

HashedRun RunTap::take(Engine& engine) {
  run_.device = engine.backend().description();
  run_.route = engine.backend().route();
  run_.hashes = tap_.hashes();
  return std::move(run_);
}

void feed_alone(Engine& engine, std::span<const TokenId> ids, size_t steps, Tap* tap, const FedTokens& fed) {
  engine.clear(0);
  size_t step = 0;
  const size_t prefilled = ids.size() - std::min(steps, ids.size());
  const auto after_call = [&] {
    if (fed) fed(static_cast<size_t>(engine.length(0)), ids.size());
  };
  engine.feed_all(0, ids.first(prefilled), Feed::Logits::all, tap, after_call);
  for (; prefilled + step < ids.size(); ++step)
    engine.feed_all(0, ids.subspan(prefilled + step, 1), Feed::Logits::all, tap, after_call);
}

void feed_together(Engine& engine, std::span<const std::vector<TokenId>> texts, size_t steps, Tap* tap,
                   const FedTokens& fed) {
  size_t total = 0;
  size_t done = 0;
  std::vector<size_t> at(texts.size(), 0);
  for (size_t s = 0; s < texts.size(); ++s) {
    engine.clear(static_cast<int64_t>(s));
    total += texts[s].size();
  }
  /// Feeds up to `most` tokens of each text, and leaves its last `spare`.
  const auto call = [&](size_t turn, size_t most, size_t spare) {
    std::vector<Feed> feeds;
    auto room = static_cast<size_t>(engine.chunk());
    for (size_t i = 0; i < texts.size() && room > 0; ++i) {
      const size_t s = (i + turn) % texts.size();
      const size_t left = texts[s].size() - at[s] - std::min(spare, texts[s].size() - at[s]);
      size_t wanted = most == 1 ? 1 : 2 + (turn * 13 + s * 29) % most;
      if (most > 1 && left == wanted + 1) ++wanted;  // a row that is left over would be a call of its own
      const size_t count = std::min({wanted, room, left});
      if (count == 0) continue;
      feeds.push_back(
          {static_cast<int64_t>(s), std::span(texts[s]).subspan(at[s], count), Feed::Logits::all});
      at[s] += count;
      room -= count;
      done += count;
    }
    if (feeds.empty()) return false;
    engine.evaluate(feeds, tap);
    if (fed) fed(done, total);
    return true;
  };
  constexpr size_t kMostShare = 97;
  for (size_t turn = 0; call(turn, kMostShare, steps); ++turn) {
  }
  for (size_t turn = 0; call(turn, 1, 0); ++turn) {
  }
}

HashedRun run_alone(Engine& engine, std::span<const TokenId> ids, size_t steps, const FedTokens& fed) {
  RunTap tap;
  engine.backend().reset_route();
  feed_alone(engine, ids, steps, &tap, fed);
  return tap.take(engine);
}

HashedRun run_together(Engine& engine, std::span<const std::vector<TokenId>> texts, size_t steps,
                       const FedTokens& fed) {
  RunTap tap;
  engine.backend().reset_route();
  feed_together(engine, texts, steps, &tap, fed);
  return tap.take(engine);
}

void BitComparison::add(const HashedRun& run) {
  if (run.hashes.size() != expected_.hashes.size())
    fail("one side left {} rows, the other {}: they did not run the same tokens", expected_.hashes.size(),
         run.hashes.size());
  auto expected = expected_.hashes.begin();
  for (const auto& [key, hash] : run.hashes) {
    const auto& [expected_key, expected_hash] = *expected++;
    const Place place{key.sequence, key.position, key.layer, key.stage};
    if (key != expected_key || run.widths.at(key.stage) != expected_.widths.at(key.stage))
      fail("the sides did not leave the same rows: {} of sequence {}, token {} is on one side alone",
           trace_name(key.layer, key.stage), key.sequence, key.position);
    compared_.values += static_cast<uint64_t>(run.widths.at(key.stage));
    ++compared_.rows;
    tokens_.insert({key.sequence, key.position});
    if (key.layer != kNoLayer) layers_.insert(key.layer);
    stages_.insert(key.stage);
    if (hash == expected_hash) continue;
    ++differing_;
    if (!first_ || place < *first_) first_ = place;
  }
  ++compared_.runs;
}

Compared BitComparison::compared() const {
  Compared all = compared_;
  all.tokens = tokens_.size();
  all.layers = layers_.size();
  all.stages = stages_.size();
  return all;
}

}  // namespace greta
