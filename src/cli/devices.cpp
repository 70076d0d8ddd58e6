// greta devices and greta --version.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "base/build_info.h"
#include "base/system.h"
#include "bench/limits.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace greta::cli {
namespace {

using Json = nlohmann::ordered_json;

/// The instruction sets that the cpu device has here, best first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Isa isa : {Isa::avx512, Isa::avx2, Isa::portable})
    if (static_cast<int>(isa) >= static_cast<int>(best_isa())) names.emplace_back(name_of(isa));
  return names;
}

constexpr const char* kNotBuilt = "not in this build";

}  // namespace

std::string version_text() {
  const BuildInfo& build = build_info();
  std::string out = fmt::format("greta {}\n", build.version);
  out += fmt::format("commit        {}{}\n", build.commit, build.dirty ? " (dirty)" : "");
  out += fmt::format("compiler      {}, {}\n", build.compiler, build.type);
  out += fmt::format("instructions  {}\n", fmt::join(instruction_sets(), ", "));
  out += fmt::format("backends      cpu, reference\n");
  return out;
}

int devices(const Values& values) {
  const uint64_t memory = available_memory();
  if (values.flag("json")) {
    const BuildInfo& build = build_info();
    print_json({{"devices",
                 {{{"device", "cpu"},
                   {"name", cpu_name()},
                   {"threads", usable_cpus()},
                   {"instruction_sets", instruction_sets()},
                   {"last_cache_bytes", last_level_cache_bytes()},
                   {"available_bytes", memory}},
                  {{"device", "reference"}, {"name", "float64 loops"}, {"available_bytes", memory}}}},
                {"not_built", {"cuda", "hip"}},
                {"build", {{"version", build.version}, {"commit", build.commit}, {"dirty", build.dirty}}}});
    return 0;
  }
  print(fmt::format("cpu        {}, {} threads, {}, last cache {}, {} available\n", cpu_name(), usable_cpus(),
                    fmt::join(instruction_sets(), ", "),
                    bytes_shown(static_cast<double>(last_level_cache_bytes())),
                    bytes_shown(static_cast<double>(memory))));
  print(fmt::format("reference  the judge: float64 loops on the cpu, {} available\n",
                    bytes_shown(static_cast<double>(memory))));
  print(fmt::format("cuda       {}\n", kNotBuilt));
  print(fmt::format("hip        {}\n", kNotBuilt));
  return 0;
}

}  // namespace greta::cli
