#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace greta {

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "cpu") return make_cpu_backend(options);
  if (device == "reference") return make_reference_backend(options);
  if (device.starts_with("cuda:") || device.starts_with("hip:"))
    fail("--device {}: this build has no GPU backend; expected cpu or reference", device);
  fail("--device {}: no such device; expected cpu or reference", device);
}

}  // namespace greta
