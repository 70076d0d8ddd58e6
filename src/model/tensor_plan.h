#pragma once
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf.h"
#include "model/architectures.h"
#include "model/plan.h"

namespace greta {

/// Holds the architecture's list of tensors against the file's: what is there goes to plan.tensors, and
/// missing tensors, wrong shapes, types that the backend refuses and tensors without a role become problems,
/// consecutive layers with the same fault as one. Shapes whose hyperparameters are 0 (unknown) are not
/// judged; with an unknown number of layers no layer's tensor is missed, with one of experts none of an MLP.
void plan_tensors(const gguf::File& file, const Architecture& architecture, const Backend& backend,
                  Plan& plan);

/// Rows and columns of a tensor as the engine sees it: [cols, rows] in the file's order, [cols, rows /
/// experts, experts] of a stack; a vector is one row.
struct MatrixShape {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t experts = 1;
};
MatrixShape matrix_shape(const gguf::Tensor& tensor, WeightUse use);
/// The tensor of a role (`layer` -1: once a model), or null.
const PlannedTensor* planned_tensor(const Plan& plan, int64_t layer, Role role);
/// What a backend loads: the planned rows.
WeightSource source_of(const PlannedTensor& planned);

}  // namespace greta
