#include "bisect/subject.h"

#include <charconv>
#include <set>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"

namespace greta {
namespace {

std::vector<std::string> parts_of(std::string_view text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  // A fault's own commas: `fault=ID@layer,token,seed`.
  std::vector<std::string> joined;
  for (auto& part : parts) {
    if (!joined.empty() && joined.back().starts_with("fault=") && part.find('=') == std::string::npos) {
      joined.back() += "," + part;
    } else {
      joined.push_back(std::move(part));
    }
  }
  return joined;
}

template <class T>
T choice(const std::string& subject, const std::string& key, const std::string& value,
         const std::vector<std::pair<std::string_view, T>>& known) {
  std::vector<std::string_view> names;
  for (const auto& [name, result] : known) {
    if (name == value) return result;
    names.push_back(name);
  }
  fail("subject {}: {}={}: expected one of {}", subject, key, value, fmt::join(names, ", "));
}

int64_t number(const std::string& subject, const std::string& key, const std::string& value, int64_t most) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
  if (error != std::errc() || end != value.data() + value.size() || n < 1 || n > most)
    fail("subject {}: {}={}: expected a whole number from 1 to {}", subject, key, value, most);
  return n;
}

void set_key(Subject& s, const std::string& key, const std::string& value) {
  if (key == "file") {
    if (value.empty()) fail("subject {}: file= without a path", s.text);
    s.file = value;
  } else if (key == "isa") {
    std::vector<std::pair<std::string_view, Isa>> names{{"auto", Isa::automatic}};
    for (const Isa isa : kIsas) names.emplace_back(name_of(isa), isa);
    s.backend.isa = choice<Isa>(s.text, key, value, names);
  } else if (key == "weights") {
    s.backend.weights = choice<WeightMode>(
        s.text, key, value,
        {{"stored", WeightMode::stored}, {"f32", WeightMode::f32}, {"int8", WeightMode::int8}});
  } else if (key == "activations") {
    s.backend.activations =
        choice<Activations>(s.text, key, value, {{"16", Activations::bits16}, {"8", Activations::bits8}});
  } else if (key == "kv-type") {
    s.backend.kv_type = choice<KvType>(s.text, key, value,
                                       {{"f16", KvType::f16}, {"bf16", KvType::bf16}, {"f32", KvType::f32}});
  } else if (key == "phase") {
    s.phase = choice<Phase>(s.text, key, value, {{"prefill", Phase::prefill}, {"decode", Phase::decode}});
  } else if (key == "chunk") {
    s.chunk = number(s.text, key, value, 1 << 20);
  } else if (key == "batch") {
    s.batch = number(s.text, key, value, 256);
  } else if (key == "threads") {
    s.backend.threads = static_cast<int>(number(s.text, key, value, 4096));
  } else if (key == "fault") {
    s.fault = parse_fault(value);
  } else {
    fail(
        "subject {}: unknown key '{}'; expected file, isa, weights, activations, kv-type, phase, chunk, "
        "batch, threads or "
        "fault",
        s.text, key);
  }
}

}  // namespace

Subject parse_subject(std::string_view text, const Subject& defaults) {
  Subject s = defaults;
  s.text = text;
  const auto parts = parts_of(text);
  const std::string& head = parts.front();
  if (head.starts_with("trace=")) {
    s.trace = head.substr(6);
    if (s.trace.empty()) fail("subject {}: trace= without a path", s.text);
    if (parts.size() > 1) fail("subject {}: a recorded trace takes no keys, got '{}'", s.text, parts[1]);
    return s;
  }
  if (head != "cpu" && head != "reference" && !is_gpu(head))
    fail("subject {}: expected reference, cpu, cuda:0, hip:0 or trace=FILE first, got '{}'", s.text, head);
  s.device = head;
  std::set<std::string> given;
  if (head == "reference") {
    const int threads = s.backend.threads;
    s.backend = {};
    s.backend.threads = threads;
    s.backend.kv_type = KvType::f64;
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    if (equals == std::string::npos)
      fail("subject {}: expected key=value after the device, got '{}'", s.text, parts[i]);
    const std::string key = parts[i].substr(0, equals);
    if (!given.insert(key).second)
      fail("subject {}: expected each key once, got {} again with '{}'; leave one of them out", s.text, key,
           parts[i]);
    if (head == "reference" && (key == "isa" || key == "weights" || key == "activations" || key == "kv-type"))
      fail("subject {}: the reference computes the file's own weights in FP64: it has no {}", s.text, key);
    if (head == "reference" && key == "fault")
      fail("subject {}: a fault is planted in what is judged, never in the judge; expected a device (cpu)",
           s.text);
    set_key(s, key, parts[i].substr(equals + 1));
  }
  return s;
}

}  // namespace greta
