#include <charconv>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/gpu/gpu_backend.h"
#include "backend/gpu/targets.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace greta {
namespace {

/// The number behind "cuda:" and the like.
int index_of(std::string_view device) {
  const std::string_view digits = device.substr(device.find(':') + 1);
  int index = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc() || end != digits.data() + digits.size() || index < 0)
    fail("--device {}: expected a number after the colon, as in cuda:0", device);
  return index;
}

}  // namespace

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "cpu") return make_cpu_backend(options);
  if (device == "reference") return make_reference_backend(options);
  if (device.starts_with("cuda:")) return make_gpu_backend(gpu::open_cuda(index_of(device)), options);
  if (device.starts_with("hip:")) return make_gpu_backend(gpu::open_hip(index_of(device)), options);
  if (device.starts_with("sim:")) return make_gpu_backend(gpu::open_sim(index_of(device)), options);
  fail(
      "--device {}: no such device; expected cpu, cuda:0, hip:0, reference, or to try kernels sim:32 or "
      "sim:64",
      device);
}

}  // namespace greta
