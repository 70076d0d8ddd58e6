#pragma once
#include <string>
#include <vector>

#include "model/plan.h"

namespace greta {

/// One field of --expect.
struct Pin {
  std::string field;
  std::string text;    ///< as written
  int64_t number = 0;  ///< of a numeric field
};

/// "dim=4096,layers=32". Errors (greta::Error): an unknown field, a field twice, no or a broken value; the
/// fields are listed.
std::vector<Pin> parse_pins(const std::string& expect);

/// Every pin that the model differs from, as a problem of `plan`.
void check_pins(const std::vector<Pin>& pins, const PlanRequest& request, Plan& plan);

}  // namespace greta
