#pragma once
#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "model/plan.h"

namespace greta {

/// Bytes that the plan takes on the device. Needs every dimension of plan.hp. Sums that 64 bits cannot hold
/// saturate.
Memory estimate_memory(const Plan& plan, const Backend& backend, const PlanRequest& request);

/// One problem with needed, available and the options that would make it fit, where plan.memory does not.
void check_memory(Plan& plan, const Backend& backend, const PlanRequest& request);

/// "1.9 GiB", "98.4 MiB", "512 bytes".
std::string bytes_text(uint64_t bytes);

}  // namespace greta
