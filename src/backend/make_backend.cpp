#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/gpu/gpu_backend.h"
#include "backend/gpu/targets.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace greta {

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "cpu") return make_cpu_backend(options);
  if (device == "reference") return make_reference_backend(options);
  if (is_gpu(device)) return make_gpu_backend(gpu::open_device(device), options);
  fail(
      "--device {}: no such device; expected cpu, cuda:0, hip:0, reference, or to try kernels sim:32 or "
      "sim:64",
      device);
}

}  // namespace greta
