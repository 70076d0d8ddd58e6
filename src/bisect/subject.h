#pragma once
// What is compared: a model on a device with a way to schedule its tokens, or a recorded trace (bisect.md,
// "Subjects").
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "bisect/faults.h"

namespace greta {

enum class Phase {
  normal,   ///< as `run` does: the prompt in chunks, then one token at a time
  prefill,  ///< the same, by name
  decode,   ///< every prompt token through the one-token path
};

struct Subject {
  std::string text;            ///< as it was given
  std::string device = "cpu";  ///< make_backend's
  BackendOptions backend;
  std::string trace;  ///< a recorded run instead of a device: its path
  std::string file;   ///< another model file; empty: the command's
  Phase phase = Phase::normal;
  std::optional<int64_t> chunk;  ///< most tokens of ours in one call; default: the command's
  int64_t batch = 1;             ///< sequences in a call: batch - 1 neighbours of other texts and lengths
  std::optional<FaultSpec> fault;

  bool is_trace() const { return !trace.empty(); }
  bool is_reference() const { return device == "reference" && trace.empty(); }
};

/// `DEVICE[,key=value...]` or `trace=FILE`. `defaults`: what the command's own options say. Errors: unknown
/// devices and keys (with the known ones), values that are none, keys that the device does not have.
Subject parse_subject(std::string_view text, const Subject& defaults);

}  // namespace greta
