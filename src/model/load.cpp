#include <map>
#include <memory>
#include <utility>

#include "model/model.h"
#include "model/plan.h"
#include "model/tensor_plan.h"

namespace greta {

Model load_model(const gguf::File& file, const Plan& plan, Backend& backend,
                 const std::function<void(uint64_t, uint64_t)>& progress) {
  require_fit(plan, file);
  uint64_t all = 0;
  std::map<const gguf::Tensor*, std::shared_ptr<int>> uses;  // that read the tensor's bytes
  for (const auto& planned : plan.tensors) {
    all += source_of(planned).bytes.size();
    auto& count = uses[planned.tensor];
    if (!count) count = std::make_shared<int>(0);
    ++*count;
  }

  Model model;
  model.hp = plan.hp;
  model.layers.resize(static_cast<size_t>(plan.hp.layers));
  model.owned.reserve(plan.tensors.size());
  uint64_t done = 0;
  for (const auto& planned : plan.tensors) {
    const auto& tensor = *planned.tensor;
    WeightSource source = source_of(planned);
    // A tensor with two roles (tied embedding) keeps its pages until no role needs them; others go piece by
    // piece.
    source.release = [&file, &tensor, left = uses[planned.tensor],
                      only = *uses[planned.tensor] == 1](std::span<const std::byte> part) {
      if (only) file.drop(tensor, part);
      if (!only && --*left == 0) file.drop(tensor, tensor.bytes);
    };
    source.read = [&file, &tensor](std::span<const std::byte> part, std::byte* to) {
      file.read(tensor, part, to);
    };
    model.owned.push_back(backend.load(source, planned.use));
    const Weight* weight = model.owned.back().get();
    auto& slots = planned.layer < 0 ? model.global : model.layers[static_cast<size_t>(planned.layer)];
    slots[static_cast<size_t>(planned.role)] = weight;
    done += source.bytes.size();
    if (progress) progress(done, all);
  }
  backend.synchronize();  // a device tells here what it could not hold
  return model;
}

}  // namespace greta
