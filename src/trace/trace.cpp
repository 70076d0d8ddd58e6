#include "trace/trace.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "base/error.h"
#include "trace/row_hash.h"
#include "trace/safetensors.h"

namespace greta {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

int64_t parse_number(const std::string& text, int64_t limit, const std::string& whole,
                     const std::string& what) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    fail("{} {}: expected numbers and ranges such as 0,5-9; '{}' is neither", what, whole, text);
  if (value >= limit) fail("{} {}: {} is past the last, {}", what, whole, value, limit - 1);
  return value;
}

/// Elements as the file stores them: F64, or the FP32 that the run had.
std::vector<std::byte> encode(const std::vector<TraceRecorder::Row>& rows, bool wide) {
  std::vector<std::byte> bytes;
  for (const auto& row : rows)
    for (const double value : row.values) {
      const auto narrow = static_cast<float>(value);
      const auto* raw =
          wide ? reinterpret_cast<const std::byte*>(&value) : reinterpret_cast<const std::byte*>(&narrow);
      bytes.insert(bytes.end(), raw, raw + (wide ? sizeof value : sizeof narrow));
    }
  return bytes;
}

std::vector<std::byte> encode(const std::vector<int32_t>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(int32_t));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace

bool TraceSelection::wants(int layer, Stage stage) const {
  if (!stages.empty() && !stages.contains(stage)) return false;
  return layer == kNoLayer || layers.empty() || layers.contains(layer);
}

std::set<int64_t> parse_number_list(const std::string& text, int64_t limit, const std::string& what) {
  std::set<int64_t> numbers;
  for (const std::string& part : split(text)) {
    const size_t dash = part.find('-');
    const int64_t first = parse_number(part.substr(0, dash), limit, text, what);
    const int64_t last =
        dash == std::string::npos ? first : parse_number(part.substr(dash + 1), limit, text, what);
    if (first > last) fail("{} {}: the range {} runs backwards", what, text, part);
    for (int64_t i = first; i <= last; ++i) numbers.insert(i);
  }
  return numbers;
}

std::set<Stage> parse_stage_list(const std::string& text) {
  std::set<Stage> stages;
  for (const std::string& part : split(text)) {
    const auto stage = stage_from_name(part);
    if (!stage) {
      std::vector<std::string> known;
      known.reserve(kStages);
      for (int i = 0; i < kStages; ++i) known.emplace_back(name_of(static_cast<Stage>(i)));
      fail("--stages {}: there is no stage '{}'; expected some of {}", text, part, fmt::join(known, ", "));
    }
    stages.insert(*stage);
  }
  return stages;
}

std::string arithmetic_text(std::string_view device, const BackendOptions& options) {
  if (device == "reference") return "float64";
  const auto weights = [&] {
    switch (options.weights) {
      case WeightMode::f32:
        return "f32";
      case WeightMode::int8:
        return "int8";
      case WeightMode::stored:
        break;
    }
    return "stored";
  };
  const auto kv_type = [&] {
    switch (options.kv_type) {
      case KvType::bf16:
        return "bf16";
      case KvType::f32:
      case KvType::f64:
        return "f32";
      case KvType::f16:
        break;
    }
    return "f16";
  };
  return fmt::format("{},weights={},activations={},kv-type={}", device, weights(),
                     options.activations == Activations::bits8 ? 8 : 16, kv_type());
}

void TraceRecorder::on_stage(int layer, Stage stage, const StageRows& rows) {
  if (!selection_.wants(layer, stage)) return;
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t r = rows.batch_row(i);
    if (!selection_.wants_position(rows.batch->positions[r])) continue;
    Row row{rows.batch->sequences[r], rows.batch->positions[r],
            std::vector<double>(static_cast<size_t>(rows.width))};
    rows.read(i, row.values.data());
    rows_[{layer, stage}].push_back(std::move(row));
  }
}

void TraceRecorder::write(const std::string& path, const std::vector<std::vector<int32_t>>& sequences,
                          bool wide, const std::map<std::string, std::string>& metadata) {
  if (rows_.empty()) fail("nothing was recorded: no chosen stage, layer and position met");
  std::vector<int32_t> tokens;
  std::vector<int32_t> offsets = {0};
  for (const auto& sequence : sequences) {
    tokens.insert(tokens.end(), sequence.begin(), sequence.end());
    offsets.push_back(static_cast<int32_t>(tokens.size()));
  }
  std::vector<int32_t> row_sequence;
  std::vector<int32_t> row_position;
  for (auto& [key, rows] : rows_) {
    std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
      return std::pair(a.sequence, a.position) < std::pair(b.sequence, b.position);
    });
    std::vector<int32_t> sequence;
    std::vector<int32_t> position;
    for (const Row& row : rows) {
      sequence.push_back(row.sequence);
      position.push_back(row.position);
    }
    if (!row_sequence.empty() && (sequence != row_sequence || position != row_position))
      fail("stage {} was recorded at other rows than the stages before it",
           trace_name(key.first, key.second));
    row_sequence = std::move(sequence);
    row_position = std::move(position);
  }

  std::vector<SafeTensor> tensors;
  std::vector<std::vector<std::byte>> storage;
  const auto add = [&](std::string name, std::string dtype, std::vector<int64_t> shape,
                       std::vector<std::byte> bytes) {
    storage.push_back(std::move(bytes));
    tensors.push_back({std::move(name), std::move(dtype), std::move(shape), storage.back()});
  };
  const auto add_integers = [&](const char* name, const std::vector<int32_t>& values) {
    add(name, "I32", {static_cast<int64_t>(values.size())}, encode(values));
  };
  add_integers("token_ids", tokens);
  add_integers("sequence_offsets", offsets);
  add_integers("sequence", row_sequence);
  add_integers("positions", row_position);
  for (const auto& [key, rows] : rows_)
    add(trace_name(key.first, key.second), wide ? "F64" : "F32",
        {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows.front().values.size())},
        encode(rows, wide));
  auto described = metadata;
  described.emplace("schema", "greta-trace-1");
  write_safetensors(path, tensors, described);
}

void HashTap::on_stage(int layer, Stage stage, const StageRows& rows) {
  std::vector<double> values(static_cast<size_t>(rows.width));
  const bool wide = rows.backend->element_bytes() == sizeof(double);
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t r = rows.batch_row(i);
    rows.read(i, values.data());
    hashes_[{rows.batch->sequences[r], rows.batch->positions[r], layer, stage}] = row_hash(values, wide);
  }
}

uint64_t HashTap::logits_hash(int32_t sequence) const {
  uint64_t sum = 0;
  for (const auto& [key, hash] : hashes_)
    if (key.sequence == sequence && key.stage == Stage::logits) sum += positioned(hash, key.position);
  return sum;
}

}  // namespace greta
