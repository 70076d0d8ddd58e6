#pragma once
// A model on a device, fed with tokens of several sequences at once.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decoder/forward.h"
#include "gguf/gguf.h"
#include "model/plan.h"
#include "tokenizer/tokenizer.h"

namespace greta {

/// A model file and its tokenizer, before any device is involved.
struct ModelFile {
  gguf::File file;
  std::unique_ptr<Tokenizer> tokenizer;

  /// `tokenizer_path` empty: the file's own; else a SentencePiece model that overrides it.
  static ModelFile open(const std::string& path, const std::string& tokenizer_path = "");
};

struct EngineOptions {
  std::string device = "cpu";
  BackendOptions backend;
  /// What the user asked for; default: the model's. A model with long and short rotary factors takes those of
  /// this context, whatever the length of a text: the bits of a token depend on nothing behind it.
  std::optional<int64_t> context;
  std::optional<int64_t> room;  ///< positions that a sequence may reach; default: the context
  int64_t chunk = 512;          ///< most rows in one forward call
  int64_t sequences = 1;
  bool all_logits =
      false;  ///< room for the logits of every row of a call (traces, tests), not one a sequence
  std::string expect;
  /// Puts something between the forward pass and the backend (bisect's planted faults).
  std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)> between;
};

/// New tokens of one sequence in one call.
struct Feed {
  enum class Logits { none, last, all };
  int64_t sequence = 0;
  std::span<const TokenId> tokens;
  Logits logits = Logits::last;
};

class Engine {
 public:
  using Progress = std::function<void(uint64_t done, uint64_t total)>;

  /// What would be loaded, and every reason why not. Allocates nothing on the device.
  static Plan plan(const ModelFile& model, const Backend& backend, const EngineOptions& options);

  /// Errors: the plan does not fit (one line for each problem), the device is not there.
  Engine(const ModelFile& model, const EngineOptions& options, const Progress& progress = {});

  const HParams& hparams() const { return model_.hp; }
  const Plan& plan() const { return plan_; }
  const Model& model() const { return model_; }
  Backend& backend() { return *backend_; }
  const KvCache& cache() const { return *cache_; }
  double load_seconds() const { return load_seconds_; }  ///< of the weights alone
  int64_t chunk() const { return options_.chunk; }
  int64_t context() const { return cache_->context(); }

  /// One forward call on all feeds together (at most chunk() tokens; a sequence at most once). Afterwards
  /// logits(i) is the i-th row asked for, in the order of the feeds. Errors: token ids out of range, a
  /// sequence past the context.
  void evaluate(std::span<const Feed> feeds, Tap* tap = nullptr);

  struct LogitsRow {
    int64_t sequence = 0;
    int64_t position = 0;
  };
  const std::vector<LogitsRow>& logits_rows() const { return rows_; }
  /// Row i of the last call: [vocab]. The span lives until the next evaluate() or logits().
  std::span<const float> logits(size_t i);
  /// The same in FP64, exact where the device's own is: [vocab].
  void logits(size_t i, std::span<double> out) const;
  /// Of row i's exact bits (numerics.md section 2).
  uint64_t logits_row_hash(size_t i);

  /// Feeds `tokens` to a sequence, chunk by chunk.
  void feed_all(int64_t sequence, std::span<const TokenId> tokens, Feed::Logits logits, Tap* tap = nullptr,
                const std::function<void()>& after_call = {});

  int64_t length(int64_t sequence) const { return cache_->length(sequence); }
  void clear(int64_t sequence) { cache_->clear(sequence); }
  /// Forgets the positions from `length` on and returns how many are left (KvCache::truncate).
  int64_t truncate(int64_t sequence, int64_t length) { return cache_->truncate(sequence, length); }

 private:
  EngineOptions options_;
  std::unique_ptr<Backend> backend_;
  Plan plan_;
  Model model_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Workspace> workspace_;
  double load_seconds_ = 0.0;
  std::vector<LogitsRow> rows_;
  std::vector<float> logits_;
  std::optional<size_t> logits_held_;  ///< the row that `logits_` has, of the last call
};

}  // namespace greta
