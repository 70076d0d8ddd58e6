// The kernel lab: each kernel of a GPU against FP64 on the same inputs, its time against its floor, and what
// the one order of addition costs. Status: 0 every check passed, 1 one failed, 2 it could not run.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <string>

#include "base/error.h"
#include "kernels/lab.h"

namespace {

using namespace greta;

void write_json(const std::string& path, const nlohmann::json& json) {
  std::ofstream file(path);
  file << json.dump(1) << "\n";
  if (!file.flush()) fail("--json {}: cannot be written", path);
}

int run_lab(int argc, char** argv) {
  gpu::lab::Options options;
  std::string json;
  CLI::App app{"Each kernel of a GPU against FP64 and against its floor; the price of bit-identity"};
  app.add_option("--device", options.device,
                 "cuda:0, hip:0, or to check kernels in emulation sim:32 or sim:64")
      ->capture_default_str();
  app.add_option("--kernels", options.kernels,
                 fmt::format("only these, comma-separated: {}", fmt::join(gpu::lab::kernel_names(), ", ")))
      ->delimiter(',');
  app.add_flag("--price", options.price,
               "each matmul of Llama-2-7B beside cuBLASLt and a free order; only this, without --kernels");
  app.add_option("--json", json, "write the tables there, too");
  app.add_flag("--quick", options.quick, "tiny shapes, every value checked");
  CLI11_PARSE(app, argc, argv);
  if (!options.price && options.kernels.empty()) {
    options.kernels = gpu::lab::kernel_names();
    options.price = true;
  }
  options.print = [](const std::string& text) {
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  const gpu::lab::Report report = gpu::lab::run(options);
  if (!json.empty()) write_json(json, gpu::lab::json_of(report));
  fmt::print("{}\n", report.passed() ? "every check passed" : "a check FAILED");
  return report.passed() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_lab(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "greta_kernel_lab: {}\n", error.what());
    return 2;
  }
}
