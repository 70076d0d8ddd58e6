#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "bisect/verdict.h"
#include "bisect/wiring.h"

namespace greta {

/// A value for each place of a run, dense: [position][slot] of each sequence. What was never set is absent.
template <class T>
class Grid {
 public:
  explicit Grid(int64_t layers = 0) : layers_(layers) {}

  int64_t layers() const { return layers_; }
  void set(const Place& place, const T& value) {
    auto& cells = sequences_[place.sequence];
    const size_t at = static_cast<size_t>(place.token) * stride() + slot(place);
    if (at >= cells.size()) cells.resize((static_cast<size_t>(place.token) + 1) * stride());
    cells[at] = value;
  }
  const T* find(const Place& place) const {
    const auto found = sequences_.find(place.sequence);
    if (found == sequences_.end()) return nullptr;
    const size_t at = static_cast<size_t>(place.token) * stride() + slot(place);
    if (at >= found->second.size() || !found->second[at]) return nullptr;
    return &*found->second[at];
  }
  int64_t positions(int32_t sequence) const {
    const auto found = sequences_.find(sequence);
    return found == sequences_.end() ? 0 : static_cast<int64_t>(found->second.size() / stride());
  }
  /// visit(place, value) in the order of FIRST.
  template <class Visit>
  void each(const Visit& visit) const {
    for (const auto& [sequence, cells] : sequences_)
      for (size_t at = 0; at < cells.size(); ++at)
        if (cells[at]) visit(place_of(sequence, at), *cells[at]);
  }

 private:
  static constexpr auto kFirstOfHead = static_cast<size_t>(Stage::final_norm);
  static constexpr size_t kHead = static_cast<size_t>(kStages) - kFirstOfHead;
  static constexpr size_t kPerLayer = kFirstOfHead - 1;
  size_t stride() const { return 1 + static_cast<size_t>(layers_) * kPerLayer + kHead; }
  /// embed_out first, then the layers' stages, then those from final_norm on: the order of FIRST.
  size_t slot(const Place& place) const {
    if (place.stage == Stage::embed_out) return 0;
    if (place.layer == kNoLayer) return stride() - kHead + static_cast<size_t>(place.stage) - kFirstOfHead;
    return 1 + static_cast<size_t>(place.layer) * kPerLayer + static_cast<size_t>(place.stage) - 1;
  }
  Place place_of(int32_t sequence, size_t at) const {
    const auto token = static_cast<int64_t>(at / stride());
    const size_t s = at % stride();
    if (s == 0) return {sequence, token, kNoLayer, Stage::embed_out};
    const size_t head = stride() - kHead;
    if (s >= head) return {sequence, token, kNoLayer, static_cast<Stage>(kFirstOfHead + s - head)};
    return {sequence, token, static_cast<int>((s - 1) / kPerLayer),
            static_cast<Stage>((s - 1) % kPerLayer + 1)};
  }

  int64_t layers_;
  std::map<int32_t, std::vector<std::optional<T>>> sequences_;
};

}  // namespace greta
