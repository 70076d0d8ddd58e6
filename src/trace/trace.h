#pragma once
// Recording stages to a safetensors file, and hashing them (cli.md: "A trace file is safetensors").
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "decoder/tap.h"

namespace greta {

/// What to record. An empty set means all.
struct TraceSelection {
  std::set<int> layers;
  std::set<Stage> stages;
  std::set<int64_t> positions;
  bool wants(int layer, Stage stage) const;
  bool wants_position(int64_t position) const { return positions.empty() || positions.contains(position); }
};

/// "0,1,2,4,8" or "0,5-9" as a set of non-negative numbers below `limit`. Errors: what is not such a list, a
/// number past the limit; `what` names the option.
std::set<int64_t> parse_number_list(const std::string& text, int64_t limit, const std::string& what);
/// "attn_out,logits": errors list the stages.
std::set<Stage> parse_stage_list(const std::string& text);

/// How the recorded device rounds, for the trace's metadata key `arithmetic`: "float64" (the reference), or
/// the keys of a bisect subject that say it, "cpu,weights=stored,activations=16,kv-type=f16". Other programs
/// write "float64" or "float32": any order of addition in that precision, nothing else rounded.
std::string arithmetic_text(std::string_view device, const BackendOptions& options);

/// Keeps the chosen rows of every chosen stage.
class TraceRecorder : public Tap {
 public:
  explicit TraceRecorder(TraceSelection selection) : selection_(std::move(selection)) {}
  void on_stage(int layer, Stage stage, const StageRows& rows) override;

  struct Row {
    int32_t sequence;
    int32_t position;
    std::vector<double> values;
  };
  using Key = std::pair<int, Stage>;
  const std::map<Key, std::vector<Row>>& rows() const { return rows_; }

  /// Writes the trace. `sequences` are the token ids of each sequence; `wide`: F64 (the reference), else F32.
  /// `metadata` goes into __metadata__. Errors: nothing was recorded, the file cannot be written.
  void write(const std::string& path, const std::vector<std::vector<int32_t>>& sequences, bool wide,
             const std::map<std::string, std::string>& metadata);

 private:
  TraceSelection selection_;
  std::map<Key, std::vector<Row>> rows_;
};

/// The row hash of every (sequence, position, layer, stage), and nothing else.
class HashTap : public Tap {
 public:
  struct Key {
    int32_t sequence;
    int32_t position;
    int layer;
    Stage stage;
    auto operator<=>(const Key&) const =
        default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 reads <=> so
  };
  void on_stage(int layer, Stage stage, const StageRows& rows) override;
  const std::map<Key, uint64_t>& hashes() const { return hashes_; }
  /// The logits hash of a sequence over all rows seen.
  uint64_t logits_hash(int32_t sequence) const;

 private:
  std::map<Key, uint64_t> hashes_;
};

}  // namespace greta
