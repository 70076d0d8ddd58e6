#pragma once
#include <string>

namespace greta {

/// Which build this is; it stands in `--version`, in every trace and in every report.
struct BuildInfo {
  std::string version;   ///< release number
  std::string commit;    ///< full hash, or "unknown" outside a git checkout
  bool dirty = false;    ///< the tree differed from that commit
  std::string compiler;  ///< name and version
  std::string type;      ///< optimised or not, sanitizers
};

const BuildInfo& build_info();

}  // namespace greta
