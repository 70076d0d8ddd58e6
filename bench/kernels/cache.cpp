#include "kernels/cache.h"

#include <algorithm>
#include <numeric>

#include "base/half.h"

namespace greta::gpu::lab {

std::vector<float> normal_rows(int64_t count) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

Batch::Batch(int64_t sequences, int64_t first, int64_t rows)
    : tokens_(static_cast<size_t>(sequences * rows), 0), count_(sequences) {
  for (int64_t s = 0; s < sequences; ++s)
    for (int64_t r = 0; r < rows; ++r) {
      positions_.push_back(static_cast<int32_t>(first + r));
      sequences_.push_back(static_cast<int32_t>(s));
    }
}

Cache::Cache(const Lab& lab, const CacheShape& shape, bool filled)
    : shape_(shape), pages_(static_cast<size_t>(shape.sequences * stride())) {
  std::iota(pages_.begin(), pages_.end(), 0);
  std::shuffle(pages_.begin(), pages_.end(), std::mt19937(1));
  copy_elements_ = static_cast<int64_t>(pages_.size()) * page_elements();
  copies_ = lab.copies_of(4 * copy_elements_);
  memory_ = lab.room(copies_ * 4 * copy_elements_);
  if (!filled) return;
  std::vector<uint16_t> halves;
  for (const float v : normal_rows((kKeys + kValues) * page_elements())) halves.push_back(f32_to_f16(v));
  keys_.assign(halves.begin(), halves.begin() + kKeys * page_elements());
  values_.assign(halves.begin() + kKeys * page_elements(), halves.end());
  fill(lab, keys_, memory_.data<uint16_t>());
  fill(lab, values_, memory_.data<uint16_t>() + copy_elements_);
  lab.repeat(memory_, 4 * copy_elements_, 4 * copy_elements_, copies_);
}

/// Logical page i gets page i % different.
void Cache::fill(const Lab& lab, const std::vector<uint16_t>& pages, uint16_t* to) const {
  const DeviceMemory from = lab.room(static_cast<int64_t>(pages.size()) * 2);
  lab.device().upload(from.data(), pages.data(), from.bytes());
  const auto different = static_cast<int64_t>(pages.size()) / page_elements();
  for (int64_t i = 0; i < static_cast<int64_t>(pages_.size()); ++i)
    lab.device().copy(to + pages_[static_cast<size_t>(i)] * page_elements(),
                      from.data<uint16_t>() + i % different * page_elements(),
                      static_cast<size_t>(page_elements()) * 2);
}

KvLayer Cache::layer() const {
  return {memory_.data(),  memory_.data<uint16_t>() + copy_elements_,
          shape_.kv_heads, shape_.head_dim,
          pages_.data(),   stride()};
}

DeviceKv Cache::at(int64_t launch, const PassData& data) const {
  uint16_t* k = memory_.data<uint16_t>() + launch % copies_ * 2 * copy_elements_;
  return {k,     k + copy_elements_,        shape_.kv_heads, shape_.head_dim,
          false, data.pages(pages_.data()), stride()};
}

std::vector<double> Cache::rows(const std::vector<uint16_t>& pages, int64_t different, int64_t sequence,
                                int64_t count, int kv_head) const {
  const int64_t hd = shape_.head_dim;
  std::vector<double> out;
  out.reserve(static_cast<size_t>(count * hd));
  for (int64_t position = 0; position < count; ++position) {
    const int64_t page = (sequence * stride() + position / kKvPage) % different;
    const int64_t at = page * page_elements() + (kv_head * kKvPage + position % kKvPage) * hd;
    for (int64_t d = 0; d < hd; ++d) out.push_back(f16_to_f32(pages[static_cast<size_t>(at + d)]));
  }
  return out;
}

std::vector<double> Cache::stored(const Lab& lab, bool values, int64_t sequence, int64_t position,
                                  int kv_head) const {
  const int64_t page = pages_[static_cast<size_t>(sequence * stride() + position / kKvPage)];
  const int64_t at = page * page_elements() + (kv_head * kKvPage + position % kKvPage) * shape_.head_dim;
  const uint16_t* from = memory_.data<uint16_t>() + (values ? copy_elements_ : 0) + at;
  std::vector<double> out;
  for (const uint16_t half : lab.read(from, shape_.head_dim)) out.push_back(f16_to_f32(half));
  return out;
}

}  // namespace greta::gpu::lab
