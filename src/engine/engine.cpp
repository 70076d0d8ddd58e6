#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "base/error.h"
#include "trace/row_hash.h"

namespace greta {
namespace {

PlanRequest request_of(const ModelFile& model, const EngineOptions& options) {
  PlanRequest request;
  request.context = options.context;
  request.room = options.room;
  request.sequences = options.sequences;
  request.chunk = options.chunk;
  request.max_logits = options.all_logits ? options.chunk : options.sequences;
  request.expect = options.expect;
  if (pins_sha256(options.expect)) request.file_sha256 = model.file.sha256();
  request.tokenizer = model.tokenizer->description();
  request.tokenizer_vocab = model.tokenizer->vocab_size();
  return request;
}

}  // namespace

ModelFile ModelFile::open(const std::string& path, const std::string& tokenizer_path) {
  ModelFile model{gguf::File::open(path), nullptr};
  model.tokenizer = tokenizer_path.empty() ? Tokenizer::from_gguf(model.file)
                                           : Tokenizer::from_sentencepiece(tokenizer_path);
  return model;
}

Plan Engine::plan(const ModelFile& model, const Backend& backend, const EngineOptions& options) {
  return make_plan(model.file, backend, request_of(model, options));
}

Engine::Engine(const ModelFile& model, const EngineOptions& options, const Progress& progress)
    : options_(options),
      backend_(options.between ? options.between(make_backend(options.device, options.backend))
                               : make_backend(options.device, options.backend)),
      plan_(plan(model, *backend_, options)) {
  if (options.chunk < 1 || options.sequences < 1)
    fail("--chunk {} with {} sequences: both must be at least 1", options.chunk, options.sequences);
  require_fit(plan_, model.file);
  const auto start = std::chrono::steady_clock::now();
  model_ = load_model(model.file, plan_, *backend_, progress);
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  cache_ = std::make_unique<KvCache>(*backend_, model_.hp, plan_.sequences, plan_.context, options.chunk);
  workspace_ = std::make_unique<Workspace>(*backend_, model_.hp, options.chunk,
                                           options.all_logits ? options.chunk : options.sequences);
}

void Engine::evaluate(std::span<const Feed> feeds, Tap* tap) {
  int64_t total = 0;
  std::set<int64_t> seen;
  for (const Feed& feed : feeds) {
    if (feed.sequence < 0 || feed.sequence >= cache_->sequences() || !seen.insert(feed.sequence).second)
      fail("sequence {} of a call: expected each of 0 to {} at most once", feed.sequence,
           cache_->sequences() - 1);
    total += static_cast<int64_t>(feed.tokens.size());
    for (const TokenId id : feed.tokens)
      if (id < 0 || id >= model_.hp.vocab)
        fail("token id {}: the vocabulary has ids 0 to {}", id, model_.hp.vocab - 1);
    if (length(feed.sequence) + static_cast<int64_t>(feed.tokens.size()) > context())
      fail("sequence {} would reach {} positions, the context holds {} (raise --context)", feed.sequence,
           length(feed.sequence) + static_cast<int64_t>(feed.tokens.size()), context());
  }
  if (total < 1 || total > options_.chunk)
    fail("a call of {} tokens: expected 1 to {} (--chunk)", total, options_.chunk);

  std::vector<int32_t> tokens, positions, sequences, picked;
  rows_.clear();
  logits_held_.reset();
  for (const Feed& feed : feeds) {
    const int64_t start = length(feed.sequence);
    cache_->grow(feed.sequence, static_cast<int64_t>(feed.tokens.size()));
    for (size_t i = 0; i < feed.tokens.size(); ++i) {
      const int64_t position = start + static_cast<int64_t>(i);
      const bool last = i + 1 == feed.tokens.size();
      if (feed.logits == Feed::Logits::all || (last && feed.logits == Feed::Logits::last)) {
        picked.push_back(static_cast<int32_t>(tokens.size()));
        rows_.push_back({feed.sequence, position});
      }
      tokens.push_back(feed.tokens[i]);
      positions.push_back(static_cast<int32_t>(position));
      sequences.push_back(static_cast<int32_t>(feed.sequence));
    }
  }
  const BatchView batch{total, tokens.data(), positions.data(), sequences.data(), cache_->sequences()};
  forward(*backend_, model_, *cache_, batch, picked, *workspace_, tap);
}

std::span<const float> Engine::logits(size_t i) {
  const auto vocab = static_cast<size_t>(model_.hp.vocab);
  const auto row = static_cast<int64_t>(i), rows = static_cast<int64_t>(rows_.size());
  if (const float* at = backend_->in_place(workspace_->logits, row, rows - row)) return {at, vocab};
  if (logits_held_ != i) {
    logits_held_.reset();
    logits_.resize(vocab);
    backend_->read(workspace_->logits, row, 1, logits_.data());
    logits_held_ = i;
  }
  return logits_;
}

void Engine::logits(size_t i, std::span<double> out) const {
  backend_->read(workspace_->logits, static_cast<int64_t>(i), 1, out.data());
}

uint64_t Engine::logits_row_hash(size_t i) {
  if (backend_->element_bytes() == sizeof(float)) return row_hash(logits(i));
  std::vector<double> row(static_cast<size_t>(model_.hp.vocab));
  logits(i, row);
  return row_hash(std::span<const double>(row));
}

void Engine::feed_all(int64_t sequence, std::span<const TokenId> tokens, Feed::Logits logits, Tap* tap,
                      const std::function<void()>& after_call) {
  const auto chunk = static_cast<size_t>(options_.chunk);
  for (size_t done = 0; done < tokens.size(); done += chunk) {
    const auto part = tokens.subspan(done, std::min(chunk, tokens.size() - done));
    const bool last = done + part.size() == tokens.size();
    const auto wanted = logits == Feed::Logits::last && !last ? Feed::Logits::none : logits;
    const Feed feed{sequence, part, wanted};
    evaluate({&feed, 1}, tap);
    if (after_call) after_call();
  }
}

}  // namespace greta
