// greta check: the plan, or every reason why not.
#include <optional>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "cli/output.h"
#include "model/hparams_json.h"
#include "model/plan.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDoesNotFit = 1;

/// The tokenizer, or what is wrong with the file's own as a problem among the others. A file named by
/// --tokenizer that cannot be read is bad input, not a misfit of the model: its error passes through.
std::unique_ptr<Tokenizer> tokenizer_or_problem(const Values& values, const gguf::File& file,
                                                std::vector<Problem>& problems) {
  if (values.has("tokenizer")) return Tokenizer::from_sentencepiece(values.text("tokenizer"));
  try {
    return Tokenizer::from_gguf(file);
  } catch (const Error& error) {
    problems.push_back(
        {"tokenizer", "one that this build reads", error.what(), "--tokenizer FILE overrides it"});
    for (const std::string& detail : error.details())
      problems.push_back({"tokenizer", "as above", detail, ""});
    return nullptr;
  }
}

Json problem_json(const Problem& problem) {
  return {{"where", problem.where},
          {"expected", problem.expected},
          {"got", problem.got},
          {"remedy", problem.remedy}};
}

Json memory_json(const Memory& memory) {
  return {{"weights", memory.weights},         {"mapped", memory.mapped}, {"kv_cache", memory.kv_cache},
          {"activations", memory.activations}, {"total", memory.total()}, {"available", memory.available}};
}

Json document(const Plan& plan, const gguf::File& file, const std::string& sha256, const Backend& backend) {
  Json json = {{"file", file.path()}, {"sha256", sha256},          {"device", backend.description()},
               {"fits", plan.fits()}, {"problems", Json::array()}, {"warnings", plan.warnings}};
  for (const Problem& problem : plan.problems) json["problems"].push_back(problem_json(problem));
  if (plan.fits()) {
    json["tokenizer"] = plan.tokenizer;
    json["hparams"] = hparams_json(plan.hp);
    json["context"] = plan.context;
    json["memory"] = memory_json(plan.memory);
  }
  return json;
}

}  // namespace

int check(const Values& values) {
  const EngineOptions options = engine_options(values);
  pins_sha256(options.expect);  // its spelling, before anything is read
  const auto backend = make_backend(options.device, options.backend);
  const gguf::File file = gguf::File::open(values.positionals[0]);
  std::vector<Problem> problems;
  const auto tokenizer = tokenizer_or_problem(values, file, problems);
  const std::string sha256 = file.sha256();

  PlanRequest request;
  request.context = options.context;
  request.chunk = options.chunk;
  request.expect = options.expect;
  request.file_sha256 = sha256;
  if (tokenizer) {
    request.tokenizer = tokenizer->description();
    request.tokenizer_vocab = tokenizer->vocab_size();
  }
  Plan plan = make_plan(file, *backend, request);
  plan.problems.insert(plan.problems.begin(), problems.begin(), problems.end());

  if (values.flag("json")) {
    print_json(document(plan, file, sha256, *backend));
  } else if (plan.fits()) {
    print(plan_text(plan, file, *backend));
    print(fmt::format("{:<14}{}\n", "sha256", sha256));
  }
  for (const std::string& warning : plan.warnings) log::warning("{}", printable(warning));
  flush_output();
  if (plan.fits()) return 0;
  std::vector<std::string> lines;
  for (const Problem& problem : plan.problems) lines.push_back(problem.text());
  if (!values.flag("json")) lines.push_back("sha256 " + sha256);
  show_error(fmt::format("{} does not fit: {} mismatch{}", file.path(), plan.problems.size(),
                         plan.problems.size() == 1 ? "" : "es"),
             lines);
  return kDoesNotFit;
}

}  // namespace greta::cli
