// greta devices and greta --version.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/gpu/targets.h"
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
  for (const Isa isa : kIsas)
    if (has_isa(isa)) names.emplace_back(name_of(isa));
  return names;
}

/// The backends of this build, GPU targets with what they have kernels for.
std::string backends() {
  std::string names = "cpu, reference";
  if (const std::string built = gpu::built_cuda(); !built.empty()) names += fmt::format(", cuda ({})", built);
  if (const std::string built = gpu::built_hip(); !built.empty()) names += fmt::format(", hip ({})", built);
  return names;
}

/// "cuda:0" is a device, "cuda" the name of a target that has none.
bool is_device(const gpu::DeviceInfo& info) { return info.device.find(':') != std::string::npos; }

std::string gpu_line(const gpu::DeviceInfo& info) {
  std::vector<std::string> parts;
  if (is_device(info)) {
    parts.push_back(info.description);
    parts.push_back("driver " + info.driver);
    const std::string total = bytes_shown(static_cast<double>(info.total_bytes));
    parts.push_back(info.free_bytes ? fmt::format("{} of {} available",
                                                  bytes_shown(static_cast<double>(*info.free_bytes)), total)
                                    : total);
  }
  if (!info.unusable.empty()) parts.push_back((is_device(info) ? "not usable: " : "") + info.unusable);
  return fmt::format("{:<10} {}\n", info.device, fmt::join(parts, ", "));
}

Json gpu_json(const gpu::DeviceInfo& info) {
  Json json = {{"device", info.device},
               {"name", info.description},
               {"driver", info.driver},
               {"total_bytes", info.total_bytes}};
  if (info.free_bytes) json["available_bytes"] = *info.free_bytes;
  if (!info.unusable.empty()) json["unusable"] = info.unusable;
  return json;
}

Json devices_json(const std::vector<gpu::DeviceInfo>& gpus) {
  const BuildInfo& build = build_info();
  const uint64_t memory = available_memory();
  Json json = {{"devices",
                {{{"device", "cpu"},
                  {"name", cpu_name()},
                  {"threads", usable_cpus()},
                  {"instruction_sets", instruction_sets()},
                  {"last_cache_bytes", last_level_cache_bytes()},
                  {"available_bytes", memory}},
                 {{"device", "reference"}, {"name", "float64 loops"}, {"available_bytes", memory}}}},
               {"unavailable", Json::object()},
               {"not_built", Json::array()},
               {"build", {{"version", build.version}, {"commit", build.commit}, {"dirty", build.dirty}}}};
  for (const gpu::DeviceInfo& info : gpus) {
    if (is_device(info))
      json["devices"].push_back(gpu_json(info));
    else
      json["unavailable"][info.device] = info.unusable;
  }
  if (gpu::built_cuda().empty()) json["not_built"].push_back("cuda");
  if (gpu::built_hip().empty()) json["not_built"].push_back("hip");
  return json;
}

}  // namespace

std::string version_text() {
  const BuildInfo& build = build_info();
  std::string out = fmt::format("greta {}\n", build.version);
  out += fmt::format("commit        {}{}\n", build.commit, build.dirty ? " (dirty)" : "");
  out += fmt::format("compiler      {}, {}\n", build.compiler, build.type);
  out += fmt::format("instructions  {}\n", fmt::join(instruction_sets(), ", "));
  out += fmt::format("backends      {}\n", backends());
  return out;
}

int devices(const Values& values) {
  const std::vector<gpu::DeviceInfo> gpus = gpu::list_devices(/*measure_free=*/true);
  if (values.flag("json")) {
    print_json(devices_json(gpus));
    return 0;
  }
  const std::string memory = bytes_shown(static_cast<double>(available_memory()));
  print(fmt::format("cpu        {}, {} threads, {}, last cache {}, {} available\n", cpu_name(), usable_cpus(),
                    fmt::join(instruction_sets(), ", "),
                    bytes_shown(static_cast<double>(last_level_cache_bytes())), memory));
  print(fmt::format("reference  the judge: float64 loops on the cpu, {} available\n", memory));
  for (const gpu::DeviceInfo& info : gpus) print(gpu_line(info));
  return 0;
}

}  // namespace greta::cli
