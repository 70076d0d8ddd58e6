#pragma once
// Passes recorded as graphs, and the names of what runs on a device.
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "backend/gpu/device.h"

namespace greta::gpu {

/// What a call of the forward pass is, for the report of a fault.
struct OperatorName {
  const char* name = "";
  int layer = kNoLayer;
  Stage stage = Stage::embed_out;
  auto operator<=>(const OperatorName&) const =
      default;  // NOLINT(modernize-use-nullptr): of the default's code
};

/// Kernels by number, each with the operator that it served: the same number for the same two.
class KernelNames {
 public:
  uint32_t id(const char* kernel, const OperatorName& of);
  std::string name(uint32_t id) const;

 private:
  std::map<std::pair<std::string_view, OperatorName>, uint32_t> ids_;
  std::vector<std::pair<const char*, OperatorName>> names_;
};

/// Everything that a pass's launches depend on but what PassData holds.
struct RecordingKey {
  const void* model = nullptr;
  const void* workspace = nullptr;
  const void* cache = nullptr;
  int64_t rows = 0;
  int64_t picked = 0;
  int64_t tiles = 0;
  bool alone = false;
  int64_t splits = 0;
  auto operator<=>(const RecordingKey&) const = default;  // NOLINT(modernize-use-nullptr)
};

/// A pass that comes a second time is recorded, from the third on it is launched as one graph.
class Recordings {
 public:
  using Route = Backend::Route;
  /// Passes of more rows are not recorded: their kernels take longer than their launches.
  static constexpr int64_t kMostRows = 64;
  /// Recordings kept; then all are forgotten.
  static constexpr size_t kMost = 64;

  /// A pass begins. True: it had been recorded and has been launched.
  bool begin(const RecordingKey& key, Device& device, const Route& route);
  /// What it launches, by kernel.
  const Route& route(const RecordingKey& key) const { return entries_.at(key).route; }
  void end(Device& device, const Route& route);
  /// The pass needs the host in its middle: it is never recorded.
  void refuse(Device& device);
  /// A pass that did not end.
  void abort(Device& device);
  /// Memory that recordings may use is going.
  void forget() { entries_.clear(); }
  bool recording() const { return recording_; }

 private:
  struct Entry {
    int seen = 0;
    bool refused = false;
    std::unique_ptr<Graph> graph;
    Route route;
  };
  std::map<RecordingKey, Entry> entries_;
  RecordingKey current_;
  bool open_ = false;
  bool recording_ = false;
  Route before_;
};

}  // namespace greta::gpu
