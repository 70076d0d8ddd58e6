#pragma once
// Which of AMD's chips may run the kernels. Plain C++: asked, and tested, without one.
#include <fmt/format.h>

#include <string>
#include <string_view>

namespace greta::gpu::hip {

/// Why a chip ("gfx942") cannot be used by a build for `built` ("gfx942, gfx90a"); empty: it can.
inline std::string lacks(std::string_view architecture, std::string_view built) {
  if (architecture == "gfx90a")
    return "expected a chip whose matrix unit takes subnormal f16 operands as they are, as gfx942's; MI200's "
           "takes them as zero (AMD's document), which no error bound here allows for: use --device cpu";
  if (fmt::format("{}, ", built).find(fmt::format("{}, ", architecture)) != std::string::npos) return "";
  return fmt::format("this build has kernels for {}", built);
}

}  // namespace greta::gpu::hip
