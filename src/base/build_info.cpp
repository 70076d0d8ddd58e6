#include "base/build_info.h"

#include "build_info.inc"

namespace greta {

const BuildInfo& build_info() {
  static const BuildInfo info {
    "0.1.0", kCommit, kDirty,
#if defined(__clang__)
        "clang " __clang_version__,
#else
        "g++ " __VERSION__,
#endif
#if defined(__SANITIZE_ADDRESS__)
        "address sanitizer"
#elif defined(__SANITIZE_THREAD__)
        "thread sanitizer"
#elif defined(__OPTIMIZE__)
        "optimised"
#else
        "debug"
#endif
  };
  return info;
}

}  // namespace greta
