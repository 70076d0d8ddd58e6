#pragma once
#include <nlohmann/json.hpp>

#include "model/model.h"

namespace greta {

/// A model's hyperparameters as every JSON document has them. What the model has not (experts, a window, a
/// cap) is 0.
nlohmann::ordered_json hparams_json(const HParams& hp);

}  // namespace greta
