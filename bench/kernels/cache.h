#pragma once
// Batches and caches of keys and values for the cases that have them.
#include <cstdint>
#include <vector>

#include "backend/gpu/pass_data.h"
#include "kernels/lab.h"

namespace greta::gpu::lab {

/// Of each of so many sequences the rows at positions first .. first + rows - 1; all tokens are 0.
class Batch {
 public:
  Batch(int64_t sequences, int64_t first, int64_t rows);
  BatchView view() const {
    return {static_cast<int64_t>(tokens_.size()), tokens_.data(), positions_.data(), sequences_.data(),
            count_};
  }

 private:
  std::vector<int32_t> tokens_, positions_, sequences_;
  int64_t count_;
};

struct CacheShape {
  int kv_heads, head_dim;
  int64_t sequences;
  int64_t context;  ///< positions of each
};

/// One layer's cache in f16, its pages in random order. Filled: a page's keys are one of kKeys random pages,
/// its values one of kValues, so that kKeys * kValues pages in a row are different.
class Cache {
 public:
  static constexpr int64_t kKeys = 13, kValues = 11;
  Cache(const Lab& lab, const CacheShape& shape, bool filled);
  int64_t copies() const { return copies_; }
  KvLayer layer() const;
  /// Copy `launch`; `data` has the page table.
  DeviceKv at(int64_t launch, const PassData& data) const;
  /// Of positions 0 .. count - 1 as filled: [count, head_dim].
  std::vector<double> keys(int64_t sequence, int64_t count, int kv_head) const {
    return rows(keys_, kKeys, sequence, count, kv_head);
  }
  std::vector<double> values(int64_t sequence, int64_t count, int kv_head) const {
    return rows(values_, kValues, sequence, count, kv_head);
  }
  /// One position's row of a head as it lies on the device in copy 0: [head_dim].
  std::vector<double> stored(const Lab& lab, bool values, int64_t sequence, int64_t position,
                             int kv_head) const;

 private:
  int64_t stride() const { return (shape_.context + kKvPage - 1) / kKvPage; }
  int64_t page_elements() const { return int64_t{shape_.kv_heads} * kKvPage * shape_.head_dim; }
  std::vector<double> rows(const std::vector<uint16_t>& pages, int64_t different, int64_t sequence,
                           int64_t count, int kv_head) const;
  void fill(const Lab& lab, const std::vector<uint16_t>& pages, uint16_t* to) const;

  CacheShape shape_;
  std::vector<int32_t> pages_;  ///< [sequences, stride()]
  std::vector<uint16_t> keys_, values_;
  int64_t copies_;
  int64_t copy_elements_;  ///< of keys, and of values behind them
  DeviceMemory memory_;    ///< [copies][keys, values][pages]
};

/// Normal numbers without outliers: a softmax over many keys of about the same weight.
std::vector<float> normal_rows(int64_t count);

}  // namespace greta::gpu::lab
