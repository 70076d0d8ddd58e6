#include <map>
#include <utility>

#include "model/model.h"
#include "model/plan.h"
#include "model/tensor_plan.h"

namespace greta {

Model load_model(const gguf::File& file, const Plan& plan, Backend& backend,
                 const std::function<void(uint64_t, uint64_t)>& progress) {
  require_fit(plan, file);
  uint64_t all = 0;
  std::map<const gguf::Tensor*, int> uses;  // planned and not yet loaded, plus those that stay in place
  for (const auto& planned : plan.tensors) {
    all += source_of(planned).bytes.size();
    ++uses[planned.tensor];
  }

  Model model;
  model.hp = plan.hp;
  model.layers.resize(static_cast<size_t>(plan.hp.layers));
  model.owned.reserve(plan.tensors.size());
  uint64_t done = 0;
  for (const auto& planned : plan.tensors) {
    const auto& tensor = *planned.tensor;
    const WeightSource source = source_of(planned);
    model.owned.push_back(backend.load(source, planned.use));
    const Weight* weight = model.owned.back().get();
    auto& slots = planned.layer < 0 ? model.global : model.layers[static_cast<size_t>(planned.layer)];
    slots[static_cast<size_t>(planned.role)] = weight;
    // A tensor with two roles (tied embedding) keeps its pages until no role needs them.
    if (!weight->file_in_use && --uses[planned.tensor] == 0) file.drop(tensor);
    done += source.bytes.size();
    if (progress) progress(done, all);
  }
  return model;
}

}  // namespace greta
