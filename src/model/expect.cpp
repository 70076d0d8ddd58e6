#include "model/expect.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "model/metadata.h"

namespace greta {

namespace {

struct PinField {
  std::string_view name;
  int64_t (*number)(const HParams& hp);  ///< null: a text
};

constexpr PinField kFields[] = {
    {"dim", [](const HParams& hp) { return hp.dim; }},
    {"layers", [](const HParams& hp) { return hp.layers; }},
    {"heads", [](const HParams& hp) { return hp.heads; }},
    {"kv_heads", [](const HParams& hp) { return hp.kv_heads; }},
    {"head_dim", [](const HParams& hp) { return hp.head_dim; }},
    {"ffn_dim", [](const HParams& hp) { return hp.ffn_dim; }},
    {"vocab", [](const HParams& hp) { return hp.vocab; }},
    {"context", [](const HParams& hp) { return hp.context; }},
    {"arch", nullptr},
    {"sha256", nullptr},
    {"tokenizer", nullptr},
};

std::string field_names() {
  std::string names;
  for (const auto& field : kFields) {
    if (!names.empty()) names += ", ";
    names += field.name;
  }
  return names;
}

const PinField* find_field(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kFields), std::end(kFields), [&](const auto& f) { return f.name == name; });
  return found == std::end(kFields) ? nullptr : found;
}

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

bool is_sha256(const std::string& text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Pin parse_pin(const std::string& part) {
  const auto equals = part.find('=');
  const auto name = part.substr(0, equals);
  const auto* field = find_field(name);
  if (field == nullptr) fail("--expect: unknown field {}; the fields are {}", quoted(name), field_names());
  if (equals == std::string::npos) fail("--expect: {} needs a value, as in dim=4096,layers=32", name);
  Pin pin{name, part.substr(equals + 1), 0};
  if (field->number != nullptr) {
    const char* end = pin.text.data() + pin.text.size();
    const auto [stop, error] = std::from_chars(pin.text.data(), end, pin.number);
    if (error != std::errc() || stop != end || pin.number <= 0) {
      fail("--expect: {} needs a whole number above 0, got {}", name, quoted(pin.text));
    }
  } else if (name == "sha256") {
    pin.text = lower(pin.text);
    if (!is_sha256(pin.text)) fail("--expect: sha256 needs 64 hexadecimal digits, got {}", quoted(pin.text));
  } else if (pin.text.empty()) {
    fail("--expect: {} needs a value", name);
  }
  return pin;
}

void check_text(const Pin& pin, const std::string& got, std::string_view unknown, Plan& plan) {
  if (pin.text == got) return;
  plan.problems.push_back({"--expect " + pin.field, pin.text, got.empty() ? std::string(unknown) : got,
                           "another model than the one pinned"});
}

}  // namespace

std::vector<Pin> parse_pins(const std::string& expect) {
  std::vector<Pin> pins;
  for (size_t begin = 0; begin < expect.size();) {
    const size_t end = std::min(expect.find(',', begin), expect.size());
    auto pin = parse_pin(expect.substr(begin, end - begin));
    for (const auto& other : pins) {
      if (other.field == pin.field) fail("--expect: {} is given twice", pin.field);
    }
    pins.push_back(std::move(pin));
    if (end + 1 == expect.size()) fail("--expect: a field is missing after the last comma");
    begin = end + 1;
  }
  return pins;
}

void check_pins(const std::vector<Pin>& pins, const PlanRequest& request, Plan& plan) {
  for (const auto& pin : pins) {
    const auto* field = find_field(pin.field);
    if (field->number != nullptr) {
      const int64_t got = field->number(plan.hp);
      if (got == pin.number) continue;
      plan.problems.push_back(
          {"--expect " + pin.field, pin.text,
           got == 0 ? std::string("nothing that the file states validly") : fmt::format("{}", got),
           "another model than the one pinned"});
    } else if (pin.field == "arch") {
      check_text(pin, plan.hp.architecture, "no architecture", plan);
    } else if (pin.field == "sha256") {
      if (!request.file_sha256) throw Error("--expect: the file's SHA-256 was not computed for its pin");
      check_text(pin, lower(*request.file_sha256), "", plan);
    } else {
      check_text(pin, request.tokenizer, "no tokenizer", plan);
    }
  }
}

bool pins_sha256(const std::string& expect) {
  const auto pins = parse_pins(expect);
  return std::any_of(pins.begin(), pins.end(), [](const auto& pin) { return pin.field == "sha256"; });
}

}  // namespace greta
