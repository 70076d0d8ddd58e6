#include "backend/gpu/recordings.h"

#include "base/error.h"

namespace greta::gpu {

uint32_t KernelNames::id(const char* kernel, const OperatorName& of) {
  const auto [at, fresh] = ids_.try_emplace({kernel, of}, static_cast<uint32_t>(names_.size() + 1));
  if (fresh) names_.emplace_back(kernel, of);
  return at->second;
}

std::string KernelNames::name(uint32_t id) const {
  if (id == 0 || id > names_.size()) return "no kernel yet";
  const auto& [kernel, of] = names_[id - 1];
  if (std::string_view(of.name) == "loading") return fmt::format("kernel {} while loading weights", kernel);
  return fmt::format("kernel {} of {} ({})", kernel, of.name, trace_name(of.layer, of.stage));
}

bool Recordings::begin(const RecordingKey& key, Device& device, const Route& route) {
  if (key.rows > kMostRows) return false;
  if (entries_.size() >= kMost && !entries_.contains(key)) entries_.clear();
  Entry& entry = entries_[key];
  if (entry.graph) {
    device.launch(*entry.graph);
    return true;
  }
  current_ = key;
  open_ = true;
  if (entry.refused || ++entry.seen < 2) return false;
  before_ = route;
  device.begin_capture();
  recording_ = true;
  return false;
}

void Recordings::end(Device& device, const Route& route) {
  open_ = false;
  if (!recording_) return;
  recording_ = false;
  Entry& entry = entries_[current_];
  entry.graph = device.end_capture();
  for (const auto& [kernel, count] : route) {
    const auto earlier = before_.find(kernel);
    const uint64_t fresh = count - (earlier == before_.end() ? 0 : earlier->second);
    if (fresh > 0) entry.route[kernel] = fresh;
  }
  device.launch(*entry.graph);
}

void Recordings::refuse(Device& device) {
  if (!open_) return;
  entries_[current_].refused = true;
  if (!recording_) return;
  abort(device);
  fail("a pass that needs the host in its middle was being recorded");
}

void Recordings::abort(Device& device) {
  open_ = false;
  if (!recording_) return;
  recording_ = false;
  entries_[current_].refused = true;
  try {
    device.end_capture();
  } catch (const Error&) {  // what spoilt it has been told already
  }
}

}  // namespace greta::gpu
