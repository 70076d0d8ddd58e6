#pragma once
// The definition that the judge's fast path (judge.h) must agree with: one row of one stage by the functions
// of bounds.h alone, element by element.
#include "bisect/bounds.h"
#include "bisect/rows.h"
#include "bisect/wiring.h"
#include "model/plan.h"

namespace greta {

/// Row `row` of `data` for the rule's stage, on its inputs there. `truth`: whose weights and hyperparameters
/// count. Errors: the stage is a wire, or an input is missing.
Judged judged_stage(const Plan& truth, const Arithmetic& arithmetic, const UnitRows& data, int64_t row,
                    const RowName& name, const LayerHistory& history, const StageRule& rule);

/// One head of attention of that row.
Judged judged_head(const HParams& hp, const Arithmetic& arithmetic, const UnitRows& data, int64_t row,
                   const RowName& name, const LayerHistory& history, int64_t head);

/// A row's values as doubles.
std::vector<double> values_of(const StoredRows& rows, int64_t row);

/// A vector tensor (norm weights, a bias) as FP32; empty where the plan has none.
std::vector<float> planned_vector(const Plan& plan, int layer, Role role);

}  // namespace greta
