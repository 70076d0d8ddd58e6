#include "model/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "model/expect.h"
#include "model/hparams.h"
#include "model/memory.h"
#include "model/tensor_plan.h"

namespace greta {

namespace {

void check_vocab(const gguf::File& file, const PlanRequest& request, Plan& plan) {
  plan.tokenizer = request.tokenizer;
  plan.tokenizer_vocab = request.tokenizer_vocab;
  const auto tokens = static_cast<int64_t>(request.tokenizer_vocab.value_or(0));
  if (!request.tokenizer_vocab || plan.hp.vocab == 0 || tokens == plan.hp.vocab) return;
  const bool rows = file.find_tensor("token_embd.weight") != nullptr;
  plan.problems.push_back(
      {"tokenizer",
       fmt::format("{} tokens, {}", plan.hp.vocab,
                   rows ? "the rows of token_embd.weight" : "as the metadata's vocab_size"),
       fmt::format("{} tokens", tokens), "the vocabulary belongs to another model"});
}

void check_request(const PlanRequest& request, Plan& plan) {
  plan.sequences = std::max<int64_t>(request.sequences, 1);
  plan.chunk = std::max<int64_t>(request.chunk, 1);
  const int64_t context = request.context.value_or(plan.hp.context);
  plan.context = request.room.value_or(context);
  if (plan.hp.long_rope.dims > 0) {
    const bool past = context > plan.hp.long_rope_from;
    if (past) plan.hp.rope = plan.hp.long_rope;
    plan.hp.rope_scaling = fmt::format("{} factors: a context {} {} positions", past ? "long" : "short",
                                       past ? "past" : "of at most", plan.hp.long_rope_from);
  }
  const auto at_least_one = [&](const char* option, int64_t value) {
    if (value < 1) plan.problems.push_back({option, "at least 1", fmt::format("{}", value), ""});
  };
  at_least_one("--batch", request.sequences);
  at_least_one("--chunk", request.chunk);
  if (!request.context) return;
  at_least_one("--context", *request.context);
  if (plan.hp.context > 0 && *request.context > plan.hp.context) {
    plan.problems.push_back(
        {"--context",
         fmt::format("at most {}, the model's ({}.context_length)", plan.hp.context, plan.hp.architecture),
         fmt::format("{}", *request.context), "the model was not made for longer texts"});
  }
}

/// What the device's operators cannot do, whatever the tensors.
void check_device(const Backend& backend, Plan& plan) {
  const ModelShape shape{plan.hp.head_dim, plan.hp.experts, plan.hp.experts_used};
  for (const ShapeGap& gap : backend.lacks(shape))
    plan.problems.push_back({gap.what, fmt::format("{} on {}", gap.expected, backend.name()),
                             fmt::format("{}", gap.got), "--device cpu computes any"});
}

/// Activations of 8 bits are asked for, and nothing would be rounded to them.
void check_activations(const Backend& backend, Plan& plan) {
  const auto eight = [&](quant::Type type) {
    return backend.arithmetic().matmul(type, 32).operand == OperandRounding::bits8;
  };
  if (!eight(quant::Type::Q8_0)) return;
  const bool some = std::any_of(plan.tensors.begin(), plan.tensors.end(), [&](const PlannedTensor& t) {
    return (t.use == WeightUse::matmul || t.use == WeightUse::experts) && eight(t.tensor->type);
  });
  if (!some)
    plan.problems.push_back({"--activations", "16, as the file has no integer weights", "8",
                             "--weights int8 makes integers of any"});
}

bool dimensions_known(const HParams& hp) {
  return hp.layers > 0 && hp.dim > 0 && hp.heads > 0 && hp.kv_heads > 0 && hp.head_dim > 0 &&
         hp.mlp_width() > 0 && hp.vocab > 0;
}

}  // namespace

std::string Problem::text() const {
  auto line = fmt::format("{}: expected {}, got {}", where, expected, got);
  if (!remedy.empty()) line += fmt::format(" ({})", remedy);
  return line;
}

Plan make_plan(const gguf::File& file, const Backend& backend, const PlanRequest& request) {
  const auto pins = parse_pins(request.expect);
  Plan plan;
  auto read = read_hparams(file);
  plan.hp = std::move(read.hp);
  plan.problems = std::move(read.problems);
  plan.warnings = std::move(read.warnings);
  check_request(request, plan);
  if (read.architecture != nullptr) {
    check_vocab(file, request, plan);
    check_device(backend, plan);
    plan_tensors(file, *read.architecture, backend, plan);
    if (plan.problems.empty()) check_activations(backend, plan);
    if (dimensions_known(plan.hp) && plan.context > 0) {
      plan.memory = estimate_memory(plan, backend, request);
      check_memory(plan, backend, request);
    }
  }
  check_pins(pins, request, plan);
  return plan;
}

void require_fit(const Plan& plan, const gguf::File& file) {
  if (plan.fits()) return;
  std::vector<std::string> lines;
  for (const auto& problem : plan.problems) lines.push_back(problem.text());
  const auto headline = fmt::format("{}: the model does not fit: {} mismatch{}", file.path(), lines.size(),
                                    lines.size() == 1 ? "" : "es");
  throw Error(headline, std::move(lines));
}

}  // namespace greta
